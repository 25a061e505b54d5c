"""Host keys: P-521, in host key documents (X.509) or alone; and how a header key is wrapped for one.

A key slot is 80 bytes: SHA-256 of the host's public key (x ‖ y, 80 bytes each), the wrapped header key (32), its tag (16).
Wrapping is AES-256-GCM with an IV of zeros under SHA-256( ECDH shared secret ‖ 00 00 00 01 ): the secret is fresh
for each image, since the customer's key is, so the IV is never used twice (``docs/formats/secure-execution-image.md``).
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP521R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicNumbers as PublicNumbers
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from casemate.secureexec.errors import HostKeyError, ImageError

if TYPE_CHECKING:
    from cryptography import x509

COORDINATE = 80
SLOT_SIZE = 80
LARGEST_DOCUMENT = 64 << 10
_IV = bytes(12)


@dataclass(frozen=True, slots=True)
class HostKey:
    """The public key of a machine. ``valid_until`` is text as the record has it, empty for a key without document."""

    public: EllipticCurvePublicKey
    valid_until: str = ""

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 over x ‖ y: how a machine finds its slot."""
        return hashlib.sha256(coordinates(self.public)).digest()


def coordinates(key: EllipticCurvePublicKey) -> bytes:
    """Return x ‖ y of a P-521 key, each left-padded to 80 bytes."""
    numbers = key.public_numbers()
    return numbers.x.to_bytes(COORDINATE, "big") + numbers.y.to_bytes(COORDINATE, "big")


def from_coordinates(data: bytes) -> EllipticCurvePublicKey:
    """Return the key of x ‖ y (160 bytes); raise :class:`ImageError` where that is no point of the curve."""
    x, y = (int.from_bytes(part, "big") for part in (data[:COORDINATE], data[COORDINATE:]))
    try:
        return PublicNumbers(x, y, SECP521R1()).public_key()
    except ValueError:
        raise ImageError("the customer public key of the header is not a point of P-521") from None


def load(document: bytes, *, check_validity: bool = True) -> HostKey:
    """Read a host key document (PEM or DER) or a bare public key (PEM).

    The chain behind a document is not verified here. Raises :class:`HostKeyError`: no P-521 key, or not valid today.
    """
    from cryptography import x509  # seconds on an emulated processor, and a guest reads no document

    if len(document) > LARGEST_DOCUMENT:
        raise HostKeyError("too large for a host key document")
    if document.count(b"-----BEGIN ") > 1:  # the image would be for one, the chain verified for the other
        raise HostKeyError("more than one key or certificate in it", "give each host key document as a file of its own")
    try:
        if b"BEGIN PUBLIC KEY" in document:
            return HostKey(_p521(load_pem_public_key(document)))
        pem = b"BEGIN CERTIFICATE" in document
        certificate = x509.load_pem_x509_certificate(document) if pem else x509.load_der_x509_certificate(document)
        key = _p521(certificate.public_key())
        begins, ends = validity(certificate)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise HostKeyError(
            "neither a certificate nor a public key", "give the host key document (.crt) of the machine"
        ) from None
    if check_validity and not begins <= datetime.datetime.now(datetime.UTC) <= ends:
        raise HostKeyError(
            f"the host key document is not valid today (until {ends.date()})", "get the current document"
        )
    return HostKey(key, ends.strftime("%b %-d %H:%M:%S %Y GMT"))


def validity(certificate: x509.Certificate) -> tuple[datetime.datetime, datetime.datetime]:
    """Return when a certificate begins and ends. Debian 12's ``cryptography`` (38) knows both without a time zone only."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    begins, ends = certificate.not_valid_before, certificate.not_valid_after
    return begins.replace(tzinfo=datetime.UTC), ends.replace(tzinfo=datetime.UTC)


def load_private(pem: bytes) -> EllipticCurvePrivateKey:
    """Read a host's private key, PEM. Raises :class:`HostKeyError`."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise HostKeyError("not a private key without a password") from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP521R1):
        raise HostKeyError("a host key is a P-521 key")
    return key


def _p521(key: object) -> EllipticCurvePublicKey:
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP521R1):
        raise HostKeyError("a host key is a P-521 key, this is another kind", "is this really a host key document?")
    return key


def _wrapping_key(private: EllipticCurvePrivateKey, public: EllipticCurvePublicKey) -> AESGCM:
    return AESGCM(hashlib.sha256(private.exchange(ECDH(), public) + b"\0\0\0\1").digest())


def make_slot(host: HostKey, customer: EllipticCurvePrivateKey, header_key: bytes) -> bytes:
    """Return the 80 bytes that let ``host`` find the 32-byte header key."""
    return host.fingerprint + _wrapping_key(customer, host.public).encrypt(_IV, header_key, None)


def open_slot(slot: bytes, host: EllipticCurvePrivateKey, customer: EllipticCurvePublicKey) -> bytes:
    """Return the header key; raise :class:`ImageError` where the slot's tag does not hold."""
    try:
        return _wrapping_key(host, customer).decrypt(_IV, slot[32:], None)
    except InvalidTag:
        raise ImageError("the key slot of this host was changed") from None
