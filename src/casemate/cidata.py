"""Reads the ``cidata`` volume that brings a contract: ISO 9660 or FAT, from bytes held in memory.

    label(first_64_kib)       # "cidata", another label, or None: not such a volume
    read_volume(whole)        # {"user-data": b"...", "meta-data": b"...", ...}

The volume comes from the infrastructure and is hostile. No kernel file system ever mounts it: this module parses it
from the same bytes that are hashed for the record. It reads four files of the root directory and nothing else, does
bounded work for any input, and has one error, :class:`CidataError`.

ISO 9660 (ECMA-119): names are taken from Rock Ridge where there, else Joliet, else the plain names, in which
``user-data`` is ``USER_DATA`` or ``USER_DAT``. FAT12, FAT16 and FAT32: long names, compared without case. A name that
stands twice, a link, a directory of that name, a file in several extents, or one with a compressed body is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from casemate.errors import CasemateError

NAMES = ("user-data", "meta-data", "vendor-data", "network-config")
LABEL = "cidata"
LARGEST = 16 << 20
PROBE = 64 << 10

_SECTOR = 2048
_LARGEST_DIRECTORY = 256 << 10


class CidataError(CasemateError):
    """The bytes are not a ``cidata`` volume that can be read safely."""

    id = "CIDATA"


def label(start: bytes) -> str | None:
    """Return the label of the volume that starts with these bytes, or ``None``: neither ISO 9660 nor FAT.

    64 KiB are enough and no more is looked at. Never raises.
    """
    start = start[:PROBE]
    try:
        if _is_iso(start):
            return _text(_iso_descriptor(start, 1)[40:72])
        return _Fat(start, whole=False).label()
    except CidataError:
        return None


def read_volume(data: bytes) -> dict[str, bytes]:
    """Return those of :data:`NAMES` that the root directory has. At most 16 MiB. Raises :class:`CidataError`."""
    if len(data) > LARGEST:
        raise CidataError(f"the volume has {len(data)} bytes, more than {LARGEST}")
    found = label(data)
    if found is None:
        raise CidataError("neither an ISO 9660 nor a FAT volume", "make it with `cloud-localds` or `genisoimage`")
    if found.lower() != LABEL:
        raise CidataError("the volume has another label than cidata")
    files: dict[str, bytes] = {}
    for name, content in _iso_files(data) if _is_iso(data) else _Fat(data).files():
        if name in files:
            raise CidataError("two files have this name", where=name)
        files[name] = content
    return files


def _text(field: bytes) -> str:
    return field.rstrip(b" \0").decode("latin-1")


def _slice(data: bytes, start: int, size: int, what: str) -> bytes:
    if start < 0 or size < 0 or start + size > len(data):
        raise CidataError("lies outside of the volume", where=what)
    return data[start : start + size]


# ------------------------------------------------------------------------------------------------- ISO 9660


@dataclass(frozen=True, slots=True)
class _Entry:
    """A directory record: where its body is, its flags, its raw name, its system use area (SUSP)."""

    extent: int
    size: int
    flags: int
    name: bytes
    extra: bytes

    def body(self, data: bytes, what: str) -> bytes:
        return _slice(data, self.extent * _SECTOR, self.size, what)


def _is_iso(data: bytes) -> bool:
    return data[16 * _SECTOR + 1 : 16 * _SECTOR + 6] == b"CD001"


def _iso_descriptor(data: bytes, kind: int, escapes: tuple[bytes, ...] = ()) -> bytes:
    """Return the first volume descriptor of a kind, out of the 16 that fit into the first 64 KiB."""
    for start in range(16 * _SECTOR, PROBE, _SECTOR):
        sector = data[start : start + _SECTOR]
        if len(sector) < _SECTOR or sector[1:6] != b"CD001" or sector[0] == 255:
            break
        if sector[0] == kind and (not escapes or sector[88:91] in escapes):
            return sector
    raise CidataError("the volume descriptor is missing")


def _iso_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    primary = _iso_descriptor(data, 1)
    root = _iso_root(primary)
    entries = list(_iso_entries(data, root))
    skip = _rock_ridge_skip(entries)
    if skip is not None:
        named = [(_rock_ridge_name(data, entry, skip), entry) for entry in entries[2:]]
    else:
        try:
            joliet = _iso_descriptor(data, 2, (b"%/@", b"%/C", b"%/E"))
        except CidataError:
            named = [(_plain_name(entry.name), entry) for entry in entries[2:]]
        else:
            entries = list(_iso_entries(data, _iso_root(joliet)))
            named = [(_joliet_name(entry.name), entry) for entry in entries[2:]]
    for name, entry in named:
        if name in NAMES:
            if entry.flags & ~0x01:  # all but "hidden": directories, associated files, several extents
                raise CidataError("not a regular file in one piece", where=name)
            yield name, entry.body(data, name)


def _iso_root(descriptor: bytes) -> _Entry:
    if _both(descriptor, 128, "H") != _SECTOR:
        raise CidataError("the blocks of the volume don't have 2048 bytes")
    root = _iso_entry(descriptor[156:190])
    if not root.flags & 0x02 or root.size > _LARGEST_DIRECTORY:
        raise CidataError("the root directory is not one, or too large")
    return root


def _iso_entries(data: bytes, directory: _Entry) -> Iterator[_Entry]:
    """Give the records of a directory. The first two are the directory itself and its parent."""
    body = directory.body(data, "the root directory")
    position = 0
    while position < len(body):
        length = body[position]
        if length == 0:  # records don't cross sectors
            position = (position // _SECTOR + 1) * _SECTOR
            continue
        if position % _SECTOR + length > _SECTOR:
            raise CidataError("a directory record crosses a sector")
        yield _iso_entry(body[position : position + length])
        position += length


def _iso_entry(record: bytes) -> _Entry:
    if len(record) < 34 or 33 + record[32] > len(record):
        raise CidataError("a directory record is too short")
    length = record[32]
    if record[1]:
        raise CidataError("a directory record has extended attributes")
    name, extra = record[33 : 33 + length], record[33 + length + (length + 1) % 2 :]
    return _Entry(_both(record, 2, "I"), _both(record, 10, "I"), record[25], name, extra)


def _both(data: bytes, position: int, code: str) -> int:
    """A number written little-endian, then big-endian; both must agree."""
    size = struct.calcsize(code)
    (little,) = struct.unpack_from("<" + code, data, position)
    (big,) = struct.unpack_from(">" + code, data, position + size)
    if little != big:
        raise CidataError("a number is not the same in both byte orders")
    return int(little)


def _susp(area: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give the entries of a system use area: signature and payload."""
    position = 0
    while position + 4 <= len(area) and area[position] != 0:
        length = area[position + 2]
        if length < 4 or position + length > len(area):
            raise CidataError("a system use entry is too long or too short")
        yield area[position : position + 2], area[position + 4 : position + length]
        if area[position : position + 2] == b"ST":
            return
        position += length


def _rock_ridge_skip(entries: list[_Entry]) -> int | None:
    """How many bytes precede each system use area; ``None`` where the volume has no Rock Ridge."""
    if len(entries) < 2:
        raise CidataError("the root directory is empty")
    for signature, payload in _susp(entries[0].extra):
        if signature == b"SP" and payload[:2] == b"\xbe\xef" and len(payload) == 3:
            return payload[2]
    return None


def _rock_ridge_name(data: bytes, entry: _Entry, skip: int) -> str:
    name, special = b"", False
    areas, follow = [entry.extra[skip:]], 4
    while areas:
        for signature, payload in _susp(areas.pop()):
            if signature == b"NM" and payload:
                special = special or bool(payload[0] & ~0x01)
                name += payload[1:]
            elif signature in (b"SL", b"ZF", b"CL"):  # a link, a compressed body, a directory elsewhere
                special = True
            elif signature == b"CE" and len(payload) == 24 and follow:
                follow -= 1
                start = _both(payload, 0, "I") * _SECTOR + _both(payload, 8, "I")
                areas.append(_slice(data, start, _both(payload, 16, "I"), "a continuation area")[:_SECTOR])
    text = name.decode("utf-8", "replace")
    if special and text in NAMES:
        raise CidataError("not a regular file in one piece", where=text)
    return text


def _joliet_name(name: bytes) -> str:
    return name.decode("utf-16-be", "replace").removesuffix(";1")


def _plain_name(name: bytes) -> str:
    text = _text(name).removesuffix(";1").removesuffix(".").lower().replace("_", "-")
    return next((wanted for wanted in NAMES if text in (wanted, wanted[:8])), text)


# ------------------------------------------------------------------------------------------------- FAT


class _Fat:
    """A FAT volume: its geometry, checked once; then a label, or files."""

    def __init__(self, data: bytes, *, whole: bool = True) -> None:
        self._data = data
        boot = data[:512]
        if len(boot) < 512 or boot[510:512] != b"\x55\xaa" or boot[0] not in (0xEB, 0xE9):
            raise CidataError("not a FAT volume")
        sector, per_cluster, reserved, fats, root_entries, total, _, fat_size = struct.unpack_from(
            "<HBHBHHBH", boot, 11
        )
        self._wide = fat_size == 0  # FAT32, as Linux tells it
        if self._wide:
            fat_size = struct.unpack_from("<I", boot, 36)[0]
        total = total or struct.unpack_from("<I", boot, 32)[0]
        self._root_cluster = struct.unpack_from("<I", boot, 44)[0] if self._wide else 0
        if (
            sector not in (512, 1024, 2048, 4096)
            or per_cluster not in (1, 2, 4, 8, 16, 32, 64, 128)
            or not reserved
            or not 1 <= fats <= 2
            or not fat_size
            or (root_entries == 0) != self._wide
        ):
            raise CidataError("not a FAT volume")
        self._root_start = (reserved + fats * fat_size) * sector
        self._root_size = root_entries * 32
        self._start = self._root_start + -(-self._root_size // sector) * sector
        self._cluster = sector * per_cluster
        self._clusters = (total * sector - self._start) // self._cluster
        if self._clusters < 1 or (whole and total * sector > len(data)):
            raise CidataError("a FAT volume whose sizes don't fit")
        self._bits = 32 if self._wide else 12 if self._clusters < 4085 else 16
        if (self._clusters + 2) * self._bits > fat_size * sector * 8:
            raise CidataError("a FAT volume whose table is too short")
        self._table = reserved * sector
        at = 66 if self._wide else 38
        self._boot_label = _text(boot[at + 5 : at + 16]) if boot[at] == 0x29 else ""

    def label(self) -> str:
        """The label: of the root directory where that is at hand, else of the boot sector."""
        try:
            for entry in self._entries():
                if entry[11] & 0x18 == 0x08 and entry[11] != 0x0F:
                    return _text(entry[:11])
        except CidataError:
            pass
        return self._boot_label

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Give the wanted files of the root directory."""
        pieces: list[bytes] = []
        for entry in self._entries():
            if entry[11] == 0x0F:
                pieces.append(entry)
                continue
            name = _long_name(pieces, entry)
            pieces = []
            if name not in NAMES:
                continue
            if entry[11] & 0x18:
                raise CidataError("not a regular file in one piece", where=name)
            high, low, size = struct.unpack_from("<H4xHI", entry, 20)
            yield name, self._chain(low | (high << 16 if self._wide else 0), size, name)

    def _entries(self) -> Iterator[bytes]:
        """Give the used entries of the root directory, 32 bytes each."""
        if self._wide:
            directory = self._chain(self._root_cluster, None, "the root directory")
        else:
            directory = _slice(self._data, self._root_start, self._root_size, "the root directory")
        for position in range(0, len(directory), 32):
            entry = directory[position : position + 32]
            if entry[0] == 0:
                return
            if entry[0] != 0xE5:
                yield entry

    def _chain(self, cluster: int, size: int | None, what: str) -> bytes:
        """Read a chain of clusters that must have just enough for ``size`` bytes (a directory has no size)."""
        if size == 0 and cluster == 0:
            return b""
        limit = _LARGEST_DIRECTORY if size is None else size
        parts: list[bytes] = []
        while cluster < self._end:
            if not 2 <= cluster < self._clusters + 2 or len(parts) * self._cluster >= limit:
                raise CidataError("its chain of clusters is damaged", where=what)
            parts.append(_slice(self._data, self._start + (cluster - 2) * self._cluster, self._cluster, what))
            cluster = self._next(cluster)
        body = b"".join(parts)
        if size is not None and not len(body) - self._cluster < size <= len(body):
            raise CidataError("its chain of clusters is damaged", where=what)
        return body if size is None else body[:size]

    @property
    def _end(self) -> int:
        return {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}[self._bits]

    def _next(self, cluster: int) -> int:
        position = self._table + cluster * self._bits // 8
        entry = _slice(self._data, position, 4 if self._wide else 2, "the allocation table")
        value = int.from_bytes(entry, "little")
        if self._bits == 12:
            return value >> 4 if cluster & 1 else value & 0xFFF
        return value & 0x0FFFFFFF


def _long_name(pieces: list[bytes], entry: bytes) -> str:
    """Return the long name that these entries and the short one after them make; empty where they don't fit."""
    checksum = 0
    for byte in entry[:11]:
        checksum = ((checksum >> 1) + ((checksum & 1) << 7) + byte) & 0xFF
    count = len(pieces)
    if not 1 <= count <= 20 or [piece[0] for piece in pieces] != [count | 0x40, *range(count - 1, 0, -1)]:
        return ""
    if any(piece[13] != checksum for piece in pieces):
        return ""
    units = b"".join(piece[1:11] + piece[14:26] + piece[28:32] for piece in reversed(pieces))
    return units.decode("utf-16-le", "replace").split("\0", 1)[0].lower()
