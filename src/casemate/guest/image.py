"""``hpl-image``: the admitted images are pulled, anew at each start; the engine checks digests and signatures while it pulls.

What ``hpl-image-policy`` wrote says what that is. Nothing is pulled later: the logins go when this service is done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from casemate.guest import state
from casemate.guest.report import Stop, say

UNFORESEEN = "HPL06005E"
ENGINE: tuple[str, ...] = ("/usr/bin/podman",)
ATTEMPTS = 3
PATIENCE = 1500.0
"""Seconds for all images: less than the unit has, so that a registry that hangs is named as the reason."""
SILENCE, LEAST = 120.0, 1024
"""Seconds in which a pull moves fewer bytes a second: the registry takes connections and does not answer. A slow one has all
the time. The engine alone moves about 12 bytes a second: its runtime wakes itself through a pipe."""
LOOK = 1.0
_AGAIN = ("timeout", "connection re", "EOF", "TLS handshake")


class SilentError(Exception):
    """The engine waits for an answer that does not come."""


def pull(named: str, pulled: str, patience: float = PATIENCE, silence: float = SILENCE) -> None:
    """Have the engine fetch one image; a registry that fails to answer is asked again, one that refuses or is silent is not.

    Under a digest that a tag stands for, the image gets the tag that workloads call it by.
    """
    end = time.monotonic() + patience
    for attempt in range(1, ATTEMPTS + 1):
        try:
            watched(
                *(*ENGINE, "pull", "--quiet", "--authfile", str(state.AUTH)),
                *("--cert-dir", str(state.CERTIFICATES), pulled),
                patience=max(1.0, end - time.monotonic()),
                silence=silence,
            )
            break
        except SilentError:
            text = f"the registry has not answered for {silence:.0f} seconds"
            raise Stop("HPL06004E", f"{pulled} can't be pulled: {text}") from None
        except OSError as error:
            said = str(error)
            if "Source image rejected" in said:
                raise Stop("HPL16005E", f"{pulled} is refused: {said}") from None
            if attempt == ATTEMPTS or time.monotonic() > end or not any(word in said for word in _AGAIN):
                raise Stop("HPL06004E", f"{pulled} can't be pulled: {said}") from None
    if pulled != named:
        state.call(*ENGINE, "tag", pulled, named)


def watched(*command: str, patience: float, silence: float) -> None:
    """Run the engine, and end it where it takes too long, or where in ``silence`` seconds next to nothing moves.

    Raises :class:`OSError` as :func:`state.call` does, :class:`SilentError`.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**state.ENVIRON, "TMPDIR": "/var/tmp"},  # noqa: S108
        start_new_session=True,
    )
    last, since = 0, time.monotonic()
    end = since + patience
    while True:
        try:
            _, said = process.communicate(timeout=LOOK)
        except subprocess.TimeoutExpired:
            now, count = time.monotonic(), moved(process.pid)
            if abs(count - last) >= LEAST * silence:
                last, since = count, now
            if now < end and now - since < silence:
                continue
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if now < end:
                raise SilentError from None
            raise state.too_slow(command[0], patience) from None
        if process.returncode:
            raise state.failure(command[0], process.returncode, said)
        return


def moved(group: int) -> int:
    """Return how many bytes the processes of a group, and those of theirs that have ended, have read and written: files too."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if os.getpgid(int(process.name)) == group:
                read, written = (process / "io").read_text().split()[1:4:2]
                total += int(read) + int(written)
    return total


def service() -> None:
    """Pull the images, and remove what that needed."""
    images = state.read_json(state.IMAGES)
    end = time.monotonic() + PATIENCE
    for image in images:
        pull(image["named"], image["pulled"], end - time.monotonic())
    state.AUTH.unlink()  # nothing is pulled later, and workloads have no need of logins
    state.forget(state.CERTIFICATES)
    say("HPL16003I", f"{len(images)} image{'s'[: len(images) != 1]} admitted and pulled")
