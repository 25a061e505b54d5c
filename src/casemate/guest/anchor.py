"""``hpl-anchor``: keeps the anchors of volumes up to date, and stops the machine where a disk is behind its anchor.

``hpl-storage`` asks each anchor before it writes to any disk, and again when the volumes are mounted, before a container starts
(:func:`before`, :func:`after`). From then on ``hpl-anchor`` runs as long as the machine: every five minutes, and at its end, when
the containers have ended, it has each volume written out and raises its anchor to the generation that the disk then has.

Why that locks nobody out, and what it finds, says :mod:`casemate.contract.anchors`; ``docs/anchors.md`` what it can't find. An
anchor that does not answer stops a start. Later it is only told of, since whoever runs the machine could stop that as well; what
was written in the meantime is then protected from the next time on.

    POST https://HOST:PORT/NAME    {"nonce": hex, "least": number}    ->    {"statement": base64, "signature": base64}

The anchor raises its number to ``least`` where it is smaller (0 only asks), and signs what it has then.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import signal
import ssl
import sys
import time
from collections.abc import Callable, Mapping

from casemate.contract.anchors import NONCE_SIZE, Anchor, problem, read_anchor, read_statement
from casemate.contract.errors import AnchorError
from casemate.guest import state
from casemate.guest.conversation import Refused, ask
from casemate.guest.diskcheck import direct
from casemate.guest.filesystems import SUPERBLOCK_PLACES, generation
from casemate.guest.report import Stop, say
from casemate.guest.volumes import Plan, plans

UNFORESEEN = "HPL07023E"
EVERY, PATIENCE, PAUSE = 300.0, 120.0, 5.0
"""Seconds between two times that an anchor is raised; that a start waits for one; between two attempts."""
LARGEST_ANSWER = 4096
BLOCK = 4096
_START_SYNC, _WAIT_SYNC = 0x80089418, 0x40089416
"""``BTRFS_IOC_START_SYNC`` and ``BTRFS_IOC_WAIT_SYNC`` (Linux ``include/uapi/linux/btrfs.h``): commit and say which; wait."""


class AwayError(Exception):
    """The anchor gave no answer that counts. Another attempt may."""


def load() -> dict[str, Anchor]:
    """Return the anchors of this contract by volume."""
    if not state.ANCHORS.exists():
        return {}
    try:
        return {name: read_anchor(entry) for name, entry in state.read_json(state.ANCHORS).items()}
    except AnchorError as error:
        raise Stop("HPL07001E", f"env.volumes: {error.cause}") from None


def context(anchor: Anchor) -> ssl.SSLContext:
    """Return how an anchor is verified, and what it verifies. The library takes keys by file only: in memory, root's."""
    made = ssl.create_default_context(cadata=anchor.ca.decode("ascii"))
    file = state.RUN / f"anchor-{secrets.token_hex(8)}.pem"
    state.write(file, anchor.cert + b"\n" + anchor.key)
    try:
        made.load_cert_chain(file)
    finally:
        file.unlink()
    return made


def raised(anchor: Anchor, least: int) -> int | None:
    """Raise the anchor's number to ``least`` where it is smaller; return the one that it has then. Raises :class:`AwayError`."""
    nonce = secrets.token_hex(NONCE_SIZE)
    place = f"the anchor at {anchor.host}:{anchor.port}"
    body = json.dumps({"nonce": nonce, "least": least}).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    try:
        tls = context(anchor)
        answer = json.loads(
            ask(tls, "POST", anchor.host, anchor.port, f"/{anchor.name}", headers, body, LARGEST_ANSWER)
        )
        text, signature = (base64.b64decode(answer[key], validate=True) for key in ("statement", "signature"))
        value = read_statement(text, signature, anchor, nonce)
    except Refused as refused:
        raise AwayError(f"{place}: {refused.reason}") from None
    except AnchorError as error:
        raise AwayError(f"{place}: {error.cause}") from None
    except ssl.SSLError:
        raise AwayError(f"{place}: a certificate or key in the contract is damaged") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AwayError(f"{place}: its answer is none") from None
    if least and (value is None or value < least):
        raise AwayError(f"{place}: it does not keep what it is given")
    return value


def on_disk(plan: Plan) -> int:
    """Return the generation that stands on the disk of an open volume."""
    found = generation(direct(plan.device, SUPERBLOCK_PLACES["btrfs"], BLOCK))
    if found is None:
        raise Stop("HPL02007E", f"volume {plan.name} holds no btrfs, and the contract gives it an anchor")
    return found


def committed(plan: Plan) -> int:
    """Have a mounted volume written out; return the generation that is on its disk then, for good.

    It is the kernel's word, not what the disk answers, which may be another thing each time.
    """
    target = f"/var/volumes/{plan.name}"
    state.call("sync", "--file-system", target)
    number = bytearray(8)
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _START_SYNC, number)
        fcntl.ioctl(descriptor, _WAIT_SYNC, number)
    finally:
        os.close(descriptor)
    return int.from_bytes(number, sys.byteorder)


def patiently(name: str, anchor: Anchor, least: int, end: float) -> int | None:
    """Ask until an answer comes, or ``end`` (monotonic clock); then stop."""
    while True:
        try:
            return raised(anchor, least)
        except AwayError as error:
            if time.monotonic() + PAUSE > end:
                raise Stop("HPL07023E", f"volume {name}: {error}") from None
            time.sleep(PAUSE)


def before(plan: Plan, anchor: Anchor, read: Callable[[Plan], int] = on_disk) -> None:
    """Stop where a volume is older than its anchor. Nothing has been written to its disk yet."""
    value = patiently(plan.name, anchor, 0, time.monotonic() + PATIENCE)
    if found := problem(plan.make, 0 if plan.make else read(plan), value):
        raise Stop("HPL07022E", f"volume {plan.name}: {found}")
    if value is None and not plan.make:
        say(
            "HPL07024W",
            f"volume {plan.name}: the anchor does not know it yet; whether it is older than it was can't be told",
        )


def after(plan: Plan, anchor: Anchor, read: Callable[[Plan], int] = committed) -> None:
    """Raise the anchor of a mounted volume; stop where it is not the one that was looked at before, or older than that."""
    here = read(plan)
    value = patiently(plan.name, anchor, here, time.monotonic() + PATIENCE)
    if found := problem(False, here, value):
        raise Stop("HPL07022E", f"volume {plan.name}: {found}")
    say("HPL07025I", f"Volume {plan.name}: its anchor is at generation {value}.")


def raise_all(given: Mapping[str, Anchor], volumes: list[Plan], away: set[str]) -> set[str]:
    """Raise every anchor once; return the volumes whose anchor was away. Stops where an anchor is ahead of a disk."""
    now = set()
    for plan in [plan for plan in volumes if plan.name in given]:
        here = committed(plan)
        try:
            value = raised(given[plan.name], here)
        except AwayError as error:
            now.add(plan.name)
            if plan.name not in away:
                say("HPL07026W", f"volume {plan.name}: {error}; the machine goes on")
            continue
        if found := problem(False, here, value):
            raise Stop("HPL07022E", f"volume {plan.name}: another machine uses a copy of it, or {found}")
    return now


def service() -> None:
    """Raise the anchors from time to time, and once more when the machine is to end."""
    ending = False

    def end(_signal: int, _frame: object) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)
    given, volumes, away = load(), plans(), set[str]()
    while True:
        for _ in range(int(EVERY)):
            if not ending:
                time.sleep(1)
        last = ending
        away = raise_all(given, volumes, away)
        if last:
            return
