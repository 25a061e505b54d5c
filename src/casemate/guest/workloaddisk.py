"""The tools ``se-lukspassphrase-gen`` and ``se-disk-encryption``, for workloads with disks of their own.

    printf '%s\\n' SEED... | se-lukspassphrase-gen                          prints the passphrase, without a newline
    se-lukspassphrase-gen ... | se-disk-encryption DEVICE PLACE [ext4|xfs|btrfs]

Seeds and passphrases come by standard input: an argument could be read by other programs. The same seeds give the same
passphrase, as for the volumes of a contract. ``se-disk-encryption`` makes a LUKS2 volume on an empty device, opens one
that it has made, grows its file system where the device has become larger, and mounts it. It does with one device what
``hpl-volumes`` and ``hpl-storage`` do with the contract's: headers are judged in memory and given to cryptsetup from there.

Several may run at once, each on a device of its own; a second one on the same device is refused. The volume takes the whole
device; its label tells ``hpl-volumes`` that a workload has made it, so that the next start leaves it alone.

Source: white paper, 4.2.3.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from casemate.contract.passphrase import SEED
from casemate.guest import kernel, storage, volumes
from casemate.guest.filesystems import LEAST, SUPERBLOCKS, filesystem_size, worth_growing
from casemate.guest.report import Stop, run, say
from casemate.luks.header import labelled

LARGEST_INPUT = 65536
PASSPHRASE = re.compile(rb"[!-~]{15,512}")
LABEL = volumes.WORKLOAD_LABEL


def passphrase_of(text: str) -> str:
    """Return the passphrase of seeds, one a line: the lowercase hex SHA-256 of all of them, one after the other."""
    seeds = text.splitlines()
    if not seeds or not all(SEED.fullmatch(seed) for seed in seeds):
        raise Stop(
            "HPL02121E", "give seeds on standard input, one a line, each of 15 characters or more that seeds may have"
        )
    return hashlib.sha256("".join(seeds).encode()).hexdigest()


def read_input() -> bytes:
    """Return what standard input gives, to its end."""
    found = sys.stdin.buffer.read(LARGEST_INPUT + 1)
    if len(found) > LARGEST_INPUT:
        raise Stop("HPL02121E", "standard input has more than seeds or a passphrase")
    return found


def block_device(path: str, sys_class: Path = Path("/sys/class/block")) -> kernel.Disk:
    """Return the device that a path names."""
    real = os.path.realpath(path)
    try:
        mode = Path(real).stat().st_mode
    except OSError as error:
        raise Stop("HPL02122E", f"{path}: {error.strerror}") from None
    if not stat.S_ISBLK(mode) or not real.startswith("/dev/"):
        raise Stop("HPL02121E", f"{path} is no block device")
    name = real.removeprefix("/dev/")
    known = sys_class / Path(real).name
    try:
        size = int((known / "size").read_text()) * 512
        held = any((known / "holders").iterdir()) if (known / "holders").is_dir() else False
    except (OSError, ValueError):
        raise Stop("HPL02122E", f"{path} is not known to the kernel") from None
    if held:
        raise Stop("HPL02123E", f"{path} is in use")
    return kernel.Disk(name, "", size)


@contextmanager
def locked(disk: kernel.Disk) -> Iterator[None]:
    """Hold a device for this program alone: no other of these works on it, no file system is mounted from it."""
    lock = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Stop("HPL02123E", f"another se-disk-encryption works on {disk.path}") from None
        try:
            os.close(os.open(disk.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            raise Stop("HPL02123E", f"{disk.path} is in use: {error.strerror}") from None
        yield
    finally:
        os.close(lock)


def encrypted(disk: kernel.Disk, place: str, filesystem: str, passphrase: bytes) -> None:
    """Make or open the volume on a device, grow it, mount it at an existing directory."""
    if not Path(place).is_dir() or os.path.ismount(place):
        raise Stop("HPL02121E", f"{place} is no directory, or something is mounted there")
    name = re.sub(r"[^A-Za-z0-9_-]", "-", f"own-{disk.name}")
    found = volumes.examine(disk)
    if found.kind.integrity:
        raise Stop("HPL02121E", f"{disk.path} has a volume of a contract, with integrity")
    make = found.headers is None
    if make:
        found = replace(found, start=0)
        if found.length - found.kind.offset < LEAST[filesystem]:
            raise Stop("HPL02121E", f"{disk.path} is too small for {filesystem}")
    headers = labelled(volumes.format_headers(name, found, passphrase), LABEL) if make else found.headers or b""
    if volumes.open_volume(name, found, headers, passphrase) is None:
        raise Stop("HPL02003E", f"{disk.path} does not open with this passphrase")
    device = f"/dev/mapper/{volumes.mapping(name)}"
    room = found.length - found.kind.offset
    plan = volumes.Plan(name, disk.name, disk.size, found.start, found.length, room, filesystem, place, [], make=make)
    if make:
        storage.make(plan)
        try:
            storage.write(disk.path, 0, headers)
        except OSError as error:
            raise Stop("HPL02002E", f"{disk.path}: its headers can't be written: {error.strerror}") from None
    size = filesystem_size(filesystem, volumes.read(device, 0, SUPERBLOCKS))
    if size is None:
        raise Stop("HPL02007E", f"{disk.path} holds no file system of the kind {filesystem}")
    try:
        kernel.mount(device, place, filesystem, kernel.MS_NOSUID | kernel.MS_NODEV)
    except OSError as error:
        raise Stop("HPL02007E", f"{disk.path} can't be mounted as {filesystem}: {error.strerror}") from None
    if worth_growing(size, room):
        storage.grow(plan, place)
    if make:
        say("HPL02001I", f"{disk.path} has been made a volume and encrypted.")
    say("HPL02002I", f"{disk.path} has been mounted at {place}.")


def generate() -> int:
    """``se-lukspassphrase-gen``."""

    def act() -> None:
        sys.stdout.write(passphrase_of(read_input().decode("utf-8", "replace")))

    return run(act, "HPL02120E")


def encrypt() -> int:
    """``se-disk-encryption``."""

    def act() -> None:
        arguments = sys.argv[1:]
        if not 2 <= len(arguments) <= 3 or (arguments[2:] and arguments[2] not in LEAST):
            raise Stop(
                "HPL02121E",
                f"usage: se-disk-encryption DEVICE PLACE [{'|'.join(LEAST)}], the passphrase on standard input",
            )
        passphrase = read_input()
        if not PASSPHRASE.fullmatch(passphrase):
            raise Stop(
                "HPL02121E", "the passphrase on standard input has 15 to 512 printable characters and no newline"
            )
        disk = block_device(arguments[0])
        with locked(disk):
            encrypted(disk, arguments[1], (arguments[2:] or ["ext4"])[0], passphrase)

    return run(act, "HPL02120E")
