"""The deployer's signature, and the passphrase that seeds make."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime

import pytest
from contract_kit import Pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.contract.errors import KeyFileError, SeedError, SignatureError
from casemate.contract.passphrase import passphrase
from casemate.contract.signature import read_signing_key, sign, verify


def test_a_signature_holds_for_these_sections_and_this_key_only(small: Pair, other: Pair) -> None:
    public = small.key.public_key()
    signature = sign("workload\n", "env\n", small.key)
    verify("workload\n", "env\n", signature, public)
    verify("workload\n", "env\n", base64.encodebytes(base64.b64decode(signature)).decode(), public)
    for workload, env in (("workload", "env\n"), ("other\n", "env\n"), ("env\n", "workload\n"), ("", "")):
        with pytest.raises(SignatureError):
            verify(workload, env, signature, public)
    with pytest.raises(SignatureError):
        verify("workload\n", "env\n", signature, other.key.public_key())


@given(st.text(max_size=100))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_passes_for_a_signature(small: Pair, text: str) -> None:
    with pytest.raises(SignatureError):
        verify("workload", "env", text, small.key.public_key())


def test_a_signature_of_any_size_is_refused(small: Pair) -> None:
    with pytest.raises(SignatureError):
        verify("a", "b", "A" * 10_000_000, small.key.public_key())


def test_signing_keys_come_as_key_or_certificate_plain_or_in_base64(small: Pair) -> None:
    for pem in (small.public, small.certificate):
        for text in (pem.decode(), base64.b64encode(pem).decode()):
            key = read_signing_key(text)
            assert key.key.public_numbers() == small.key.public_key().public_numbers()
            assert key.is_certificate == (pem is small.certificate)
    key = read_signing_key(small.certificate.decode())
    assert key.not_before is not None and key.not_after is not None
    assert key.not_before < datetime.now(UTC) < key.not_after


def test_a_private_signing_key_is_refused(small: Pair) -> None:
    with pytest.raises(KeyFileError, match="private"):
        read_signing_key(small.private.decode())


def test_the_passphrase_is_the_hash_of_the_seeds_in_order() -> None:
    one, two, three = "a" * 15, 'b"{}|<>,.?:!@#$%^&*()_-', "c" * 40
    assert passphrase(one, two) == hashlib.sha256((one + two).encode()).hexdigest()
    assert passphrase(one, two, three) == hashlib.sha256((one + two + three).encode()).hexdigest()
    assert passphrase(one, two) != passphrase(two, one)


@pytest.mark.parametrize("seed", ["", "a" * 14, "a" * 15 + "\n", "a" * 15 + " ", "ä" * 15, "a" * 15 + "'"])
def test_a_seed_that_is_none_is_refused(seed: str) -> None:
    for seeds in ((seed, "b" * 15), ("b" * 15, seed), ("b" * 15, "b" * 15, seed)):
        with pytest.raises(SeedError) as error:
            passphrase(*seeds)
        assert "aaaa" not in error.value.diagnostics()
