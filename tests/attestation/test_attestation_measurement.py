"""A record with the measurement of its machine: what the two prove together, and each way in which they don't belong together."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable
from functools import cache

import pytest
from attestation_kit import PUBLISHED, Case, outcomes, sha256
from cryptography.hazmat.primitives.asymmetric import ec

from casemate.attestation.machine import user_data
from casemate.attestation.verify import Measurement, Verdict
from casemate.secureexec import attestation as att
from casemate.secureexec import image
from casemate.secureexec.header import Header
from casemate.secureexec.hostkey import HostKey

CUID = bytes.fromhex("3e0531460c9bf87a442736a5e2c2d10c")
STATE = b"state of a firmware".ljust(320, b"\1")
RECORD = PUBLISHED.replace(sha256(b"firmware").encode(), hashlib.sha256(STATE).hexdigest().encode())
HOST = ec.generate_private_key(ec.SECP521R1())
OTHER_RECORD = RECORD.replace(b"3 days", b"4 days")


@cache
def header(kernel: bytes = b"kernel") -> Header:
    out = io.BytesIO()
    hosts = [HostKey(HOST.public_key())]
    image.pack(out, kernel=kernel.ljust(4096, b"\0"), cmdline=b"quiet", initrd=io.BytesIO(bytes(4096)), hosts=hosts)
    return image.read_clear(io.BytesIO(out.getvalue())).header


def measured(
    text: bytes = RECORD,
    ask: int = att.FIRMWARE,
    says: bytes | None = None,
    started: Header | None = None,
    **configuration: bytes,
) -> Measurement:
    """What a machine's ultravisor says that started an image and wrote this record."""
    request, key = att.create([HostKey(HOST.public_key())], ask)
    facts = {"cuid": CUID, "image_host_key": bytes(32), "firmware": STATE, **configuration}
    answer = att.perform(
        request, HOST, att.Configuration(started or header(), **facts), user_data(text) if says is None else says
    )
    return Measurement(att.pack_answer(answer), key, header())


def judged(measurement: Measurement, text: bytes = RECORD) -> tuple[Verdict, str]:
    verdict = Case(text).whole(measurement=measurement)
    return verdict, next(row.why for row in verdict.rows if row.name == "measurement")


def test_record_and_measurement_prove_the_lines_of_the_machine() -> None:
    verdict, _ = judged(measured())
    found = outcomes(verdict)
    assert verdict.holds and verdict.tee == "hardware TEE"
    assert found["measurement"] == found["Ultravisor CUID"] == found["uv_firmware.state"] == "proved"
    assert Case(RECORD).whole(measurement=measured(), require_hardware=True).holds


ATTACKS: dict[str, tuple[Callable[[], Measurement], str]] = {
    "another machine of this image, with another contract": (lambda: measured(OTHER_RECORD), "another record, or none"),
    "another start": (lambda: measured(cuid=os.urandom(16)), "another start"),
    "another state of the firmware": (lambda: measured(firmware=bytes(320)), "another state of the firmware"),
    "another image": (lambda: measured(started=header(b"evil")), "another image"),
    "nothing of a record": (lambda: measured(says=b""), "another record, or none"),
    "the bare hash of the record": (lambda: measured(says=hashlib.sha512(RECORD).digest()), "another record, or none"),
    "an older answer": (lambda: dataclasses.replace(measured(), key=measured().key), "does not open with this key"),
    "only a request": (
        lambda: dataclasses.replace(
            measured(), answer=att.pack_request(att.create([HostKey(HOST.public_key())])[0], user_data(RECORD))
        ),
        "request without an answer",
    ),
    "a refusal": (lambda: dataclasses.replace(measured(), answer=att.REFUSAL), "request without an answer"),
    "noise": (lambda: dataclasses.replace(measured(), answer=b"noise"), "no file of an attestation"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_of_this_machine_is_refuted(attack: str) -> None:
    make, what = ATTACKS[attack]
    verdict, why = judged(make())
    assert outcomes(verdict)["measurement"] == "refuted"
    assert what in why
    assert not verdict.holds and verdict.tee != "hardware TEE"
    assert outcomes(verdict)["uv_firmware.state"] == "not proved"


def test_a_software_ultravisor_never_verifies_as_hardware() -> None:
    """Whatever the record says of itself, and however its chain looks."""
    text = RECORD.replace(
        hashlib.sha256(STATE).hexdigest().encode(), hashlib.sha256(att.SOFTWARE_STATE).hexdigest().encode()
    )
    verdict, _ = judged(measured(text, firmware=att.SOFTWARE_STATE), text)
    assert outcomes(verdict)["measurement"] == "proved"
    assert verdict.development and "DEVELOPMENT" in verdict.summary()
    assert not Case(text).whole(measurement=measured(text, firmware=att.SOFTWARE_STATE), require_hardware=True).holds


def test_a_measurement_that_does_not_tell_the_firmware_shows_no_hardware() -> None:
    """A software ultravisor would be asked for nothing that gives it away."""
    verdict, _ = judged(measured(ask=0))
    assert outcomes(verdict)["measurement"] == "proved"
    assert verdict.tee == "not known"
    assert not Case(RECORD).whole(measurement=measured(ask=0), require_hardware=True).holds


def test_a_measurement_of_a_record_that_is_not_signed_is_not_looked_at() -> None:
    verdict = Case(RECORD, signature=bytes(512)).whole(measurement=measured())
    assert outcomes(verdict)["measurement"] == "not proved"
    assert not verdict.holds


def test_a_record_without_the_line_is_bound_by_its_hash_and_the_line_is_missed() -> None:
    text = b"\n".join(line for line in RECORD.split(b"\n") if not line.startswith(b"Ultravisor CUID"))
    verdict, _ = judged(measured(text), text)
    assert outcomes(verdict)["measurement"] == "proved"
    assert outcomes(verdict)["Ultravisor CUID"] == "refuted"  # an ultravisor answered, and the record does not say so
    assert not verdict.holds
