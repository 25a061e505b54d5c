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
import io
import json
import platform
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate import __version__
from casemate.errors import CasemateError
from casemate.guest.kinds import LAYER, Kind
from casemate.image import assemble as assembly
from casemate.image import initrd, provenance, sbom
from casemate.image.assemble import CONSOLES as CONSOLES
from casemate.image.assemble import FORMAT, Identity, Parts, assemble
from casemate.image.assemble import VERSION as VERSION
from casemate.image.assemble import command_line as command_line
from casemate.image.root import Root, build_root, guest_files, select_packages
from casemate.image.snapshot import Policy

if TYPE_CHECKING:
    from casemate.build.authority import Authority


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
    from casemate.secureexec import hostkey

    # What can be refused is refused before anything is built.
    check_replaceable(directory)
    if keyset is not None:
        from casemate.build import keyset as keysets

        kept = keysets.parse(keyset.read_bytes())
        documents, verified = kept.require(datetime.datetime.now(datetime.UTC)), kept.proved
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

    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    identity = Identity(
        secrets={"contract.pem": certificates.encryption_key, "attestation.pem": certificates.attestation_key},
        files={
            "encryption.crt": certificates.encryption_certificate,
            "attestation.crt": certificates.attestation_certificate,
            **chain_files(authority),
        },
        contracts_until=certificates.until,
    )
    progress("encrypted image")
    with new_directory(directory) as new, parts_of(root, arch, base) as parts:
        with (new / "casemate.img").open("w+b") as out:
            named = [(name, host) for (name, _), host in zip(documents, hosts, strict=True)]
            made = assemble(out, parts, identity, named, created=now)
            digests = assembly.digests(out, parts, made.files, provenance.SUBJECTS)
        place(root.archive, new / "root.squashfs")
        for name, data in made.files.items():
            (new / name).write_bytes(data)
        progress("provenance")
        signer, certificate = authority.issue_provenance(VERSION)
        payload = provenance.statement(
            digests,
            parameters={"arch": arch, "version": VERSION, "policy": policy.value, **root.selection.record()},
            dependencies=dependencies(root),
            values=made.values,
            tools={"casemate": __version__, "python": platform.python_version()},
            started=now,
            finished=datetime.datetime.now(datetime.UTC),
        )
        (new / provenance.NAME).write_bytes(provenance.sign(payload, signer.reveal()))
        (new / provenance.CERTIFICATE).write_bytes(certificate)
        authority.require_chain(certificates.encryption_certificate, certificates.attestation_certificate, certificate)
    return ImageDirectory(directory)


def chain_files(authority: Authority) -> dict[str, bytes]:
    """Return what is above an image's certificates: issuers, and the lists of the day."""
    files = {
        "intermediate.crt": authority.intermediate_pem,
        "root.crt": authority.root_pem,
        "crl.pem": authority.crl_pem,
    }
    above = authority.root_crl_pem
    return {**files, "root.crl.pem": above} if above else files


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Give an empty directory that takes the place of an image directory when it is whole; a failure leaves nothing behind."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as work:
        new = Path(work) / "image"
        new.mkdir()
        yield new
        check_replaceable(directory)
        if directory.exists():
            shutil.rmtree(directory)
        new.rename(directory)


@contextmanager
def parts_of(root: Root, arch: str, base: bytes, kind: Kind = LAYER) -> Iterator[Parts]:
    """Give the parts that a root and a base initrd make."""
    with root.kernel.open("rb") as kernel:
        yield Parts(
            *(arch, kind, root.release, kernel, io.BytesIO(base), root.sha256, root.size),
            *(bill_of_materials(root, arch), root.selection.text.encode(), root.selection.record()),
        )


def bill_of_materials(root: Root, arch: str) -> bytes:
    """Return the bill of materials of a root."""
    return sbom.of_tree(arch, VERSION, root.selection.packages, root.tree, list(guest_files(root.flavor.name)))


def reference_values(root: Root, arch: str, base: bytes) -> dict[str, str]:
    """Return what a record of an image made of these parts says, whatever its keys are."""
    with parts_of(root, arch, base) as parts:
        return parts.values()


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
    base = initrd.base(root, arch, cache)
    if wanted != reference_values(root, arch, base) or file_hash(built.archive) != root.sha256:
        return False
    progress("opening it as the ultravisor will")
    try:
        with SoftwareUltravisor.load_or_create().open(built.image):
            return True
    except (CasemateError, OSError):
        return False


def check_replaceable(directory: Path) -> None:
    """Only an image, or nothing, may be replaced by an image."""
    if directory.exists() and any(directory.iterdir()) and not (directory / "image.json").is_file():
        raise CasemateError(
            "the directory is not empty and holds no image",
            "name another directory",
            str(directory),
            id="IMAGE-IN-THE-WAY",
        )


def place(source: Path, target: Path) -> None:
    """Link where both are on one file system, copy otherwise; read-only, since the cache shares it."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
    target.chmod(0o444)
