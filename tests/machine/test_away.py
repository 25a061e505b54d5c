"""What surrounds a machine goes away while it starts, or later: network, log backend. It ends with its reason, or goes on.

The machine that goes on has a crowd: 20 volumes and 30 containers in 1 GiB. Beside it wait one that never gets a network, and one
whose registry never answers.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from surroundings import PATIENCE, SHELL, World, shell

from casemate.demo import parties
from casemate.demo.services import LogServer, free_port
from casemate.machine.machines import Data, Machine, Port, Specification, start, wait
from signers import Door

pytestmark = [pytest.mark.machines, pytest.mark.long]
VOLUMES, CONTAINERS = (20, 30) if os.environ.get("CASEMATE_LONG") else (5, 8)
"""`make long` has the larger numbers: a volume costs a start two computations of its key, a container a start of the engine."""


def until(machine: Machine, text: str, seconds: float = PATIENCE) -> None:
    """Wait until the console has a text."""
    end = time.monotonic() + seconds
    while text not in machine.console():
        assert machine.running and time.monotonic() < end, machine.last_lines(30)
        time.sleep(0.1)


def ended(machine: Machine, seconds: float = PATIENCE) -> str:
    """Wait for the end of a machine, forget it, and return the reason."""
    end = time.monotonic() + seconds
    try:
        while machine.running:
            assert time.monotonic() < end, machine.last_lines(30)
            time.sleep(0.2)
        assert "reboot: Power down" in machine.console()
        return machine.reason
    finally:
        machine.down(0.0)


def plug(machine: Machine, *, connected: bool) -> None:
    """Pull the cable of its network, or put it in."""
    machine._control({"execute": "set_link", "arguments": {"name": "net", "up": connected}})


class Crowd:
    """The machine, its shell, and a log backend that goes away and comes back."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world, self.directory, self.port = world, directory, free_port()
        self.tries = 0
        self.machine: Machine

    def ask(self, line: str) -> str:
        return shell(self.port, line).decode(errors="replace")

    def backend(self, like: LogServer | None = None) -> LogServer:
        self.tries += 1
        place = self.directory / f"logs-{self.tries}"
        self.context = LogServer.running(
            place, authority=like.authority if like else None, port=like.port if like else None
        )
        return self.context.__enter__()

    def specification(self, logs: LogServer) -> Specification:
        world = self.world
        names = [f"volume-{number}" for number in range(VOLUMES)]
        idle = "".join(
            f"  idle-{number}: {{image: '{world.container}', command: [sleep, '1000000']}}\n"
            for number in range(CONTAINERS - 1)
        )
        compose = SHELL.format(image=world.container).replace(
            'volumes: ["', 'volumes: ["' + '", "'.join(f"/mnt/{name}:/{name}" for name in names) + '", "'
        )
        workload = world.workload(compose.replace("/mnt/data:/data", "/scratch:/data") + idle)
        env = world.env() | {"logging": parties.env_section(logs, registry=world.registry)["logging"]}
        workload["volumes"] = {name: {"mount": f"/mnt/{name}", "seed": parties.new_seed()} for name in names}
        env["volumes"] = {name: {"seed": parties.new_seed()} for name in names}
        data = [Data(self.directory / f"{name}.img", 256 << 20) for name in names]
        return world.specification(
            "t-away-crowd", world.contract(workload, env), data=data, ports=(Port(self.port, 7000),)
        )


@pytest.fixture(scope="module")
def lonely(world: World) -> Iterator[Machine]:
    """It starts, and its cable is pulled at once; nobody waits for it yet."""
    machine = start(world.specification("t-away-network"))
    try:
        plug(machine, connected=False)
        yield machine
    finally:
        machine.down(0.0)


@pytest.fixture(scope="module")
def unanswered(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Its registry takes connections, and never answers."""
    with Door.running(world.registry, tmp_path_factory.mktemp("door") / "door") as door:
        door.away["/v2/"] = 2 * PATIENCE
        workload, env = (
            world.workload(SHELL.format(image=world.container.replace(world.registry.host, door.there))),
            world.env(),
        )
        env["cacerts"] = [{"door": base64.b64encode(door.authority).decode()}]
        data = world.data("unanswered")
        machine = start(world.specification("t-away-registry", world.contract(workload, env), data=(data,)))
        try:
            yield machine
            assert data.path.stat().st_blocks == 0
        finally:
            machine.down(0.0)


@pytest.fixture(scope="module")
def crowd(
    world: World, lonely: Machine, unanswered: Machine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crowd]:
    """It starts while its log backend is away: from the moment at which logging was set up until the end of the start."""
    crowd = Crowd(world, tmp_path_factory.mktemp("crowd"))
    first = crowd.backend()
    crowd.machine = start(crowd.specification(first))
    try:
        until(crowd.machine, "HPL01010I")
        crowd.context.__exit__(None, None, None)
        wait(crowd.machine, timeout=PATIENCE)
        crowd.logs = crowd.backend(first)
        yield crowd
        crowd.context.__exit__(None, None, None)
    finally:
        crowd.machine.down(0.0)


def test_twenty_volumes_are_made_and_thirty_containers_run_in_one_gibibyte(crowd: Crowd) -> None:
    assert len(set(crowd.ask("grep -o '^/dev/mapper/[^ ]* /volume-[0-9]* ext4' /proc/mounts").splitlines())) == VOLUMES
    assert crowd.ask("pidof sleep").split().__len__() == CONTAINERS - 1
    console = crowd.machine.console()
    assert console.count("HPL02001I: Volume volume-") == VOLUMES
    assert console.count("HPL08008I") == CONTAINERS
    free = int(crowd.ask("awk '/MemAvailable/ { print $2 }' /proc/meminfo"))
    assert free > 100 << 10, crowd.ask("cat /proc/meminfo; ps")


def test_what_was_said_while_the_backend_was_away_arrives(crowd: Crowd) -> None:
    crowd.logs.wait_for("HPL10001I", 90)
    assert sum("HPL02001I: Volume volume-" in line for line in crowd.logs.lines()) == VOLUMES


def test_a_network_that_is_cut_stops_nothing_and_lines_arrive_when_it_is_back(crowd: Crowd) -> None:
    mark = secrets.token_hex(8)
    tell = "nsenter -t 1 -m -- systemd-cat -t robust echo"
    crowd.ask(f"(sleep 5; {tell} during {mark}; sleep 5; {tell} after {mark}) > /dev/null 2>&1 &")
    plug(crowd.machine, connected=False)
    time.sleep(8)
    plug(crowd.machine, connected=True)
    crowd.logs.wait_for(f"during {mark}", 120)
    crowd.logs.wait_for(f"after {mark}", 60)
    assert crowd.machine.running and "uid=0" in crowd.ask("id")


def test_a_full_volume_is_the_workloads_own_affair(crowd: Crowd) -> None:
    said = crowd.ask(
        "dd if=/dev/zero of=/volume-3/fill bs=65536; df /volume-3 | tail -1; echo x > /volume-4/x && cat /volume-4/x"
    )
    assert "No space left" in said and "100%" in said and said.rstrip().endswith("x")
    assert crowd.machine.running and "HPL10000E" not in crowd.machine.console()


def test_lines_are_counted_as_they_leave(crowd: Crowd) -> None:
    """Nothing was lost: 64 MiB are more than was said."""
    end = time.monotonic() + 180
    while not (said := crowd.ask("cat /proc/1/root/run/casemate/logging/loss.json 2>/dev/null").strip()):
        assert time.monotonic() < end, crowd.machine.last_lines(20)
        time.sleep(2)
    series, written, read = json.loads(said)
    assert re.fullmatch("[0-9a-f]{32}", series) and written >= read > 100
    assert "HPL01012W" not in crowd.machine.console()


def test_whoever_ends_the_watcher_of_the_containers_ends_the_machine(crowd: Crowd) -> None:
    find = "tr '\\0' ' ' < $each/cmdline | grep -q 'start.py [c]ontainer'"
    kill = f"for each in /proc/[0-9]*; do if {find}; then kill -9 ${{each#/proc/}}; fi; done"
    crowd.ask(f"(sleep 1; {kill}) > /dev/null 2>&1 &")
    end = time.monotonic() + 120
    while crowd.machine.running:
        assert time.monotonic() < end, crowd.machine.last_lines(20)
        time.sleep(0.3)
    assert crowd.machine.reason.startswith("HPL10000E: Service failed -> hpl-container")


def test_a_machine_without_a_network_stops_after_a_minute(lonely: Machine) -> None:
    assert ended(lonely).startswith("HPL14001E: the machine got no address within 60 seconds")


def test_a_registry_that_never_answers_stops_the_machine_after_two_minutes(unanswered: Machine) -> None:
    assert re.match("HPL06004E: .* the registry has not answered for 120 seconds$", ended(unanswered, 300))


def test_a_network_that_is_cut_before_the_images_are_there_stops_the_machine(world: World) -> None:
    """The registry was reached when the network was checked, and is not when the images are pulled."""
    machine = start(world.specification("t-away-cut"))
    try:
        until(machine, "HPL01010I")
        plug(machine, connected=False)
        assert ended(machine, 300).startswith("HPL06004E")
    finally:
        machine.down(0.0)
