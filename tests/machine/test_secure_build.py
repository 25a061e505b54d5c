"""Secure build in a real machine: the server is the workload of a contract, its client on the host."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from surroundings import PATIENCE, World

from casemate.contract.admission import admit, policy, read_keys
from casemate.contract.images import parse_reference
from casemate.demo import images
from casemate.demo.pki import Authority
from casemate.demo.services import GATEWAY, free_port
from casemate.machine.machines import Port, up
from program import Result

sys.path.insert(0, str(Path(__file__).parent.parent / "hpsb"))
from build_lab import Git

pytestmark = pytest.mark.machines
COMPOSE = """\
services:
  build:
    image: {image}
    security_opt: ["unmask=/proc/*"]
    environment: [CLIENT_CA, SERVER_CRT, SERVER_KEY, HPSB_CONFIG, HPSB_SECRET_WORKLOAD, HPSB_SECRET_ENV]
    volumes: ["/mnt/data:/data"]
    ports: ["8443:8443"]
"""


def test_a_server_in_a_machine_builds_signs_and_pushes(
    world: World, run: Callable[..., Result], tmp_path: Path
) -> None:
    layout = images.build(images.build_server())
    server = f"{world.registry.host}/build-server@{world.registry.push(layout, 'build-server')}"
    clients, servers, port = Authority.create("Clients"), Authority.create("Build server"), free_port()
    identity, client = servers.server((GATEWAY, "127.0.0.1")), clients.client("builder")
    login = {"username": world.registry.user, "password": world.registry.password}
    name = f"{world.registry.host}/team/app"
    with Git.running(tmp_path / "git") as git:
        config = {
            "repositories": {f"https://{GATEWAY}:{git.port}/": {"username": git.user, "password": git.password}},
            "registries": {world.registry.host: login},
            "images": {name: login},
            "authorities": (world.registry.authority + git.authority.certificate).decode(),
        }
        workload, env = world.workload(COMPOSE.format(image=server)), world.env()
        workload["env"] = {"HPSB_CONFIG": json.dumps(config), "HPSB_SECRET_WORKLOAD": "w" * 24}
        env["env"] = {
            **{"CLIENT_CA": clients.certificate.decode(), "SERVER_CRT": identity.certificate.decode()},
            **{"SERVER_KEY": identity.key.decode(), "HPSB_SECRET_ENV": "d" * 24},
        }
        revision = git.commit(
            "app", {"Containerfile": f"FROM {world.container}\nRUN id > /built; cat /proc/1/cmdline\n"}
        )
        (tmp_path / "ca.crt").write_bytes(servers.certificate)
        (tmp_path / "client.crt").write_bytes(client.certificate)
        (tmp_path / "client.key").write_bytes(client.key)
        settings = [f"server: https://127.0.0.1:{port}", "ca: ca.crt", "certificate: client.crt", "key: client.key"]
        (tmp_path / "build.yaml").write_text("\n".join([*settings, "keys: keys.json", ""]))
        machine = up(
            world.specification(
                "t-secure-build",
                world.contract(workload, env),
                data=(world.data("secure-build"),),
                ports=(Port(port, 8443),),
            ),
            timeout=PATIENCE,
        )
        try:
            end = time.monotonic() + 180  # the container runs; its program needs some seconds more to listen
            while run("build", "status").code and time.monotonic() < end:
                time.sleep(1)
            done = run("build", "init")
            assert done.code == 0, (done.err, machine.console()[-1000:], world.logs.lines()[-20:])
            started = run(
                *("build", "start", "--repository", git.url("app"), "--revision", revision),
                *("--name", name, "--tag", "1", "--wait", "--json"),
            )
            told = json.loads(started.out)
            said = run("build", "log", told["job"]).out.decode()
            assert started.code == 0, (told, said, world.logs.lines()[-20:])
            assert "COMMIT" in said and "buildah" in said
            assert told["digest"] in run("build", "status").out.decode()
            assert run("build", "manifest", told["job"], "-o", "app.manifest").code == 0
            assert run("build", "state", "export", "-o", "build.state").code == 0
            world.logs.wait_for(f"is done: {told['digest']}")
            for text in (machine.console(), "\n".join(world.logs.lines())):
                assert "w" * 24 not in text and git.password not in text and login["password"] not in text
        finally:
            machine.down(0.0)
    statement = json.loads(
        run("build", "manifest", "app.manifest", "--json").out
    )  # the machine is gone: the keys are here
    assert statement["image"] == {**statement["image"], "name": name, "tag": "1", "digest": told["digest"]}
    assert statement["bases"][0]["name"] == world.container and statement["source"]["revision"] == revision
    for by in ("digest", "gpg", "cosign"):
        part = json.loads(run("build", "image", "app.manifest", "--by", by, "--json").out)
        admitted = admit(parse_reference(part["image"]), read_keys(part), lambda key, image: told["digest"])
        assert policy([admitted])["transports"]["docker"]
