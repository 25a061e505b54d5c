"""A small authority for the services around a machine: TLS of a registry, both sides of a log backend.

    authority = Authority.create("Registry")
    server = authority.server(("127.0.0.1", "localhost"))
    client = authority.client("db-1")

Its key lives as long as the object, and is written nowhere. P-256, since these are made by the dozen. It vouches for
no image and no record: those have an authority of their own (:mod:`casemate.image.ca`).
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)
LIFE = 30 * _DAY


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its private key, both PEM (the key PKCS#8)."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authority:
    """A self-signed authority: its certificate, PEM, and what it issues."""

    certificate: bytes
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, name: str) -> Authority:
        """Make a new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        certificate = (
            _builder(subject, subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate.public_bytes(serialization.Encoding.PEM), key)

    def server(self, names: Sequence[str]) -> Identity:
        """Issue a certificate for a server's host names and addresses; the first is also its common name."""
        return self._issue(names[0], names, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, name: str) -> Identity:
        """Issue a certificate for a client."""
        return self._issue(name, (name,), ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(self, common: str, names: Sequence[str], purpose: x509.ObjectIdentifier) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate(self.certificate).subject
        certificate = (
            _builder(_name(common), issuer, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Identity(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        **{"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority},
        **{"content_commitment": False, "key_encipherment": False, "data_encipherment": False},
        **{"key_agreement": False, "encipher_only": False, "decipher_only": False},
    )
