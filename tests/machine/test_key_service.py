"""A volume that outsiders have a say in, in real machines: a third seed from a key service, and a freshness anchor.

Made, opened again at the next start, ended with a revoked key, refused where the disk was put back to an earlier state.
"""

from __future__ import annotations

import base64
import shutil
import time

import pytest
from surroundings import PATIENCE, World, attempt

from casemate.demo.anchor import AnchorServer
from casemate.demo.keyservice import KeyServer
from casemate.demo.pki import Authority
from casemate.demo.services import GATEWAY
from casemate.machine.machines import Specification, up

pytestmark = pytest.mark.machines
API_KEY = "MARK-api-key-0123456789"
WRITES = """\
services:
  app:
    image: {image}
    command: [sh, -c, 'echo again >> /data/file; sync; exec sleep 1000000']
    volumes: ["/mnt/data:/data"]
"""


def start(specification: Specification) -> str:
    """Start a machine and end it in good order; return what it said."""
    machine = up(specification, timeout=PATIENCE)
    try:
        machine.stop()
        return machine.console()
    finally:
        machine.down(0.0)


def test_a_key_service_and_an_anchor_guard_a_volume(world: World) -> None:
    authority, clients = Authority.create("Authority of both services"), Authority.create("Clients of the anchor")
    with (
        KeyServer.running(world.directory / "keys", authority, API_KEY) as keys,
        AnchorServer.running(world.directory / "anchor", authority, clients.certificate) as anchor,
    ):
        key, client = keys.create(), clients.client("machine")
        workload, env = world.workload(WRITES.format(image=world.container)), world.env()
        workload["volumes"]["data"] |= {"filesystem": "btrfs", "integrity": "hmac-sha256"}
        env["volumes"]["data"] |= {"kms": [keys.entry(key, GATEWAY)], "anchor": anchor.entry("data", client, GATEWAY)}
        both = world.registry.authority + authority.certificate
        env["cacerts"] = [{"authorities": base64.b64encode(both).decode()}]
        data = world.data("guarded")
        specification = world.specification("t-guarded", world.contract(workload, env), data=(data,))

        first = start(specification)
        assert "HPL02001I: Volume data has been made" in first and "HPL07025I: Volume data: its anchor is at" in first
        raised = anchor.numbers["data"]
        earlier = data.path.with_suffix(".earlier")
        shutil.copyfile(data.path, earlier)

        machine = up(specification, timeout=PATIENCE)
        try:
            assert "HPL07005I: Volume data has been opened" in machine.console()
            keys.disable(key)
            end = time.monotonic() + PATIENCE
            while machine.running:
                assert time.monotonic() < end, machine.last_lines()
                time.sleep(0.2)
            second = machine.console()
        finally:
            machine.down(0.0)
        assert "HPL18008E" in second and "HPL10000E: Service failed -> hpl-key-check" in second
        assert anchor.numbers["data"] > raised and "HPL07026W" not in first + second  # the network is there to the end

        keys.enable(key)
        earlier.replace(data.path)  # whoever has the disk puts back what it was
        outcome = attempt(specification)
        assert outcome.reason.startswith("HPL07022E: "), outcome.console[-3000:]
        assert "HPL02002I" not in outcome.console and "HPL08008I" not in outcome.console
    said = first + second + outcome.console + "\n".join(world.logs.lines())
    assert API_KEY not in said and client.key.decode().splitlines()[1] not in said
