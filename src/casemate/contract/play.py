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
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from casemate.contract.archive import read_archive
from casemate.contract.document import parse_many
from casemate.contract.errors import ContractError, WorkloadError
from casemate.contract.images import OPEN, Open
from casemate.contract.pod import VARIABLES, Manifest, Pod
from casemate.contract.podvolumes import LABEL
from casemate.contract.template import Allowance, render
from casemate.contract.workload import (
    WORKLOAD,
    Network,
    Places,
    Problems,
    Workload,
    fields,
    listed,
    mapped,
    plain,
)

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}")
_TEMPLATE = "{{"


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
                Pod(each, _name(each), tables, env, places, problems, workload, ports, names).translate()
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
    name = fields(manifest.document.get("metadata"), place, known).get("name")
    if not isinstance(name, str) or not LABEL.fullmatch(name):
        raise WorkloadError(f"{place}.name", "small letters, digits, . and - only, at most 63")
    return name


def _config_map(manifest: Manifest) -> dict[str, bytes]:
    place = manifest.place
    given = fields(manifest.document, place, ("apiVersion", "kind", "metadata", "data", "binaryData", "immutable"))
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
