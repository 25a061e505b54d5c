"""Values of a compose file: variables in them, files of variables, and what a service is made of while it is translated.

A variable that nobody gives is empty, as with Compose, and that is noted; for images it is an error
(:mod:`casemate.contract.images`). No note quotes its name: what follows a dollar may be the rest of a password.
"""

from __future__ import annotations

import posixpath
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from casemate.contract.errors import ImageError, WorkloadError
from casemate.contract.images import Open, interpolate
from casemate.contract.workload import (
    WORKLOAD,
    Network,
    Places,
    Problems,
    Service,
    flag,
    listed,
    mapped,
    only,
    plain,
    variables,
)

UNSET = "a variable that nobody gives is empty; a dollar of the text itself is written $$"
_LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\s*=[ \t]*
        (?:'(?P<literal>[^']*)'|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^'"\s#][^\r\n]*?|))(?:[ \t]+\#.*|[ \t]*)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Binding:
    """A named volume that its options make another path, or, with ``tmpfs``, memory."""

    path: str = ""
    tmpfs: str | None = None


@dataclass(slots=True)
class File:
    """What a compose file declares beside its services.

    ``services`` are those that start. ``volumes`` have the engine's name, or what options bind them to. ``files`` are secrets
    and configs: a path in the archive, or a path of the guest at which ``written`` has their content.
    """

    services: frozenset[str] = frozenset()
    volumes: dict[str, str | Binding] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=lambda: {"default": Network(WORKLOAD)})
    files: dict[str, dict[str, str]] = field(default_factory=lambda: {"secrets": {}, "configs": {}})
    written: dict[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Making:
    """A service while it is made, and what it is made of.

    ``joined`` names other services whose containers an option needs: ``--pid=container:{}``. ``links`` are others with the names
    under which this one calls them.
    """

    made: Service
    raw: Mapping[str, Any]
    file: File
    env: Mapping[str, str]
    places: Places
    problems: Problems
    command: list[str] = field(default_factory=list)
    joined: list[tuple[str, str, str]] = field(default_factory=list)
    links: list[tuple[str, str, str]] = field(default_factory=list)


def filled(value: Any, env: Mapping[str, str], place: str, problems: Problems) -> Any:
    """Return a value with the variables in it replaced."""
    if isinstance(value, str):
        try:
            return interpolate(value, env, unset=lambda: problems.note(place, UNSET))
        except ImageError as error:
            raise WorkloadError(place, error.cause) from None
    if isinstance(value, list):
        return [filled(item, env, place, problems) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, env, f"{place}.{key}"[:200], problems) for key, item in value.items()}
    return value


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


def environment(making: Making, where: str) -> None:
    """Variables of files first, then those that stand in the compose file, which win."""
    found: dict[str, str] = {}
    with making.problems.caught():
        for each in _env_files(making, f"{where}.env_file"):
            found |= each
    place = f"{where}.environment"
    with making.problems.caught():
        given = filled(making.raw.get("environment") or {}, making.env, place, making.problems)
        found |= pairs(given, place, making.env)
        making.made.environment = variables(found, place)


def _env_files(making: Making, place: str) -> Iterator[dict[str, str]]:
    given = making.raw.get("env_file") or []
    for item in [given] if isinstance(given, str) else listed(given, place):
        entry = only({"path": item} if isinstance(item, str) else item, place, ("path", "required", "format"))
        path = filled(plain(entry.get("path"), place), making.env, place, making.problems)
        name = posixpath.normpath(path)
        if name.startswith(("/", "../")) or name == "..":
            raise WorkloadError(place, "must be a file of the archive")
        if name in making.places.files:
            yield read_env_file(making.places.files[name], making.env, f"{place}, {name}", making.problems)
        elif flag(entry.get("required", True), place):
            raise WorkloadError(place, "the archive has no such file")


def read_env_file(content: bytes, env: Mapping[str, str], place: str, problems: Problems) -> dict[str, str]:
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
        found[match["name"]] = filled(text, known, f"{place}, line {number}", problems)
    return found


def _escaped(match: re.Match[str]) -> str:
    return {"n": "\n", "r": "\r", "t": "\t"}.get(match[1], match[1])
