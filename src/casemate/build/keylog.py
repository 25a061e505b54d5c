"""The log of an authority's keys: one line for each use, each line bound to all before it.

    entries = parse(path.read_bytes())          # raises KeyLogError where a line was changed, moved, taken out or put in
    append(path, "certificate", {"issuer": "intermediate", "key": "ab…", "subject": "…", "serial": "1f", …})

A line is JSON in one form (sorted keys, no spaces, ASCII), at most 4096 bytes, ended by a newline:

========  ========================================================================
n         its number, from 1
time      UTC, seconds, ``2026-11-25T01:20:00Z``
previous  SHA-256 of the line before, without its newline, hex; zeros in the first
action    what the key did, or what was done with it: :data:`ACTIONS`
========  ========================================================================

and what the action needs: texts and whole numbers, never a secret; ``key`` is the SHA-256 of the key that was made, certified or
used. A line is on the disk before what it speaks of is
published: what was signed and not logged leaves the program's memory never. A torn last line (power gone) speaks of nothing that
was published; the next line takes its place.

What the chain can't show is an end that was cut off. So whoever witnesses a ceremony writes down the head (SHA-256 of
the last line) and :func:`parse` is given it later.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import strictjson
from casemate.errors import CasemateError

ACTIONS = frozenset(("adopt", "generate", "certificate", "list", "request", "accept", "revoke", "retire"))
LARGEST_LINE, LARGEST = 4096, 256 << 20
START = "0" * 64
_OWN = ("n", "time", "previous", "action")


class KeyLogError(CasemateError):
    """The log is not what was written."""

    id = "AUTHORITY-LOG"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line: its number, time and action, what it says besides, and its SHA-256 (hex)."""

    n: int
    time: str
    action: str
    facts: dict[str, Any]
    digest: str


def parse(data: bytes, head: str = "") -> list[Entry]:
    """Return the entries of a log. ``head`` is the digest of a line that must be among them (hex), where one was kept.

    Raises :class:`KeyLogError`.
    """
    if len(data) > LARGEST:
        raise _broken("is too large for a log of keys")
    entries: list[Entry] = []
    previous = START
    *lines, torn = data.split(b"\n")
    if torn:
        raise _broken(f"line {len(lines) + 1} is not whole")
    for n, line in enumerate(lines, 1):
        document = _read(line, n)
        if document["n"] != n or document["previous"] != previous:
            raise _broken(f"line {n} does not follow the one before it: something was changed, taken out or put in")
        previous = hashlib.sha256(line).hexdigest()
        facts = {name: value for name, value in document.items() if name not in _OWN}
        entries.append(Entry(n, document["time"], document["action"], facts, previous))
    if head and head not in {entry.digest for entry in entries}:
        raise _broken("the line that you know is not in it: its end was cut off, or all of it replaced")
    return entries


def line(n: int, previous: str, time: datetime.datetime, action: str, facts: dict[str, Any]) -> bytes:
    """Return a line without its newline."""
    if action not in ACTIONS or set(facts) & set(_OWN):
        raise ValueError("not an action of the log, or a fact with a name of its own")
    moment = time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return strictjson.dumps({**facts, "n": n, "time": moment, "previous": previous, "action": action})


def append(path: Path, action: str, facts: dict[str, Any]) -> Entry:
    """Write one more line, on the disk when this returns. The caller holds the authority's lock.

    Raises :class:`KeyLogError` where what is there does not hold: nothing is built upon it.
    """
    before = path.read_bytes() if path.exists() else b""
    whole = before[: before.rfind(b"\n") + 1]
    entries = parse(whole)
    previous = entries[-1].digest if entries else START
    now = datetime.datetime.now(datetime.UTC)
    new = line(len(entries) + 1, previous, now, action, facts)
    if len(new) > LARGEST_LINE:
        raise KeyLogError("a line would be too long", "use shorter names", str(path))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        if len(whole) != len(before):
            file.truncate(len(whole))
        file.seek(len(whole))
        file.write(new + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return parse(whole + new + b"\n")[-1]


def _read(line: bytes, n: int) -> dict[str, Any]:
    try:
        document = json.loads(line) if len(line) <= LARGEST_LINE else None
    except (ValueError, RecursionError):
        document = None
    if (
        not isinstance(document, dict)
        or not all(isinstance(value, str) or type(value) is int for value in document.values())
        or not set(_OWN) <= set(document)
        or type(document["n"]) is not int
        or not all(isinstance(document[name], str) for name in _OWN[1:])
        or document["action"] not in ACTIONS
        or strictjson.dumps(document) != line
    ):
        raise _broken(f"line {n} is none of this log")
    return document


def _broken(cause: str) -> KeyLogError:
    return KeyLogError(cause, "compare it with a copy; what was signed since the last good line is not accounted for")
