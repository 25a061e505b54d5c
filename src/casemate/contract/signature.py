"""``envWorkloadSignature``: the deployer's signature over both sections (``docs/formats/contract.md``).

base64 of RSASSA-PKCS1-v1_5 with SHA-256 over the value of ``workload`` immediately followed by that of ``env``, as
the exact strings that stand in the contract, UTF-8. The key to verify with is ``signingKey`` in ``env``: a PEM public
key or certificate, or base64 of either.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.contract.errors import SignatureError
from casemate.contract.keys import kinds, load_public_key, pem_of, validity

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A ``signingKey``. A certificate (``pem``, first block) bounds the contract's life; a bare key does not."""

    key: RSAPublicKey
    pem: bytes
    not_before: datetime | None = None
    not_after: datetime | None = None

    @property
    def is_certificate(self) -> bool:
        """Whether the key came in a certificate, and so has a time and an issuer to check."""
        return self.not_after is not None


def read_signing_key(text: str) -> SigningKey:
    """Read a ``signingKey``; says nothing about trust in a certificate. Raises :class:`KeyFileError`."""
    pem = pem_of(text)
    key = load_public_key(pem)
    if kinds(pem)[0] not in ("CERTIFICATE", "X509 CERTIFICATE"):
        return SigningKey(key, pem)
    return SigningKey(key, pem, *validity(pem))


def message(workload: str, env: str) -> bytes:
    """Return the bytes that are signed."""
    return (workload + env).encode()


def sign(workload: str, env: str, key: RSAPrivateKey) -> str:
    """Sign the exact strings of both sections; return one line of base64."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    return base64.b64encode(key.sign(message(workload, env), PKCS1v15(), SHA256())).decode("ascii")


def verify(workload: str, env: str, signature: str, key: RSAPublicKey) -> None:
    """Return if the signature holds; raise :class:`SignatureError` if not. White space in the base64 is allowed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        if len(signature) > 8192:
            raise ValueError("too long")
        raw = base64.b64decode("".join(signature.split()), validate=True)
        key.verify(raw, message(workload, env), PKCS1v15(), SHA256())
    except (InvalidSignature, binascii.Error, ValueError):
        raise SignatureError(
            "envWorkloadSignature does not hold for these sections and this signingKey",
            "sign the sections again, exactly as they stand in the contract",
        ) from None
