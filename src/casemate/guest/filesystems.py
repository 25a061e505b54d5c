"""The file systems of data volumes: how they are made, known again, and grown. No input or output here.

A file system is read through the encryption. That hides it from the infrastructure, and doesn't keep it from changing
blocks; so what a superblock says decides whether a size is looked at, and nothing else.
"""

from __future__ import annotations

import struct
from typing import Final

MIB: Final = 1 << 20
SUPERBLOCKS: Final = (64 << 10) + 4096
"""As many first bytes of a volume as :func:`filesystem_size` needs."""
SUPERBLOCK_PLACES: Final = {"ext4": 0, "xfs": 0, "btrfs": 64 << 10}
"""Where the block of 4096 bytes is that says it."""

_GROUP: Final = 32768 * 4096
"""Bytes of a block group of ext4."""

LEAST: Final = {"ext4": 16 * MIB, "xfs": 300 * MIB, "btrfs": 128 * MIB}
"""Bytes that a volume needs for each."""
MARGIN: Final = 16 * MIB
"""Room at the end of a volume that is not worth to grow into: file systems leave some when they are made."""


def filesystem_size(filesystem: str, start: bytes) -> int | None:
    """Return how many bytes a file system of this kind takes, by the first bytes of the volume; ``None``: it is none.

    Sources: Linux ``fs/ext4/ext4.h``, ``fs/xfs/libxfs/xfs_format.h``, ``fs/btrfs/…/btrfs_tree.h``.
    """
    if len(start) < SUPERBLOCKS:
        return None
    if filesystem == "ext4":
        low, order, magic = (struct.unpack_from(form, start, 1024 + at)[0] for form, at in _EXT4)
        high = struct.unpack_from("<I", start, 1024 + 0x150)[0] if start[1024 + 0x60] & 0x80 else 0  # 64bit
        return (high << 32 | low) << (10 + order) if magic == 0xEF53 and order <= 6 else None
    if filesystem == "xfs":
        magic, block, blocks = struct.unpack_from(">4sIQ", start, 0)
        return int(block * blocks) if magic == b"XFSB" else None
    if start[(64 << 10) + 0x40 :][:8] == b"_BHRfS_M":
        return int(struct.unpack_from("<Q", start, (64 << 10) + 0x70)[0])
    return None


_EXT4: Final = (("<I", 4), ("<I", 24), ("<H", 56))


def generation(block: bytes) -> int | None:
    """Return the generation of a btrfs by the block with its superblock; ``None``: there is none.

    Source: Linux ``include/uapi/linux/btrfs_tree.h``, ``struct btrfs_super_block``.
    """
    return int(struct.unpack_from("<Q", block, 0x48)[0]) if block[0x40:0x48] == b"_BHRfS_M" else None


def worth_growing(filesystem_bytes: int, volume_bytes: int) -> bool:
    """Whether a volume has become larger than the file system in it."""
    return volume_bytes - filesystem_bytes > MARGIN


def read_when_made(filesystem: str, size: int) -> list[tuple[int, int]]:
    """Return what is read of a device when a file system is made on it: places of zeros, offset and size in whole blocks.

    Programs look at both ends for other file systems; and the kernel reads a block that is written in part, as the copies of
    ext4's superblock are, in block group 1 and those that are powers of 3, 5 and 7.
    """
    places = [(0, MIB), (size - MIB, MIB)]
    if filesystem == "ext4":
        groups = {base**power for base in (3, 5, 7) for power in range(64) if base**power * _GROUP + MIB < size}
        places += [(group * _GROUP, 4096) for group in sorted(groups)]
    return places


def make_command(filesystem: str, device: str, size: int, written: bool = False) -> tuple[str, ...]:
    """Return the command that makes a file system of so many bytes, a multiple of 4096, at the start of a device.

    ``written``: the device can only be read where it was written. So all of ext4's journal is; and ext4 has no checksums of its
    own, for which the kernel would read new bitmaps when it grows (each sector is authenticated anyway). btrfs gets checksums
    that nobody can make another block for.
    """
    features = ("-O", "^metadata_csum,uninit_bg") if written else ()
    ext4 = ("-m", "0", "-E", f"lazy_itable_init=1,lazy_journal_init={int(not written)},nodiscard", *features)
    return {
        "ext4": ("mkfs.ext4", "-q", "-F", *ext4, device, f"{size // 1024}k"),
        "xfs": ("mkfs.xfs", "-q", "-f", "-K", "-d", f"size={size}", device),
        "btrfs": ("mkfs.btrfs", "-q", "-f", "-K", "--csum", "sha256", "-b", str(size), device),
    }[filesystem]


def grow_command(filesystem: str, device: str, target: str, size: int | None) -> tuple[str, ...]:
    """Return the command that grows a mounted file system to so many bytes; ``None``: to the end of its device."""
    if size is None:
        return {
            "ext4": ("resize2fs", device),
            "xfs": ("xfs_growfs", "-d", target),
            "btrfs": ("btrfs", "filesystem", "resize", "max", target),
        }[filesystem]
    return {
        "ext4": ("resize2fs", device, f"{size // 1024}K"),
        "xfs": ("xfs_growfs", "-D", str(size // 4096), target),  # in blocks, as make_command makes them
        "btrfs": ("btrfs", "filesystem", "resize", str(size), target),
    }[filesystem]
