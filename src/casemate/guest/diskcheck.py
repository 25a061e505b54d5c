"""``hpl-disk-encryption-check``: looks whether root and data volumes still are what they were when they were opened.

Every hour, and when a workload asks: whoever writes a byte to ``/var/hyperprotect/check-disk-encryption``, which
containers may mount with the record. Three checks in five minutes at most; what is asked meanwhile is answered by the
next. The infrastructure has no way to ask. The answer goes to the log backend.

The kernel has the mapped devices and their keys; the headers on the disks matter at the next start only. So the check
asks the kernel: is what is mounted a device of dm-crypt, with the cipher, the size and the place that it was opened
with, on the disk that it was opened on? And it reads each disk's headers, past the kernel's cache, and compares them with
the copy in memory that was judged and used. Anything else stops the machine.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from casemate.guest import state
from casemate.guest.report import Stop, say
from casemate.guest.volumes import HEADERS, Plan, mapping, plans
from casemate.luks.errors import LuksError
from casemate.luks.header import START, luks_area_size, read_header, rebuilt
from casemate.luks.policy import CIPHER, KEY_SIZE

UNFORESEEN = "HPL13010E"
MOST, WINDOW = 3, 300.0
STAMPS = state.RUN / "disk-checks.json"
ROOT_HEADERS = HEADERS / "root.sha256"
ROOT = "casemate-root"
ROOT_PARTS = {"casemate-system": "/", "casemate-state": "/var"}


@dataclass(frozen=True, slots=True)
class Volume:
    """What a mapped device has to be: its name, the disk that it lies on, where, in bytes, and where it is mounted."""

    mapping: str
    disk: str
    start: int
    length: int
    mount: str
    shown: str
    integrity: bool = False


def delay(stamps: list[float], now: float) -> float:
    """Return how many seconds from now the next check may run."""
    recent = sorted(stamp for stamp in stamps if now - WINDOW < stamp <= now)
    return recent[-MOST] + WINDOW - now if len(recent) >= MOST else 0.0


def crypt_problem(tables: Mapping[str, str], volume: Volume, number: str) -> str:
    """Say what is wrong about a mapped device, nothing where all is as it should be.

    ``tables`` are the kernel's tables by name, ``number`` the disk's device number as the kernel has it, ``252:16``.
    Format: Linux ``Documentation/admin-guide/device-mapper/dm-crypt.rst``.
    """
    if volume.integrity:
        return authenticated_problem(tables, volume, number)
    fields = tables.get(volume.mapping, "").split()
    if len(fields) < 8 or fields[2] != "crypt":
        return "is not encrypted"
    if fields[3] != CIPHER or not re.match(rf":{KEY_SIZE}:logon:cryptsetup:", fields[4]) or fields[5] != "0":
        return "is not encrypted as it was"
    if fields[6] != number:
        return "lies on another device"
    if (fields[0], fields[1], fields[7]) != ("0", str(volume.length // 512), str(volume.start // 512)):
        return "lies in another place"
    return ""


def authenticated_problem(tables: Mapping[str, str], volume: Volume, number: str) -> str:
    """The same for an authenticated volume, which has two devices; :func:`check_volume` sees that one lies on the other."""
    from casemate.luks.integrity import lower_table, upper_table

    upper, lower = tables.get(volume.mapping, "").split(), tables.get(f"{volume.mapping}.integrity", "").split()
    key = f"casemate:{volume.mapping.removeprefix('data-')}"
    if len(upper) < 7 or upper != upper_table(upper[6], volume.length, key).split():
        return "is not encrypted and authenticated as it was"
    wanted = lower_table(number, volume.start, volume.length).split()
    if lower[:7] != wanted[:7] or not set(wanted[8:]) <= set(lower[8:]):
        return "lies in another place, or on another device"
    return ""


def root_problem(tables: Mapping[str, str], root: str) -> str:
    """Say what is wrong about the two parts of the root, which lie on its encrypted device, number ``root``."""
    for name in ROOT_PARTS:
        lines = tables.get(name, "").splitlines()
        if len(lines) != 1 or lines[0].split()[2:4] != ["linear", root]:
            return f"{name} is not a part of the encrypted root"
    return ""


def device_number(path: str) -> str:
    """Return the number of the block device at ``path``, ``252:16``; nothing where there is none."""
    if not Path(path).is_block_device():
        return ""
    device = Path(path).stat().st_rdev
    return f"{os.major(device)}:{os.minor(device)}"


def mounted(mountinfo: str, number: Callable[[str], str] = device_number) -> dict[str, str]:
    """Return the device number of what is on top at each mount point, of the text of ``/proc/self/mountinfo``.

    btrfs, which may have several devices, stands there with a number of its own; then it is that of the device that the kernel
    names beside (Linux ``Documentation/filesystems/proc.rst``, 3.5).
    """
    found = {}
    for line in mountinfo.splitlines():
        where, _, what = line.partition(" - ")
        fields, (kind, device) = where.split(" "), [*what.split(" "), "", ""][:2]
        if len(fields) > 4:
            found[fields[4]] = number(device) if kind == "btrfs" else fields[2]
    return found


def split_tables(said: str) -> dict[str, str]:
    """Take apart what ``dmsetup table`` says: a line ``NAME: TABLE`` for each line of a device's table."""
    tables: dict[str, str] = {}
    for line in said.splitlines():
        name, colon, table = line.partition(": ")
        if colon:
            tables[name] = f"{tables[name]}\n{table}" if name in tables else table
    return tables


def direct(path: str, start: int, size: int) -> bytes:
    """Read a disk past the cache, which would show what was there before. Place and size are whole blocks of 4096 bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, size) as buffer:
            done = os.preadv(descriptor, [buffer], start)
            return buffer[:done]
    finally:
        os.close(descriptor)


def slots(headers: bytes) -> int:
    """Return how many key slots headers have."""
    return len(read_header(headers).metadata["keyslots"])


def _number(block: Path) -> str:
    return (block / "dev").read_text().strip()


def devices() -> dict[str, tuple[str, Path]]:
    """Return each mapped device's number and directory in ``/sys/block``, by its name."""
    found = {}
    for block in Path("/sys/block").glob("dm-*"):
        found[(block / "dm/name").read_text().strip()] = (_number(block), block)
    return found


def expected(plan: Plan, kept: bytes) -> Volume:
    """Return what the mapped device of a volume has to be, by its plan and the headers that it was opened with."""
    segment = read_header(kept).metadata["segments"]["0"]
    start = plan.start + int(segment["offset"])
    mount, length = f"/var/volumes/{plan.name}", plan.room if plan.integrity else plan.size - start
    return Volume(mapping(plan.name), plan.disk, start, length, mount, plan.mount, plan.integrity)


def check_volume(volume: Volume, kept: bytes, tables: Mapping[str, str]) -> int:
    """Stop where a data volume is not as it was; return the number of its key slots."""
    name = f"the volume at {volume.shown}"
    if problem := crypt_problem(tables, volume, _number(Path("/sys/block", volume.disk.replace("/", "!")))):
        raise Stop("HPL13010E", f"{name} {problem}")
    found = devices()
    if volume.integrity and tables[volume.mapping].split()[6] != found[f"{volume.mapping}.integrity"][0]:
        raise Stop("HPL13010E", f"{name} lies on another device")
    if mounted(Path("/proc/self/mountinfo").read_text()).get(volume.mount) != found[volume.mapping][0]:
        raise Stop("HPL13010E", f"{name} is not what is mounted there")
    return slots(kept)


def check_headers(disk: str, start: int, kept: bytes, shown: str) -> None:
    """Stop where the headers on a disk are not those in memory."""
    area = direct(f"/dev/{disk}", start, len(kept))
    try:
        same = area == kept or (not start and rebuilt(read_header(area), area) == kept)  # older ones have noise between
    except LuksError:
        same = False
    if not same:
        raise Stop("HPL13010E", f"the LUKS headers of the volume at {shown} were changed on the disk")


def check_root(tables: Mapping[str, str]) -> int:
    """Stop where the root is not as it was at the first check; return the number of its key slots."""
    number, block = devices().get(ROOT, ("", Path()))
    lower = [path.name for path in (block / "slaves").iterdir()] if number else []
    fields = tables.get(ROOT, "").split()
    if len(lower) != 1 or len(fields) < 8:
        raise Stop("HPL13010E", "the root is not encrypted")
    start, length = int(fields[7]) * 512, int(fields[1]) * 512
    volume = Volume(ROOT, lower[0], start, length, "/", "/")
    problem = crypt_problem(tables, volume, _number(Path("/sys/block", lower[0]))) or root_problem(tables, number)
    if problem:
        raise Stop("HPL13010E", f"the root: {problem}")
    points, known = mounted(Path("/proc/self/mountinfo").read_text()), devices()
    for name, point in ROOT_PARTS.items():
        if points.get(point) != known[name][0]:
            raise Stop("HPL13010E", f"the root: something else is mounted at {point}")
    try:
        area = direct(f"/dev/{lower[0]}", 0, luks_area_size(direct(f"/dev/{lower[0]}", 0, START)))
        number_of_slots = slots(area)
    except LuksError:
        raise Stop("HPL13010E", "the LUKS headers of the root were changed on the disk") from None
    digest = hashlib.sha256(area).hexdigest()
    if not ROOT_HEADERS.exists():
        state.write(ROOT_HEADERS, digest)
    if ROOT_HEADERS.read_text() != digest or number_of_slots != 1:
        raise Stop("HPL13010E", "the LUKS headers of the root were changed on the disk")
    return number_of_slots


def check() -> None:
    """Check root and data volumes, say what was found."""
    say("HPL13000I", "Verify LUKS encryption...")
    tables = split_tables(state.call("dmsetup", "table", env={"DM_DISABLE_UDEV": "1"}))
    found = [("/", check_root(tables))]
    for plan in plans():
        kept = (HEADERS / plan.name).read_bytes()
        found.append((plan.mount, check_volume(expected(plan, kept), kept, tables)))
        check_headers(plan.disk, plan.start, kept, plan.mount)
    for shown, number in found:
        plural = "" if number == 1 else "s"
        print(f"<6>Checked for mount point {shown}, LUKS encryption with {number} key slot{plural} found",
              file=sys.stderr, flush=True)  # fmt: skip
    say("HPL13001I", "Root volume and all mounted data volumes are encrypted")


def drain(descriptor: int = 3) -> None:
    """Take what was written to the pipe that systemd holds for this service, so that it is not started again for it."""
    if os.environ.get("LISTEN_FDS") == "1":
        os.set_blocking(descriptor, False)
        try:
            while os.read(descriptor, 65536):
                pass
        except BlockingIOError:
            pass


def service() -> None:
    """Wait until a check may run, and check."""
    stamps = state.read_json(STAMPS) if STAMPS.exists() else []
    time.sleep(delay(stamps, time.monotonic()))
    drain()
    state.write_json(STAMPS, [*stamps, time.monotonic()][-MOST:])
    check()
