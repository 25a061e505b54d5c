"""``hpl-image``: which images may start, told to the container engine in its own words; and they are pulled.

The engine's policy rejects everything; then each image that the compose file names by digest gets one exact scope. So
even a mistake in what follows starts nothing that the contract doesn't name. An image whose content doesn't
have the digest is refused by the engine while it is pulled.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

from casemate.contract.images import Reference, workload_images
from casemate.guest import state
from casemate.guest.report import Stop, run, say

POLICY = state.PUBLIC / "policy.json"
ATTEMPTS = 3


def admitted(workload: dict[str, Any], environment: dict[str, str]) -> list[Reference]:
    """Return the images of the workload; every one has a digest."""
    found: dict[str, Reference] = {}
    for place, image in workload_images(workload, environment).items():
        if not isinstance(image, Reference):
            raise Stop("HPL06009E", str(image))
        if image.digest is None:
            raise Stop("HPL06010E", f"{place}: this version admits images by digest only (name@sha256:…)")
        found[image.canonical] = image
    return list(found.values())


def policy(images: list[Reference]) -> dict[str, Any]:
    """Return a ``containers-policy.json(5)``: reject all but these."""
    scopes = {image.canonical: [{"type": "insecureAcceptAnything"}] for image in images}
    return {"default": [{"type": "reject"}], "transports": {"docker": scopes}}


def pull(image: Reference) -> None:
    """Have the engine fetch one image; a registry that fails to answer is asked again, one that refuses is not."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            state.call(
                *("/usr/bin/podman", "pull", "--quiet", "--authfile", str(state.AUTH)),
                *("--cert-dir", str(state.CERTIFICATES), image.canonical),
                timeout=1800,
                env={"TMPDIR": "/var/tmp"},  # noqa: S108
            )
            return
        except OSError as error:
            again = any(word in str(error) for word in ("timeout", "connection re", "EOF", "TLS handshake"))
            if attempt == ATTEMPTS or not again:
                raise Stop("HPL06004E", f"{image.canonical} can't be pulled: {error}") from None


def service() -> None:
    """Write the policy, pull the images."""
    images = admitted(state.section("workload"), state.read_json(state.ENVIRONMENT))
    state.write(POLICY, json.dumps(policy(images)), 0o644)
    for image in images:
        pull(image)
    state.AUTH.unlink()  # nothing is pulled later, and workloads have no need of logins
    shutil.rmtree(state.CERTIFICATES)
    say("HPL16003I", f"{len(images)} image{'s'[: len(images) != 1]} admitted and pulled")


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL06005E"))
