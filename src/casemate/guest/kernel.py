"""The system calls that the bootloader needs and Python's standard library lacks, and the disks that the kernel sees.

Everything under ``/sys/block`` is chosen by the infrastructure: sizes and serial numbers are hints, never proofs.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_MOVE = 1, 2, 4, 8, 4096, 8192
ARCHIVE_SERIAL, ROOT_SERIAL = "casemate-archive", "casemate-root"
"""Serial numbers by which a machine names the disks that belong to the image."""
DRIVERS = Path("/casemate/drivers")
"""The names of the drivers that the initrd has."""
CLOCKS = Path("/sys/devices/system/clocksource/clocksource0")

_POWER_OFF = 0x4321FEDC
_MAGIC1, _MAGIC2 = 0xFEE1DEAD, 672274793

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """``mount(2)``; raises :class:`OSError`."""
    arguments = [text.encode() if text else None for text in (source, target, kind)]
    if _libc.mount(*arguments, flags, options.encode() or None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {target}: {os.strerror(code)}")


def power_off() -> None:
    """Write out what is pending and switch the machine off. Does not return where it is allowed."""
    os.sync()
    _libc.reboot(_POWER_OFF)


def start(*command: str) -> subprocess.Popen[bytes]:
    """Start a program of the initrd."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DM_DISABLE_UDEV": "1"},
    )


def finish(program: subprocess.Popen[bytes], name: str, stdin: bytes = b"", timeout: float = 120) -> None:
    """Wait for a program. Raises :class:`OSError` with what it said last (none of them prints what it reads)."""
    said, _ = program.communicate(stdin, timeout)
    if program.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
        raise OSError(f"{name} ended with {program.returncode}: {last[0]}")


def run(*command: str, stdin: bytes = b"", timeout: float = 120) -> None:
    """Run a program of the initrd; its secrets come by standard input, never by argument; see :func:`finish`."""
    finish(start(*command), command[0], stdin, timeout)


def load_drivers(*, network: bool = True) -> subprocess.Popen[bytes]:
    """Mount the kernel's own file systems, and start to load the drivers of the initrd; see :func:`finish`."""
    quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys")):
        mount(kind, target, kind, quiet)
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755")
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=20%")
    names = DRIVERS.read_text().split()
    return start("modprobe", "-a", *(name for name in names if network or name != "virtio_net"))


def mend_clock(log: Path = Path("/dev/kmsg"), clocks: Path = CLOCKS) -> None:
    """Have the kernel ask a device for the time where it may be wrong about how fast its processor counts.

    It counts for a hundredth of a second, by two timers. An emulated processor that has to wait for a busy host at that moment
    seems to count slowly by the first; the kernel says so, believes that one, and all time limits pass several times too fast.
    """
    descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # the last record was read
            while record := os.read(descriptor, 8192):
                if b"tsc: PIT calibration deviates" in record:
                    there = (clocks / "available_clocksource").read_text().split()
                    others = [name for name in ("hpet", "acpi_pm") if name in there]
                    (clocks / "current_clocksource").write_text(others[0] if others else there[0])
                    return
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device as the kernel shows it: ``name`` (``vda``), ``serial`` as the host chose it, ``size`` in bytes."""

    name: str
    serial: str
    size: int

    @property
    def path(self) -> str:
        """The device node."""
        return f"/dev/{self.name}"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def disks(sys_block: Path = Path("/sys/block")) -> Iterator[Disk]:
    """Yield the disks that are there now: no loop, RAM or mapped devices; an ISO drive (``sr0``) counts."""
    for entry in sorted(sys_block.iterdir()):
        if entry.name.startswith(("loop", "ram", "dm-", "zram", "md")):
            continue
        size = _read(entry / "size")
        if size.isdigit() and int(size) > 0:
            yield Disk(entry.name, _read(entry / "serial"), int(size) * 512)


def wait_for_disk(serial: str, seconds: float) -> Disk | None:
    """Return the disk with this serial number, waiting for it up to ``seconds``; ``None`` where none comes."""
    end = time.monotonic() + seconds
    while True:
        for disk in disks():
            if disk.serial == serial:
                return disk
        if time.monotonic() > end:
            return None
        time.sleep(0.05)


def memory_mib() -> int:
    """Return the memory that the kernel has, in MiB (the infrastructure decides it)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return 0
