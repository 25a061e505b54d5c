"""Compose files: what of the Compose specification is understood, and which containers become of it.

    workload = translate(read_compose(text), {"PASSWORD": "…"}, places, problems := Problems())

What is not understood is refused by name (:mod:`casemate.contract.workload`). Values are interpolated with the variables of the
contract first. The images are those that ``hpl-image`` has admitted, read from the same text by the same code.

Passed over, since they change nothing inside: ``labels``, ``annotations``, ``logging`` (the contract says where lines go),
``expose``, ``platform``, ``pull_policy`` (images are pulled anew at each start), ``attach``, ``version``, ``name``, ``x-…``;
``restart`` of ``depends_on``, ``start_interval`` of ``healthcheck``, ``create_host_path`` of a mount, ``delay`` and ``window`` of
``deploy.restart_policy``, and what else ``deploy`` has for a swarm; ``driver: local`` of a volume and ``driver: bridge`` of a
network, which are so anyway. A service whose ``profiles`` are not wanted does not start.

The keys of a service are in :mod:`casemate.contract.composekeys`, networks in :mod:`casemate.contract.composenet`, variables in
:mod:`casemate.contract.composevalues`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from casemate.contract import composenet
from casemate.contract.composekeys import HANDLERS
from casemate.contract.composevalues import Binding, File, Making, environment, filled
from casemate.contract.errors import ImageError, WorkloadError
from casemate.contract.images import OPEN, Open, compose_images
from casemate.contract.workload import (
    NAME,
    Health,
    Places,
    Problems,
    Service,
    Workload,
    flag,
    mapped,
    not_known,
    only,
    ordered,
    plain,
)

_TOP = ("services", "version", "volumes", "networks", "name", "secrets", "configs")
_IGNORED = (
    *("image", "container_name", "expose", "logging", "labels", "annotations", "platform", "pull_policy", "attach"),
    *("environment", "env_file", "profiles"),  # understood before the others
    *("build", "extends"),  # refused where the images are found
)


def translate(document: Mapping[str, Any], env: Mapping[str, str], places: Places, problems: Problems) -> Workload:
    """Return the containers of a compose file in the order of their start; what is refused goes into ``problems``.

    What is wrong with images is told by :func:`casemate.contract.images.workload_images`, and not here again. Where the
    deployer's variables are not known yet (``env`` is :class:`Open`), what depends on one of them is passed over.
    """
    images = compose_images(document, env)
    file = _declared(document, env, places, problems)
    file.services = frozenset(images)
    makings: dict[str, Making] = {}
    for name, image in images.items():
        if isinstance(raw := document["services"][name], dict):
            text = "" if isinstance(image, ImageError) else image.canonical
            makings[name] = Making(Service(name, name, text), raw, file, env, places, problems)
            _service(makings[name])
    workload = Workload([each.made for each in makings.values()])
    workload.files = {path: (0o444, content) for path, content in file.written.items()}
    with problems.caught():
        composenet.apart(makings)
    with problems.caught():
        workload.networks = composenet.connect(makings)
        workload.services = list(ordered({name: each.made for name, each in makings.items()}, "services"))
    for each in workload.services:
        for name, condition in each.after.items():
            if condition == "service_healthy" and name in makings:  # asked by what its image says
                makings[name].made.health = makings[name].made.health or Health()
    return workload


def _declared(document: Mapping[str, Any], env: Mapping[str, str], places: Places, problems: Problems) -> File:
    file = File()
    for key in document:
        if key not in _TOP and not key.startswith("x-"):
            problems.append(not_known("", key, _TOP))
    with problems.caught():
        composenet.declare(file, filled(document.get("networks"), env, "networks", problems), problems)
    with problems.caught():
        env_here = env if isinstance(env, Open) else {"PWD": ".", **env}
        for name, item in mapped(filled(document.get("volumes"), env_here, "volumes", problems), "volumes").items():
            file.volumes[name] = name
            with problems.caught():
                file.volumes[name] = _named_volume(name, item, f"volumes.{name}")
    for kind, files in file.files.items():
        for name, item in mapped(document.get(kind), kind).items():
            with problems.caught():
                files[name] = _file(kind, name, filled(item, env, f"{kind}.{name}", problems), file, env, places)
    return file


def _named_volume(name: str, item: Any, place: str) -> str | Binding:
    """Return the engine's name of a volume, or what its options bind it to; a path has the rules of all mounts."""
    known = ("name", "labels", "driver", "driver_opts", "external")
    given = only({key: one for key, one in mapped(item, place).items() if one not in (None, {}, [])}, place, known)
    if given.get("driver", "local") not in ("local", "default") or flag(
        given.get("external", False), f"{place}.external"
    ):
        raise WorkloadError(place, "must be of this workload only, and of the driver local")
    engines = given.get("name", name)
    if not NAME.fullmatch(name) or not isinstance(engines, str) or not NAME.fullmatch(engines):
        raise WorkloadError(place, "names have letters, digits, _ . - only")
    options = only(given.get("driver_opts"), f"{place}.driver_opts", ("type", "o", "device"))
    if not options:
        return engines
    kind, how, device = (plain(options.get(key, ""), f"{place}.driver_opts.{key}") for key in ("type", "o", "device"))
    if kind == "tmpfs" and re.fullmatch(r"[A-Za-z0-9=,_-]*", how):
        return Binding(tmpfs=how)
    if kind in ("none", "bind", "") and how in ("bind", "rbind") and device.startswith((".", "/")):
        return Binding(device)
    raise WorkloadError(
        f"{place}.driver_opts", "is a path (type: none, o: bind, device: /path) or memory (type: tmpfs)"
    )


def _file(kind: str, name: str, item: Any, file: File, env: Mapping[str, str], places: Places) -> str:
    """Return where a secret or config is: a file of the archive, or what a variable or the compose file itself holds."""
    place = f"{kind}.{name}"
    content = ("content",) if kind == "configs" else ()
    given = only(item, place, ("file", "environment", *content, "name", "labels"))
    ways = given.keys() & {"file", "environment", "content"}
    if len(ways) != 1 or not NAME.fullmatch(name):
        raise WorkloadError(place, f"needs one of {', '.join(('file', 'environment', *content))}")
    text = plain(given[way := ways.pop()], f"{place}.{way}")
    if way == "file":
        if not text or text.startswith("/"):
            raise WorkloadError(place, "needs `file`, a path in the archive")
        return text if text.startswith(".") else f"./{text}"
    if way == "environment":
        if (value := env.get(text)) is None:
            raise WorkloadError(f"{place}.environment", "neither section gives this variable")
        text = value
    path = f"{places.scratch}/.{kind}/{name}"
    file.written[path] = text.encode()
    return path


def _service(making: Making) -> None:
    made, raw, problems = making.made, making.raw, making.problems
    where = f"services.{made.name}"
    with problems.caught():
        if not NAME.fullmatch(made.name):
            raise WorkloadError("services", "the name of a service has letters, digits, _ . - only, at most 64")
        container = filled(raw.get("container_name", made.name), making.env, f"{where}.container_name", problems)
        if not isinstance(container, str) or not NAME.fullmatch(container):
            raise WorkloadError(f"{where}.container_name", "letters, digits, _ . - only, at most 64")
        made.container = container
    if not isinstance(raw.get("profiles", []), list):
        problems.append(WorkloadError(f"{where}.profiles", "must be a list"))
    if "environment" in raw or "env_file" in raw:
        environment(making, where)
    for key, value in raw.items():
        if key in _IGNORED or key.startswith("x-") or value is None:
            continue
        before = len(problems)
        with problems.caught():
            if key not in HANDLERS:
                raise not_known(where, key, (*HANDLERS, *_IGNORED))
            env = {"PWD": ".", **making.env} if key == "volumes" and not isinstance(making.env, Open) else making.env
            given = filled(value, env, f"{where}.{key}", problems)
            with problems.caught():
                HANDLERS[key](making, given, f"{where}.{key}")
            if isinstance(making.env, Open) and OPEN in repr(given):
                del problems[before:]  # what is wrong may be only that a value isn't there yet
    made.command += making.command  # what follows the entry point, whichever stands first in the file
