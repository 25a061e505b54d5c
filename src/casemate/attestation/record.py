"""The attestation record ``se-checksums.txt`` and its signature (``docs/formats/attestation-record.md``).

    text = build("26.11.0", [("Image age", "3 days since creation.")], [("root.tar.gz", sha256_hex)])
    signature = sign(text, attestation_key_pem)

One item a line: the version, then ``Key: value`` lines (*facts*), then ``<sha256 hex> <name>`` lines (*hashes*). No newline
at the end. The signature is RSASSA-PKCS1-v1_5 with SHA-256 over these bytes, raw, 512 bytes for an RSA-4096 key.

The rules of reading: at most 64 KiB and 256 lines of printable UTF-8; no name twice; a line of an unknown kind is kept
and shown, never understood. A record is parsed after its signature was verified wherever there is a key to verify with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.errors import CasemateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

LARGEST = 64 << 10
MOST_LINES = 256

TEE = "TEE"
MACHINE = "Machine Type/Plant/Serial"
IMAGE_AGE = "Image age"
CUID = "Ultravisor CUID"
HOST_KEY = "Host HKD"
HOST_KEY_VALID = "HKD is valid until"
FIRMWARE = "uv_firmware.state"
ROOT = "root.tar.gz"
BASE = "baseimage"
SBOM = "sbom"
CIDATA = "/dev/disk/by-label/cidata"
META_DATA, USER_DATA, VENDOR_DATA = "cidata/meta-data", "cidata/user-data", "cidata/vendor-data"
WORKLOAD, ENV, AUDITOR_KEY = "contract:workload", "contract:env", "contract:attestationPublicKey"

_HASH = re.compile(r"([0-9a-f]{64}) +(\S.*)")
_FACT = re.compile(r"([A-Za-z][A-Za-z0-9 /_.-]{0,79}): ?(.*)")


class RecordError(CasemateError):
    """The record, or its signature, is not what it must be."""

    id = "RECORD"


@dataclass(frozen=True, slots=True)
class Record:
    """A parsed record. ``lines`` are all lines in order; ``facts`` and ``hashes`` those that were understood."""

    version: str
    facts: dict[str, str]
    hashes: dict[str, str]
    unknown: tuple[str, ...]
    lines: tuple[str, ...]


def build(version: str, facts: Sequence[tuple[str, str]], hashes: Sequence[tuple[str, str]]) -> bytes:
    """Return the text of a record. Raises :class:`RecordError` where it would not read back as the same."""
    lines = [version, *(f"{key}: {value}" for key, value in facts), *(f"{digest} {name}" for name, digest in hashes)]
    text = "\n".join(lines).encode()
    parsed = parse(text)
    if (parsed.version, list(parsed.facts.items()), list(parsed.hashes.items())) != (
        version,
        list(facts),
        list(hashes),
    ):
        raise RecordError("a value can't stand in a record")
    return text


def parse(text: bytes) -> Record:
    """Read a record; one newline at its end is allowed. Raises :class:`RecordError`."""
    if len(text) > LARGEST:
        raise RecordError(f"{len(text)} bytes are too many for a record", f"at most {LARGEST} bytes")
    try:
        lines = text.removesuffix(b"\n").decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise RecordError("the record is not text", "is it encrypted? give the auditor's key") from None
    if len(lines) > MOST_LINES or not all(line.isprintable() for line in lines):
        raise RecordError("the record has too many lines, or characters that can't be printed")
    version, rest = lines[0].strip(), lines[1:]
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]{0,31}", version):
        raise RecordError("the first line is not a version", "is this a se-checksums.txt?")
    facts: dict[str, str] = {}
    hashes: dict[str, str] = {}
    unknown = []
    for line in rest:
        if match := _HASH.fullmatch(line):
            _add(hashes, match[2], match[1])
        elif match := _FACT.fullmatch(line):
            _add(facts, match[1], match[2])
        elif line.strip():
            unknown.append(line)
    return Record(version, facts, hashes, tuple(unknown), tuple(lines))


def _add(values: dict[str, str], name: str, value: str) -> None:
    if name in values:
        raise RecordError(f"the record says twice what {name} is")
    values[name] = value


def sign(text: bytes, key_pem: bytes) -> bytes:
    """Sign a record with the image's attestation key (PEM); return the raw signature."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    from casemate.contract.keys import load_private_key

    return load_private_key(key_pem).sign(text, PKCS1v15(), SHA256())


def verify_signature(text: bytes, signature: bytes, key: RSAPublicKey) -> None:
    """Raise :class:`RecordError` where the signature over the record's bytes does not hold under this key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        key.verify(signature, text, PKCS1v15(), SHA256())
    except InvalidSignature:
        raise RecordError(
            "the signature does not belong to this record and this certificate",
            "the record was changed, or another image made it",
        ) from None
