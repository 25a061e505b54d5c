"""Input and output on a data volume against bare dm-crypt, in the same guest, in turns.

    python bench/bench_volume.py          # a line a ratio; the exit code is 1 where a target is missed

A privileged container of the bench lets the guest's own Python measure both: the volume that the layer made, and a disk that
``cryptsetup`` maps with the same cipher and nothing else, both with ext4.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from casemate.demo import images, parties
from casemate.demo.services import LogServer, Registry, free_port
from casemate.image.build import build_image, is_current
from casemate.machine import home
from casemate.machine.machines import Data, Port, Specification, up

TARGET, ROUNDS = 0.95, 15
INSIDE = r"""
import json, mmap, os, random, subprocess, time
os.environ |= {"DM_DISABLE_UDEV": "1", "PATH": "/usr/sbin:/usr/bin"}
def run(*command, data=b""):
    subprocess.run(command, input=data, check=True, stdout=subprocess.DEVNULL)
free = [d for d in ("vdd", "vde") if not os.listdir(f"/sys/block/{d}/holders")][0]
run("cryptsetup", "open", "--type", "plain", "--cipher", "aes-xts-plain64", "--key-size", "512", "--sector-size", "4096",
    "--perf-no_read_workqueue", "--perf-no_write_workqueue", "--key-file=-", f"/dev/{free}", "bare", data=os.urandom(64))
run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "/dev/mapper/bare")
os.makedirs("/var/bare", exist_ok=True)
from casemate.guest import kernel
kernel.mount("/dev/mapper/bare", "/var/bare", "ext4")
SIZE, BLOCK = 48 << 20, 1 << 20
def measure(directory):
    path = f"{directory}/bench"
    block = mmap.mmap(-1, BLOCK); block.write(os.urandom(BLOCK))
    small = mmap.mmap(-1, 4096)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    found = {}
    t = time.monotonic()
    for i in range(SIZE // BLOCK): os.pwrite(fd, block, i * BLOCK)
    os.fdatasync(fd); found["write"] = time.monotonic() - t
    t = time.monotonic()
    for i in range(SIZE // BLOCK): os.preadv(fd, [block], i * BLOCK)
    found["read"] = time.monotonic() - t
    places = [random.randrange(SIZE // 4096) * 4096 for _ in range(1500)]
    t = time.monotonic()
    for place in places: os.preadv(fd, [small], place)
    found["random read"] = time.monotonic() - t
    t = time.monotonic()
    for place in places: os.pwrite(fd, small, place)
    os.fdatasync(fd); found["random write"] = time.monotonic() - t
    os.close(fd)
    return found
measure("/var/volumes/data"); measure("/var/bare")
sides = {"volume": "/var/volumes/data", "bare": "/var/bare"}
for number in range(ROUNDS):  # each goes first in every second round
    names = sorted(sides, reverse=bool(number % 2))
    print(json.dumps({name: measure(sides[name]) for name in names}), flush=True)
"""


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
            compose = f"""\
services:
  app:
    image: {reference}
    privileged: true
    pid: host
    command: [nc, -ll, -p, "7000", -e, /bin/sh]
    ports: ["7000:7000"]
"""
            workload = parties.workload_section(compose, registry=registry, seed=parties.new_seed())
            env = parties.env_section(logs, registry=registry, seed=parties.new_seed())
            contract = parties.contract_of(parties.seal(workload, certificate), parties.seal(env, certificate))
            port = free_port()
            data = (Data(directory / "a.img", 512 << 20), Data(directory / "b.img", 512 << 20))
            machine = up(
                Specification(
                    *("bench-volume", image, contract), data=data, ports=(Port(port, 7000),), memory_mib=1024,
                    root_size=4 << 30,
                ),
                timeout=600,
            )  # fmt: skip
            try:
                rounds = ask(port, INSIDE.replace("ROUNDS", str(ROUNDS)))
            finally:
                machine.down(0.0)
    worst = 9.0
    for what in rounds[0]["bare"]:
        ratio = statistics.median(each["bare"][what] / each["volume"][what] for each in rounds)
        worst = min(worst, ratio)
        print(f"volume/bare dm-crypt, {what}: ratio {ratio:.2f} (target ≥ {TARGET})")
    return int(worst < TARGET)


def ask(port: int, program: str) -> list[dict[str, dict[str, float]]]:
    """Run a program with the guest's Python; return the lines of JSON that it printed."""
    for _ in range(120):
        try:
            peer = socket.create_connection(("127.0.0.1", port), 10)
            break
        except OSError:
            time.sleep(0.5)
    with peer:
        peer.settimeout(600)
        peer.sendall(f"nsenter -t 1 -m /usr/bin/python3 -I - 2>&1 <<'EOF'\n{program}\nEOF\nexit\n".encode())
        said = b"".join(iter(lambda: peer.recv(1 << 16), b"")).decode()
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    if len(lines) != ROUNDS:
        raise SystemExit(f"the guest could not measure: {said[-2000:]}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
