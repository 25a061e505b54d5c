"""``hpl-log-loss``: counts the lines that rsyslog could not read before the journal dropped them, and tells of them.

By a timer, where the backend is one of rsyslog's (``hpl-logrouter`` counts by itself). The journal numbers its entries, and
rsyslog's own statistics say how many it has read: what one has grown by more than the other was lost. That is exact when
rsyslog has nothing left to send, so only such a moment is used: the journal's last number, what was read and an empty queue,
the same twice. While the backend is away there is none; what is lost then is told when it is back.

Sources: "Journal File Format" (systemd.io), for the header; rsyslog, "impstats: Generate Periodic Statistics", for the counters.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casemate.guest import state
from casemate.guest.report import say

UNFORESEEN = "HPL01000E"
JOURNAL = Path("/var/log/journal")
DIRECTORY = state.RUN / "logging"
STATISTICS, KEPT = "statistics", "loss.json"
INTERVAL = 10
"""Seconds between two lines of rsyslog's statistics."""
PATIENCE = 45.0
LARGEST = 4 << 20
_COUNTER = re.compile(rb'\{ "name": "(imjournal|main Q)".*"(?:read|size)": ([0-9]{1,18})[,} ]')


@dataclass(frozen=True, slots=True)
class Count:
    """How many entries a journal has had, by the identifier of its numbers, and how many of them rsyslog has read."""

    series: str
    written: int
    read: int


def written(directory: Path) -> tuple[str, int]:
    """Return the identifier of the journal's numbers, and the highest one. Raises :class:`OSError`, :class:`ValueError`."""
    highest = ("", -1)
    for path in directory.glob("*/*.journal"):
        with path.open("rb") as file:
            header = file.read(176)
        if len(header) < 176 or not header.startswith(b"LPKSHHRH"):
            raise ValueError("no journal")
        number = int.from_bytes(header[160:168], "little")
        if number > highest[1]:
            highest = (header[72:88].hex(), number)
    if highest[1] < 0:
        raise ValueError("no journal")
    return highest


def counters(statistics: bytes) -> tuple[int, int]:
    """Return from rsyslog's statistics how much it has read, and how much waits in its queue. Raises :class:`ValueError`."""
    last: dict[bytes, int] = {}
    for line in statistics.splitlines():
        if found := _COUNTER.search(line):
            last[found[1]] = int(found[2])
    if len(last) < 2:
        raise ValueError("no statistics yet")
    return last[b"imjournal"], last[b"main Q"]


def moment(journal: Path, statistics: Path, pause: Callable[[float], None] = time.sleep) -> Count | None:
    """Return the counts of a moment at which nothing was under way; ``None`` where none comes in :data:`PATIENCE`."""
    before: tuple[Count, int] | None = None
    for _ in range(round(PATIENCE / INTERVAL) + 1):
        size = statistics.stat().st_size
        with statistics.open("rb") as file:
            file.seek(max(0, size - LARGEST))
            read, waiting = counters(file.read(LARGEST))
        now = (Count(*written(journal), read), size)
        if waiting == 0 and before is not None and before[0] == now[0] and before[1] < size:
            return now[0]
        before = now if waiting == 0 and (before is None or before[0] != now[0]) else before
        pause(INTERVAL + 1)
    return None


def lost(first: Count, now: Count) -> int:
    """Return how many entries were dropped between two moments of one rsyslog and one journal."""
    return max(0, now.written - first.written - (now.read - first.read))


def look(journal: Path, directory: Path, pause: Callable[[float], None] = time.sleep) -> None:
    """Count once, and tell what was lost since the last time; where that is not possible now, the next time tells it."""
    try:
        now = moment(journal, directory / STATISTICS, pause)
    except (OSError, ValueError):
        return
    if now is None:
        return
    kept = directory / KEPT
    before = Count(*json.loads(kept.read_text())) if kept.exists() else None
    if before and (before.series, True) == (now.series, before.read <= now.read) and (gone := lost(before, now)):
        say("HPL01012W", f"{gone} lines were lost: the journal was full")
    state.write(kept, json.dumps([now.series, now.written, now.read]))
    with (directory / STATISTICS).open("r+b") as file:
        file.truncate(0)


def service() -> None:
    """Count."""
    look(JOURNAL, DIRECTORY)
