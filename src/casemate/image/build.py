"""Builds an image directory: what an image provider publishes (all of it public but encrypted).

======================  =========================================================================
``casemate.img``        the encrypted boot image: kernel, command line, initrd with bootloader and keys
``root.squashfs``       the root archive
``reference-values.json``  what a record made by this image must say (``docs/formats/reference-values.md``)
``encryption.crt``      contracts are sealed for this
``attestation.crt``     records verify under this
``intermediate.crt``, ``root.crt``, ``crl.pem``, ``root.crl.pem``  the chain of both, and what is revoked
``packages.txt``        every package of the root, with version and hash (:mod:`casemate.image.snapshot`)
``sbom.spdx.json``      the bill of materials (:mod:`casemate.image.sbom`)
``provenance.json``, ``provenance.crt``  what it was made from, signed (:mod:`casemate.image.provenance`)
``image.json``          architecture, version, kernel, creation
======================  =========================================================================

The two private keys are made here, in memory, and go nowhere but into the encrypted image. (Issue-free trust in
the image provider needs the secure build; until then the provider's machine saw them for a moment.)
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from casemate import __version__
from casemate.errors import CasemateError
from casemate.image import initrd, provenance, sbom
from casemate.image.root import Root, build_root, guest_files, select_packages
from casemate.image.snapshot import Policy

VERSION = "26.11.0"
FORMAT = "casemate-image/1"
CONSOLES = {"amd64": "ttyS0", "s390x": "ttysclp0"}
HARDENING = (
    *("lockdown=confidentiality", "init_on_free=1", "init_on_alloc=1", "slab_nomerge", "page_alloc.shuffle=1"),
    *("vsyscall=none", "debugfs=off", "oops=panic", "panic=-1", "module.sig_enforce=1", "random.trust_bootloader=off"),
    # Nothing of the machine's firmware tables becomes a configuration of the system.
    *("systemd.import_credentials=no", "sysctl.kernel.sysrq=0", "sysctl.kernel.yama.ptrace_scope=3"),
)
QUIET = ("quiet", "loglevel=3", "systemd.show_status=no", "rd.udev.log_level=3", "plymouth.enable=0")


@dataclass(frozen=True, slots=True)
class ImageDirectory:
    """A built image on disk."""

    path: Path

    @property
    def image(self) -> Path:
        """The encrypted boot image."""
        return self.path / "casemate.img"

    @property
    def archive(self) -> Path:
        """The root archive."""
        return self.path / "root.squashfs"

    @property
    def encryption_certificate(self) -> Path:
        """The certificate that contracts are sealed for."""
        return self.path / "encryption.crt"

    def describe(self) -> dict[str, Any]:
        """Return the content of ``image.json``; raise :class:`CasemateError` where this is no image directory."""
        try:
            described = json.loads((self.path / "image.json").read_text("utf-8"))
        except (OSError, ValueError):
            described = None
        if not isinstance(described, dict) or described.get("format") != FORMAT:
            raise CasemateError(
                "this is not an image directory: image.json can't be read",
                "casemate image build DIR makes one",
                str(self.path),
                id="IMAGE-NOT-FOUND",
            )
        return described


def command_line(arch: str) -> str:
    """Return the kernel's command line: one console, locked down, memory wiped."""
    return " ".join((f"console={CONSOLES[arch]}", *QUIET, *HARDENING))


def build_image(
    directory: Path,
    *,
    arch: str = "amd64",
    host_keys: Sequence[tuple[str, bytes]] = (),
    verified: bool = False,
    keyset: Path | None = None,
    ca: Path | None = None,
    cache: Path | None = None,
    policy: Policy = Policy.LISTED,
    progress: Callable[[str], None] = lambda step: None,
    say: Callable[[str], None] = lambda warning: None,
) -> ImageDirectory:
    """Build an image into ``directory``: fresh keys each time, the root from the cache where it is there.

    ``say`` is told where the packages are not those of the source's list, which ``policy`` may forbid. ``host_keys`` are
    names and contents of host key documents of machines that may open it, ``verified`` says whether their chains were, ``keyset``
    is a file of such; without any it is built for this user's software ultravisor, which only a development authority certifies.
    Raises :class:`CasemateError`; a failure leaves nothing behind.
    """
    from casemate.image.ca import DevelopmentCA
    from casemate.machine import home
    from casemate.secureexec import hostkey, image

    # What can be refused is refused before anything is built.
    _check_replaceable(directory)
    if keyset is not None:
        from casemate.build import keyset as keysets

        kept = keysets.parse(keyset.read_bytes())
        documents, verified = kept.require(datetime.datetime.now(datetime.UTC)), kept.verified
    elif host_keys:
        documents = list(host_keys)
    else:
        from casemate.machine.ultravisor import SoftwareUltravisor

        verified = False
        documents = [("development.crt", SoftwareUltravisor.load_or_create().document)]
    hosts = [hostkey.load(document) for _, document in documents]

    cache = cache or home.directory() / "cache"
    authority = DevelopmentCA.load_or_create(ca or home.directory() / "ca")
    if not (verified or authority.describe().development):
        # Whoever has the host's key reads the image: no record of it may look like one of a machine that keeps its key.
        raise CasemateError(
            "no authority but a development one certifies an image for hosts that nobody verified",
            "give host key documents that casemate keyset create has verified (--keyset), or a development authority",
            documents[0][0],
            id="IMAGE-HOST-UNVERIFIED",
        )
    authority.require_ready()
    issued: list[Any] = []
    failures: list[CasemateError] = []

    def issue() -> None:
        try:
            issued.append(authority.issue(VERSION))
        except CasemateError as error:  # a token that was taken away meanwhile, or the like
            failures.append(error)

    keys = threading.Thread(target=issue)
    keys.start()
    try:
        progress("packages' list")
        root = build_root(arch, cache, progress, select_packages(arch, cache, policy, say))
        if root.selection.differences:
            progress(f"packages that differ from the source's list: {len(root.selection.differences)}")
        progress("initrd")
        base = initrd.base(root, arch, cache)
    finally:
        keys.join()
    if failures:
        raise failures[0]
    if not issued:
        raise CasemateError("the image's keys could not be made", id="IMAGE-KEYS")
    certificates = issued[0]

    bill = bill_of_materials(root, arch)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    kernel, cmdline = root.kernel.read_bytes(), command_line(arch)
    values = reference_values(root, arch, base, bill)
    baked = {
        **{"version": VERSION, "arch": arch, "created": int(now.timestamp())},
        **{"root_sha256": root.sha256, "root_size": root.size},
        **{"baseimage": values["baseimage"], "sbom": values["sbom"]},
        "contracts_until": int(certificates.until.timestamp()),
        "hosts": [
            {"document": name, "valid_until": host.valid_until, "key": hostkey.coordinates(host.public).hex()}
            for (name, _), host in zip(documents, hosts, strict=True)
        ],
    }
    reference = {
        **{"format": "casemate-reference-values/1", "version": VERSION, "arch": arch, "created": now.isoformat()},
        **{"values": values, "packages": root.selection.record()},
    }
    progress("encrypted image")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as work:
        new = Path(work) / "image"
        new.mkdir()
        secrets = {
            "contract.pem": certificates.encryption_key.reveal(),
            "attestation.pem": certificates.attestation_key.reveal(),
        }
        with (new / "casemate.img").open("wb") as out:
            packed = image.pack(
                out,
                kernel=kernel,
                cmdline=cmdline.encode(),
                initrd=base + initrd.own(json.dumps(baked).encode(), secrets),
                hosts=hosts,
            )
        del secrets
        _place(root.archive, new / "root.squashfs")
        texts = {
            "reference-values.json": json.dumps(reference, indent=1) + "\n",
            "packages.txt": root.selection.text,
            sbom.NAME: bill,
            "encryption.crt": certificates.encryption_certificate,
            "attestation.crt": certificates.attestation_certificate,
            "intermediate.crt": authority.intermediate_pem,
            "root.crt": authority.root_pem,
            "crl.pem": authority.crl_pem,
            **({"root.crl.pem": authority.root_crl_pem} if authority.root_crl_pem else {}),
            "image.json": json.dumps(
                {
                    **{"format": FORMAT, "version": VERSION, "arch": arch, "created": now.isoformat()},
                    **{"kernel": root.release, "command_line": cmdline, "tag": packed.tag.hex()},
                    "hosts": [name for name, _ in documents],
                },
                indent=1,
            )
            + "\n",
        }
        for name, text in texts.items():
            (new / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        progress("provenance")
        signer, certificate = authority.issue_provenance(VERSION)
        payload = provenance.statement(
            {name: file_hash(new / name) for name in provenance.SUBJECTS},
            parameters={"arch": arch, "version": VERSION, "policy": policy.value, **root.selection.record()},
            dependencies=dependencies(root),
            values=values,
            tools={"casemate": __version__, "python": platform.python_version()},
            started=now,
            finished=datetime.datetime.now(datetime.UTC),
        )
        (new / provenance.NAME).write_bytes(provenance.sign(payload, signer.reveal()))
        (new / provenance.CERTIFICATE).write_bytes(certificate)
        authority.require_chain(certificates.encryption_certificate, certificates.attestation_certificate, certificate)
        _check_replaceable(directory)
        if directory.exists():
            shutil.rmtree(directory)
        new.rename(directory)
    return ImageDirectory(directory)


def bill_of_materials(root: Root, arch: str) -> bytes:
    """Return the bill of materials of a root."""
    return sbom.of_tree(arch, VERSION, root.selection.packages, root.tree, list(guest_files()))


def reference_values(root: Root, arch: str, base: bytes, bill: bytes) -> dict[str, str]:
    """Return what a record of an image made of these parts says, whatever its keys are."""
    baseimage = hashlib.sha256(root.kernel.read_bytes() + command_line(arch).encode() + base)
    return {
        **{"root.tar.gz": root.sha256, "baseimage": baseimage.hexdigest()},
        "sbom": hashlib.sha256(bill).hexdigest(),
    }


def source_hash() -> str:
    """Return the SHA-256 over names and hashes of our source: lines ``sha256  name``, sorted by name, as ``sha256sum`` has."""
    package = Path(str(files("casemate")))
    names = sorted(
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    return hashlib.sha256("".join(f"{file_hash(package / name)}  {name}\n" for name in names).encode()).hexdigest()


def dependencies(root: Root) -> list[dict[str, Any]]:
    """Return what an image is made from: our source, the list of packages, each package."""
    packages = root.selection.packages
    return [
        {"name": "source", "digest": {"sha256": source_hash()}},
        {"name": "packages.txt", "digest": {"sha256": hashlib.sha256(root.selection.text.encode()).hexdigest()}},
        *({"uri": sbom.purl(package), "digest": {"sha256": package.sha256}} for package in packages),
    ]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_current(
    directory: Path,
    *,
    arch: str = "amd64",
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> bool:
    """Whether a directory holds, but for the keys, what a build for this user's software ultravisor would give now.

    It must be a month old at most, have this user's authority, and open. What the cache lacks is built.
    """
    from casemate.machine import home
    from casemate.machine.ultravisor import SoftwareUltravisor

    built = ImageDirectory(directory)
    try:
        described = built.describe()
        reference = json.loads((directory / "reference-values.json").read_text())
        created = datetime.datetime.fromisoformat(described["created"])
        if datetime.datetime.now(datetime.UTC) - created > datetime.timedelta(days=30):
            return False
        if (directory / "root.crt").read_bytes() != (home.directory() / "ca/root.crt").read_bytes():
            return False
        if (described["arch"], reference["version"]) != (arch, VERSION):
            return False
        wanted = reference["values"]
    except (CasemateError, OSError, ValueError, KeyError, TypeError):
        return False
    cache = cache or home.directory() / "cache"
    root = build_root(arch, cache, progress)
    base, bill = initrd.base(root, arch, cache), bill_of_materials(root, arch)
    if wanted != reference_values(root, arch, base, bill) or file_hash(built.archive) != root.sha256:
        return False
    progress("opening it as the ultravisor will")
    try:
        with SoftwareUltravisor.load_or_create().open(built.image):
            return True
    except (CasemateError, OSError):
        return False


def _check_replaceable(directory: Path) -> None:
    """Only an image, or nothing, may be replaced by an image."""
    if directory.exists() and any(directory.iterdir()) and not (directory / "image.json").is_file():
        raise CasemateError(
            "the directory is not empty and holds no image",
            "name another directory",
            str(directory),
            id="IMAGE-IN-THE-WAY",
        )


def _place(source: Path, target: Path) -> None:
    """Link where both are on one file system, copy otherwise; read-only, since the cache shares it."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
    target.chmod(0o444)
