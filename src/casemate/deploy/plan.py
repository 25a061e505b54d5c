"""What would change: pure. What should be, what was done, and what is, give the steps from here to there.

The rules:

- A domain that this deployment did not make is never touched, whatever its name.
- A data volume is never removed and never made smaller; one that was there and is gone is not replaced by an empty one.
- What ends a running machine, or removes one, is *disruptive*: it is told, and done only by who agreed.
- The same inputs give the same steps; where nothing differs there is none. Each step can be done again, and the plan is made
  from what is: so an apply that was interrupted goes on by being run again.
- Drift is what libvirt says now against what it said when we had defined the domain: every attribute counts.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from casemate.deploy import domain as domains
from casemate.deploy.errors import DeployError
from casemate.deploy.libvirt import Domain
from casemate.deploy.model import Deployment, Machine, Volume
from casemate.deploy.state import Known, State

Act = Literal["stop", "make", "grow", "write", "define", "autostart", "start", "remove"]


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs; ``old`` or ``new`` is empty where there is none."""

    what: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. ``target`` is what it is done to: a file, a volume, or the domain."""

    machine: str
    act: Act
    target: str
    changes: tuple[Change, ...] = ()
    disruptive: bool = False
    volume: Volume | None = None
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is: ``size`` in bytes, or ``None`` where nothing is there; ``regular`` is false for links and devices."""

    size: int | None = None
    regular: bool = True
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is: every domain's UUID by name, those of ours, files by path, volumes of pools (bytes, ``None``: not there)."""

    names: Mapping[str, str]
    domains: Mapping[str, Domain]
    files: Mapping[Path, File]
    volumes: Mapping[tuple[str, str], int | None]
    kvm: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps, in order, and what others changed since the last apply."""

    steps: tuple[Step, ...]
    drift: Mapping[str, tuple[Change, ...]]
    kept: tuple[str, ...] = ()

    @property
    def disruptive(self) -> bool:
        """Whether a step ends or removes a machine."""
        return any(step.disruptive for step in self.steps)


def make(deployment: Deployment, state: State, seen: Seen, emulators: Mapping[Path, str]) -> Plan:
    """Return the plan. ``emulators``: text of each program that should be there, by path.

    Raises :class:`DeployError` with every reason for which nothing may be done.
    """
    if (state.connection, state.directory) != (deployment.connection, str(deployment.directory)):
        cause = f"the machines were made through {state.connection} in {state.directory}"
        cure = "destroy them first, with the deployment file as it was"
        raise DeployError(cause, cure, str(deployment.path), id="DEPLOY-STATE")
    problems = [problem for machine in deployment.machines.values() for problem in _refused(machine, state, seen)]
    if problems:
        cause = "\n  ".join(f"{place}: {text}" for place, text, _ in problems)
        raise DeployError(cause, "nothing was changed", str(deployment.path), id=problems[0][2])
    steps: list[Step] = []
    drift: dict[str, tuple[Change, ...]] = {}
    kept: list[str] = []
    for name, known in state.machines.items():
        if name not in deployment.machines:
            steps += _removal(deployment, state, seen, name)
            kept += _volumes_of(known)
    for path, text in emulators.items():
        if seen.files.get(path, File()).sha256 != text:
            steps.append(Step("", "write", str(path)))
    for name, machine in deployment.machines.items():
        known = state.machines.get(name, Known())
        found = seen.domains.get(name)
        if known.given:
            lost = (Change("domain", "defined", ""),)
            drift[name] = differences(known.given, found.xml) if found else lost
        steps += _machine(machine, deployment, state, seen, bool(drift.get(name)))
        now = {volume.place() for volume in machine.volumes}
        kept += [place for place in _volumes_of(known) if place not in now]
    return Plan(tuple(steps), {name: changes for name, changes in drift.items() if changes}, tuple(kept))


def _refused(machine: Machine, state: State, seen: Seen) -> Iterator[tuple[str, str, str]]:
    """Yield place, reason and identifier of all that forbids to touch a machine."""
    place = f"machines.{machine.name}"
    unique = domains.identity(state.id, machine.name)
    there, found = seen.names.get(machine.name), seen.domains.get(machine.name)
    if there is not None and (there != unique or found is None or domains.owner(found.xml) != state.id):
        yield place, "a domain of this name is there that this deployment did not make", "DEPLOY-FOREIGN"
    elif there is None and unique in seen.names.values():
        yield place, "its domain has another name now; give it back with virsh domrename", "DEPLOY-FOREIGN"
    before = _volumes_of(state.machines.get(machine.name, Known()))
    for volume in machine.volumes:
        where = f"{place}.volumes.{volume.name}"
        size = _size(volume, seen)
        if volume.path and not seen.files[volume.path].regular:
            yield where, f"{volume.path} is no regular file; links and devices are not followed", "DEPLOY-VOLUME"
        elif size is None and volume.place() in before:
            yield where, f"{volume.place()} is gone; an empty one is not put in its place", "DEPLOY-VOLUME"
        elif size is not None and size > volume.size:
            yield where, f"{volume.place()} has {size} bytes, and is never made smaller", "DEPLOY-VOLUME"


def _machine(machine: Machine, deployment: Deployment, state: State, seen: Seen, drifted: bool) -> Iterator[Step]:
    name, made = machine.name, deployment.files(machine.name)
    known, found = state.machines.get(name, Known()), seen.domains.get(name)
    running = found is not None and found.running
    text = domains.domain(machine, deployment, state.id, kvm=seen.kvm)
    steps: list[Step] = []
    for volume in machine.volumes:
        size = _size(volume, seen)
        if size is None:
            steps.append(Step(name, "make", volume.place(), (_bytes(None, volume.size),), volume=volume))
        elif size < volume.size:
            steps.append(Step(name, "grow", volume.place(), (_bytes(size, volume.size),), volume=volume))
    root = seen.files[made / domains.ROOT]
    if root.size != machine.root_size or not root.regular:
        steps.append(Step(name, "write", str(made / domains.ROOT), (_bytes(root.size, machine.root_size),)))
    if (
        seen.files[made / domains.CIDATA].sha256 != known.cidata
        or not known.cidata
        or _cidata(known.asked) != _cidata(text)
    ):
        steps.append(Step(name, "write", str(made / domains.CIDATA)))
    if found is None or known.asked != text or drifted:
        steps.append(Step(name, "define", name, differences(known.asked, text), text=text))
    restarts = running and bool(steps)
    if restarts or (running and not machine.running):
        yield Step(name, "stop", name, disruptive=True)
        running = False
    yield from steps
    if machine.autostart != (found is not None and found.autostart):
        yield Step(name, "autostart", name, (_flag("autostart", machine.autostart),))
    if machine.running and not running:
        yield Step(name, "start", name)


def _removal(deployment: Deployment, state: State, seen: Seen, name: str) -> Iterator[Step]:
    """A machine that is no longer in the file: its domain, if it is ours, and the disks that we made. Never its volumes."""
    found = seen.domains.get(name)
    ours = found is not None and domains.owner(found.xml) == state.id
    if found is not None and ours and found.running:
        yield Step(name, "stop", name, disruptive=True)
    yield Step(name, "remove", name, disruptive=True, text=found.uuid if found and ours else "")


def _size(volume: Volume, seen: Seen) -> int | None:
    return seen.files[volume.path].size if volume.path else seen.volumes[volume.pool, volume.volume]


def _bytes(old: int | None, new: int) -> Change:
    return Change("bytes", "" if old is None else str(old), str(new))


def _flag(what: str, on: bool) -> Change:
    return Change(what, str(not on).lower(), str(on).lower())


def _cidata(xml: str) -> str:
    return "" if not xml else flat(xml).get(f"metadata.{{{domains.NAMESPACE}}}machine.cidata", "")


def _volumes_of(known: Known) -> list[str]:
    """Say where the data volumes of a machine are, by the XML that we asked for: the disks without our serial number."""
    places = []
    for disk in ET.fromstring(known.asked).findall("devices/disk") if known.asked else ():  # noqa: S314  (state.load)
        source = disk.find("source")
        if source is None or disk.find("readonly") is not None or disk.find("serial") is not None:
            continue
        pool, volume = source.get("pool", ""), source.get("volume", "")
        places.append(source.get("file") or Volume("", 0, pool=pool, volume=volume).place())
    return places


def flat(xml: str) -> dict[str, str]:
    """Return every attribute and text of a document by its path: ``devices.disk[2].source.file``."""
    found: dict[str, str] = {}

    def walk(element: ET.Element, path: str) -> None:
        if element.text and element.text.strip():
            found[path or element.tag] = element.text.strip()
        elif path and not element.attrib and not len(element):
            found[path] = "yes"
        found.update({f"{path}.{name}" if path else name: value for name, value in element.attrib.items()})
        tags = [child.tag for child in element]
        for number, child in enumerate(element):
            index = f"[{tags[:number].count(child.tag)}]" if tags.count(child.tag) > 1 else ""
            walk(child, f"{path}.{child.tag}{index}" if path else f"{child.tag}{index}")

    walk(ET.fromstring(xml), "")  # noqa: S314  (ours, or libvirt's)
    return found


def differences(old: str, new: str) -> tuple[Change, ...]:
    """Return what differs between two documents; an empty text is one without anything."""
    before, after = flat(old) if old else {}, flat(new) if new else {}
    return tuple(
        Change(re.sub(r"\{[^}]*\}", "", path), before.get(path, ""), after.get(path, ""))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    )
