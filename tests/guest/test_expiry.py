"""A contract that ends while its machine runs: warned of once a day, then the machine stops."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest
from contract_kit import Pair, make_pair
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from casemate.contract.signature import sign
from casemate.guest import expiry, signature, state
from casemate.guest.expiry import DAY, HOUR
from casemate.guest.report import Stop


class Clock:
    """Time that passes by sleeping; ``drift`` is what the host adds to its clock meanwhile."""

    def __init__(self, drift: float = 1.0) -> None:
        self.now, self.drift = 0.0, drift

    def __call__(self) -> float:
        return self.now * self.drift

    def elapsed(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, not_after: float) -> None:
        expiry.wait(not_after, self, self.sleep, self.elapsed)


@pytest.mark.parametrize("left", [-1.0, 0.0, 1.0, 100.0, HOUR])
def test_in_the_last_hour_the_end_is_waited_for(left: float) -> None:
    clock = Clock()
    with pytest.raises(Stop) as stop:
        clock.wait(left)
    assert stop.value.id == "HPL12007E" and max(0, left) <= clock.now <= max(0, left) + 1


def test_earlier_the_next_hour_is_soon_enough() -> None:
    clock = Clock()
    clock.wait(HOUR + 2 * expiry.NAP)
    assert clock.now == 0.0


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_a_clock_that_is_held_back_does_not_prolong_the_last_hour(drift: float) -> None:
    clock = Clock(drift)
    with pytest.raises(Stop):
        clock.wait(HOUR)
    assert clock.now <= HOUR + 4 * expiry.NAP


@pytest.mark.parametrize(
    ("left", "told"), [(29 * DAY - 60, True), (29 * DAY - 2 * HOUR, False), (40 * DAY - 60, False)]
)
def test_the_last_days_are_told_once_each(
    guest: Path, capsys: pytest.CaptureFixture[str], left: float, told: bool
) -> None:
    state.write_json(state.EXPIRY, time.time() + left)
    expiry.service()
    assert ("HPL12006E" in capsys.readouterr().err) == told


@pytest.mark.parametrize(("days", "id"), [(90, None), (5, "HPL12006E"), (-1, "HPL12007E")])
def test_a_signed_contract_with_a_certificate_leaves_its_end(
    guest: Path, pair: Pair, capsys: pytest.CaptureFixture[str], days: int, id: str | None
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "deployer")])
    certificate = (
        x509.CertificateBuilder(name, name, pair.key.public_key(), 7)
        .not_valid_before(now - datetime.timedelta(9))
        .not_valid_after(now + datetime.timedelta(days))
        .sign(pair.key, hashes.SHA256())
    )
    text = certificate.public_bytes(serialization.Encoding.PEM).decode()
    state.write_json(state.SECTIONS / "env.json", {"type": "env", "signingKey": text})
    for section in ("workload", "env"):
        (state.CONTRACT / f"sealed-{section}").write_text(section)
    (state.CONTRACT / "envWorkloadSignature").write_text(sign("workload", "env", pair.key))
    if days < 0:
        with pytest.raises(Stop) as stop:
            signature.service()
        assert stop.value.id == id and not state.EXPIRY.exists()
        return
    signature.service()
    said = capsys.readouterr().err
    assert "HPL12005I" in said and (id or "") in said
    assert abs(state.read_json(state.EXPIRY) - (now.timestamp() + days * DAY)) < 2


def test_a_bare_key_leaves_none(guest: Path) -> None:
    pair = make_pair(2048)
    state.write_json(state.SECTIONS / "env.json", {"type": "env", "signingKey": pair.public.decode()})
    for section in ("workload", "env"):
        (state.CONTRACT / f"sealed-{section}").write_text(section)
    (state.CONTRACT / "envWorkloadSignature").write_text(sign("workload", "env", pair.key))
    signature.service()
    assert not state.EXPIRY.exists()
