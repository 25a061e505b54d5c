"""The development authority: what it writes, issues and revokes; and that nothing of it can pass for hardware."""

from __future__ import annotations

import datetime
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from casemate.certificates.chain import DEVELOPMENT_OID, has_development_mark, verify_chain
from casemate.image.ca import DevelopmentCA, ImageCertificates

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA.load_or_create(tmp_path_factory.mktemp("home") / "deep/ca")


@pytest.fixture(scope="module")
def issued(authority: DevelopmentCA) -> ImageCertificates:
    return authority.issue("26.11.0")


def test_it_is_made_once_and_its_keys_are_its_owners_alone(authority: DevelopmentCA) -> None:
    directory = authority.directory
    names = {"root.key", "root.crt", "root.crl.pem", "intermediate.key", "intermediate.crt", "intermediate.crl.pem"}
    names |= {"authority.json", "keys.jsonl", ".lock"}
    assert {path.name for path in directory.iterdir()} <= names
    assert names - {path.name for path in directory.iterdir()} <= {".lock"}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for name in ("root.key", "intermediate.key"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
        key = load_pem_private_key((directory / name).read_bytes(), None)
        assert key.key_size == 4096  # type: ignore[union-attr]
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    again = DevelopmentCA.load_or_create(directory)
    assert again == authority and {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in directory.parent.iterdir()] == ["ca"]  # nothing is left of making it


def test_every_certificate_carries_the_mark_and_says_development(
    authority: DevelopmentCA, issued: ImageCertificates
) -> None:
    for pem in (
        authority.root_pem,
        authority.intermediate_pem,
        issued.encryption_certificate,
        issued.attestation_certificate,
    ):
        assert has_development_mark(pem)
        certificate = x509.load_pem_x509_certificate(pem)
        (unit,) = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        assert "DEVELOPMENT" in str(unit.value)
        marks = [extension for extension in certificate.extensions if extension.oid.dotted_string == DEVELOPMENT_OID]
        assert len(marks) == 1


def test_authorities_sign_certificates_and_images_do_not(authority: DevelopmentCA, issued: ImageCertificates) -> None:
    for pem, is_authority in (
        (authority.root_pem, True),
        (authority.intermediate_pem, True),
        (issued.encryption_certificate, False),
        (issued.attestation_certificate, False),
    ):
        extensions = x509.load_pem_x509_certificate(pem).extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert basic.critical and usage.critical and basic.value.ca is is_authority
        assert (usage.value.key_cert_sign, usage.value.crl_sign) == (is_authority, is_authority)
        encrypts, signs = pem == issued.encryption_certificate, pem == issued.attestation_certificate
        assert (usage.value.key_encipherment, usage.value.digital_signature) == (encrypts, signs)


def test_the_chain_holds_and_the_names_of_both_certificates_differ(
    authority: DevelopmentCA, issued: ImageCertificates
) -> None:
    subjects = set()
    for pem in (issued.encryption_certificate, issued.attestation_certificate):
        chain = verify_chain(pem, [authority.root_pem, authority.intermediate_pem], [authority.crl_pem], time=NOW)
        assert chain.proved and chain.development and chain.revocation_checked and len(chain.links) == 3
        subjects.add(chain.links[0].subject)
    assert len(subjects) == 2 and all("26.11.0" in subject for subject in subjects)


def test_private_keys_belong_to_their_certificates_and_stay_in_memory(
    authority: DevelopmentCA, issued: ImageCertificates
) -> None:
    def spki(key: object) -> bytes:
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]

    keys = set()
    for secret, pem in (
        (issued.encryption_key, issued.encryption_certificate),
        (issued.attestation_key, issued.attestation_certificate),
    ):
        private = load_pem_private_key(secret.reveal(), None)
        assert spki(private.public_key()) == spki(x509.load_pem_x509_certificate(pem).public_key())
        keys.add(spki(private.public_key()))
        assert "PRIVATE" not in repr(issued) and b"PRIVATE" in secret.reveal()
    assert len(keys) == 2
    secrets = {issued.encryption_key.reveal(), issued.attestation_key.reveal()}
    assert not secrets & {path.read_bytes() for path in authority.directory.iterdir()}


def test_what_is_revoked_stays_revoked_and_the_others_do_not_suffer(
    authority: DevelopmentCA, issued: ImageCertificates
) -> None:
    def revocation(pem: bytes) -> tuple[str, bool]:
        chain = verify_chain(pem, [authority.root_pem, authority.intermediate_pem], [authority.crl_pem], time=NOW)
        return chain.links[0].revocation, chain.proved

    def number() -> int:
        found = x509.load_pem_x509_crl(authority.crl_pem).extensions.get_extension_for_class(x509.CRLNumber)
        return found.value.crl_number

    before = number()
    serial = x509.load_pem_x509_certificate(issued.encryption_certificate).serial_number
    authority.revoke(serial)
    authority.revoke(serial)  # once more says the same
    authority.revoke(12345)
    assert revocation(issued.encryption_certificate) == ("revoked", False)
    assert revocation(issued.attestation_certificate) == ("not revoked", True)
    revoked = x509.load_pem_x509_crl(authority.crl_pem)
    assert [entry.serial_number for entry in revoked] == [serial, 12345]
    assert number() >= before
    assert not list(authority.directory.glob(".*-*"))


def test_an_old_list_is_signed_anew_with_the_same_entries(authority: DevelopmentCA) -> None:
    key = load_pem_private_key((authority.directory / "intermediate.key").read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(authority.intermediate_pem)
    builder = x509.CertificateRevocationListBuilder(issuer_name=certificate.subject)
    builder = builder.last_update(NOW - datetime.timedelta(9)).next_update(NOW - datetime.timedelta(1))
    entry = x509.RevokedCertificateBuilder().serial_number(4711).revocation_date(NOW - datetime.timedelta(9)).build()
    old = builder.add_revoked_certificate(entry).sign(key, SHA512())
    (authority.directory / "intermediate.crl.pem").write_bytes(old.public_bytes(Encoding.PEM))
    new = x509.load_pem_x509_crl(authority.crl_pem)
    assert new.last_update_utc > old.last_update_utc
    assert new.next_update_utc is not None and new.next_update_utc > NOW
    assert new.is_signature_valid(key.public_key()) and 4711 in [entry.serial_number for entry in new]
    assert authority.crl_pem == authority.crl_pem
