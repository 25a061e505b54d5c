"""Reads the header of a LUKS2 volume from bytes, and writes it anew.

    size = luks_area_size(start)     # of the first 16 KiB: how much to read to have all before the data
    header = read_header(area)       # checksums first, JSON after; judge it with casemate.luks.policy
    area = rebuilt(header, area)     # both copies written by us: what cryptsetup may see
    area = placed(area, start)       # the same, of a volume that is a part of a disk, to open that disk with
    area = with_only(area, "1")      # without the other key slots
    for offset, part in in_order(area): ...   # how it is written to a disk, so that a power cut costs nothing

Nothing in a header is authenticated: a checksum keeps out accidents, not the infrastructure. So this module only says
what the header *says*; :mod:`casemate.luks.policy` says whether a key may go near it.

A header stands twice. Writers write the first copy, then the second; a power cut leaves one copy damaged or older.
The volume is read as cryptsetup would read it: the newer of the intact copies counts. That gives nothing to an
attacker, who can as well write two intact ones, and it costs nobody their data. Two intact copies of one age that
differ, or an intact copy whose content isn't LUKS2, no power cut can explain: they are refused.

Format: LUKS2 On-Disk Format Specification 1.1, sections 2 and 3. Numbers are big-endian.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

from casemate.luks.errors import LuksError

BINARY_SIZE: Final = 4096
START: Final = 16 << 10
"""As many first bytes of a device as :func:`luks_area_size` needs for a volume that we made."""
LARGEST_AREA: Final = 32 << 20
HEADER_SIZES: Final = tuple(16 << 10 << power for power in range(9))
"""What one copy of a header may take, binary part and JSON: 16 KiB to 4 MiB."""

_MAGICS: Final = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
_LARGEST_JSON: Final = 64 << 10  # one with two key slots takes 2 KiB
_MOST_BRACKETS: Final = 256  # one with two key slots has 19
_LAST_SEQUENCE: Final = (1 << 64) - 1
_CHECKSUM: Final = "sha256"
_CHECKSUM_AT: Final = slice(448, 512)
# magic, version, size, sequence, label, checksum algorithm, salt, UUID, subsystem, offset, zeros, checksum, zeros
_BINARY: Final = struct.Struct(">6s H Q Q 48s 32s 64s 40s 48s Q 184s 64s 3584s")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class _Damaged(LuksError):
    """This copy of the header is not whole; the other may be."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a LUKS2 header says. Everything in it was chosen by whoever wrote to the disk last.

    ``size`` is that of one copy in bytes; ``metadata`` the JSON object, with no key twice and no fractions;
    ``intact`` says whether both copies were whole and the same, ``copy`` which of them counted, 0 or 1 (both are of no
    account when headers are compared).
    """

    size: int
    sequence: int
    uuid: str
    label: str
    subsystem: str
    metadata: dict[str, Any]
    intact: bool = field(default=True, compare=False)
    copy: int = field(default=0, compare=False)


def is_luks(start: bytes) -> bool:
    """Tell whether either copy of a LUKS header, of version 1 or 2, seems to begin in these first bytes of a device.

    A device for which this is true must never be formatted. Give 4 MiB and more to find a second copy wherever it
    may stand; 20 KiB do for a volume that we made.
    """
    return start.startswith(_MAGICS[0]) or any(start.startswith(_MAGICS[1], offset) for offset in HEADER_SIZES)


def luks_area_size(start: bytes) -> int:
    """Return how many first bytes of the device hold the headers and key slots: all before the data.

    ``start`` are the first bytes of the device, at least 4096. With :data:`START` of them the answer is exact for a
    volume that we made; it is :data:`LARGEST_AREA` where they hold no whole first copy. The answer is a hint of how
    much to read, never more than :data:`LARGEST_AREA`; what was read is judged afterwards. Raises :class:`LuksError`
    where no LUKS2 header begins.
    """
    if not is_luks(start):
        raise LuksError("no LUKS header begins here")
    try:
        header = _copy(start, 0)
    except _Damaged:
        return LARGEST_AREA
    offset = _data_offset(header)
    if not 2 * header.size <= offset <= LARGEST_AREA:
        raise LuksError(f"the data begins at byte {offset}, not within 32 MiB after the headers", where="segments.0")
    return offset


def read_header(data: bytes) -> Header:
    """Parse the header in the first bytes of a device. Raises :class:`LuksError`.

    ``data`` has both copies, at most 8 MiB; more is not looked at. Bounded work for any input.
    """
    data = data[: 2 * HEADER_SIZES[-1]]
    first, why = _attempt(data, 0)
    second = None
    for offset in (first.size,) if first else HEADER_SIZES:
        second, _ = _attempt(data, offset)
        if second:
            break
    if first and second:
        if first.sequence == second.sequence and first != second:
            raise LuksError("the two copies of the header are of the same age and differ")
        newer = second if second.sequence > first.sequence else first
        return replace(newer, intact=first == second, copy=int(newer is second))
    whole = first or second
    if whole:
        return replace(whole, intact=False, copy=int(whole is second))
    raise LuksError(f"no copy of the header is intact; first copy: {why}", where="header")


def rebuilt(header: Header, area: bytes) -> bytes:
    """Return all before the data as we write it: two equal copies of this header, the key material, zeros elsewhere.

    ``area`` are the bytes that ``header`` was read from. To be called when :func:`casemate.luks.policy.check` has
    admitted the header, and to be given to cryptsetup as a detached header, so that what it sees is what was checked:
    not a later state of the disk, another copy, or JSON that two parsers take differently.
    """
    size = _data_offset(header)
    if size > min(len(area), LARGEST_AREA):
        raise LuksError(f"{len(area)} bytes do not reach the data at byte {size}")
    out = bytearray(_copies(header).ljust(size, b"\0"))
    for slot in header.metadata["keyslots"].values():
        begin = int(slot["area"]["offset"])
        end = begin + int(slot["area"]["size"])
        out[begin:end] = area[begin:end]
    return bytes(out)


def placed(area: bytes, start: int) -> bytes:
    """Return the headers of a volume for cryptsetup to open the whole disk with, on which the volume is one part.

    ``area`` is what :func:`rebuilt` wrote for a volume that begins ``start`` bytes into the disk. Its data segment is
    said to begin as far into the disk, so that the mapped device lies on the disk with nothing between. (A size would be
    of no use: cryptsetup maps to the end of the disk.) For a detached header only: on the disk stays ``area``.
    """
    header = read_header(area)
    offset = _data_offset(header)
    segment = {**header.metadata["segments"]["0"], "offset": str(start + offset)}
    moved = replace(header, metadata={**header.metadata, "segments": {"0": segment}})
    return _copies(moved) + area[2 * header.size :]


def with_only(area: bytes, slot: str) -> bytes:
    """Return the headers with one key slot left, newer than before; zeros where the others' key material stood.

    ``area`` is what :func:`rebuilt` wrote, ``slot`` the number of a key slot in it.
    """
    header = read_header(area)
    metadata = {
        **header.metadata,
        "keyslots": {slot: header.metadata["keyslots"][slot]},
        "digests": {"0": {**header.metadata["digests"]["0"], "keyslots": [slot]}},
    }
    if header.sequence == _LAST_SEQUENCE:
        raise LuksError("its sequence number can't grow", where="header")
    return rebuilt(replace(header, sequence=header.sequence + 1, metadata=metadata), area)


def labelled(area: bytes, label: str) -> bytes:
    """Return the headers with a label: at most 47 bytes of ASCII, which anybody who has the disk can change."""
    header = replace(read_header(area), label=label)
    return _copies(header) + area[2 * header.size :]


def in_order(area: bytes, counts: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield offsets and bytes of headers to be written to a disk, each to be there before the next is begun.

    ``area`` is what :func:`rebuilt` or :func:`with_only` wrote, ``counts`` the copy on the disk that counts now. Key
    material goes first, the copy that doesn't count next, the one that counts last: at any moment one of both is
    intact and its key material there. At the end follows the whole, and with it the zeros over what was removed.

    Where the two copies on the disk differ, the header that counts is to be written (again) before a newer one.
    """
    header = read_header(area)
    for slot in header.metadata["keyslots"].values():
        begin = int(slot["area"]["offset"])
        yield begin, area[begin : begin + int(slot["area"]["size"])]
    for index in (1 - counts, counts):
        yield index * header.size, area[index * header.size : (index + 1) * header.size]
    yield 0, area


def _copies(header: Header) -> bytes:
    text = json.dumps(header.metadata, separators=(",", ":")).encode()
    places = ((_MAGICS[0], 0), (_MAGICS[1], header.size))
    return b"".join(_encoded(header, text, magic, offset) for magic, offset in places)


def _encoded(header: Header, text: bytes, magic: bytes, offset: int) -> bytes:
    json_area = text.ljust(header.size - BINARY_SIZE, b"\0")
    names = (name.encode() for name in (header.label, _CHECKSUM, "", header.uuid, header.subsystem))
    binary = bytearray(_BINARY.pack(magic, 2, header.size, header.sequence, *names, offset, b"", b"", b""))
    digest = hashlib.sha256(binary + json_area).digest()
    binary[_CHECKSUM_AT] = digest.ljust(64, b"\0")
    return bytes(binary) + json_area


def _data_offset(header: Header) -> int:
    try:
        offset = header.metadata["segments"]["0"]["offset"]
    except (KeyError, TypeError):
        offset = None
    if not isinstance(offset, str) or not re.fullmatch(r"[1-9][0-9]{0,18}", offset):
        raise LuksError("does not say where its data begins", where="segments.0")
    return int(offset)


def _attempt(data: bytes, offset: int) -> tuple[Header | None, str]:
    """Return the copy at this offset or what is damaged about it."""
    try:
        return _copy(data, offset), ""
    except _Damaged as error:
        return None, error.cause


def _copy(data: bytes, offset: int) -> Header:
    """Parse the copy at this offset. Raises :class:`_Damaged`, or :class:`LuksError` where no accident explains it."""
    binary = data[offset : offset + BINARY_SIZE]
    if len(binary) < BINARY_SIZE:
        raise _Damaged("the device ends before it")
    magic, version, size, sequence, label, checksum, _, uuid, subsystem, stands_at, zeros, digest, rest = (
        _BINARY.unpack(binary)
    )
    if magic != _MAGICS[offset > 0]:
        raise _Damaged("does not begin with the LUKS signature")
    if version != 2:
        raise LuksError(f"LUKS version {version}, not 2", where="header")
    if size not in HEADER_SIZES or stands_at != offset or (offset and size != offset):
        raise _Damaged(f"says that it has {size} bytes and stands at byte {stands_at}")
    json_area = data[offset + BINARY_SIZE : offset + size]
    if len(json_area) != size - BINARY_SIZE:
        raise _Damaged("the device ends within it")
    if checksum.rstrip(b"\0") != _CHECKSUM.encode():
        raise _Damaged("its checksum is not a sha256")
    hashed = hashlib.sha256(binary[: _CHECKSUM_AT.start] + bytes(64) + binary[_CHECKSUM_AT.stop :])
    hashed.update(json_area)
    if digest != hashed.digest().ljust(64, b"\0"):
        raise _Damaged("its checksum is wrong")
    # What follows was meant by whoever wrote it.
    if any(zeros) or any(rest):
        raise LuksError("bytes that ought to be zero are not", where="header")
    text = _string(uuid, "uuid")
    if not _UUID.fullmatch(text):
        raise LuksError("is not a UUID", where="header uuid")
    return Header(size, sequence, text, _string(label, "label"), _string(subsystem, "subsystem"), _json(json_area))


def _string(raw: bytes, what: str) -> str:
    text, end, rest = raw.partition(b"\0")
    if not end or any(rest) or not text.isascii() or not text.decode("ascii").isprintable():
        raise LuksError("is not printable ASCII that ends in zeros", where=f"header {what}")
    return text.decode("ascii")


def _json(area: bytes) -> dict[str, Any]:
    text, end, rest = area.partition(b"\0")
    if not end or any(rest):
        raise LuksError("does not end in zeros", where="header JSON")
    if len(text) > _LARGEST_JSON or text.count(b"{") + text.count(b"[") > _MOST_BRACKETS:
        raise LuksError("is larger or deeper than any that we write", where="header JSON")
    try:
        value = json.loads(
            text.decode("ascii"), object_pairs_hook=_unique, parse_int=_integer, parse_float=_no, parse_constant=_no
        )
    except ValueError:  # its text may quote the document
        raise LuksError("is not JSON", where="header JSON") from None
    if not isinstance(value, dict):
        raise LuksError("is not an object", where="header JSON")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise LuksError("has a key twice", where="header JSON")
    return found


def _integer(text: str) -> int:
    if len(text) > 19:
        raise LuksError("has a number of more than 64 bits", where="header JSON")
    return int(text)


def _no(text: str) -> NoReturn:
    raise LuksError("has a number that is not whole", where="header JSON")
