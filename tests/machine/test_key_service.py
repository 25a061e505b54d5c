"""A third seed from a key service, in real machines: made, unwrapped at the next start, and the end of a revoked key."""

from __future__ import annotations

import base64
import time

import pytest
from surroundings import PATIENCE, World

from casemate.demo.keyservice import KeyServer
from casemate.demo.pki import Authority
from casemate.demo.services import GATEWAY
from casemate.machine.machines import up

pytestmark = pytest.mark.machines
API_KEY = "MARK-api-key-0123456789"


def test_a_third_seed_opens_the_volume_again_and_a_revoked_key_stops_the_machine(world: World) -> None:
    authority = Authority.create("Key service authority")
    with KeyServer.running(world.directory / "keys", authority, API_KEY) as keys:
        key = keys.create()
        env = world.env()
        env["volumes"]["data"]["kms"] = [keys.entry(key, GATEWAY)]
        both = world.registry.authority + authority.certificate
        env["cacerts"] = [{"authorities": base64.b64encode(both).decode()}]
        data = world.data("third")
        specification = world.specification("t-key-service", world.contract(env=env), data=(data,))

        machine = up(specification, timeout=PATIENCE)
        try:
            first = machine.console()
            machine.stop()
        finally:
            machine.down(0.0)
        assert "HPL02001I: Volume data has been made" in first

        machine = up(specification, timeout=PATIENCE)
        try:
            assert "HPL07005I: Volume data has been opened" in machine.console()
            keys.disable(key)
            end = time.monotonic() + PATIENCE
            while machine.running:
                assert time.monotonic() < end, machine.last_lines()
                time.sleep(0.2)
            last = machine.console()
        finally:
            machine.down(0.0)
    assert "HPL18008E" in last and "HPL10000E: Service failed -> hpl-key-check" in last
    assert API_KEY not in first + last + "\n".join(world.logs.lines())
