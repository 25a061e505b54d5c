"""Pods: the ``play`` section in its three forms, and which containers become of it.

    manifests, problems = read_play(section["play"], env)
    workload = translate(manifests, env, places, problems)

``resources`` are ``Pod`` and ``ConfigMap`` objects; ``templates`` the same, their texts Go templates over the variables of the
contract (:mod:`casemate.contract.template`); ``archive`` holds them as ``*.yaml`` or ``*.yml`` files at its top, beside what
they mount by relative paths, and beside the ``._*`` files that macOS packs. The variables are the ConfigMap :data:`VARIABLES`.

As for compose files, what is not understood is refused by name. Names of fields are taken as Kubernetes' tools take them,
whatever their capitals (``restartpolicy``). Passed over, since one machine has no use for them: labels, annotations,
namespaces, what schedulers and registries' logins are told, ``requests``, the size of an ``emptyDir``, and what ``kubectl get``
adds: ``status``, and in ``metadata`` what only a cluster can know.

A pod becomes one container that holds what it shares (network, published ports, host name), and one for each of its containers.
"""

from __future__ import annotations

import base64
import binascii
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from casemate.contract.archive import read_archive
from casemate.contract.document import parse_many
from casemate.contract.errors import ContractError, WorkloadError
from casemate.contract.images import OPEN, Open
from casemate.contract.template import Allowance, render
from casemate.contract.workload import (
    NAME,
    WORKLOAD,
    Health,
    Network,
    Places,
    Probe,
    Problems,
    Restart,
    Service,
    Workload,
    flag,
    listed,
    mapped,
    mount,
    not_known,
    plain,
    require_address,
    variables,
    volume,
    whole,
)

VARIABLES = "contract.config.map"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}")
_TEMPLATE = "{{"
_EXPANSION = re.compile(r"\$\$(?=\()|\$\((?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\)")
_FIELD = re.compile(r"metadata\.(?P<kind>labels|annotations)\['(?P<key>[^']+)'\]")
_QUANTITY = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?)(?P<unit>m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {"m": 0.001, "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_PLAIN_MODES = {0o644, 644, 0o444, 444, 0o400, 400, 0o600, 600, 0o640, 640}
_PROGRAM_MODES = {0o755, 755, 0o555, 555, 0o777, 777, 0o500, 500, 0o700, 700}
"""Modes of files, in octal as people write them (``0755``), and as the decimal number that JSON needs."""

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
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
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
    *("securityContext", "tty", "restartPolicy", "lifecycle", *_PROBES, *_CONTAINER_IGNORED),
)
_SECURITY = (
    *("privileged", "runAsUser", "runAsGroup", "runAsNonRoot", "readOnlyRootFilesystem", "allowPrivilegeEscalation"),
    *("capabilities", "seccompProfile", "procMount"),
)
_POD_SECURITY = (
    *("runAsUser", "runAsGroup", "runAsNonRoot", "supplementalGroups", "sysctls", "seccompProfile"),
    *("fsGroup", "fsGroupChangePolicy"),
)
_RESTART = {"Always": Restart("always"), "OnFailure": Restart("failure"), "Never": Restart("never")}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A Pod or ConfigMap, and where it stands: ``play.resources[0]``, ``play.archive, pod.yaml``."""

    place: str
    kind: str
    document: Mapping[str, Any] = field(repr=False)


def read_play(play: Any, env: Mapping[str, str]) -> tuple[list[Manifest], Problems]:
    """Return the objects of a ``play`` section, templates filled, and what is wrong with them."""
    problems = Problems()
    found: list[Manifest] = []
    section = play if isinstance(play, dict) else {}
    fill = partial(render, env=env, allowance=Allowance())
    with problems.caught():
        for kind in ("resources", "templates"):
            for number, item in enumerate(listed(section.get(kind) or [], f"play.{kind}")):
                place = f"play.{kind}[{number}]"
                with problems.caught():
                    found.append(_manifest(_rendered(item, fill, place) if kind == "templates" else item, place))
    if isinstance(section.get("archive"), str):
        try:
            files = read_archive(section["archive"]).files
        except ContractError as error:
            problems.append(WorkloadError(", ".join(filter(None, ("play.archive", error.where))), error.cause))
            files = {}
        for name, content in files.items():
            if "/" not in name and name.endswith((".yaml", ".yml")) and not name.startswith("._"):
                found += _of_file(f"play.archive, {name}", content, problems)
    if not problems and not any(each.kind == "Pod" for each in found):
        problems.append(WorkloadError("play", "has no Pod"))
    return found, problems


def _of_file(place: str, content: bytes, problems: Problems) -> list[Manifest]:
    found = []
    try:
        documents = parse_many(content)
    except ContractError as error:
        problems.append(WorkloadError(", ".join(filter(None, (place, error.where))), error.cause))
        return []
    for number, document in enumerate(documents):
        with problems.caught():
            if document is not None:
                found.append(_manifest(document, place if len(documents) == 1 else f"{place}, document {number + 1}"))
    return found


def _manifest(document: Any, place: str) -> Manifest:
    if not isinstance(document, dict) or document.get("kind") not in ("Pod", "ConfigMap"):
        raise WorkloadError(f"{place}.kind", "must be Pod or ConfigMap")
    if document.get("apiVersion") != "v1":
        raise WorkloadError(f"{place}.apiVersion", "must be v1")
    return Manifest(place, document["kind"], document)


def _rendered(value: Any, fill: Callable[[str], str], place: str) -> Any:
    if isinstance(value, str):
        try:
            return fill(value) if _TEMPLATE in value else value
        except ContractError as error:
            raise WorkloadError(f"{place}, {error.where}", "; ".join(filter(None, (error.cause, error.cure)))) from None
    if isinstance(value, list):
        return [_rendered(item, fill, f"{place}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if _TEMPLATE in key:
                raise WorkloadError(place, "a key can't be a template")
        return {key: _rendered(item, fill, f"{place}.{key}") for key, item in value.items()}
    return value


def _fields(value: Any, place: str, known: Iterable[str]) -> dict[str, Any]:
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


# ------------------------------------------------------------------------------------------------- pods


def translate(manifests: Iterable[Manifest], env: Mapping[str, str], places: Places, problems: Problems) -> Workload:
    """Return the containers of all pods, each behind those that it waits for; what is refused goes into ``problems``.

    What is wrong with images is told by :func:`casemate.contract.images.workload_images`, and not here again.
    """
    manifests = list(manifests)
    workload = Workload()
    tables: dict[str, dict[str, bytes]] = {VARIABLES: {name: text.encode() for name, text in env.items()}}
    for each in manifests:
        if each.kind == "ConfigMap":
            with problems.caught():
                name = _name(each)
                if name in tables:
                    raise WorkloadError(f"{each.place}.metadata.name", "is the name of another ConfigMap")
                tables[name] = _config_map(each)
    ports: dict[str, str] = {}
    names: dict[str, str] = {}
    for each in manifests:
        if each.kind == "Pod":
            before = len(problems)
            with problems.caught():
                _Pod(each, _name(each), tables, env, places, problems, workload, ports, names).translate()
            if isinstance(env, Open):
                problems[before:] = [one for one in problems[before:] if not _is_open(each.document)]
    holders = [each for each in workload.services if each.holds_pod and "--network=host" not in each.options]
    if len(holders) > 1:
        workload.networks = [Network(WORKLOAD)]
        for holder in holders:
            holder.networks[WORKLOAD] = (f"alias={holder.name}",)
    return workload


def _is_open(document: Any) -> bool:
    return OPEN in repr(document)


def _name(manifest: Manifest) -> str:
    place = f"{manifest.place}.metadata"
    known = (
        *("name", "namespace", "labels", "annotations"),
        *("uid", "resourceVersion", "generation", "creationTimestamp"),  # as `kubectl get -o yaml` writes them
    )
    name = _fields(manifest.document.get("metadata"), place, known).get("name")
    if not isinstance(name, str) or not _LABEL.fullmatch(name):
        raise WorkloadError(f"{place}.name", "small letters, digits, . and - only, at most 63")
    return name


def _config_map(manifest: Manifest) -> dict[str, bytes]:
    place = manifest.place
    given = _fields(manifest.document, place, ("apiVersion", "kind", "metadata", "data", "binaryData", "immutable"))
    found: dict[str, bytes] = {}
    for key, item in mapped(given.get("data"), f"{place}.data").items():
        found[key] = plain(item, f"{place}.data").encode()
    for key, item in mapped(given.get("binaryData"), f"{place}.binaryData").items():
        try:
            found[key] = base64.b64decode("".join(plain(item, f"{place}.binaryData").split()), validate=True)
        except (binascii.Error, ValueError):
            raise WorkloadError(f"{place}.binaryData", "is not base64") from None
    for key in found:
        if not _KEY.fullmatch(key):
            raise WorkloadError(f"{place}.data", "keys have letters, digits, - _ . only, and don't begin with .")
    return found


@dataclass(slots=True)
class _Pod:
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
    volumes: dict[str, tuple[str, Any]] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)

    def translate(self) -> None:
        place = self.manifest.place
        top = _fields(self.manifest.document, place, ("apiVersion", "kind", "metadata", "spec", "status"))
        where = f"{place}.spec"
        spec = _fields(top.get("spec"), where, _POD)
        with self.problems.caught():
            self._volumes(spec.get("volumes", []), f"{where}.volumes")
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
                    container = self._container(item, inside, spec, common, policy, is_init=kind == "initContainers")
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
        made.options.append(f"--hostname={self._label(spec.get('hostname', self.name), f'{where}.hostname')}")
        with self.problems.caught():
            for item in listed(spec.get("hostAliases", []), f"{where}.hostAliases"):
                alias = _fields(item, f"{where}.hostAliases", ("ip", "hostnames"))
                for name in listed(alias.get("hostnames"), f"{where}.hostAliases"):
                    made.options.append(f"--add-host={plain(name, where)}:{plain(alias.get('ip'), where)}")
        with self.problems.caught():
            security = _fields(spec.get("securityContext"), f"{where}.securityContext", _POD_SECURITY)
            for item in listed(security.get("sysctls", []), f"{where}.securityContext.sysctls"):
                pair = _fields(item, f"{where}.securityContext.sysctls", ("name", "value"))
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
        given = _fields(spec.get("dnsConfig"), f"{where}.dnsConfig", ("nameservers", "searches", "options"))
        if spec.get("dnsPolicy") == "None" and not given.get("nameservers"):
            raise WorkloadError(f"{where}.dnsPolicy", "None needs a dnsConfig with nameservers")
        for item in listed(given.get("nameservers", []), f"{where}.dnsConfig.nameservers"):
            require_address(item, f"{where}.dnsConfig.nameservers")
            yield f"--dns={item}"
        for item in listed(given.get("searches", []), f"{where}.dnsConfig.searches"):
            yield f"--dns-search={plain(item, f'{where}.dnsConfig.searches')}"
        for item in listed(given.get("options", []), f"{where}.dnsConfig.options"):
            pair = _fields(item, f"{where}.dnsConfig.options", ("name", "value"))
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

    def _label(self, value: Any, place: str) -> str:
        with self.problems.caught():
            if not isinstance(value, str) or not _LABEL.fullmatch(value):
                raise WorkloadError(place, "small letters, digits, . and - only, at most 63")
            return value
        return "pod"

    def _taken(self, container: str, place: str) -> str:
        if (other := self.names.setdefault(container, place)) != place:
            raise WorkloadError(place, f"a container with the name {container} is at {other} already")
        return container

    # --------------------------------------------------------------------------------------------- containers

    def _container(
        self, item: Any, where: str, spec: Mapping[str, Any], common: list[str], policy: Restart, *, is_init: bool
    ) -> Service:
        given = _fields(item, where, _CONTAINER)
        name = given.get("name")
        if not isinstance(name, str) or not _LABEL.fullmatch(name):
            raise WorkloadError(f"{where}.name", "small letters, digits and - only, at most 63")
        made = Service(f"{self.name}/{name}", self._taken(f"{self.name}-{name}", where), self._image(given))
        if not NAME.fullmatch(made.container):
            raise WorkloadError(f"{where}.name", "is too long, together with the pod's")
        made.options += common
        made.pod = self.name
        if is_init:
            made.restart = Restart("never" if policy.when == "never" else "failure")
            for key in ("restartPolicy", *_PROBES):
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
            self._security(made, given, spec, where)
        with caught():
            self._limits(made, given.get("resources"), f"{where}.resources")
        for number, port in enumerate(listed(given.get("ports", []), f"{where}.ports")):
            with caught():
                self._port(port, f"{where}.ports[{number}]")
        for number, entry in enumerate(listed(given.get("volumeMounts", []), f"{where}.volumeMounts")):
            with caught():
                self._mount(made, entry, f"{where}.volumeMounts[{number}]")
        for key in _PROBES:
            with caught():
                if key in given:
                    health = self._probe(given, given[key], f"{where}.{key}", kills=key != "readinessProbe")
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
            entry = _fields(item, place, ("configMapRef", "prefix"))
            table = self._table(entry.get("configMapRef"), f"{place}.configMapRef", ("name", "optional"))
            prefix = plain(entry.get("prefix", ""), place)
            found |= {f"{prefix}{name}": _decoded(content, place) for name, content in table.items()}
        for number, item in enumerate(listed(given.get("env", []), f"{where}.env")):
            place = f"{where}.env[{number}]"
            entry = _fields(item, place, ("name", "value", "valueFrom"))
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
        source = _fields(value, place, ("configMapKeyRef", "fieldRef"))
        if len(source) != 1:
            raise WorkloadError(place, "must be one of configMapKeyRef, fieldRef")
        if "fieldRef" in source:
            return self._field(_fields(source["fieldRef"], place, ("fieldPath", "apiVersion")), f"{place}.fieldRef")
        inside = f"{place}.configMapKeyRef"
        table = self._table(source["configMapKeyRef"], inside, ("name", "key", "optional"))
        entry = _fields(source["configMapKeyRef"], inside, ("name", "key", "optional"))
        key = plain(entry.get("key"), inside)
        if key in table:
            return _decoded(table[key], inside)
        if isinstance(self.env, Open) and entry.get("name") == VARIABLES:
            return OPEN
        if not flag(entry.get("optional", False), inside):
            raise WorkloadError(inside, "the ConfigMap has no such key")
        return None

    def _table(self, value: Any, place: str, known: tuple[str, ...]) -> Mapping[str, bytes]:
        entry = _fields(value, place, known)
        name = plain(entry.get("name"), place)
        if name not in self.tables and not flag(entry.get("optional", False), place):
            raise WorkloadError(place, f"there is no ConfigMap of this name; the contract's variables are {VARIABLES}")
        return self.tables.get(name, {})

    def _security(self, made: Service, given: Mapping[str, Any], spec: Mapping[str, Any], where: str) -> None:
        place = f"{where}.securityContext"
        pods = _fields(spec.get("securityContext"), f"{self.manifest.place}.spec.securityContext", _POD_SECURITY)
        context = {**pods, **_fields(given.get("securityContext"), place, _SECURITY)}
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
        capabilities = _fields(context.get("capabilities"), f"{place}.capabilities", ("add", "drop"))
        for key, items in capabilities.items():
            made.options += [f"--cap-{key}={plain(one, place)}" for one in listed(items, f"{place}.capabilities.{key}")]
        profile = _fields(context.get("seccompProfile"), f"{place}.seccompProfile", ("type",)).get(
            "type", "RuntimeDefault"
        )
        if profile not in ("RuntimeDefault", "Unconfined") or context.get("procMount", "Default") != "Default":
            raise WorkloadError(place, "seccompProfile is RuntimeDefault or Unconfined, procMount is Default")
        if profile == "Unconfined":
            made.options.append("--security-opt=seccomp=unconfined")

    def _limits(self, made: Service, value: Any, place: str) -> None:
        limits = _fields(
            _fields(value, place, ("limits", "requests")).get("limits"), f"{place}.limits", ("cpu", "memory")
        )
        if "cpu" in limits:
            made.options.append(f"--cpus={quantity(limits['cpu'], f'{place}.limits.cpu'):g}")
        if "memory" in limits:
            made.options.append(f"--memory={int(quantity(limits['memory'], f'{place}.limits.memory'))}b")

    def _port(self, value: Any, place: str) -> None:
        """Publish a port that has a ``hostPort``; without one it is only named."""
        entry = _fields(value, place, ("containerPort", "hostPort", "hostIP", "protocol", "name"))
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

    def _probe(self, given: Mapping[str, Any], value: Any, place: str, *, kills: bool) -> Health:
        kinds = ("exec", "httpGet", "tcpSocket")
        numbers = ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold")
        if isinstance(value, dict) and "grpc" in value:
            raise WorkloadError(f"{place}.grpc", f"not supported; ask by {', '.join(kinds)}")
        entry = _fields(value, place, (*kinds, *numbers))
        found = [kind for kind in kinds if kind in entry]
        if len(found) != 1:
            raise WorkloadError(place, f"must have one of {', '.join(kinds)}")
        inside = f"{place}.{found[0]}"
        if found[0] == "exec":
            words = listed(_fields(entry["exec"], inside, ("command",)).get("command"), f"{inside}.command")
            if not words:
                raise WorkloadError(f"{inside}.command", "is empty")
            probe = Probe(command=tuple(plain(word, inside) for word in words))
        elif found[0] == "tcpSocket":
            probe = Probe(port=self._asked(given, _fields(entry["tcpSocket"], inside, ("port",)).get("port"), inside))
        else:
            probe = self._http(given, entry["httpGet"], inside)
        whole(entry.get("successThreshold", 1), f"{place}.successThreshold", 1, 1)
        return Health(
            interval=float(whole(entry.get("periodSeconds", 10), f"{place}.periodSeconds", 1)),
            timeout=float(whole(entry.get("timeoutSeconds", 1), f"{place}.timeoutSeconds", 1)),
            delay=float(whole(entry.get("initialDelaySeconds", 0), f"{place}.initialDelaySeconds")),
            retries=whole(entry.get("failureThreshold", 3), f"{place}.failureThreshold", 1),
            kills=kills,
            probe=probe,
        )

    def _http(self, given: Mapping[str, Any], value: Any, place: str) -> Probe:
        """The pod itself is asked: no other host, so that a probe is no way into the guest's network."""
        entry = _fields(value, place, ("path", "port", "scheme", "httpHeaders"))
        path = plain(entry.get("path", "/"), f"{place}.path")
        if entry.get("scheme", "HTTP") != "HTTP":  # by Kubernetes' rules any certificate would do
            raise WorkloadError(f"{place}.scheme", "must be HTTP; ask a port with TLS by tcpSocket or exec")
        if not re.fullmatch(r"[!-~]{0,2048}", path):
            raise WorkloadError(f"{place}.path", "has visible ASCII characters only, at most 2048")
        headers = []
        for item in listed(entry.get("httpHeaders", []), f"{place}.httpHeaders"):
            pair = _fields(item, f"{place}.httpHeaders", ("name", "value"))
            name, text = (plain(pair.get(key), f"{place}.httpHeaders") for key in ("name", "value"))
            if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", name) or not re.fullmatch(r"[ -~]{0,4096}", text):
                raise WorkloadError(
                    f"{place}.httpHeaders", "names have letters, digits and -, values one line of ASCII"
                )
            headers.append((name, text))
        port = self._asked(given, entry.get("port"), place)
        return Probe((), port, f"/{path.removeprefix('/')}", tuple(headers))

    def _asked(self, given: Mapping[str, Any], value: Any, place: str) -> int:
        """Return the port that a probe asks, given as a number or by the name that the container's ports give it."""
        for item in listed(given.get("ports", []), place):
            entry = _fields(item, place, ("containerPort", "hostPort", "hostIP", "protocol", "name"))
            if isinstance(value, str) and entry.get("name") == value:
                return whole(entry.get("containerPort"), place, 1, 65535)
        return whole(value, f"{place}.port", 1, 65535)

    # --------------------------------------------------------------------------------------------- volumes

    def _volumes(self, value: Any, where: str) -> None:
        known = ("name", "hostPath", "emptyDir", "configMap")
        for number, item in enumerate(listed(value, where)):
            place = f"{where}[{number}]"
            with self.problems.caught():
                if isinstance(item, dict) and "persistentVolumeClaim" in item:
                    raise WorkloadError(place, "a volume of the contract is mounted by hostPath at its mount point")
                entry = _fields(item, place, known)
                name = self._label(entry.pop("name", None), f"{place}.name")
                if name in self.volumes:
                    raise WorkloadError(f"{place}.name", "stands twice")
                if len(entry) > 1 or not isinstance(item, dict) or len(item) < 2:
                    raise WorkloadError(place, f"must be one of {', '.join(known[1:])}")
                kind = next(iter(entry), "emptyDir")  # `emptyDir:` with nothing behind it
                self.volumes[name] = (kind, self._source(kind, name, entry.get(kind), f"{place}.{kind}"))

    def _source(self, kind: str, name: str, value: Any, place: str) -> Any:
        """Return a path for the mounts of a volume, or the name of one of the engine's."""
        if kind == "emptyDir":
            medium = _fields(value, place, ("medium", "sizeLimit")).get("medium", "")
            if medium not in ("", "Memory"):
                raise WorkloadError(place, "medium is Memory, or not given")
            return f"{self.name}-{name}"
        if kind == "hostPath":
            entry = _fields(value, place, ("path", "type"))
            path, must = plain(entry.get("path"), f"{place}.path"), entry.get("type", "")
            if must not in ("", "Directory", "DirectoryOrCreate", "File"):
                raise WorkloadError(f"{place}.type", "must be Directory, DirectoryOrCreate or File")
            inside = posixpath.normpath(path)
            if must in ("Directory", "File") and not path.startswith("/") and inside != ".":
                is_file = inside in self.places.files
                is_directory = any(one.startswith(f"{inside}/") for one in self.places.files)
                if not (is_file if must == "File" else is_directory):
                    raise WorkloadError(f"{place}.path", f"the archive has no such {must.lower()}")
            return path
        entry = _fields(value, place, ("name", "items", "defaultMode", "optional"))
        reference = {key: item for key, item in entry.items() if key in ("name", "optional")}
        table = self._table(reference, place, ("name", "optional"))
        return self._config_files(name, entry, table, place)

    def _config_files(self, name: str, entry: Mapping[str, Any], table: Mapping[str, bytes], place: str) -> str:
        """Have the keys of a ConfigMap written as files; return their directory."""
        directory = f"{self.places.scratch}/.configmaps/{self.name}/{name}"
        mode = _mode(entry.get("defaultMode", 0o644), f"{place}.defaultMode")
        chosen = {key: (key, mode) for key in table}
        if "items" in entry:
            chosen = {}
            for item in listed(entry["items"], f"{place}.items"):
                one = _fields(item, f"{place}.items", ("key", "path", "mode"))
                key, path = plain(one.get("key"), place), posixpath.normpath(plain(one.get("path"), place))
                if key not in table or path.startswith(("/", "..")) or path == ".":
                    raise WorkloadError(
                        f"{place}.items", "the ConfigMap has no such key, or the path leaves the volume"
                    )
                chosen[key] = (path, _mode(one["mode"], f"{place}.items") if "mode" in one else mode)
        for key, (path, bits) in chosen.items():
            self.workload.files[f"{directory}/{path}"] = (bits, table[key])
        self.workload.directories.append(directory)
        return directory

    def _mount(self, made: Service, value: Any, place: str) -> None:
        entry = _fields(value, place, ("name", "mountPath", "readOnly", "subPath", "mountPropagation"))
        name, target = plain(entry.get("name"), place), plain(entry.get("mountPath"), place)
        read_only = flag(entry.get("readOnly", False), f"{place}.readOnly")
        below = posixpath.normpath(plain(entry.get("subPath") or ".", f"{place}.subPath"))
        if below.startswith(("/", "..")) or entry.get("mountPropagation", "None") != "None":
            raise WorkloadError(place, "a subPath stays below its volume, mountPropagation is None")
        if name not in self.volumes:
            raise WorkloadError(f"{place}.name", "the Pod has no volume of this name")
        kind, source = self.volumes[name]
        if kind == "emptyDir":
            if below != ".":
                raise WorkloadError(f"{place}.subPath", "not supported for emptyDir")
            if made.group is None:
                made.options.append(volume(source, target, read_only, place))
            else:  # a directory of ours, since the engine gives its volumes to users of its own choice
                path = f"{self.places.scratch}/.empty/{source}"
                made.directories.append(path)
                made.mounts.append(path)
                made.grouped.append(path)
                made.options.append(volume(path, target, read_only, place))
        elif kind == "configMap":
            path = posixpath.normpath(f"{source}/{below}")
            made.mounts.append(path)
            made.options.append(volume(path, target, True, place))
        else:
            path = source if below == "." else f"{source.rstrip('/')}/{below}"
            mount(made, path, target, read_only, place, self.places)
            if made.group is not None and any(
                made.mounts[-1] == top or made.mounts[-1].startswith(f"{top}/") for top in self.places.volumes.values()
            ):
                made.grouped.append(made.mounts[-1])


def _mode(value: Any, place: str) -> int:
    mode = whole(value, place)
    if mode not in _PLAIN_MODES | _PROGRAM_MODES:
        raise WorkloadError(place, "must be 0644, 0755 or one of their like")
    return 0o755 if mode in _PROGRAM_MODES else 0o644


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise WorkloadError(place, "binary data is no variable") from None


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` where there is such a variable; ``$$(`` stands for ``$(``."""
    return _EXPANSION.sub(lambda found: env.get(found["name"], found[0]) if found["name"] else "$", text)


def quantity(value: Any, place: str) -> float:
    """Return a Kubernetes quantity (``500m``, ``1.5``, ``64Mi``) as a number."""
    match = _QUANTITY.fullmatch(plain(value, place))
    if not match:
        raise WorkloadError(place, "write a number with m, k, M, G, Ki, Mi or Gi behind it, or without")
    return float(match["number"]) * _UNITS[match["unit"] or ""]
