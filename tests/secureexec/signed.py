"""A tree of certificates as host key documents have it: root, public authority, signing keys, documents, and their lists."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
ABOVE = ["signing.crt", "inter.crt", "root.crt"]
LISTS = ["signing.crl", "inter.crl", "root.crl"]
IBM = "International Business Machines Corporation"


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def signing_name(
    place: str = "Poughkeepsie", *, unit: str = "IBM Z Host Key Signing Service", backwards: bool = False
) -> x509.Name:
    parts = [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "New York"),
        x509.NameAttribute(NameOID.LOCALITY_NAME, place),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, IBM),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
        x509.NameAttribute(NameOID.COMMON_NAME, IBM),
    ]
    return x509.Name(parts[::-1] if backwards else parts)


def write(directory: Path, host: Key) -> None:
    """Write all of it into a directory."""
    keys = {each: ec.generate_private_key(ec.SECP521R1()) for each in ("root", "inter", "signing", "signing2", "self")}
    root, inter, signing, second = (
        name("Root"),
        name("Inter"),
        signing_name(),
        signing_name(unit="2 Key Signing Service"),
    )
    almost = signing_name("Boston")

    def certificate(file: str, subject: x509.Name, key: Key, issuer: x509.Name, signer: Key, **more) -> None:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        builder = builder.not_valid_before(NOW - 2 * DAY).not_valid_after(more.get("end", NOW + 365 * DAY))
        builder = builder.serial_number(more.get("serial") or x509.random_serial_number())
        if "ca" in more:
            builder = builder.add_extension(x509.BasicConstraints(more["ca"], None), critical=True)
        made = builder.sign(signer, hashes.SHA512())
        (directory / f"{file}.crt").write_bytes(made.public_bytes(Encoding.PEM))
        (directory / f"{file}.der").write_bytes(made.public_bytes(Encoding.DER))

    def crl(file: str, issuer: x509.Name, signer: Key, *serials: int) -> None:
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer)
        builder = builder.last_update(NOW - DAY).next_update(NOW + 30 * DAY)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        (directory / f"{file}.crl").write_bytes(builder.sign(signer, hashes.SHA512()).public_bytes(Encoding.PEM))

    certificate("root", root, keys["root"], root, keys["root"], ca=True)
    certificate("inter", inter, keys["inter"], root, keys["root"], ca=True)
    certificate("signing", signing, keys["signing"], inter, keys["inter"], ca=False, serial=11)
    certificate("signing2", second, keys["signing2"], inter, keys["inter"], ca=False)
    certificate("almost", almost, keys["signing2"], inter, keys["inter"], ca=False)
    certificate("self", signing, keys["self"], signing, keys["self"], ca=True)

    certificate("host", name("Host"), host, signing, keys["signing"])
    certificate("second", name("Second host"), host, second, keys["signing2"])
    certificate("armonk", name("Host"), host, signing_name("Armonk", backwards=True), keys["signing"])
    certificate("elsewhere", name("Host"), host, signing_name("Boston"), keys["signing"])
    certificate("stranger", name("Stranger"), host, inter, keys["inter"], ca=False)
    certificate("by-almost", name("Host"), host, almost, keys["signing2"])
    certificate("by-self", name("Host"), host, signing, keys["self"])
    certificate("revoked", name("Host"), host, signing, keys["signing"], serial=99)
    certificate("expired", name("Host"), host, signing, keys["signing"], end=NOW - DAY)
    certificate("forged", name("Host"), host, signing, keys["self"])

    crl("root", root, keys["root"])
    crl("inter", inter, keys["inter"])
    crl("inter-revokes", inter, keys["inter"], 11)
    crl("signing", signing, keys["signing"], 99)
    crl("signing2", second, keys["signing2"])
    crl("almost", almost, keys["signing2"])
    crl("self", signing, keys["self"])
