"""When containers start, start again, and when a workload has ended: with processes of this machine in containers' place."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from casemate.contract.workload import Health, Probe, Restart, Service
from casemate.guest import supervisor
from casemate.guest.report import Stop
from casemate.guest.supervisor import Supervisor


class Processes:
    """An engine whose containers are processes; what is done is written down in order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.done: list[str] = []

    def start(self, service: Service) -> int | None:
        self.done.append(service.name)
        process = subprocess.Popen(["sh", "-c", *service.command], cwd=self.directory, start_new_session=True)
        self.processes[service.name] = process
        return os.pidfd_open(process.pid)

    def start_again(self, service: Service) -> int | None:
        return self.start(service)

    def code(self, service: Service) -> int:
        return self.processes[service.name].wait(5)

    def ask(self, service: Service, health: Health) -> subprocess.Popen[bytes]:
        """A probe's command, or whether there is a file with the name of the container."""
        line = health.probe.command[0] if health.probe else f"test -f {service.container}"
        return subprocess.Popen(["sh", "-c", line], cwd=self.directory)

    def kill(self, service: Service) -> None:
        self.processes[service.name].kill()

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    monkeypatch.setattr(supervisor, "FIRST_REST", 0.05)
    return Processes(tmp_path)


def made(name: str, command: str, **more: object) -> Service:
    return Service(name, name, "image", command=[command], **more)  # type: ignore[arg-type]


def ran(engine: Processes, *services: Service) -> bool:
    ready: list[bool] = []
    try:
        return Supervisor(services, engine, lambda: ready.append(True)).run()
    finally:
        engine.end()
        assert len(ready) <= 1


def stopped(engine: Processes, *services: Service) -> str:
    with pytest.raises(Stop) as stop:
        ran(engine, *services)
    return str(stop.value)


def test_a_workload_whose_containers_have_all_ended_well_is_complete(engine: Processes) -> None:
    assert ran(engine, made("a", "exit 0"), made("b", "sleep 0.2"))


def test_one_that_fails_ends_the_machine_with_its_name_and_status(engine: Processes) -> None:
    said = stopped(engine, made("a", "sleep 100"), made("b", "exit 7"))
    assert said == "HPL08012E: service b has ended with 7 and doesn't start again"


def test_one_that_fails_starts_again_as_often_as_its_policy_says(
    engine: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    said = stopped(engine, made("a", "exit 3", restart=Restart("failure", 2)))
    assert said.startswith("HPL08012E") and engine.done == ["a"] * 3
    assert "HPL08009W: service a has ended with 3 and starts again (2 of 2)" in capsys.readouterr().err


def test_one_that_recovers_is_complete(engine: Processes) -> None:
    command = "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) > n; [ $n -ge 2 ]"
    assert ran(engine, made("a", command, restart=Restart("failure"))) and engine.done == ["a"] * 3


def test_the_rest_between_starts_doubles(engine: Processes) -> None:
    begun = time.monotonic()
    stopped(engine, made("a", "exit 1", restart=Restart("failure", 4)))
    assert time.monotonic() - begun > 0.05 + 0.1 + 0.2 + 0.4


def test_one_that_always_starts_again_never_is_complete(engine: Processes) -> None:
    service = made("a", "exit 0", restart=Restart("always"))
    watched = Supervisor([service], engine, lambda: None)
    threading.Timer(0.6, watched.stop).start()
    assert watched.run() is False and len(engine.done) > 2
    engine.end()


def test_what_waits_starts_after_what_it_waits_for(engine: Processes) -> None:
    services = [
        made("first", "sleep 0.2; touch first.done"),
        made("second", "test -f first.done", after={"first": "service_completed_successfully"}),
        made("third", "exit 0", after={"second": "service_started"}),
    ]
    assert ran(engine, *services) and engine.done == ["first", "second", "third"]


def test_what_waits_for_one_that_fails_never_starts(engine: Processes) -> None:
    waiting = made("b", "exit 0", after={"a": "service_completed_successfully"})
    assert "HPL08012E: service a" in stopped(engine, made("a", "exit 1"), waiting) and engine.done == ["a"]


def test_one_that_is_awaited_as_healthy_is_asked_until_it_is(engine: Processes) -> None:
    services = [
        made("db", "sleep 0.3; touch db; sleep 5", health=Health(interval=60.0)),
        made("app", "test -f db", after={"db": "service_healthy"}),
    ]
    watched = Supervisor(services, engine, lambda: None)
    threading.Timer(3.0, watched.stop).start()
    assert watched.run() is False and engine.done == ["db", "app"]
    engine.end()


def test_who_waits_for_the_health_of_one_that_has_ended_or_never_is_well_is_told(
    engine: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = made("app", "exit 0", after={"db": "service_healthy"})
    assert "HPL08004E: service db has ended" in stopped(engine, made("db", "exit 0"), waiting)
    monkeypatch.setattr(supervisor, "HEALTH_PATIENCE", 0.5)
    ill = made("db", "sleep 100", health=Health(interval=0.1, retries=1))
    assert "HPL08004E: service db did not become healthy" in stopped(engine, ill, waiting)


def test_one_that_becomes_unhealthy_is_told_and_goes_on(
    engine: Processes, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ran(engine, made("a", "sleep 1.5", health=Health(interval=0.1, retries=2)))
    said = capsys.readouterr().err
    assert said.count("HPL08011W: service a is unhealthy") == 1


def test_a_liveness_probe_ends_its_container_and_the_policy_says_what_follows(engine: Processes) -> None:
    probe = Health(interval=0.1, retries=2, kills=True)
    said = stopped(engine, made("a", "sleep 100", health=probe, restart=Restart("failure", 1)))
    assert said.startswith("HPL08012E: service a") and engine.done == ["a", "a"]


def probe(line: str, **more: object) -> Health:
    return Health(interval=0.1, probe=Probe(command=(line,)), **{"delay": 0.0, "retries": 2, **more})  # type: ignore[arg-type]


def test_until_the_startup_probe_has_succeeded_nothing_else_is_asked(
    engine: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    service = made(
        "a",
        "sleep 0.7; touch up; sleep 1.5; touch after",
        startup=probe("test -f up", retries=1000, kills=True),
        health=probe("date >> asked; test -f up", kills=True),
        ready=probe("test -f up && test -f after"),
    )
    assert ran(engine, service) and engine.done == ["a"]
    said = capsys.readouterr().err
    assert said.count("HPL08011W") == 1 and "service a is not ready: 2 checks in a row have failed" in said


def test_a_startup_probe_that_never_succeeds_ends_its_container(
    engine: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    said = stopped(engine, made("a", "sleep 100", startup=probe("false", kills=True), health=probe("touch asked")))
    assert said.startswith("HPL08012E: service a") and not (engine.directory / "asked").exists()
    assert "service a is not up" in capsys.readouterr().err


def test_each_start_is_asked_anew_from_its_startup_probe_on(engine: Processes) -> None:
    service = made(
        "a",
        "echo x >> starts; rm -f up; sleep 0.4; touch up; sleep 0.6; exit 3",
        startup=probe("test -f up", retries=1000, kills=True, delay=0.3),
        health=probe("test -f up", retries=1, kills=True),
        restart=Restart("failure", 1),
    )
    assert "ended with 3" in stopped(engine, service) and engine.done == ["a", "a"]


def test_readiness_is_told_and_ends_nothing(engine: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(engine, made("a", "sleep 0.8; touch ok; sleep 0.8", ready=probe("test -f ok")))
    said = capsys.readouterr().err
    assert said.index("service a is not ready") < said.index("HPL08008I: service a is ready again")


def test_bad_answers_in_the_start_period_do_not_count(engine: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(engine, made("a", "sleep 1", health=Health(interval=0.1, retries=1, start_period=60.0)))
    assert "HPL08011W" not in capsys.readouterr().err


def test_what_holds_a_pod_is_not_waited_for_and_must_not_end(engine: Processes) -> None:
    holder = made("pod", "sleep 100", holds_pod=True)
    assert ran(engine, holder, made("pod/a", "exit 0", after={"pod": "service_started"}, pod="pod"))
    holder = made("pod", "exit 0", holds_pod=True)
    assert "HPL15005E" in stopped(engine, holder, made("pod/a", "sleep 100"))


def test_a_stop_ends_nothing_as_a_failure(engine: Processes) -> None:
    watched = Supervisor([made("a", "sleep 100")], engine, lambda: None)
    threading.Timer(0.3, watched.stop).start()
    assert watched.run() is False
    engine.end()


def test_it_is_ready_once_when_all_have_been_started(engine: Processes) -> None:
    ready: list[list[str]] = []
    services = [made("a", "sleep 0.3"), made("b", "sleep 0.3", after={"a": "service_completed_successfully"})]
    Supervisor(services, engine, lambda: ready.append(list(engine.done))).run()
    assert ready == [["a", "b"]]


def test_variables_are_not_kept_once_the_engine_has_them(engine: Processes) -> None:
    service = made("a", "exit 0", environment={"SECRET": "geheim"})
    ran(engine, service)
    assert service.environment == {}
