"""Volumes on real machines, three starts: two are made, then rolled and grown, then refused to the contract of before.

One of them is authenticated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from surroundings import PATIENCE, World, attempt, shell

from casemate.demo import parties
from casemate.demo.services import free_port
from casemate.luks.policy import DATA_START
from casemate.machine.machines import Data, Machine, Port, Specification, up

pytestmark = pytest.mark.machines

MIB = 1 << 20
NAMES = {"data": "ext4", "second": "xfs"}
COMPOSE = """\
services:
  app:
    image: {image}
    command: [nc, -ll, -p, "7000", -e, /bin/sh]
    volumes: ["/mnt/data:/data", "/mnt/second:/second", "/var/hyperprotect:/record"]
    ports: ["7000:7000"]
"""


class Volumes:
    """A contract with two volumes, whose seeds the deployer may roll, and the disks that belong to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seeds = [{name: parties.new_seed() for name in NAMES} for _ in range(3)]
        self.disks = [world.directory / f"storage-{name}.img" for name in NAMES]

    def sized(self, mib: int) -> None:
        for disk in self.disks:
            with disk.open("ab") as file:
                file.truncate(mib * MIB)

    def specification(self, name: str, rolled: bool, port: int) -> Specification:
        workload, env = self.world.workload(COMPOSE.format(image=self.world.container)), self.world.env()
        provider, first, second = self.seeds
        workload["volumes"] = {
            each: {"filesystem": filesystem, "mount": f"/mnt/{each}", "seed": provider[each]}
            for each, filesystem in NAMES.items()
        }
        workload["volumes"]["second"]["integrity"] = "hmac-sha256"
        env["volumes"] = {each: {"seed": first[each]} for each in NAMES}
        if rolled:
            env["volumes"] = {each: {"seed": second[each], "previousSeed": first[each]} for each in NAMES}
        return self.world.specification(
            name,
            self.world.contract(workload, env),
            data=[Data(disk) for disk in self.disks],
            ports=(Port(port, 7000),),
        )

    @contextmanager
    def running(self, name: str, rolled: bool) -> Iterator[tuple[Machine, int]]:
        port = free_port()
        machine = up(self.specification(name, rolled, port), timeout=PATIENCE)
        try:
            yield machine, port
        finally:
            machine.down()


def ask(port: int, line: str) -> str:
    """Run a line of shell in the container."""
    return shell(port, line, 120).decode()


def until(machine: Machine, text: str, number: int = 1, patience: float = 120) -> str:
    """Wait until the console has a text so many times; return all of it."""
    end = time.monotonic() + patience
    while (console := machine.console()).count(text) < number:
        assert time.monotonic() < end, console[-3000:]
        time.sleep(0.5)
    return console


def free(port: int, place: str) -> int:
    return int(ask(port, f"df -Pm {place} | tail -1").split()[1])


def test_two_volumes_are_made_rolled_and_grown_and_checked(world: World) -> None:
    volumes = Volumes(world)
    volumes.sized(512)
    before = len(world.registry.fetched())
    with volumes.running("t-storage-made", rolled=False) as (machine, port):
        console = machine.console()
        assert console.count("HPL02001I") == 2 and "Mounting volumes done: data, second" in console
        assert console.index("HPL16003I") < console.index("HPL02001I")  # nothing was written before
        assert ask(port, "echo kept > /data/file; echo too > /second/file; sync; cat /data/file") == "kept\n"
        small = {place: free(port, place) for place in ("/data", "/second")}
        first = world.registry.fetched()[before:]
        assert first and ask(port, "echo left > /left") == ""
        console = until(machine, "HPL13001I")
        for place in ("/", "/mnt/data", "/mnt/second"):
            assert f"Checked for mount point {place}, LUKS encryption with 1 key slot found" in console
        # Three in five minutes, the first one included: the fourth waits.
        for number in (2, 3):
            assert ask(port, "echo > /record/check-disk-encryption") == ""
            until(machine, "HPL13001I", number)
        assert ask(port, "echo > /record/check-disk-encryption; echo > /record/check-disk-encryption") == ""
        time.sleep(20)
        assert machine.console().count("HPL13000I") == 3
        machine.stop()
        assert "HPL10000E" not in machine.console()  # the fourth, which waited, is no failure
    volumes.sized(768)
    with volumes.running("t-storage-rolled", rolled=True) as (machine, port):
        console = machine.console()
        assert console.count("HPL07018I") == 2 and console.count("HPL07017I") == 2
        assert ask(port, "cat /data/file /second/file") == "kept\ntoo\n"
        assert all(free(port, place) > small[place] + 200 for place in small)
        # The root keeps nothing: what a container left there is gone, and each blob of its image was fetched again.
        assert ask(port, "test -e /left || echo gone") == "gone\n"
        assert sorted(world.registry.fetched()[before + len(first) :]) == sorted(first)
        until(machine, "HPL13001I")
        damage(volumes.disks[0])
        ask(port, "echo > /record/check-disk-encryption")
        console = until(machine, "reboot: Power down")
        assert "HPL13010E: the LUKS headers of the volume at /mnt/data were changed on the disk" in console
    damage(volumes.disks[0])
    outcome = attempt(volumes.specification("t-storage-old", False, free_port()))
    assert outcome.reason.startswith("HPL02003E: "), outcome.console[-3000:]
    assert outcome.disks_untouched
    seeds = {seed for party in volumes.seeds for seed in party.values()}
    assert not [seed for seed in seeds if seed in console + outcome.console + "\n".join(world.logs.lines())]


def damage(disk: Path) -> None:
    """Turn one bit of the second copy of the headers; twice, and it is as before."""
    with disk.open("r+b") as file:
        place = DATA_START + (17 << 10)
        byte = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), place)
