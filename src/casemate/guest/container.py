"""``hpl-container``: writes the archive's files out and starts the containers, in the order that they ask for."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from casemate.contract.archive import Archive, read_archive
from casemate.contract.errors import ContractError
from casemate.contract.images import read_compose
from casemate.guest import kernel, state
from casemate.guest.compose import ComposeError, Places, Service, of_several_lines, services
from casemate.guest.report import Stop, run, say
from casemate.guest.storage import VOLUMES

PODMAN = "/usr/bin/podman"
ARCHIVE = Path("/var/lib/casemate/workload")
SCRATCH = Path("/var/lib/casemate/scratch")
NETWORK = "workload"
HEALTH_PATIENCE = 600.0


def unpack(archive: Archive, directory: Path) -> None:
    """Write checked files under a new directory."""
    directory.mkdir(parents=True)
    for name in archive.directories:
        (directory / name).mkdir(parents=True, exist_ok=True)
    for name, content in archive.files.items():
        path = directory / name
        path.write_bytes(content)
        path.chmod(0o755 if name in archive.executable else 0o644)


def prepare(service: Service) -> dict[str, str]:
    """Hold fast what a service mounts, each at a place of ours; return these places by path.

    Containers write to volumes, also while the next one starts: a link that one left there must not give another a
    directory of the guest. So each mount is opened through no link, and what was opened is what is mounted.
    """
    places = {}
    for number, path in enumerate(dict.fromkeys(service.mounts)):
        descriptor = open_beneath(path, make=path in service.directories)
        try:
            place = state.RUN / "mounts" / service.name / str(number)
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.mkdir() if stat.S_ISDIR(os.fstat(descriptor).st_mode) else place.touch()
            kernel.mount(f"/proc/self/fd/{descriptor}", str(place), flags=kernel.MS_BIND)
        except OSError as error:
            raise Stop("HPL08002E", f"service {service.name}: a mount can't be made: {error.strerror}") from None
        finally:
            os.close(descriptor)
        places[path] = str(place)
    return places


def open_beneath(path: str, *, make: bool) -> int:
    """Open a file or directory step by step, through no link; ``make`` the directories that are missing."""
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    parts = path.strip("/").split("/")
    for number, part in enumerate(parts):
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_DIRECTORY if number + 1 < len(parts) else 0)
        try:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
            there = os.open(part, flags, dir_fd=here)
        except OSError:
            raise Stop("HPL08002E", "a directory that is mounted is missing, or a link lies on the way to it") from None
        finally:
            os.close(here)
        here = there
    if stat.S_ISLNK(os.fstat(here).st_mode):
        os.close(here)
        raise Stop("HPL08002E", "what is mounted is a link")
    return here


_EXITS = {125: "its options are not possible", 126: "its command can't be run", 127: "its command is not there"}


def start(service: Service, network: str | None) -> None:
    """Start one container. Its variables go by a file, or, those of several lines, by the engine's environment.

    What the engine says of a failure is not told: it may quote the command, and with it a secret.
    """
    options = list(service.options)
    for path, place in prepare(service).items():
        options = [option.replace(f"--volume={path}:", f"--volume={place}:") for option in options]
    longer = {name: value for name, value in service.environment.items() if of_several_lines(value)}
    lines = {name: value for name, value in service.environment.items() if name not in longer}
    variables = state.RUN / "environment" / service.name
    state.write(variables, "".join(f"{name}={value}\n" for name, value in lines.items()))
    options += [f"--name={service.container}", f"--env-file={variables}", *(f"--env={name}" for name in longer)]
    if network is not None:
        options += [f"--network={network}", f"--network-alias={service.name}"]
    try:
        state.call(
            *(
                PODMAN,
                "run",
                "--detach",
                "--pull=never",
                "--log-driver=journald",
                "--log-opt=tag={{.ImageName}}",
                *options,
            ),
            *(service.image, *service.command),
            env=longer,
        )
    except OSError as error:
        found = re.search(r"ended with (\d+)", str(error))
        code = int(found[1]) if found else 0
        text = _EXITS.get(code, f"the engine ended with {code}")
        raise Stop("HPL08004E", f"service {service.name} does not start: {text}") from None
    finally:
        variables.unlink(missing_ok=True)


def wait_for(other: Service, condition: str) -> None:
    """Wait until what another service waits for holds."""
    end = time.monotonic() + HEALTH_PATIENCE
    if condition == "service_completed_successfully" and state.call(PODMAN, "wait", other.container).strip() != "0":
        raise Stop("HPL08004E", f"service {other.name} did not complete successfully")
    while condition == "service_healthy":
        try:
            state.call(PODMAN, "healthcheck", "run", other.container, timeout=60)
            return
        except OSError:
            if time.monotonic() > end:
                raise Stop("HPL08004E", f"service {other.name} did not become healthy") from None
            time.sleep(1)


def mount_points(volumes: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the directory of each volume by the mount point that the contract names."""
    return {volume.get("mount", "/mnt/data"): str(VOLUMES / name) for name, volume in volumes.items()}


def service() -> None:
    """Unpack, translate, start."""
    for left in (state.CONTRACT, state.SEEDS, state.PASSPHRASES):
        if left.exists():
            raise Stop("HPL08006E", "seeds, passphrases or sections are still there: no container starts")
    workload = state.section("workload")
    try:
        archive = read_archive(workload["compose"]["archive"])
        _, text = archive.compose()
        document = read_compose(text)
        places = Places(str(ARCHIVE), str(SCRATCH), mount_points(workload.get("volumes", {})))
        found = services(document, state.read_json(state.ENVIRONMENT), places)
    except (ContractError, ComposeError) as error:
        raise Stop("HPL08002E", str(error)) from None
    unpack(archive, ARCHIVE)
    network = None
    if len(found) > 1:
        network = NETWORK
        state.call(PODMAN, "network", "create", NETWORK)
    shutil.rmtree(state.SECTIONS)  # from here on workloads run, and none should find what it doesn't need
    state.ENVIRONMENT.unlink()
    by_name = {each.name: each for each in found}
    for each in found:
        for other, condition in each.after.items():
            wait_for(by_name[other], condition)
        start(each, network)
        say("HPL08008I", f"service {each.name} has been started")


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL08004E"))
