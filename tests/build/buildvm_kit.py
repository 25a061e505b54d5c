"""Reviewers, approvals and a builder's places, for tests of builder machines."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate import approval
from casemate.attestation import record as records
from casemate.build import buildvm, forms
from casemate.build import job as jobs
from casemate.build.authority import Authority
from casemate.build.signers import Signer
from casemate.guest import bootloader, builder, builderinput
from casemate.guest.builderwork import next_builder
from casemate.guest.kernel import Disk
from casemate.image.ca import DevelopmentCA
from casemate.secret import Secret

PARTS = {"kernel": b"kernel" * 999, "initrd": b"initrd" * 999, "sbom.spdx.json": b"{}", "packages.txt": b"base-files\n"}
ROOT_ARCHIVE = b"root archive"


class Reviewers:
    """Three reviewers, two of whom must sign."""

    def __init__(self) -> None:
        self.keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("alice", "bob", "carol")}
        pem = {
            name: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
            for name, key in self.keys.items()
        }
        self.file = json.dumps({"format": "casemate-reviewers/1", "threshold": 2, "reviewers": pem}).encode()
        self.signers: dict[str, Signer] = {}
        """Of those whose keys are elsewhere."""

    def _sign(self, name: str, signed: bytes) -> bytes:
        if name not in self.signers:
            return self.keys[name].sign(signed, ec.ECDSA(hashes.SHA384()))
        with self.signers[name].open() as key:
            return bytes(key.sign(signed, ec.ECDSA(hashes.SHA384())))  # type: ignore[call-arg, arg-type]

    def approve(
        self, job: bytes, revision: int, *, builder: str = "buildvm", by: Sequence[str] = ("alice", "carol")
    ) -> bytes:
        parsed = approval.parse_reviewers(self.file)
        statement = approval.statement(jobs.subject(builder), revision, job, parsed)
        signed = approval.pae(approval.PAYLOAD_TYPE, statement)
        return approval.envelope(statement, [(name, self._sign(name, signed)) for name in by])


class Bench:
    """A builder without its machine: the places that the bootloader leaves, and disks that are files."""

    def __init__(self, directory: Path, *, pipeline: bytes = b"", authority: Authority | None = None) -> None:
        self.directory, self.reviewers = directory, Reviewers()
        directory.mkdir(exist_ok=True)
        self.authority = authority or DevelopmentCA.load_or_create(directory / "ca")
        self.host = ec.generate_private_key(ec.SECP521R1())
        described = self.authority.describe()
        attestation = rsa.generate_private_key(public_exponent=65537, key_size=3072)
        intermediate = ec.generate_private_key(ec.SECP384R1())
        asked = forms.request(described, "Casemate builder buildvm 1").sign(intermediate, hashes.SHA384())
        certificate = self.authority.certify_builder(forms.pem(asked))
        above = forms.load_certificate(certificate)
        leaf = forms.sign(
            forms.certificate(described, "builder attestation", attestation.public_key(), above), intermediate
        )
        names = {"name": described.name, "development": True, "lists_at": "", "list_days": 30}
        files = {
            **{"intermediate.crt": certificate, "root.crt": self.authority.root_pem},
            "attestation.crt": forms.pem(leaf),
            "crl.pem": forms.pem(forms.revocation_list(above, 1, (), 30).sign(intermediate, hashes.SHA384())),
            "root.crl.pem": self.authority.root_crl_pem or b"",
        }
        public = {
            **{"reviewers.json": self.reviewers.file, "root.crt": self.authority.root_pem},
            **{"intermediate.crt": certificate, "authority.json": json.dumps(names).encode()},
            "root.crl.pem": files["root.crl.pem"],
            **({"pipeline.pem": pipeline} if pipeline else {}),
        }
        identity = next_builder(
            *(described, "buildvm", 1, ""),
            attestation=attestation,
            intermediate=intermediate,
            public=public,
            files=files,
        )
        self.settle(identity.secrets, identity.public, identity.facts, {**files, "reviewers.json": self.reviewers.file})
        self.state = directory / "state.img"
        with self.state.open("wb") as disk:
            disk.truncate(256 << 20)
        self.runs = 0

    def settle(
        self,
        secrets: Mapping[str, Secret],
        public: Mapping[str, bytes],
        facts: Mapping[str, Any],
        files: Mapping[str, bytes],
    ) -> None:
        """Become a builder: what its image has inside, and the directory that is published of it."""
        self.secrets = {name: secret.reveal() for name, secret in secrets.items()}
        self.public, self.facts = dict(public), dict(facts["builder"])
        self.image = {
            **{"version": "26.11.0", "created": int(time.time()), "root_sha256": "1" * 64, "baseimage": "2" * 64},
            **{"sbom": "3" * 64, "builder": self.facts, "hosts": []},
        }
        values = {"root.tar.gz": "1" * 64, "baseimage": "2" * 64, "sbom": "3" * 64}
        reference = {"format": "casemate-reference-values/1", "version": "26.11.0", "values": values}
        described = {"format": "casemate-image/1", "kind": "builder", "builder": self.facts}
        path = self.directory / f"builder-{self.facts['generation']}"
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
        (path / "reference-values.json").write_text(json.dumps(reference))
        (path / "image.json").write_text(json.dumps(described))
        self.published = buildvm.BuilderDirectory(path)

    @property
    def document(self) -> bytes:
        return self.host.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def job(self, mode: str = "crl", after: bytes = b"", **more: Any) -> bytes:
        last = hashlib.sha256(after).hexdigest() if after else self.facts["after"]
        return jobs.Job(mode, "buildvm", self.facts["generation"], last, **more).as_bytes()

    def image_job(self, after: bytes = b"", mode: str = "image", **more: Any) -> bytes:
        parts = {name: buildvm.measure(data) for name, data in PARTS.items()}
        root = buildvm.measure(ROOT_ARCHIVE)
        fields = {"parts": parts, "root": root, "release": "6.1", "selection": {"exact": True}}
        return self.job(mode, after, hosts=(("HKD.pem", self.document),), **{**fields, **more})

    def places(
        self,
        job: bytes,
        approval: bytes,
        files: Mapping[str, bytes | Path] | None = None,
        change: Callable[[Path], None] = lambda disk: None,
    ) -> builder.Places:
        """Lay everything out for one start; ``change`` is done to the input disk after the bootloader has read the head."""
        self.runs += 1
        here = self.directory / f"run-{self.runs}"
        (here / "run/keys").mkdir(parents=True)
        (here / "run/public").mkdir()
        (here / "record").mkdir()
        for kind, content in (("keys", self.secrets), ("public", self.public)):
            for name, data in content.items():
                (here / "run" / kind / name).write_bytes(data)
        (here / "run/image.json").write_text(json.dumps(self.image))
        buildvm.input_disk(here / "input.img", job, approval, files or {})
        disk = here / "input.img"
        given = builderinput.find([Disk("vdb", "", disk.stat().st_size)], lambda _, size: disk.read_bytes()[:size])
        given.hand_over(here / "run")
        change(disk)
        lines = [*given.lines(), *bootloader.baked_lines(here / "run/public")]
        text = bootloader.make_record(self.image, lines, time.time(), None)
        (here / "record/se-checksums.txt").write_bytes(text)
        (here / "record/se-signature.bin").write_bytes(records.sign(text, self.secrets["attestation.pem"]))
        with (here / "result.img").open("wb") as out:
            out.truncate(64 << 20)
        return builder.Places(
            *(here / "run", here / "record", here / "work", disk, self.state, here / "result.img"),
        )

    def run(
        self, job: bytes, revision: int, files: Mapping[str, bytes | Path] | None = None, **more: Any
    ) -> builder.Places:
        """Do a job that two reviewers have approved; return where everything is."""
        places = self.places(job, self.reviewers.approve(job, revision), files, **more)
        builder.build(places)
        return places

    def unpack(self, places: builder.Places, job: bytes, target: Path) -> jobs.Result:
        """Verify and unpack a result, as the host does."""
        head = (places.run / "input").read_bytes()
        approval = builderinput.split("", head).approval
        archive = self.directory / "root.squashfs"
        archive.write_bytes(ROOT_ARCHIVE)
        return buildvm.unpack(places.result, self.published, job, approval, target, archive=archive)
