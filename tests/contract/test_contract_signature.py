"""The deployer's signature, and the passphrase that seeds make."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from contract_kit import Pair
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.contract.check import check_env
from casemate.contract.errors import KeyFileError, SeedError, SignatureError
from casemate.contract.passphrase import passphrase
from casemate.contract.signature import SigningKey, read_signing_key, sign, trusted, verify

sys.path.insert(0, str(Path(__file__).parent.parent / "certificates"))

import pki


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


# ------------------------------------------------------------------------------------------------- certificates


NOW = pki.NOW


def chain_of(*certificates: bytes) -> SigningKey:
    return trusted(read_signing_key(b"".join(certificates).decode()), NOW)


def usage(**flags: bool) -> tuple[x509.KeyUsage, bool]:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    all_names = (*names, "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**dict.fromkeys(all_names, False) | flags), True


def test_a_certificate_alone_is_taken_as_common_tools_give_it() -> None:
    """``openssl x509 -req -CA … -CAkey …`` without extensions: the issuer stays with whoever has it."""
    key = chain_of(pki.certificate("leaf", "root", ca=None, usage=False))
    assert key.authority == "" and key.not_after == NOW + 365 * pki.DAY
    assert chain_of(pki.certificate("self", "self", ca=None, usage=False)).authority == ""


def test_a_chain_holds_up_to_its_root_and_ends_with_the_first_that_ends() -> None:
    leaf = pki.certificate("leaf", "mid", end=NOW + 300 * pki.DAY)
    mid = pki.certificate("mid", "root", ca=True, end=NOW + 20 * pki.DAY)
    root = pki.certificate("root", "root", ca=True, start=NOW - 5 * pki.DAY)
    for order in ((leaf, mid, root), (leaf, root, mid)):
        key = chain_of(*order)
        assert key.authority == "root"
        assert (key.not_before, key.not_after) == (NOW - pki.DAY, NOW + 20 * pki.DAY)


def test_a_chain_that_has_ended_keeps_its_bounds_for_the_caller_to_ask() -> None:
    leaf, root = pki.certificate("leaf", "root"), pki.certificate("root", "root", ca=True, end=NOW - pki.DAY / 2)
    assert chain_of(leaf, root).not_after == NOW - pki.DAY / 2


@pytest.mark.parametrize(
    ("certificates", "why"),
    [
        (lambda: [pki.certificate("leaf", "root"), pki.certificate("other", "other", ca=True)], "was not given"),
        (
            lambda: [
                pki.certificate("leaf", "root", signer=pki.key("forger")),
                pki.certificate("root", "root", ca=True),
            ],
            "was not signed with the key",
        ),
        (lambda: [pki.certificate("leaf", "root"), pki.certificate("root", "root", ca=False)], "not of its chain|auth"),
        (lambda: [pki.certificate("leaf", "mid"), pki.certificate("mid", "root", ca=True)], "was not given"),
        (
            lambda: [
                pki.certificate("leaf", "root"),
                pki.certificate("root", "root", ca=True),
                pki.certificate("more", "more", ca=True),
            ],
            "not of its chain",
        ),
        (lambda: [pki.certificate("self", "self", signer=pki.key("forger"), ca=None, usage=False)], "its own key"),
        (
            lambda: [pki.certificate("leaf", "root", usage=False, extensions=[usage(key_encipherment=True)])],
            "no digital signature",
        ),
        (lambda: [sha1("leaf", "root")], "not accepted"),
        (lambda: [sha1("self", "self")], "not accepted"),
        (lambda: [pki.certificate("leaf", "weak", signer=pki.key("weak", 1024)), weak_root()], "1024 bits"),
        (lambda: [pki.certificate("leaf", "root"), pki.key_pem(pki.key("leaf"))], "something else"),
        (lambda: [pki.certificate("leaf", "root", public=pki.key("small", 1024).public_key())], "1024 bits"),
        (
            lambda: [
                pki.certificate(
                    "leaf",
                    "root",
                    extensions=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)],
                )
            ],
            "critical extensions",
        ),
    ],
)
def test_a_certificate_that_is_no_signers_is_refused(certificates: Callable[[], list[bytes]], why: str) -> None:
    with pytest.raises(KeyFileError, match=why):
        chain_of(*certificates())


def sha1(subject: str, issuer: str) -> bytes:
    """``cryptography`` makes no such signature any more; openssl does."""
    with tempfile.TemporaryDirectory() as name:
        made = pki.certificate(subject, subject, ca=None, usage=False)
        for file, content in (
            ("crt", made),
            ("ca", pki.certificate(issuer, issuer, ca=True)),
            ("key", pki.key_pem(pki.key(issuer))),
        ):
            Path(name, file).write_bytes(content)
        by = ("-signkey", "key") if subject == issuer else ("-CA", "ca", "-CAkey", "key", "-CAcreateserial")
        done = subprocess.run(
            ["openssl", "x509", "-in", "crt", *by, "-sha1"], cwd=name, capture_output=True, check=True
        )
        return done.stdout


def weak_root() -> bytes:
    weak = pki.key("weak", 1024)
    return pki.certificate("weak", "weak", ca=True, public=weak.public_key(), signer=weak)


def test_a_check_on_the_host_tells_of_the_chain_too() -> None:
    leaf, root = pki.certificate("leaf", "root"), pki.certificate("other", "other", ca=True)
    env = {"type": "env", "logging": {}, "signingKey": (leaf + root).decode()}
    found = [problem for problem in check_env(env, now=NOW) if problem.place == "env.signingKey"]
    assert [problem.id for problem in found] == ["HPL12003E"]
    env["signingKey"] = (
        pki.certificate("leaf", "root") + pki.certificate("root", "root", ca=True, end=NOW + 9 * pki.DAY)
    ).decode()
    found = [problem for problem in check_env(env, now=NOW) if problem.place == "env.signingKey"]
    assert [(problem.id, problem.severity) for problem in found] == [("HPL12006E", "warning")]
