"""``hpl-image``: the admitted images are pulled, anew at each start; the engine checks digests and signatures while it pulls.

What ``hpl-image-policy`` wrote says what that is. Nothing is pulled later: the logins go when this service is done.
"""

from __future__ import annotations

import time

from casemate.guest import state
from casemate.guest.report import Stop, say

UNFORESEEN = "HPL06005E"
ENGINE: tuple[str, ...] = ("/usr/bin/podman",)
ATTEMPTS = 3
PATIENCE = 1500.0
"""Seconds for all images: less than the unit has, so that a registry that hangs is named as the reason."""
_AGAIN = ("timeout", "connection re", "EOF", "TLS handshake")


def pull(named: str, pulled: str, patience: float = PATIENCE) -> None:
    """Have the engine fetch one image; a registry that fails to answer is asked again, one that refuses is not.

    Under a digest that a tag stands for, the image gets the tag that workloads call it by.
    """
    end = time.monotonic() + patience
    for attempt in range(1, ATTEMPTS + 1):
        try:
            state.call(
                *(*ENGINE, "pull", "--quiet", "--authfile", str(state.AUTH)),
                *("--cert-dir", str(state.CERTIFICATES), pulled),
                timeout=max(1.0, end - time.monotonic()),
                env={"TMPDIR": "/var/tmp"},  # noqa: S108
            )
            break
        except OSError as error:
            said = str(error)
            if "Source image rejected" in said:
                raise Stop("HPL16005E", f"{pulled} is refused: {said}") from None
            if attempt == ATTEMPTS or time.monotonic() > end or not any(word in said for word in _AGAIN):
                raise Stop("HPL06004E", f"{pulled} can't be pulled: {said}") from None
    if pulled != named:
        state.call(*ENGINE, "tag", pulled, named)


def service() -> None:
    """Pull the images, and remove what that needed."""
    images = state.read_json(state.IMAGES)
    end = time.monotonic() + PATIENCE
    for image in images:
        pull(image["named"], image["pulled"], end - time.monotonic())
    state.AUTH.unlink()  # nothing is pulled later, and workloads have no need of logins
    state.forget(state.CERTIFICATES)
    say("HPL16003I", f"{len(images)} image{'s'[: len(images) != 1]} admitted and pulled")
