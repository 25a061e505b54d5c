"""Which images a Containerfile is built from, and what is refused of it before anything is built.

    for base in bases(content, {"VERSION": "17"}): base.written, base.reference

The rules: each base image is named by digest, since a tag can be moved; nothing is added from a URL, since a URL can be changed.
What is read here decides what is fetched, and what is said to the user early. It is no boundary: the sandbox of the build has no
network and no image but those found here, so whatever this reader misses fails there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from casemate.contract.errors import ImageError
from casemate.contract.images import Reference, interpolate, parse_reference
from casemate.hpsb.errors import refused

LARGEST, MOST_BASES = 1 << 20, 32
_REMOTE = re.compile(r"(?i)(?:https?|ftp|git|ssh)://|git@")
_HEREDOC = re.compile(r"<<-?\s*[\"']?(\w+)[\"']?")


@dataclass(frozen=True, slots=True)
class Base:
    """An image that a build starts from or copies from: as it is written after all variables, and in full."""

    written: str
    reference: Reference


def bases(content: bytes, arguments: Mapping[str, str]) -> list[Base]:
    """Return the images that a Containerfile names, each once. Raises :class:`BuildError`."""
    if len(content) > LARGEST:
        raise refused("CONTAINERFILE", f"the Containerfile has more than {LARGEST} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise refused("CONTAINERFILE", "the Containerfile is not UTF-8") from None
    values: dict[str, str] = {}
    stages: set[str] = set()
    found: dict[str, Base] = {}

    def add(written: str) -> None:
        if written in stages or written.isdigit() or written == "scratch":
            return
        found.setdefault(written, Base(written, _by_digest(written)))

    begun = False
    for number, name, rest in _instructions(text):
        where = f"line {number}"
        if name == "FROM":
            begun = True
            words = [word for word in rest.split() if not word.startswith("--")]
            if len(words) not in (1, 3) or (len(words) == 3 and words[1].lower() != "as"):
                raise refused(
                    "CONTAINERFILE", "a FROM that is not understood", "write FROM name@sha256:… [AS stage]", where
                )
            add(_filled(words[0], values, where))
            if len(words) == 3:
                stages.add(words[2].lower())
                stages.add(words[2])
        elif name == "ARG" and not begun:
            for word in rest.split():
                key, given, default = word.partition("=")
                values[key] = arguments.get(key, default.strip("\"'") if given else values.get(key, ""))
        elif name in ("COPY", "ADD", "RUN"):
            for option in re.findall(r"--from=(\S+)", rest) + re.findall(r"--mount=\S*?\bfrom=([^,\s]+)", rest):
                add(option.strip("\"'"))
            if name == "ADD" and any(_REMOTE.match(source) for source in _words(rest)[:-1]):
                raise refused(
                    "ADD-URL",
                    "something is added from a URL, which may have other content tomorrow",
                    "keep it in the repository",
                    where,
                )
    if not begun:
        raise refused("CONTAINERFILE", "the Containerfile has no FROM")
    if len(found) > MOST_BASES:
        raise refused("CONTAINERFILE", f"more than {MOST_BASES} base images")
    return list(found.values())


def _by_digest(written: str) -> Reference:
    try:
        reference = parse_reference(written)
    except ImageError as error:
        raise refused("BASE", "a base image has no name that is understood", error.cure) from None
    if reference.digest is None:
        raise refused(
            "BASE-TAG",
            f"the base image {reference.canonical} is named by tag, which can be moved",
            "write name@sha256:…",
        )
    return reference


def _filled(text: str, values: Mapping[str, str], where: str) -> str:
    try:
        return interpolate(text.strip("\"'"), values)
    except ImageError as error:
        raise refused("CONTAINERFILE", error.cause, error.cure, where) from None


def _words(rest: str) -> list[str]:
    if rest.lstrip().startswith("["):
        try:
            listed = json.loads(rest)
        except ValueError:
            listed = []
        return [str(word) for word in listed] if isinstance(listed, list) else []
    return [word.strip("\"'") for word in rest.split() if not word.startswith("--")]


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, name and rest of each instruction; continued lines joined, comments and here-documents passed over."""
    escape = "\\"
    ends: list[str] = []
    lines = text.splitlines()
    for line in lines:  # parser directives stand first
        if not (directive := re.fullmatch(r"#\s*(\w+)\s*=\s*(.*?)\s*", line)):
            break
        if directive[1].lower() == "escape":
            escape = directive[2]
    joined, began = "", 0
    for number, line in enumerate(lines, 1):
        if ends:
            if line.strip() == ends[0]:
                ends.pop(0)
            continue
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        began = began or number
        if line.rstrip().endswith(escape):
            joined += line.rstrip()[:-1] + " "
            continue
        name, _, rest = (joined + line).strip().partition(" ")
        if name.upper() in ("RUN", "COPY", "ADD"):
            ends = _HEREDOC.findall(rest)
        yield began, name.upper(), rest.strip()
        joined, began = "", 0
    if joined:
        name, _, rest = joined.strip().partition(" ")
        yield began, name.upper(), rest.strip()
