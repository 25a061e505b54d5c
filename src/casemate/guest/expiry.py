"""``hpl-expiry``: the end of a contract while its machine runs; a timer starts it hourly where a certificate bounds the contract.

In the last days it warns once a day. In the last hour it waits for the end, and fails: the catch service stops the machine.
The time comes from the infrastructure, see :mod:`casemate.guest.signature`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from casemate.guest import state
from casemate.guest.report import Stop

UNFORESEEN = "HPL12002E"
HOUR, DAY = 3600.0, 86400.0
NAP = 30.0
"""Seconds between two looks at the clock in the last hour: it may be set meanwhile."""


def wait(
    not_after: float,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    elapsed: Callable[[], float] = time.monotonic,
) -> None:
    """Return where more than an hour is left, even where the clock was set back meanwhile; else stop at the end."""
    began = elapsed()
    while (left := not_after - clock()) <= HOUR + NAP:
        if left < 0 or elapsed() - began > HOUR + 2 * NAP:  # or a clock that is held back
            from datetime import UTC, datetime

            day = datetime.fromtimestamp(not_after, UTC)
            raise Stop("HPL12007E", f"the contract expired on {day:%Y-%m-%d}: sign it with a new certificate")
        sleep(min(NAP, left + 0.1))


def service() -> None:
    """Warn in the first hour of each of the last days; wait for the end in the last hour."""
    not_after = float(state.read_json(state.EXPIRY))
    if (not_after - time.time()) % DAY >= DAY - HOUR - NAP:  # a bit longer than the timer's hour
        from datetime import UTC, datetime

        from casemate.guest.signature import warn

        warn(datetime.fromtimestamp(not_after, UTC), datetime.now(UTC))
    wait(not_after)
