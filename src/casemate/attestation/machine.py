"""Ties the two levels of attestation: this record was signed inside the machine that this measurement attests.

A record says what was started and with which contract; it is signed with the attestation key of the *image*, which every
machine of that image has. An ultravisor's measurement says which image a *machine* runs, and carries bytes that software in
the machine chose. Casemate's software puts the hash of its own record there, and nothing else, whoever asks:

    guest:     user_data(record)                        what it hands to its ultravisor with any request
    auditor:   require_same_machine(record, measured)   after both, record and measurement, were verified by themselves

What follows, and why:

- The measurement covers the image's header, so the software that chose the bytes is that of the image. The software of
  an image that the verifier trusts gives no other hash than that of the record it signed. So a record of another machine of
  the same image, with another contract, or of an earlier start, does not match.
- The measurement covers the verifier's nonce: the machine runs now.
- It covers the identifier of this start (CUID). Where the record has the line, both must be the same; a record without the
  line is still bound by its hash.
- It covers the state of the firmware, where the request asked for it. The line of that name in a record of our software is
  the SHA-256 of these 320 bytes; that of others has an input that is not published, but their software gives no such user data.

The order matters: verify the record's signature (:mod:`casemate.attestation.verify`) and the measurement
(:mod:`casemate.secureexec.attestation`) first; only then does a match mean anything.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from casemate.attestation import record as records
from casemate.attestation.record import RecordError

if TYPE_CHECKING:
    from casemate.secureexec.attestation import Attested

_LABEL = b"casemate-record/1\0"


def user_data(record: bytes) -> bytes:
    """Return what a machine gives its ultravisor to measure: a label and SHA-512 over its record's text, 82 bytes.

    ``record``: the text of ``se-checksums.txt`` as it was signed, before it is sealed for the auditor.
    """
    return _LABEL + hashlib.sha512(record).digest()


def require_same_machine(record: bytes, measured: Attested) -> None:
    """Raise :class:`RecordError` (``RECORD-MACHINE``) unless this record is that of the machine that was measured.

    ``record``: text whose signature was verified. ``measured``: what a verified measurement says.
    """
    if measured.user_data != user_data(record):
        raise RecordError(
            "the measured machine has another record, or none",
            "was the answer asked from the machine that this record came from, since its last start?",
            id="RECORD-MACHINE",
        )
    parsed = records.parse(record)
    told = parsed.facts.get(records.CUID)
    if told is not None and told.strip().lower().removeprefix("0x") != measured.cuid.hex():
        raise RecordError("the record names another start of a machine (Ultravisor CUID)", id="RECORD-MACHINE")
    state = parsed.hashes.get(records.FIRMWARE)
    if state is not None and measured.firmware and state != hashlib.sha256(measured.firmware).hexdigest():
        raise RecordError(f"the record names another state of the firmware ({records.FIRMWARE})", id="RECORD-MACHINE")
