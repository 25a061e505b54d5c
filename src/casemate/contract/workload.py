"""What a workload is once it is understood: containers, in one form for compose files and for pods.

``contract.compose`` and ``contract.play`` make it, ``hpl-container`` starts it. Making it is pure, so the host tells of
everything that the machine would refuse. Whatever is not understood is refused by name: a container that starts with less
than its author wrote down is worse than one that doesn't start.

Mounts: ``./path`` is a file of the archive, or, where it has none of this name, an empty directory beside its files; a path at
or below a volume's mount point is that volume, and volumes whose mount points lie below a path are mounted with it;
``/var/hyperprotect`` is the public record, read-only, and below it ``tools`` the guest's root as it is in the public archive,
read-only; ``/etc/machine-id`` is the guest's own, read-only; every other absolute path is a directory on the encrypted root
that is made empty for the workload. No other path of the guest can be reached.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from casemate.contract.errors import WorkloadError

WORKLOAD = "workload"
"""The network of all containers, unless a compose file has more."""


class Problems(list[WorkloadError]):
    """What was refused so far: the host shows all of it, the machine stops at the first.

    ``notes`` are what is taken otherwise than its author may think; a machine says so and goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[WorkloadError] = []

    def note(self, place: str, cause: str) -> None:
        """Add a note, once."""
        note = WorkloadError(place, cause)
        if str(note) not in map(str, self.notes):
            self.notes.append(note)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Keep what is raised inside, and go on behind."""
        try:
            yield
        except WorkloadError as error:
            self.append(error)


@dataclass(frozen=True, slots=True)
class Restart:
    """Whether a container that has ended starts again: ``when``, and after failures at ``most`` how often (``None``: always)."""

    when: Literal["never", "failure", "always"] = "never"
    most: int | None = None

    def again(self, code: int, times: int) -> bool:
        """Whether it does, after an end with ``code`` when it was started anew ``times`` already."""
        wanted = self.when == "always" or (self.when == "failure" and code != 0)
        return wanted and (self.most is None or times < self.most)


@dataclass(frozen=True, slots=True)
class Health:
    """How often, in seconds, a container is asked for its health, and what is made of the answers.

    It is asked first after ``delay``, or after an interval. Answers within ``start_period`` that are bad don't count;
    ``retries`` bad ones in a row make it unhealthy. With ``kills`` an unhealthy container is ended, and its restart policy
    says what follows. Without a ``probe`` the engine asks, by what the image or ``--health-cmd`` says.
    """

    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    retries: int = 3
    kills: bool = False
    delay: float | None = None
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """How a container of a pod is asked: a command in it, or a port at its pod's address.

    With a ``path`` the port is asked by HTTP, and well with a status from 200 to 399; without one when it takes a connection.
    """

    command: tuple[str, ...] = ()
    port: int = 0
    path: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A network of containers: the engine's name for it, options, and whether it is ``internal``, leading nowhere else."""

    name: str
    options: tuple[str, ...] = ()
    internal: bool = False


@dataclass(slots=True)
class Service:
    """One container: the engine's options, its variables (they never stand in arguments), what it waits for.

    ``name`` is the author's, ``container`` the engine's. ``after`` has a condition by the name of another: ``service_started``,
    ``service_healthy``, ``service_completed_successfully``. ``mounts`` are the paths of the guest that it is given, of which
    ``directories`` are made where they are missing. ``networks`` has options by the engine's name for each (``alias=…``,
    ``ip=…``); without one it is the engine's own network, or what ``--network`` says. ``pod`` names the pod whose network it
    shares. One that ``holds_pod`` has no image: it runs nothing, holds the network of its pod, and ends with the machine. Before
    ``startup`` has succeeded once, nothing else is asked; ``ready`` is asked and told, and changes nothing. What of ``mounts``
    stands in ``grouped`` is given to ``group``, as a whole where ``regroup`` says so or its top is another's. One that is
    ``not_root`` starts only if its image names a user by a number other than 0.
    """

    name: str
    container: str
    image: str
    options: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    networks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    restart: Restart = Restart()
    health: Health | None = None
    startup: Health | None = None
    ready: Health | None = None
    pod: str | None = None
    holds_pod: bool = False
    group: int | None = None
    grouped: list[str] = field(default_factory=list)
    regroup: bool = True
    not_root: bool = False


@dataclass(slots=True)
class Workload:
    """Containers in an order in which each comes after those that it waits for.

    ``files`` are written for them: mode and content by path in the guest; ``directories`` are theirs, and may stay empty.
    """

    services: list[Service] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    files: dict[str, tuple[int, bytes]] = field(default_factory=dict, repr=False)
    directories: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are in the guest: the archive's files, scratch directories, and volumes by mount point.

    ``files`` is what the archive holds; the bytes are there for files of variables.
    """

    archive: str
    scratch: str
    volumes: Mapping[str, str]
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}")
_SYSTEM = re.compile(r"/(proc|sys|dev|run|etc|usr|s?bin|lib(32|64|x32)?|boot|root|var)?(/|$)")
_DURATION = re.compile(
    r"(?=.)(?:([0-9]{1,5})h)?(?:([0-9]{1,5})m)?(?:([0-9]{1,6}(?:\.[0-9]{1,6})?)s)?(?:([0-9]{1,8})ms)?"
)


def not_known(place: str, key: str, known: Iterable[str]) -> WorkloadError:
    """Return the error for a key that is not understood, with the nearest known one."""
    import difflib

    near = difflib.get_close_matches(key, list(known), 1, 0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    return WorkloadError(f"{place}.{key[:60]}" if place else key[:60], f"not supported{hint}")


def plain(value: Any, place: str) -> str:
    """Return text, or a number as text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise WorkloadError(place, "must be text")
    if "\0" in str(value):
        raise WorkloadError(place, "has a NUL character")
    return str(value)


def flag(value: Any, place: str) -> bool:
    """True or false; as text too, since variables are text: a quoted ``"false"`` must not be true."""
    if value is True or value is False:
        return value
    if value not in ("true", "false"):
        raise WorkloadError(place, "must be true or false")
    return bool(value == "true")


def listed(value: Any, place: str) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        raise WorkloadError(place, "must be a list")
    return value


def mapped(value: Any, place: str) -> dict[str, Any]:
    """Return a mapping; nothing is an empty one."""
    if not isinstance(value, dict) and value is not None:
        raise WorkloadError(place, "must be a mapping")
    return value or {}


def only(value: Any, place: str, known: Iterable[str]) -> dict[str, Any]:
    """Return a mapping without a key that is not known."""
    found = mapped(value, place)
    for key in found:
        if key not in known:
            raise not_known(place, key, known)
    return found


def fields(value: Any, place: str, known: Iterable[str]) -> dict[str, Any]:
    """Return an object with the names of its fields as Kubernetes writes them; what is null is not there."""
    names = {name.lower(): name for name in known}
    found: dict[str, Any] = {}
    for key, item in mapped(value, place).items():
        name = names.get(key.lower())
        if name is None:
            raise not_known(place, key, known)
        if name in found:
            raise WorkloadError(f"{place}.{name}", "stands twice")
        if item is not None:
            found[name] = item
    return found


def words(value: Any, place: str) -> list[str]:
    """Return the words of a command, given as a list or as a line."""
    try:
        found = shlex.split(value) if isinstance(value, str) else [plain(item, place) for item in listed(value, place)]
    except ValueError:
        raise WorkloadError(place, "quotes don't match") from None
    if not found or any("\0" in word for word in found):
        raise WorkloadError(place, "is empty, or has a NUL character")
    return found


def whole(value: Any, place: str, least: int = 0, most: int = 2**31) -> int:
    """Return a whole number within its bounds."""
    text = plain(value, place)
    if not re.fullmatch("-?[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise WorkloadError(place, f"must be a whole number from {least} to {most}")
    return int(text)


def seconds(value: Any, place: str) -> float:
    """Return a duration as compose writes it (``1m30s``, ``500ms``), in seconds."""
    match = _DURATION.fullmatch(plain(value, place))
    if not match:
        raise WorkloadError(place, "write a duration such as 30s or 1m30s")
    hours, minutes, rest, thousandths = match.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest) + int(thousandths) / 1000


def require_address(value: Any, place: str) -> None:
    """Raise :class:`WorkloadError` unless it is an IP address."""
    import ipaddress

    try:
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise WorkloadError(place, "must be an IP address") from None


def variables(found: Mapping[str, str], place: str) -> dict[str, str]:
    """Return variables whose names and values a container can have."""
    for name, text in found.items():
        if not VARIABLE.fullmatch(name):
            raise WorkloadError(place, "a name has letters, digits, _ . - only, and starts with a letter or _")
        if "\0" in text or len(text.encode()) > 120_000:
            raise WorkloadError(f"{place}.{name}", "has a NUL character, or more than 120000 bytes")
    return dict(found)


def mount(made: Service, source: str, target: str, read_only: bool, place: str, places: Places) -> None:
    """Give a path to a container, under the rules of this module. ``source`` begins with ``.`` or ``/``."""
    host, fixed = _source(made, source, place, places)
    _give(made, host, target, read_only or fixed, place)
    above = _absolute(source)
    for point, directory in places.volumes.items():  # a bind mount has what is mounted below it
        if source.startswith("/") and point.startswith(f"{above}/"):
            below = point[len(above) :]
            made.directories.append(host + below)  # what it is mounted on
            _give(made, directory, posixpath.normpath(target) + below, read_only, place)


def _give(made: Service, host: str, target: str, read_only: bool, place: str) -> None:
    made.mounts.append(host)
    option = volume(host, target, read_only, place)
    if option not in made.options:
        made.options.append(option)


def volume(source: str, target: str, read_only: bool, place: str) -> str:
    """Return the engine's option for a mount."""
    if not target.startswith("/") or any(character in source + target for character in ":,\n\r\0"):
        raise WorkloadError(place, "a target is an absolute path, and paths have no colon, comma or line break")
    return f"--volume={source}:{target}{':ro' * read_only}"


def _absolute(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def _source(made: Service, source: str, place: str, places: Places) -> tuple[str, bool]:
    """Return where the guest has it, and whether it is read-only whatever the author wrote."""
    if not source.startswith("/"):
        path = posixpath.normpath(posixpath.join(places.archive, source))
        if path != places.archive and not path.startswith(f"{places.archive}/"):
            raise WorkloadError(place, "leaves the archive")
        made.directories.append(path)
        return path, False
    path = _absolute(source)
    for point, directory in sorted(places.volumes.items(), key=lambda item: -len(item[0])):  # the innermost first
        if path == point or path.startswith(f"{point}/"):
            inside = directory + path[len(point) :]
            if path != point:
                made.directories.append(inside)
            return inside, False
    if path in ("/var/hyperprotect", "/etc/machine-id") or path.startswith("/var/hyperprotect/"):
        return path, True
    if _SYSTEM.match(path):
        raise WorkloadError(place, "a directory of the system can't be mounted")
    made.directories.append(places.scratch + path)
    return places.scratch + path, False


def ordered(services: Mapping[str, Service], place: str) -> Iterator[Service]:
    """Yield services after those that they wait for."""
    for each in services.values():
        if lost := each.after.keys() - services.keys():
            raise WorkloadError(f"{place}.{each.name}.depends_on", f"no service {', '.join(sorted(lost))}")
        for name, condition in each.after.items():
            policy = services[name].restart
            if condition == "service_completed_successfully" and policy.when == "always" and policy.most is None:
                cause = f"{name} is never complete, since it always starts again"
                raise WorkloadError(f"{place}.{each.name}.depends_on", cause)
            if condition == "service_healthy" and "--no-healthcheck" in services[name].options:
                raise WorkloadError(
                    f"{place}.{each.name}.depends_on", f"{name} is never healthy: its check is switched off"
                )
    done: set[str] = set()
    waiting = dict(services)
    while waiting:
        ready = [each for each in waiting.values() if not each.after.keys() - done]
        if not ready:
            raise WorkloadError(place, f"{', '.join(waiting)} wait for each other")
        for each in ready:
            yield each
            done.add(each.name)
            del waiting[each.name]
