"""Builds an image's root inside of a builder machine, from bundles: Debian packages and our own source, each by its hash.

The job names ``packages.txt`` by hash, that names each package by hash, and reviewers have approved the job. The source
bundle is a Debian package too; besides the reviewers, the pipeline that made it has signed it (``pipeline.pem`` of the
image). What it brings runs in a sandbox, so does the unpacking. What comes out of there is copied, bounded, and becomes
parts as if they had come in ready.

Finished parts are kept on the state disk under the hash of all that they were made from, this builder's own root
included: a job can only leave there what is taken again for the very same input.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from casemate import strictjson
from casemate.build import frame
from casemate.build import job as jobs
from casemate.guest import builderwork
from casemate.guest.buildersandbox import run_in_sandbox, take
from casemate.guest.builderstate import State
from casemate.guest.builderwork import PIPELINE, Out, Work
from casemate.guest.kinds import KINDS
from casemate.guest.report import Stop
from casemate.image.assemble import ARCHIVE, Parts

LIMITS = {ARCHIVE: 4 << 30, "kernel": 256 << 20, "initrd": 1 << 30, "sbom.spdx.json": 64 << 20, "parts.json": 64 << 10}
"""What the sandbox leaves, and how large it may be."""
PATIENCE = 7200.0
SOURCES = "/work/source/usr/lib/python3/dist-packages"
PYTHON = "/usr/bin/python3"


def wanted(packages: bytes, places: Sequence[frame.Placed]) -> dict[str, jobs.Part]:
    """Return the packages that an approved list names, as files of the input disk; sizes are those of the disk's index."""
    sizes = {place.name: place.size for place in places}
    found = {}
    for line in packages.decode("ascii", "replace").splitlines():
        digest = line.rpartition(" ")[2]
        name = f"{digest}.deb"
        found[name] = jobs.Part(digest, sizes.get(name, 0))
    return found


def require_signed(work: Work) -> int:
    """Return the number of the source bundle: the pipeline has signed it, and none after it was built. Raises :class:`Stop`."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    pem = work.builder.public.get(PIPELINE)
    if pem is None:
        raise Stop("HPL17006E", "this builder knows no pipeline that signs source bundles: bring ready parts")
    try:
        key = load_pem_public_key(pem)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError
        number, signature = jobs.open_bundle_signature(work.job.signature)
        source = work.job.parts[jobs.SOURCE]
        key.verify(signature, jobs.bundle_statement(source, number), ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        raise Stop("HPL17006E", "the pipeline has not signed this source bundle") from None
    newest, digest = work.memory.state.bundle or (0, "")
    if number < newest or (number == newest and source.sha256 != digest):
        raise Stop("HPL17006E", f"the source bundle is older than number {newest}, which was built")
    return number


def build(work: Work, files: dict[str, Path], image: dict[str, object]) -> tuple[Out, State]:
    """Build the parts, or take finished ones, and make an image of them."""
    number = require_signed(work)
    key = finished_key(work.job, str(image["root_sha256"]))
    made = work.directory / "made"
    made.mkdir(mode=0o700)
    if not _fetch(work, key, made):
        build_parts(work, files, made)
        for name in LIMITS:
            with (made / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
                file.seek(0)
                work.memory.keep(f"{key}:{name}", file, size, digest)
    out, state = make(work, made, files[jobs.PACKAGES].read_bytes())
    return out, replace(state, bundle=(number, work.job.parts[jobs.SOURCE].sha256))


def finished_key(job: jobs.Job, root: str) -> str:
    """Return the name of finished parts: the hash of all that they are made from. ``root``: of the builder's own root, hex."""
    parts = {name: part.sha256 for name, part in job.parts.items()}
    what = [job.mode, job.arch, parts, root]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _fetch(work: Work, key: str, made: Path) -> bool:
    for name in LIMITS:
        pieces = work.memory.fetch(f"{key}:{name}")
        if pieces is None:
            return False
        with (made / name).open("wb") as out:
            for piece in pieces:
                out.write(piece)
    return True


def build_parts(work: Work, files: dict[str, Path], made: Path) -> None:
    """Run the bundle's source in the sandbox, and copy what it leaves."""
    box = work.directory / "box"
    (box / "cache/debs").mkdir(parents=True)
    for name, path in files.items():
        target = box / ("cache/debs" if name not in jobs.BUNDLES else ".") / name
        path.rename(target) if name != jobs.PACKAGES else target.write_bytes(path.read_bytes())
    kind = "layer" if work.job.mode == jobs.IMAGE else "builder"
    # The first runs dpkg-deb, which reads what a stranger packed; the second what it brought.
    run_in_sandbox(box, ["/usr/bin/dpkg-deb", "-x", "/work/source.deb", "/work/source"], timeout=600)
    build = f"import sys; sys.path.insert(0, {SOURCES!r}); from casemate.image.inside import build_parts as build; "
    build += "from pathlib import Path; build(sys.argv[1], sys.argv[2], Path('/work'))"
    run_in_sandbox(box, [PYTHON, "-IBc", build, work.job.arch, kind], timeout=PATIENCE)
    for name, limit in LIMITS.items():
        take(box / "out", name, limit, made / name)


def make(work: Work, made: Path, packages: bytes) -> tuple[Out, State]:
    """Make an image of parts that the sandbox has left."""
    try:
        said = strictjson.loads((made / "parts.json").read_bytes())
        release, selection = said["release"], said["selection"]
        if set(said) != {"release", "selection"} or not isinstance(release, str) or not isinstance(selection, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise Stop("HPL17012E", "the job has left parts that it does not describe") from None
    kind = KINDS["layer" if work.job.mode == jobs.IMAGE else "builder"]
    with (made / ARCHIVE).open("rb") as archive:
        digest = hashlib.file_digest(archive, "sha256").hexdigest()
        size = archive.seek(0, os.SEEK_END)
    bill = (made / "sbom.spdx.json").read_bytes()
    with (made / "kernel").open("rb") as kernel, (made / "initrd").open("rb") as initrd:
        parts = Parts(work.job.arch, kind, release[:100], kernel, initrd, digest, size, bill, packages, selection)
        out, state = builderwork.make(work, parts)
    return {**out, ARCHIVE: made / ARCHIVE}, state
