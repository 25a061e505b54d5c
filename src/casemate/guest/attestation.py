"""``hpl-attestation``: answers requests of whoever wants to know what this machine is, once its start has succeeded.

Requests come by the virtio port ``casemate.attestation``, as files of ``pvattest``, and so do the answers. The ultravisor
measures the user data that this service gives it: the hash of the machine's own record, and nothing else, whoever asks. That
ties the two: a verifier who trusts the image knows that the record is of the machine that was measured.

What comes by the port is the infrastructure's. What is no request gets an empty file.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from casemate.guest import state, ultravisor
from casemate.guest.report import say
from casemate.secureexec import attestation
from casemate.secureexec.attestation import AttestationError

UNFORESEEN = "HPL20002E"
PORT = "casemate.attestation"
SAID = state.RUN / "attestation"
"""What the bootloader left: the user data that belongs to its record."""
PAUSE, PATIENCE = 1.0, 10.0
"""Seconds between two looks at a port where nobody is, and for a whole request to come."""


def answer(data: bytes, said: bytes) -> bytes:
    """Return the file that answers a file with a request."""
    try:
        asked = attestation.unpack(data)
        given = attestation.pack_answer(ultravisor.attest(asked.request, said))
    except AttestationError as error:
        say("HPL20001W", f"a request for attestation is refused: {error.cause}")
        return attestation.REFUSAL
    except (ultravisor.NoUltravisor, OSError, EOFError) as error:
        say("HPL20001W", f"a request for attestation has no answer: {error}")
        return attestation.REFUSAL
    say("HPL20000I", "a request for attestation has been answered")
    return given


def serve(descriptor: int, said: bytes) -> None:
    """Wait for one request and answer it; what is no request is read to its end."""
    try:
        data = ultravisor.receive(descriptor, PATIENCE)
    except TimeoutError:
        return
    except AttestationError:
        drain(descriptor)
        data = b""
    ultravisor.send(descriptor, answer(data, said), PATIENCE)


def drain(descriptor: int) -> None:
    """Forget what has come, until nothing comes for a moment; a bounded amount at a time."""
    time.sleep(PAUSE)
    try:
        for _ in range(256):
            if not os.read(descriptor, 1 << 16):
                return
    except BlockingIOError:
        pass


def service() -> None:
    """Serve one request after the other, as long as the machine runs; a machine without the port needs no service."""
    device = ultravisor.port(PORT)
    if device is None:
        return
    said = SAID.read_bytes()
    descriptor = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    while True:
        with suppress(EOFError, OSError):  # nobody is there, or went away
            serve(descriptor, said)
        time.sleep(PAUSE)  # after an answer too: nobody fills the logs with requests
