"""Rebuilds an image from this source and compares, so that nobody need believe who built it.

The packages are those of the image's own ``packages.txt``, each with its hash; tree, archive and initrd are made in an
empty directory, from nothing that an earlier build left. What differs is named, down to the file of the root archive.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.attestation import reference
from casemate.errors import CasemateError
from casemate.image import initrd, sbom, snapshot
from casemate.image.build import (
    ImageDirectory,
    bill_of_materials,
    command_line,
    file_hash,
    reference_values,
    source_hash,
)
from casemate.image.root import build_root, packages_of, run
from casemate.image.snapshot import LARGEST_LIST, Package, Policy, listed, parse_list, select

LARGEST_BILL = 16 << 20
MOST_NAMED = 1000
MOST_ENTRIES, MOST_BYTES = 200_000, 4 << 30
LONGEST_LINE, DEEPEST = 2048, 64
_ENTRY = re.compile(
    rb"[-dlbcps][-rwxsStT]{9} \d+/\d+ +(?P<size>\d{1,20})(, *\d+)? \d{4}-\d\d-\d\d \d\d:\d\d squashfs-root"
)
LIMITED = ("prlimit", f"--as={4 << 30}", f"--fsize={MOST_BYTES}", "--cpu=900", "--core=0")
"""Limits for a program that reads what others made."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a rebuild gave: its values, what the image publishes, and every difference as a sentence."""

    rebuilt: dict[str, str]
    published: dict[str, str]
    differences: tuple[str, ...]
    files: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    """How the image's packages differ from this source's list: no difference of the image, but for its reader to judge."""

    @property
    def same(self) -> bool:
        """Whether the rebuild gave just what the image publishes."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON (``casemate-rebuild/1``)."""
        return {
            **{"format": "casemate-rebuild/1", "same": self.same, "source": source_hash()},
            **{"rebuilt": self.rebuilt, "published": self.published},
            **{"differences": list(self.differences), "files": list(self.files), "packages": list(self.packages)},
        }


def verify_build(
    directory: Path, *, cache: Path | None = None, progress: Callable[[str], None] = lambda step: None
) -> Comparison:
    """Rebuild an image's root and initrd from this source and its list of packages, and compare.

    Raises :class:`~casemate.errors.CasemateError` where the directory is no image, or its packages can't be had.
    """
    from casemate.machine import home

    described = ImageDirectory(directory).describe()
    for name in ("reference-values.json", "packages.txt", sbom.NAME, "root.squashfs"):
        if not (directory / name).is_file():
            cure = "give a whole image directory"
            raise CasemateError("is not there", cure, str(directory / name), id="IMAGE-FILE")
    arch = described.get("arch")
    arch = arch if arch in ("amd64", "s390x") else "amd64"
    published = reference.parse(_read(directory / "reference-values.json", reference.LARGEST)).values
    wanted = parse_list(_read(directory / "packages.txt", LARGEST_LIST))
    cache = cache or home.directory() / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rebuild-", dir=cache) as work:
        values, bill, archive = build_values(arch, cache, Path(work), wanted, progress)
        progress("comparing")
        differences = [
            f"{name}: the image says {published.get(name, 'nothing')}, the rebuild gives {value}"
            for name, value in values.items()
            if published.get(name) != value
        ]
        if described.get("command_line") != command_line(arch):
            differences.append("the kernel's command line is another")
        if _read(directory / sbom.NAME, LARGEST_BILL) != bill:
            differences.append(f"{sbom.NAME} is another")
        files: tuple[str, ...] = ()
        if file_hash(directory / "root.squashfs") != values["root.tar.gz"]:
            progress("unpacking both root archives")
            files = compare_archives(directory / "root.squashfs", archive, Path(work))
            differences.append("root.squashfs is another" + ("" if files else ": the same files, packed otherwise"))
    return Comparison(values, published, tuple(differences), files, snapshot.differences(listed(arch)[0], wanted))


def build_values(
    arch: str,
    cache: Path,
    work: Path,
    wanted: tuple[Package, ...] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[dict[str, str], bytes, Path]:
    """Return reference values, bill of materials and root archive of a build in ``work``, an empty directory.

    Packages are taken from ``cache`` where it has them: by hash, so it can't make a difference.
    """
    progress("packages' list")
    selection = select(arch, packages_of(arch), cache, Policy.PINNED, wanted=wanted)
    (work / "debs").symlink_to(cache / "debs")
    root = build_root(arch, work, progress, selection)
    progress("initrd")
    base, bill = initrd.base(root, arch, work), bill_of_materials(root, arch)
    return reference_values(root, arch, base, bill), bill, root.archive


def compare_archives(published: Path, rebuilt: Path, work: Path) -> tuple[str, ...]:
    """Return what differs between the files of two root archives, a line each, 1000 at most.

    The published one is hostile: what it would unpack is counted first, then it is unpacked, under limits of the system, into
    a directory that only this user sees; nothing of it is started, opened as a device, or followed.
    Raises :class:`~casemate.errors.CasemateError` where it is larger than any root is.
    """
    trees = []
    for name, archive in (("published", published), ("rebuilt", rebuilt)):
        require_bounded(archive)
        (work / name).mkdir(mode=0o700)
        tree = work / name / "tree"
        run([*LIMITED, "unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-dest", str(tree), str(archive)])
        trees.append(listing(tree))
    return compare(*trees)[:MOST_NAMED]


def require_bounded(archive: Path) -> None:
    """Raise :class:`~casemate.errors.CasemateError` where an archive would unpack to more than any root of ours has.

    Its listing is read as it comes, and left at the first line too many. A name with a line break in it can add lines, and
    fails for it, but can't take one away: the size of each file stands before its name.
    """
    entries, size = 0, 0
    words = [*LIMITED, "unsquashfs", "-quiet", "-lln", str(archive)]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            while line := process.stdout.readline(LONGEST_LINE + 1):
                entries += 1
                found = _ENTRY.match(line)
                if found is None or len(line) > LONGEST_LINE or line.count(b"/") > DEEPEST:
                    raise _archive("it has names that no root has")
                size += int(found["size"]) if line.startswith(b"-") else 0
                if entries > MOST_ENTRIES or size > MOST_BYTES:
                    raise _archive(f"it would unpack to more than {MOST_ENTRIES} files, or {MOST_BYTES >> 30} GiB")
            if process.wait():
                raise _archive("unsquashfs can't read it")
        finally:
            process.kill()


def _archive(cause: str) -> CasemateError:
    return CasemateError(
        f"the root archive is not unpacked: {cause}", "do not use this image", "root.squashfs", id="IMAGE-ARCHIVE"
    )


def compare(published: dict[str, dict[str, str]], rebuilt: dict[str, dict[str, str]]) -> tuple[str, ...]:
    """Return what differs between two listings, a line a file."""
    lines = []
    for name in sorted({*published, *rebuilt}):
        one, other = published.get(name), rebuilt.get(name)
        if one is None or other is None:
            lines.append(f"{name}: only in the {'rebuild' if one is None else 'image'}")
        elif one != other:
            which = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
            said = (f"{key} {one.get(key, '-')[:80]}, rebuilt {other.get(key, '-')[:80]}" for key in which)
            lines.append(f"{name}: {'; '.join(said)}")
    return tuple(lines)


def listing(tree: Path) -> dict[str, dict[str, str]]:
    """Return what a tree holds: for each path its type, mode, owner, and content, target or device."""
    found = {}
    for parent, directories, names in os.walk(tree):
        for name in (".", *directories, *names) if Path(parent) == tree else (*directories, *names):
            path = Path(parent) / name
            about = path.lstat()
            kind = stat.S_IFMT(about.st_mode)
            entry = {
                **{"type": f"{kind:o}", "mode": f"{stat.S_IMODE(about.st_mode):o}"},
                **{"owner": f"{about.st_uid}:{about.st_gid}", "time": str(int(about.st_mtime))},
            }
            if kind == stat.S_IFREG:
                entry["content"] = file_hash(path)
            elif kind == stat.S_IFLNK:
                entry["target"] = str(path.readlink())
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                entry["device"] = str(about.st_rdev)
            found[path.relative_to(tree).as_posix().encode("utf-8", "backslashreplace").decode()] = entry
    return found


def values_document(arch: str, version: str, values: dict[str, str]) -> bytes:
    """Return rebuilt values as a file of reference values."""
    document = {"format": reference.FORMAT, "version": version, "arch": arch, "values": values}
    return json.dumps(document, indent=1).encode() + b"\n"


def digests(directory: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of those of the named files that a directory has."""
    return {name: file_hash(directory / name) for name in names if (directory / name).is_file()}


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CasemateError(
            f"can't be read: {error.strerror}", "give a whole image directory", str(path), id="IMAGE-FILE"
        ) from None
    if len(data) > limit:
        raise CasemateError(f"has more than {limit} bytes", "is it the right file?", str(path), id="IMAGE-FILE")
    return data
