"""Translates a compose file into what the container engine is told, service by service, in the order of their start.

What is not understood is refused, by name: a container that starts with less than its author wrote down is worse than
one that doesn't start. The images are those that ``hpl-image`` has admitted, read from the same text by the same code.

Bind mounts: ``./path`` is a file of the archive; a path at or below a volume's mount point is that volume;
``/var/hyperprotect`` is the public record, read-only; every other absolute path is a directory on the encrypted root
that is made empty for the workload. No path of the guest itself can be reached.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from casemate.contract.errors import ImageError
from casemate.contract.images import compose_images, interpolate


class ComposeError(Exception):
    """A compose file asks for something that is not understood; the text has the place and no value."""


@dataclass(slots=True)
class Service:
    """One container: the engine's options, its variables (they never stand in arguments), what it waits for."""

    name: str
    container: str
    image: str
    options: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    healthcheck: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are in the guest: the archive's files, scratch directories, and volumes by mount point."""

    archive: str
    scratch: str
    volumes: Mapping[str, str]


_TEXT = {
    "working_dir": "--workdir",
    "user": "--user",
    "hostname": "--hostname",
    "stop_signal": "--stop-signal",
    "shm_size": "--shm-size",
    "mem_limit": "--memory",
    "cpus": "--cpus",
    "pids_limit": "--pids-limit",
    "pid": "--pid",
    "ipc": "--ipc",
}
_FLAGS = {"privileged": "--privileged", "read_only": "--read-only", "init": "--init", "tty": "--tty"}
_LISTS = {
    "cap_add": "--cap-add",
    "cap_drop": "--cap-drop",
    "security_opt": "--security-opt",
    "devices": "--device",
    "extra_hosts": "--add-host",
    "tmpfs": "--tmpfs",
    "dns": "--dns",
    "group_add": "--group-add",
}
_IGNORED = {"image", "container_name", "expose", "logging", "labels", "stop_grace_period", "platform", "pull_policy"}
_RESTART = re.compile(r"no|always|unless-stopped|on-failure(:[0-9]{1,4})?")
_PORT = re.compile(r"(?:(?P<host>[0-9]{1,5}):)?(?P<inside>[0-9]{1,5})(?:/(?P<kind>tcp|udp))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}")
_ENGINES = re.compile(
    r"PATH|HOME|USER|SHELL|TMPDIR|LANG|LANGUAGE|LOCPATH|NLSPATH|HOSTALIASES|RES_OPTIONS|LOCALDOMAIN|KUBECONFIG|.*_PROXY"
    r"|(LD|LC|GCONV|GLIBC|MALLOC|GO|XDG|SSL|CNI|RUST|NETAVARK|AARDVARK|DBUS|SYSTEMD|NOTIFY|LISTEN|JOURNAL|CRUN|LIBCRUN"
    r"|(CONTAINER|PODMAN|DOCKER|BUILDAH|STORAGE|REGISTRY|CONMON|LIBPOD|OCI|REGISTRIES|SIGNATURE)S?)_?.*|_.*",
    re.IGNORECASE,
)
"""Variables that the engine, or what it starts, may obey itself; those of several lines go by its environment."""


def services(document: Mapping[str, Any], env: Mapping[str, str], places: Places) -> list[Service]:
    """Return the services in the order of their start. Raises :class:`ComposeError`."""
    for key in document:
        if key not in ("services", "version", "volumes", "networks", "name") and not key.startswith("x-"):
            raise ComposeError(f"{key}: not supported")
    _networks(document.get("networks"))
    images = compose_images(document, env)
    named = _named(document.get("volumes"))
    made = {}
    for name, raw in document["services"].items():
        image = images[name]
        if isinstance(image, ImageError):
            raise ComposeError(str(image))
        try:
            values = _filled(raw, env)
        except ImageError as error:
            raise ComposeError(f"services.{name}: {error.cause}") from None
        made[name] = _service(name, values, image.canonical, places, named)
    return list(_ordered(made))


def _filled(value: Any, env: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return interpolate(value, env)
    if isinstance(value, list):
        return [_filled(item, env) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, env) for key, item in value.items()}
    return value


def _service(name: str, raw: dict[str, Any], image: str, places: Places, named: Mapping[str, Any]) -> Service:
    if not _NAME.fullmatch(name):
        raise ComposeError("services: the name of a service has letters, digits, _ . - only, at most 64")
    where = f"services.{name}"
    container = raw.get("container_name", name)
    if not isinstance(container, str) or not _NAME.fullmatch(container):
        raise ComposeError(f"{where}.container_name: letters, digits, _ . - only, at most 64")
    made = Service(name, container, image)
    command: list[str] = []
    for key, value in raw.items():
        place = f"{where}.{key}"
        if key in _IGNORED or key.startswith("x-"):
            continue
        if key in _TEXT:
            made.options.append(f"{_TEXT[key]}={_plain(value, place)}")
        elif key in _FLAGS:
            made.options += [_FLAGS[key]] if _flag(value, place) else []
        elif key in _LISTS:
            items = [value] if isinstance(value, str) else value
            made.options += [f"{_LISTS[key]}={_plain(item, place)}" for item in _list(items, place)]
        elif key == "command":
            command = _words(value, place)
        elif key == "entrypoint":
            first, *made.command = _words(value, place)
            made.options.append(f"--entrypoint={first}")
        elif key == "environment":
            made.environment = _environment(value, place)
        elif key == "ports":
            made.options += [f"--publish={_port(item, place)}" for item in _list(value, place)]
        elif key == "volumes":
            for item in _list(value, place):
                _mount(made, item, place, places, named)
        elif key == "networks":
            _networks(dict.fromkeys(value) if isinstance(value, list) and all(map(_is_text, value)) else value, place)
        elif key == "depends_on":
            made.after = _after(value, place)
        elif key == "restart":
            if not isinstance(value, str) or not _RESTART.fullmatch(value):
                raise ComposeError(f"{place}: no, always, unless-stopped or on-failure")
            made.options.append(f"--restart={value}")
        elif key == "sysctls":
            made.options += [f"--sysctl={k}={v}" for k, v in _variables(value, place).items()]
        elif key == "ulimits":
            made.options += [f"--ulimit={text}" for text in _limits(value, place)]
        elif key == "healthcheck":
            made.options += _health(value, place)
            made.healthcheck = True
        else:
            raise ComposeError(f"{place}: not supported")
    made.command += command  # what follows the entry point, whichever stands first in the file
    return made


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any, place: str) -> bool:
    """True or false; as text too, since variables are text: a quoted ``"false"`` must not be true."""
    if value not in (True, False, "true", "false") or isinstance(value, (int, float)) is not isinstance(value, bool):
        raise ComposeError(f"{place}: must be true or false")
    return value in (True, "true")


def _networks(value: Any, place: str = "networks") -> None:
    """One network connects all services: two of them, or one with options, would be another isolation than written."""
    if value is None:
        return
    if not isinstance(value, dict) or len(value) > 1 or any(item not in (None, {}) for item in value.values()):
        raise ComposeError(f"{place}: one network without options connects all services; more is not supported")


def _named(value: Any) -> Mapping[str, Any]:
    """Named volumes: their options could name any directory of the guest, so there are none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ComposeError("volumes: must be a mapping")
    for name, item in value.items():
        if not _NAME.fullmatch(name) or item not in (None, {}):
            raise ComposeError("volumes: names have letters, digits, _ . - only; options are not supported")
    return value


def _environment(value: Any, place: str) -> dict[str, str]:
    found = _variables(value, place)
    for name, text in found.items():
        if not _VARIABLE.fullmatch(name):
            raise ComposeError(f"{place}: a name has letters, digits, _ . - only, and starts with a letter or _")
        if of_several_lines(text) and _ENGINES.fullmatch(name):
            raise ComposeError(f"{place}.{name}: can't have several lines; put them into a file of the archive")
        if "\0" in text:
            raise ComposeError(f"{place}.{name}: has a NUL character")
    return found


def of_several_lines(text: str) -> bool:
    """Whether a file of ``NAME=value`` lines can't hold a value."""
    return "\n" in text or "\r" in text


def _plain(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ComposeError(f"{place}: must be text")
    return str(value)


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ComposeError(f"{place}: must be a list")
    return value


def _words(value: Any, place: str) -> list[str]:
    try:
        words = shlex.split(value) if isinstance(value, str) else [_plain(item, place) for item in _list(value, place)]
    except ValueError:
        raise ComposeError(f"{place}: quotes don't match") from None
    if not words:
        raise ComposeError(f"{place}: is empty")
    return words


def _variables(value: Any, place: str) -> dict[str, str]:
    if isinstance(value, list):
        pairs = [_plain(item, place).partition("=") for item in value]
        if any(not equals for _, equals, _ in pairs):
            raise ComposeError(f"{place}: write NAME=value")
        return {name: text for name, _, text in pairs}
    if not isinstance(value, dict):
        raise ComposeError(f"{place}: must be a mapping or a list")
    return {key: _word(item, place) for key, item in value.items()}


def _word(value: Any, place: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else _plain(value, place)


def _port(value: Any, place: str) -> str:
    if isinstance(value, dict):
        target, published = value.get("target"), value.get("published", value.get("target"))
        value = f"{published}:{target}/{value.get('protocol', 'tcp')}"
    match = _PORT.fullmatch(str(value))
    if not match or not all(0 < int(match[part] or 1) < 65536 for part in ("host", "inside")):
        raise ComposeError(f"{place}: write PORT:PORT, each from 1 to 65535")
    return f"{match['host'] or match['inside']}:{match['inside']}/{match['kind'] or 'tcp'}"


def _mount(made: Service, value: Any, place: str, places: Places, named: Mapping[str, Any]) -> None:
    if isinstance(value, dict):
        if value.get("type", "volume") not in ("bind", "volume"):
            raise ComposeError(f"{place}: type must be bind or volume")
        source, target, modes = value.get("source", ""), value.get("target", ""), ["ro"] * bool(value.get("read_only"))
    else:
        source, _, rest = _plain(value, place).partition(":")
        target, _, mode = rest.partition(":")
        modes = [word for word in mode.split(",") if word]
    modes = [word for word in modes if word not in ("z", "Z", "rw")]
    if not str(target).startswith("/") or any(word != "ro" for word in modes):
        raise ComposeError(f"{place}: write SOURCE:/target or SOURCE:/target:ro")
    host, read_only = _source(made, str(source), place, places, named)
    if host.startswith("/"):
        made.mounts.append(host)
    if any(character in host + str(target) for character in ":,\n"):
        raise ComposeError(f"{place}: odd characters in a path")
    made.options.append(f"--volume={host}:{target}{':ro' if modes or read_only else ''}")


def _source(made: Service, source: str, place: str, places: Places, named: Mapping[str, Any]) -> tuple[str, bool]:
    if source.startswith("."):
        path = posixpath.normpath(posixpath.join(places.archive, source))
        if path != places.archive and not path.startswith(f"{places.archive}/"):
            raise ComposeError(f"{place}: leaves the archive")
        return path, False
    if source.startswith("/"):
        path = "/" + posixpath.normpath(source).lstrip("/")
        if path == "/var/hyperprotect" or path.startswith("/var/hyperprotect/"):
            return path, True
        for mount, directory in sorted(places.volumes.items(), key=lambda item: -len(item[0])):  # the innermost first
            if path == mount or path.startswith(f"{mount}/"):
                inside = directory + path[len(mount) :]
                if path != mount:
                    made.directories.append(inside)
                return inside, False
        if re.match(r"/(proc|sys|dev|run|etc|usr|s?bin|lib(32|64|x32)?|boot|root|var)?(/|$)", path):
            raise ComposeError(f"{place}: a directory of the system can't be mounted")
        made.directories.append(places.scratch + path)
        return places.scratch + path, False
    if source not in named or not _NAME.fullmatch(source):
        raise ComposeError(f"{place}: the volume is not declared under `volumes:` of the compose file")
    return source, False


def _after(value: Any, place: str) -> dict[str, str]:
    if isinstance(value, list) and all(map(_is_text, value)):
        return dict.fromkeys(value, "service_started")
    if not isinstance(value, dict):
        raise ComposeError(f"{place}: must be a list or a mapping")
    found = {}
    for name, item in value.items():
        condition = item.get("condition", "service_started") if isinstance(item, dict) else "service_started"
        if condition not in ("service_started", "service_healthy", "service_completed_successfully"):
            raise ComposeError(f"{place}.{name}.condition: not known")
        found[name] = condition
    return found


def _limits(value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        raise ComposeError(f"{place}: must be a mapping")
    for name, limit in value.items():
        if isinstance(limit, dict):
            yield f"{name}={_plain(limit.get('soft'), place)}:{_plain(limit.get('hard'), place)}"
        else:
            yield f"{name}={_plain(limit, place)}"


def _health(value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict) or "test" not in value:
        raise ComposeError(f"{place}: needs a test")
    test = value["test"]
    if value.get("disable") or test == ["NONE"]:
        yield "--no-healthcheck"
        return
    if isinstance(test, list) and test and test[0] in ("CMD", "CMD-SHELL"):
        import json

        test = test[1] if test[0] == "CMD-SHELL" else json.dumps(test[1:])
    yield f"--health-cmd={_plain(test, place)}"
    yield "--health-interval=disable"  # asked when a service waits for it; see hpl-container


def _ordered(made: dict[str, Service]) -> Iterator[Service]:
    """Yield services after those that they wait for."""
    done: set[str] = set()
    waiting = dict(made)
    while waiting:
        for each in waiting.values():
            if lost := each.after.keys() - made.keys():
                raise ComposeError(f"services.{each.name}.depends_on: no service {', '.join(sorted(lost))}")
        ready = [each for each in waiting.values() if not each.after.keys() - done]
        if not ready:
            raise ComposeError(f"services: {', '.join(waiting)} wait for each other")
        for each in ready:
            yield each
            done.add(each.name)
            del waiting[each.name]
