"""``hpl-key-check``: asks every few minutes, while the machine runs, whether the keys of its volumes may still be used.

By a timer, where a volume has a third seed. A key that is revoked, or an API key that the service refuses, stops the machine.
A service that is away is only told of: whoever runs the machine can keep it from the network, and could stop it as well. A
key that has been rotated is told of; its seed is wrapped anew at the next start.

The API keys stand in :data:`casemate.guest.state.KEY_CHECK`, in memory, for root only, as long as the machine runs.
"""

from __future__ import annotations

import time
from typing import Any

from casemate.guest import state
from casemate.guest.report import Stop, say

UNFORESEEN = "HPL18004E"
BUDGET = 240.0
"""Seconds for all keys; those that are not reached by then count as away."""


def check(volumes: dict[str, Any], cacerts: list[Any], said: dict[str, str]) -> dict[str, str]:
    """Ask for each volume's key; return what was said of each, "" where all is well. Stops where a key is revoked."""
    from casemate.contract.keyservices import read_services
    from casemate.guest.keyservice import KeyAwayError, KeyProtect, KeyRefusedError, KeyRevokedError, first_answer
    from casemate.guest.thirdseed import tls

    context, end = tls({"cacerts": cacerts}), time.monotonic() + BUDGET
    now: dict[str, str] = {}
    answers: dict[str, str] = {}
    for name, volume in volumes.items():
        crn = volume["kms"][0]["crn"]
        try:
            if crn not in answers:
                if time.monotonic() > end:
                    raise KeyAwayError("the other key services took all the time")
                services = [KeyProtect(way, context) for way in read_services(volume["kms"])]
                answers[crn] = first_answer(services, lambda service: service.version(), 0.0)
        except KeyRevokedError as error:
            raise Stop("HPL18008E", f"volume {name}: {error}") from None
        except KeyRefusedError as error:
            raise Stop("HPL18008E", f"volume {name}: {error}; who takes the access away revokes the key") from None
        except KeyAwayError as error:
            now[name] = "away"
            if said.get(name) != "away":
                say("HPL18001W", f"volume {name}: its key can't be checked, the machine goes on: {error}")
            continue
        now[name] = answers[crn] if answers[crn] != volume["version"] else ""
        if said.get(name) == "away":
            say("HPL18002I", f"Volume {name}: its key can be checked again.")
        if now[name] and said.get(name) != now[name]:
            say("HPL18001I", f"Volume {name}: the key has been rotated; its seed is wrapped anew at the next start.")
    return now


def service() -> None:
    """Check once."""
    given = state.read_json(state.KEY_CHECK)
    said: dict[str, str] = {}
    if state.KEY_SAID.exists():
        said = state.read_json(state.KEY_SAID)
    else:
        say("HPL18003I", f"The keys of {', '.join(given['volumes'])} are checked, now and every few minutes.")
    state.write_json(state.KEY_SAID, check(given["volumes"], given["cacerts"], said))
