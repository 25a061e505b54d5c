"""What starts when, what starts again, and when a workload has ended: the rules of ``hpl-container``, apart from the engine.

- A container starts when all that it waits for holds.
- One that ends starts again where its restart policy says so: after a second, then two, four … up to a minute; one that
  has run for ten seconds begins with a second again.
- One that ends with another status than 0 and doesn't start again ends the machine, as a failure.
- When every container has ended with 0, and none starts again, the workload is complete, and the machine ends.
- Who is waited for as healthy is asked each second, for ten minutes or as long as its health check grants, whichever is
  longer; then the machine ends. Afterwards it is asked in its interval; unhealthy is told, and ends a container only where
  its check says so (a liveness probe, a startup probe).
- Until its startup probe has succeeded once, a container is asked nothing else. Readiness is told and changes nothing: one
  machine has no other to send requests to.

The end of a container is the end of the process that watches it (conmon), seen through a pidfd: nothing is polled.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from casemate.contract.workload import Health, Service
from casemate.guest.report import Stop, say

HEALTH_PATIENCE = 600.0
FIRST_REST, LONGEST_REST, STEADY = 1.0, 60.0, 10.0
ENGINES_TIME = 10.0
"""Seconds that the engine may need beside a health check's own time: processors may be emulated."""


class Question(Protocol):
    """A health check under way, as :class:`subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Return 0 where the container is well, another number where not, ``None`` while that is open."""

    def kill(self) -> None:
        """Give up."""

    def wait(self) -> int:
        """Wait for the end, which is near after an answer or :meth:`kill`."""


class Engine(Protocol):
    """What a supervisor needs of a container engine; each raises :class:`Stop`."""

    def start(self, service: Service) -> int | None:
        """Start a container for the first time; return a pidfd of its watcher, ``None`` where it has ended already."""

    def start_again(self, service: Service) -> int | None:
        """Start a container that has ended."""

    def code(self, service: Service) -> int:
        """Return the exit status of a container that has ended."""

    def ask(self, service: Service, health: Health) -> Question:
        """Run one of a container's health checks."""

    def kill(self, service: Service) -> None:
        """End a container that is not well."""


@dataclass(slots=True)
class _Check:
    """One health check of a container, and what it has said since the container's start. ``state`` is what it asks for."""

    health: Health
    state: str
    well: bool | None = None
    bad: int = 0
    next_ask: float = 0.0
    asked: Question | None = None
    deadline: float = 0.0

    def begin(self, now: float, *, at_once: bool) -> None:
        """Ask anew: the container starts, or may be asked from now on."""
        delay = self.health.interval if self.health.delay is None else self.health.delay
        self.well, self.bad, self.next_ask = None, 0, now + (0.0 if at_once else delay)

    def end(self) -> None:
        """Give up on what is being asked."""
        if self.asked is not None:
            self.asked.kill()
            self.asked.wait()
            self.asked = None


def _check(health: Health | None, state: str) -> _Check | None:
    return None if health is None else _Check(health, state)


@dataclass(slots=True)
class _Run:
    """A container and how it stands. ``started`` and the times are of the monotonic clock."""

    service: Service
    health: _Check | None
    startup: _Check | None
    ready: _Check | None
    watcher: int | None = None
    running: bool = False
    complete: bool = False
    started: float | None = None
    again: int = 0
    rest: float = field(default_factory=lambda: FIRST_REST)
    due: float | None = None

    def checks(self) -> list[_Check]:
        """Return what may be asked now."""
        if self.startup is not None and not self.startup.well:
            return [self.startup]
        return [each for each in (self.health, self.ready) if each is not None]


class Supervisor:
    """Runs a workload to its end: :meth:`run`. ``ready`` is called once, when every container has been started."""

    def __init__(self, services: Iterable[Service], engine: Engine, ready: Callable[[], None]) -> None:
        self._runs = {
            each.name: _Run(
                each, _check(each.health, "healthy"), _check(each.startup, "up"), _check(each.ready, "ready")
            )
            for each in services
        }
        self._engine = engine
        self._ready = ready
        self._wakers, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False

    def stop(self) -> None:
        """Have :meth:`run` return; may be called from a signal handler."""
        self._stopping = True
        os.write(self._waker, b"x")

    def run(self) -> bool:
        """Return true when the workload is complete, false when :meth:`stop` was called. Raises :class:`Stop`."""
        announced = False
        while not self._stopping:
            self._start_what_may()
            if not announced and all(run.started is not None for run in self._runs.values()):
                self._ready()
                announced = True
            if all(run.complete for run in self._runs.values() if not run.service.holds_pod):
                return True
            if not any(run.running and run.watcher is None for run in self._runs.values()):
                self._wait()
            for run in self._runs.values():
                self._look(run)
        return False

    # --------------------------------------------------------------------------------------------- starts

    def _start_what_may(self) -> None:
        now = time.monotonic()
        for run in self._runs.values():
            if self._stopping:
                return
            if run.started is None and all(self._holds(*wish) for wish in run.service.after.items()):
                self._begin(run, self._engine.start(run.service))
                run.service.environment = {}  # the engine has it now
                if not run.service.holds_pod:
                    say("HPL08008I", f"service {run.service.name} has been started")
            elif run.due is not None and now >= run.due:
                self._begin(run, self._engine.start_again(run.service))

    def _begin(self, run: _Run, watcher: int | None) -> None:
        run.watcher, run.running, run.due = watcher, True, None
        run.started = time.monotonic()
        for check in filter(None, (run.startup, run.health, run.ready)):
            check.begin(run.started, at_once=check is run.health and self._awaited(run))

    def _holds(self, name: str, condition: str) -> bool:
        other = self._runs[name]
        if condition == "service_completed_successfully":
            return other.complete
        if condition == "service_started":
            return other.started is not None
        if other.complete:
            raise Stop("HPL08004E", f"service {name} has ended, and another waits for it to be healthy")
        return other.health is not None and other.health.well is True

    def _awaited(self, run: _Run) -> bool:
        """Whether a container that has not been started waits for this one's health."""
        wish = (run.service.name, "service_healthy")
        return any(other.started is None and wish in other.service.after.items() for other in self._runs.values())

    # --------------------------------------------------------------------------------------------- ends

    def _wait(self) -> None:
        """Sleep until a container or a health check ends, or something is due."""
        now = time.monotonic()
        poll = select.poll()
        poll.register(self._wakers, select.POLLIN)
        times = []
        for run in self._runs.values():
            if run.watcher is not None:
                poll.register(run.watcher, select.POLLIN)
            if run.due is not None:
                times.append(run.due)
            for check in run.checks() if run.running else ():
                times += [check.deadline, now + 0.2] if check.asked is not None else [check.next_ask]
        timeout = max(0.0, min(times) - now) * 1000 + 1 if times else None
        poll.poll(timeout)

    def _look(self, run: _Run) -> None:
        if run.running and (run.watcher is None or select.select([run.watcher], [], [], 0)[0]):
            self._ended(run)
        elif run.running:
            for check in run.checks():
                self._look_after_health(run, check)

    def _ended(self, run: _Run) -> None:
        service = run.service
        if run.watcher is not None:
            os.close(run.watcher)
        for check in filter(None, (run.startup, run.health, run.ready)):
            check.end()
        run.watcher, run.running = None, False
        if self._stopping:
            return
        code = self._engine.code(service)
        now = time.monotonic()
        if service.holds_pod:
            raise Stop("HPL15005E", f"what holds the network of the pod {service.name} has ended")
        if service.restart.again(code, run.again):
            run.again += 1
            if run.started is not None and now - run.started >= STEADY:
                run.rest = FIRST_REST
            run.due, run.rest = now + run.rest, min(run.rest * 2, LONGEST_REST)
            most = f" of {service.restart.most}" if service.restart.most is not None else ""
            say("HPL08009W", f"service {service.name} has ended with {code} and starts again ({run.again}{most})")
        elif code == 0:
            run.complete = True
            say("HPL08010I", f"service {service.name} is complete")
        else:
            raise Stop("HPL08012E", f"service {service.name} has ended with {code} and doesn't start again")

    # --------------------------------------------------------------------------------------------- health

    def _look_after_health(self, run: _Run, check: _Check) -> None:
        now, health, service = time.monotonic(), check.health, run.service
        since = now - (run.started or now)
        if check.asked is None:
            if now >= check.next_ask:
                check.asked, check.deadline = self._engine.ask(service, health), now + health.timeout + ENGINES_TIME
            return
        code = check.asked.poll()
        if code is None and now < check.deadline:
            return
        check.end()
        awaited = check is run.health and self._awaited(run)
        check.next_ask = now + (1.0 if awaited else health.interval)
        if code == 0:
            if check.well is False:
                say("HPL08008I", f"service {service.name} is {check.state} again")
            check.well, check.bad = True, 0
            if check is run.startup:
                for other in filter(None, (run.health, run.ready)):
                    other.begin(now, at_once=False)
            return
        if awaited and since > max(HEALTH_PATIENCE, health.start_period + health.interval * health.retries):
            raise Stop("HPL08004E", f"service {service.name} did not become healthy")
        if awaited or since < health.start_period:
            return
        check.bad += 1
        if check.bad >= health.retries and check.well is not False:
            check.well = False
            state = "unhealthy" if check.state == "healthy" else f"not {check.state}"
            say("HPL08011W", f"service {service.name} is {state}: {check.bad} checks in a row have failed")
            if health.kills:
                self._engine.kill(service)
