"""Keys as people have them."""

from __future__ import annotations

import base64
from contextlib import suppress

import pytest
from contract_kit import Pair, Private
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from casemate.contract.errors import KeyFileError
from casemate.contract.keys import (
    LARGEST_FILE,
    certificates_alone,
    kinds,
    load_private_key,
    load_public_key,
    pem_of,
)


@pytest.mark.parametrize("form", [Private.PKCS8, Private.TraditionalOpenSSL])
def test_protected_keys_open_with_their_password_only(small: Pair, form: Private) -> None:
    pem = small.protected(b"correct", form)
    assert load_private_key(pem, b"correct").private_numbers() == small.key.private_numbers()
    with pytest.raises(KeyFileError, match="does not open"):
        load_private_key(pem, b"wrong")
    with pytest.raises(KeyFileError, match="protected by a password"):
        load_private_key(pem)


def test_a_password_for_an_open_key_does_no_harm(small: Pair) -> None:
    assert load_private_key(small.private, b"unused").key_size == 2048


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(data: bytes) -> None:
    with pytest.raises(KeyFileError):
        load_private_key(data)
    with pytest.raises(KeyFileError):
        load_public_key(data)


def test_keys_of_other_kinds_and_sizes_are_refused(small: Pair) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    pem = curve.private_bytes(serialization.Encoding.PEM, Private.PKCS8, serialization.NoEncryption())
    public = curve.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(KeyFileError, match="not an RSA key"):
        load_private_key(pem)
    with pytest.raises(KeyFileError, match="not an RSA key"):
        load_public_key(public)
    tiny = Pair(rsa.generate_private_key(65537, 1024), b"")
    with pytest.raises(KeyFileError, match="1024 bits"):
        load_private_key(tiny.private)
    with pytest.raises(KeyFileError, match="1024 bits"):
        load_public_key(tiny.public)
    with pytest.raises(KeyFileError, match="too large"):
        load_public_key(small.public + b"x" * LARGEST_FILE)


def test_public_keys_come_in_every_form(small: Pair) -> None:
    numbers = small.key.public_key().public_numbers()
    old = small.key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    for pem in (small.public, small.certificate, old, b"a comment\n" + small.certificate + small.certificate):
        assert load_public_key(pem).public_numbers() == numbers
    assert kinds(small.certificate + small.private) == ["CERTIFICATE", "PRIVATE KEY"]


def test_a_private_key_in_a_public_place_is_refused(small: Pair) -> None:
    with pytest.raises(KeyFileError, match="this is a private key"):
        load_public_key(small.private)


def test_values_are_pem_or_base64_of_pem(small: Pair) -> None:
    assert pem_of(small.public.decode()) == small.public
    assert pem_of(base64.encodebytes(small.public)) == small.public
    line = small.public.replace(b"\n", b"\\n")  # as awk '{printf "%s\\n", $0}' writes it
    assert pem_of(line) == pem_of(base64.b64encode(line)) == small.public
    for wrong in ("", "hello", base64.b64encode(b"hello").decode(), "x" * 300_000):
        with pytest.raises(KeyFileError):
            pem_of(wrong)


@given(st.binary(max_size=200), st.sampled_from(["CERTIFICATE", "PUBLIC KEY", "RSA PUBLIC KEY", "PRIVATE KEY"]))
def test_no_bytes_raise_anything_else(body: bytes, kind: str) -> None:
    pem = f"-----BEGIN {kind}-----\n{base64.b64encode(body).decode()}\n-----END {kind}-----\n".encode()
    for data in (pem, body):
        for read in (pem_of, load_private_key, load_public_key):
            try:
                read(data)
            except KeyFileError as error:
                assert error.cause


def test_the_first_block_is_the_key_whatever_a_parser_sees_before_it(small: Pair, other: Pair) -> None:
    """cryptography reads a block whose first line has no end; we don't, and both must mean the same key."""
    for kind, first, second in (
        ("CERTIFICATE", other.certificate, small.certificate),
        ("PUBLIC KEY", other.public, small.public),
    ):
        begin = f"-----BEGIN {kind}-----".encode()
        hidden = first.replace(begin + b"\n", begin)
        assert load_public_key(hidden + second).public_numbers() == small.key.public_key().public_numbers()


# ------------------------------------------------------------------------------------------------- whom to trust


def test_of_certificates_and_words_around_them_the_certificates_are_taken(small: Pair, other: Pair) -> None:
    one, two = small.certificate, other.certificate
    assert certificates_alone(one) == [one]
    text = "# Autorité\nsubject=CN = one\n".encode() + one + b"\n=====\ntwo\n" + two.replace(b"\n", b"\r\n")
    assert certificates_alone(text) == [one, two.replace(b"\n", b"\r\n").removesuffix(b"\r\n") + b"\n"]


@pytest.mark.parametrize("first", [True, False])
def test_what_parsers_would_pass_over_in_silence_is_refused(small: Pair, other: Pair, first: bool) -> None:
    one = small.certificate
    lines = other.certificate.splitlines(keepends=True)
    for beside in (
        one.replace(b" CERTIFICATE", b" X509 CRL"),
        one.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"),
        small.private,
        small.public,
        b"".join(lines[:-1]),  # cut off
        b"".join(lines[1:]),
        b"".join(lines[1:-1]),
        other.certificate.replace(b"-----BEGIN", b"----BEGIN"),
        other.certificate.replace(b"CERTIFICATE-----\n", b"CERTIFICATE-----\nProc-Type: 4\n", 1),
        other.certificate.replace(lines[1], lines[1][:-2] + b"*\n"),
    ):
        with pytest.raises(KeyFileError, match="must be certificates that are whole"):
            certificates_alone(beside + one if first else one + beside)


@given(st.binary(max_size=200), st.sampled_from(["CERTIFICATE", "X509 CRL"]))
def test_any_bytes_as_certificates_are_blocks_or_are_refused(body: bytes, kind: str) -> None:
    for pem in (body, f"-----BEGIN {kind}-----\n".encode() + body + f"\n-----END {kind}-----\n".encode()):
        with suppress(KeyFileError):
            assert [kinds(block) for block in certificates_alone(pem)] == [["CERTIFICATE"]]
