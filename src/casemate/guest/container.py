"""``hpl-container``: writes the archive's files out and starts the containers, in the order that they ask for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from casemate.contract.archive import Archive, read_archive
from casemate.contract.errors import ContractError
from casemate.contract.images import read_compose
from casemate.guest import state
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


def prepare(service: Service) -> None:
    """Make the directories that are mounted, and see that no mount goes through a link.

    Containers write to volumes and to the archive's files: a link that one left there must not give the next one a
    directory of the guest.
    """
    for path in service.mounts:
        if Path(path).resolve() != Path(path):
            raise Stop("HPL08002E", f"service {service.name}: a link lies on the way to a directory that it mounts")
    for directory in service.directories:
        Path(directory).mkdir(parents=True, exist_ok=True)


def start(service: Service, network: str | None) -> None:
    """Start one container. Its variables go by a file, or, those of several lines, by the engine's environment."""
    prepare(service)
    longer = {name: value for name, value in service.environment.items() if of_several_lines(value)}
    lines = {name: value for name, value in service.environment.items() if name not in longer}
    variables = state.RUN / "environment" / service.name
    state.write(variables, "".join(f"{name}={value}\n" for name, value in lines.items()))
    options = [f"--name={service.container}", f"--env-file={variables}", *(f"--env={name}" for name in longer)]
    if network is not None:
        options += [f"--network={network}", f"--network-alias={service.name}"]
    try:
        state.call(
            *(PODMAN, "run", "--detach", "--pull=never", "--log-driver=journald", *options, *service.options),
            *(service.image, *service.command),
            env=longer,
        )
    except OSError as error:
        raise Stop("HPL08004E", f"service {service.name} does not start: {error}") from None
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
    for left in (state.SEEDS, state.PASSPHRASES):
        if left.exists():
            raise Stop("HPL08006E", "seeds or passphrases are still there: no container starts")
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
    by_name = {each.name: each for each in found}
    for each in found:
        for other, condition in each.after.items():
            wait_for(by_name[other], condition)
        start(each, network)
        say("HPL08008I", f"service {each.name} has been started")


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL08004E"))
