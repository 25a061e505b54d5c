"""The development certificate authority: made on first use, for images that are for nobody but their maker.

``root`` → ``intermediate`` → per image an encryption and an attestation certificate. Every certificate carries the
extension :data:`~casemate.certificates.chain.DEVELOPMENT_OID`, and the subject says so too: it is inside what is
signed, so a record under this chain can't pass for one of a hardware TEE. The keys of root and intermediate lie in the
directory, 0600; the secure build replaces this module's part.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from casemate.certificates.chain import DEVELOPMENT_OID
from casemate.secret import Secret

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ImageCertificates:
    """What an image gets: two private keys (PKCS#8 PEM) and their certificates (PEM)."""

    encryption_key: Secret
    encryption_certificate: bytes
    attestation_key: Secret
    attestation_certificate: bytes

    @property
    def until(self) -> datetime.datetime:
        """When the encryption certificate ends, and with it what may be sealed for the image."""
        return x509.load_pem_x509_certificate(self.encryption_certificate).not_valid_after_utc


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Casemate"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "DEVELOPMENT, no protection"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _certificate(
    subject: str,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: rsa.RSAPrivateKey,
    days: int,
    authority: bool,
    purpose: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    usage = {
        **{"digital_signature": not authority, "key_encipherment": not authority and purpose is None},
        **{"key_cert_sign": authority, "crl_sign": authority},
        **{"content_commitment": False, "data_encipherment": False, "key_agreement": False},
        **{"encipher_only": False, "decipher_only": False},
    }
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + days * _DAY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(DEVELOPMENT_OID), b"development"), critical=False
        )
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    return builder.sign(issuer_key, hashes.SHA512())


@dataclass(frozen=True, slots=True)
class DevelopmentCA:
    """A development authority that is kept in a directory."""

    directory: Path

    @classmethod
    def load_or_create(cls, directory: Path) -> DevelopmentCA:
        """Return the authority of a directory; make it where the directory is not there."""
        if not (directory / "intermediate.crt").is_file():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".ca-", dir=directory.parent) as work:
                new = Path(work) / "ca"
                new.mkdir(mode=0o700)
                cls(new)._create()
                if not directory.exists():
                    new.rename(directory)
        return cls(directory)

    def _create(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            root, intermediate = pool.map(lambda _: _new_key(), range(2))
        root_certificate = _certificate(
            "Development root", root.public_key(), _name("Development root"), root, 3650, True
        )
        issued = _certificate(
            "Development intermediate", intermediate.public_key(), root_certificate.subject, root, 1825, True
        )
        for name, key in (("root.key", root), ("intermediate.key", intermediate)):
            with os.fdopen(os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(_pem(key))
        for name, certificate in (("root.crt", root_certificate), ("intermediate.crt", issued)):
            (self.directory / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._write_crl([])

    @property
    def root_pem(self) -> bytes:
        """The root's certificate, PEM."""
        return (self.directory / "root.crt").read_bytes()

    @property
    def intermediate_pem(self) -> bytes:
        """The intermediate's certificate, PEM."""
        return (self.directory / "intermediate.crt").read_bytes()

    @property
    def crl_pem(self) -> bytes:
        """The intermediate's newest revocation list, PEM; signed anew where it is older than a day."""
        path = self.directory / "crl.pem"
        current = x509.load_pem_x509_crl(path.read_bytes())
        if datetime.datetime.now(datetime.UTC) - current.last_update_utc > 2 * _DAY:
            self._write_crl([entry.serial_number for entry in current])
        return path.read_bytes()

    def revoke(self, serial: int) -> None:
        """Put a certificate's serial number on the revocation list."""
        current = x509.load_pem_x509_crl((self.directory / "crl.pem").read_bytes())
        self._write_crl([*(entry.serial_number for entry in current), serial])

    def _intermediate(self) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
        key = serialization.load_pem_private_key((self.directory / "intermediate.key").read_bytes(), None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError("the development CA has an RSA key")
        return x509.load_pem_x509_certificate(self.intermediate_pem), key

    def _write_crl(self, serials: list[int]) -> None:
        certificate, key = self._intermediate()
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(certificate.subject)
            .last_update(now - _DAY)
            .next_update(now + 365 * _DAY)
            .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        )
        for serial in dict.fromkeys(serials):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        new = self.directory / "crl.pem.new"
        new.write_bytes(builder.sign(key, hashes.SHA512()).public_bytes(serialization.Encoding.PEM))
        new.rename(self.directory / "crl.pem")

    def issue(self, version: str) -> ImageCertificates:
        """Make the keys and certificates of a new image. The private halves are returned, and kept nowhere."""
        with ThreadPoolExecutor(2) as pool:
            encryption, attestation = pool.map(lambda _: _new_key(), range(2))
        certificate, key = self._intermediate()

        def issued(purpose: str, public: rsa.RSAPublicKey) -> bytes:
            made = _certificate(f"Casemate {version} {purpose}", public, certificate.subject, key, 730, False)
            return made.public_bytes(serialization.Encoding.PEM)

        return ImageCertificates(
            encryption_key=Secret(_pem(encryption)),
            encryption_certificate=issued("contract encryption", encryption.public_key()),
            attestation_key=Secret(_pem(attestation)),
            attestation_certificate=issued("attestation", attestation.public_key()),
        )

    def issue_provenance(self, version: str) -> tuple[Secret, bytes]:
        """Make the key (P-384, PKCS#8 PEM) that signs one provenance statement, and its certificate (PEM).

        Its purpose is signing code, and only that: no key of an image can pass for it, nor it for one of an image.
        """
        signer = ec.generate_private_key(ec.SECP384R1())
        certificate, key = self._intermediate()
        subject, purpose = f"Casemate {version} build provenance", ExtendedKeyUsageOID.CODE_SIGNING
        made = _certificate(subject, signer.public_key(), certificate.subject, key, 730, False, purpose)
        return Secret(_pem(signer)), made.public_bytes(serialization.Encoding.PEM)
