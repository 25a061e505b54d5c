"""Keys of a container in a pod that need nothing of its pod but a context: rights, limits, probes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from casemate.contract.errors import WorkloadError
from casemate.contract.workload import (
    Health,
    Probe,
    Problems,
    Service,
    fields,
    flag,
    listed,
    plain,
    whole,
)

PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_QUANTITY = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?)(?P<unit>m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {"m": 0.001, "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SECURITY = (
    *("privileged", "runAsUser", "runAsGroup", "runAsNonRoot", "readOnlyRootFilesystem", "allowPrivilegeEscalation"),
    *("capabilities", "seccompProfile", "procMount"),
)
_POD_SECURITY = (
    *("runAsUser", "runAsGroup", "runAsNonRoot", "supplementalGroups", "sysctls", "seccompProfile"),
    *("fsGroup", "fsGroupChangePolicy", "privileged"),
)


def pod_security(value: Any, place: str, problems: Problems) -> dict[str, Any]:
    """Return the ``securityContext`` of a pod, which counts beneath those of its containers."""
    found = fields(value, place, _POD_SECURITY)
    if flag(found.pop("privileged", False), f"{place}.privileged"):
        problems.note(f"{place}.privileged", "is passed over, as podman does: containers are privileged, not pods")
    return found


def security(made: Service, value: Any, place: str, pods: Mapping[str, Any]) -> None:
    """Apply the ``securityContext`` of a container, and beneath it that of its pod."""
    context = {**pods, **fields(value, place, _SECURITY)}
    user = whole(context["runAsUser"], f"{place}.runAsUser") if "runAsUser" in context else None
    if "runAsGroup" in context and user is None:
        raise WorkloadError(f"{place}.runAsGroup", "goes with runAsUser")
    not_root = flag(context.get("runAsNonRoot", False), f"{place}.runAsNonRoot")
    made.not_root = not_root and user is None
    if not_root and user == 0:
        raise WorkloadError(f"{place}.runAsNonRoot", "contradicts runAsUser, which is 0")
    if user is not None:
        group = whole(context["runAsGroup"], f"{place}.runAsGroup") if "runAsGroup" in context else None
        made.options.append(f"--user={user}" if group is None else f"--user={user}:{group}")
    if "fsGroup" in pods:
        made.group = whole(pods["fsGroup"], f"{place}.fsGroup")
        made.options.append(f"--group-add={made.group}")
        policy = pods.get("fsGroupChangePolicy", "Always")
        if policy not in ("Always", "OnRootMismatch"):
            raise WorkloadError(f"{place}.fsGroupChangePolicy", "must be Always or OnRootMismatch")
        made.regroup = policy == "Always"
    for item in listed(context.get("supplementalGroups", []), f"{place}.supplementalGroups"):
        made.options.append(f"--group-add={whole(item, f'{place}.supplementalGroups')}")
    if flag(context.get("privileged", False), f"{place}.privileged"):
        made.options.append("--privileged")
    if flag(context.get("readOnlyRootFilesystem", False), f"{place}.readOnlyRootFilesystem"):
        made.options.append("--read-only")
    if not flag(context.get("allowPrivilegeEscalation", True), f"{place}.allowPrivilegeEscalation"):
        made.options.append("--security-opt=no-new-privileges")
    capabilities = fields(context.get("capabilities"), f"{place}.capabilities", ("add", "drop"))
    for key, items in capabilities.items():
        made.options += [f"--cap-{key}={plain(one, place)}" for one in listed(items, f"{place}.capabilities.{key}")]
    profile = fields(context.get("seccompProfile"), f"{place}.seccompProfile", ("type",)).get("type", "RuntimeDefault")
    if profile not in ("RuntimeDefault", "Unconfined") or context.get("procMount", "Default") != "Default":
        raise WorkloadError(place, "seccompProfile is RuntimeDefault or Unconfined, procMount is Default")
    if profile == "Unconfined":
        made.options.append("--security-opt=seccomp=unconfined")


def limits(made: Service, value: Any, place: str) -> None:
    """Apply ``resources``: limits of processors and memory; ``requests`` mean nothing on one machine."""
    limits = fields(fields(value, place, ("limits", "requests")).get("limits"), f"{place}.limits", ("cpu", "memory"))
    if "cpu" in limits:
        made.options.append(f"--cpus={quantity(limits['cpu'], f'{place}.limits.cpu'):g}")
    if "memory" in limits:
        made.options.append(f"--memory={int(quantity(limits['memory'], f'{place}.limits.memory'))}b")


def quantity(value: Any, place: str) -> float:
    """Return a Kubernetes quantity (``500m``, ``1.5``, ``64Mi``) as a number."""
    match = _QUANTITY.fullmatch(plain(value, place))
    if not match:
        raise WorkloadError(place, "write a number with m, k, M, G, Ki, Mi or Gi behind it, or without")
    return float(match["number"]) * _UNITS[match["unit"] or ""]


def probe(given: Mapping[str, Any], value: Any, place: str, *, kills: bool) -> Health:
    """Return a probe: by ``exec``, ``httpGet`` or ``tcpSocket``."""
    kinds = ("exec", "httpGet", "tcpSocket")
    numbers = ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold")
    if isinstance(value, dict) and "grpc" in value:
        raise WorkloadError(f"{place}.grpc", f"not supported; ask by {', '.join(kinds)}")
    entry = fields(value, place, (*kinds, *numbers))
    found = [kind for kind in kinds if kind in entry]
    if len(found) != 1:
        raise WorkloadError(place, f"must have one of {', '.join(kinds)}")
    inside = f"{place}.{found[0]}"
    if found[0] == "exec":
        words = listed(fields(entry["exec"], inside, ("command",)).get("command"), f"{inside}.command")
        if not words:
            raise WorkloadError(f"{inside}.command", "is empty")
        asking = Probe(command=tuple(plain(word, inside) for word in words))
    elif found[0] == "tcpSocket":
        asking = Probe(port=_asked(given, fields(entry["tcpSocket"], inside, ("port",)).get("port"), inside))
    else:
        asking = _http(given, entry["httpGet"], inside)
    whole(entry.get("successThreshold", 1), f"{place}.successThreshold", 1, 1)
    return Health(
        interval=float(whole(entry.get("periodSeconds", 10), f"{place}.periodSeconds", 1)),
        timeout=float(whole(entry.get("timeoutSeconds", 1), f"{place}.timeoutSeconds", 1)),
        delay=float(whole(entry.get("initialDelaySeconds", 0), f"{place}.initialDelaySeconds")),
        retries=whole(entry.get("failureThreshold", 3), f"{place}.failureThreshold", 1),
        kills=kills,
        probe=asking,
    )


def _http(given: Mapping[str, Any], value: Any, place: str) -> Probe:
    """The pod itself is asked: no other host, so that a probe is no way into the guest's network."""
    entry = fields(value, place, ("path", "port", "scheme", "httpHeaders"))
    path = plain(entry.get("path", "/"), f"{place}.path")
    if entry.get("scheme", "HTTP") != "HTTP":  # by Kubernetes' rules any certificate would do
        raise WorkloadError(f"{place}.scheme", "must be HTTP; ask a port with TLS by tcpSocket or exec")
    if not re.fullmatch(r"[!-~]{0,2048}", path):
        raise WorkloadError(f"{place}.path", "has visible ASCII characters only, at most 2048")
    headers = []
    for item in listed(entry.get("httpHeaders", []), f"{place}.httpHeaders"):
        pair = fields(item, f"{place}.httpHeaders", ("name", "value"))
        name, text = (plain(pair.get(key), f"{place}.httpHeaders") for key in ("name", "value"))
        if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", name) or not re.fullmatch(r"[ -~]{0,4096}", text):
            raise WorkloadError(f"{place}.httpHeaders", "names have letters, digits and -, values one line of ASCII")
        headers.append((name, text))
    port = _asked(given, entry.get("port"), place)
    return Probe((), port, f"/{path.removeprefix('/')}", tuple(headers))


def _asked(given: Mapping[str, Any], value: Any, place: str) -> int:
    """Return the port that a probe asks, given as a number or by the name that the container's ports give it."""
    for item in listed(given.get("ports", []), place):
        entry = fields(item, place, ("containerPort", "hostPort", "hostIP", "protocol", "name"))
        if isinstance(value, str) and entry.get("name") == value:
            return whole(entry.get("containerPort"), place, 1, 65535)
    return whole(value, f"{place}.port", 1, 65535)
