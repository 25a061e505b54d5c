"""The YAML of contracts, read strictly, and the outer contract.

    contract = parse_contract(user_data)
    contract.workload                     # the exact string: a token, or plain text

The rules this module keeps:

- At most 2 MiB of UTF-8, 32 levels deep, 100 000 nodes; aliases are refused in contracts (and bounded where compose
  files use them), so no text unpacks to more than itself. A key that stands twice is an error.
- Only plain types: text, integers, floats, true and false, null, lists, mappings with text as keys. Words are read as
  YAML 1.2 does: ``on``, ``yes`` and dates are text. Tags are refused.
- The same result with libyaml and without: both hand events to one builder.
- Errors give line and column and never quote the text, which may hold secrets.

**The exact string** of a section is its value as YAML gives it: for a token the token, for a block string
(``workload: |``) the text of the block, its last newline included. It is what is signed and what is hashed for the
record. A section given as a mapping has no such string: it is written anew as JSON on one line, in the order it
stands, for use and for the hash; nobody can have signed that, so :func:`exact` refuses.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casemate.contract.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST, DEEPEST, MOST_NODES = 2 << 20, 32, 100_000
SECTIONS = ("workload", "env")
KEYS = (*SECTIONS, "attestationPublicKey", "envWorkloadSignature")

_UNPRINTABLE = "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
_UNPRINTABLE_ASCII = "[^\t\n\r\x20-\x7e]"  # by itself, since the other takes an emulated processor 0.2 s to compile
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,18}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,3})?")
_WORDS: dict[str, Any] = {word: None for word in ("", "~", "null", "Null", "NULL")}
_WORDS |= {word: True for word in ("true", "True", "TRUE")} | {word: False for word in ("false", "False", "FALSE")}


@dataclass(frozen=True, slots=True)
class Contract:
    """An outer contract. ``workload`` and ``env`` are the exact strings, tokens or plain YAML.

    ``mappings`` names the sections that stood there as mappings and were written anew; ``unknown`` the keys that
    no contract has.
    """

    workload: str = field(repr=False)
    env: str = field(repr=False)
    attestation_public_key: str | None = field(default=None, repr=False)
    envworkload_signature: str | None = None
    mappings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def parse_contract(data: bytes) -> Contract:
    """Parse ``user-data``. Raises :class:`DocumentError`; says nothing yet about what is inside the sections."""
    contract, faults = outer(parse_section(data))
    if faults:
        raise faults[0]
    return contract


def outer(document: dict[str, Any]) -> tuple[Contract, list[DocumentError]]:
    """Return what a parsed ``user-data`` holds and everything that is wrong with its form.

    Where something is, the contract is for a check only: a section that is missing or wrong is empty in it.
    """
    values: dict[str, str | None] = dict.fromkeys(KEYS)
    mappings, faults = [], []
    for key in KEYS:
        value = document.get(key)
        if key in SECTIONS and isinstance(value, dict):
            values[key] = rewrite(value)
            mappings.append(key)
        elif isinstance(value, str) and value.strip():
            values[key] = value
        elif key in document:
            kind = "a token, a block string or a mapping" if key in SECTIONS else "text"
            faults.append(DocumentError(f"must be {kind}, and not empty", where=key))
    workload, env, public_key, signature = values.values()
    if missing := [key for key in SECTIONS if key not in document]:
        cure = "a contract needs both sections, workload and env"
        faults.append(DocumentError(f"the contract has no {' and '.join(missing)}", cure))
    unknown = tuple(key for key in document if key not in KEYS)
    return Contract(workload or "", env or "", public_key, signature, tuple(mappings), unknown), faults


def exact(contract: Contract) -> tuple[str, str]:
    """Return the strings that a signature covers. Raises :class:`DocumentError` where a section is a mapping."""
    if contract.mappings:
        raise DocumentError(
            "is a mapping, and a signature covers text: there is no exact string to sign or verify",
            "seal the section, or write it as a block string (`workload: |`)",
            where=" and ".join(contract.mappings),
        )
    return contract.workload, contract.env


def parse_section(data: bytes) -> dict[str, Any]:
    """Parse a plain section (or any mapping of ours). Raises :class:`DocumentError`."""
    document = parse(data)
    if not isinstance(document, dict):
        raise DocumentError("the text is not a mapping of keys to values", "write `key: value` lines")
    return document


def parse(data: bytes, *, aliases: bool = False) -> Any:
    """Parse one YAML document. With ``aliases``, anchors, aliases and merge keys are understood, within the bounds."""
    (document,) = _parse(data, aliases, many=False)
    return document


def parse_many(data: bytes) -> list[Any]:
    """Parse a file of several YAML documents (``---``), as Kubernetes has them; anchors count as in :func:`parse`."""
    return _parse(data, True, many=True)


def _parse(data: bytes, aliases: bool, many: bool) -> list[Any]:
    import yaml

    if len(data) > LARGEST:
        raise DocumentError(f"{len(data)} bytes, more than the {LARGEST} that are read")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 at byte {error.start}") from None
    if odd := re.search(_UNPRINTABLE_ASCII if text.isascii() else _UNPRINTABLE, text):
        line = text.count("\n", 0, odd.start()) + 1
        raise DocumentError("a character that YAML text may not hold; write it escaped", where=f"line {line}")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return list(_Builder(yaml.parse(text, Loader=loader), aliases).documents(many))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise DocumentError("not YAML; look at indentation, quotes and colons here", where=where) from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise DocumentError("not YAML") from None


def rewrite(value: Any) -> str:
    """Write plain values as one line of JSON in ASCII that YAML reads as the same values."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return re.sub("[^\x20-\x7e]", lambda match: f"\\U{ord(match[0]):08x}", text)


def write_contract(contract: Contract) -> bytes:
    """Write ``user-data``: one that any YAML reader reads as these exact strings, and people read too.

    Tokens stand on one line, plain sections as block strings; where a block can't hold a text, it is quoted.
    Raises :class:`DocumentError` where the contract would be larger than what is read.
    """
    values = (contract.workload, contract.env, contract.attestation_public_key, contract.envworkload_signature)
    lines = [f"{key}: {_scalar(value)}\n" for key, value in zip(KEYS, values, strict=True) if value is not None]
    data = "".join(lines).encode()
    parse_contract(data)
    return data


def _scalar(text: str) -> str:
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+/=.-]{100,}", text):
        return text
    chomp = "-" if not text.endswith("\n") else "+" if text.endswith("\n\n") else ""
    indent = "2" if text[:1] in (" ", "\n") else ""
    body = "\n".join(f"  {line}" if line else "" for line in text.removesuffix("\n").split("\n"))
    block = f"|{indent}{chomp}\n{body}"
    try:
        if parse(f"a: {block}\nb: 1\n".encode()) == {"a": text, "b": 1}:
            return block
    except (DocumentError, UnicodeError):
        pass
    return rewrite(text)


class _Builder:
    """Builds plain values from YAML events, within the bounds. Both of PyYAML's parsers give the same events."""

    def __init__(self, events: Iterator[Any], aliases: bool) -> None:
        self._events = events
        self._aliases = aliases
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0
        self._depth = 0

    def documents(self, many: bool) -> Iterator[Any]:
        next(self._events)  # the start of the stream
        if type(event := next(self._events)).__name__ == "StreamEndEvent":
            raise DocumentError("the text is empty")
        while type(event).__name__ != "StreamEndEvent":
            yield self._value(next(self._events))
            next(self._events)  # the end of the document
            self._anchors.clear()
            event = next(self._events)
            if type(event).__name__ != "StreamEndEvent" and not many:
                raise self._error("a second document; a contract is one", event)

    def _value(self, event: Any) -> Any:
        kind = type(event).__name__
        self._count(1, event)
        if kind == "AliasEvent":
            return self._alias(event)
        if event.anchor is not None and not self._aliases:
            raise self._error("an anchor; contracts don't use anchors and aliases", event)
        if event.tag is not None and (event.tag, kind) not in (("!", "ScalarEvent"), (_STR, "ScalarEvent")):
            raise self._error("a tag; contracts hold plain values only", event)
        before = self._nodes
        if kind == "ScalarEvent":
            value = self._scalar(event)
        else:
            self._depth += 1
            if self._depth > DEEPEST:
                raise self._error(f"nested deeper than {DEEPEST} levels", event)
            value = self._sequence() if kind == "SequenceStartEvent" else self._mapping()
            self._depth -= 1
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._nodes - before)
        return value

    def _sequence(self) -> list[Any]:
        items = []
        while type(event := next(self._events)).__name__ != "SequenceEndEvent":
            items.append(self._value(event))
        return items

    def _mapping(self) -> dict[str, Any]:
        items: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        while type(event := next(self._events)).__name__ != "MappingEndEvent":
            key = self._value(event)
            if not isinstance(key, str):
                raise self._error("a key that is not text; put it in quotes", event)
            value = self._value(next(self._events))
            if key == "<<" and event.implicit[0]:
                sources = value if isinstance(value, list) else [value]
                if not self._aliases or merged or not all(isinstance(source, dict) for source in sources):
                    raise self._error("a merge key (<<) that is not allowed here", event)
                merged = sources
            elif key in items:
                raise self._error(f"the key {_short(key)} stands here a second time", event)
            else:
                items[key] = value
        for source in merged:
            items |= {key: value for key, value in source.items() if key not in items}
        return items

    def _alias(self, event: Any) -> Any:
        if not self._aliases:
            raise self._error("an alias; contracts don't use anchors and aliases", event)
        if event.anchor not in self._anchors:
            raise self._error("an alias without its anchor", event)
        value, nodes = self._anchors[event.anchor]
        self._count(nodes, event)
        return value

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if event.tag is not None or not event.implicit[0]:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return int(text, 10 if text[:2].lower() not in ("0o", "0x") else 0)
        if _FLOAT.fullmatch(text):
            number = float(text)
            return text if number in (float("inf"), float("-inf")) else number
        return text

    def _count(self, nodes: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            raise self._error(f"more than {MOST_NODES} values", event)

    @staticmethod
    def _error(cause: str, event: Any) -> DocumentError:
        mark = event.start_mark
        return DocumentError(cause, where=f"line {mark.line + 1}, column {mark.column + 1}")


_STR = "tag:yaml.org,2002:str"


def _short(key: str) -> str:
    """A key, fit for a message."""
    return repr(key if len(key) <= 60 else key[:57] + "...")
