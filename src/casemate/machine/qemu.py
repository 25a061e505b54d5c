"""What QEMU is told: one function from a :class:`Guest` to a command line, readable as a description of the machine.

Every device is one that the guest treats as hostile. Files are named in ``-blockdev`` JSON, so no character of a path
has a meaning. Kernel and initrd are descriptors of sealed memory (:mod:`casemate.machine.ultravisor`), never files.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.machine import home

KVM_PATIENCE = 1.0
"""Seconds that KVM has for the firmware and one sector; QEMU's own emulation needs about 0.1."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between the processors: program, machine, the bus of the devices, the console, the acceleration."""

    program: str
    machine: str
    bus: str
    console: tuple[str, ...]
    package: str
    emulated_cpu: str
    power_button: Mapping[str, Any]
    """The monitor's order that the guest takes as a wish to power off."""
    patience: float
    """Seconds that a start may take where nobody says otherwise: several times what it takes, emulated, on two processors."""


ARCHITECTURES = {
    "amd64": Architecture(
        *("qemu-system-x86_64", "pc", "pci", ("-serial", "chardev:console"), "qemu-system-x86"),
        # Not `max`: emulating AVX, and `rep stosb` where ERMS promises it is fast, makes the whole guest half as fast.
        "qemu64,+cx16,+popcnt,+ssse3,+sse4.1,+sse4.2,+aes,+pclmulqdq,+rdrand,+smep,+smap",
        {
            "execute": "send-key",
            "arguments": {"keys": [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]},
        },
        300.0,
    ),
    "s390x": Architecture(
        *("qemu-system-s390x", "s390-ccw-virtio", "ccw"),
        *(("-device", "sclpconsole,chardev=console"), "qemu-system-misc", "max"),
        {"execute": "system_powerdown"},  # the service processor's signal, which Linux takes as Ctrl-Alt-Del
        600.0,
    ),
}


@dataclass(frozen=True, slots=True)
class Disk:
    """A raw file as a disk. ``serial`` is how the guest finds the disks that belong to the image.

    ``passing``: made anew at each start, so nothing on it need outlive the host's power.
    """

    path: Path
    serial: str = ""
    read_only: bool = False
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Guest:
    """All that a virtual machine is: processor, memory, what it starts, disks, forwarded ports, and where it speaks."""

    name: str
    arch: str
    kernel: int
    initrd: int
    cmdline: str
    disks: Sequence[Disk]
    ports: Sequence[tuple[int, int]]
    memory_mib: int
    cpus: int
    console: Path
    record: Path
    control: int
    """A listening socket, for QEMU's monitor."""
    attestation: int
    """A listening socket: who connects may ask the guest for an attestation."""
    ultravisor: int
    """A connected socket, with the software ultravisor at its other end."""
    network: bool = True
    address: str = ""
    """Where in 10.0.2.0/24 forwarded ports lead to; empty: the address that QEMU gives by DHCP."""


def command(guest: Guest, kvm: bool, more: Sequence[str] = ()) -> list[str]:
    """Return the command line. ``more`` is appended: for tests that attach what no operator would."""
    kind = ARCHITECTURES[guest.arch]
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{outside}-{guest.address}:{inside}" for outside, inside in guest.ports)
    words = [
        *(kind.program, "-name", f"casemate-{guest.name}", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", "-no-reboot"),
        *("-machine", f"{kind.machine},dump-guest-core=off", "-accel", "kvm" if kvm else "tcg,thread=multi"),
        *("-cpu", "host" if kvm else kind.emulated_cpu, "-smp", str(guest.cpus), "-m", f"{guest.memory_mib}M"),
        *("-kernel", f"/proc/self/fd/{guest.kernel}", "-initrd", f"/proc/self/fd/{guest.initrd}"),
        *("-append", guest.cmdline),
        *("-chardev", f"file,id=console,path={_value(guest.console)}", *kind.console),
        *("-chardev", f"socket,id=control,fd={guest.control},server=on,wait=off", "-mon", "control,mode=control"),
        *("-device", f"virtio-serial-{kind.bus}", "-chardev", f"file,id=record,path={_value(guest.record)}"),
        *("-device", "virtserialport,chardev=record,name=casemate.record"),
        *("-chardev", f"socket,id=attestation,fd={guest.attestation},server=on,wait=off"),
        *("-device", "virtserialport,chardev=attestation,name=casemate.attestation"),
        *("-chardev", f"socket,id=ultravisor,fd={guest.ultravisor}"),
        *("-device", "virtserialport,chardev=ultravisor,name=casemate.ultravisor"),
        *("-device", f"virtio-rng-{kind.bus}"),
    ]
    if guest.network:
        rom = ",romfile=" if kind.bus == "pci" else ""  # nothing boots from the network
        words += ["-netdev", f"user,id=net{forwards}", "-device", f"virtio-net-{kind.bus},netdev=net{rom}"]
    for number, disk in enumerate(guest.disks):
        file = {"driver": "file", "filename": str(disk.path), "locking": "on", "discard": "unmap"}
        cache: dict[str, object] = {"cache": {"no-flush": True}} if disk.passing else {}
        node = {"driver": "raw", "node-name": f"disk{number}", "read-only": disk.read_only, "discard": "unmap"}
        serial = f",serial={disk.serial}" if disk.serial else ""
        words += ["-blockdev", json.dumps({**node, "file": {**file, **cache}})]
        words += ["-device", f"virtio-blk-{kind.bus},drive=disk{number}{serial}"]
    return [*words, *more]


def _value(path: Path) -> str:
    """A path as a value of QEMU's comma-separated options."""
    return str(path).replace(",", ",,")


def kvm_works() -> bool:
    """Return whether KVM starts a guest at a usable speed; asked once a boot of this machine, and remembered.

    There are machines whose ``/dev/kvm`` opens and then hangs or crawls, so a real guest is tried: firmware, and one
    sector that ends the machine with a known exit code.
    """
    if not Path("/dev/kvm").exists():
        return False
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = home.directory() / "kvm.json"
    try:
        said = json.loads(known.read_text())
        if said["boot"] == boot:
            return bool(said["works"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    works = _try_kvm()
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps({"boot": boot, "works": works}))
    return works


def _try_kvm() -> bool:
    # mov al,0x10; mov dx,0xf4; out dx,al; hlt: the device at port 0xf4 ends QEMU with exit code 2 x 0x10 + 1.
    sector = bytes([0xB0, 0x10, 0xBA, 0xF4, 0x00, 0xEE, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"
    words = ["qemu-system-x86_64", "-accel", "kvm", "-nodefaults", "-display", "none", "-m", "16"]
    words += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-drive"]
    with tempfile.NamedTemporaryFile(prefix="casemate-probe-") as file:
        file.write(sector)
        file.flush()
        words.append(f"file={_value(Path(file.name))},format=raw,snapshot=on")
        began = time.monotonic()
        try:
            done = subprocess.run(words, timeout=KVM_PATIENCE * 4, capture_output=True, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 33 and time.monotonic() - began <= KVM_PATIENCE
