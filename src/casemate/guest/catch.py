"""``hpl-catch-failure``: whatever service failed, the machine says so, gives the logs time to leave, and stops."""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from casemate.guest.report import say

CONSOLE = Path("/dev/console")

UNFORESEEN = "HPL10000E"
GRACE = 5.0
"""Seconds between the message and the end, for the logs to reach their backend."""


def failed() -> str:
    """Return the names of the services that failed, as systemd tells them: of the layer, or where none of it did, of others.

    A service of the layer that could not be started, since one of Debian's failed before it, has not failed itself.
    """
    try:
        done = subprocess.run(
            ["/usr/bin/systemctl", "list-units", "--failed", "--plain", "--no-legend"],
            stdout=subprocess.PIPE,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = done.stdout.decode(errors="replace").splitlines()
    names = [line.split()[0].removesuffix(".service") for line in lines if line.strip()]
    names = [name for name in names if re.fullmatch(r"[A-Za-z0-9@:._-]{1,60}", name)]
    return ", ".join([name for name in names if name.startswith("hpl-")] or names) or "unknown"


def service() -> None:
    """Say which service failed; wait; power off."""
    reason = f"Service failed -> {failed()}: the machine stops in {GRACE:.0f} seconds."
    with suppress(OSError), CONSOLE.open("w") as console:  # not by way of the journal, which may be what failed
        console.write(f"[{time.monotonic():12.6f}] hpl-catch[{os.getpid()}]: HPL10000E: {reason}\n")
    say("HPL10000E", reason)
    time.sleep(GRACE)
    subprocess.run(["/usr/bin/systemctl", "--no-block", "poweroff"], check=True)  # else the unit's FailureAction
