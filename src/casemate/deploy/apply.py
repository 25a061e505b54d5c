"""Looks at what is, and does the steps of a plan: thin, every rule is in :mod:`casemate.deploy.plan`.

    plan = look_and_plan(deployment, libvirt)
    apply(deployment, libvirt, agreed=False)

Each step leaves something that the next look recognizes, and what was done is written down at once; so after Ctrl-C, a full
disk or a refusal of libvirt, the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from casemate.deploy import domain as domains
from casemate.deploy import plan as plans
from casemate.deploy import state as states
from casemate.deploy.errors import DeployError
from casemate.deploy.libvirt import Libvirt
from casemate.deploy.model import Deployment, Machine
from casemate.deploy.plan import File, Plan, Seen, Step
from casemate.deploy.state import Known, State
from casemate.machine import cidata_disk, home, qemu

PATIENCE = 60.0
"""Seconds that a machine has to stop in order; then it is a power cut, which costs its volumes nothing."""


def look_and_plan(deployment: Deployment, libvirt: Libvirt) -> Plan:
    """Return what :func:`apply` would do. Changes nothing."""
    return _plan(deployment, libvirt, _state(deployment))


def apply(
    deployment: Deployment,
    libvirt: Libvirt,
    *,
    agreed: bool,
    patience: float = PATIENCE,
    progress: Callable[[str], None] = lambda step: None,
) -> Plan:
    """Make it so, and return what was done. Raises :class:`DeployError`; without ``agreed`` nothing disruptive is done."""
    place = states.place(deployment.path)
    with states.locked(place):
        state = _state(deployment)
        plan = _plan(deployment, libvirt, state)
        if plan.disruptive and not agreed:
            which = ", ".join(sorted({step.machine for step in plan.steps if step.disruptive}))
            cause = f"running machines would be stopped, or machines removed: {which}"
            raise DeployError(cause, "--yes agrees to it; `casemate deploy plan` shows all", id="DEPLOY-CONSENT")
        for step in plan.steps:
            progress(sentence(step))
            state = _do(step, deployment, libvirt, state, patience)
        if not state.machines:
            place.unlink(missing_ok=True)
    return plan


def sentence(step: Step) -> str:
    """Say what a step does, in a few words."""
    return (
        f"{step.machine}: {step.act} {step.target}"
        if step.machine not in ("", step.target)
        else f"{step.act} {step.target}"
    )


def emulators(deployment: Deployment) -> dict[Path, str]:
    """Return the programs that libvirt starts in QEMU's place, by path: one for each architecture of the development TEE."""
    kinds = {machine.arch for machine in deployment.machines.values() if machine.tee == "software"}
    return {domains.emulator(deployment, arch): _emulator(arch) for arch in sorted(kinds)}


def _emulator(arch: str) -> str:
    package = Path(__file__).resolve().parents[2]
    words = [
        "env",
        f"CASEMATE_HOME={home.directory().absolute()}",
        f"PYTHONPATH={package}",
        "PYTHONDONTWRITEBYTECODE=1",
    ]
    words += [sys.executable, "-m", "casemate.deploy.emulator", arch]
    return f'#!/bin/sh\n# The software ultravisor in front of QEMU; written by casemate deploy.\nexec {shlex.join(words)} "$@"\n'


def _state(deployment: Deployment) -> State:
    return states.load(states.place(deployment.path)) or states.new(deployment.connection, deployment.directory)


def _plan(deployment: Deployment, libvirt: Libvirt, state: State) -> Plan:
    programs = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in emulators(deployment).items()}
    return plans.make(deployment, state, _look(deployment, libvirt, state, programs), programs)


def _look(deployment: Deployment, libvirt: Libvirt, state: State, programs: dict[Path, str]) -> Seen:
    for name in {*deployment.machines, *state.machines}:
        if deployment.files(name).is_symlink():
            cause = "is a link, and disks are written and removed there"
            raise DeployError(cause, "put a directory in its place", str(deployment.files(name)), id="DEPLOY-DISK")
    names = libvirt.names()
    found = {name: libvirt.domain(names[name]) for name in {*deployment.machines, *state.machines} & names.keys()}
    files: dict[Path, File] = {path: _file(path, hashed=True) for path in programs}
    volumes: dict[tuple[str, str], int | None] = {}
    for machine in deployment.machines.values():
        made = deployment.files(machine.name)
        files[made / domains.CIDATA] = _file(made / domains.CIDATA, hashed=True)
        files[made / domains.ROOT] = _file(made / domains.ROOT)
        for volume in machine.volumes:
            if volume.path:
                files[volume.path] = _file(volume.path)
            else:
                volumes[volume.pool, volume.volume] = libvirt.volume(volume.pool, volume.volume)
    software = any(machine.tee == "software" and machine.arch == "amd64" for machine in deployment.machines.values())
    return Seen(names, found, files, volumes, software and qemu.kvm_works())


def _file(path: Path, *, hashed: bool = False) -> File:
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            return File(facts.st_size, regular=False)
        digest = ""
        if hashed:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(facts.st_size, sha256=digest)
    except FileNotFoundError:
        return File()
    except OSError as error:
        raise _failed(path, "read", error) from None


def _do(step: Step, deployment: Deployment, libvirt: Libvirt, state: State, patience: float) -> State:
    """Do one step; return the state after it, which is written."""
    place = states.place(deployment.path)
    if step.machine and step.machine not in state.machines:
        state = state.with_machine(step.machine, Known())
        states.save(place, state)  # before anything of it exists: a run that is cut here finds its own again
    unique = domains.identity(state.id, step.machine)
    machine = deployment.machines.get(step.machine)
    match step.act:
        case "stop":
            libvirt.stop(unique, patience)
        case "start":
            libvirt.start(unique)
        case "autostart" if machine is not None:
            libvirt.autostart(unique, machine.autostart)
        case "make" | "grow":
            _provide(step, libvirt)
        case "write" if machine is None:
            _write(Path(step.target), emulators(deployment)[Path(step.target)].encode(), 0o755)
        case "write" if machine is not None:
            state = _made(step, deployment, machine, state)
        case "define":
            libvirt.define(step.text)
            known = state.machines[step.machine]
            state = state.with_machine(step.machine, Known(step.text, libvirt.domain(unique).xml, known.cidata))
        case "remove":
            if step.text:
                libvirt.undefine(step.text)
            _remove(deployment.files(step.machine))
            state = state.with_machine(step.machine, None)
    states.save(place, state)
    return state


def _provide(step: Step, libvirt: Libvirt) -> None:
    """Make a data volume that is missing, or make one larger: never anything else."""
    volume = step.volume
    if volume is None:
        raise AssertionError("a step for a volume has one")
    if volume.path is None:
        (libvirt.make_volume if step.act == "make" else libvirt.grow_volume)(volume.pool, volume.volume, volume.size)
        return
    flags = os.O_CREAT | os.O_EXCL if step.act == "make" else 0
    with _failing(volume.path):
        descriptor = os.open(volume.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flags, 0o600)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > volume.size:
                cure = "look at it, and plan again"
                raise DeployError("is not what it was a moment ago", cure, str(volume.path), id="DEPLOY-VOLUME")
            os.ftruncate(descriptor, volume.size)
        finally:
            os.close(descriptor)


def _made(step: Step, deployment: Deployment, machine: Machine, state: State) -> State:
    """Write a disk of ours. Return the state, with the digest of the volume that was written."""
    path = Path(step.target)
    if path.name == domains.ROOT:
        _write(path, b"", 0o600, machine.root_size)
        return state
    files = machine.cidata()
    volume = cidata_disk.make(files["user-data"], files["meta-data"], files["vendor-data"], machine.network.config)
    _write(path, volume, 0o600)
    known = state.machines[machine.name]
    return state.with_machine(machine.name, Known(known.asked, known.given, hashlib.sha256(volume).hexdigest()))


def write_disks(deployment: Deployment, machine: Machine) -> list[Path]:
    """Write the disks that a domain needs beside its data volumes; for who defines it by hand."""
    files, made = machine.cidata(), deployment.files(machine.name)
    volume = cidata_disk.make(files["user-data"], files["meta-data"], files["vendor-data"], machine.network.config)
    _write(made / domains.CIDATA, volume, 0o600)
    _write(made / domains.ROOT, b"", 0o600, machine.root_size)
    programs = emulators(deployment) if machine.tee == "software" else {}
    for path, text in programs.items():
        _write(path, text.encode(), 0o755)
    return [made / domains.CIDATA, made / domains.ROOT, *programs]


def _write(path: Path, content: bytes, mode: int, size: int | None = None) -> None:
    """Write a file of ours whole, in place of what is there: a new file, so a link is replaced and not followed."""
    with _failing(path):
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123
            file.write(content)
            if size is not None:
                file.truncate(size)
        fresh.replace(path)


def _remove(directory: Path) -> None:
    """Remove the files that we made, by name, and their directory if nothing else is in it."""
    with _failing(directory):
        for name in domains.MADE:
            for each in (directory / name, directory / f".{name}.new"):
                each.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError, OSError):
            directory.rmdir()


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failed(path, "written", error) from None


def _failed(path: Path, verb: str, error: OSError) -> DeployError:
    return DeployError(f"can't be {verb}: {error.strerror}", "check the directory", str(path), id="DEPLOY-DISK")
