"""Host keys: documents and bare keys that are one, and everything that is none."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import CasemateError
from casemate.secureexec import hostkey
from casemate.secureexec.errors import HostKeyError, ImageError

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)


def document(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, begins: datetime.datetime, ends: datetime.datetime
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a host")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(begins).not_valid_after(ends)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())


def test_a_document_and_a_bare_key_give_the_same_key(host: ec.EllipticCurvePrivateKey) -> None:
    certificate = document(host, NOW - DAY, NOW + DAY)
    bare = host.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    loaded = [hostkey.load(certificate.public_bytes(encoding)) for encoding in (Encoding.PEM, Encoding.DER)]
    assert {key.fingerprint for key in (*loaded, hostkey.load(bare))} == {
        hostkey.HostKey(host.public_key()).fingerprint
    }
    ends = datetime.datetime.strptime(loaded[0].valid_until, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=datetime.UTC)
    assert ends == NOW + DAY
    assert hostkey.load(bare).valid_until == ""


def test_a_document_beside_another_key_is_refused(
    host: ec.EllipticCurvePrivateKey, other: ec.EllipticCurvePrivateKey
) -> None:
    """The image would be encrypted for the one, and the chain verified for the other."""
    genuine = document(host, NOW - DAY, NOW + DAY).public_bytes(Encoding.PEM)
    another = document(other, NOW - DAY, NOW + DAY).public_bytes(Encoding.PEM)
    bare = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    hidden = another.replace(b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN CERTIFICATE-----")
    for together in (bare + genuine, genuine + bare, another + genuine, hidden + genuine, genuine + hidden):
        with pytest.raises(HostKeyError, match="more than one"):
            hostkey.load(together)


@pytest.mark.parametrize(("begins", "ends"), [(NOW - 2 * DAY, NOW - DAY), (NOW + DAY, NOW + 2 * DAY)])
def test_a_document_of_another_time_is_refused(
    host: ec.EllipticCurvePrivateKey, begins: datetime.datetime, ends: datetime.datetime
) -> None:
    pem = document(host, begins, ends).public_bytes(Encoding.PEM)
    with pytest.raises(HostKeyError, match="not valid today"):
        hostkey.load(pem)
    assert hostkey.load(pem, check_validity=False).fingerprint


def test_keys_of_other_kinds_are_refused() -> None:
    p384, other = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
    for key in (p384, other, ed25519.Ed25519PrivateKey.generate()):
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(HostKeyError, match="P-521"):
            hostkey.load_private(private)
        with pytest.raises(HostKeyError, match="P-521"):
            hostkey.load(public)
    with pytest.raises(HostKeyError, match="P-521"):
        hostkey.load(document(other, NOW - DAY, NOW + DAY).public_bytes(Encoding.DER))


def test_a_private_key_with_a_password_is_refused(host: ec.EllipticCurvePrivateKey) -> None:
    locked = host.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    with pytest.raises(HostKeyError, match="without a password"):
        hostkey.load_private(locked)


def test_a_document_that_is_too_large_is_refused() -> None:
    with pytest.raises(HostKeyError, match="too large"):
        hostkey.load(bytes(hostkey.LARGEST_DOCUMENT + 1))


def test_coordinates_go_there_and_back(host: ec.EllipticCurvePrivateKey) -> None:
    data = hostkey.coordinates(host.public_key())
    assert len(data) == 160
    assert hostkey.from_coordinates(data) == host.public_key()
    with pytest.raises(ImageError, match="not a point"):
        hostkey.from_coordinates(data[:-1] + bytes([data[-1] ^ 1]))


_KEY = ec.generate_private_key(ec.SECP521R1())
_DER = document(_KEY, NOW - DAY, NOW + DAY).public_bytes(Encoding.DER)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=600, deadline=None)
@given(st.integers(0, len(_DER) - 1), st.binary(min_size=1, max_size=4), st.booleans())
def test_damaged_documents_only_ever_give_our_errors(at: int, new: bytes, check: bool) -> None:
    broken = _DER[:at] + new + _DER[at + len(new) :]
    try:
        hostkey.load(broken, check_validity=check)
    except CasemateError:
        return
