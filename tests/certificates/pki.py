"""Certificates and revocation lists for tests, of any kind, good and bad; keys are made once."""

from __future__ import annotations

import datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NOW = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
PEM = Encoding.PEM


@cache
def key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def key_pem(private) -> bytes:
    return private.private_bytes(PEM, PrivateFormat.PKCS8, NoEncryption())


def name(common: str, *more: str) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    parts += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, part) for part in more]
    return x509.Name(parts)


def certificate(
    subject,
    issuer,
    *,
    public=None,
    signer=None,
    ca: bool | None = False,
    path: int | None = None,
    usage: bool = True,
    start=NOW - DAY,
    end=NOW + 365 * DAY,
    serial: int | None = None,
    extensions=(),
    digest=None,
) -> bytes:
    """A certificate, PEM. ``subject``, ``issuer``: common names, which also name the keys, or whole names."""
    subject_name = name(subject) if isinstance(subject, str) else subject
    issuer_name = name(issuer) if isinstance(issuer, str) else issuer
    public = public or key(subject).public_key()
    signer = signer or key(issuer)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer_name)
        .public_key(public)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path), critical=True)
    if usage:
        flags = {"key_cert_sign": bool(ca), "crl_sign": bool(ca), "digital_signature": not ca}
        others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        rest = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
        builder = builder.add_extension(x509.KeyUsage(**flags, **rest), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, digest or hashes.SHA512()).public_bytes(PEM)


def crl(issuer, serials=(), *, signer=None, start=NOW - DAY, end=NOW + 30 * DAY, extensions=(), encoding=PEM) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name(issuer) if isinstance(issuer, str) else issuer)
        .last_update(start)
        .next_update(end)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
        builder = builder.add_revoked_certificate(entry)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer or key(issuer), hashes.SHA256()).public_bytes(encoding)


@cache
def root() -> bytes:
    return certificate("root", "root", ca=True)


@cache
def intermediate() -> bytes:
    return certificate("intermediate", "root", ca=True)


@cache
def leaf() -> bytes:
    return certificate("leaf", "intermediate", serial=4711)
