r"""Tokens: sealed texts ``hyper-protect-basic.P.B`` and ``contract-basic.P.B`` (``docs/formats/contract.md``).

    token = seal(b"type: env\n...", certificate_pem)
    opened = open_token(token, load_private_key(key_pem))
    opened.plain, opened.short_password

The rules this module keeps:

- ``P`` is base64 of the password under RSA PKCS#1 v1.5, as long as the modulus; ``B`` is base64 of what
  ``openssl enc -aes-256-cbc -pbkdf2`` writes. Base64 is strict: no white space, no missing padding.
- What ``seal`` writes has a password of printable characters with 256 bits of entropy. Tools that hand raw random
  bytes to ``openssl -pass stdin`` lose all from the first newline or NUL on; ``open_token`` cuts the password at
  the same place, opens those tokens too, and says that the password is short.
- A token holds UTF-8 text. Under a wrong key one garbage in 256 has a padding that looks right: it is refused as well.
- PKCS#1 v1.5 and CBC are padding oracles where a failure can be told apart. Everything that can be wrong with a
  token is one exception with one sentence; a failed unwrap goes on with a random password, so it takes as long.
  Who can cause many openings and see later failures must let them be the same failure: see ``accept``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casemate.contract.errors import KeyFileError, TokenError
from casemate.contract.keys import load_private_key, load_public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.modes import CBC

__all__ = [
    "LARGEST_PLAIN", "LARGEST_TOKEN", "PREFIXES", "KeyFileError", "Opened", "TokenError",
    "has_form", "is_token", "load_private_key", "load_public_key", "open_in", "open_token", "seal",
]  # fmt: skip

PREFIXES = ("hyper-protect-basic", "contract-basic")
LARGEST_TOKEN = 2 << 20
LARGEST_PLAIN = (LARGEST_TOKEN - 2048) * 3 // 4 - 48
ROUNDS = 10_000
SAFE_PASSWORD = 32
_MAGIC = b"Salted__"
_BLOCK = 16
_IN_A_LINE = re.compile(rf"(?:{'|'.join(PREFIXES)})\.[A-Za-z0-9+/]+={{0,2}}\.[A-Za-z0-9+/]+={{0,2}}")


@dataclass(frozen=True, slots=True)
class Opened:
    """What a token held. ``short_password``: it was sealed under fewer than 32 bytes, perhaps none."""

    plain: bytes = field(repr=False)
    short_password: bool


def is_token(text: str) -> bool:
    """Whether a text claims to be a token. It may still be a damaged one: that is an error, not plain text."""
    return text.startswith(tuple(f"{prefix}." for prefix in PREFIXES))


def has_form(text: str, key_size: int | None = None) -> bool:
    """Whether a token is whole, as far as can be seen without the key; ``key_size`` in bits, where it is known."""
    try:
        wrapped = _decode(text.split(".")[1])
        _split(text, len(wrapped) if key_size is None else (key_size + 7) // 8)
    except (ValueError, IndexError):
        return False
    return True


def seal(plain: bytes, public_key: bytes | RSAPublicKey, prefix: str = PREFIXES[0]) -> str:
    """Seal up to 1.5 MiB of UTF-8 text for the holder of a key: ``public_key`` is PEM (certificate or public key) or loaded.

    Returns one line of ASCII without a newline. Raises :class:`KeyFileError`, or :class:`TokenError` where the text
    is too large, or none.
    """
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    if prefix not in PREFIXES:
        raise ValueError(f"no such prefix: {prefix}")
    if len(plain) > LARGEST_PLAIN:
        raise TokenError(f"{len(plain)} bytes are too many for a token", f"at most {LARGEST_PLAIN} bytes can be sealed")
    try:
        plain.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenError(f"not UTF-8 at byte {error.start}", "tokens hold text: a section, a PEM key") from None
    key = load_public_key(public_key) if isinstance(public_key, bytes) else public_key
    password = secrets.token_urlsafe(32).encode()
    salt = secrets.token_bytes(8)
    encryptor = _cipher(password, salt).encryptor()
    fill = _BLOCK - len(plain) % _BLOCK
    body = encryptor.update(plain + bytes([fill]) * fill) + encryptor.finalize()
    wrapped = key.encrypt(password, PKCS1v15())
    return f"{prefix}.{_encode(wrapped)}.{_encode(_MAGIC + salt + body)}"


def open_token(token: str, key: RSAPrivateKey, accept: Callable[[bytes], object] | None = None) -> Opened:
    """Open a token of at most 2 MiB; one newline after it is allowed.

    ``accept`` is called with the plain text and may raise: then the token is refused with the very same error, so
    that nobody can tell a wrong padding from a text that makes no sense. Raises :class:`TokenError`.
    """
    plain = None
    try:
        wrapped, salt, body = _split(token, (key.key_size + 7) // 8)
        password = _unwrap(wrapped, key)
        cut = min(position if position >= 0 else len(password) for position in map(password.find, (b"\n", b"\0")))
        decryptor = _cipher(password[:cut], salt).decryptor()
        padded = decryptor.update(body) + decryptor.finalize()
        fill = padded[-1]
        if 1 <= fill <= _BLOCK and padded.endswith(bytes([fill]) * fill):
            plain = padded[:-fill]
            plain.decode("utf-8")
            if accept is not None:
                accept(plain)
            return Opened(plain, short_password=cut < SAFE_PASSWORD)
    except Exception:  # noqa: S110  (whatever it was: one error below, without a context that tells)
        pass
    raise TokenError(
        "the token does not open: it is damaged, or sealed for another key",
        "check that it is whole, and that it was sealed with the certificate that belongs to this key",
    )


def open_in(line: str, key: RSAPrivateKey) -> tuple[str, int]:
    """Open the tokens in a line of a log; return the line, and how many stay closed: damaged, or for another key.

    Whoever sealed a text must not be able to forge another line: its control characters are replaced.
    """
    closed = 0

    def opened(match: re.Match[str]) -> str:
        nonlocal closed
        try:
            plain = open_token(match[0], key).plain.decode()
        except TokenError:
            closed += 1
            return match[0]
        return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in plain)

    return _IN_A_LINE.sub(opened, line), closed


def _split(token: str, modulus: int) -> tuple[bytes, bytes, bytes]:
    """Return the wrapped password, the salt and the ciphertext; raise ``ValueError`` where the form is wrong."""
    if len(token) > LARGEST_TOKEN:
        raise ValueError("too large")
    prefix, first, second = token.removesuffix("\n").split(".")
    wrapped, sealed = _decode(first), _decode(second)
    head, salt, body = sealed[:8], sealed[8:16], sealed[16:]
    if prefix not in PREFIXES or len(wrapped) != modulus or head != _MAGIC or not body or len(body) % _BLOCK:
        raise ValueError("not a token")
    return wrapped, salt, body


def _unwrap(wrapped: bytes, key: RSAPrivateKey) -> bytes:
    """Return the password; a random one where the unwrap fails (newer OpenSSL does the same by itself)."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    try:
        return key.decrypt(wrapped, PKCS1v15())
    except ValueError:
        return secrets.token_urlsafe(32).encode()


def _cipher(password: bytes, salt: bytes) -> Cipher[CBC]:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CBC

    secret = hashlib.pbkdf2_hmac("sha256", password, salt, ROUNDS, 48)  # releases the interpreter lock
    return Cipher(AES(secret[:32]), CBC(secret[32:]))


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(text: str) -> bytes:
    """Decode base64 as written by an encoder, and by nothing else: canonical, padded, no other characters."""
    data = base64.b64decode(text.encode("ascii"), validate=True)
    if _encode(data) != text:
        raise binascii.Error("not canonical")
    return data
