"""Workloads on real machines: several services, pods, and how a workload that ends ends its machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from surroundings import PATIENCE, World

from casemate.contract.archive import write_archive
from casemate.demo import parties
from casemate.demo.services import free_port
from casemate.machine.machines import Machine, Port, up

pytestmark = pytest.mark.machines
Ask = Callable[..., str]
SECRET = "-----BEGIN\nof several lines\n-----END"
SHELL = '[nc, -ll, -p, "7000", -e, /bin/sh]'

COMPOSE = """\
x-common: &common
  image: IMAGE
services:
  front:
    <<: *common
    command: SHELL
    depends_on: {base: {condition: service_healthy}, flaky: {condition: service_started}}
    env_file: front.env
    environment: [SECRET, "GREETING=${GREETING:-hello} ${WHO:?must be given}"]
    volumes: ["/var/hyperprotect:/record", "state:/state:ro", "./www:/www"]
    ports: ["7000:7000"]
    ulimits: {nofile: 512}
    tmpfs: /scratch
    init: true
    restart: always
  flaky:
    <<: *common
    restart: on-failure:5
    depends_on: [base]
    volumes: ["state:/state"]
    command: [sh, -c, 'n=$$(cat /state/n || echo 0); echo $$((n + 1)) > /state/n; [ $$n -ge 2 ] && exec sleep 1000000; exit 7']
  base:
    <<: *common
    command: sh -c 'sleep 5; touch /tmp/ready; exec httpd -f -p 80 -h /www'
    healthcheck: {test: [CMD, test, -f, /tmp/ready], interval: 2s, retries: 30}
    volumes: ["./www:/www:ro"]
volumes: {state: }
"""


@contextmanager
def running(
    world: World, name: str, workload: parties.Section, variables: dict[str, str]
) -> Iterator[tuple[Machine, Ask]]:
    """A machine, and a way to run a line of shell in the container that listens on port 7000."""
    port = free_port()
    env = {**world.env(), "env": variables}
    specification = world.specification(
        name, world.contract(workload, env), data=(world.data(name),), ports=(Port(port, 7000),)
    )
    machine = up(specification, timeout=PATIENCE)

    def ask(line: str) -> str:
        end = time.monotonic() + 120
        while True:
            with socket.create_connection(("127.0.0.1", port), 10) as peer:
                peer.settimeout(60)
                parts = bytearray()
                try:
                    peer.sendall(f"( {line} ) 2>&1; echo; echo ENDED; exit\n".encode())
                    while not parts.endswith(b"ENDED\n") and (part := peer.recv(1 << 16)):
                        parts += part
                except OSError:
                    pass
            if parts.endswith(b"ENDED\n"):
                return parts[:-7].decode()
            assert time.monotonic() < end, bytes(parts)
            time.sleep(1)

    try:
        yield machine, ask
    finally:
        machine.down()


@pytest.fixture(scope="module")
def composed(world: World) -> Iterator[tuple[Machine, Ask]]:
    text = COMPOSE.replace("IMAGE", world.container).replace("SHELL", SHELL)
    files = {"www/index.html": b"of the archive\n", "front.env": b"FROM_FILE='a b'\nGREETING=never\n"}
    workload = parties.workload_section(text, registry=world.registry, seed=world.seeds[0], files=files)
    workload["env"] = {"SECRET": SECRET, "WHO": "of the workload"}
    with running(world, "t-compose", workload, {"WHO": "of env"}) as found:
        yield found


def test_services_find_each_other_and_the_files_of_the_archive(composed: tuple[Machine, Ask]) -> None:
    assert composed[1]("wget -qO- http://base/") == "of the archive\n"
    assert composed[1]("cat /www/index.html") == "of the archive\n"


def test_variables_are_those_of_the_contract_and_the_workloads_win(composed: tuple[Machine, Ask]) -> None:
    assert composed[1]('echo "$GREETING|$FROM_FILE|$SECRET"') == f"hello of the workload|a b|{SECRET}\n"


def test_the_public_record_is_there_and_read_only(composed: tuple[Machine, Ask]) -> None:
    assert "se-checksums.txt" in composed[1]("ls /record")
    assert "Read-only" in composed[1]("touch /record/x")
    assert composed[1]("ulimit -n; grep -c /scratch /proc/mounts; cat /proc/1/comm").split() == [
        "512",
        "1",
        "podman-init",
    ]


def test_a_service_that_fails_starts_again_until_it_holds(composed: tuple[Machine, Ask]) -> None:
    end = time.monotonic() + 120
    while composed[1]("cat /state/n").strip() != "3":
        assert time.monotonic() < end
        time.sleep(1)
    console = composed[0].console()
    assert "HPL08009W: service flaky has ended with 7 and starts again (1 of 5)" in console
    assert console.index("service base has been started") < console.index("service front has been started")


def test_it_stops_in_order(composed: tuple[Machine, Ask]) -> None:
    composed[0].stop()
    console = composed[0].console()
    assert "reboot: Power down" in console and "HPL08012E" not in console and "HPL10000E" not in console


# ------------------------------------------------------------------------------------------------- pods

PODS = """\
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  initContainers:
    - name: first
      image: IMAGE
      command: [sh, -c, 'echo by the first container > /www/index.html']
      volumeMounts: [{name: www, mountPath: /www}]
    - name: second
      image: IMAGE
      args: [sh, -c, 'echo and the second >> /www/index.html']
      volumeMounts: [{name: www, mountPath: /www}]
  containers:
    - name: server
      image: IMAGE
      command: [httpd, -f, -p, "80", -h, /www]
      ports: [{containerPort: 80, hostPort: 8080, name: http}]
      startupProbe: {httpGet: {port: http, path: /index.html}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
      readinessProbe: {httpGet: {port: http, path: /ready.html}, periodSeconds: 3, timeoutSeconds: 10, failureThreshold: 1}
      volumeMounts: [{name: www, mountPath: /www, readOnly: true}]
  volumes: [{name: www, emptyDir: {}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {level: info, app.conf: "a = b\\n"}
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  restartPolicy: OnFailure
  securityContext: {fsGroup: 2000}
  containers:
    - name: shell
      image: IMAGE
      command: SHELL
      ports: [{containerPort: 7000, hostPort: 7000}]
      envFrom: [{configMapRef: {name: contract.config.map}}]
      env: [{name: LEVEL, valueFrom: {configMapKeyRef: {name: settings, key: level}}}]
      volumeMounts:
        - {name: data, mountPath: /data}
        - {name: record, mountPath: /var/hyperprotect/}
        - {name: settings, mountPath: /etc/app}
        - {name: files, mountPath: /files, readOnly: true}
    - name: side
      image: IMAGE
      command: [nc, -ll, -p, "7001", -e, cat]
  volumes:
    - {name: data, hostPath: {path: /mnt/data}}
    - {name: record, hostPath: {path: /var/hyperprotect/}}
    - {name: settings, configMap: {name: settings}}
    - {name: files, hostPath: {path: ./files, type: Directory}}
"""


@pytest.fixture(scope="module")
def played(world: World) -> Iterator[tuple[Machine, Ask]]:
    text = PODS.replace("IMAGE", world.container).replace("SHELL", SHELL)
    files = {"pods.yaml": text.encode(), "files/one": b"of the archive\n"}
    workload = {**world.workload(), "play": {"archive": write_archive(files)}}
    del workload["compose"]
    workload["env"] = {"SECRET": SECRET, "WHO": "of the workload"}
    with running(world, "t-play", workload, {"WHO": "of env", "MORE": "of env"}) as found:
        yield found


def test_init_containers_ran_in_their_order_before_the_server(played: tuple[Machine, Ask]) -> None:
    page = "by the first container\nand the second\n"
    gateway = "$(ip route | awk '/default/ { print $3 }')"
    assert played[1](f"wget -qO- http://{gateway}:8080/") == page  # from pod to pod, as published
    assert played[1]("wget -qO- http://web/") == page


def test_containers_of_a_pod_share_its_network(played: tuple[Machine, Ask]) -> None:
    assert played[1]("hostname").strip() == "shell"
    assert played[1]("echo over there | nc -w 2 127.0.0.1 7001").strip() == "over there"


def test_pods_have_the_contracts_variables_and_config_maps(played: tuple[Machine, Ask]) -> None:
    assert played[1]('echo "$WHO|$MORE|$LEVEL|$SECRET"') == f"of the workload|of env|info|{SECRET}\n"
    assert played[1]("cat /etc/app/app.conf /files/one").split("\n")[:2] == ["a = b", "of the archive"]
    assert "Read-only" in played[1]("touch /files/x") and "Read-only" in played[1]("touch /var/hyperprotect/x")


def test_a_page_that_answers_lets_a_pod_start_and_one_that_is_missing_is_told(played: tuple[Machine, Ask]) -> None:
    end = time.monotonic() + 120
    while "service web/server is not ready: 1 checks in a row have failed" not in (console := played[0].console()):
        assert time.monotonic() < end, played[0].last_lines()
        time.sleep(1)
    assert "is not up" not in console and "starts again" not in console


def test_volumes_are_the_pods_group(played: tuple[Machine, Ask]) -> None:
    said = played[1]("id -G; stat -c '%g %a' /data; touch /data/y; stat -c %g /data/y")
    assert "2000" in said.split("\n")[0].split() and said.split("\n")[1:3] == ["2000 2775", "2000"]


def test_pods_mount_the_contracts_volumes(played: tuple[Machine, Ask]) -> None:
    assert played[1]("echo kept > /data/x; sync; grep ' /data ' /proc/mounts").split()[0].startswith("/dev/mapper/")
    console = played[0].console()
    assert "HPL15004I: pod web has been started" in console and "HPL15004I: pod shell has been started" in console


# ------------------------------------------------------------------------------------------------- ends


def ending(world: World, name: str, command: str) -> str:
    text = f"services:\n  app:\n    image: {world.container}\n    command: [sh, -c, '{command}']\n"
    workload = parties.workload_section(text, registry=world.registry, seed=None)
    machine = up(world.specification(name, world.contract(workload, world.env(seed=False))), timeout=PATIENCE)
    try:
        end = time.monotonic() + PATIENCE
        while machine.running:
            assert time.monotonic() < end, machine.last_lines()
            time.sleep(0.2)
        console = machine.console()
        assert "reboot: Power down" in console
        return console
    finally:
        machine.down(0.0)


def test_a_workload_that_is_complete_ends_its_machine_with_success(world: World) -> None:
    console = ending(world, "t-complete", "echo finished")
    assert "HPL08010I: service app is complete" in console and "HPL10002I: The workload is complete" in console
    assert "HPL10000E" not in console


def test_a_workload_that_fails_ends_its_machine_with_the_reason(world: World) -> None:
    console = ending(world, "t-failed", "echo broken; exit 5")
    assert "HPL08012E: service app has ended with 5 and doesn't start again" in console
    assert "HPL10000E: Service failed -> hpl-container" in console and "HPL10002I" not in console
