"""``hpl-container`` with Debian's podman, crun and conmon: containers and pods for real, on this machine.

Skipped where podman is missing or can't start a container. Control groups are not tested here: podman does without them, in
a mount namespace of its own, since a machine of a build farm rarely lends any. The machines' tests have them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.contract import play
from casemate.contract.workload import Health, Places, Restart, Service
from casemate.demo import images
from casemate.guest import container, state
from casemate.guest.report import Stop
from casemate.guest.supervisor import Supervisor
from namespaces import CHROOTED

_CONF = """\
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
netns = "none"
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"
"""
_SCRIPT = """\
#!/bin/sh
export CONTAINERS_CONF={directory}/containers.conf
for word; do
  case "$word" in --log-driver=journald) word=--log-driver=k8s-file;; --log-opt=*) shift; continue;; esac
  set -- "$@" "$word"; shift
done
exec unshare -m --propagation private sh -c '
umount -R /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 none /sys/fs/cgroup
exec podman --root {directory}/store --runroot {directory}/run --storage-driver vfs "$@"' podman "$@"
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A podman of our own, and an image that it has."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("podman", "crun", "conmon", "unshare"))):
        pytest.skip("needs root, podman, crun, conmon")
    directory = tmp_path_factory.mktemp("podman")
    (directory / "containers.conf").write_text(_CONF)
    (directory / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    script = directory / "engine"
    script.write_text(_SCRIPT.format(directory=directory))
    script.chmod(0o755)
    layout = directory / "layout"  # the engine takes the path for a name, in which a directory .local can't stand
    layout.symlink_to(images.build(images.BUSYBOX))
    policy = f"--signature-policy={directory / 'policy.json'}"
    pulled = subprocess.run([script, "pull", "--quiet", policy, f"oci:{layout}"], capture_output=True, check=False)
    image = pulled.stdout.decode().strip()
    tried = subprocess.run([script, "run", "--rm", image, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"podman starts nothing here: {tried.stderr.decode()[-200:]}")
    yield script, image
    subprocess.run([script, "rm", "--all", "--force", "--time=0"], capture_output=True, check=False)
    subprocess.run(["umount", "-R", directory / "store"], capture_output=True, check=False)


@pytest.fixture
def podman(engine: tuple[Path, str], guest: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[container.Podman]:
    monkeypatch.setattr(container, "PODMAN", str(engine[0]))
    monkeypatch.setattr(container, "HOLDERS", guest / "holders")
    for name in ("watchers", "secrets"):
        (state.RUN / name).mkdir(parents=True)
    yield container.Podman()
    subprocess.run([engine[0], "rm", "--all", "--force", "--time=0"], capture_output=True, check=False)
    for place in (state.RUN / "mounts").glob("*/*"):
        subprocess.run(["umount", place], capture_output=True, check=False)  # where the test did not come to it
    subprocess.run([engine[0], "secret", "rm", "--all"], capture_output=True, check=False)


def made(engine: tuple[Path, str], name: str, script: str, **more: object) -> Service:
    return Service(name, name, engine[1], command=["sh", "-c", script], **more)  # type: ignore[arg-type]


def test_what_must_not_be_root_starts_with_an_image_of_another_user_only(
    engine: tuple[Path, str], podman: container.Podman
) -> None:
    with pytest.raises(Stop) as stop:
        podman.start(made(engine, "root", "true", not_root=True))
    assert stop.value.id == "HPL08004E" and "must not run as root" in str(stop.value)
    podman.start(made(engine, "plain", "true"))
    for user, starts in (("7", True), ("0:7", False), ("nobody", False)):
        commit = [engine[0], "commit", "--quiet", f"--change=USER {user}", "plain"]
        image = subprocess.run(commit, capture_output=True, check=True).stdout.decode().strip()
        service = Service(f"user-{user[0]}", f"user-{user[0]}", image, command=["true"], not_root=True)
        if starts:
            podman.start(service)
        else:
            with pytest.raises(Stop, match="must not run as root"):
                podman.start(service)


def output(name: str) -> str:
    return container.podman("logs", name)


def test_variables_arrive_as_they_are(engine: tuple[Path, str], podman: container.Podman) -> None:
    values = {
        "SHORT": " a=b #c ",
        "LONG": "one\ntwo\n",
        "CARRIAGE": "a\rb",
        "EMPTY": "",
        "BIG": "x" * 40_000,
        "LD_PRELOAD": "a\nb",
    }
    script = "".join(f'printf %s "${name}" | sha256sum; ' for name in values)
    assert Supervisor([made(engine, "app", script, environment=dict(values))], podman, lambda: None).run()
    from hashlib import sha256

    assert [line.split()[0] for line in output("app").splitlines()] == [
        sha256(value.encode()).hexdigest() for value in values.values()
    ]


def test_a_container_that_fails_starts_again_and_has_its_secrets_again(
    engine: tuple[Path, str], podman: container.Podman, guest: Path
) -> None:
    (guest / "data").mkdir()
    script = 'echo "$KEY" | wc -l; n=$(cat /d/n || echo 0); echo $((n + 1)) > /d/n; [ $n -ge 1 ]'
    service = made(engine, "app", script, environment={"KEY": "a\nb"}, restart=Restart("failure", 3))
    service.mounts.append(str(guest / "data"))
    service.options.append(f"--volume={guest / 'data'}:/d")
    assert Supervisor([service], podman, lambda: None).run()
    assert (guest / "data/n").read_text().strip() == "2"
    subprocess.run(["umount", state.RUN / "mounts/app/0"], check=True)


@pytest.mark.parametrize("script", ["exit 5", "sh -c 'kill -9 $$'; exit $?"])
def test_a_container_that_fails_ends_the_machine(
    engine: tuple[Path, str], podman: container.Podman, script: str
) -> None:
    with pytest.raises(Stop) as stop:
        Supervisor([made(engine, "app", script)], podman, lambda: None).run()
    code = "5" if script == "exit 5" else "137"
    assert str(stop.value) == f"HPL08012E: service app has ended with {code} and doesn't start again"


def test_a_command_that_is_not_there_is_told_and_not_quoted(engine: tuple[Path, str], podman: container.Podman) -> None:
    service = Service("app", "app", engine[1], command=["geheim-command"])
    with pytest.raises(Stop) as stop:
        Supervisor([service], podman, lambda: None).run()
    assert stop.value.id == "HPL08004E" and "geheim" not in str(stop.value)


@pytest.mark.skipif(CHROOTED, reason="in a chroot crun's exec leads to the root outside, not into the container")
def test_health_checks_are_asked_inside(engine: tuple[Path, str], podman: container.Podman) -> None:
    db = made(engine, "db", "sleep 1; touch /ready; sleep 100", health=Health(interval=1.0))
    db.options.append('--health-cmd=["test", "-f", "/ready"]')
    app = made(engine, "app", "echo after", after={"db": "service_healthy"})
    watched = Supervisor([db, app], podman, lambda: threading.Timer(0.5, watched.stop).start())
    assert watched.run() is False
    assert output("app") == "after\n"


@pytest.mark.skipif(CHROOTED, reason="in a chroot crun's exec leads to the root outside, not into the container")
def test_a_health_check_without_a_test_is_the_images_or_a_reason_to_stop(
    engine: tuple[Path, str], podman: container.Podman, tmp_path: Path
) -> None:
    with pytest.raises(Stop) as stop:
        podman.start(made(engine, "without", "sleep 100", health=Health(interval=1.0)))
    assert stop.value.id == "HPL08004E" and "how to ask" in str(stop.value)
    (tmp_path / "Containerfile").write_text(f"FROM {engine[1]}\nHEALTHCHECK CMD test -f /ready\n")
    build = [
        engine[0],
        "build",
        "--quiet",
        "--format=docker",
        f"--signature-policy={engine[0].parent / 'policy.json'}",
        tmp_path,
    ]
    image = subprocess.run(build, capture_output=True, check=True).stdout.decode().strip()
    db = Service(
        "db", "db", image, command=["sh", "-c", "sleep 1; touch /ready; sleep 100"], health=Health(interval=1.0)
    )
    app = made(engine, "app", "echo after", after={"db": "service_healthy"})
    watched = Supervisor([db, app], podman, lambda: threading.Timer(0.5, watched.stop).start())
    assert watched.run() is False
    assert output("app") == "after\n"


def test_a_pod_shares_its_network_and_host_name(
    engine: tuple[Path, str], podman: container.Podman, tmp_path: Path
) -> None:
    manifest = {
        **{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}},
        "spec": {
            "restartPolicy": "Never",
            "initContainers": [{"name": "init", "image": "x", "command": ["sh", "-c", "echo page > /www/index.html"],
                                "volumeMounts": [{"name": "www", "mountPath": "/www"}]}],
            "containers": [
                {"name": "server", "image": "x", "command": ["httpd", "-f", "-p", "80", "-h", "/www"],
                 "volumeMounts": [{"name": "www", "mountPath": "/www"}]},
                {"name": "client", "image": "x", "command": ["sh", "-c"],
                 "args": ["hostname; until wget -qO- http://127.0.0.1/; do sleep 0.2; done; sleep 100"]},
            ],
            "volumes": [{"name": "www", "emptyDir": {}}],
        },
    }  # fmt: skip
    manifests, problems = play.read_play({"resources": [manifest]}, {})
    workload = play.translate(manifests, {}, Places("/a", str(tmp_path), {}), problems)
    assert not problems
    for each in workload.services:
        each.image = engine[1]
        if each.holds_pod:
            each.options.append("--network=none")  # there is no bridge here; the loopback address is shared
    watched = Supervisor(workload.services, podman, lambda: None)
    thread = threading.Thread(target=watched.run)
    thread.start()
    try:
        end = time.monotonic() + 30
        while "page" not in (said := _output_or_nothing("web-client")) and time.monotonic() < end:
            time.sleep(0.3)
    finally:
        watched.stop()
        thread.join(20)
        podman.stop()
    assert said == "web\npage\n"


def _output_or_nothing(name: str) -> str:
    try:
        return output(name)
    except OSError:
        return ""


def test_all_containers_end_when_the_machine_stops(engine: tuple[Path, str], podman: container.Podman) -> None:
    services = [made(engine, name, "trap 'echo bye; exit 0' TERM; sleep 1000 & wait") for name in ("a", "b")]
    watched = Supervisor(services, podman, lambda: None)
    before = signal.signal(signal.SIGTERM, lambda *_: watched.stop())
    try:
        threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert watched.run() is False
    finally:
        signal.signal(signal.SIGTERM, before)
    podman.stop()
    assert output("a") == output("b") == "bye\n"
