"""Compose files: what of the Compose specification is understood, and which containers become of it.

    workload = translate(read_compose(text), {"PASSWORD": "…"}, places, problems := Problems())

What is not understood is refused by name (:mod:`casemate.contract.workload`). Values are interpolated with the variables of the
contract first. The images are those that ``hpl-image`` has admitted, read from the same text by the same code.

Passed over, since they change nothing inside: ``labels``, ``annotations``, ``logging`` (the contract says where lines go),
``expose``, ``platform``, ``pull_policy`` (images are pulled anew at each start), ``attach``, ``version``, ``name``, ``x-…``;
``restart`` of ``depends_on``, ``start_interval`` of ``healthcheck``, ``create_host_path`` of a mount, ``delay`` and ``window`` of
``deploy.restart_policy``; ``driver: local`` of a volume and ``driver: bridge`` of a network, which are so anyway.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from casemate.contract.errors import ImageError, WorkloadError
from casemate.contract.images import OPEN, Open, compose_images, interpolate
from casemate.contract.workload import (
    NAME,
    Health,
    Places,
    Problems,
    Restart,
    Service,
    Workload,
    flag,
    listed,
    mapped,
    mount,
    not_known,
    only,
    ordered,
    plain,
    seconds,
    variables,
    volume,
    whole,
    words,
)

_TOP = ("services", "version", "volumes", "networks", "name", "secrets", "configs")
_TEXT = {
    "working_dir": "--workdir",
    "user": "--user",
    "hostname": "--hostname",
    "stop_signal": "--stop-signal",
    "shm_size": "--shm-size",
    "mem_limit": "--memory",
    "mem_reservation": "--memory-reservation",
    "memswap_limit": "--memory-swap",
    "cpus": "--cpus",
    "cpu_shares": "--cpu-shares",
    "cpuset": "--cpuset-cpus",
    "pids_limit": "--pids-limit",
    "oom_score_adj": "--oom-score-adj",
    "pid": "--pid",
    "ipc": "--ipc",
}
_FLAGS = {
    "privileged": "--privileged",
    "read_only": "--read-only",
    "init": "--init",
    "tty": "--tty",
    "stdin_open": "--interactive",
}
_LISTS = {
    "cap_add": "--cap-add",
    "cap_drop": "--cap-drop",
    "security_opt": "--security-opt",
    "devices": "--device",
    "tmpfs": "--tmpfs",
    "dns": "--dns",
    "dns_search": "--dns-search",
    "dns_opt": "--dns-option",
    "group_add": "--group-add",
}
_IGNORED = (
    *("image", "container_name", "expose", "logging", "labels", "annotations", "platform", "pull_policy", "attach"),
    *("environment", "env_file"),  # understood before the others
    *("build", "extends"),  # refused where the images are found
)
_RESTART = re.compile(r"no|always|unless-stopped|on-failure(?::(?P<most>[0-9]{1,4}))?")
_SPAN = r"[0-9]{1,5}(?:-[0-9]{1,5})?"
_PORT = re.compile(rf"(?:0\.0\.0\.0:)?(?:(?P<host>{_SPAN}):)?(?P<inside>{_SPAN})(?:/(?P<kind>tcp|udp))?")
_SIZE = r"[0-9]{1,18}(?:\.[0-9]{1,6})? ?[kKmMgGtTpP]?[iI]?[bB]?"
_COUNT = r"[0-9]{1,10}"
_CAPABILITIES = (
    "AUDIT_CONTROL|AUDIT_READ|AUDIT_WRITE|BLOCK_SUSPEND|BPF|CHECKPOINT_RESTORE|CHOWN|DAC_OVERRIDE|"
    "DAC_READ_SEARCH|FOWNER|FSETID|IPC_LOCK|IPC_OWNER|KILL|LEASE|LINUX_IMMUTABLE|MAC_ADMIN|MAC_OVERRIDE|"
    "MKNOD|NET_ADMIN|NET_BIND_SERVICE|NET_BROADCAST|NET_RAW|PERFMON|SETFCAP|SETGID|SETPCAP|SETUID|SYSLOG|"
    "SYS_ADMIN|SYS_BOOT|SYS_CHROOT|SYS_MODULE|SYS_NICE|SYS_PACCT|SYS_PTRACE|SYS_RAWIO|SYS_RESOURCE|"
    "SYS_TIME|SYS_TTY_CONFIG|WAKE_ALARM|ALL"
)
_CAPABILITY = rf"(?i:(?:CAP_)?(?:{_CAPABILITIES}))"
_SIGNAL = (
    r"(?i:(?:SIG)?(?:HUP|INT|QUIT|ILL|TRAP|ABRT|BUS|FPE|KILL|USR1|SEGV|USR2|PIPE|ALRM|TERM|STKFLT|CHLD|CONT|STOP|TSTP|TTIN|TTOU|URG"
    r"|XCPU|XFSZ|VTALRM|PROF|WINCH|IO|PWR|SYS|RTMIN(?:\+[0-9]{1,2})?|RTMAX(?:-[0-9]{1,2})?))|[0-9]{1,2}"
)
_FORMS = {
    "stop_signal": (_SIGNAL, "a signal, as SIGTERM"),
    **dict.fromkeys(("shm_size", "mem_limit", "mem_reservation"), (_SIZE, "a size, as 64m")),
    "memswap_limit": (rf"{_SIZE}|-1", "a size, as 64m, or -1"),
    "cpus": (r"[0-9]{1,4}(?:\.[0-9]{1,6})?|\.[0-9]{1,6}", "a number of processors, as 0.5"),
    "cpu_shares": (_COUNT, "a whole number"),
    "cpuset": (r"[0-9]{1,4}(?:-[0-9]{1,4})?(?:,[0-9]{1,4}(?:-[0-9]{1,4})?)*", "processors, as 0-1,3"),
    "pids_limit": (rf"-1|{_COUNT}", "a whole number, or -1"),
    "oom_score_adj": (r"-?(?:1000|[0-9]{1,3})", "a number from -1000 to 1000"),
    "pid": ("host|private", "host or private: containers share no processes with each other"),
    "ipc": ("host|private|shareable|none", "host, private, shareable or none"),
    **dict.fromkeys(("cap_add", "cap_drop"), (_CAPABILITY, "a capability of Linux, as NET_ADMIN, or ALL")),
    "tmpfs": (r"/[^:]*(?::[A-Za-z0-9=,_-]+)?", "an absolute path, and options behind a colon"),
}
"""What the engine takes, so that a slip is told with its place, and on the host."""
_LIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss"),
    *("rtprio", "rttime", "sigpending", "stack"),
)
_SYSCTL = r"net\.[A-Za-z0-9_./-]+|fs\.mqueue\.[a-z_]+|kernel\.(?:msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced)"
_CONDITIONS = ("service_started", "service_healthy", "service_completed_successfully")
_LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\s*=[ \t]*
        (?:'(?P<literal>[^']*)'|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^'"\s#][^\r\n]*?|))(?:[ \t]+\#.*|[ \t]*)""",
    re.VERBOSE,
)


@dataclass(slots=True)
class _File:
    """What a compose file declares beside its services: named volumes; secrets and configs, files of the archive by name."""

    volumes: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=lambda: {"secrets": {}, "configs": {}})


@dataclass(slots=True)
class _Making:
    """A service while it is made, and what it is made of."""

    made: Service
    raw: Mapping[str, Any]
    file: _File
    env: Mapping[str, str]
    places: Places
    problems: Problems
    command: list[str] = field(default_factory=list)


def translate(document: Mapping[str, Any], env: Mapping[str, str], places: Places, problems: Problems) -> Workload:
    """Return the containers of a compose file in the order of their start; what is refused goes into ``problems``.

    What is wrong with images is told by :func:`casemate.contract.images.workload_images`, and not here again. Where the
    deployer's variables are not known yet (``env`` is :class:`Open`), what depends on one of them is passed over.
    """
    file = _declared(document, env, problems)
    images = compose_images(document, env)
    made: dict[str, Service] = {}
    for name, raw in document["services"].items():
        if isinstance(raw, dict):
            image = images[name]
            text = "" if isinstance(image, ImageError) else image.canonical
            made[name] = _service(_Making(Service(name, name, text), raw, file, env, places, problems))
    with problems.caught():
        _apart(made.values())
    with problems.caught():
        _one_network(document)
    with problems.caught():
        return Workload(list(ordered(made, "services")))
    return Workload(list(made.values()))


def _apart(services: Iterable[Service]) -> None:
    """Two services have not one container name, and publish not one port."""
    names: dict[str, str] = {}
    ports: dict[tuple[int, str], str] = {}
    for each in services:
        if (other := names.setdefault(each.container, each.name)) != each.name:
            raise WorkloadError(f"services.{each.name}.container_name", f"is that of {other} already")
        for option in each.options:
            if option.startswith("--publish="):
                span, _, rest = option.removeprefix("--publish=").partition(":")
                first, _, last = span.partition("-")
                for number in range(int(first), int(last or first) + 1):
                    if (other := ports.setdefault((number, rest[-3:]), option + each.name)) != option + each.name:
                        raise WorkloadError(f"services.{each.name}.ports", f"{number} is published twice")


def _one_network(document: Mapping[str, Any]) -> None:
    """All services are on one network, and it is declared: where they aren't, they could reach each other against the file."""
    declared = {"default", *mapped(document.get("networks"), "networks")}
    shared = owner = ""
    for service, raw in document["services"].items():
        if not isinstance(raw, dict) or raw.get("network_mode") is not None:
            continue
        given = raw.get("networks") or ["default"]
        for name in given if isinstance(given, (list, dict)) else ():
            if not isinstance(name, str) or "$" in name:
                continue
            if name not in declared:
                raise WorkloadError(f"services.{service}.networks", "is not declared under `networks:` of the file")
            if owner and name != shared:
                raise WorkloadError(
                    f"services.{service}.networks",
                    f"is another network than that of {owner}: one connects all services; more is not supported",
                )
            shared, owner = name, owner or service


def _declared(document: Mapping[str, Any], env: Mapping[str, str], problems: Problems) -> _File:
    file = _File()
    for key in document:
        if key not in _TOP and not key.startswith("x-"):
            problems.append(not_known("", key, _TOP))
    with problems.caught():
        _networks(document.get("networks"), "networks")
    for name, item in mapped(document.get("volumes"), "volumes").items():
        file.volumes[name] = name
        with problems.caught():
            given = _plain_resource(item, f"volumes.{name}", "local")
            if not NAME.fullmatch(name) or not NAME.fullmatch(given.get("name", name)):
                raise WorkloadError("volumes", "names have letters, digits, _ . - only")
            file.volumes[name] = given.get("name", name)
    for kind, files in file.files.items():
        with problems.caught():
            for name, item in mapped(document.get(kind), kind).items():
                path = only(item, f"{kind}.{name}", ("file", "labels")).get("file")
                if not isinstance(path, str) or not path or path.startswith("/"):
                    raise WorkloadError(f"{kind}.{name}", "needs `file`, a path in the archive")
                path = _filled(path, env, f"{kind}.{name}.file")
                files[name] = path if path.startswith(".") else f"./{path}"
    return file


def _plain_resource(value: Any, place: str, driver: str) -> dict[str, str]:
    """Return what a volume or network says of itself, which is nothing but its name: options could name any directory."""
    given = {key: item for key, item in mapped(value, place).items() if item not in (None, {}, [])}
    given.pop("labels", None)
    if given.pop("driver", driver) not in (driver, "default") or given.pop("external", False) not in (False, "false"):
        raise WorkloadError(place, f"must be of this workload only, and of the driver {driver}")
    only(given, place, ("name",))
    if not isinstance(given.get("name", ""), str):
        raise WorkloadError(f"{place}.name", "must be text")
    return given


def _service(making: _Making) -> Service:
    made, raw, problems = making.made, making.raw, making.problems
    where = f"services.{made.name}"
    with problems.caught():
        if not NAME.fullmatch(made.name):
            raise WorkloadError("services", "the name of a service has letters, digits, _ . - only, at most 64")
        container = _filled(raw.get("container_name", made.name), making.env, f"{where}.container_name")
        if not isinstance(container, str) or not NAME.fullmatch(container):
            raise WorkloadError(f"{where}.container_name", "letters, digits, _ . - only, at most 64")
        made.container = container
    if "environment" in raw or "env_file" in raw:
        _environment(making, where)
    for key, value in raw.items():
        if key in _IGNORED or key.startswith("x-") or value is None:
            continue
        before = len(problems)
        with problems.caught():
            if key not in _HANDLERS:
                raise not_known(where, key, (*_HANDLERS, *_IGNORED))
            env = {"PWD": ".", **making.env} if key == "volumes" and not isinstance(making.env, Open) else making.env
            filled = _filled(value, env, f"{where}.{key}")
            with problems.caught():
                _HANDLERS[key](making, filled, f"{where}.{key}")
            if isinstance(making.env, Open) and OPEN in repr(filled):
                del problems[before:]  # what is wrong may be only that a value isn't there yet
    made.command += making.command  # what follows the entry point, whichever stands first in the file
    return made


def _filled(value: Any, env: Mapping[str, str], place: str) -> Any:
    """Return a value with the variables in it replaced."""
    if isinstance(value, str):
        try:
            return interpolate(value, env)
        except ImageError as error:
            raise WorkloadError(place, error.cause) from None
    if isinstance(value, list):
        return [_filled(item, env, place) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, env, f"{place}.{key}"[:200]) for key, item in value.items()}
    return value


# ------------------------------------------------------------------------------------------------- variables


def _environment(making: _Making, where: str) -> None:
    """Variables of files first, then those that stand in the compose file, which win."""
    found: dict[str, str] = {}
    with making.problems.caught():
        for each in _env_files(making, f"{where}.env_file"):
            found |= each
    place = f"{where}.environment"
    with making.problems.caught():
        filled = _filled(making.raw.get("environment") or {}, making.env, place)
        found |= pairs(filled, place, making.env)
        making.made.environment = variables(found, place)


def _env_files(making: _Making, place: str) -> Iterator[dict[str, str]]:
    given = making.raw.get("env_file") or []
    for item in [given] if isinstance(given, str) else listed(given, place):
        entry = only({"path": item} if isinstance(item, str) else item, place, ("path", "required", "format"))
        path = _filled(plain(entry.get("path"), place), making.env, place)
        name = posixpath.normpath(path)
        if name.startswith(("/", "../")) or name == "..":
            raise WorkloadError(place, "must be a file of the archive")
        if name in making.places.files:
            yield read_env_file(making.places.files[name], making.env, f"{place}, {name}")
        elif flag(entry.get("required", True), place):
            raise WorkloadError(place, "the archive has no such file")


def read_env_file(content: bytes, env: Mapping[str, str], place: str) -> dict[str, str]:
    """Read ``NAME=value`` lines. Values may be quoted: ``'…'`` as it is; ``"…"`` and bare ones with variables replaced."""
    found: dict[str, str] = {}
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise WorkloadError(place, "is not UTF-8") from None
    known = env if isinstance(env, Open) else ChainMap(dict(env), found)  # lines above may be referred to
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise WorkloadError(f"{place}, line {number}", "write NAME=value, on one line")
        if match["literal"] is not None:
            found[match["name"]] = match["literal"]
            continue
        text = match["bare"] if match["quoted"] is None else re.sub(r"\\(.)", _escaped, match["quoted"])
        found[match["name"]] = _filled(text, known, f"{place}, line {number}")
    return found


def _escaped(match: re.Match[str]) -> str:
    return {"n": "\n", "r": "\r", "t": "\t"}.get(match[1], match[1])


def pairs(value: Any, place: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return names with values, given as a mapping or as ``NAME=value``; a name alone has the value of ``env``, if any."""
    found: dict[str, str] = {}
    items: dict[Any, Any]
    if isinstance(value, list):
        split = [plain(item, place).partition("=") for item in value]
        items = {name: text if equals else None for name, equals, text in split}
    else:
        items = mapped(value, place)
    for name, item in items.items():
        if item is None and env is None:
            raise WorkloadError(place, "write NAME=value")
        if item is None and env is not None:
            if name in env:
                found[name] = env[name]
            continue
        found[name] = ("true" if item else "false") if isinstance(item, bool) else plain(item, f"{place}.{name}"[:200])
    return found


# ------------------------------------------------------------------------------------------------- the rest, key by key


def _formed(key: str, value: Any, place: str) -> str:
    """Return a value as text that the engine takes."""
    text = plain(value, place)
    form, must = _FORMS.get(key, (r"[^\0]*", ""))
    if not re.fullmatch(form, text, re.DOTALL):
        raise WorkloadError(place, f"must be {must}")
    return text


def _text(making: _Making, value: Any, place: str) -> None:
    key = place.rpartition(".")[2]
    making.made.options.append(f"{_TEXT[key]}={_formed(key, value, place)}")


def _flags(making: _Making, value: Any, place: str) -> None:
    making.made.options += [_FLAGS[place.rpartition(".")[2]]] if flag(value, place) else []


def _lists(making: _Making, value: Any, place: str) -> None:
    key = place.rpartition(".")[2]
    items = [value] if isinstance(value, str) else listed(value, place)
    for item in items:
        if key == "dns":
            _require_address(item, place)
        making.made.options.append(f"{_LISTS[key]}={_formed(key, item, place)}")


def _require_address(value: Any, place: str) -> None:
    import ipaddress

    try:
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise WorkloadError(place, "must be an IP address") from None


def _command(making: _Making, value: Any, place: str) -> None:
    if value in ([], "") and making.raw.get("entrypoint") is not None:
        return  # with an entry point of the file's, the image's command is not taken anyway
    making.command = words(value, place)


def _entrypoint(making: _Making, value: Any, place: str) -> None:
    if value in ([], ""):  # the image's is not taken
        making.made.options.append("--entrypoint=")
        return
    first, *making.made.command = words(value, place)
    making.made.options.append(f"--entrypoint={first}")


def _ports(making: _Making, value: Any, place: str) -> None:
    for number, item in enumerate(listed(value, place)):
        with making.problems.caught():
            making.made.options.append(f"--publish={port(item, f'{place}[{number}]')}")


def port(value: Any, place: str) -> str:
    """Return a published port as the engine takes it."""
    if isinstance(value, dict):
        only(value, place, ("target", "published", "protocol", "mode", "host_ip", "name", "app_protocol"))
        target, published = value.get("target"), value.get("published", value.get("target"))
        if value.get("host_ip", "0.0.0.0") != "0.0.0.0":  # noqa: S104
            raise WorkloadError(place, "a port is published at all addresses of the machine or not at all")
        value = f"{published}:{target}/{value.get('protocol', 'tcp')}"
    match = _PORT.fullmatch(str(value))
    wrong = WorkloadError(place, "write PORT:PORT, each from 1 to 65535, or two spans of one length")
    if not match or isinstance(value, bool):
        raise wrong
    sizes = set()
    for span in (match["host"] or match["inside"], match["inside"]):
        first, _, last = span.partition("-")
        if not 0 < int(first) <= int(last or first) < 65536:
            raise wrong
        sizes.add(int(last or first) - int(first))
    if len(sizes) > 1:
        raise wrong
    return f"{match['host'] or match['inside']}:{match['inside']}/{match['kind'] or 'tcp'}"


def _volumes(making: _Making, value: Any, place: str) -> None:
    for number, item in enumerate(listed(value, place)):
        with making.problems.caught():
            _volume(making, item, f"{place}[{number}]")


def _volume(making: _Making, value: Any, place: str) -> None:
    made = making.made
    if isinstance(value, dict):
        only(value, place, ("type", "source", "target", "read_only", "bind", "volume", "tmpfs", "consistency"))
        kind = value.get("type", "volume")
        source, target = plain(value.get("source", ""), place), plain(value.get("target", ""), place)
        read_only = flag(value.get("read_only", False), place)
        if kind == "tmpfs":
            made.options.append(_tmpfs(target, value.get("tmpfs"), place))
            return
        if kind not in ("bind", "volume") or "tmpfs" in value:
            raise WorkloadError(place, "type must be bind, volume or tmpfs")
        bind = only(value.get("bind"), f"{place}.bind", ("create_host_path", "selinux"))
        flag(bind.get("create_host_path", True), f"{place}.bind.create_host_path")
        only(value.get("volume"), f"{place}.volume", ("nocopy",))
        if kind == "bind" and not source.startswith((".", "/")):
            source = f"./{source}"
    else:
        source, _, rest = plain(value, place).partition(":")
        target, _, mode = rest.partition(":")
        modes = {word for word in mode.split(",") if word} - {"z", "Z", "rw", "cached", "delegated", "consistent"}
        if modes - {"ro"} or not target:
            raise WorkloadError(place, "write SOURCE:/target or SOURCE:/target:ro")
        read_only = bool(modes)
    if source.startswith((".", "/")):
        mount(made, source, target, read_only, place, making.places)
    elif source in making.file.volumes and NAME.fullmatch(source):
        made.options.append(volume(making.file.volumes[source], target, read_only, place))
    else:
        raise WorkloadError(place, "the volume is not declared under `volumes:` of the compose file")


def _tmpfs(target: str, value: Any, place: str) -> str:
    options = only(value, f"{place}.tmpfs", ("size", "mode"))
    if not target.startswith("/") or ":" in target:
        raise WorkloadError(place, "a target is an absolute path")
    given = ",".join(f"{key}={plain(item, place)}" for key, item in options.items())
    return f"--tmpfs={target}{':' * bool(given)}{given}"


def _files(making: _Making, value: Any, place: str) -> None:
    """``secrets`` and ``configs`` that are files of the archive, mounted read-only."""
    kind = place.rpartition(".")[2]
    for item in listed(value, place):
        entry = only(
            {"source": item} if isinstance(item, str) else item, place, ("source", "target", "uid", "gid", "mode")
        )
        name = plain(entry.get("source"), place)
        if name not in making.file.files[kind]:
            raise WorkloadError(place, f"is not declared under `{kind}:` of the compose file")
        if entry.keys() & {"uid", "gid", "mode"}:
            raise WorkloadError(place, "uid, gid and mode are not supported: files have those of the archive")
        path = making.file.files[kind][name]
        if posixpath.normpath(path) not in making.places.files and OPEN not in path:
            raise WorkloadError(place, "the archive has no such file")
        target = plain(entry.get("target", name), place)
        if not target.startswith("/"):
            target = f"/run/secrets/{target}" if kind == "secrets" else f"/{target}"
        mount(making.made, path, target, True, place, making.places)


def _service_networks(making: _Making, value: Any, place: str) -> None:
    if isinstance(value, list):
        value = dict.fromkeys(plain(item, place) for item in value)
    found = mapped(value, place)
    for item in found.values():
        _aliases(making, item, place)
    _networks(dict.fromkeys(found), place)


def _aliases(making: _Making, item: Any, place: str) -> None:
    for alias in listed(only(item, place, ("aliases",)).get("aliases", []), place):
        if not isinstance(alias, str) or not NAME.fullmatch(alias):
            raise WorkloadError(place, "an alias has letters, digits, _ . - only")
        making.made.options.append(f"--network-alias={alias}")


def _networks(value: Any, place: str) -> None:
    """One network connects all services: two of them, or one with options, would be another isolation than written."""
    found = mapped(value, place)
    if len(found) > 1:
        raise WorkloadError(place, "one network without options connects all services; more is not supported")
    for name, item in found.items():
        _plain_resource(item, f"{place}.{name}", "bridge")


def _network_mode(making: _Making, value: Any, place: str) -> None:
    if making.raw.get("networks"):
        raise WorkloadError(place, "stands beside networks: give one of both")
    if value == "none":
        making.made.options.append("--network=none")
    elif value not in ("bridge", "default"):
        raise WorkloadError(place, "must be bridge or none: containers share no network with the machine")


def _after(making: _Making, value: Any, place: str) -> None:
    if isinstance(value, list):
        value = {plain(name, place): {} for name in value}
    for name, item in mapped(value, place).items():
        entry = only(item, f"{place}.{name}", ("condition", "required", "restart"))
        condition = entry.get("condition", "service_started")
        if condition not in _CONDITIONS or entry.get("required", True) is not True:
            raise WorkloadError(f"{place}.{name}.condition", f"must be one of {', '.join(_CONDITIONS)}, and required")
        making.made.after[name] = condition


def _restart(making: _Making, value: Any, place: str) -> None:
    match = _RESTART.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise WorkloadError(place, "must be no, always, unless-stopped, on-failure or on-failure:NUMBER")
    if value.startswith("on-failure"):
        making.made.restart = Restart("failure", int(match["most"]) if match["most"] else None)
    else:
        making.made.restart = Restart("never" if value == "no" else "always")


def _sysctls(making: _Making, value: Any, place: str) -> None:
    for key, item in pairs(value, place).items():
        if not re.fullmatch(_SYSCTL, key):
            raise WorkloadError(place, "only those of a container's own network and IPC can be set")
        making.made.options.append(f"--sysctl={key}={item}")


def _hosts(making: _Making, value: Any, place: str) -> None:
    if isinstance(value, dict):
        value = [f"{name}:{plain(item, place)}" for name, item in value.items()]
    for item in listed(value, place):
        name, _, address = re.sub("=", ":", plain(item, place), count=1).partition(":")
        if address == "host-gateway":
            raise WorkloadError(place, "host-gateway is not supported: reach a service by its name")
        address = address.strip("[]")
        _require_address(address, place)
        making.made.options.append(f"--add-host={name}:{address}")


def _ulimits(making: _Making, value: Any, place: str) -> None:
    for name, limit in only(value, place, _LIMITS).items():
        if isinstance(limit, dict):
            only(limit, f"{place}.{name}", ("soft", "hard"))
            text = f"{whole(limit.get('soft'), place, -1)}:{whole(limit.get('hard'), place, -1)}"
        else:
            text = str(whole(limit, place, -1))
        making.made.options.append(f"--ulimit={name}={text}")


def _grace(making: _Making, value: Any, place: str) -> None:
    making.made.options.append(f"--stop-timeout={round(seconds(value, place))}")


def _scale(making: _Making, value: Any, place: str) -> None:
    if whole(value, place) != 1:
        raise WorkloadError(place, "each service has one container")


def _deploy(making: _Making, value: Any, place: str) -> None:
    """Limits, and a restart policy; what is for a swarm of machines is refused."""
    deploy = only(value, place, ("resources", "restart_policy", "replicas", "mode", "labels"))
    _scale(making, deploy.get("replicas", 1), f"{place}.replicas")
    if deploy.get("mode", "replicated") != "replicated":
        raise WorkloadError(f"{place}.mode", "each service has one container")
    inside = f"{place}.resources"
    resources = only(deploy.get("resources"), inside, ("limits", "reservations"))
    limits = only(resources.get("limits"), f"{inside}.limits", ("cpus", "memory", "pids"))
    for key, option in (("cpus", "--cpus"), ("memory", "--memory"), ("pids", "--pids-limit")):
        if key in limits:
            form = {"cpus": "cpus", "memory": "mem_limit", "pids": "pids_limit"}[key]
            making.made.options.append(f"{option}={_formed(form, limits[key], f'{inside}.limits.{key}')}")
    only(resources.get("reservations"), f"{inside}.reservations", ("cpus", "memory"))  # one machine: nothing to reserve
    known = ("condition", "max_attempts", "delay", "window")  # the last two: of a swarm only
    policy = only(deploy.get("restart_policy"), f"{place}.restart_policy", known)
    for key in policy.keys() & {"delay", "window"}:
        seconds(policy[key], f"{place}.restart_policy.{key}")
    if policy and "restart" not in making.raw:
        kinds = {"none": "never", "on-failure": "failure", "any": "always"}
        condition = policy.get("condition", "any")
        if condition not in kinds:
            raise WorkloadError(f"{place}.restart_policy.condition", f"must be one of {', '.join(kinds)}")
        most = policy.get("max_attempts")
        limit = None if most is None else whole(most, f"{place}.restart_policy.max_attempts")
        making.made.restart = Restart(kinds[condition], limit)  # type: ignore[arg-type]


def _health(making: _Making, value: Any, place: str) -> None:
    known = ("test", "interval", "timeout", "retries", "start_period", "start_interval", "disable")
    given = only(value, place, known)
    test = given.get("test")
    if flag(given.get("disable", False), f"{place}.disable") or test == ["NONE"]:
        making.made.options.append("--no-healthcheck")
        return
    if isinstance(test, list) and len(test) > 1 and test[0] == "CMD":
        command = json.dumps([plain(word, place) for word in test[1:]])
    elif isinstance(test, list) and len(test) == 2 and test[0] == "CMD-SHELL":
        command = plain(test[1], place)
    elif isinstance(test, str) and test:
        command = plain(test, place)
    else:
        raise WorkloadError(f"{place}.test", "write a line, or a list that begins with CMD, CMD-SHELL or NONE")

    def time(key: str, default: float) -> float:
        said = seconds(given[key], f"{place}.{key}") if given.get(key) is not None else 0.0
        return said or default  # 0 is the engine's word for its default

    making.made.options.append(f"--health-cmd={command}")
    making.made.health = Health(
        time("interval", 30.0),
        time("timeout", 30.0),
        time("start_period", 0.0),
        whole(given.get("retries", 3), f"{place}.retries", 0, 1000) or 3,
    )


def _none(making: _Making, value: Any, place: str) -> None:
    if value not in ([], {}, False):
        raise WorkloadError(place, "not supported")


_HANDLERS: dict[str, Callable[[_Making, Any, str], None]] = {
    **dict.fromkeys(_TEXT, _text),
    **dict.fromkeys(_FLAGS, _flags),
    **dict.fromkeys(_LISTS, _lists),
    **{"command": _command, "entrypoint": _entrypoint, "ports": _ports, "volumes": _volumes, "restart": _restart},
    **{"networks": _service_networks, "network_mode": _network_mode, "depends_on": _after, "sysctls": _sysctls},
    **{"ulimits": _ulimits, "healthcheck": _health, "extra_hosts": _hosts, "stop_grace_period": _grace},
    **{"scale": _scale, "deploy": _deploy, "secrets": _files, "configs": _files},
    **dict.fromkeys(("profiles", "links", "volumes_from", "external_links"), _none),
}
