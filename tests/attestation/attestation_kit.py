"""Records, chains and contracts for tests: one that holds, and everything to break it with."""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pki
from cryptography import x509

from casemate.attestation import record as records
from casemate.attestation.verify import Verdict, verify
from casemate.certificates.chain import DEVELOPMENT_OID

MARK = (x509.UnrecognizedExtension(x509.ObjectIdentifier(DEVELOPMENT_OID), b"development"), False)
CONTRACT = b"workload: hyper-protect-basic.AAAA.BBBB\nenv: hyper-protect-basic.CCCC.DDDD\nattestationPublicKey: KEY\n"
META, VENDOR = b"local-hostname: db-1\n", b"#cloud-config\n"
SERIAL = 4711


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


PUBLISHED = f"""\
25.11.0
Machine Type/Plant/Serial: 9175/02/C25B8
Image age: 3 days since creation.
Ultravisor CUID: 0x3e0531460c9bf87a442736a5e2c2d10c
Host HKD: HKD-9175-02C25B8.crt (HKD-9175-02C25B8.crt)
HKD is valid until: Apr 1 15:03:09 2027 GMT
{sha256(b"firmware")} uv_firmware.state
{sha256(b"root")} root.tar.gz
{sha256(b"base")} baseimage
{sha256(b"sbom")} sbom
{sha256(b"volume")} /dev/disk/by-label/cidata
{sha256(META)} cidata/meta-data
{sha256(CONTRACT)} cidata/user-data
{sha256(VENDOR)} cidata/vendor-data
{sha256(b"hyper-protect-basic.AAAA.BBBB")} contract:workload
{sha256(b"hyper-protect-basic.CCCC.DDDD")} contract:env
{sha256(b"KEY")} contract:attestationPublicKey""".encode()
"""A record in the published form: 17 lines, no newline at the end."""


def reference(version: str = "25.11.0", **changed: str) -> bytes:
    values = {"root.tar.gz": sha256(b"root"), "baseimage": sha256(b"base"), "sbom": sha256(b"sbom"), **changed}
    return json.dumps(
        {"format": "casemate-reference-values/1", "version": version, "arch": "s390x", "values": values}
    ).encode()


def sign(text: bytes, who: str = "attestation") -> bytes:
    return records.sign(text, pki.key_pem(pki.key(who)))


@cache
def root() -> bytes:
    return pki.certificate("root", "root", ca=True)


@cache
def intermediate() -> bytes:
    return pki.certificate("intermediate", "root", ca=True)


@cache
def certificate() -> bytes:
    return pki.certificate("attestation", "intermediate", serial=SERIAL)


@cache
def crl(*serials: int) -> bytes:
    return pki.crl("intermediate", serials)


@dataclass(frozen=True)
class Case:
    """All that a verification is given; ``verify`` with what differs."""

    text: bytes = PUBLISHED
    signature: bytes | None = None
    certificate: bytes | None = None

    def verify(self, **given: Any) -> Verdict:
        signature = sign(self.text) if self.signature is None else self.signature
        given.setdefault("time", pki.NOW)
        return verify(self.text, signature, self.certificate or certificate(), **given)

    def whole(self, **given: Any) -> Verdict:
        """Verify with everything that a careful auditor gives."""
        return self.verify(
            **{
                **{"issuers": [root(), intermediate()], "crls": [crl()], "reference": reference()},
                **{"contract": CONTRACT, "files": {"meta-data": META, "vendor-data": VENDOR}, **given},
            }
        )

    def with_(self, **changed: Any) -> Case:
        return replace(self, **changed)


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {row.name: row.outcome.value for row in verdict.rows}


def asked(verdict: Verdict) -> dict[str, str]:
    return {row.name: row.outcome.value for row in verdict.rows if row.asked}


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
