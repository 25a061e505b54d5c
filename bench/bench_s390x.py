"""Machines for IBM Z under emulation: an image's time and size, a start stage by stage, beside amd64 in the same run.

    python bench/bench_s390x.py          # a line a stage; the exit code is 1 where a target is missed
    python bench/bench_s390x.py --whole  # the root for s390x is made from nothing too, which takes minutes

Without ``--whole`` nothing is measured where the cache has no root for s390x.
Both machines are emulated (where KVM works, amd64 is not, and the ratio has no target), have two processors, 1 GiB of
memory, one data volume, and start the same container of the same registry. Times are the host's, from the start of QEMU
to a line on the console.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from casemate.demo import images, parties
from casemate.demo.services import LogServer, Registry
from casemate.demo.story import image_directory
from casemate.image.build import build_image, is_current
from casemate.image.root import build_tree, select_packages, tree_path
from casemate.image.snapshot import format_list, listed
from casemate.machine import home, qemu
from casemate.machine.machines import Data, Specification, start

PATIENCE, TARGET, KEYS_TARGET = 400.0, 2.0, 20.0
STAGES = {
    "kernel and drivers": "# create new root partition",
    "bootloader": "HPL11099I",
    "systemd, network": "HPL14000I",
    "contract, logging": "HPL01010I",
    "images": "HPL16003I",
    "volumes": "HPL07003I",
    "containers": "HPL10001I",
}


def stages(specification: Specification) -> dict[str, float]:
    """Start a machine; return when each stage had ended, in seconds, and how long the stop took."""
    began = time.monotonic()
    machine, seen = start(specification), dict[str, float]()
    try:
        while len(seen) < len(STAGES) and machine.running and time.monotonic() - began < PATIENCE:
            console, now = machine.console(), time.monotonic() - began
            for stage, line in STAGES.items():
                if stage not in seen and line in console:
                    seen[stage] = now
            time.sleep(0.05)
        if len(seen) < len(STAGES):
            raise SystemExit(f"the machine did not start: {machine.reason}\n{machine.last_lines()}")
        began = time.monotonic()
        machine.stop()
        return {**seen, "stop": time.monotonic() - began}
    finally:
        machine.down(0.0)


def measure(arch: str, directory: Path, registry: Registry, logs: LogServer) -> dict[str, float]:
    """Start a machine of an architecture's demo image."""
    image = image_directory(arch)
    if not is_current(image, arch=arch):
        build_image(image, arch=arch)
    certificate = (image / "encryption.crt").read_bytes()
    digest = registry.push(images.build(images.BUSYBOX, arch=arch), f"busybox-{arch}")
    reference = f"{registry.host}/busybox-{arch}@{digest}"
    compose = f"services:\n  app:\n    image: {reference}\n    command: [sleep, '1000000']\n"
    workload = parties.workload_section(compose, registry=registry, seed=parties.new_seed())
    key = parties.new_key(2048)
    env = parties.env_section(logs, registry=registry, seed=parties.new_seed(), signing_key=parties.public_pem(key))
    sealed = [parties.seal(section, certificate) for section in (workload, env)]
    data = (Data(directory / f"{arch}.img", 1 << 30),)
    contract = parties.contract_of(*sealed, signing_key=key)
    return stages(Specification(f"bench-{arch}", image, contract, data=data, memory_mib=1024, root_size=4 << 30))


def build(directory: Path) -> float:
    """Build an image with new keys, the root from the cache; print times and sizes, return the seconds."""
    began = time.monotonic()
    built = build_image(directory / "image", arch="s390x")
    took = time.monotonic() - began
    files = {path.name: path.stat().st_size / 1e6 for path in built.path.iterdir()}
    print(f"# image: casemate.img {files['casemate.img']:.1f} MB, root.squashfs {files['root.squashfs']:.1f} MB")
    return took


def main() -> int:
    """Measure and print; return the exit code."""
    cache = home.directory() / "cache"
    if "--whole" not in sys.argv and not tree_path("s390x", cache, format_list(listed("s390x")[0])).is_dir():
        print("# not measured: the cache has no root for s390x; make test-s390x builds it")
        return 0
    with tempfile.TemporaryDirectory(dir=cache if cache.is_dir() else None) as name:
        directory = Path(name)
        if "--whole" in sys.argv:
            selection = select_packages("s390x", cache)
            (directory / "debs").symlink_to(cache / "debs")
            began = time.monotonic()
            build_tree("s390x", directory, selection)
            print(f"# root from nothing, packages at hand: {time.monotonic() - began:.0f} s")
        with Registry.running(directory / "registry") as registry, LogServer.running(directory / "logs") as logs:
            times = {arch: measure(arch, directory, registry, logs) for arch in ("amd64", "s390x")}
        keys = build(directory)
    print("# stage                  amd64     s390x")
    for stage in (*STAGES, "stop"):
        print(f"# {stage:20} {times['amd64'][stage]:7.1f} s {times['s390x'][stage]:7.1f} s")
    last = list(STAGES)[-1]
    ratio = times["s390x"][last] / times["amd64"][last]
    target = None if qemu.kvm_works() else TARGET
    print(f"start s390x/amd64: ratio {ratio:.2f} " + (f"(target ≤ {target})" if target else "(amd64 by KVM)"))
    print(f"s390x image, new keys: {keys:.1f} s (target ≤ {KEYS_TARGET:.0f} s)")
    return int((target is not None and ratio > target) or keys > KEYS_TARGET)


if __name__ == "__main__":
    sys.exit(main())
