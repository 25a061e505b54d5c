"""The archive of a ``compose`` or ``play`` section: base64 of a gzipped tar, read safely, written reproducibly.

    archive = read_archive(section["compose"]["archive"])
    archive.files["docker-compose.yaml"]

Nothing is ever extracted by name: reading gives bytes under checked relative paths, and who writes them out creates
new files under a new directory. Refused: links, devices, pipes, sparse files; absolute paths, ``..``, backslashes and
control characters; a path that stands twice, or lies under a file; more than 4096 members or 64 MiB unpacked, counted
while unpacking, so that an archive that would grow to gigabytes stops there; anything after the end of the gzip data.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from casemate.contract.errors import ArchiveError, NoComposeError, TarError

LARGEST_PACKED, LARGEST_UNPACKED, MOST_MEMBERS = 16 << 20, 64 << 20, 4096
LONGEST_PATH, DEEPEST_PATH, LONGEST_EXTENDED = 512, 16, 8192
COMPOSE_NAMES = ("docker-compose.yaml", "docker-compose.yml", "compose.yaml", "compose.yml")
OVERRIDE_NAMES = tuple(f"{stem}.override.{kind}" for stem in ("docker-compose", "compose") for kind in ("yaml", "yml"))


@dataclass(frozen=True, slots=True)
class Archive:
    """Regular files by relative path (``a/b``), the executable ones among them, and directories."""

    files: dict[str, bytes] = field(repr=False)
    executable: frozenset[str] = frozenset()
    directories: tuple[str, ...] = ()

    def compose(self) -> tuple[str, bytes]:
        """Return name and content of the compose file. Raises :class:`ArchiveError`: none, or several that differ."""
        found = [name for name in COMPOSE_NAMES if name in self.files]
        if more := [name for name in OVERRIDE_NAMES if name in self.files]:
            raise ArchiveError(f"a second compose file beside: {more[0]}", "write all services into the one")
        if not found:
            raise NoComposeError("no docker-compose.yaml at its top", "pack the directory that holds the compose file")
        if len({self.files[name] for name in found}) > 1:
            raise ArchiveError(f"several compose files: {', '.join(found)}", "leave one")
        return found[0], self.files[found[0]]


def read_archive(text: str) -> Archive:
    """Read an archive; line breaks in the base64 are allowed. Raises :class:`ArchiveError`."""
    if len(text) > LARGEST_PACKED * 4 // 3 + 4096:
        raise ArchiveError(f"packed larger than {LARGEST_PACKED >> 20} MiB")
    try:
        packed = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ArchiveError("not base64", "make it with `casemate contract archive DIR`") from None
    data = _unzip(packed)
    expected = _count_members(data)
    files: dict[str, bytes] = {}
    directories: dict[str, None] = {}
    executable = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                expected -= 1
                path = _safe_path(member)
                if path in files or (path in directories and not member.isdir()):
                    raise ArchiveError("stands twice in the archive", where=_shown(path))
                if member.isdir():
                    directories[path] = None
                    continue
                content = tar.extractfile(member)
                files[path] = content.read() if content else b""
                if len(files[path]) != member.size:
                    raise TarError("is cut short", where=_shown(path))
                if member.mode & 0o100:
                    executable.add(path)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, UnicodeError, RecursionError):
        raise _damaged() from None
    if expected:
        raise _damaged()
    directories.pop(".", None)
    for path in [*files, *directories]:
        for parent in _parents(path):
            if parent in files:
                raise ArchiveError("lies under a file", where=_shown(path))
            directories[parent] = None
    return Archive(files, frozenset(executable), tuple(sorted(directories)))


def write_archive(files: Mapping[str, bytes], executable: frozenset[str] = frozenset()) -> str:
    """Pack files by relative path; the same files give the same text, whoever packs them and when.

    Raises :class:`ArchiveError` where :func:`read_archive` would refuse the result.
    """
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", mtime=0, compresslevel=9) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        directories = {parent for path in files for parent in _parents(path)}
        if both := directories & files.keys():
            raise ArchiveError("is a file and a directory", where=_shown(min(both)))
        for path in sorted({*files, *directories}):
            member = tarfile.TarInfo(path)
            if path in directories:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.size, member.mode = len(files[path]), 0o755 if path in executable else 0o644
                tar.addfile(member, io.BytesIO(files[path]))
    text = base64.b64encode(out.getvalue()).decode("ascii")
    read_archive(text)
    return text


def _unzip(packed: bytes) -> bytes:
    """Unpack one gzip stream, at most the limit and one byte."""
    try:
        unpacker = zlib.decompressobj(wbits=31)
        data = unpacker.decompress(packed, LARGEST_UNPACKED + 1)
    except zlib.error:
        raise ArchiveError("not gzip data", "make it with `casemate contract archive DIR`") from None
    if len(data) > LARGEST_UNPACKED:
        raise ArchiveError(f"unpacks to more than {LARGEST_UNPACKED >> 20} MiB")
    if not unpacker.eof:
        raise ArchiveError("the gzip data is cut short")
    if unpacker.unused_data.strip(b"\0"):
        raise ArchiveError("something follows the gzip data")
    return data


def _count_members(data: bytes) -> int:
    """Walk over the headers, each with its checksum, to the end; return how many files and directories there are.

    ``tarfile`` takes a damaged header for the end, and older ones spend minutes on long extended headers.
    """
    count = extras = position = 0
    while any(header := data[position : position + 512]):
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise _damaged() from None
        extended = member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if member.size < 0 or (extended and member.size > LONGEST_EXTENDED):
            raise _damaged()
        count += not extended
        extras += extended
        if max(count, extras) > MOST_MEMBERS:
            raise ArchiveError(f"more than {MOST_MEMBERS} members")
        carries = extended or member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
        position += 512 + (-(-member.size // 512) * 512 if carries else 0)
    if any(data[position:]) or position > len(data):
        raise _damaged()
    return count


def _damaged() -> TarError:
    return TarError("the tar inside is damaged", "make it with `casemate contract archive DIR`")


def _safe_path(member: tarfile.TarInfo) -> str:
    """Return a member's path, normal and relative; the root of the archive is ``.``."""
    name = member.name
    shown = _shown(name)
    if not (member.isreg() or member.isdir()) or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "neither a regular file nor a directory"
        raise ArchiveError(f"is {kind}", "archives hold regular files and directories only", where=shown)
    if name.startswith("/"):
        raise ArchiveError("is an absolute path", where=shown)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ArchiveError("leaves the archive by `..`", where=shown)
    if "\\" in name or not name.isprintable() or len(name) > LONGEST_PATH or len(parts) > DEEPEST_PATH:
        raise ArchiveError("is a path that is too long, too deep, or has odd characters", where=shown)
    if not parts and not member.isdir():
        raise ArchiveError("has no name", where=shown)
    return "/".join(parts) or "."


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _shown(path: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in path)
    return text if len(text) <= 80 else text[:77] + "..."
