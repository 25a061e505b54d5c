"""Signing keys by URI: what a URI may say, keys in files, and keys in a token that gives none of them out."""

from __future__ import annotations

import contextlib
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from casemate.build import signers
from casemate.build.signers import SignerError, TokenSigner, find

if TYPE_CHECKING:
    from tokens import Token

GOOD = "pkcs11:token=t;object=o?module-path=/lib/m.so&pin-source=file:/run/pin"


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(SignerError) as error:
        act()
    return error.value.id


def opened(uri: str, base: Path) -> None:
    with find(uri, base).open():
        pass


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "",
            "root.key",
            "http://example.com/key",
            "FILE:x",
            "file:",
            "file://host/x",
            "file:a?pin-value=1",
            "file:a?b=c",
        ),
        *("pkcs11:", "pkcs11:token=t", "pkcs11:object=o", "pkcs11:token=t;object=o", GOOD.replace("/lib/m.so", "m.so")),
        *(
            GOOD + "&pin-value=1234",
            GOOD.replace("token=t", "token=t;pin-value=1"),
            GOOD.replace("token=t", "token=t;token=u"),
        ),
        *(
            GOOD.replace("file:/run/pin", "|cat"),
            GOOD.replace("file:/run/pin", "https://x/pin"),
            GOOD.replace("=o", "=%zz"),
        ),
        *(GOOD.replace("=o", "=%ff"), GOOD.replace("object=o", "object=o;type=public"), GOOD + "&unknown=1"),
    ],
)
def test_what_a_uri_may_not_say_is_refused(uri: str, tmp_path: Path) -> None:
    assert refused(lambda: find(uri, tmp_path)) == "SIGNER-URI"


def test_a_pin_file_whose_name_holds_a_null_is_refused(tmp_path: Path) -> None:
    for uri in ("file:a.key?pin-source=file:p%00in", GOOD.replace("/run/pin", "p%00in")):
        assert refused(lambda uri=uri: find(uri, tmp_path)) == "SIGNER-URI"


def test_a_pin_in_a_uri_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SignerError) as error:
        find(GOOD + "&pin-value=8675309", tmp_path)
    assert "8675309" not in error.value.diagnostics() + repr(error.value)


def test_grep11_says_that_it_is_not_there_yet(tmp_path: Path) -> None:
    assert refused(lambda: find("grep11:host=zcrypt", tmp_path)) == "SIGNER-UNSUPPORTED"


def test_a_uri_is_read_as_rfc_7512_has_it(tmp_path: Path) -> None:
    found = find(GOOD.replace("=o", "=a%20b%3b").replace("token=t", "token=t;id=%01%ff;type=private"), tmp_path)
    assert isinstance(found, TokenSigner)
    assert found.path == {"token": b"t", "id": b"\1\xff", "object": b"a b;"} and found.module == "/lib/m.so"
    assert found.pin == Path("/run/pin")


@given(st.text(max_size=60), st.sampled_from(["", "file:", "pkcs11:", "grep11:", "pkcs11:token=a;object=b?"]))
def test_any_uri_is_read_or_refused(text: str, scheme: str) -> None:
    with contextlib.suppress(SignerError):
        find(scheme + text, Path("/nowhere"))


def test_a_key_in_a_file_is_its_owners_and_never_written_over(tmp_path: Path) -> None:
    signer = find("file:a.key", tmp_path)
    signer.generate("p-384")
    path = tmp_path / "a.key"
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600 and [one.name for one in tmp_path.iterdir()] == ["a.key"]
    assert refused(lambda: signer.generate("p-384")) == "SIGNER-EXISTS" and path.read_bytes() == before
    path.chmod(0o640)
    assert refused(lambda: opened("file:a.key", tmp_path)) == "SIGNER-KEY"


def test_a_file_key_opens_with_its_password_only(tmp_path: Path) -> None:
    for name, word in (("pw", "correct horse"), ("other", "battery")):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(word + "\n")
    find("file:a.key?pin-source=file:pw", tmp_path).generate("p-384")
    assert b"ENCRYPTED" in (tmp_path / "a.key").read_bytes()
    with find("file:a.key?pin-source=file:pw", tmp_path).open() as key:
        assert isinstance(key, ec.EllipticCurvePrivateKey)
    for uri in ("file:a.key", "file:a.key?pin-source=file:other"):
        assert refused(lambda uri=uri: opened(uri, tmp_path)) == "SIGNER-KEY"
    (tmp_path / "pw").chmod(0o644)
    assert refused(lambda: opened("file:a.key?pin-source=file:pw", tmp_path)) == "SIGNER-PIN"


@pytest.mark.components
@pytest.mark.parametrize("algorithm", ["rsa-3072", "p-384"])
def test_a_token_signs_and_openssl_agrees(token: Token, algorithm: str, tmp_path: Path) -> None:
    signer = find(token.uri("k"), tmp_path)
    signer.generate(algorithm)
    message = b"what is signed"
    with signer.open() as key:
        public = key.public_key()
        if isinstance(key, rsa.RSAPrivateKey):
            signature = key.sign(message, padding.PKCS1v15(), hashes.SHA512())
        else:
            signature = key.sign(message, ec.ECDSA(hashes.SHA512()))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    (tmp_path / "sig").write_bytes(signature)
    (tmp_path / "msg").write_bytes(message)
    command = ["openssl", "dgst", "-sha512", "-verify", "pub", "-signature", "sig", "msg"]
    assert b"Verified OK" in subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout


@pytest.mark.components
def test_two_keys_of_one_token_sign_at_once(token: Token, tmp_path: Path) -> None:
    """As a reviewer does who has today's key and the next in the same token."""
    one, other = (find(token.uri(name), tmp_path) for name in ("one", "other"))
    one.generate("p-384")
    with one.open() as first:
        other.generate("p-384")
        with other.open() as second:
            assert second.sign(b"x", ec.ECDSA(hashes.SHA384())) and first.public_key() != second.public_key()
        assert first.sign(b"x", ec.ECDSA(hashes.SHA384()))
    token.pin.write_text("000000\n")
    assert refused(lambda: one.open().__enter__()) == "SIGNER-PIN"  # the login ended with the first


@pytest.mark.components
@pytest.mark.parametrize("algorithm", ["rsa-3072", "p-384"])
def test_a_key_of_a_token_can_not_be_exported(token: Token, algorithm: str, tmp_path: Path) -> None:
    import pkcs11

    signer = find(token.uri("k"), tmp_path)
    signer.generate(algorithm)
    with signer.open() as key:
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        assert refused(lambda: key.private_bytes(serialization.Encoding.PEM, *private)) == "SIGNER-KEY"
        assert refused(lambda: key.private_numbers()) == "SIGNER-KEY"
        handle = key._handle  # type: ignore[union-attr]
        secret = pkcs11.Attribute.PRIVATE_EXPONENT if algorithm.startswith("rsa") else pkcs11.Attribute.VALUE
        with pytest.raises(pkcs11.AttributeSensitive):
            handle[secret]
        with pytest.raises(pkcs11.PKCS11Error):
            handle[pkcs11.Attribute.EXTRACTABLE] = True
        wrapper = handle.session.generate_key(pkcs11.KeyType.AES, 256, capabilities=pkcs11.MechanismFlag.WRAP)
        with pytest.raises(pkcs11.KeyUnextractable):
            wrapper.wrap_key(handle, mechanism=pkcs11.Mechanism.AES_KEY_WRAP_PAD)


@pytest.mark.components
@pytest.mark.parametrize("more", [["--extractable"], ["--sensitive"]], ids=["extractable", "brought in and locked"])
def test_a_key_that_was_seen_outside_is_not_used(token: Token, more: list[str], tmp_path: Path) -> None:
    pem = tmp_path / "outside.der"
    key = signers.new_key("p-384")
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem.write_bytes(key.private_bytes(serialization.Encoding.DER, *form))
    command = [*("pkcs11-tool", "--module", "/usr/lib/softhsm/libsofthsm2.so", "--token-label", token.label, "--login")]
    command += [
        *("--pin", token.pin.read_text().strip(), "--write-object", str(pem), "--type", "privkey", "--label", "k")
    ]
    subprocess.run([*command, "--id", "07", *more], check=True, capture_output=True)
    with pytest.raises(SignerError, match="outside of the token"):
        opened(token.uri("k"), tmp_path)


@pytest.mark.components
def test_a_wrong_pin_is_told_without_being_shown(token: Token, tmp_path: Path) -> None:
    find(token.uri("k"), tmp_path).generate("p-384")
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("40426213")
    uri = token.uri("k").replace(str(token.pin), str(wrong))
    with pytest.raises(SignerError) as error:
        opened(uri, tmp_path)
    said = error.value.diagnostics() + "".join(traceback.format_exception(error.value))
    assert error.value.id == "SIGNER-PIN" and "40426213" not in said
    opened(token.uri("k"), tmp_path)  # and one mistake locks nothing


@pytest.mark.components
def test_what_a_token_has_not_is_told(token: Token, tmp_path: Path) -> None:
    assert refused(lambda: opened(token.uri("none"), tmp_path)) == "SIGNER-KEY"
    assert (
        refused(lambda: opened(token.uri("k").replace(f"token={token.label}", "token=nowhere"), tmp_path))
        == "SIGNER-TOKEN"
    )
    no_library = token.uri("k").replace("/usr/lib/softhsm/libsofthsm2.so", "/etc/passwd")
    assert refused(lambda: opened(no_library, tmp_path)) == "SIGNER-MODULE"
    find(token.uri("k"), tmp_path).generate("p-384")
    assert refused(lambda: find(token.uri("k"), tmp_path).generate("p-384")) == "SIGNER-EXISTS"
