"""One pod: the containers that it becomes, one of which holds what they share; see :mod:`casemate.contract.play`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from casemate.contract import podkeys
from casemate.contract.errors import ContractError, WorkloadError
from casemate.contract.images import OPEN, Open
from casemate.contract.podvolumes import Volumes, label
from casemate.contract.workload import (
    NAME,
    Places,
    Problems,
    Restart,
    Service,
    Workload,
    fields,
    flag,
    listed,
    mapped,
    plain,
    require_address,
    variables,
    whole,
)

VARIABLES = "contract.config.map"
"""The ConfigMap that has the variables of the contract."""
_EXPANSION = re.compile(r"\$\$(?=\()|\$\((?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\)")
_FIELD = re.compile(r"metadata\.(?P<kind>labels|annotations)\['(?P<key>[^']+)'\]")
_POD_IGNORED = (
    *(
        "enableServiceLinks",
        "automountServiceAccountToken",
        "imagePullSecrets",
        "nodeName",
        "nodeSelector",
        "tolerations",
    ),
    *("schedulerName", "priority", "preemptionPolicy", "serviceAccountName", "serviceAccount", "affinity"),
    *("priorityClassName", "topologySpreadConstraints", "readinessGates", "overhead"),
)
_NOTED = ("activeDeadlineSeconds", "runtimeClassName", "setHostnameAsFQDN", "subdomain")
"""What podman passes over too; whoever wrote it is told."""
_POD = (
    *(
        "containers",
        "initContainers",
        "restartPolicy",
        "volumes",
        "hostname",
        "securityContext",
        "hostAliases",
        "hostPID",
    ),
    *("hostIPC", "hostNetwork", "shareProcessNamespace", "terminationGracePeriodSeconds", "dnsConfig", "dnsPolicy"),
    *(*_POD_IGNORED, *_NOTED),
)
_CONTAINER_IGNORED = ("imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy")
_CONTAINER = (
    *(
        "name",
        "image",
        "command",
        "args",
        "env",
        "envFrom",
        "ports",
        "volumeMounts",
        "workingDir",
        "resources",
        "stdin",
    ),
    *("securityContext", "tty", "restartPolicy", "lifecycle", *podkeys.PROBES, *_CONTAINER_IGNORED),
)
_RESTART = {"Always": Restart("always"), "OnFailure": Restart("failure"), "Never": Restart("never")}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A Pod or ConfigMap, and where it stands: ``play.resources[0]``, ``play.archive, pod.yaml``."""

    place: str
    kind: str
    document: Mapping[str, Any] = field(repr=False)


@dataclass(slots=True)
class Pod:
    """One pod while it is translated; ``ports`` and ``names`` are those that pods have taken so far."""

    manifest: Manifest
    name: str
    tables: Mapping[str, Mapping[str, bytes]]
    env: Mapping[str, str]
    places: Places
    problems: Problems
    workload: Workload
    ports: dict[str, str]
    names: dict[str, str]
    published: list[str] = field(default_factory=list)

    def translate(self) -> None:
        """Add the pod's containers to the workload."""
        place = self.manifest.place
        top = fields(self.manifest.document, place, ("apiVersion", "kind", "metadata", "spec", "status"))
        where = f"{place}.spec"
        spec = fields(top.get("spec"), where, _POD)
        volumes = Volumes(self.name, self.places, self.workload, self._table)
        with self.problems.caught():
            volumes.declare(spec.get("volumes", []), f"{where}.volumes", self.problems)
        shared = self._shared(spec, where)
        policy = self._policy(spec.get("restartPolicy", "Always"), f"{where}.restartPolicy")
        common: list[str] = []
        with self.problems.caught():
            common = self._common(spec, where)
        after = {shared.name: "service_started"}
        made = [shared]
        for kind in ("initContainers", "containers"):
            for number, item in enumerate(listed(spec.get(kind, []), f"{where}.{kind}")):
                inside = f"{where}.{kind}[{number}]"
                with self.problems.caught():
                    container = self._container(
                        item, inside, spec, volumes, common, policy, is_init=kind == "initContainers"
                    )
                    container.after = dict(after)
                    made.append(container)
                    if kind == "initContainers":
                        after[container.name] = "service_completed_successfully"
        if not listed(spec.get("containers", []), f"{where}.containers"):
            raise WorkloadError(f"{where}.containers", "a Pod has one or more")
        if "--network=host" not in shared.options:
            shared.options += [f"--publish={text}" for text in self.published]
        self.workload.services += made

    def _shared(self, spec: Mapping[str, Any], where: str) -> Service:
        """The container that holds what the pod's containers share."""
        made = Service(self.name, self._taken(f"{self.name}-infra", where), "", holds_pod=True)
        made.options.append(f"--hostname={label(spec.get('hostname', self.name), f'{where}.hostname', self.problems)}")
        with self.problems.caught():
            for item in listed(spec.get("hostAliases", []), f"{where}.hostAliases"):
                alias = fields(item, f"{where}.hostAliases", ("ip", "hostnames"))
                for name in listed(alias.get("hostnames"), f"{where}.hostAliases"):
                    made.options.append(f"--add-host={plain(name, where)}:{plain(alias.get('ip'), where)}")
        with self.problems.caught():
            security = podkeys.pod_security(spec.get("securityContext"), f"{where}.securityContext", self.problems)
            for item in listed(security.get("sysctls", []), f"{where}.securityContext.sysctls"):
                pair = fields(item, f"{where}.securityContext.sysctls", ("name", "value"))
                made.options.append(f"--sysctl={plain(pair.get('name'), where)}={plain(pair.get('value'), where)}")
        with self.problems.caught():
            if flag(spec.get("hostNetwork", False), f"{where}.hostNetwork"):
                made.options.append("--network=host")
        with self.problems.caught():
            made.options += self._names(spec, where)
        for key in _NOTED:
            if spec.get(key):
                self.problems.note(f"{where}.{key}", "is passed over: one machine does not do that")
        with self.problems.caught():
            if spec.get("affinity", {}) != {}:
                raise WorkloadError(f"{where}.affinity", "not supported unless empty: there is one machine only")
        return made

    def _names(self, spec: Mapping[str, Any], where: str) -> Iterator[str]:
        """What ``dnsConfig`` says, by the engine's options."""
        given = fields(spec.get("dnsConfig"), f"{where}.dnsConfig", ("nameservers", "searches", "options"))
        if spec.get("dnsPolicy") == "None" and not given.get("nameservers"):
            raise WorkloadError(f"{where}.dnsPolicy", "None needs a dnsConfig with nameservers")
        for item in listed(given.get("nameservers", []), f"{where}.dnsConfig.nameservers"):
            require_address(item, f"{where}.dnsConfig.nameservers")
            yield f"--dns={item}"
        for item in listed(given.get("searches", []), f"{where}.dnsConfig.searches"):
            yield f"--dns-search={plain(item, f'{where}.dnsConfig.searches')}"
        for item in listed(given.get("options", []), f"{where}.dnsConfig.options"):
            pair = fields(item, f"{where}.dnsConfig.options", ("name", "value"))
            name, value = (plain(pair.get(key, ""), f"{where}.dnsConfig.options") for key in ("name", "value"))
            yield f"--dns-option={name}{':' * bool(value)}{value}"

    def _common(self, spec: Mapping[str, Any], where: str) -> list[str]:
        """The options that every container of the pod has."""
        joined = f"--{{}}=container:{self.name}-infra"
        options = [joined.format("network"), joined.format("uts")]
        options.append("--ipc=host" if flag(spec.get("hostIPC", False), f"{where}.hostIPC") else joined.format("ipc"))
        if flag(spec.get("hostPID", False), f"{where}.hostPID"):
            options.append("--pid=host")
        elif flag(spec.get("shareProcessNamespace", False), f"{where}.shareProcessNamespace"):
            options.append(joined.format("pid"))
        if "terminationGracePeriodSeconds" in spec:
            place = f"{where}.terminationGracePeriodSeconds"
            options.append(f"--stop-timeout={whole(spec['terminationGracePeriodSeconds'], place, 0, 3600)}")
        return options

    def _policy(self, value: Any, place: str) -> Restart:
        with self.problems.caught():
            if not isinstance(value, str) or value not in _RESTART:
                raise WorkloadError(place, f"must be one of {', '.join(_RESTART)}")
            return _RESTART[value]
        return Restart()

    def _taken(self, container: str, place: str) -> str:
        if (other := self.names.setdefault(container, place)) != place:
            raise WorkloadError(place, f"a container with the name {container} is at {other} already")
        return container

    # --------------------------------------------------------------------------------------------- containers

    def _container(
        self,
        item: Any,
        where: str,
        spec: Mapping[str, Any],
        volumes: Volumes,
        common: list[str],
        policy: Restart,
        *,
        is_init: bool,
    ) -> Service:
        given = fields(item, where, _CONTAINER)
        name = given.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):  # as podman has them; Kubernetes' are fewer
            raise WorkloadError(f"{where}.name", "letters, digits, _ . and - only, at most 64")
        made = Service(f"{self.name}/{name}", self._taken(f"{self.name}-{name}", where), self._image(given))
        if not NAME.fullmatch(made.container):
            raise WorkloadError(f"{where}.name", "is too long, together with the pod's")
        made.options += common
        made.pod = self.name
        if is_init:
            made.restart = Restart("never" if policy.when == "never" else "failure")
            for key in ("restartPolicy", *podkeys.PROBES):
                if key in given:
                    raise WorkloadError(f"{where}.{key}", "not supported for an init container")
        else:
            made.restart = (
                self._policy(given["restartPolicy"], f"{where}.restartPolicy") if "restartPolicy" in given else policy
            )
        caught = self.problems.caught
        if given.get("lifecycle"):
            text = "is passed over, as podman does: nothing runs after the start or before the end"
            self.problems.note(f"{where}.lifecycle", text)
        with caught():
            made.environment = self._environment(given, where)
        with caught():
            self._command(made, given, where)
        with caught():
            if "workingDir" in given:
                made.options.append(f"--workdir={plain(given['workingDir'], f'{where}.workingDir')}")
            for key, option in (("tty", "--tty"), ("stdin", "--interactive")):
                made.options += [option] * flag(given.get(key, False), f"{where}.{key}")
        with caught():
            place = f"{self.manifest.place}.spec.securityContext"
            pods = podkeys.pod_security(spec.get("securityContext"), place, self.problems)
            podkeys.security(made, given.get("securityContext"), f"{where}.securityContext", pods)
        with caught():
            podkeys.limits(made, given.get("resources"), f"{where}.resources")
        for number, port in enumerate(listed(given.get("ports", []), f"{where}.ports")):
            with caught():
                self._port(port, f"{where}.ports[{number}]")
        for number, entry in enumerate(listed(given.get("volumeMounts", []), f"{where}.volumeMounts")):
            with caught():
                volumes.mount(made, entry, f"{where}.volumeMounts[{number}]", self.problems)
        for key in podkeys.PROBES:
            with caught():
                if key in given:
                    health = podkeys.probe(given, given[key], f"{where}.{key}", kills=key != "readinessProbe")
                    setattr(made, {"livenessProbe": "health", "startupProbe": "startup"}.get(key, "ready"), health)
        return made

    def _image(self, given: Mapping[str, Any]) -> str:
        from casemate.contract.images import parse_reference

        try:
            return parse_reference(given["image"]).canonical if isinstance(given.get("image"), str) else ""
        except ContractError:
            return ""

    def _command(self, made: Service, given: Mapping[str, Any], where: str) -> None:
        """``command`` replaces the image's entry point, ``args`` its command; ``$(NAME)`` in them is a variable."""
        words: dict[str, list[str]] = {}
        for key in ("command", "args"):
            texts = [plain(word, f"{where}.{key}") for word in listed(given.get(key, []), f"{where}.{key}")]
            words[key] = [_expanded(text, made.environment) for text in texts]
        if words["command"]:
            made.options.append(f"--entrypoint={json.dumps(words['command'])}")
        made.command = words["args"]

    def _environment(self, given: Mapping[str, Any], where: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for number, item in enumerate(listed(given.get("envFrom", []), f"{where}.envFrom")):
            place = f"{where}.envFrom[{number}]"
            entry = fields(item, place, ("configMapRef", "prefix"))
            table = self._table(entry.get("configMapRef"), f"{place}.configMapRef", ("name", "optional"))
            prefix = plain(entry.get("prefix", ""), place)
            found |= {f"{prefix}{name}": _decoded(content, place) for name, content in table.items()}
        for number, item in enumerate(listed(given.get("env", []), f"{where}.env")):
            place = f"{where}.env[{number}]"
            entry = fields(item, place, ("name", "value", "valueFrom"))
            name = plain(entry.get("name"), place)
            if "valueFrom" in entry:
                value = self._value_from(entry["valueFrom"], f"{place}.valueFrom")
                if value is not None:
                    found[name] = value
            else:
                found[name] = _expanded(plain(entry.get("value", ""), place), found)
        return variables(found, f"{where}.env")

    def _field(self, reference: Mapping[str, Any], place: str) -> str:
        """Return what the pod says of itself: name, namespace, a label or an annotation."""
        metadata = mapped(self.manifest.document.get("metadata"), place)
        path = plain(reference.get("fieldPath"), place)
        if path in ("metadata.name", "metadata.namespace"):
            return self.name if path == "metadata.name" else plain(metadata.get("namespace", "default"), place)
        if match := _FIELD.fullmatch(path):
            return plain(mapped(metadata.get(match["kind"]), place).get(match["key"], ""), place)
        must = "must be metadata.name, metadata.namespace, or a label or annotation: metadata.labels['KEY']"
        raise WorkloadError(place, must)

    def _value_from(self, value: Any, place: str) -> str | None:
        source = fields(value, place, ("configMapKeyRef", "fieldRef"))
        if len(source) != 1:
            raise WorkloadError(place, "must be one of configMapKeyRef, fieldRef")
        if "fieldRef" in source:
            return self._field(fields(source["fieldRef"], place, ("fieldPath", "apiVersion")), f"{place}.fieldRef")
        inside = f"{place}.configMapKeyRef"
        table = self._table(source["configMapKeyRef"], inside, ("name", "key", "optional"))
        entry = fields(source["configMapKeyRef"], inside, ("name", "key", "optional"))
        key = plain(entry.get("key"), inside)
        if key in table:
            return _decoded(table[key], inside)
        if isinstance(self.env, Open) and entry.get("name") == VARIABLES:
            return OPEN
        if not flag(entry.get("optional", False), inside):
            raise WorkloadError(inside, "the ConfigMap has no such key")
        return None

    def _table(self, value: Any, place: str, known: tuple[str, ...]) -> Mapping[str, bytes]:
        entry = fields(value, place, known)
        name = plain(entry.get("name"), place)
        if name not in self.tables and not flag(entry.get("optional", False), place):
            raise WorkloadError(place, f"there is no ConfigMap of this name; the contract's variables are {VARIABLES}")
        return self.tables.get(name, {})

    def _port(self, value: Any, place: str) -> None:
        """Publish a port that has a ``hostPort``; without one it is only named."""
        entry = fields(value, place, ("containerPort", "hostPort", "hostIP", "protocol", "name"))
        inside = whole(entry.get("containerPort"), f"{place}.containerPort", 1, 65535)
        protocol = plain(entry.get("protocol", "TCP"), f"{place}.protocol").lower()
        if protocol not in ("tcp", "udp") or entry.get("hostIP", "") not in ("", "0.0.0.0"):  # noqa: S104
            raise WorkloadError(place, "the protocol is TCP or UDP, published at all addresses of the machine")
        if "hostPort" in entry:
            outside = f"{whole(entry['hostPort'], f'{place}.hostPort', 1, 65535)}/{protocol}"
            if (other := self.ports.setdefault(outside, place)) != place:
                raise WorkloadError(f"{place}.hostPort", f"is published at {other} already")
            port, _, kind = outside.partition("/")
            self.published.append(f"{port}:{inside}/{kind}")


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise WorkloadError(place, "binary data is no variable") from None


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` where there is such a variable; ``$$(`` stands for ``$(``."""
    return _EXPANSION.sub(lambda found: env.get(found["name"], found[0]) if found["name"] else "$", text)
