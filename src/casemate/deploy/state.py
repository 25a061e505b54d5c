"""What was done, kept beside the deployment file as ``FILE.state.json``: replaced whole, locked, without a secret.

It holds the deployment's own identifier, connection and directory, and for each machine the XML that was asked for and what
libvirt made of it: by these a later run tells its own changes from those of others. The state is believed as little as it can
be: a domain is ours only if it says so itself (:func:`casemate.deploy.domain.owner`), and no path is taken from here.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from casemate.contract.schema import fulfils
from casemate.deploy.errors import DeployError
from casemate.deploy.model import schema

FORMAT = "casemate-deployment-state/1"
LARGEST = 16 << 20


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a machine. All texts are empty until libvirt has taken its domain.

    ``asked`` is our XML, ``given`` what libvirt made of it, ``cidata`` the SHA-256, hex, of the volume as it was written.
    """

    asked: str = ""
    given: str = ""
    cidata: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """The state of a deployment."""

    id: str
    connection: str
    directory: str
    machines: dict[str, Known] = field(default_factory=dict)

    def with_machine(self, name: str, known: Known | None) -> State:
        """Return it with a machine known so, or with ``None`` forgotten."""
        others = {each: value for each, value in self.machines.items() if each != name}
        return State(self.id, self.connection, self.directory, others if known is None else {**others, name: known})


def place(deployment: Path) -> Path:
    """Return where the state of a deployment file is."""
    return deployment.with_name(f"{deployment.name}.state.json")


def new(connection: str, directory: Path) -> State:
    """Return the state of a deployment of which nothing is done."""
    return State(str(uuid.uuid4()), connection, str(directory))


def load(path: Path) -> State | None:
    """Read a state; ``None`` where there is none. Raises :class:`DeployError` where it is not one that we wrote."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _broken(path, f"can't be read: {error.strerror}") from None
    try:
        said = json.loads(data) if len(data) <= LARGEST else None
        return _parsed(said)
    except (ET.ParseError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _broken(path, "is not a state that Casemate wrote") from None


def _parsed(said: Any) -> State:
    if said.keys() != {"format", "id", "connection", "directory", "machines"} or said["format"] != FORMAT:
        raise ValueError
    definitions = schema()["$defs"]
    machines = {}
    for name, known in said["machines"].items():
        if not fulfils(name, definitions["name"], definitions):
            raise ValueError
        machines[name] = Known(**known)
        for xml in (machines[name].asked, machines[name].given):
            if xml and ("<!" in xml or ET.fromstring(xml).tag != "domain"):  # noqa: S314  (without declarations)
                raise ValueError
    texts = [
        said["connection"],
        said["directory"],
        *(text for known in machines.values() for text in asdict(known).values()),
    ]
    if str(uuid.UUID(said["id"])) != said["id"] or not all(isinstance(text, str) for text in texts):
        raise ValueError
    return State(said["id"], said["connection"], said["directory"], machines)


def save(path: Path, state: State) -> None:
    """Write a state, whole or not at all, readable by its owner only."""
    text = json.dumps({"format": FORMAT, **asdict(state)}, indent=1) + "\n"
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise _broken(path, f"can't be written: {error.strerror}") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one who changes this deployment. Raises :class:`DeployError` where another does."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _broken(lock, f"can't be opened: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DeployError(
                "another run changes this deployment", "wait until it has ended", str(path), id="DEPLOY-LOCKED"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _broken(path: Path, cause: str) -> DeployError:
    cure = "bring back the file from a copy; without it the domains are left as they are: `virsh undefine` removes one"
    return DeployError(cause, cure, str(path), id="DEPLOY-STATE")
