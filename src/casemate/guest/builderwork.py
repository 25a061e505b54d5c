"""What a builder machine makes: images, the next generation of itself, revocation lists. Keys are made here, and stay in memory.

The builder is an intermediate authority: its key signs certificates of images, provenance statements' certificates, and its own
revocation list, and each use is a line of its log (:mod:`casemate.build.keylog`). Its certificate may come with the
image or with a job, for the key of a new generation is certified after it was made; it must be for the builder's own
key, and chain to the root that is baked into the image.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from casemate import strictjson
from casemate.build import forms, keylog
from casemate.build import job as jobs
from casemate.certificates.chain import certificates_of, verify_chain
from casemate.errors import CasemateError
from casemate.guest.builderstate import Memory, State
from casemate.guest.kinds import KINDS
from casemate.guest.report import Stop
from casemate.image import provenance
from casemate.image.assemble import IMAGE, VERSION, Identity, Parts, assemble, digests
from casemate.secret import Secret
from casemate.secureexec import hostkey

ATTESTATION, INTERMEDIATE, STATE = "attestation.pem", "intermediate.pem", "state.key"
REVIEWERS, ROOT, ROOT_LIST, CERTIFICATE, AUTHORITY, PIPELINE = (
    *("reviewers.json", "root.crt", "root.crl.pem", "intermediate.crt", "authority.json", "pipeline.pem"),
)
REQUEST = "intermediate.csr"
Out = dict[str, bytes | Path]
"""What goes out: files by name, in memory or on the encrypted root disk."""


@dataclass(frozen=True, slots=True)
class Builder:
    """Who this builder is, as its image says. ``facts`` are name, generation, and what its first job comes after."""

    secrets: Mapping[str, Secret]
    public: Mapping[str, bytes]
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name that all generations have."""
        return str(self.facts["name"])

    @property
    def generation(self) -> int:
        """Which generation this is, from 1."""
        return int(self.facts["generation"])


@dataclass(frozen=True, slots=True)
class Names:
    """What ``authority.json`` says: whose certificates these are."""

    name: str
    development: bool
    lists_at: str
    list_days: int

    @classmethod
    def parse(cls, data: bytes) -> Names:
        """Read the file, which came with the image."""
        said = strictjson.loads(data)
        return cls(str(said["name"]), said["development"] is not False, str(said["lists_at"]), int(said["list_days"]))


class Issuer:
    """The builder's intermediate key at work. ``log`` grows by a line with each use."""

    def __init__(self, builder: Builder, job: jobs.Job, log: str) -> None:
        self.names = Names.parse(builder.public[AUTHORITY])
        self.name = f"{builder.name}-{builder.generation}"
        self.root = builder.public[ROOT]
        self.root_list = job.root_list or builder.public.get(ROOT_LIST, b"")
        self.log = log
        self._key: Any = forms.load_private(builder.secrets[INTERMEDIATE].reveal())
        given = job.intermediate or builder.public.get(CERTIFICATE, b"")
        if not given:
            raise Stop("HPL17007E", "the builder's key has no certificate yet: the job must bring the root's answer")
        self.pem = given
        self._above = self._own(given)

    def _own(self, pem: bytes) -> x509.Certificate:
        try:
            first, *_ = certificates_of(pem)
            one = x509.load_pem_x509_certificate(first)
            basic = one.extensions.get_extension_for_class(x509.BasicConstraints).value
            chain = verify_chain(first, [self.root], [self.root_list] if self.root_list else [], time=forms.moment())
        except (CasemateError, ValueError, x509.ExtensionNotFound) as error:
            raise Stop("HPL17007E", f"the builder's certificate can't be read: {type(error).__name__}") from None
        if _public(one) != _public(self._key) or not basic.ca:
            raise Stop("HPL17007E", "the certificate is for another key than the builder's, or for no authority")
        if not chain.proved or chain.development is not self.names.development:
            raise Stop("HPL17007E", "the builder's certificate does not hold under the root of its image")
        return one

    def leaf(
        self, common: str, public: Any, *, encrypts: bool = False, purpose: x509.ObjectIdentifier | None = None
    ) -> bytes:
        """Certify a key; return the certificate, PEM."""
        form = forms.certificate(
            *(self.names, common, public, self._above), encrypts=encrypts, purpose=purpose, issuer=self.name
        )
        made = forms.sign(form, self._key)
        pem = forms.pem(made)
        if not verify_chain(pem, [self.root], time=forms.moment(), untrusted=[self.pem]).proved:
            raise Stop("HPL17007E", "what the builder has signed does not hold under its own certificate")
        facts = {
            **{"key": _digest(made), "subject": made.subject.rfc4514_string(), "serial": f"{made.serial_number:x}"},
            **{"until": forms.validity(made)[1].isoformat(), "sha256": _sha256(made.public_bytes(Encoding.DER))},
        }
        self.note("certificate", **facts)
        return pem

    def revocation_list(self, number: int, revoked: Mapping[str, tuple[str, str]]) -> bytes:
        """Sign a revocation list; return it, PEM."""
        entries = [
            forms.revoked(int(serial, 16), datetime.datetime.fromisoformat(time), reason)
            for serial, (time, reason) in sorted(revoked.items())
        ]
        form = forms.revocation_list(self._above, number, entries, self.names.list_days)
        made = form.sign(self._key, forms.algorithm_for(self._key.public_key()))
        self.note("list", number=number, entries=len(entries), sha256=_sha256(made.public_bytes(Encoding.DER)))
        return forms.pem(made)

    def note(self, action: str, **facts: Any) -> None:
        """Write a line of the log."""
        lines = self.log.encode().split(b"\n")[:-1]
        previous = _sha256(lines[-1]) if lines else keylog.START
        now = forms.moment()
        self.log += keylog.line(len(lines) + 1, previous, now, action, {"issuer": self.name, **facts}).decode() + "\n"

    @property
    def head(self) -> str:
        """SHA-256 of the log's last line."""
        return _sha256(self.log.encode().split(b"\n")[-2]) if self.log else keylog.START


@dataclass(slots=True)
class Work:
    """A job at work: who, what was approved, and what comes of it. ``fresh``: the secrets that were made."""

    builder: Builder
    job: jobs.Job
    issuer: Issuer
    memory: Memory
    directory: Path
    statement: Mapping[str, Any]
    fresh: list[Secret] = field(default_factory=list)


def revoke(work: Work) -> tuple[Out, State]:
    """Return the builder's revocation list with what the job adds, and the state that remembers it."""
    revoked = dict(work.memory.state.revoked)
    for serial, reason in work.job.revoke:
        name = f"{serial:x}"
        if name not in revoked:
            revoked[name] = (forms.moment().isoformat(), reason)
            work.issuer.note("revoke", serial=name, reason=reason)
    number = work.memory.state.list_number + 1
    listed = work.issuer.revocation_list(number, revoked)
    return {"crl.pem": listed}, replace(work.memory.state, revoked=revoked, list_number=number)


def make(work: Work, parts: Parts) -> tuple[Out, State]:
    """Make an image of parts, for customers or the next generation of this builder; return what goes out, and the state."""
    started = forms.moment()
    hosts = _hosts(work)
    number = work.memory.state.list_number + 1
    chain = {
        **{"intermediate.crt": work.issuer.pem, "root.crt": work.issuer.root},
        "crl.pem": work.issuer.revocation_list(number, work.memory.state.revoked),
        **({"root.crl.pem": work.issuer.root_list} if work.issuer.root_list else {}),
    }
    identity = (_customer if parts.kind.opens else _next)(work, chain)
    with (work.directory / IMAGE).open("w+b") as out:
        made = assemble(out, parts, identity, hosts, created=started)
        subjects = digests(out, parts, made.files, provenance.SUBJECTS)
    signer = ec.generate_private_key(ec.SECP384R1())
    secret = _keep(work, forms.private_pem(signer))
    purpose = ExtendedKeyUsageOID.CODE_SIGNING
    certificate = work.issuer.leaf(f"Casemate {VERSION} build provenance", signer.public_key(), purpose=purpose)
    brought = [*work.job.parts.items(), *([("root.squashfs", work.job.root)] if work.job.root else [])]
    statement = provenance.statement(
        subjects,
        parameters={"arch": parts.arch, "version": VERSION, **work.statement},
        dependencies=[{"name": name, "digest": {"sha256": part.sha256}} for name, part in brought],
        values=made.values,
        tools={"casemate": VERSION},
        builder=provenance.MACHINE_BUILDER,
        started=started,
        finished=forms.moment(),
    )
    files: Out = {
        **made.files,
        IMAGE: work.directory / IMAGE,
        provenance.NAME: provenance.sign(statement, secret.reveal()),
        provenance.CERTIFICATE: certificate,
    }
    return files, replace(
        work.memory.state, list_number=number, successor=work.memory.state.successor or not parts.kind.opens
    )


def _customer(work: Work, chain: Mapping[str, bytes]) -> Identity:
    encryption, attestation = _rsa_keys(2)
    first = work.issuer.leaf(f"Casemate {VERSION} contract encryption", encryption.public_key(), encrypts=True)
    second = work.issuer.leaf(f"Casemate {VERSION} attestation", attestation.public_key())
    return Identity(
        secrets={
            "contract.pem": _keep(work, forms.private_pem(encryption)),
            ATTESTATION: _keep(work, forms.private_pem(attestation)),
        },
        files={"encryption.crt": first, "attestation.crt": second, **chain},
        contracts_until=forms.validity(x509.load_pem_x509_certificate(first))[1],
    )


def _next(work: Work, chain: Mapping[str, bytes]) -> Identity:
    """The next generation has keys of its own; of this one's, none goes on."""
    builder, names = work.builder, work.issuer.names
    (attestation,) = _rsa_keys(1)
    intermediate = ec.generate_private_key(ec.SECP384R1())
    reviewers = work.job.reviewers or builder.public[REVIEWERS]
    identity = next_builder(
        *(names, builder.name, builder.generation + 1, str(work.statement["job"])),
        attestation=attestation,
        intermediate=intermediate,
        public={
            **{name: data for name, data in builder.public.items() if name in (ROOT, AUTHORITY, PIPELINE)},
            REVIEWERS: reviewers,
            **({ROOT_LIST: work.issuer.root_list} if work.issuer.root_list else {}),
        },
        files={
            **{**chain, REVIEWERS: reviewers},
            "attestation.crt": work.issuer.leaf(f"Casemate {VERSION} builder attestation", attestation.public_key()),
        },
    )
    work.issuer.note("generate", key=_digest(intermediate), subject=f"{builder.name}-{builder.generation + 1}")
    work.issuer.note("retire", **{"for": f"{builder.name}-{builder.generation + 1}"})
    for secret in identity.secrets.values():
        work.fresh.append(secret)
    return identity


def next_builder(
    names: Any,
    name: str,
    generation: int,
    after: str,
    *,
    attestation: rsa.RSAPrivateKey,
    intermediate: ec.EllipticCurvePrivateKey,
    public: Mapping[str, bytes],
    files: Mapping[str, bytes],
) -> Identity:
    """Return what makes an image of kind ``builder`` a certain builder: its keys, a request for its certificate, what it knows.

    The request is published beside the image; the root's answer comes with ``public``, or with each job.
    """
    form = forms.request(names, f"Casemate builder {name} {generation}")
    request = form.sign(intermediate, forms.algorithm_for(intermediate.public_key()))
    return Identity(
        secrets={
            ATTESTATION: Secret(forms.private_pem(attestation)),
            INTERMEDIATE: Secret(forms.private_pem(intermediate)),
            STATE: Secret(secrets.token_bytes(32)),
        },
        files={**files, REQUEST: forms.pem(request)},
        public=public,
        facts={"builder": {"name": name, "generation": generation, "after": after}},
    )


def _hosts(work: Work) -> Sequence[tuple[str, hostkey.HostKey]]:
    if work.job.keyset:
        from casemate.build import keyset

        kept = keyset.parse(work.job.keyset)
        documents, verified = kept.require(forms.moment()), kept.proved
    else:
        documents, verified = list(work.job.hosts), False
    if not verified and not work.issuer.names.development:
        raise Stop("HPL17006E", "no authority but a development one certifies an image for hosts that nobody verified")
    return [(name, hostkey.load(document)) for name, document in documents]


def _keep(work: Work, pem: bytes) -> Secret:
    work.fresh.append(Secret(pem))
    return work.fresh[-1]


def _rsa_keys(number: int) -> list[rsa.RSAPrivateKey]:
    """Make keys at once, in memory: OpenSSL works without the interpreter's lock."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda _: rsa.generate_private_key(public_exponent=65537, key_size=4096), range(number)))


def parts_of(work: Work, kernel: BinaryIO, initrd: BinaryIO, bill: bytes, packages: bytes) -> Parts:
    """Return the parts of a job that brings them ready."""
    job, root = work.job, work.job.root
    if root is None:
        raise Stop("HPL17006E", "the job brings no ready parts")
    kind = KINDS["layer" if job.mode == jobs.IMAGE else "builder"]
    return Parts(
        *(job.arch, kind, job.release, kernel, initrd, root.sha256, root.size, bill, packages, job.selection),
    )


def _public(one: Any) -> bytes:
    key = one.public_key()
    data: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data


def _digest(one: Any) -> str:
    return _sha256(_public(one))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
