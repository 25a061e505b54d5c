"""Builder machines, seen from outside: made, given a job, started, and what they put out verified.

    made = create(Path("buildvm"), reviewers)                                # a development builder; a ceremony makes real ones
    job = image_job(made, parts, hosts)                                      # what the reviewers approve (casemate.approval)
    result = run(made, job.as_bytes(), approval, files, state, Path("my-image"))

Nothing that a machine has put out is believed before the signature of its result holds under the attestation certificate of the
builder's image directory, and its record under the same and the image's reference values; then files are taken by the
hashes that the result names. Where all that is done again later, from an image directory, is :func:`trace`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import approval
from casemate.attestation import verify as records
from casemate.build import forms, frame
from casemate.build import job as jobs
from casemate.certificates.chain import verify_chain
from casemate.errors import CasemateError
from casemate.guest import builderinput
from casemate.guest.builder import LOG, RECORD, RESULT, RESULT_LABEL, RESULT_SERIAL, SIGNATURE, STATE_SERIAL
from casemate.guest.builderwork import (
    AUTHORITY,
    CERTIFICATE,
    PIPELINE,
    REVIEWERS,
    ROOT,
    ROOT_LIST,
    next_builder,
)
from casemate.guest.kinds import KINDS
from casemate.image import assemble as assembly
from casemate.image import initrd, snapshot
from casemate.image.build import ImageDirectory, chain_files, check_replaceable, new_directory, parts_of, place
from casemate.image.root import Root, build_root, select_packages

NAME = "buildvm"
STATE_SIZE, RESULT_SIZE = 1 << 30, 1 << 30
DONE = "HPL17011I"
LISTS = ("crl.pem", "root.crl.pem")
"""What a builder's directory has of what is revoked: its own list, and the root's."""
BUILT = "build"
"""Directory of an image directory with what proves that a builder machine made it."""
_LARGEST_FILE = 1 << 20
_NEWER = "where a list has ended, give the newest of builder and root: --crl"


class BuildError(CasemateError):
    """A builder can't be made or started, or what it put out does not hold. ``BUILDVM-…``."""

    id = "BUILDVM"


def _error(kind: str, cause: str, cure: str, where: str = "") -> BuildError:
    return BuildError(cause, cure, where, id=f"BUILDVM-{kind}")


@dataclass(frozen=True, slots=True)
class BuilderDirectory:
    """The image directory of a builder machine. ``newer``: revocation lists beside its own, which end: the newest count."""

    path: Path
    newer: tuple[bytes, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return name, generation and ``after``. Raises :class:`CasemateError` where it is no builder."""
        described = ImageDirectory(self.path).describe()
        said = described.get("builder")
        if described.get("kind") != "builder" or not isinstance(said, dict):
            raise _error(
                "NONE", "this is not the image of a builder machine", "casemate buildvm create", str(self.path)
            )
        return said

    def certificate(self) -> bytes:
        """The attestation certificate, PEM."""
        return (self.path / "attestation.crt").read_bytes()

    def lists(self) -> list[bytes]:
        """The newest revocation lists of builder and root. Raises :class:`BuildError` where the directory lacks one."""
        for name in LISTS:
            if not (self.path / name).is_file():
                raise _error(
                    "LIST",
                    f"there is no {name}: nothing shows that the builder was not revoked",
                    "take the builder's directory whole, or put the newest list there",
                    str(self.path),
                )
        return newest([(self.path / name).read_bytes() for name in LISTS], self.newer)

    def beside(self, lists: Sequence[bytes]) -> BuilderDirectory:
        """Return it with more revocation lists."""
        return BuilderDirectory(self.path, (*self.newer, *lists))


def newest(own: Sequence[bytes], more: Sequence[bytes]) -> list[bytes]:
    """Return revocation lists (PEM or DER), each as it is or, where that is newer, as ``more`` has it.

    Nothing is verified here: one that its issuer has not signed is refused where the chain is. Raises :class:`BuildError`.
    """
    given = [(*_issuer_of(data), data) for data in more]
    found = []
    for data in own:
        issuer, number = _issuer_of(data)
        for other, higher, one in given:
            if other == issuer and higher > number:
                number, data = higher, one
        found.append(data)
    return found


def _issuer_of(data: bytes) -> tuple[Any, int]:
    """Return of a revocation list its issuer (name and identifier of the key), and its number."""
    from cryptography import x509

    try:
        one = x509.load_pem_x509_crl(data) if b"-----BEGIN " in data else x509.load_der_x509_crl(data)
        number = one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        key = one.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except (ValueError, x509.ExtensionNotFound):
        cure = "give the newest, as its issuer has published it"
        raise _error("LIST", "a revocation list can't be read, or has no number", cure) from None
    return (one.issuer, key), number


# --- making one -------------------------------------------------------------------------------------------------


def create(
    directory: Path,
    reviewers: bytes,
    *,
    name: str = NAME,
    arch: str = "amd64",
    ca: Path | None = None,
    cache: Path | None = None,
    pipeline: bytes | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> BuilderDirectory:
    """Make a development builder, for this user's software ultravisor: its keys are in this program's memory for a moment.

    ``reviewers``: who approves its jobs; ``pipeline``: public key (PEM) of who signs source bundles. Raises
    :class:`CasemateError`.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    from casemate.image.ca import DevelopmentCA
    from casemate.machine import home
    from casemate.machine.ultravisor import SoftwareUltravisor
    from casemate.secureexec import hostkey

    approval.parse_reviewers(reviewers)
    if not jobs.BUILDER_NAME.fullmatch(name):
        raise _error("NAME", "no job can name such a builder", "small letters, digits, dashes, 40 at most", name)
    if pipeline is not None:
        _require_pipeline(pipeline)
    authority = DevelopmentCA.load_or_create(ca or home.directory() / "ca")
    described = authority.describe()
    if not described.development:
        raise _error("REAL", "a builder under a real authority is made by a ceremony", "casemate ceremony")
    document = SoftwareUltravisor.load_or_create().document
    cache = cache or home.directory() / "cache"
    with ThreadPoolExecutor(1) as pool:
        attestation = pool.submit(rsa.generate_private_key, public_exponent=65537, key_size=4096)
        root, base = root_and_initrd(arch, "builder", cache, progress)
    intermediate = ec.generate_private_key(ec.SECP384R1())
    names = {"name": described.name, "development": True, "lists_at": described.lists_at}
    asked = forms.request(described, f"Casemate builder {name} 1").sign(
        intermediate, forms.algorithm_for(intermediate.public_key())
    )
    certificate = authority.certify_builder(forms.pem(asked))
    above = forms.load_certificate(certificate)
    key = attestation.result()
    form = forms.certificate(
        *(described, f"Casemate {assembly.VERSION} builder attestation", key.public_key(), above), issuer=f"{name}-1"
    )
    chain = {**chain_files(authority), "intermediate.crt": certificate}
    listed = forms.revocation_list(above, 1, (), described.list_days)
    chain["crl.pem"] = forms.pem(listed.sign(intermediate, forms.algorithm_for(intermediate.public_key())))
    identity = next_builder(
        *(described, name, 1, ""),
        attestation=key,
        intermediate=intermediate,
        public={
            **{REVIEWERS: reviewers, ROOT: chain["root.crt"], CERTIFICATE: certificate},
            AUTHORITY: json.dumps({**names, "list_days": described.list_days}, sort_keys=True).encode(),
            **({ROOT_LIST: chain["root.crl.pem"]} if "root.crl.pem" in chain else {}),
            **({PIPELINE: pipeline} if pipeline else {}),
        },
        files={**chain, "attestation.crt": forms.pem(forms.sign(form, intermediate))},
    )
    progress("encrypted image")
    hosts = [("development.crt", hostkey.load(document))]
    with new_directory(directory) as new, parts_of(root, arch, base, KINDS["builder"]) as parts:
        with (new / assembly.IMAGE).open("w+b") as out:
            made = assembly.assemble(out, parts, identity, hosts, created=forms.moment())
        for file, data in {**made.files, REVIEWERS: reviewers}.items():
            (new / file).write_bytes(data)
        place(root.archive, new / assembly.ARCHIVE)
    return BuilderDirectory(directory)


def _require_pipeline(pem: bytes) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise _error("PIPELINE", "this is no public key on P-384", "give the pipeline's public key, as PEM")


def root_and_initrd(arch: str, flavor: str, cache: Path, progress: Callable[[str], None]) -> tuple[Root, bytes]:
    """Return root and base initrd, from the cache where they are there."""
    progress("packages' list")
    selection = select_packages(arch, cache, flavor=flavor)
    root = build_root(arch, cache, progress, selection, flavor)
    progress("initrd")
    return root, initrd.base(root, arch, cache)


# --- jobs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """Ready parts of an image on this host: files by their names on the input disk, and the root archive."""

    arch: str
    files: dict[str, bytes | Path]
    archive: Path
    release: str
    selection: dict[str, Any]

    def job_fields(self) -> dict[str, Any]:
        """Return what a job says of them."""
        return {
            "parts": {name: measure(content) for name, content in self.files.items()},
            **{"root": measure(self.archive), "release": self.release, "selection": self.selection, "arch": self.arch},
        }


def ready_parts(arch: str, kind: str, cache: Path, progress: Callable[[str], None] = lambda step: None) -> Ready:
    """Build the public parts of an image on this host: they are reproducible, so anybody can compare their hashes."""
    from casemate.image.build import bill_of_materials

    root, base = root_and_initrd(arch, KINDS[kind].root, cache, progress)
    files: dict[str, bytes | Path] = {
        **{jobs.KERNEL: root.kernel, jobs.INITRD: base, jobs.BILL: bill_of_materials(root, arch)},
        jobs.PACKAGES: root.selection.text.encode(),
    }
    return Ready(arch, files, root.archive, root.release, root.selection.record())


def source_bundle(path: Path) -> None:
    """Pack this source as a Debian package, the same bytes for the same source. Raises :class:`CasemateError`."""
    from importlib.resources import files

    from casemate import __version__
    from casemate.image.root import run as run_tool

    package = Path(str(files("casemate")))
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=path.parent) as work:
        tree = Path(work) / "tree"
        target = tree / "usr/lib/python3/dist-packages/casemate"
        shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        (tree / "DEBIAN").mkdir()
        about = {"Package": "casemate-source", "Version": __version__, "Architecture": "all"}
        about |= {
            "Maintainer": "Casemate <casemate@invalid>",
            "Description": "source that a builder machine builds with",
        }
        (tree / "DEBIAN/control").write_text("".join(f"{name}: {value}\n" for name, value in about.items()))
        for one in (tree, *tree.rglob("*")):
            one.chmod(0o755 if one.is_dir() else 0o644)
        built = Path(work) / "source.deb"
        run_tool(["dpkg-deb", "--root-owner-group", "--uniform-compression", "-Zxz", "--build", str(tree), str(built)])
        built.replace(path)


def sign_bundle(path: Path, key: Any, number: int) -> bytes:
    """Sign a source bundle and its number as the pipeline, with a key on P-384. Raises :class:`BuildError`."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise _error("PIPELINE", "a pipeline signs with a key on P-384", "make one: casemate ca has the kinds")
    signature = key.sign(jobs.bundle_statement(measure(path), number), ec.ECDSA(hashes.SHA384()))
    return jobs.bundle_signature(number, signature)


def bundles(
    arch: str, kind: str, source: Path, cache: Path, progress: Callable[[str], None] = lambda step: None
) -> dict[str, bytes | Path]:
    """Return the files of a build from bundles: list of packages, source, and each package."""
    progress("packages' list")
    selection = select_packages(arch, cache, flavor=KINDS[kind].root)
    archive = snapshot.Archive(arch, cache)
    return {
        **{jobs.PACKAGES: selection.text.encode(), jobs.SOURCE: source},
        **{f"{package.sha256}.deb": archive.deb(package) for package in selection.packages},
    }


def make_job(
    builder: BuilderDirectory,
    mode: str,
    *,
    after: bytes = b"",
    arch: str = "amd64",
    host_keys: Sequence[tuple[str, bytes]] = (),
    keyset: bytes = b"",
    revoke: Sequence[str] = (),
    intermediate: bytes = b"",
    root_list: bytes = b"",
    reviewers: bytes = b"",
    bundle: tuple[Path, bytes] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> jobs.Job:
    """Return a job for a builder, with ready parts that are built here where it needs some.

    ``after``: the job before it, as it was approved; ``bundle``: a source bundle and the pipeline's signature, for a root that is
    built inside. Without hosts it is for this user's software ultravisor.
    """
    from casemate.machine import home

    said = builder.describe()
    last = hashlib.sha256(after).hexdigest() if after else said["after"]
    common: dict[str, Any] = {"intermediate": intermediate, "root_list": root_list}
    if mode == jobs.CRL:
        entries = [one.partition(":") for one in revoke]
        try:
            serials = tuple((int(serial, 16), reason or "unspecified") for serial, _, reason in entries)
        except ValueError:
            raise _error("SERIAL", "a serial number is hexadecimal", "--revoke 5af1:key-compromise") from None
        return jobs.Job(mode, said["name"], said["generation"], last, arch, revoke=serials, **common)
    if not host_keys and not keyset:
        from casemate.machine.ultravisor import SoftwareUltravisor

        host_keys = (("development.crt", SoftwareUltravisor.load_or_create().document),)
    kind = "layer" if mode == jobs.IMAGE else "builder"
    cache = home.directory() / "cache"
    if bundle is not None:
        files = bundles(arch, kind, bundle[0], cache, progress)
        parts = {name: measure(files[name]) for name in jobs.BUNDLES}
        fields: dict[str, Any] = {"parts": parts, "signature": bundle[1], "arch": arch}
    else:
        fields = ready_parts(arch, kind, cache, progress).job_fields()
    return jobs.Job(
        *(mode, said["name"], said["generation"], last),
        **{"hosts": tuple(host_keys), "keyset": keyset, "reviewers": reviewers, **common, **fields},
    )


def files_of(
    job: bytes, source: Path | None = None, progress: Callable[[str], None] = lambda step: None
) -> tuple[dict[str, bytes | Path], Path | None]:
    """Return the files that a job names, and its root archive, built here again. Raises :class:`BuildError`: they differ.

    ``source``: the source bundle, where the root is built inside.
    """
    from casemate.machine import home

    told = jobs.parse_job(job)
    if told.mode == jobs.CRL:
        return {}, None
    kind, cache = "layer" if told.mode == jobs.IMAGE else "builder", home.directory() / "cache"
    files: dict[str, bytes | Path]
    if told.ready:
        ready = ready_parts(told.arch, kind, cache, progress)
        files, archive, root = ready.files, ready.archive, measure(ready.archive)
    else:
        if source is None:
            raise _error("BUNDLE", "the job builds a root inside", "give its source bundle: --bundle")
        files, archive, root = bundles(told.arch, kind, source, cache, progress), None, None
    for name, part in told.parts.items():
        if measure(files[name]) != part:
            raise _error("PARTS", f"the job names another {name} than there is here", "take what the job is of")
    if root != told.root:
        raise _error("PARTS", "the job names another root archive than there is here", "take what the job is of")
    return files, archive


def measure(content: bytes | Path) -> jobs.Part:
    """Return hash and size of a file."""
    if isinstance(content, bytes):
        return jobs.Part(hashlib.sha256(content).hexdigest(), len(content))
    with content.open("rb") as file:
        return jobs.Part(hashlib.file_digest(file, "sha256").hexdigest(), content.stat().st_size)


def input_disk(path: Path, job: bytes, approved: bytes, files: Mapping[str, bytes | Path]) -> None:
    """Write the input disk of a job."""
    everything: dict[str, bytes | Path] = {builderinput.JOB: job, builderinput.APPROVAL: approved, **files}
    parts = {name: measure(content) for name, content in everything.items()}
    index = frame.index(builderinput.LABEL, [frame.Entry(name, part.size, part.sha256) for name, part in parts.items()])
    with path.open("wb") as out:
        out.write(index)
        for placed in frame.parse(index, builderinput.LABEL):
            out.seek(placed.offset)
            content = everything[placed.name]
            if isinstance(content, bytes):
                out.write(content)
            else:
                with content.open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
        out.truncate(frame.filled(out.tell()))


# --- a run ------------------------------------------------------------------------------------------------------


@contextmanager
def _disks(state: Path, job: bytes, approved: bytes, files: Mapping[str, bytes | Path]) -> Iterator[tuple[Path, Path]]:
    """Give input disk and an empty disk for the result, beside the state disk, which is made where it is missing."""
    state.parent.mkdir(parents=True, exist_ok=True)
    if not state.exists():
        descriptor = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(descriptor, STATE_SIZE)
        os.close(descriptor)
    with tempfile.TemporaryDirectory(prefix=".buildvm-", dir=state.parent) as work:
        given, result = Path(work) / "input.img", Path(work) / "result.img"
        input_disk(given, job, approved, files)
        with result.open("wb") as out:
            out.truncate(RESULT_SIZE)
        yield given, result


def require_output(builder: BuilderDirectory, directory: Path, state: Path | None = None) -> None:
    """Refuse a directory that a result can't replace, before an approved job is spent. Raises :class:`CasemateError`."""
    if directory.exists() and not directory.is_dir():
        raise _error("OUTPUT", "this is no directory", "name another one", str(directory))
    kept = [builder.path, *([state] if state else [])]
    if any(one.resolve().is_relative_to(directory.resolve()) for one in kept):
        raise _error("OUTPUT", "the builder or its state disk is in this directory", "name another one", str(directory))
    check_replaceable(directory)


def require_valid(builder: BuilderDirectory, job: bytes, *, time: datetime.datetime | None = None) -> None:
    """Refuse a builder whose authority does not hold, before an approved job is spent. Raises :class:`CasemateError`.

    The builder's own list may have ended: it puts out a new one.
    """
    told = jobs.parse_job(job).root_list
    _, of_root = builder.beside([told] if told else []).lists()
    try:
        above, root = ((builder.path / name).read_bytes() for name in ("intermediate.crt", "root.crt"))
    except OSError:
        raise _error(
            "BROKEN", "the builder's directory lacks a file", "take it as it was made", str(builder.path)
        ) from None
    chain = verify_chain(above, [root], [of_root], time=time or forms.moment())
    if chain.problems:
        raise _error("CHAIN", f"the builder's certificate does not hold: {chain.problems[0].cause}", _NEWER)


def run(
    builder: BuilderDirectory,
    job: bytes,
    approved: bytes,
    files: Mapping[str, bytes | Path],
    state: Path,
    directory: Path,
    *,
    archive: Path | None = None,
    machine: str = "",
    memory_mib: int = 2048,
    timeout: float = 900.0,
    keep: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> jobs.Result:
    """Start a builder with an approved job; verify and unpack what it puts out into ``directory``.

    ``state``: its state disk; ``archive``: the root archive of ready parts. The machine is gone afterwards, unless it failed and
    ``keep`` is asked for. Raises :class:`CasemateError`.
    """
    from casemate.machine import machines
    from casemate.machine.qemu import Disk

    described = builder.describe()
    require_output(builder, directory, state)
    require_valid(builder, job)
    name = machine or f"{described['name']}-{os.getpid()}"[:32]
    with _disks(state, job, approved, files) as (given, result):
        disks = (Disk(given, read_only=True), Disk(state.absolute(), STATE_SERIAL), Disk(result, RESULT_SERIAL))
        spec = machines.Specification(name, builder.path, b"", disks=disks, memory_mib=memory_mib)
        started = machines.start(spec, progress=progress)
        try:
            machines.wait(started, progress=progress, timeout=timeout, until_it_ends=DONE)
        except BaseException:
            started.down(0.0) if not keep else started.stop(0.0)
            raise
        if not keep:
            started.remove()
        progress("verifying the result")
        try:
            return unpack(result, builder, job, approved, directory, archive=archive)
        except CasemateError as error:  # the job is done and can't be done again
            kept = state.with_name(f"{state.name}.{hashlib.sha256(job).hexdigest()[:12]}.result")
            result.rename(kept)
            cure = f"{error.cure}; what came out is kept: casemate buildvm unpack --result {kept}"
            raise BuildError(error.cause, cure, error.where, id=error.id) from None


def unpack(
    disk: Path,
    builder: BuilderDirectory,
    job: bytes,
    approved: bytes,
    directory: Path,
    *,
    archive: Path | None = None,
    time: datetime.datetime | None = None,
) -> jobs.Result:
    """Verify what is on a result's disk against the builder that made it, and unpack it. Raises :class:`CasemateError`.

    A revocation list becomes a directory with the list; an image becomes an image directory.
    """
    described = jobs.parse_job(job)
    require_output(builder, directory)
    with disk.open("rb") as source:
        first = source.read(frame.FIRST)
        source.seek(0)
        places = {one.name: one for one in frame.parse(source.read(frame.length(first)), RESULT_LABEL)}

        def small(name: str) -> bytes:
            found = places.get(name)
            if found is None or found.size > jobs.LARGEST_RESULT:
                raise _error("RESULT", f"there is no {name} on the result's disk", "start the builder again", str(disk))
            source.seek(found.offset)
            data = source.read(found.size)
            if hashlib.sha256(data).hexdigest() != found.sha256:
                raise _error("RESULT", f"{name} on the result's disk was changed", "start the builder again", str(disk))
            return data

        envelope = small(RESULT)
        lists = [described.root_list, *(small(name) for name in LISTS if name in places)]  # it has just made its own
        builder = builder.beside([one for one in lists if one])
        result = check_result(envelope, small(RECORD), small(SIGNATURE), builder, job, approved, time=time)
        if {name: jobs.Part(one.sha256, one.size) for name, one in places.items() if name != RESULT} != result.files:
            raise _error("RESULT", "other files are on the disk than the result names", "start the builder again")
        with new_directory(directory) as new:
            (new / BUILT).mkdir()
            proofs = {
                **{"job.json": job, "approval.json": approved, RESULT: envelope},
                **{name: small(name) for name in (RECORD, SIGNATURE, LOG)},
            }
            for name, data in proofs.items():
                (new / BUILT / name).write_bytes(data)
            for name, one in places.items():
                if name not in proofs:
                    _take(source.fileno(), one, new / name)
            if described.root is not None:
                if archive is None or measure(archive) != described.root:
                    raise _error(
                        "ARCHIVE", "the root archive is not the one that was approved", "give the one of the job"
                    )
                place(archive, new / assembly.ARCHIVE)
    return result


def _take(source: int, placed: frame.Placed, target: Path) -> None:
    measured, done = hashlib.sha256(), 0
    with target.open("xb") as out:
        while done < placed.size and (
            piece := os.pread(source, min(1 << 20, placed.size - done), placed.offset + done)
        ):
            measured.update(piece)
            out.write(piece)
            done += len(piece)
    if measured.hexdigest() != placed.sha256:
        raise _error("RESULT", f"{placed.name} on the result's disk was changed", "start the builder again")


def check_result(
    envelope: bytes,
    record: bytes,
    signature: bytes,
    builder: BuilderDirectory,
    job: bytes,
    approved: bytes,
    *,
    time: datetime.datetime | None = None,
) -> jobs.Result:
    """Return a result that this builder has signed, for this job, in a start whose record holds. Raises
    :class:`CasemateError`."""
    from casemate.contract.keys import load_public_key

    said = builder.describe()
    verdict = verify_record(builder, record, signature, job, approved, time=time)
    if not verdict.holds:
        cure = f"is it this builder's? {_NEWER}"
        raise _error("RECORD", f"the builder's record does not hold: {verdict.summary()}", cure)
    result = jobs.open_result(envelope, load_public_key(builder.certificate()))
    described = jobs.parse_job(job)
    reviewers = approval.parse_reviewers((builder.path / REVIEWERS).read_bytes())  # those that the record names
    by = approval.verify(job, approved, reviewers, subject=jobs.subject(str(said["name"])))
    expected = (
        *(said["name"], said["generation"], described.mode, described.after, by.revision, by.names),
        *(hashlib.sha256(data).hexdigest() for data in (job, approved, record)),
    )
    found = (
        *(result.builder, result.generation, result.mode, result.after, result.revision, result.approved_by),
        *(result.job, result.approval, result.record),
    )
    if found != expected:
        raise _error(
            "OTHER", "the result belongs to another job, another start, or another builder", "run the job again"
        )
    return result


def verify_record(
    builder: BuilderDirectory,
    record: bytes,
    signature: bytes,
    job: bytes,
    approved: bytes,
    *,
    time: datetime.datetime | None = None,
) -> records.Verdict:
    """Verify the record of a builder's start: image, reviewers and root that were baked in, and the job that it was given."""
    path = builder.path
    try:
        reference = json.loads((path / "reference-values.json").read_bytes())
        given = {"build:job": job, "build:approval": approved}
        given |= {f"baked:{name}": (path / name).read_bytes() for name in (REVIEWERS, ROOT)}
        reference["values"] |= {name: hashlib.sha256(data).hexdigest() for name, data in given.items()}
        above, root = (path / "intermediate.crt").read_bytes(), (path / "root.crt").read_bytes()
        certificate = builder.certificate()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise _error(
            "BROKEN", "the builder's directory lacks a file, or one can't be read", "take it as it was made", str(path)
        ) from None
    return records.verify(
        *(record, signature, certificate),
        time=time or datetime.datetime.now(datetime.UTC),
        issuers=[root],
        untrusted=[above],
        crls=builder.lists(),
        reference=json.dumps(reference).encode(),
    )


def trace(directory: Path, builder: BuilderDirectory, *, time: datetime.datetime | None = None) -> jobs.Result:
    """Verify that a builder machine made what is in an image directory, as it is. Raises :class:`CasemateError`.

    Not asked here: the image's own chain and provenance (``casemate image provenance``), and whether its parts are what they say
    (``casemate image verify-build``): both need no builder.
    """
    files = {}
    for name in ("job.json", "approval.json", RESULT, RECORD, SIGNATURE):
        path = directory / BUILT / name
        if not path.is_file() or path.stat().st_size > jobs.LARGEST_RESULT:
            raise _error("NO-PROOF", f"there is no {BUILT}/{name}", "no builder machine made this, or give all of it")
        files[name] = path.read_bytes()
    beside = [directory / name for name in LISTS if (directory / name).is_file()]
    builder = builder.beside([path.read_bytes() for path in beside if path.stat().st_size <= jobs.LARGEST_RESULT])
    result = check_result(
        *(files[RESULT], files[RECORD], files[SIGNATURE], builder, files["job.json"], files["approval.json"]), time=time
    )
    for name, part in result.files.items():
        path = directory / name if name not in (RECORD, SIGNATURE, LOG) else directory / BUILT / name
        if not path.is_file() or measure(path) != part:
            raise _error(
                "CHANGED", f"{name} is not what the builder has put out", "take it as it was published", str(path)
            )
    root = jobs.parse_job(files["job.json"]).root
    if root is not None and measure(directory / assembly.ARCHIVE) != root:
        raise _error("CHANGED", "the root archive is not the one that was approved", "take it as it was published")
    return result
