"""Several networks in a real machine: who reaches whom, and what leads out of the machine or into it."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from surroundings import PATIENCE, World, shell

from casemate.demo import parties
from casemate.demo.services import free_port
from casemate.machine.machines import Machine, Port, up

pytestmark = pytest.mark.machines
COMPOSE = """\
x-common: &common
  image: IMAGE
services:
  web:
    <<: *common
    networks: [front]
    ports: ["7000:7000"]
    links: ["app:program"]
    environment: {EMPTY: "<$NOBODY_GIVES_THIS>"}
    command: [nc, -ll, -p, "7000", -e, /bin/sh]
  app:
    <<: *common
    networks: {front: , back: {ipv4_address: 10.99.0.7, aliases: [api]}}
    ports: ["127.0.0.1:7001:7001"]
    extra_hosts: ["machine:host-gateway"]
    command: [nc, -ll, -p, "7001", -e, /bin/sh]
  side:
    <<: *common
    network_mode: service:app
    command: [sh, -c, "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www"]
  db:
    <<: *common
    networks: [back]
    command: [nc, -ll, -p, "7003", -e, /bin/sh]
    volumes: ["kept:/kept", "/unnamed"]
    secrets: [word]
  lone:
    <<: *common
    networks: {other: {ipv4_address: 10.98.0.7}}
    ports: ["8000:80"]
    command: [sh, -c, "mkdir /www; echo lone > /www/index.html; exec httpd -f -p 80 -h /www"]
  host:
    <<: *common
    network_mode: host
    command: [nc, -ll, -p, "7002", -e, /bin/sh]
  debug:
    <<: *common
    profiles: [debug]
    command: [sh, -c, "exit 1"]
networks:
  front:
  other: {ipam: {config: [{subnet: 10.98.0.0/24}]}}
  back: {internal: true, ipam: {config: [{subnet: 10.99.0.0/24}]}}
volumes:
  kept: {driver_opts: {type: none, o: bind, device: /mnt/data/kept}}
secrets:
  word: {environment: WORD}
"""


@dataclass
class Parts:
    """A machine, ways to run a line in each of its containers, and the port of the host that leads to a port of the loopback."""

    machine: Machine
    web: Callable[[str], str]
    app: Callable[[str], str]
    db: Callable[[str], str]
    host: Callable[[str], str]
    loopback: int


def sent(where: str, line: str) -> str:
    """A line of shell that has another one run by the shell that listens there."""
    return f"echo {base64.b64encode(f'{line}; exit'.encode()).decode()} | base64 -d | nc {where}"


@pytest.fixture(scope="module")
def parts(world: World) -> Iterator[Parts]:
    workload = parties.workload_section(
        COMPOSE.replace("IMAGE", world.container), registry=world.registry, seed=world.seeds[0]
    )
    workload["env"] = {"WORD": "geheim"}
    ports = [Port(free_port(), inside) for inside in (7000, 7001, 7002)]
    specification = world.specification(
        "t-networks", world.contract(workload), data=(world.data("networks"),), ports=tuple(ports)
    )
    machine = up(specification, timeout=PATIENCE)

    def inside(line: str) -> str:
        return shell(ports[0].host, line).decode().strip()

    def in_app(line: str) -> str:
        return inside(sent("app 7001", line))

    try:
        yield Parts(
            machine,
            web=inside,
            app=in_app,
            db=lambda line: in_app(sent("db 7003", line)),
            host=lambda line: shell(ports[2].host, line).decode().strip(),
            loopback=ports[1].host,
        )
    finally:
        machine.down(0.0)


def test_those_on_one_network_reach_each_other_by_every_name(parts: Parts) -> None:
    for name in ("app", "program"):
        assert parts.web(f"wget -qO- http://{name}/") == "page"
    assert parts.db("wget -qO- http://api/") == parts.db("wget -qO- http://10.99.0.7/") == "page"


def test_those_on_two_networks_do_not_but_by_a_published_port(parts: Parts) -> None:
    gateway = parts.web("ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'")
    assert parts.web(f"timeout 8 wget -qO- http://{gateway}:8000/") == "lone"
    assert parts.host("timeout 8 wget -qO- http://10.98.0.7/") == "lone"
    for name in ("db", "api", "10.99.0.7", "lone", "10.98.0.7"):
        assert parts.web(f"timeout 8 wget -qO- http://{name}/ 2>/dev/null || echo none") == "none"


def test_an_internal_network_leads_nowhere_else(parts: Parts, world: World) -> None:
    registry = world.registry.host.replace(":", " ")
    assert parts.web(f"nc -w 4 {registry} </dev/null && echo there") == "there"
    assert parts.db(f"nc -w 4 {registry} </dev/null || echo none") == "none"


def test_a_container_on_the_machines_network_has_the_machines_address_and_its_ports_are_open(parts: Parts) -> None:
    assert "10.0.2.15" in parts.host("cat /proc/net/fib_trie")
    assert parts.app(sent("machine 7002", "id -u")) == "0"


def test_a_port_of_the_loopback_is_reached_from_the_machine_and_not_from_outside(parts: Parts) -> None:
    assert parts.host(sent("127.0.0.1 7001", "id -u")) == "0"
    with socket.create_connection(("127.0.0.1", parts.loopback), 5) as peer:
        peer.settimeout(5)
        answer = b""
        try:
            peer.sendall(b"id -u; exit\n")
            time.sleep(1)
            answer = peer.recv(100)
        except OSError:
            pass
        assert answer == b""


def test_a_variable_that_nobody_gives_is_empty_and_told_of_without_its_name(parts: Parts) -> None:
    assert parts.web('echo "$EMPTY"') == "<>"
    console = parts.machine.console()
    assert "HPL08013W: services.web.environment.EMPTY: a variable that nobody gives is empty" in console
    assert "NOBODY_GIVES_THIS" not in console


def test_a_volume_of_the_file_is_a_path_of_the_contracts_volume_and_a_secret_is_a_variables(parts: Parts) -> None:
    assert parts.db("cat /run/secrets/word") == "geheim"
    assert parts.db("grep -c '^/dev/mapper/.* /kept ' /proc/mounts") == "1"
    assert parts.db("touch /run/secrets/word 2>/dev/null || echo read-only") == "read-only"


def test_a_service_of_a_profile_has_not_been_started(parts: Parts) -> None:
    console = parts.machine.console()
    assert "service host has been started" in console and "service debug" not in console
