"""What the tests of this directory are made with: keys, and what other tools (and attackers) write."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.x509.oid import NameOID

Encoding, Private = serialization.Encoding, serialization.PrivateFormat


@dataclass(frozen=True)
class Pair:
    """A key with its certificate, in the forms that files have."""

    key: rsa.RSAPrivateKey
    certificate: bytes

    @property
    def private(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, Private.PKCS8, serialization.NoEncryption())

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def protected(self, password: bytes, form: Private = Private.PKCS8) -> bytes:
        return self.key.private_bytes(Encoding.PEM, form, serialization.BestAvailableEncryption(password))


def make_pair(bits: int) -> Pair:
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {bits}")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=99))
        .sign(key, hashes.SHA256())
    )
    return Pair(key, certificate.public_bytes(Encoding.PEM))


def craft(key: rsa.RSAPublicKey, raw: bytes, effective: bytes, padded: bytes, prefix: str = "contract-basic") -> str:
    """Make a token as another tool would: ``raw`` is wrapped, ``effective`` encrypts what is padded already."""
    salt = b"\x01\x02\x03\x04\x05\x06\x07\x08"
    secret = hashlib.pbkdf2_hmac("sha256", effective, salt, 10_000, 48)
    encryptor = Cipher(algorithms.AES(secret[:32]), modes.CBC(secret[32:])).encryptor()
    body = encryptor.update(padded) + encryptor.finalize()
    wrapped = key.encrypt(raw, padding.PKCS1v15())
    return f"{prefix}.{base64.b64encode(wrapped).decode()}.{base64.b64encode(b'Salted__' + salt + body).decode()}"


def pad(plain: bytes) -> bytes:
    fill = 16 - len(plain) % 16
    return plain + bytes([fill]) * fill


def tar(*members: tuple[tarfile.TarInfo | str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """Make a tar of members as they are given, hostile ones too."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()
