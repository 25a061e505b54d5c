"""A start of a machine against a plain Debian machine that boots and starts the same container.

    python bench/bench_start.py          # a line a ratio; the exit code is 1 where a target is missed

Same kernel, cores, memory, processor and acceleration; both pull the same small container from the same registry with
TLS and a login, in turns. From the start of QEMU to ``HPL10001I``, and to the line that the plain machine prints when its
container runs. The plain machine encrypts nothing, checks nothing and logs to nobody.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from casemate.demo import images, parties
from casemate.demo.services import LogServer, Registry
from casemate.image.build import build_image, is_current
from casemate.image.root import RELEASE, cache_key, run
from casemate.machine import home, qemu
from casemate.machine.machines import Data, Machine, Specification, start

ROUNDS, TARGET, BOOTLOADER_TARGET = 3, 1.5, 25.0
PACKAGES = (
    "systemd-sysv",
    "udev",
    "linux-image-cloud-amd64",
    "podman",
    "crun",
    "netavark",
    "iptables",
    "ca-certificates",
)
READY = "PLAIN-MACHINE-READY"
UNIT = """[Unit]
After=network-online.target
Wants=network-online.target
[Service]
Type=oneshot
ExecStart=/usr/bin/podman pull --quiet --authfile /etc/auth.json --cert-dir /etc/registry {image}
ExecStart=/usr/bin/podman run --detach --pull=never {image} sleep 1000000
ExecStart=/bin/echo {ready}
StandardOutput=journal+console
StandardError=journal+console
[Install]
WantedBy=multi-user.target
"""


def plain_tree(cache: Path) -> Path:
    tree = cache / f"plain-{cache_key(RELEASE, PACKAGES)}"
    if not tree.is_dir():
        with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as work:
            new = Path(work) / "root"
            command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=important", f"--include={','.join(PACKAGES)}"]
            run([*command, "--aptopt=Apt::Install-Recommends false", RELEASE, str(new)])
            new.rename(tree)
    return tree


def plain_disk(directory: Path, registry: Registry, image: str) -> tuple[Path, Path, Path]:
    """Return kernel, initrd and disk of a plain machine that starts the container."""
    tree = directory / "plain"
    subprocess.run(["cp", "-a", str(plain_tree(home.directory() / "cache")), str(tree)], check=True)
    (tree / "etc/registry").mkdir()
    (tree / "etc/registry/ca.crt").write_bytes(registry.authority)
    login = base64.b64encode(f"{registry.user}:{registry.password}".encode()).decode()
    (tree / "etc/auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": login}}}))
    (tree / "etc/systemd/system/container.service").write_text(UNIT.format(image=image, ready=READY))
    (tree / "etc/systemd/network/10-all.network").write_text("[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\n")
    (tree / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    policy = {"default": [{"type": "insecureAcceptAnything"}]}
    (tree / "etc/containers").mkdir(exist_ok=True)
    engine = '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n[network]\nnetwork_backend = "netavark"\n'
    (tree / "etc/containers/containers.conf").write_text(engine)  # as in ours
    (tree / "etc/containers/policy.json").write_text(json.dumps(policy))
    for unit in ("systemd-networkd", "systemd-networkd-wait-online", "container"):
        subprocess.run(["chroot", str(tree), "systemctl", "enable", unit], check=True, capture_output=True)
    disk = directory / "plain.img"
    run(["mkfs.ext4", "-q", "-d", str(tree), str(disk), "4G"])
    kernel, initrd = (next((tree / "boot").glob(f"{name}-*")) for name in ("vmlinuz", "initrd.img"))
    kept = directory / "vmlinuz", directory / "initrd.img"
    shutil.copyfile(kernel, kept[0])
    shutil.copyfile(initrd, kept[1])
    shutil.rmtree(tree)
    return *kept, disk


def start_plain(kernel: Path, initrd: Path, disk: Path, directory: Path) -> float:
    """Boot the plain machine; return the seconds until its container runs."""
    kvm = qemu.kvm_works()
    architecture = qemu.ARCHITECTURES["amd64"]
    console = directory / "plain.log"
    console.unlink(missing_ok=True)
    command = [
        *(architecture.program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-snapshot"),
        *("-machine", architecture.machine, "-accel", "kvm" if kvm else "tcg,thread=multi"),
        *("-cpu", "host" if kvm else architecture.emulated_cpu, "-smp", "2", "-m", "1024"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 quiet root=/dev/vda rw"),
        *("-serial", f"file:{console}", "-drive", f"file={disk},format=raw,if=virtio"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"),
    ]
    began = time.monotonic()
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while machine.poll() is None and time.monotonic() - began < 300:
            if console.exists() and READY in console.read_text(errors="replace"):
                return time.monotonic() - began
            if console.exists() and "Failed to start" in console.read_text(errors="replace"):
                break
            time.sleep(0.05)
        raise SystemExit(f"the plain machine did not start:\n{console.read_text(errors='replace')[-2000:]}")
    finally:
        machine.kill()
        machine.wait()


def start_ours(specification: Specification) -> tuple[float, float]:
    """Return the seconds until the services have succeeded, and those of the bootloader alone."""
    began = time.monotonic()
    machine: Machine = start(specification)
    first = last = 0.0
    try:
        while machine.running and time.monotonic() - began < 300:
            console, now = machine.console(), time.monotonic()
            first = first or (now if "# create new root partition" in console else 0.0)
            last = last or (now if "HPL11099I" in console else 0.0)
            if "HPL10001I" in console:
                return now - began, last - first
            time.sleep(0.05)
        raise SystemExit(f"the machine did not start: {machine.reason}\n{machine.last_lines()}")
    finally:
        machine.down(0.0)


def main() -> int:
    """Measure and print; return the exit code."""
    image = home.directory() / "demo-image"
    if not is_current(image):
        build_image(image)
    certificate = (image / "encryption.crt").read_bytes()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Registry.running(directory / "registry") as registry, LogServer.running(directory / "logs") as logs:
            reference = f"{registry.host}/busybox@{registry.push(images.build(images.BUSYBOX), 'busybox')}"
            compose = f"services:\n  app:\n    image: {reference}\n    command: [sleep, '1000000']\n"
            signer = parties.new_key(2048)
            workload = parties.workload_section(compose, registry=registry, seed=parties.new_seed())
            env = parties.env_section(
                logs, registry=registry, seed=parties.new_seed(), signing_key=parties.public_pem(signer)
            )
            contract = parties.contract_of(
                parties.seal(workload, certificate), parties.seal(env, certificate), signing_key=signer
            )
            data = Data(directory / "data.img", 1 << 30)
            ours = Specification("bench-start", image, contract, data=(data,), memory_mib=1024, root_size=4 << 30)
            plain = plain_disk(directory, registry, reference)
            os.sync()  # what was just made is written out before anything is measured
            times: dict[str, list[float]] = {"plain": [], "ours": [], "bootloader": []}
            for _ in range(ROUNDS):
                times["plain"].append(start_plain(*plain, directory))
                whole, bootloader = start_ours(ours)
                times["ours"].append(whole)
                times["bootloader"].append(bootloader)
    medians = {key: statistics.median(values) for key, values in times.items()}
    ratio = medians["ours"] / medians["plain"]
    for key, values in times.items():
        print(f"# {key}: {', '.join(f'{value:.1f}' for value in values)} s")
    print(f"# medians of {ROUNDS}: " + ", ".join(f"{key} {value:.1f} s" for key, value in medians.items()))
    print(f"start/plain_debian: ratio {ratio:.2f} (target ≤ {TARGET})")
    print(f"bootloader: {medians['bootloader']:.1f} s (the original's hardware: {BOOTLOADER_TARGET:.0f} s)")
    return int(ratio > TARGET or medians["bootloader"] > BOOTLOADER_TARGET)


if __name__ == "__main__":
    sys.exit(main())
