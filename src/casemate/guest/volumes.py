"""``hpl-volumes``: finds the data volumes and opens them, while images are pulled. It writes to no disk.

Nothing on a disk is believed. A disk's LUKS headers are read once, into memory, and have to be of the one form that
this platform writes (:mod:`casemate.luks.policy`); cryptsetup is given what was checked, written anew, and never looks
at the disk's own. Where a volume begins is computed, not read from a partition table. Every disk has to be a volume of
this contract or empty: one of another contract stops the machine.

What is slow, the stretching of passphrases, happens here: also for a volume that is yet to be made, and for a
passphrase that rolls. ``hpl-storage`` finds a :class:`Plan` in memory and does all the writing, when every image has
been admitted. The passphrases are gone when this service is done.

A volume with ``integrity`` can't be opened without writing to it: dm-integrity writes what its journal holds. So its key slot
is opened here, and ``hpl-storage`` finds the volume key in memory and opens the volume. Volumes with and without have other
headers and other keys; which kind a disk has to have is the contract's word.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.guest import kernel, state
from casemate.guest.filesystems import LEAST, MIB, SUPERBLOCKS, filesystem_size, worth_growing
from casemate.guest.kernel import ARCHIVE_SERIAL
from casemate.guest.report import Stop, say
from casemate.luks.errors import LuksError
from casemate.luks.header import START, is_luks, luks_area_size, placed, read_header, with_only
from casemate.luks.integrity import room
from casemate.luks.policy import (
    AUTHENTICATED,
    DATA_START,
    DISK_END,
    METADATA_START,
    OLDER,
    OURS,
    Expected,
    admitted,
    format_arguments,
    kdf_arguments,
)

if TYPE_CHECKING:
    from casemate.guest.thirdseed import ThirdSeeds

UNFORESEEN = "HPL02120E"
WORKLOAD_LABEL = "casemate-workload"
"""Label of the headers of a volume that a workload has made itself (:mod:`casemate.guest.workloaddisk`)."""
BOOT_MAP = b"zIPL"
"""How a disk begins from which firmware of IBM Z starts a machine (:mod:`casemate.secureexec.disk`): no data disk. The
infrastructure can give any disk this beginning. It could as well not attach the disk."""
SMALLEST = 256 * MIB
SCRATCH = 16 * MIB
"""As much room as cryptsetup needs behind the headers of an authenticated volume to make them."""
HEADERS = state.RUN / "headers"
PLANS = HEADERS / "plans.json"
PATIENCE, EVERY = 900.0, 60.0
"""Seconds to wait for as many disks as the contract has volumes, and between two messages about it."""

BEING_MADE = b"casemate: this volume is being made\n".ljust(512, b"\0")
"""Stands at the start of the metadata partition from the first write to a new volume until the last: one sector, so
that it is there or not. What a power cut leaves of such a volume counts as empty as long as its headers are not whole."""

SAMPLES = 256
_MAGIC_PLACES = (
    *(MIB, 2 * MIB, 4 * MIB, 8 * MIB, 64 * MIB, 128 * MIB, 256 << 30),
    *(32768 * 4096 * group for group in (3, 5, 7, 9)),
)
"""Besides the first and the last MiB, which hold the marks of partition tables, ext2 to ext4, xfs, btrfs, LVM, RAID, ZFS and
swap: the first partition, second LUKS headers, mirrors of btrfs, and copies of ext4's superblock."""


@dataclass(frozen=True, slots=True)
class Found:
    """A data disk: where its volume begins, and the checked headers; ``None`` where one is to be made.

    ``kind`` is what the headers were admitted as. ``copy`` is the copy on the disk that counts; ``None`` where both are
    as they should be. ``being_made``: a cut came when it was nearly made.
    """

    disk: kernel.Disk
    start: int
    headers: bytes | None
    kind: Expected = OURS
    copy: int | None = None
    being_made: bool = False

    @property
    def length(self) -> int:
        """Bytes from the volume's start to its end."""
        return _length(self.disk.size, self.start)


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``hpl-storage`` has to do with an open volume. Nothing in it is secret.

    ``length``: bytes of the volume, headers included; ``room``: bytes of the file system in it. The mapped device of a
    volume on a disk with partitions reaches to the end of the disk; its file system stops before the second partition
    table.
    ``steps``: files with headers to be written to the disk, in this order, each with the copy that counts before.
    ``wrapped``: of a volume with a third seed whose wrapped form is to be written, the copy on the disk that counts before.
    ``integrity``: it is authenticated; then it is not open yet, and ``grow`` is not known.
    ``make``: there is no file system yet. ``grow``: the file system is smaller than the volume.
    """

    name: str
    disk: str
    size: int
    start: int
    length: int
    room: int
    filesystem: str
    mount: str
    steps: list[tuple[str, int]]
    wrapped: int | None = None
    integrity: bool = False
    make: bool = False
    being_made: bool = False
    grow: bool = False
    rolled: bool = False

    @property
    def path(self) -> str:
        """The disk's node."""
        return f"/dev/{self.disk}"

    @property
    def device(self) -> str:
        """The node of the open volume."""
        return f"/dev/mapper/{mapping(self.name)}"


def mapping(name: str) -> str:
    """Return the name of the mapped device of a volume: none that the root's devices have."""
    return f"data-{name}"


def lower_mapping(name: str) -> str:
    """Return the name of dm-integrity's device under that of an authenticated volume. No other volume's has a dot."""
    return f"data-{name}.integrity"


def plans() -> list[Plan]:
    """Return what this service left for ``hpl-storage``."""
    return [Plan(**each) for each in state.read_json(PLANS)]


def _length(size: int, start: int) -> int:
    return size - start - DISK_END if start else size


def data_disks() -> Iterator[kernel.Disk]:
    """Yield the disks that are neither root, nor archive, nor the contract's volume, nor what firmware started from."""
    from casemate import cidata

    for disk in kernel.disks():
        if any(Path("/sys/block", disk.name, "holders").iterdir()) or disk.serial == ARCHIVE_SERIAL:
            continue
        beginning = read(disk.path, 0, 64 << 10)
        if workloads_own(beginning) or beginning.startswith(BOOT_MAP):
            continue
        if disk.size > DATA_START or (cidata.label(beginning) or "").lower() != "cidata":
            yield disk


def workloads_own(beginning: bytes) -> bool:
    """Whether a disk is one that a workload has made a volume on, by its first bytes: it is left alone.

    The infrastructure can give the headers of any disk this label. It could as well not attach the disk.
    """
    if not is_luks(beginning):
        return False
    try:
        return read_header(beginning).label == WORKLOAD_LABEL
    except LuksError:
        return False


def wait_for_disks(number: int) -> list[kernel.Disk]:
    """Return the data disks; wait a while for as many as there are volumes."""
    end, tell = time.monotonic() + PATIENCE, time.monotonic() + EVERY
    while True:
        found = list(data_disks())
        if len(found) >= number:
            return found
        now, short = time.monotonic(), f"the contract has {number} volumes, and {len(found)} data disks are attached"
        if now > end:
            raise Stop("HPL02122E", short)
        if now > tell:
            say("HPL07019I", f"{short}: waiting for another {(end - now) / 60:.0f} minutes")
            tell += EVERY
        time.sleep(0.2)


def read(path: str, start: int, size: int) -> bytes:
    """Return bytes of a device, fewer where it ends before."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
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
    being_made = read(disk.path, METADATA_START, len(BEING_MADE)) == BEING_MADE
    refused = None
    try:
        found = _volume(disk, being_made)
    except LuksError as error:
        found, refused = None, error
    if found is not None:
        return found
    if being_made:
        return Found(disk, DATA_START, None)
    if refused is not None:
        raise Stop("HPL07016E", f"disk {disk.name} has a LUKS header that is not ours: {refused}")
    for start, size in places(disk.size):
        if read(disk.path, start, size).strip(b"\0"):
            if (number := partitions(disk)) not in (None, 2):
                text = f"disk {disk.name} has a partition table with {number} partitions; the disk of a volume has two"
                raise Stop("HPL07006E", text)
            text = f"disk {disk.name} is not empty and holds no volume; only empty disks are made into volumes"
            raise Stop("HPL02123E", text)
    return Found(disk, DATA_START, None)


def _volume(disk: kernel.Disk, being_made: bool) -> Found | None:
    """Return the volume that begins at one of both places; raise :class:`LuksError` where it is none of ours."""
    kinds: tuple[tuple[int, tuple[Expected, ...]], ...] = (
        (DATA_START, (OURS, AUTHENTICATED)),
        (0, (OURS, OLDER)),
    )
    for start, expected in kinds:
        beginning = read(disk.path, start, START)
        if not is_luks(beginning):
            continue
        area = beginning + read(disk.path, start + START, luks_area_size(beginning) - START)
        refused: LuksError | None = None
        for kind in expected:
            try:
                headers = admitted(area, _length(disk.size, start), kind)
            except LuksError as error:
                refused = refused or error
                continue
            header = read_header(area)
            # Older volumes have noise where no key slot is; in ours, something there is a key slot's that was removed.
            clean = header.intact and (kind is OLDER or area[: len(headers)] == headers)
            return Found(disk, start, headers, kind, None if clean else header.copy, being_made)
        raise refused or LuksError("no kind of volume begins here")
    return None


def partitions(disk: kernel.Disk) -> int | None:
    """Return how many partitions a refused disk says it has (GPT), ``None`` where it says nothing. Only a reason to tell."""
    beginning = read(disk.path, 0, 1024 + 128 * 128)
    if beginning[512:520] != b"EFI PART":
        return None
    return sum(any(beginning[entry : entry + 16]) for entry in range(1024, len(beginning), 128))


def places(size: int) -> list[tuple[int, int]]:
    """Return the places, offset and size, that have to be zeros on a disk that a volume is made on.

    To read all of a large disk would take hours; this takes some MiB, spread over all of it.
    """
    ends = [(0, MIB), (METADATA_START, MIB), (DATA_START, MIB), (size - DISK_END, DISK_END)]
    spread = (size * number // SAMPLES // 4096 * 4096 for number in range(SAMPLES))
    return ends + [(place, 4096) for place in sorted({*spread, *_MAGIC_PLACES}) if place + 4096 <= size]


# ------------------------------------------------------------------------------------------------- headers in memory


def format_headers(name: str, found: Found, passphrase: bytes) -> bytes:
    """Return the headers of a new volume, made in memory."""
    file = HEADERS / f"{name}.new"
    HEADERS.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    kind = found.kind
    command = ("cryptsetup", "luksFormat", *format_arguments(kind.integrity), "--key-file=-")
    try:
        if kind.integrity:  # cryptsetup has dm-integrity write behind the headers: to a file in memory, not to the disk
            state.call("modprobe", "loop")
            with file.open("wb") as scratch:
                scratch.truncate(kind.offset + SCRATCH)
            state.call(*command, str(file), stdin=passphrase, env={"DM_DISABLE_UDEV": "1"})
        else:
            state.call(*command, "--header", str(file), found.disk.path, stdin=passphrase)
        return admitted(read(str(file), 0, kind.offset).ljust(kind.offset, b"\0"), found.length, kind)
    except (OSError, LuksError) as error:
        raise Stop("HPL02002E", f"volume {name} can't be made: {error}") from None
    finally:
        file.unlink(missing_ok=True)


def with_another(name: str, found: Found, headers: bytes, old: bytes, new: Path) -> bytes | None:
    """Return headers with a second key slot, for the passphrase in the file ``new``; ``None`` where ``old`` opens none."""
    file = HEADERS / f"{name}.new"
    state.write(file, headers)
    try:
        state.call(
            *("cryptsetup", "luksAddKey", "--batch-mode", *kdf_arguments(), "--key-file=-", str(file), str(new)),
            stdin=old,
        )
        return admitted(file.read_bytes(), found.length, found.kind)
    except (OSError, LuksError) as error:
        if "ended with 2:" in str(error):
            return None
        raise Stop("HPL02125E", f"volume {name}: the passphrase can't be changed: {error}") from None
    finally:
        file.unlink()


def unlocked(said: str) -> str | None:
    """Return the number of the key slot that cryptsetup says it has opened."""
    match = re.search(r"^Key slot (\d+) unlocked\.$", said, re.M)
    return match[1] if match else None


def _with_headers(
    name: str, headers: bytes, passphrase: bytes, before: Sequence[str], after: Sequence[str] = (), **env: str
) -> str | None:
    """Run cryptsetup on headers in a file in memory, named between these words; ``None`` for a wrong passphrase."""
    file = HEADERS / f"{name}.open"
    state.write(file, headers)
    try:
        return state.call("cryptsetup", *before, str(file), *after, stdin=passphrase, env=env)
    except OSError as error:
        if "ended with 2:" in str(error):  # cryptsetup: no permission (bad passphrase)
            return None
        raise Stop("HPL02003E", f"volume {name} can't be opened: {error}") from None
    finally:
        file.unlink()


def slot_of(name: str, headers: bytes, passphrase: bytes) -> str | None:
    """Return the key slot that a passphrase opens, without opening the volume; ``None``: none."""
    words = ("open", "--test-passphrase", "--verbose", "--type", "luks2", "--batch-mode", "--key-file=-")
    said = _with_headers(name, headers, passphrase, words)
    return None if said is None else unlocked(said)


def open_volume(name: str, found: Found, headers: bytes, passphrase: bytes) -> str | None:
    """Map a volume with checked headers straight onto its disk; return the key slot, ``None`` for a wrong passphrase."""
    said = _with_headers(
        *(name, placed(headers, found.start), passphrase),
        (
            *("open", "--verbose", "--type", "luks2", "--batch-mode", "--key-file=-"),
            *("--perf-no_read_workqueue", "--perf-no_write_workqueue", "--header"),
        ),
        (found.disk.path, mapping(name)),
        DM_DISABLE_UDEV="1",
    )
    if said is None:
        return None
    if (slot := unlocked(said)) is None:
        raise Stop("HPL02003E", f"volume {name}: cryptsetup does not say which key slot it has opened")
    return slot


def unlock(name: str, found: Found, headers: bytes, passphrase: bytes) -> str | None:
    """Open a volume, or the key slot of an authenticated one; return the key slot, ``None`` for a wrong passphrase."""
    if not found.kind.integrity:
        return open_volume(name, found, headers, passphrase)
    slots = list(read_header(headers).metadata["keyslots"])
    slot = slots[0] if len(slots) == 1 else slot_of(name, headers, passphrase)
    if slot is None:
        return None
    key = state.VOLUME_KEYS / name
    state.VOLUME_KEYS.mkdir(mode=0o700, exist_ok=True)
    key.unlink(missing_ok=True)
    words = ("luksDump", "--dump-volume-key", "--batch-mode", "--volume-key-file", str(key), "--key-file=-")
    if _with_headers(name, headers, passphrase, words) is None:
        return None
    return slot


# ------------------------------------------------------------------------------------------------- matching


def open_existing(name: str, found: Found) -> list[tuple[str, int]] | None:
    """Open a volume with its passphrase; return the headers to be written, ``None`` where the passphrase isn't its."""
    headers = found.headers or b""
    slot = unlock(name, found, headers, (state.PASSPHRASES / name).read_bytes())
    if slot is None:
        return None
    steps = [] if found.copy is None else [_keep(f"{name}.mended", headers, found.copy)]
    if len(read_header(headers).metadata["keyslots"]) > 1:  # a cut came when the passphrase was rolled
        headers = with_only(headers, slot)
        steps.append(_keep(f"{name}.one", headers))
    _keep(name, headers)
    return steps


def roll(name: str, found: Found) -> list[tuple[str, int]] | None:
    """Open a volume by an earlier passphrase and replace that; return the headers to be written, ``None``: none opens."""
    headers = found.headers or b""
    slots = read_header(headers).metadata["keyslots"]
    earlier = state.PASSPHRASES / f"{name}.previous"
    for old in earlier.read_bytes().split() if earlier.exists() else ():
        steps = [] if found.copy is None else [_keep(f"{name}.mended", headers, found.copy)]
        one = headers
        if len(slots) > 1:  # a cut came when it was rolled to another passphrase than today's
            if (slot := slot_of(name, headers, old)) is None:
                continue
            one = with_only(headers, slot)
            steps.append(_keep(f"{name}.left", one))
        both = with_another(name, found, one, old, state.PASSPHRASES / name)
        if both is None:
            continue
        new = next(iter(read_header(both).metadata["keyslots"].keys() - read_header(one).metadata["keyslots"].keys()))
        last = with_only(both, new)
        if unlock(name, found, last, (state.PASSPHRASES / name).read_bytes()) != new:
            raise Stop("HPL02125E", f"volume {name} does not open with its new passphrase; it is left as it was")
        _keep(name, last)
        return [*steps, _keep(f"{name}.both", both), _keep(f"{name}.one", last)]
    return None


def _keep(file: str, headers: bytes, counts: int = 0) -> tuple[str, int]:
    """Leave headers for ``hpl-storage``. Under the volume's own name stand those that the disk has in the end."""
    state.write(HEADERS / file, headers)
    return file, counts


def service() -> None:
    """Match volumes and disks, open what is there, prepare what is to be made, forget the passphrases."""
    volumes = state.section("workload").get("volumes", {})
    HEADERS.mkdir(mode=0o700, parents=True, exist_ok=True)
    third = None
    if state.KEY_SERVICES.exists():
        from casemate.guest.thirdseed import ThirdSeeds

        third = ThirdSeeds.load()
    state.write_json(PLANS, [asdict(plan) for plan in prepare(volumes, third)] if volumes else [])
    if third is not None:
        third.finish()
    if volumes:
        for file in list(state.PASSPHRASES.iterdir()):
            file.unlink()
        state.PASSPHRASES.rmdir()


def prepare(volumes: dict[str, dict[str, str]], third: ThirdSeeds | None = None) -> list[Plan]:
    """Open every volume of the contract; return what is to be written, and stop where any disk is not as it should be."""
    found = [examine(disk) for disk in wait_for_disks(len(volumes))]
    made: dict[str, Plan] = {}
    for each in [each for each in found if each.headers is not None]:
        # A passphrase is slow to try. Disks mostly come in the order of the volumes that were made on them.
        names = [
            name
            for name, volume in volumes.items()
            if name not in made and wanted(volume) == each.kind.integrity and _has_passphrase(name, each, third)
        ]
        for rolled, way in ((False, open_existing), (True, roll)):
            for name in names:
                if (steps := way(name, each)) is not None:
                    made[name] = _existing(name, volumes[name], each, steps, rolled)
                    break
            else:
                continue
            break
        else:
            if third is not None and each.start and any(name in third and name not in made for name in volumes):
                third.explain(each.disk.name, wrapped_area(each.disk))
            for name in [name for name in volumes if name not in made and wanted(volumes[name]) != each.kind.integrity]:
                explain_kind(name, each)
            raise Stop("HPL02003E", f"disk {each.disk.name} opens with no volume's seeds: it is another contract's")
    waiting, empty = [name for name in volumes if name not in made], [each for each in found if each.headers is None]
    if len(waiting) > len(empty):
        raise Stop("HPL02122E", f"no empty disk is left for {', '.join(waiting)}")
    for name, each in zip(waiting, empty, strict=False):
        if third is not None and name in third:
            third.make(name)
        made[name] = _new(name, volumes[name], replace(each, kind=AUTHENTICATED) if wanted(volumes[name]) else each)
    return [_with_third(made[name], third) for name in volumes]


def explain_kind(name: str, found: Found) -> None:
    """Stop where a disk has this volume, and of the other kind: made without integrity, or with it."""
    file = state.PASSPHRASES / name
    if file.exists() and slot_of(name, found.headers or b"", file.read_bytes()) is not None:
        there, asked = ("with", "none") if found.kind.integrity else ("without", "it")
        text = f"disk {found.disk.name} has it {there} integrity, and the contract asks for {asked}"
        raise Stop("HPL07020E", f"volume {name}: {text}")


def wanted(volume: dict[str, str]) -> bool:
    """Whether the contract asks for an authenticated volume."""
    return "integrity" in volume


def wrapped_area(disk: kernel.Disk) -> bytes:
    """Return the place of the metadata partition where a wrapped third seed stands."""
    from casemate.luks.wrappedseed import AREA_SIZE, AREA_START

    return read(disk.path, AREA_START, AREA_SIZE)


def _has_passphrase(name: str, found: Found, third: ThirdSeeds | None) -> bool:
    """Whether a volume can be on this disk: one with a third seed only where the disk has that, wrapped for it."""
    if third is None or name not in third:
        return True
    return bool(found.start) and third.unwrap(name, wrapped_area(found.disk))


def _with_third(plan: Plan, third: ThirdSeeds | None) -> Plan:
    """Add to a plan what is to be written of a third seed."""
    if third is None or plan.name not in third:
        return plan
    say("HPL07004I", f"Volume {plan.name} has a third seed, wrapped by the key service that the contract names.")
    done = third.done[plan.name]
    if done.copy is None:
        return plan
    state.write(HEADERS / f"{plan.name}.wrapped", done.copy)
    return replace(plan, wrapped=done.counts)


def _plan(name: str, volume: dict[str, str], found: Found, steps: list[tuple[str, int]], **more: bool) -> Plan:
    filesystem, mount = volume.get("filesystem", "ext4"), volume.get("mount", "/mnt/data")
    space = found.length - found.kind.offset
    return Plan(
        name, found.disk.name, found.disk.size, found.start, found.length,
        room(space) if found.kind.integrity else space,
        filesystem, mount, steps,
        integrity=found.kind.integrity, being_made=found.being_made, **more,
    )  # fmt: skip


def _existing(name: str, volume: dict[str, str], found: Found, steps: list[tuple[str, int]], rolled: bool) -> Plan:
    say("HPL07005I", f"Volume {name} has been opened on {found.disk.name}.")
    plan = _plan(name, volume, found, steps, rolled=rolled)
    if plan.integrity:
        return plan
    size = filesystem_size(plan.filesystem, read(plan.device, 0, SUPERBLOCKS))
    if size is None:
        raise Stop("HPL02007E", f"volume {name} holds no file system of the kind {plan.filesystem}")
    return replace(plan, grow=worth_growing(size, plan.room))


def _new(name: str, volume: dict[str, str], found: Found) -> Plan:
    plan = _plan(name, volume, found, [(name, 0)], make=True)
    if plan.room < LEAST[plan.filesystem]:
        least = (LEAST[plan.filesystem] + found.disk.size - plan.room) // MIB
        raise Stop("HPL02121E", f"disk {found.disk.name} is too small for {plan.filesystem}: {least} MiB at least")
    passphrase = (state.PASSPHRASES / name).read_bytes()
    headers = format_headers(name, found, passphrase)
    if unlock(name, found, headers, passphrase) is None:
        raise Stop("HPL02003E", f"volume {name} can't be opened right after it was made")
    _keep(name, headers)
    return plan
