"""``hpl-logrouter``: sends the journal to IBM Cloud Logs, over its HTTP interface.

    POST https://HOST/logs/v1/singles        a JSON array of entries, with an access token
    POST https://IAM/identity/token          an access token for the API key, good for an hour at most

Source: IBM Cloud documentation, "Sending logs by using the API" and "Generating an IBM Cloud IAM token by using an API
key". The rules that this module keeps:

- The journal is the queue. What the backend has not taken yet stays there; memory holds one batch. Order is kept, each
  entry arrives at least once. What the journal had to drop meanwhile is counted and told (``HPL01012W``).
- Key and token go to the two hosts of the configuration, over TLS that was verified, and nowhere else: no redirect is
  followed, no proxy asked. They are never said.
- Whatever the backend answers, the workload goes on, and delivery is tried again, at most every second, at least every minute.
"""

from __future__ import annotations

import functools
import json
import os
import re
import select
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate.guest import conversation, state
from casemate.guest.conversation import LONGEST_PAUSE, Refused, ask
from casemate.guest.report import Stop, say

UNFORESEEN = "HPL01015E"
DIRECTORY = state.RUN / "logging"
LARGEST_LINE = 1 << 20
"""Bytes of one journal entry as JSON; what is longer is told of and left out."""
LARGEST_TEXT = 16 << 10
"""Characters of a line; the rest is cut off."""
LARGEST_BATCH = 512 << 10
ENTRIES = 500
GATHER = 1.0
"""Seconds in which lines are gathered, so that a machine that says little makes few connections."""
STALE = 2.0
"""Seconds that a batch may wait before the journal is opened anew."""
IAM_PORT = 443
FIELDS = "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_HOSTNAME,CONTAINER_NAME,CONTAINER_ID,CONTAINER_TAG"
_SEVERITY = (6, 6, 6, 5, 4, 3, 3, 1)
"""Of syslog's 0 to 7 to Critical 6, Error 5, Warn 4, Info 3, Verbose 2, Debug 1."""


@dataclass(frozen=True, slots=True)
class Router:
    """Where to send, and by which secret. ``authorities``: a PEM file; ``iam``: host and port, by default IBM's."""

    host: str
    port: int
    key: str = field(repr=False)
    authorities: str
    iam: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One journal entry: the cursor, its number in the journal, and what is sent of it, as JSON."""

    cursor: str
    series: str
    number: int
    sent: bytes


# ------------------------------------------------------------------------------------------------- what is sent


def entry(line: bytes) -> Entry | None:
    """Return one line of ``journalctl --output=json``; ``None`` where it is none."""
    try:
        fields = json.loads(line)
        cursor = fields["__CURSOR"]
        parts = dict(part.split("=", 1) for part in cursor.split(";"))
        series, number = parts["s"], int(parts["i"], 16)
        moment = int(fields["__REALTIME_TIMESTAMP"]) / 1000
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    level = _text(fields.get("PRIORITY"))
    container = _text(fields.get("CONTAINER_NAME"))
    sent: dict[str, Any] = {
        "applicationName": "container" if container else "casemate",
        "subsystemName": container or _text(fields.get("SYSLOG_IDENTIFIER")) or "unknown",
        "computerName": _text(fields.get("_HOSTNAME")) or "unknown",
        "severity": _SEVERITY[int(level)] if re.fullmatch("[0-7]", level) else 3,
        "timestamp": moment,
        "text": clean(_text(fields.get("MESSAGE"))),
    }
    if container:
        sent |= {"category": _text(fields.get("CONTAINER_TAG")), "threadId": _text(fields.get("CONTAINER_ID"))}
    return Entry(cursor, series, number, json.dumps(sent).encode())


def _text(value: object) -> str:
    """Return a field of the journal: text, bytes as a list of numbers, or several values of which the first counts."""
    if isinstance(value, list) and value and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, list):
        return _text(value[0]) if value and not isinstance(value[0], list) else ""
    return value if isinstance(value, str) else ""


def clean(text: str) -> str:
    """Return a line without control characters, cut at :data:`LARGEST_TEXT`."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text[:LARGEST_TEXT])


def lost(before: Entry | None, after: Entry) -> int:
    """Return how many entries the journal had to drop between two that were read one after the other."""
    return max(0, after.number - before.number - 1) if before and before.series == after.series else 0


def notice(text: str) -> bytes:
    """Return a line of our own as it is sent."""
    ours = {"applicationName": "casemate", "subsystemName": "hpl-logrouter", "severity": 4, "text": text}
    return json.dumps(ours).encode()


# ------------------------------------------------------------------------------------------------- the conversation


@functools.cache
def _context(authorities: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authorities)


class Sender:
    """Sends batches; keeps the access token, and asks for a new one in time."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._token = ""
        self._until = 0.0

    def _access(self) -> str:
        if not self._token or time.monotonic() >= self._until:
            self._token, seconds = token(self._router)
            self._until = time.monotonic() + seconds * 0.8
        return self._token

    def send(self, entries: list[bytes]) -> None:
        """Deliver entries as one array. Raises :class:`Refused`."""
        body = b"[" + b",".join(entries) + b"]"
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._access()}"}
        try:
            tls = _context(self._router.authorities)
            ask(tls, "POST", self._router.host, self._router.port, "/logs/v1/singles", headers, body)
        except Refused as refused:
            if refused.status in (401, 403):
                self._token = ""
            raise


def iam_of(host: str) -> str:
    """Return where a token is asked for: private backends belong to networks that reach the private service only."""
    return "private.iam.cloud.ibm.com" if ".private." in host else "iam.cloud.ibm.com"


def token(router: Router) -> tuple[str, float]:
    """Ask for an access token; return it and its life in seconds. Raises :class:`Refused`."""
    host, port = router.iam or (iam_of(router.host), IAM_PORT)
    try:
        return conversation.token(_context(router.authorities), host, port, router.key)
    except Refused as refused:
        raise Refused(0, f"no access token from {host}: {refused.reason}", refused.pause) from None


def probe(router: Router) -> None:
    """Deliver one line. Raises :class:`Stop` where that fails: the machine must not start without its logs."""
    try:
        Sender(router).send([notice("HPL01010I: logging begins")])
    except Refused as refused:
        raise Stop("HPL01011E", f"the log backend {router.host}:{router.port}: {refused.reason}") from None


# ------------------------------------------------------------------------------------------------- the service


def deliver(send: Callable[[list[bytes]], None], entries: list[bytes], pause: Callable[[float], None]) -> None:
    """Deliver entries, however long it takes. Such as the backend calls bad or too large are halved, one is left out."""
    tries, told = 0, False
    while entries:
        try:
            send(entries)
        except Refused as refused:
            if refused.status in (400, 413, 422):
                if len(entries) > 1:
                    middle = len(entries) // 2
                    deliver(send, entries[:middle], pause)
                    entries = entries[middle:]
                    continue
                say("HPL01012W", f"a line was lost: the log backend does not take it, {refused.reason}")
                return
            tries += 1
            if tries > 1 and not told:  # the first is often a token that has just expired
                say("HPL01013W", f"the log backend does not take lines, they wait: {refused.reason}")
                told = True
            pause(max(refused.pause, min(2.0 ** min(tries - 1, 9), LONGEST_PAUSE)))
        else:
            if told:
                say("HPL01014I", "the log backend takes lines again")
            return


class Lines:
    """The lines that come out of a pipe, none longer than :data:`LARGEST_LINE`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = bytearray()

    def ready(self, seconds: float) -> bool:
        """Whether there is more within some seconds."""
        return b"\n" in self._held or bool(select.select([self._descriptor], [], [], seconds)[0])

    def next(self) -> bytes | None:
        """Return the next line; an empty one where it was too long, ``None`` at the end."""
        long = False
        while (end := self._held.find(b"\n")) < 0:
            if len(self._held) > LARGEST_LINE:
                long = True
                self._held.clear()
            if not (part := os.read(self._descriptor, 1 << 16)):
                return None
            self._held += part
        line = b"" if long else bytes(self._held[:end])
        del self._held[: end + 1]
        return line


def batches(lines: Lines, last: Entry | None = None) -> Iterator[tuple[list[bytes], Entry | None]]:
    """Give entries in batches as they come, each with the last entry in it."""
    batch: list[bytes] = []
    size, begun = 0, 0.0
    while (line := lines.next()) is not None:
        begun = begun or time.monotonic()
        found = entry(line)
        if found is None:
            batch.append(notice("HPL01012W: a line was lost: it is too long, or damaged"))
        else:
            if gap := lost(last, found):
                batch.append(notice(f"HPL01012W: {gap} lines were lost: the journal was full"))
            batch.append(found.sent)
            last = found
        size += len(batch[-1])
        wait = begun + GATHER - time.monotonic()
        if size > LARGEST_BATCH or len(batch) >= ENTRIES or wait <= 0 or not lines.ready(wait):
            yield batch, last
            batch, size, begun = [], 0, 0.0


def follow(cursor: str) -> subprocess.Popen[bytes]:
    """Start reading the journal after a cursor, or from its beginning."""
    start = [f"--after-cursor={cursor}"] if cursor else []
    command = [
        "/usr/bin/journalctl",
        "--output=json",
        f"--output-fields={FIELDS}",
        "--all",
        "--follow",
        "--no-tail",
        *start,
    ]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)


def service() -> None:
    """Send until the unit is stopped."""
    given = state.read_json(DIRECTORY / "logrouter.json")
    sender = Sender(Router(given["host"], given["port"], given["key"], str(DIRECTORY / "server.pem")))
    forward(sender.send, DIRECTORY / "cursor")


def forward(send: Callable[[list[bytes]], None], place: Path) -> None:
    """Send the journal, from the cursor in a file on, for ever.

    ``journalctl`` holds on to the files that it knows, and ends where the journal drops what it is just reading. So it
    starts again behind the last cursor where it ended, and where a batch had to wait.
    """
    last = None
    while True:
        with follow(place.read_text() if place.is_file() else "") as process:
            assert process.stdout is not None
            for batch, reached in batches(Lines(process.stdout.fileno()), last):
                begun = time.monotonic()
                deliver(send, batch, time.sleep)
                last = reached
                if last is not None:
                    keep(place, last.cursor)
                if time.monotonic() - begun > STALE:
                    break
            process.kill()
        time.sleep(0.2)


def keep(place: Path, cursor: str) -> None:
    """Write the cursor down at once or not at all."""
    state.write(place.with_suffix(".new"), cursor)
    place.with_suffix(".new").replace(place)
