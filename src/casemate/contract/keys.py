"""RSA keys as people have them: PEM private keys with or without a password, public keys, certificates.

Accepted are RSA keys of 2048 to 8192 bits: the format says 4096, and auditors' own keys differ.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from casemate.contract.errors import KeyFileError

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

SMALLEST_KEY, LARGEST_KEY = 2048, 8192
LARGEST_FILE = 64 << 10
WARN_DAYS = 30
"""Certificates that expire sooner are told of."""
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----", re.DOTALL)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]*-----END CERTIFICATE-----")
_LEFT = re.compile(rb"-(BEGIN|END) |^[A-Za-z0-9+/]{40,}={0,2}\s*$", re.MULTILINE)


def pem_of(text: str | bytes) -> bytes:
    """Return the PEM text of a contract value that is PEM or base64 of PEM.

    Raises :class:`KeyFileError` where it is neither.
    """
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if len(data) > 2 * LARGEST_FILE:
        raise KeyFileError("too large for a key or certificate")
    if b"-----BEGIN " not in data:
        try:
            data = base64.b64decode(b"".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            data = b""
    if not _PEM.search(data):  # one line, its breaks written as \n: so it comes from the usual recipe with awk
        data = data.replace(b"\\r", b"").replace(b"\\n", b"\n")
    if not _PEM.search(data):
        raise KeyFileError("neither PEM nor base64 of PEM", "give the text between -----BEGIN … and -----END …")
    return data


def kinds(pem: bytes) -> list[str]:
    """Return the kinds of the PEM blocks in a text, in order: ``["CERTIFICATE", "PRIVATE KEY"]``."""
    return [match.group(1).decode() for match in _PEM.finditer(pem)]


def first_block(pem: bytes) -> bytes:
    """Return the first PEM block of a text, alone, to be parsed as such: parsers differ in what they take for a block.

    Raises :class:`KeyFileError` where there is none.
    """
    if not (match := _PEM.search(pem)):
        raise KeyFileError("there is no PEM block in it", "give the text from -----BEGIN … to -----END …")
    return match[0] + b"\n"


def certificates_alone(pem: bytes) -> list[bytes]:
    """Return the certificates of a text that says whom to trust, a PEM block each; there is at least one.

    Words between them are no part of it (RFC 7468). Whatever else there is, parsers would pass over in silence, each of them
    another thing: revocation lists, keys, certificates that are cut off. Raises :class:`KeyFileError`.
    """
    found = _CERTIFICATE.findall(pem)
    if not found or _LEFT.search(_CERTIFICATE.sub(b"", pem)):
        raise KeyFileError(
            "must be certificates that are whole, and nothing else", "revocation lists are not looked at"
        )
    return [block + b"\n" for block in found]


def load_private_key(pem: bytes, password: bytes | None = None) -> RSAPrivateKey:
    """Load an RSA private key, PEM, PKCS#1 or PKCS#8, with or without a password.

    Raises :class:`KeyFileError`: not a key, not RSA, of a size not accepted, a wrong or missing password.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if len(pem) > LARGEST_FILE:
        raise KeyFileError("too large for a key")
    encrypted = b"ENCRYPTED" in pem
    if encrypted and password is None:
        raise KeyFileError("the private key is protected by a password", "give the password, or a file that holds it")
    try:
        key = load_pem_private_key(pem, password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if encrypted:
            raise KeyFileError("the private key does not open with this password") from None
        raise KeyFileError("not a private key in PEM form") from None
    if not isinstance(key, RSAPrivateKey):
        raise KeyFileError("not an RSA key", "contracts use RSA keys, of 4096 bits")
    _check_size(key.key_size)
    return key


def load_public_key(pem: bytes) -> RSAPublicKey:
    """Load an RSA public key from PEM: a certificate, a public key (SPKI or PKCS#1). The first block counts.

    Says nothing about a certificate's trust or validity: :mod:`casemate.certificates` does.
    Raises :class:`KeyFileError`.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if len(pem) > LARGEST_FILE:
        raise KeyFileError("too large for a key or certificate")
    match = _PEM.search(pem)
    kind = match.group(1) if match else b""
    try:
        if kind in (b"CERTIFICATE", b"X509 CERTIFICATE"):
            from cryptography.x509 import load_pem_x509_certificate

            key = load_pem_x509_certificate(first_block(pem)).public_key()
        elif kind in (b"PUBLIC KEY", b"RSA PUBLIC KEY"):
            from cryptography.hazmat.primitives.serialization import load_pem_public_key

            key = load_pem_public_key(first_block(pem))  # type: ignore[assignment]
        elif kind.endswith(b"PRIVATE KEY"):
            raise KeyFileError("this is a private key; a public key or certificate is needed", "keep it to yourself")
        else:
            raise KeyFileError("neither a certificate nor a public key in PEM form")
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileError("the certificate or public key is damaged") from None
    if not isinstance(key, RSAPublicKey):
        raise KeyFileError("not an RSA key", "contracts use RSA keys, of 4096 bits")
    _check_size(key.key_size)
    return key


def validity(pem: bytes) -> tuple[datetime, datetime]:
    """Return from when and until when a certificate, the first block of a text, is valid.

    Raises :class:`KeyFileError`.
    """
    from datetime import UTC

    from cryptography.x509 import load_pem_x509_certificate

    try:
        certificate = load_pem_x509_certificate(first_block(pem))
        if hasattr(certificate, "not_valid_after_utc"):
            return certificate.not_valid_before_utc, certificate.not_valid_after_utc
        # cryptography 38 has naive times only; they are UTC
        return certificate.not_valid_before.replace(tzinfo=UTC), certificate.not_valid_after.replace(tzinfo=UTC)
    except ValueError:
        raise KeyFileError("the certificate is damaged") from None


def _check_size(bits: int) -> None:
    if not SMALLEST_KEY <= bits <= LARGEST_KEY:
        raise KeyFileError(f"an RSA key of {bits} bits", f"use {SMALLEST_KEY} to {LARGEST_KEY} bits; 4096 is usual")
