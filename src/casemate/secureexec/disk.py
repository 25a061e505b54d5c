"""The boot map of a disk that starts a Secure Execution image: what ``zipl`` writes for SCSI and virtio disks.

    write(image_file, disk_file, size_of_the_image)         # boot_map(size) + image[0x10000:]

Firmware reads block 0, follows three pointers, and copies blocks into memory. A block has 512 bytes; a pointer is block number
u64, size of a block u16, number of blocks less one u16, four reserved bytes; numbers are big-endian.

    block 0   ``zIPL``, version u32, 8 reserved, pointer to the program table
    block 1   ``zIPL``, 12 reserved, pointer to the components of the first program
    block 2   ``zIPL``, type u8 (0: IPL), 27 reserved; then components of 32 bytes: a pointer, 7 reserved, type u8, value u64
              type 2, load: the pointer leads to a list of pointers, the value is where their blocks go
              type 1, execute: the value is the short PSW
    block 3   the list
    block 4…  the image from 0x10000 on, as it stands in memory

The image's first 64 KiB are not loaded: firmware needs that memory, and the image has only its PSW there, which stands in
block 2 too. There are no partitions: the disk is for starting, and nothing else. It holds nothing that the image does not;
it needs no protection that the image does not need.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from casemate.secureexec.errors import ImageError
from casemate.secureexec.image import CHUNK, DISABLED_WAIT, STAGE3A, STAGE3A_ENTRY, read_clear

BLOCK = 512
DATA = 4 * BLOCK
_POINTER = struct.Struct(">QHH4x")
_MOST = 1 << 16
_POINTERS = BLOCK // _POINTER.size - 1  # the last of a list stays empty: firmware takes what follows for a next list
LARGEST = STAGE3A + _POINTERS * _MOST * BLOCK
"""Bytes of an image: 992 MiB, all of which firmware could load below its own code."""


def boot_map(size: int) -> bytes:
    """Return the first four blocks of a disk for an image of this size. Raises :class:`ImageError` where it can't be."""
    if not STAGE3A < size <= LARGEST:
        raise ImageError(f"an image of {size} bytes can't be started from a disk, at most {LARGEST} can")
    blocks = -(-(size - STAGE3A) // BLOCK)
    runs = [(4 + first, min(_MOST, blocks - first)) for first in range(0, blocks, _MOST)]
    psw = 0x00080000 << 32 | 0x80000000 | STAGE3A_ENTRY
    parts = (
        b"zIPL" + struct.pack(">I8x", 1) + _pointer(1),
        b"zIPL" + bytes(12) + _pointer(2),
        (b"zIPL" + bytes(28)) + _component(_pointer(3), 2, STAGE3A) + _component(_pointer(0), 1, psw),
        b"".join(_pointer(first, count) for first, count in runs),
    )
    return b"".join(part.ljust(BLOCK, b"\0") for part in parts)


def write(image: BinaryIO, out: BinaryIO, size: int) -> int:
    """Write the disk of an image of ``size`` bytes, a file that can seek; return how many bytes were written.

    Raises :class:`ImageError`: too large, none, or one without loaders, which no machine could start.
    """
    start = boot_map(size)
    if read_clear(image).data.startswith(DISABLED_WAIT, STAGE3A_ENTRY):
        raise ImageError("the image has no loaders: it is for the software ultravisor, which needs no disk for it")
    image.seek(STAGE3A)
    out.write(start)
    left = size - STAGE3A
    while left and (part := image.read(min(CHUNK, left))):
        out.write(part)
        left -= len(part)
    if left or image.read(1):
        raise ImageError("the image changed while it was read")
    filling = bytes(-(size - STAGE3A) % BLOCK)
    out.write(filling)
    return len(start) + size - STAGE3A + len(filling)


def _pointer(block: int, count: int = 1) -> bytes:
    return _POINTER.pack(block, BLOCK, count - 1)


def _component(pointer: bytes, kind: int, value: int) -> bytes:
    return pointer + struct.pack(">7xBQ", kind, value)
