"""Authenticated volumes: where dm-integrity puts data and tags, and the two tables of the kernel that open such a volume.

A volume with ``integrity: hmac-sha256`` has dm-integrity on the disk and dm-crypt over it. dm-crypt encrypts each sector of
4096 bytes and makes a tag: HMAC-SHA256, under a key of its own, over the sector's number and ciphertext. dm-integrity keeps the
tag beside the sector, and both behind a journal, so that a power cut never parts them. It has no key and verifies nothing:
dm-crypt verifies each sector that is read. A sector that was changed, moved or never written can't be read.

    SUPERBLOCK bytes of it, then the journal, then again and again: tags of 128 MiB / 32, and 16 MiB of data

dm-integrity's superblock stands in the clear and is nobody's secret. All that it says is fixed here but for the size of the
device when it was last opened. Size and place of what is mapped are computed from the disk's size, never read. Whoever
rewrites superblock or journal can do what writing to sectors can: dm-crypt notices.

No bitmap instead of the journal: the kernel has that only where dm-integrity makes the tags itself. And without either a
power cut would leave sectors that can't be read.

Source: Linux 6.1 ``drivers/md/dm-integrity.c``, ``Documentation/admin-guide/device-mapper/dm-integrity.rst`` and
``dm-crypt.rst``. The header is as cryptsetup writes it.
"""

from __future__ import annotations

import struct
from typing import Final

from casemate.luks.errors import LuksError
from casemate.luks.policy import SECTOR_SIZE, TAG_SIZE

CIPHER: Final = "capi:authenc(hmac(sha256),xts(aes))-plain64"
"""What dm-crypt calls it."""
SUPERBLOCK: Final = 4096
"""Bytes at the start of the data segment that dm-integrity keeps for its superblock."""

_SECTOR: Final = 512
_PER_BLOCK: Final = SECTOR_SIZE // _SECTOR
_INTERLEAVE: Final = 15
"""Binary logarithm of the sectors of data between two runs of tags."""
_ENTRY: Final = 8 + 8 * _PER_BLOCK + TAG_SIZE
_ENTRIES: Final = (_SECTOR - 8) // _ENTRY * 8
_SECTION: Final = _ENTRIES * _PER_BLOCK + 8
_SECTIONS: Final = 248
"""Of the journal: 32 MiB in all."""
_INITIAL: Final = SUPERBLOCK // _SECTOR + _SECTIONS * _SECTION
"""Sectors before the first tags."""
_RUN: Final = -(-(TAG_SIZE << _INTERLEAVE) // _PER_BLOCK // SECTOR_SIZE) * SECTOR_SIZE // _SECTOR
"""Sectors of tags before each run of data."""
# magic, version, interleave, tag size, sections of the journal, provided sectors, flags, block, bits per bitmap, recalculated
_SUPERBLOCK: Final = struct.Struct("<8s B B H I Q I B B 2x Q")
_FIXED_PADDING: Final = 8


def room(length: int) -> int:
    """Return how many bytes of data a segment of so many bytes has room for: whole sectors, 0 where it is too small."""
    rest = length // _SECTOR - _INITIAL
    runs, left = divmod(max(rest, 0), _RUN + (1 << _INTERLEAVE))
    sectors = (runs << _INTERLEAVE) + max(left - _RUN, 0)
    return sectors // _PER_BLOCK * SECTOR_SIZE


def check_superblock(block: bytes) -> None:
    """Return if a superblock is one that the kernel has written for :func:`lower_table`. Raises :class:`LuksError`."""
    magic, version, interleave, tag, sections, _, flags, blocks, _, recalculated = _SUPERBLOCK.unpack_from(block)
    found = (magic, version, interleave, tag, sections, flags, blocks, recalculated)
    if found != (b"integrt\0", 4, _INTERLEAVE, TAG_SIZE, _SECTIONS, _FIXED_PADDING, _PER_BLOCK.bit_length() - 1, 0):
        raise LuksError("is not one that was written for a volume of this kind", where="integrity superblock")


def lower_table(device: str, start: int, size: int) -> str:
    """Return the table of dm-integrity for ``size`` bytes of data, on a device from byte ``start`` of it on."""
    options = (
        f"journal_sectors:{_SECTIONS * _SECTION}",
        f"interleave_sectors:{1 << _INTERLEAVE}",
        "buffer_sectors:128",
        f"block_size:{SECTOR_SIZE}",
        "fix_padding",
    )
    where = f"{device} {start // _SECTOR} {TAG_SIZE} J"
    return f"0 {size // _SECTOR} integrity {where} {len(options)} {' '.join(options)}"


def upper_table(device: str, size: int, key: str) -> str:
    """Return the table of dm-crypt over it; ``key`` is the description of the volume key in the kernel's keyring (logon)."""
    options = f"2 integrity:{TAG_SIZE}:aead sector_size:{SECTOR_SIZE}"
    return f"0 {size // _SECTOR} crypt {CIPHER} :96:logon:{key} 0 {device} 0 {options}"
