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


def worth_growing(filesystem_bytes: int, volume_bytes: int) -> bool:
    """Whether a volume has become larger than the file system in it."""
    return volume_bytes - filesystem_bytes > MARGIN


def make_command(filesystem: str, device: str, size: int) -> tuple[str, ...]:
    """Return the command that makes a file system of so many bytes, a multiple of 4096, at the start of a device."""
    ext4 = ("-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard")
    return {
        "ext4": ("mkfs.ext4", "-q", "-F", *ext4, device, f"{size // 1024}k"),
        "xfs": ("mkfs.xfs", "-q", "-f", "-K", "-d", f"size={size}", device),
        "btrfs": ("mkfs.btrfs", "-q", "-f", "-K", "-b", str(size), device),
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
