"""What an authority signs, as forms: certificates, requests, revocation lists. Pure; ``cryptography`` 38 of Debian 12 will do.

    one = sign(certificate(named, "Casemate 26.11.0 attestation", public, above), key)

What an authority may sign, and when, is said elsewhere: :mod:`casemate.build.authority` on a host, and the builder inside of its
machine. Both take their forms from here, so that a certificate looks the same wherever it was made.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from casemate.certificates.chain import DEVELOPMENT_OID
from casemate.errors import CasemateError

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

ROOT_DAYS, INTERMEDIATE_DAYS, IMAGE_DAYS = 3650, 1825, 730
DAY = datetime.timedelta(days=1)
LONGEST_NAME = 64  # X.520: common names and organizations
REASONS = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key-compromise": x509.ReasonFlags.key_compromise,
    "ca-compromise": x509.ReasonFlags.ca_compromise,
    "superseded": x509.ReasonFlags.superseded,
    "cessation": x509.ReasonFlags.cessation_of_operation,
}


class Named(Protocol):
    """Whose certificates these are: a name, whether they are for development, below which URL lists are published."""

    @property
    def name(self) -> str:
        """The organization."""

    @property
    def development(self) -> bool:
        """Whether every certificate is marked as one that protects nothing."""

    @property
    def lists_at(self) -> str:
        """A URL, or empty."""


def name_of(named: Named, common: str) -> x509.Name:
    """Return a subject: organization, the mark of development, a common name.

    Nothing is cut, or two issuers could come to have one name. Raises :class:`CasemateError` where it does not fit.
    """
    if not all(1 <= len(text.encode()) <= LONGEST_NAME for text in (named.name, common)):
        raise CasemateError(
            f"a name in a certificate has 1 to {LONGEST_NAME} bytes (UTF-8)",
            "take a shorter name for the authority, or for the builder",
            common,
            id="CERTIFICATE-NAME",
        )
    unit = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "DEVELOPMENT, no protection")]
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, named.name),
            *(unit if named.development else []),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def key_usage(*, authority: bool, encrypts: bool) -> x509.KeyUsage:
    """Return what a key is for: signing certificates and lists, encryption, or signatures; never two of them."""
    return x509.KeyUsage(
        **{"digital_signature": not authority and not encrypts, "key_encipherment": encrypts},
        **{"key_cert_sign": authority, "crl_sign": authority, "data_encipherment": encrypts},
        **{"content_commitment": False, "key_agreement": False, "encipher_only": False, "decipher_only": False},
    )


def authority_key(above: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the issuer's key identifier as its certificate has it: a public authority may have made it another way."""
    try:
        found = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        public: Any = above.public_key()
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)


def certificate(
    named: Named,
    subject: str | x509.Name,
    public: PublicKey,
    above: x509.Certificate | None,
    days: int = IMAGE_DAYS,
    *,
    path: int | None = None,
    encrypts: bool = False,
    purpose: x509.ObjectIdentifier | None = None,
    issuer: str = "root",
) -> x509.CertificateBuilder:
    """Return the form of a certificate.

    ``above`` is its issuer's, none for one that signs itself; ``path`` the path length of an authority; ``issuer`` the name of
    the issuer's list. None outlives its issuer.
    """
    now, authority = moment(), path is not None
    name = subject if isinstance(subject, x509.Name) else name_of(named, subject)
    begins, ends = now - DAY, now + days * DAY
    if above is not None:
        begins, ends = max(begins, validity(above)[0]), min(ends, validity(above)[1])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(above.subject if above is not None else name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=path), critical=True)
        .add_extension(key_usage(authority=authority, encrypts=encrypts), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    if above is None:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    else:
        builder = builder.add_extension(authority_key(above), critical=False)
    if named.development:
        mark = x509.UnrecognizedExtension(x509.ObjectIdentifier(DEVELOPMENT_OID), b"development")
        builder = builder.add_extension(mark, critical=False)
    if named.lists_at and above is not None:
        where = [x509.UniformResourceIdentifier(f"{named.lists_at}/{issuer}.crl")]
        points = x509.CRLDistributionPoints([x509.DistributionPoint(where, None, None, None)])
        builder = builder.add_extension(points, critical=False)
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    return builder


def request(named: Named, common: str) -> x509.CertificateSigningRequestBuilder:
    """Return the form of an intermediate's request."""
    return (
        x509.CertificateSigningRequestBuilder(name_of(named, common))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(authority=True, encrypts=False), critical=True)
    )


def revocation_list(
    above: x509.Certificate, number: int, entries: Iterable[x509.RevokedCertificate], days: int
) -> x509.CertificateRevocationListBuilder:
    """Return the form of a revocation list of the issuer whose certificate is ``above``."""
    now = moment()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(above.subject)
        .last_update(now - DAY)
        .next_update(now + days * DAY)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(authority_key(above), critical=False)
    )
    for one in entries:
        builder = builder.add_revoked_certificate(one)
    return builder


def revoked(serial: int, time: datetime.datetime, reason: str) -> x509.RevokedCertificate:
    """Return an entry of a revocation list; ``reason`` is one of :data:`REASONS`."""
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(time)
    if reason != "unspecified":  # RFC 5280: then it is left out
        builder = builder.add_extension(x509.CRLReason(REASONS[reason]), critical=False)
    return builder.build()


def sign(builder: x509.CertificateBuilder, key: Key) -> x509.Certificate:
    """Sign a form with the issuer's key."""
    return builder.sign(key, algorithm_for(key.public_key()))


def algorithm_for(key: PublicKey) -> hashes.SHA384 | hashes.SHA512:
    """Return the hash that is signed with a key: SHA-384 on P-384, SHA-512 otherwise."""
    return hashes.SHA384() if isinstance(key, ec.EllipticCurvePublicKey) else hashes.SHA512()


def validity(one: x509.Certificate) -> tuple[datetime.datetime, datetime.datetime]:
    """Return when a certificate begins and ends. ``cryptography`` 38 knows both without a time zone only."""
    if hasattr(one, "not_valid_after_utc"):
        return one.not_valid_before_utc, one.not_valid_after_utc
    return one.not_valid_before.replace(tzinfo=datetime.UTC), one.not_valid_after.replace(tzinfo=datetime.UTC)


def private_pem(key: Key) -> bytes:
    """Return a private key as PKCS#8, PEM, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_private(data: bytes) -> Key:
    """Read a private key of our own, PKCS#8, PEM. Raises :class:`ValueError`."""
    key = serialization.load_pem_private_key(data, None)
    if not isinstance(key, Key):
        raise ValueError("neither RSA nor on an elliptic curve")
    return key


def load_certificate(data: bytes) -> x509.Certificate:
    """Read one certificate of our own, PEM. Raises :class:`ValueError`."""
    return x509.load_pem_x509_certificate(data)


def pem(one: x509.Certificate | x509.CertificateRevocationList | x509.CertificateSigningRequest) -> bytes:
    """Return it as PEM."""
    return one.public_bytes(serialization.Encoding.PEM)


def moment() -> datetime.datetime:
    """Return the time, in whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
