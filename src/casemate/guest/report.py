"""How a service of the Hyper Protect Layer speaks: one line a message, its identifier first, on standard error.

The units hand standard error to the journal and the console. A line starts with ``<N>``, the syslog level
that ``sd-daemon(3)`` defines; the journal takes it off. Errors are said once, by the service that met them.
No detail may hold a secret: callers pass names and places, never values of a contract.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

_LEVEL = {"E": 3, "W": 4, "I": 6}


class Stop(Exception):
    """The machine must not go on: ``id`` of ``messages.tsv``, and a detail without secrets."""

    def __init__(self, id: str, detail: str) -> None:
        super().__init__(f"{id}: {detail}")
        self.id = id
        self.detail = detail


def say(id: str, detail: str) -> None:
    """Write one message; its level is the last letter of the identifier. Control characters become spaces."""
    clean = "".join(c if c.isprintable() else " " for c in detail)[:2000]
    print(f"<{_LEVEL[id[-1]]}>{id}: {clean}", file=sys.stderr, flush=True)


def announce(line: str) -> None:
    """Write a line of the start to the console, as users of the original know it."""
    print(line, flush=True)


def unforeseen(error: BaseException) -> str:
    """Tell of an error that nobody foresaw: its type and place, not its text, which might hold a value of the contract."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" at {frame.tb_frame.f_code.co_name}:{frame.tb_lineno}" if frame else ""
    return f"unexpected {type(error).__name__}{place}"


def run(service: Callable[[], None], fallback: str) -> int:
    """Run a service; return its exit code: 0, or 1 after saying why.

    ``fallback`` is the identifier used for what nobody foresaw.
    """
    try:
        service()
    except Stop as stop:
        say(stop.id, stop.detail)
        return 1
    except Exception as error:
        say(fallback, unforeseen(error))
        return 1
    return 0
