"""``hpl-storage``: opens the data volumes, makes them at first use, mounts them; then forgets the passphrases.

Nothing on a disk is believed. A disk's LUKS headers are read once, into memory, and have to be of the one form that
this platform writes (:mod:`casemate.luks.policy`); cryptsetup is given what was checked, written anew, and never looks
at the disk's own. Where a volume begins is computed, not read from a partition table. Only an empty disk is ever
written to, and only when every other disk has been opened: a disk of another contract stops the machine, untouched.

A new volume is made in an order that leaves it either empty or whole: file system first, headers next, partition
table last (``docs/formats/luks.md``). Each is mounted at ``/var/volumes/<name>``; ``hpl-container`` shows it to
containers under the mount point that the contract names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from casemate.guest import kernel, state
from casemate.guest.kernel import ARCHIVE_SERIAL
from casemate.guest.report import Stop, run, say
from casemate.luks.errors import LuksError
from casemate.luks.header import START, is_luks, luks_area_size, placed
from casemate.luks.policy import (
    DATA_START,
    DISK_END,
    METADATA_SIZE,
    METADATA_START,
    OLDER,
    OURS,
    SECTOR_SIZE,
    Expected,
    admitted,
    format_arguments,
)

MIB = 1 << 20
SMALLEST = 256 * MIB
HEADERS = state.RUN / "headers"
VOLUMES = Path("/var/volumes")
PATIENCE = 20.0
"""Seconds to wait for as many disks as the contract has volumes."""

MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """A data disk: where its volume begins, and the checked headers; ``None`` where the disk is empty."""

    disk: kernel.Disk
    start: int
    headers: bytes | None

    @property
    def length(self) -> int:
        """Bytes from the volume's start to its end."""
        return _length(self.disk.size, self.start)


def _length(size: int, start: int) -> int:
    return (size - start - DISK_END) // SECTOR_SIZE * SECTOR_SIZE if start else size


def data_disks() -> Iterator[kernel.Disk]:
    """Yield the disks that are neither root, nor archive, nor the contract's volume."""
    from casemate import cidata

    for disk in kernel.disks():
        if any(Path("/sys/block", disk.name, "holders").iterdir()) or disk.serial == ARCHIVE_SERIAL:
            continue
        if disk.size > DATA_START or (cidata.label(_read(disk, 0, 64 << 10)) or "").lower() != "cidata":
            yield disk


def wait_for_disks(number: int) -> list[kernel.Disk]:
    """Return the data disks; wait a while for as many as there are volumes."""
    end = time.monotonic() + PATIENCE
    while True:
        found = list(data_disks())
        if len(found) >= number:
            return found
        if time.monotonic() > end:
            raise Stop("HPL02122E", f"the contract has {number} volumes, and {len(found)} data disks are attached")
        time.sleep(0.2)


def _read(disk: kernel.Disk, start: int, size: int) -> bytes:
    with open(disk.path, "rb", buffering=0) as file:  # noqa: PTH123
        file.seek(start)
        parts = []
        while size > 0 and (part := file.read(min(size, MIB))):
            parts.append(part)
            size -= len(part)
    return b"".join(parts)


def examine(disk: kernel.Disk) -> Found:
    """Say what a disk holds: a volume, an older volume without partitions, or nothing. Anything else stops."""
    if disk.size < SMALLEST:
        raise Stop(
            "HPL02121E", f"disk {disk.name} has {disk.size // MIB} MiB; a data disk has {SMALLEST // MIB} at least"
        )
    places: tuple[tuple[int, tuple[Expected, ...]], ...] = ((DATA_START, (OURS,)), (0, (OURS, OLDER)))
    for start, kinds in places:
        beginning = _read(disk, start, START)
        if not is_luks(beginning):
            continue
        refused: LuksError | None = None
        try:
            area = beginning + _read(disk, start + START, luks_area_size(beginning) - START)
        except LuksError as error:
            refused, kinds = error, ()
        for expected in kinds:
            try:
                return Found(disk, start, admitted(area, _length(disk.size, start), expected))
            except LuksError as error:
                refused = refused or error
        raise Stop("HPL07016E", f"disk {disk.name} has a LUKS header that is not ours: {refused}")
    for start, size in ((0, MIB), (DATA_START, MIB), (disk.size - DISK_END, DISK_END)):
        if _read(disk, start, size).strip(b"\0"):
            text = f"disk {disk.name} is not empty and holds no volume; only empty disks are made into volumes"
            raise Stop("HPL02123E", text)
    return Found(disk, DATA_START, None)


def open_volume(name: str, found: Found, headers: bytes, passphrase: bytes) -> bool:
    """Map a volume with checked headers straight onto its disk; return whether the passphrase is its."""
    file = HEADERS / name
    state.write(file, placed(headers, found.start, found.length))
    try:
        state.call(
            *("cryptsetup", "open", "--type", "luks2", "--batch-mode", "--key-file=-", "--header", str(file)),
            *("--perf-no_read_workqueue", "--perf-no_write_workqueue", found.disk.path, f"casemate-{name}"),
            stdin=passphrase,
            env={"DM_DISABLE_UDEV": "1"},
        )
    except OSError as error:
        if "ended with 2:" in str(error):  # cryptsetup: no permission (bad passphrase)
            return False
        raise Stop("HPL02003E", f"volume {name} can't be opened: {error}") from None
    return True


def make_volume(name: str, found: Found, filesystem: str, passphrase: bytes) -> None:
    """Make a volume on an empty disk, so that a cut at any moment leaves it empty or whole."""
    file = HEADERS / name
    HEADERS.mkdir(mode=0o700, exist_ok=True)
    file.unlink(missing_ok=True)
    try:
        state.call(
            *("cryptsetup", "luksFormat", *format_arguments(), "--key-file=-", "--header", str(file), found.disk.path),
            stdin=passphrase,
        )
        headers = admitted(file.read_bytes().ljust(OURS.offset, b"\0"), found.length, OURS)
    except (OSError, LuksError) as error:
        raise Stop("HPL02002E", f"volume {name} can't be made: {error}") from None
    if not open_volume(name, found, headers, passphrase):
        raise Stop("HPL02003E", f"volume {name} can't be opened right after it was made")
    try:
        state.call(*MAKE[filesystem], f"/dev/mapper/casemate-{name}")
    except OSError as error:
        raise Stop("HPL02005E", f"volume {name}: {error}") from None
    table = f"label: gpt\nstart={METADATA_START // 512}, size={METADATA_SIZE // 512}, type=linux\n"
    table += f"start={DATA_START // 512}, size={found.length // 512}, type=linux\n"
    try:
        _write(f"/dev/mapper/casemate-{name}", b"")
        _write(found.disk.path, headers, found.start)
        state.call(
            *("sfdisk", "--quiet", "--force", "--no-reread", "--no-tell-kernel", "--wipe", "never", found.disk.path),
            stdin=table.encode(),
        )
        _write(found.disk.path, b"")
    except OSError as error:
        raise Stop("HPL07003E", f"volume {name}: {error}") from None
    say("HPL02001I", f"Volume {name} has been made and encrypted on {found.disk.name}.")


def _write(device: str, content: bytes, offset: int = 0) -> None:
    """Write to a place of a device, and wait until all that was written to it is there."""
    descriptor = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        while content:
            written = os.pwrite(descriptor, content, offset)
            content, offset = content[written:], offset + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mount(name: str, filesystem: str) -> None:
    """Mount an open volume."""
    target = VOLUMES / name
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    if filesystem != "ext4":
        with suppress(OSError):
            state.call("modprobe", filesystem)
    try:
        kernel.mount(f"/dev/mapper/casemate-{name}", str(target), filesystem, kernel.MS_NOSUID | kernel.MS_NODEV)
    except OSError as error:
        raise Stop("HPL02007E", f"volume {name} can't be mounted as {filesystem}: {error.strerror}") from None


def service() -> None:
    """Match volumes and disks, open, make, mount, forget."""
    volumes = state.section("workload").get("volumes", {})
    if not volumes:
        state.write(HEADERS / ".none", b"")
        return
    passphrases = {name: (state.PASSPHRASES / name).read_bytes() for name in volumes}
    found = [examine(disk) for disk in wait_for_disks(len(volumes))]
    waiting = dict.fromkeys(volumes)
    for each in [each for each in found if each.headers is not None]:
        for name in list(waiting):
            if open_volume(name, each, each.headers or b"", passphrases[name]):
                del waiting[name]
                say("HPL07005I", f"Volume {name} has been opened on {each.disk.name}.")
                break
        else:
            raise Stop("HPL02003E", f"disk {each.disk.name} opens with no volume's seeds: it is another contract's")
    empty = [each for each in found if each.headers is None]
    if len(waiting) > len(empty):
        raise Stop("HPL02122E", f"no empty disk is left for {', '.join(waiting)}")
    for name, each in zip(list(waiting), empty, strict=False):
        make_volume(name, each, volumes[name].get("filesystem", "ext4"), passphrases[name])
    for name, volume in volumes.items():
        mount(name, volume.get("filesystem", "ext4"))
        say("HPL02002I", f"Volume {name} has been mounted at {volume.get('mount', '/mnt/data')}.")
    for name in volumes:
        (state.PASSPHRASES / name).unlink()
    state.PASSPHRASES.rmdir()
    say("HPL07003I", f"Mounting volumes done: {', '.join(volumes)}.")


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL02120E"))
