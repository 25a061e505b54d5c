"""Ties the two levels of attestation: this record was signed inside the machine that this measurement attests.

A record says what was started and with which contract; it is signed with the attestation key of the *image*, which every
machine of that image has. An ultravisor's measurement says which image a *machine* runs, and carries bytes that software in
the machine chose. Casemate's software puts the hash of its own record there, and nothing else, whoever asks:

    guest:     user_data(record)                        what it hands to its ultravisor with any request
    auditor:   require_same_machine(record, …)          after both, record and measurement, were verified by themselves

What follows, and why:

- The measurement covers the image's header, so the software that chose the bytes is that of the image. The software of
  an image that the verifier trusts gives no other hash than that of the record it signed. So a record of another machine of
  the same image, with another contract, or of an earlier start, does not match.
- The measurement covers the verifier's nonce: the machine runs now.
- It covers the identifier of this start (CUID). Where the record has the line, both must be the same; a record without the
  line is still bound by its hash.
- The state of the firmware stands in the measurement as data for a service of IBM; the record's line of that name is
  a hash whose input is not published, so the two are not compared.

The order matters: verify the record's signature (:mod:`casemate.attestation.verify`) and the measurement
(:mod:`casemate.secureexec.attestation`) first; only then does a match mean anything.

**Not there yet**: in the guest, :func:`user_data` needs the ultravisor's device: ``/dev/uv``, ioctl ``UVIO_IOCTL_ATT`` of
Linux for IBM Z. The software ultravisor gives its guests none.
"""

from __future__ import annotations

import hashlib

from casemate.attestation import record as records
from casemate.attestation.record import RecordError

_LABEL = b"casemate-record/1\0"


def user_data(record: bytes) -> bytes:
    """Return what a machine gives its ultravisor to measure: a label and SHA-512 over its record's text, 82 bytes.

    ``record``: the text of ``se-checksums.txt`` as it was signed, before it is sealed for the auditor.
    """
    return _LABEL + hashlib.sha512(record).digest()


def require_same_machine(record: bytes, measured: bytes, cuid: bytes) -> None:
    """Raise :class:`RecordError` (``RECORD-MACHINE``) unless this record is that of the machine that was measured.

    ``record``: text whose signature was verified. ``measured``, ``cuid``: user data and CUID of a verified measurement.
    """
    if measured != user_data(record):
        raise RecordError(
            "the measured machine has another record, or none",
            "was the answer asked from the machine that this record came from, since its last start?",
            id="RECORD-MACHINE",
        )
    told = records.parse(record).facts.get(records.CUID)
    if told is not None and told.strip().lower().removeprefix("0x") != cuid.hex():
        raise RecordError("the record names another start of a machine (Ultravisor CUID)", id="RECORD-MACHINE")
