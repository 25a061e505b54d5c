"""Frames: named files on a block device, for what goes into a builder machine and for what comes out. Pure.

    data = index("casebuild", [Entry("job.json", 120, sha256)])          # then each file at a multiple of 4096
    for place in parse(data, "casebuild"): place.name, place.offset, place.size, place.sha256

======  ====  ===========================================================
offset  size  what
======  ====  ===========================================================
0       16    ``casemate-frame/1``
16      16    label, ASCII, filled with NUL
32      4     number of files, big-endian, 1 to 4096
36      92    NUL
128     128   for each file: name (80, ASCII, filled with NUL), size (u64), SHA-256 (32), NUL (8)
======  ====  ===========================================================

The index is filled with NUL to a multiple of 4096; the files follow in its order, each from the next multiple of 4096 on.

There is one way to write a frame of given files, and no other is read: no offsets that could overlap, no bytes that mean nothing,
no name twice. All fields have fixed places, so that it can be read before anything of it is believed.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from casemate.errors import CasemateError

MAGIC = b"casemate-frame/1"
BLOCK, MOST_FILES, LARGEST_FILE, LARGEST = 4096, 4096, 16 << 30, 64 << 30
FIRST = BLOCK
"""So many bytes tell how long the index is."""
_HEADER, _ENTRY = struct.Struct(">16s16sI92x"), struct.Struct(">80sQ32s8x")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._~-]{0,79}")


class FrameError(CasemateError):
    """A disk holds no frame, or not the one that was expected."""

    id = "BUILD-FRAME"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: name, size in bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Placed(Entry):
    """A file and where it begins."""

    offset: int


def entry(name: str, content: bytes) -> Entry:
    """Return the entry of a file that is in memory."""
    return Entry(name, len(content), hashlib.sha256(content).hexdigest())


def index(label: str, entries: Sequence[Entry]) -> bytes:
    """Return the index of a frame, filled up. Raises :class:`FrameError` where it would not read back."""
    data = _HEADER.pack(MAGIC, label.encode(), len(entries))
    data += b"".join(_ENTRY.pack(one.name.encode(), one.size, bytes.fromhex(one.sha256)) for one in entries)
    data += bytes(-len(data) % BLOCK)
    if [(one.name, one.size, one.sha256) for one in parse(data, label)] != [
        (one.name, one.size, one.sha256) for one in entries
    ]:
        raise FrameError("these files can't stand in a frame")
    return data


def is_frame(first: bytes, label: str) -> bool:
    """Whether a device's first bytes are those of a frame with this label."""
    return first[:32] == MAGIC + label.encode().ljust(16, b"\0")


def length(first: bytes) -> int:
    """Return how long the index is that begins so, in bytes. ``first``: at least 128 bytes. Raises :class:`FrameError`."""
    if len(first) < _HEADER.size or first[:16] != MAGIC:
        raise FrameError("it begins as no frame does")
    (count,) = struct.unpack_from(">I", first, 32)
    if not 1 <= count <= MOST_FILES:
        raise FrameError(f"{count} files: a frame has 1 to {MOST_FILES}")
    return filled(_HEADER.size + count * _ENTRY.size)


def parse(data: bytes, label: str) -> tuple[Placed, ...]:
    """Read an index of just the length that :func:`length` says. Raises :class:`FrameError`."""
    if len(data) != length(data):
        raise FrameError("the index is not whole")
    if not is_frame(data, label) or any(data[36:128]):
        raise FrameError("it has another label, or bytes that mean nothing")
    (count,) = struct.unpack_from(">I", data, 32)
    found: list[Placed] = []
    offset, names = len(data), set()
    for number in range(count):
        start = _HEADER.size + number * _ENTRY.size
        name, size, digest = _ENTRY.unpack_from(data, start)
        text = name.rstrip(b"\0").decode("ascii", "replace")
        if not _NAME.fullmatch(text) or name != text.encode("ascii", "replace").ljust(80, b"\0") or text in names:
            raise FrameError("a name is no plain one, or stands twice")
        if any(data[start + 120 : start + 128]) or size > LARGEST_FILE:
            raise FrameError(f"the entry of {text} is none")
        names.add(text)
        found.append(Placed(text, size, digest.hex(), offset))
        offset += filled(size)
    if offset > LARGEST:
        raise FrameError("the frame is too large")
    if any(data[_HEADER.size + count * _ENTRY.size :]):
        raise FrameError("bytes that mean nothing stand after the index")
    return tuple(found)


def filled(size: int) -> int:
    """Return a size with what fills its last block."""
    return -(-size // BLOCK) * BLOCK
