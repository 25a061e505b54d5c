"""A bare machine with the guest's kernel and root, in which a script runs as root: no contract, no services, 20 seconds.

    said = run_in_lab(script, [Path("a.img"), Path("b.img")], directory)       # disks: /dev/vdb, /dev/vdc, …

For what needs a device mapper, which machines that run tests often lack. The script sees the guest's modules, its
tools and its kernel's drivers; what it prints comes back.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from casemate.image import initrd
from casemate.image.root import build_root
from casemate.machine import home, qemu

PATIENCE = 420
DRIVERS = ("dm-log-writes.ko", "dm-bufio.ko", "dm-snapshot.ko")
"""What the lab needs and no guest has loaded, each after what it depends on."""
INIT = """#!/usr/bin/python3 -IB
import os, subprocess, sys
from casemate.guest import kernel
kernel.finish(kernel.load_drivers(), "modprobe")
for name in sorted(os.listdir("/lab/drivers")):
    subprocess.run(["insmod", f"/lab/drivers/{name}"], executable="/usr/bin/kmod", check=True)
kernel.mount("/dev/vda", "/sysroot", "squashfs", kernel.MS_RDONLY)
for name in ("dev", "proc", "sys", "run"):
    kernel.mount(f"/{name}", f"/sysroot/{name}", "", kernel.MS_MOVE)
for name in ("tmp", "var"):
    kernel.mount(name, f"/sysroot/{name}", "tmpfs", 0, "size=512m")
script = open("/lab/script.py").read()
os.chroot("/sysroot")
os.chdir("/")
open("/run/script.py", "w").write(script)
os.environ |= {"PATH": "/usr/sbin:/usr/bin", "DM_DISABLE_UDEV": "1"}
os.makedirs("/run/casemate", 0o700)
print("LAB BEGINS", flush=True)
os.system("/usr/bin/python3 -IB /run/script.py 2>&1")
print("LAB ENDS", flush=True)
kernel.power_off()
"""


def script_of(*names: str) -> str:
    """Return a script made of files that lie here, one after the other."""
    return "\n\n".join((Path(__file__).parent / name).read_text() for name in names)


def run_in_lab(script: str, disks: Sequence[Path], directory: Path, memory_mib: int = 1024) -> str:
    """Boot, run the script, return what it printed. The disks are raw files that exist."""
    cache = home.directory() / "cache"
    root = build_root("amd64", cache)
    cpio = initrd.Cpio()
    cpio.file("lab/init", INIT.encode(), 0o755)
    cpio.file("lab/script.py", script.encode())
    drivers = root.tree / "usr/lib/modules" / root.release / "kernel/drivers/md"
    for number, name in enumerate(DRIVERS):
        cpio.file(f"lab/drivers/{number}-{name}", (drivers / name).read_bytes())
    image = directory / "lab.initrd"
    image.write_bytes(initrd.base(root, "amd64", cache) + cpio.finish())
    kind, kvm = qemu.ARCHITECTURES["amd64"], qemu.kvm_works()
    command = [
        *(kind.program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", kind.machine, "-accel", "kvm" if kvm else "tcg,thread=multi"),
        *("-cpu", "host" if kvm else kind.emulated_cpu, "-smp", "2", "-m", str(memory_mib)),
        *("-kernel", str(root.kernel), "-initrd", str(image), "-serial", "stdio", "-device", "virtio-rng-pci"),
        *("-append", "console=ttyS0 quiet loglevel=3 panic=-1 rdinit=/lab/init"),
    ]
    for number, path in enumerate([root.archive, *disks]):
        file = {"driver": "file", "filename": str(path)}
        node = {"driver": "raw", "node-name": f"disk{number}", "read-only": number == 0, "file": file}
        command += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive=disk{number}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    said = done.stdout.decode(errors="replace").replace("\r\n", "\n")
    _, begun, rest = said.partition("LAB BEGINS\n")
    text, ended, _ = rest.partition("LAB ENDS\n")
    assert begun and ended, said[-3000:] + done.stderr.decode()
    return text
