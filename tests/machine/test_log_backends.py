"""Real machines at other log backends than the demo's: one that asks for no certificate and goes away, one of Mezmo's kind."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from surroundings import PATIENCE, World

from casemate.demo import parties
from casemate.demo.logservers import SyslogServer
from casemate.demo.pki import Authority
from casemate.demo.services import GATEWAY, free_port
from casemate.machine.machines import Machine, up

pytestmark = pytest.mark.machines
COUNT = "trap exit TERM; i=0; while :; do i=$$((i+1)); echo count-$$i-; [ $$((i % 20)) = 0 ] && sleep 1; done"


@contextmanager
def machine(world: World, name: str, logging: parties.Section, authority: Authority) -> Iterator[Machine]:
    compose = f"services:\n  app:\n    image: {world.container}\n    command: [sh, -c, '{COUNT}']\n"
    env = world.env(seed=False) | {"logging": logging}
    env["cacerts"] = [env["cacerts"][0] | {"logs": base64.b64encode(authority.certificate).decode()}]
    contract = world.contract(world.workload(compose, seed=False), env)
    started = up(world.specification(name, contract), timeout=PATIENCE)
    try:
        yield started
    finally:
        started.down()


def counted(frames: list[bytes]) -> list[int]:
    return [int(found[1]) for frame in frames if (found := re.search(rb"count-(\d+)-", frame))]


def test_what_a_container_says_while_the_backend_is_away_arrives_in_order(world: World, tmp_path: Path) -> None:
    authority, port = Authority.create("Log authority"), free_port()
    given = {"hostname": GATEWAY, "port": port, "server": authority.certificate.decode()}
    with ExitStack() as stack:
        with SyslogServer.running(tmp_path / "one", authority, port=port) as one:
            started = stack.enter_context(machine(world, "t-log-away", {"syslog": given}, authority))
            one.wait_for("count-20-", 60)
        time.sleep(10)
        before = max(counted(one.frames))
        with SyslogServer.running(tmp_path / "two", authority, port=port) as two:
            two.wait_for(f"count-{before + 100}-", 90)
        assert "HPL10001I" in started.console()
    found = counted(one.frames) + counted(two.frames)
    assert found == list(range(1, len(found) + 1))
    line = next(frame for frame in two.frames if b"count-" in frame).decode()
    image = re.escape(world.container)
    assert re.match(
        rf'<\d+>1 \S+ \S+ container/\S*app\S* [0-9a-f]{{12}} - \[container@32473 image="{image}"\] count-', line
    )
    assert any(b"hpl-logging" in frame and b"HPL01010I" in frame for frame in one.frames)
    assert any(b" kernel " in frame for frame in one.frames)


def test_a_machine_sends_its_logs_to_mezmo(world: World, tmp_path: Path) -> None:
    authority = Authority.create("Log authority")
    key = "0123456789abcdef" * 2
    with SyslogServer.running(tmp_path / "logs", authority) as logs:
        given = {"hostname": GATEWAY, "port": logs.port, "ingestionKey": key, "tags": ["casemate"]}
        with machine(world, "t-log-mezmo", {"logDNA": given}, authority) as started:
            frame = logs.wait_for("count-1-", 60).decode()
            assert f'[logdna@48950 key="{key}" tags="casemate"][container@32473 image="' in frame
            assert key not in started.console()
