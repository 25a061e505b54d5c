"""The same formats, written and read by the real ``openssl``, with the command lines that people use."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from contract_kit import Pair

from casemate.contract.keys import load_private_key
from casemate.contract.signature import read_signing_key, sign, verify
from casemate.contract.token import open_token, seal

pytestmark = pytest.mark.components
TEXT = b"type: workload\n" * 40


def openssl(*arguments: object, data: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=True).stdout


@pytest.fixture
def files(tmp_path: Path, image: Pair) -> Callable[[str], Path]:
    for name in ("private", "public", "certificate"):
        (tmp_path / name).write_bytes(getattr(image, name))
    (tmp_path / "text").write_bytes(TEXT)
    return lambda name: tmp_path / name


def theirs(files: Callable[[str], Path], password: bytes) -> str:
    """Seal as the published scripts do: the password on standard input, and then under the certificate's key."""
    body = openssl("enc", "-aes-256-cbc", "-pbkdf2", "-pass", "stdin", "-in", files("text"), data=password)
    files("password").write_bytes(password)
    wrapped = openssl("pkeyutl", "-encrypt", "-certin", "-inkey", files("certificate"), "-in", files("password"))
    return f"hyper-protect-basic.{base64.b64encode(wrapped).decode()}.{base64.b64encode(body).decode()}"


@pytest.mark.parametrize(
    ("password", "short"),
    [
        (bytes(range(32, 64)), False),
        (bytes(range(200, 232)), False),
        (b"\n" + bytes(range(100, 131)), True),
        (bytes(range(100, 120)) + b"\n" + bytes(range(100, 111)), True),
        (b"k\0" + bytes(range(100, 130)), True),
        (bytes(range(64, 96)) + b"\n", False),
        (b"0123456789abcdef" * 4 + b"\n", False),
        (bytes(range(100, 131)) + b"\r", False),
    ],
    ids=["text", "bytes", "newline first", "newline inside", "NUL second", "newline after", "hex", "return last"],
)
def test_what_openssl_seals_opens_here(files: Callable[[str], Path], image: Pair, password: bytes, short: bool) -> None:
    opened = open_token(theirs(files, password), image.key)
    assert opened.plain == TEXT
    assert opened.short_password is short


def test_random_passwords_of_openssl_open_here(files: Callable[[str], Path], image: Pair) -> None:
    for _ in range(10):
        password = openssl("rand", 32)
        if password[:1] != b"\0":
            assert open_token(theirs(files, password), image.key).plain == TEXT


def test_a_password_that_begins_with_nul_is_none_to_openssl(files: Callable[[str], Path]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        theirs(files, b"\0" + bytes(range(100, 131)))


def test_what_we_seal_opens_with_openssl(files: Callable[[str], Path], image: Pair) -> None:
    _, wrapped, body = seal(TEXT, image.certificate).split(".")
    files("wrapped").write_bytes(base64.b64decode(wrapped))
    password = openssl("pkeyutl", "-decrypt", "-inkey", files("private"), "-in", files("wrapped"))
    files("body").write_text(body)
    opened = openssl(
        "enc", "-d", "-aes-256-cbc", "-pbkdf2", "-a", "-A", "-pass", "stdin", "-in", files("body"), data=password
    )
    assert opened == TEXT


def test_signatures_of_openssl_hold_here_and_ours_there(files: Callable[[str], Path], image: Pair) -> None:
    workload, env = "hyper-protect-basic.a.b", "type: env\n"
    files("both").write_text(workload + env)
    raw = openssl("dgst", "-sha256", "-sign", files("private"), files("both"))
    verify(workload, env, base64.b64encode(raw).decode(), read_signing_key(image.public.decode()).key)
    files("signature").write_bytes(base64.b64decode(sign(workload, env, image.key)))
    said = openssl("dgst", "-sha256", "-verify", files("public"), "-signature", files("signature"), files("both"))
    assert b"Verified OK" in said


@pytest.mark.parametrize("form", ["pkcs8", "traditional"])
def test_keys_that_openssl_protects_open_here(tmp_path: Path, form: str) -> None:
    key = tmp_path / "key"
    flags = ["-traditional"] if form == "traditional" else []
    plain = openssl("genrsa", *flags, 2048)
    key.write_bytes(openssl("rsa", "-aes256", "-passout", "pass:long and wide", *flags, data=plain))
    assert b"ENCRYPTED" in key.read_bytes()
    loaded = load_private_key(key.read_bytes(), b"long and wide")
    assert loaded.private_numbers() == load_private_key(plain).private_numbers()
