"""The keys of a service in a compose file, each with what becomes of it: mostly an option of the engine."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from typing import Any

from casemate.contract import composenet
from casemate.contract.composenet import join
from casemate.contract.composevalues import Binding, Making, pairs
from casemate.contract.errors import WorkloadError
from casemate.contract.images import OPEN
from casemate.contract.workload import (
    NAME,
    Health,
    Restart,
    flag,
    listed,
    mapped,
    mount,
    only,
    plain,
    require_address,
    seconds,
    volume,
    whole,
    words,
)

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
    "cpu_period": "--cpu-period",
    "cpu_quota": "--cpu-quota",
    "uts": "--uts",
    "userns_mode": "--userns",
    "cgroup": "--cgroupns",
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
    "device_cgroup_rules": "--device-cgroup-rule",
}
_RESTART = re.compile(r"no|always|unless-stopped|on-failure(?::(?P<most>[0-9]{1,4}))?")
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
    **dict.fromkeys(("cpu_period", "cpu_quota"), (_COUNT, "a number of microseconds")),
    "uts": ("host|private", "host or private"),
    "userns_mode": ("host", "host, as it is anyway"),
    "cgroup": ("host|private", "host or private"),
    "device_cgroup_rules": (r"[abc] (?:\*|[0-9]{1,7}):(?:\*|[0-9]{1,7}) [rwm]{1,3}", "a rule as c 1:3 mr"),
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


def _formed(key: str, value: Any, place: str) -> str:
    """Return a value as text that the engine takes."""
    text = plain(value, place)
    form, must = _FORMS.get(key, (r"[^\0]*", ""))
    if not re.fullmatch(form, text, re.DOTALL):
        raise WorkloadError(place, f"must be {must}")
    return text


def _text(making: Making, value: Any, place: str) -> None:
    key = place.rpartition(".")[2]
    making.made.options.append(f"{_TEXT[key]}={_formed(key, value, place)}")


def _flags(making: Making, value: Any, place: str) -> None:
    making.made.options += [_FLAGS[place.rpartition(".")[2]]] if flag(value, place) else []


def _lists(making: Making, value: Any, place: str) -> None:
    key = place.rpartition(".")[2]
    items = [value] if isinstance(value, str) else listed(value, place)
    for item in items:
        if key == "dns":
            require_address(item, place)
        making.made.options.append(f"{_LISTS[key]}={_formed(key, item, place)}")


def _shared(making: Making, value: Any, place: str) -> None:
    """``pid`` and ``ipc``: of the machine, of its own, or of another container."""
    key = place.rpartition(".")[2]
    own = {"pid": ("host", "private"), "ipc": ("host", "private", "shareable", "none")}[key]
    if value in own:
        making.made.options.append(f"--{key}={value}")
    else:
        join(making, f"--{key}", value, place, f"{', '.join(own)}, service:NAME or container:NAME")


def _command(making: Making, value: Any, place: str) -> None:
    if value in ([], "") and making.raw.get("entrypoint") is not None:
        return  # with an entry point of the file's, the image's command is not taken anyway
    making.command = words(value, place)


def _entrypoint(making: Making, value: Any, place: str) -> None:
    if value in ([], ""):  # the image's is not taken
        making.made.options.append("--entrypoint=")
        return
    first, *making.made.command = words(value, place)
    making.made.options.append(f"--entrypoint={first}")


def _volumes(making: Making, value: Any, place: str) -> None:
    for number, item in enumerate(listed(value, place)):
        with making.problems.caught():
            _volume(making, item, f"{place}[{number}]")


def _volume(making: Making, value: Any, place: str) -> None:
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
        if not rest:
            source, target = "", source
        if modes - {"ro"} or not target:
            raise WorkloadError(place, "write SOURCE:/target or SOURCE:/target:ro")
        read_only = bool(modes)
    given: str | Binding | None = making.file.volumes.get(source) if NAME.fullmatch(source) else None
    if isinstance(given, Binding) and given.tmpfs is not None:
        made.options.append(f"--tmpfs={_target(target, place)}{':' * bool(given.tmpfs)}{given.tmpfs}")
    elif isinstance(given, Binding) or source.startswith((".", "/")):
        mount(made, given.path if isinstance(given, Binding) else source, target, read_only, place, making.places)
    elif given is not None:
        made.options.append(volume(given, target, read_only, place))
    elif not source:  # a volume without a name, empty at each start as all others
        made.options.append(f"--volume={_target(target, place)}")
    else:
        raise WorkloadError(place, "the volume is not declared under `volumes:` of the compose file")


def _target(path: str, place: str) -> str:
    if not path.startswith("/") or any(character in path for character in ":,\n\r\0"):
        raise WorkloadError(place, "a target is an absolute path, without colon, comma or line break")
    return path


def _tmpfs(target: str, value: Any, place: str) -> str:
    options = only(value, f"{place}.tmpfs", ("size", "mode"))
    given = ",".join(f"{key}={plain(item, place)}" for key, item in options.items())
    return f"--tmpfs={_target(target, place)}{':' * bool(given)}{given}"


def _files(making: Making, value: Any, place: str) -> None:
    """``secrets`` and ``configs``: files of the archive, or what is written for them, mounted read-only."""
    kind = place.rpartition(".")[2]
    for item in listed(value, place):
        entry = only(
            {"source": item} if isinstance(item, str) else item, place, ("source", "target", "uid", "gid", "mode")
        )
        name = plain(entry.get("source"), place)
        if name not in making.file.files[kind]:
            raise WorkloadError(place, f"is not declared under `{kind}:` of the compose file")
        if entry.keys() & {"uid", "gid", "mode"}:
            making.problems.note(
                place, "uid, gid and mode are passed over, as Compose does: everyone in the container may read"
            )
        path = making.file.files[kind][name]
        if path not in making.file.written and posixpath.normpath(path) not in making.places.files and OPEN not in path:
            raise WorkloadError(place, "the archive has no such file")
        target = plain(entry.get("target", name), place)
        if not target.startswith("/"):
            target = f"/run/secrets/{target}" if kind == "secrets" else f"/{target}"
        if path in making.file.written:
            making.made.mounts.append(path)
            making.made.options.append(volume(path, target, True, place))
        else:
            mount(making.made, path, target, True, place, making.places)


def _from(making: Making, value: Any, place: str) -> None:
    """``volumes_from``: what another service mounts."""
    for item in listed(value, place):
        text = plain(item, place)
        name = text.removesuffix(":rw").removesuffix(":ro")
        option = f"--volumes-from={{}}{':ro' * text.endswith(':ro')}"
        if not NAME.fullmatch(name.removeprefix("container:")):
            raise WorkloadError(place, "write SERVICE, SERVICE:ro or container:NAME")
        making.joined.append((option, name if name.startswith("container:") else f"service:{name}", place))


def _after(making: Making, value: Any, place: str) -> None:
    if isinstance(value, list):
        value = {plain(name, place): {} for name in value}
    for name, item in mapped(value, place).items():
        entry = only(item, f"{place}.{name}", ("condition", "required", "restart"))
        condition = entry.get("condition", "service_started")
        if condition not in _CONDITIONS:
            raise WorkloadError(f"{place}.{name}.condition", f"must be one of {', '.join(_CONDITIONS)}")
        if flag(entry.get("required", True), f"{place}.{name}.required") or name in making.file.services:
            making.made.after[name] = condition


def _restart(making: Making, value: Any, place: str) -> None:
    match = _RESTART.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise WorkloadError(place, "must be no, always, unless-stopped, on-failure or on-failure:NUMBER")
    if value.startswith("on-failure"):
        making.made.restart = Restart("failure", int(match["most"]) if match["most"] else None)
    else:
        making.made.restart = Restart("never" if value == "no" else "always")


def _sysctls(making: Making, value: Any, place: str) -> None:
    for key, item in pairs(value, place).items():
        if not re.fullmatch(_SYSCTL, key):
            raise WorkloadError(place, "only those of a container's own network and IPC can be set")
        making.made.options.append(f"--sysctl={key}={item}")


def _ulimits(making: Making, value: Any, place: str) -> None:
    for name, limit in only(value, place, _LIMITS).items():
        if isinstance(limit, dict):
            only(limit, f"{place}.{name}", ("soft", "hard"))
            text = f"{whole(limit.get('soft'), place, -1)}:{whole(limit.get('hard'), place, -1)}"
        else:
            text = str(whole(limit, place, -1))
        making.made.options.append(f"--ulimit={name}={text}")


def _grace(making: Making, value: Any, place: str) -> None:
    making.made.options.append(f"--stop-timeout={round(seconds(value, place))}")


def _scale(making: Making, value: Any, place: str) -> None:
    if whole(value, place) != 1:
        raise WorkloadError(place, "each service has one container")


def _deploy(making: Making, value: Any, place: str) -> None:
    """Limits, and a restart policy; what is for a swarm of machines is passed over, but for more than one container."""
    swarm = ("placement", "update_config", "rollback_config", "endpoint_mode")
    deploy = only(value, place, ("resources", "restart_policy", "replicas", "mode", "labels", *swarm))
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


def _health(making: Making, value: Any, place: str) -> None:
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
    elif test is None:
        command = ""  # the image's, asked as is said here
    else:
        raise WorkloadError(f"{place}.test", "write a line, or a list that begins with CMD, CMD-SHELL or NONE")

    def time(key: str, default: float) -> float:
        said = seconds(given[key], f"{place}.{key}") if given.get(key) is not None else 0.0
        return said or default  # 0 is the engine's word for its default

    making.made.options += [f"--health-cmd={command}"] * bool(command)
    making.made.health = Health(
        time("interval", 30.0),
        time("timeout", 30.0),
        time("start_period", 0.0),
        whole(given.get("retries", 3), f"{place}.retries", 0, 1000) or 3,
    )


def _none(making: Making, value: Any, place: str) -> None:
    if value not in ([], {}, False):
        raise WorkloadError(place, "not supported")


HANDLERS: dict[str, Callable[[Making, Any, str], None]] = {
    **dict.fromkeys(_TEXT, _text),
    **dict.fromkeys(_FLAGS, _flags),
    **dict.fromkeys(_LISTS, _lists),
    **{"command": _command, "entrypoint": _entrypoint, "volumes": _volumes, "volumes_from": _from, "restart": _restart},
    **{
        "networks": composenet.attach,
        "network_mode": composenet.mode,
        "links": composenet.link,
        "ports": composenet.ports,
    },
    **{"extra_hosts": composenet.hosts, "pid": _shared, "ipc": _shared, "depends_on": _after, "sysctls": _sysctls},
    **{"ulimits": _ulimits, "healthcheck": _health, "stop_grace_period": _grace, "scale": _scale, "deploy": _deploy},
    **{"secrets": _files, "configs": _files, "external_links": _none},
}
"""What to do with each key. A handler gets the value with its variables filled in, and its place in the file."""
