"""The wrapped third seed of a volume, as it stands in the metadata partition (``docs/formats/luks.md``).

    found = read_wrapped(area)                    # of AREA_SIZE bytes at AREA_START of the disk
    for offset, part in in_order(copy_of(seed)): ...   # how it is written there: a power cut leaves the old or the new

It stands twice, each copy in a block of its own with a checksum and a generation. The newer of the intact copies counts.
Nothing here is authenticated, and nothing needs to be: what is wrapped is opened by the key service alone, which also
verifies for which volume it was wrapped; and a wrong seed opens no volume. The names in it say which key to ask for, and
count only where the contract names the same. So a copy from elsewhere costs a start, and no secret.

One copy, 8192 bytes, numbers big-endian:

    0   16  "casemate-seed-1" and a newline
    16   8  generation, from 1 on
    24   2  bytes of the volume's name, 1 to 255: ASCII, as contracts have them
    26   2  bytes of the key's name, 1 to 512: printable ASCII without spaces (a CRN)
    28   4  bytes of the wrapped seed, 1 to 7168: printable ASCII without spaces, as the service gave it
    32  32  SHA-256 of the copy, with zeros here
    64      these three, one after the other; zeros to the end
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from casemate.luks.errors import LuksError
from casemate.luks.policy import METADATA_START

COPY_SIZE: Final = 8192
COPIES: Final = (64 << 10, 128 << 10)
"""Where the copies stand, from the start of the metadata partition: far from each other and from what is marked there."""
AREA_START: Final = METADATA_START + COPIES[0]
AREA_SIZE: Final = COPIES[1] - COPIES[0] + COPY_SIZE
"""All of it, as it is read from a disk."""

_MAGIC: Final = b"casemate-seed-1\n"
_HEAD: Final = struct.Struct(">16s Q H H I 32s")
_VOLUME: Final = re.compile(rb"[a-z_][a-z0-9_-]{0,254}")
_KEY: Final = re.compile(rb"[!-~]{1,512}")
_WRAPPED: Final = re.compile(rb"[!-~]{1,7168}")
_LAST: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class WrappedSeed:
    """``volume``: its name in the contract; ``key``: the name of the key (CRN); ``wrapped``: what the service gave."""

    volume: str
    key: str
    wrapped: str = field(repr=False)
    generation: int = 1


@dataclass(frozen=True, slots=True)
class FoundSeed:
    """What a disk has: ``seed``, the copy that counts (0 or 1), and whether both are whole and the same."""

    seed: WrappedSeed
    copy: int
    intact: bool


def copy_of(seed: WrappedSeed) -> bytes:
    """Return one copy, 8192 bytes. Raises :class:`LuksError` for what has not the form that is read."""
    try:
        parts = (seed.volume.encode("ascii"), seed.key.encode("ascii"), seed.wrapped.encode("ascii"))
    except UnicodeEncodeError:
        raise LuksError("a wrapped seed and its names are ASCII") from None
    forms = zip((_VOLUME, _KEY, _WRAPPED), parts, strict=True)
    if not all(form.fullmatch(part) for form, part in forms) or not 1 <= seed.generation <= _LAST:
        raise LuksError("a wrapped seed or one of its names is too long, empty, or has other characters")
    lengths = [len(part) for part in parts]
    head = _HEAD.pack(_MAGIC, seed.generation, *lengths, bytes(32))
    plain = (head + b"".join(parts)).ljust(COPY_SIZE, b"\0")
    return _sealed(plain)


def _sealed(copy: bytes) -> bytes:
    zeroed = copy[:32] + bytes(32) + copy[64:]
    return copy[:32] + hashlib.sha256(zeroed).digest() + copy[64:]


def _read_copy(copy: bytes) -> WrappedSeed | None:
    """Return what a copy says; ``None`` where it is not whole, to the last zero."""
    if len(copy) != COPY_SIZE or _sealed(copy) != copy:
        return None
    magic, generation, *lengths, _ = _HEAD.unpack_from(copy)
    if magic != _MAGIC or sum(lengths) > COPY_SIZE - _HEAD.size:
        return None
    texts, at = [], _HEAD.size
    for length in lengths:
        texts.append(copy[at : at + length].decode("latin-1"))
        at += length
    try:
        seed = WrappedSeed(texts[0], texts[1], texts[2], generation)
        return seed if copy_of(seed) == copy else None
    except LuksError:
        return None


def read_wrapped(area: bytes) -> FoundSeed | None:
    """Return what stands in ``area``, :data:`AREA_SIZE` bytes from :data:`AREA_START`; ``None`` where nothing ever did.

    Raises :class:`LuksError` where something stands there that can't be used: both copies are damaged, or both are whole,
    of one generation, and differ, which no power cut makes.
    """
    places = [area[at - COPIES[0] :][:COPY_SIZE] for at in COPIES]
    copies = [_read_copy(place) for place in places]
    whole = [(seed.generation, -number) for number, seed in enumerate(copies) if seed is not None]
    if not whole:
        if not any(place.strip(b"\0") for place in places):
            return None
        raise LuksError("both copies of the wrapped seed are damaged")
    if len(whole) == 2 and whole[0][0] == whole[1][0] and copies[0] != copies[1]:
        raise LuksError("the two copies of the wrapped seed are of one age, and differ")
    number = -max(whole)[1]
    seed = copies[number]
    assert seed is not None
    return FoundSeed(seed, number, copies[0] == copies[1])


def in_order(copy: bytes, counts: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield offsets on the disk and what is written there, one after the other has arrived: the copy that counts is last."""
    for number in (1 - counts, counts):
        yield METADATA_START + COPIES[number], copy
