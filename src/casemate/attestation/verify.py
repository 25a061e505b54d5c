"""Verifies an attestation record: every line gets a verdict, and the whole gets one.

    verdict = verify(text, signature, certificate, time=now, issuers=[root, intermediate], crls=[crl],
                     reference=reference_values_json, contract=contract_yaml)
    verdict.holds            # everything that was asked for is proved
    verdict.rows             # line by line: value, meaning, outcome, why

The rules:

- The signature comes first. Where it does not hold, the record is not even parsed, and nothing of it is proved.
- A line is **proved** where something independent was given that says the same, and **refuted** where that says
  something else or the line is missing. What the signed record says alone is **not proved**: there was nothing to compare it
  with. A line of an unknown kind is shown as such.
- Lines are only proved under a key that is: where authorities were given and the chain to them does not hold, an equal
  line is not proved.
- What was given is asked for: a certificate with authorities asks for the chain, revocation lists for revocation,
  reference values, contract and cidata volume for their lines. Nothing given is silently unused.
- A measurement that was given must hold for the image, and be of the machine that signed this record: it carries the record's
  hash (:mod:`casemate.attestation.machine`). One of a software ultravisor shows no hardware, nor does one without the state of
  the firmware.
- A record of a development TEE is one by its own word (a ``TEE`` line) or by any certificate of its chain, and
  then nothing makes it a hardware record. A hardware record has a chain that is proved to a given root, free of the mark.

Contract lines are hashes over the *exact strings* of the sections (:mod:`casemate.contract.document`): the token
where the section is sealed. So who holds the contract, sealed as it is, can compare without any key.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from casemate.attestation import record as records
from casemate.attestation.record import RecordError
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from casemate.certificates.chain import Chain
    from casemate.secureexec.attestation import Attested
    from casemate.secureexec.header import Header

LARGEST_SIGNATURE = 1 << 10

MEANINGS = {
    "signature": "The record is the one that the image signed, unchanged",
    "chain": "The signing key belongs to this image: certificates up to a root that you trust",
    "revocation": "The attestation certificate was not withdrawn",
    "measurement": "The ultravisor of a machine says: this image runs there, and this record is that machine's",
    "encryption": "The record was sealed for the auditor",
    records.TEE: "What protects the machine from whoever owns the host",
    "version": "The version of the image",
    records.MACHINE: "The machine that it ran on",
    records.IMAGE_AGE: "How old the image was when it started",
    records.CUID: "The ultravisor's identifier of this configuration",
    records.HOST_KEY: "The host key that the image was opened with",
    records.HOST_KEY_VALID: "Until when the host key document is valid",
    records.FIRMWARE: "The state of the ultravisor's firmware",
    records.ROOT: "The root file system archive",
    records.BASE: "The boot image: kernel, command line, initrd",
    records.SBOM: "The list of all packages in the image",
    records.CIDATA: "The whole volume that brought the contract",
    records.META_DATA: "meta-data of that volume: the machine's name",
    records.USER_DATA: "user-data of that volume: the contract as delivered",
    records.VENDOR_DATA: "vendor-data of that volume; not obeyed inside",
    records.WORKLOAD: "The workload section: what runs",
    records.ENV: "The env section: where it runs, and to whom it logs",
    records.AUDITOR_KEY: "The auditor's public key: who may read the record",
}
GROUPS = {
    "trust": ("signature", "chain", "revocation", "measurement", "encryption", records.TEE),
    "image": ("version", records.ROOT, records.BASE, records.SBOM, records.IMAGE_AGE),
    "machine": (records.MACHINE, records.CUID, records.HOST_KEY, records.HOST_KEY_VALID, records.FIRMWARE),
    "cidata": (records.CIDATA, records.META_DATA, records.USER_DATA, records.VENDOR_DATA),
    "contract": (records.WORKLOAD, records.ENV, records.AUDITOR_KEY),
}
"""Which rows belong together; every other row belongs to ``other``."""
TITLES = {
    **{"trust": "Who says so", "image": "The image", "machine": "The machine"},
    **{"cidata": "The delivered volume", "contract": "The contract", "other": "Other lines"},
}
_FACTS = (records.MACHINE, records.IMAGE_AGE, records.CUID, records.HOST_KEY, records.HOST_KEY_VALID)
_OPTIONAL = (records.AUDITOR_KEY,)
_NOT_UNDERSTOOD = "signed, but not a line that is understood"
_MEASURED = "it holds for the request of this key and for the image, and carries the hash of this record"
DEVELOPMENT, HARDWARE, UNKNOWN_TEE = "DEVELOPMENT TEE", "hardware TEE", "not known"


class Outcome(StrEnum):
    """The verdict on one line."""

    PROVED = "proved"
    REFUTED = "refuted"
    NOT_PROVED = "not proved"
    MISSING = "missing"
    UNKNOWN = "unknown line"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the verdict. ``asked``: the whole verdict holds only where this row is proved."""

    name: str
    meaning: str
    value: str
    outcome: Outcome
    why: str
    asked: bool
    group: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification found. ``version`` is empty where the record was not read."""

    version: str
    tee: str
    rows: tuple[Row, ...]
    chain: Chain | None
    time: datetime.datetime

    @property
    def holds(self) -> bool:
        """Whether everything that was asked for is proved."""
        return all(row.outcome is Outcome.PROVED for row in self.rows if row.asked)

    @property
    def development(self) -> bool:
        """Whether this is a record of a development TEE, which proves nothing against the host's owner."""
        return self.tee == DEVELOPMENT

    def count(self, outcome: Outcome) -> int:
        """How many rows have an outcome."""
        return sum(row.outcome is outcome for row in self.rows)

    def summary(self) -> str:
        """The verdict in one sentence."""
        failed = [row.name for row in self.rows if row.asked and row.outcome is not Outcome.PROVED]
        if failed:
            return f"NOT PROVED: {', '.join(failed)}"
        where = ", for a DEVELOPMENT TEE: no protection from whoever owns the host" if self.development else ""
        return f"PROVED: everything that was asked for{where}"

    def as_dict(self) -> dict[str, Any]:
        """The verdict as plain values, for JSON (``casemate-verdict/1``)."""
        return {
            **{"format": "casemate-verdict/1", "holds": self.holds, "summary": self.summary()},
            **{"version": self.version, "tee": self.tee, "development": self.development},
            **{"time": self.time.isoformat()},
            "rows": [
                {
                    **{"name": row.name, "group": row.group, "meaning": row.meaning, "value": row.value},
                    **{"verdict": row.outcome.value, "why": row.why, "asked": row.asked},
                }
                for row in self.rows
            ],
            "chain": self.chain.as_dict() if self.chain else None,
        }


@dataclass(frozen=True, slots=True)
class Measurement:
    """What an ultravisor said (:mod:`casemate.secureexec.attestation`), and what it is verified with.

    ``answer``: the file. ``key``: that of the request. ``header``: of the image, from whom one trusts for it.
    """

    answer: bytes
    key: bytes = field(repr=False)
    header: Header


@dataclass(frozen=True, slots=True)
class _Expected:
    """What something that was given says about a line. ``firm``: another value refutes the line."""

    value: str
    source: str
    firm: bool = True


def verify(
    record: bytes,
    signature: bytes,
    certificate: bytes,
    *,
    time: datetime.datetime,
    issuers: Sequence[bytes] = (),
    untrusted: Sequence[bytes] = (),
    crls: Sequence[bytes] = (),
    reference: bytes | None = None,
    contract: bytes | None = None,
    volume: bytes | None = None,
    files: Mapping[str, bytes] | None = None,
    key: RSAPrivateKey | None = None,
    measurement: Measurement | None = None,
    require_hardware: bool = False,
) -> Verdict:
    """Verify a record (its text, or the token of it that is sealed for the auditor) and its raw signature.

    ``certificate``: the attestation certificate, or a public key (then there is no chain). ``issuers``, ``untrusted``,
    ``crls``: as in :func:`casemate.certificates.chain.verify_chain`. ``reference``: JSON. ``contract``: the contract as
    delivered. ``volume``: the whole cidata volume; ``files``: single files of it by name (``meta-data``). ``key``: the
    auditor's private key. ``measurement``: of the machine that must have signed this record. ``time`` has a time zone.

    Raises :class:`~casemate.errors.CasemateError` where an input can't be read, or the record can't be opened.
    """
    from casemate.contract.keys import load_public_key

    text, sealed = open_record(record, key)
    certificate = _alone(certificate)
    public = load_public_key(certificate)
    chain, marked = _chain(certificate, issuers, untrusted, crls, time)
    expected = _expected(reference, contract, volume, files or {})

    signed = True
    try:
        records.verify_signature(text, signature, public)
    except RecordError:
        signed = False
    parsed = records.parse(text) if signed else None
    said, unknown = _lines(parsed) if parsed else ({}, [])
    attested, why_not = _measured(measurement, text if signed else None)
    if attested is not None:
        expected |= _expected_of_machine(attested)
    tee = _tee(chain, marked, parsed)
    if (
        measurement is not None
        and tee == HARDWARE
        and not (attested and attested.firmware and not attested.development)
    ):
        tee = DEVELOPMENT if attested and attested.development else UNKNOWN_TEE

    def row(name: str, outcome: Outcome, why: str, asked: bool, value: str = "") -> Row:
        group = next((group for group, names in GROUPS.items() if name in names), "other")
        return Row(name, MEANINGS.get(name, ""), value, outcome, why, asked, group)

    rows = [
        row("signature", Outcome.PROVED, "it holds under the key of the attestation certificate", True)
        if signed
        else row(
            "signature",
            Outcome.REFUTED,
            "the record was changed, or another image's key signed it; it was not read",
            True,
        ),
        *_chain_rows(row, chain, bool(crls)),
        *_tee_row(row, tee, parsed.facts.get(records.TEE, "") if parsed else "", require_hardware),
    ]
    if measurement is not None:
        outcome = Outcome.NOT_PROVED if not signed else Outcome.PROVED if attested else Outcome.REFUTED
        rows.append(row("measurement", outcome, why_not or _MEASURED, True))
    if sealed:
        rows.append(row("encryption", Outcome.PROVED, sealed, False))
    trusted = signed and (chain is None or chain.proved)
    known = [name for names in GROUPS.values() for name in names if name not in GROUPS["trust"]]
    for name in dict.fromkeys((*said, *known, *expected)):
        wanted = expected.get(name, [])
        if name not in said and (name in _OPTIONAL or parsed is None) and not any(one.value for one in wanted):
            continue  # nothing has it
        outcome, why, asked = _compare(said.get(name), wanted, parsed is not None, trusted, name in MEANINGS)
        rows.append(row(name, outcome, why, asked, said.get(name, "")))
    for line in unknown:
        rows.append(Row(line, "", "", Outcome.UNKNOWN, _NOT_UNDERSTOOD, False, "other"))
    places = [name for names in GROUPS.values() for name in names]
    rows.sort(key=lambda one: places.index(one.name) if one.group != "other" else len(places))
    return Verdict(parsed.version if parsed else "", tee, tuple(rows), chain, time)


def _measured(measurement: Measurement | None, text: bytes | None) -> tuple[Attested | None, str]:
    """Return what a measurement says that holds and is of the machine that signed this text, or why it is not."""
    from casemate.attestation.machine import require_same_machine
    from casemate.secureexec import attestation

    if measurement is None:
        return None, ""
    if text is None:
        return None, "not looked at: the record's signature does not hold"
    try:
        answer = attestation.unpack(measurement.answer)
        if not attestation.is_answered(answer):
            raise attestation.AttestationError("this is a request without an answer")
        attested = attestation.verify(answer, measurement.key, measurement.header)
        require_same_machine(text, attested)
    except CasemateError as error:
        return None, error.cause
    return attested, ""


def _expected_of_machine(attested: Attested) -> dict[str, list[_Expected]]:
    found = {records.CUID: [_Expected(f"0x{attested.cuid.hex()}", "the ultravisor")]}
    if attested.firmware:
        found[records.FIRMWARE] = [_Expected(hashlib.sha256(attested.firmware).hexdigest(), "the ultravisor")]
    return found


def _lines(parsed: records.Record) -> tuple[dict[str, str], list[str]]:
    """Return what each line says by its name, and the lines that are not understood.

    A name means something only in the form that it has in a record: no other line can stand in for a hash, or take the
    name of a row of ours.
    """
    said, unknown = {"version": parsed.version}, list(parsed.unknown)
    for name, value in parsed.facts.items():
        if name in _FACTS:
            said[name] = value
        elif name != records.TEE:
            unknown.append(next(line for line in parsed.lines[1:] if line.startswith(f"{name}:")))
    for name, value in parsed.hashes.items():
        if name in (*said, *_FACTS, *GROUPS["trust"]):
            unknown.append(f"{value} {name}")
        else:
            said[name] = value
    return said, unknown


def open_record(record: bytes, key: RSAPrivateKey | None) -> tuple[bytes, str]:
    """Return the text of a record, and how it was opened (empty for one that was not sealed).

    Raises :class:`~casemate.contract.errors.TokenError` where the key is another's, :class:`RecordError` without one.
    """
    from casemate.contract.token import LARGEST_TOKEN, is_token, open_token

    start = record[:64].decode("latin-1")
    if not is_token(start):
        return record, ""
    if key is None:
        raise RecordError("the record is sealed for an auditor", "give the auditor's private key (--key)")
    opened = open_token(record[: LARGEST_TOKEN + 1].decode("latin-1"), key)
    weak = "; it was sealed under a short password, so others may have read it" if opened.short_password else ""
    return opened.plain, f"it opened with the auditor's private key{weak}"


def _alone(certificate: bytes) -> bytes:
    """Return the certificate or key by itself, so that the key and the chain can't be taken from two different ones.

    Who makes up the file may be who forges the record: a second certificate, or one that only one parser sees, is refused
    or gone.
    """
    from casemate.certificates.chain import certificates_of
    from casemate.certificates.errors import CertificateError
    from casemate.contract.keys import first_block, kinds

    if not (kinds(certificate) or ["CERTIFICATE"])[0].endswith("CERTIFICATE"):
        return first_block(certificate)
    first, *more = certificates_of(certificate)
    if more:
        raise CertificateError(
            "more than one certificate", "give the one in question alone, its issuers as authorities (--ca)"
        )
    return first


def _chain(
    certificate: bytes,
    issuers: Sequence[bytes],
    untrusted: Sequence[bytes],
    crls: Sequence[bytes],
    time: datetime.datetime,
) -> tuple[Chain | None, bool]:
    """Return the chain (``None`` without issuers), and whether the certificate itself is one for development."""
    from casemate.certificates.chain import has_development_mark, verify_chain
    from casemate.contract.keys import kinds

    bare = "CERTIFICATE" not in (kinds(certificate) or [""])[0]
    if bare and (issuers or crls):
        raise RecordError("a public key has no chain", "give the attestation certificate, not its key alone")
    if crls and not issuers:
        raise RecordError("revocation lists, and no authority to check them with", "give the authorities too (--ca)")
    if not issuers:
        return None, not bare and has_development_mark(certificate)
    chain = verify_chain(certificate, issuers, crls, time=time, untrusted=untrusted)
    return chain, chain.development


def _chain_rows(row: Any, chain: Chain | None, lists: bool) -> list[Row]:
    if chain is None:
        return [row("chain", Outcome.NOT_PROVED, "no authority was given: whose key this is was not checked", False)]
    root = chain.links[-1]
    if chain.proved:
        why = f"up to «{root.name}», which you gave as root: SHA-256 {root.fingerprint}"
        if chain.links[0].how == "platform document":
            why += "; the first link is a platform certificate document under an issuer that you gave"
        rows = [row("chain", Outcome.PROVED, why, True, chain.links[0].name)]
    else:
        why = "; ".join(problem.cause for problem in chain.problems)
        rows = [row("chain", Outcome.REFUTED, why, True, chain.links[0].name)]
    said = chain.links[0].revocation
    if said == "revoked":
        rows.append(row("revocation", Outcome.REFUTED, "it is on its issuer's revocation list", True))
    elif said == "not revoked":
        rows.append(row("revocation", Outcome.PROVED, "it is not on its issuer's revocation list, valid now", True))
    else:
        why = "no valid list of its issuer" if lists else "no revocation list was given"
        rows.append(row("revocation", Outcome.NOT_PROVED, why, lists))
    return rows


def _tee(chain: Chain | None, marked: bool, parsed: records.Record | None) -> str:
    facts = parsed.facts if parsed else {}
    if marked or "DEVELOPMENT" in facts.get(records.TEE, "").upper():
        return DEVELOPMENT
    machine = facts.get(records.MACHINE, "").replace("/", "").replace("none", "").strip()
    if chain is not None and chain.proved and records.TEE not in facts and machine:
        return HARDWARE
    return UNKNOWN_TEE


def _tee_row(row: Any, tee: str, said: str, required: bool) -> list[Row]:
    if tee == DEVELOPMENT:
        why = "DEVELOPMENT TEE: no protection from whoever owns the host; never a hardware record"
        return [row(records.TEE, Outcome.REFUTED if required else Outcome.NOT_PROVED, why, required, said)]
    if tee == HARDWARE:
        why = "the record names a machine, nothing marks it as development, and the root that you gave vouches for it"
        return [row(records.TEE, Outcome.PROVED, why, required, said)]
    why = "neither marked as development nor shown to be hardware"
    return [row(records.TEE, Outcome.NOT_PROVED, why, required, said)]


def _compare(
    said: str | None, expected: list[_Expected], read: bool, trusted: bool, known: bool
) -> tuple[Outcome, str, bool]:
    """Return outcome, reason, and whether it was asked for."""
    firm = [one for one in expected if one.firm]
    if not read:
        return Outcome.NOT_PROVED, "not read: the record's signature does not hold", bool(firm)
    if said is None:
        if firm:
            return Outcome.REFUTED, f"the record has no such line; by {firm[0].source} it is {firm[0].value}", True
        return Outcome.MISSING, "the record has no such line", False
    for one in firm:
        if one.value != said:
            wanted = f"it is {one.value}" if one.value else "there is none"
            return Outcome.REFUTED, f"by {one.source} {wanted}", True
    if not expected:
        if not known:
            return Outcome.UNKNOWN, _NOT_UNDERSTOOD, False
        return Outcome.NOT_PROVED, "said by the record alone; nothing was given to compare it with", False
    equal = [one for one in expected if one.value == said]
    if not equal:
        return Outcome.NOT_PROVED, f"{expected[0].source} is another file; its sections are compared below", False
    sources = " and ".join(dict.fromkeys(one.source for one in equal))
    if not trusted:
        return Outcome.NOT_PROVED, f"the same as {sources}, but the chain of the signing key does not hold", bool(firm)
    return Outcome.PROVED, f"the same as {sources}", True


def _expected(
    reference: bytes | None, contract: bytes | None, volume: bytes | None, files: Mapping[str, bytes]
) -> dict[str, list[_Expected]]:
    """Return what each thing that was given says about the lines."""
    from casemate.attestation.reference import parse as parse_reference

    found: dict[str, list[_Expected]] = {}

    def expect(name: str, value: str | bytes, source: str, firm: bool = True) -> None:
        text = hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value
        found.setdefault(name, []).append(_Expected(text, source, firm))

    if reference is not None:
        values = parse_reference(reference)
        if values.version:
            expect("version", values.version, "the reference values")
        for name, value in values.values.items():
            expect(name, value, "the reference values")
    delivered: bytes | None = None
    if volume is not None:
        from casemate.cidata import read_volume

        held = {"meta-data": b"", "vendor-data": b"", **read_volume(volume)}
        expect(records.CIDATA, volume, "the cidata volume")
        for name in ("meta-data", "user-data", "vendor-data"):
            if name in held:
                expect(f"cidata/{name}", held[name], "the cidata volume")
        delivered = held.get("user-data")
    for name, content in files.items():
        expect(f"cidata/{name}", content, f"the file {name}")
    if contract is not None:
        expect(records.USER_DATA, contract, "the contract", firm=False)
        _expect_contract(expect, contract, "the contract")
    elif delivered is not None:
        _expect_contract(expect, delivered, "the contract on the cidata volume")
    return found


def _expect_contract(expect: Any, data: bytes, source: str) -> None:
    from casemate.contract.document import parse_contract

    contract = parse_contract(data)
    expect(records.WORKLOAD, contract.workload.encode(), source)
    expect(records.ENV, contract.env.encode(), source)
    key = contract.attestation_public_key
    expect(records.AUDITOR_KEY, "" if key is None else key.encode(), source)
