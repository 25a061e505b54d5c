"""What a verification proves, what it refutes, and what it leaves open; and that no forger gets a line proved."""

from __future__ import annotations

import io

import pki
import pycdlib
import pytest
from attestation_kit import (
    CONTRACT,
    MARK,
    META,
    PUBLISHED,
    SERIAL,
    VENDOR,
    Case,
    asked,
    certificate,
    crl,
    intermediate,
    outcomes,
    reference,
    root,
    sha256,
    sign,
)
from contract_kit import craft, pad
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from casemate.attestation import record as records
from casemate.attestation.verify import GROUPS, MEANINGS, Verdict
from casemate.certificates.errors import CertificateError
from casemate.contract.errors import DocumentError, KeyFileError, TokenError
from casemate.contract.token import seal
from casemate.errors import CasemateError

CASE = Case()
LINES = PUBLISHED.split(b"\n")


def why(verdict: Verdict, name: str) -> str:
    return next(row.why for row in verdict.rows if row.name == name)


# ------------------------------------------------------------------------------------------------- all of it


def test_a_published_record_is_proved_where_everything_is_given() -> None:
    verdict = CASE.whole()
    assert verdict.holds and not verdict.development and verdict.tee == "hardware TEE"
    assert verdict.version == "25.11.0"
    assert verdict.summary() == "PROVED: everything that was asked for"
    found = outcomes(verdict)
    assert {name for name, outcome in found.items() if outcome != "proved"} == {
        *("Machine Type/Plant/Serial", "Image age", "Ultravisor CUID", "Host HKD", "HKD is valid until"),
        *("uv_firmware.state", "/dev/disk/by-label/cidata"),
    }
    assert set(found.values()) == {"proved", "not proved"}
    assert set(found) >= set(MEANINGS) - {"encryption", "measurement"}


def test_rows_stand_in_the_order_of_their_groups() -> None:
    order = [name for names in GROUPS.values() for name in names]
    names = [row.name for row in CASE.whole().rows]
    assert names == [name for name in order if name in names]


# ------------------------------------------------------------------------------------------------- a record changed


@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_record_with_a_line_changed_removed_doubled_or_moved_proves_nothing(number: int) -> None:
    line = LINES[number]
    flipped = line[:-1] + (b"0" if line[-1:] != b"0" else b"1")
    for changed in (
        [*LINES[:number], flipped, *LINES[number + 1 :]],
        [*LINES[:number], *LINES[number + 1 :]],
        [*LINES[:number], line, *LINES[number:]],
        [line, *LINES[:number], *LINES[number + 1 :]] if number else [*LINES[1:], line],
        [*LINES[:number], b"Image age: 0 days since creation.", *LINES[number:]],
    ):
        refuse(Case(b"\n".join(changed), sign(PUBLISHED)))


def refuse(case: Case) -> None:
    verdict = case.whole()
    assert not verdict.holds
    assert outcomes(verdict)["signature"] == "refuted"
    assert verdict.version == "" and verdict.tee == "not known"
    lines = [row for row in verdict.rows if row.group != "trust"]
    assert lines and all(row.outcome.value == "not proved" and row.value == "" for row in lines)


@given(st.integers(0, len(PUBLISHED) * 8 - 1))
def test_a_record_with_any_bit_flipped_proves_nothing(bit: int) -> None:
    text = bytearray(PUBLISHED)
    text[bit // 8] ^= 1 << bit % 8
    refuse(Case(bytes(text), sign(PUBLISHED)))


@pytest.mark.parametrize("text", [PUBLISHED + b"\n", PUBLISHED[:-1], b"", b"\n", PUBLISHED * 2])
def test_a_record_cut_or_continued_proves_nothing(text: bytes) -> None:
    refuse(Case(text, sign(PUBLISHED)))


def test_the_signature_of_another_record_proves_nothing() -> None:
    refuse(CASE.with_(signature=sign(PUBLISHED.replace(b"3 days", b"4 days"))))


def test_a_record_signed_by_another_images_key_proves_nothing() -> None:
    refuse(CASE.with_(signature=sign(PUBLISHED, "another image")))


@pytest.mark.parametrize("signature", [b"", b"\0" * 256, b"\0" * 512, b"x" * 9999])
def test_what_is_no_signature_proves_nothing(signature: bytes) -> None:
    refuse(CASE.with_(signature=signature))


def test_a_record_is_not_parsed_before_its_signature_holds() -> None:
    hostile = b"25.11.0\n\x1b]0;owned\x07\n\xff"
    refuse(Case(hostile, sign(PUBLISHED)))
    with pytest.raises(records.RecordError, match="not text"):
        Case(hostile).whole()


# ------------------------------------------------------------------------------------------------- what is given


def test_with_nothing_but_the_certificate_only_the_signature_is_asked_for() -> None:
    verdict = CASE.verify()
    assert asked(verdict) == {"signature": "proved"}
    assert verdict.holds and verdict.tee == "not known" and verdict.chain is None
    assert set(outcomes(verdict).values()) == {"proved", "not proved"}
    assert "whose key this is was not checked" in why(verdict, "chain")
    assert "nothing was given to compare it with" in why(verdict, "root.tar.gz")


def test_a_bare_public_key_verifies_the_signature_and_has_no_chain() -> None:
    public = pki.key("attestation").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert Case(certificate=public).verify().holds
    for given_ in ({"issuers": [root()]}, {"crls": [crl()]}):
        with pytest.raises(records.RecordError, match="public key has no chain"):
            Case(certificate=public).verify(**given_)


def test_each_thing_given_asks_for_its_lines_and_no_others() -> None:
    def more(**given_: object) -> set[str]:
        verdict = CASE.verify(**given_)
        assert verdict.holds
        return set(asked(verdict)) - {"signature"}

    sections = {"contract:workload", "contract:env", "contract:attestationPublicKey"}
    assert more(issuers=[root(), intermediate()]) == {"chain"}
    assert more(issuers=[root(), intermediate()], crls=[crl()]) == {"chain", "revocation"}
    assert more(reference=reference()) == {"version", "root.tar.gz", "baseimage", "sbom"}
    assert more(contract=CONTRACT) == {*sections, "cidata/user-data"}
    assert more(contract=CONTRACT + b"# sent on\n") == sections
    assert more(files={"meta-data": META}) == {"cidata/meta-data"}


@pytest.mark.parametrize("name", ["root.tar.gz", "baseimage", "sbom"])
def test_another_reference_value_refutes_its_line_alone(name: str) -> None:
    verdict = CASE.whole(reference=reference(**{name: sha256(b"another")}))
    assert not verdict.holds
    assert [row for row, outcome in outcomes(verdict).items() if outcome == "refuted"] == [name]
    assert sha256(b"another") in why(verdict, name)
    assert verdict.summary() == f"NOT PROVED: {name}"


def test_another_version_is_refuted() -> None:
    assert outcomes(CASE.whole(reference=reference("25.11.1")))["version"] == "refuted"


def test_a_line_that_reference_values_have_and_the_record_lacks_is_refuted() -> None:
    verdict = CASE.whole(reference=reference(firmware=sha256(b"x")))
    assert outcomes(verdict)["firmware"] == "refuted" and not verdict.holds


def test_an_older_record_with_fewer_lines_holds_and_says_what_is_missing() -> None:
    text = b"\n".join(
        line for line in LINES if b"sbom" not in line and b"uv_firmware" not in line and b"CUID" not in line
    )
    verdict = Case(text).verify(issuers=[root(), intermediate()], contract=CONTRACT)
    assert verdict.holds
    missing = {name for name, outcome in outcomes(verdict).items() if outcome == "missing"}
    assert missing == {"sbom", "uv_firmware.state", "Ultravisor CUID"}
    assert not Case(text).verify(reference=reference()).holds


@pytest.mark.parametrize(
    ("contract", "wrong"),
    [
        (CONTRACT.replace(b"AAAA", b"EEEE"), {"contract:workload"}),
        (CONTRACT.replace(b"CCCC", b"EEEE"), {"contract:env"}),
        (CONTRACT.replace(b"KEY", b"KEY2"), {"contract:attestationPublicKey"}),
        (CONTRACT.replace(b"attestationPublicKey: KEY\n", b""), {"contract:attestationPublicKey"}),
        (
            CONTRACT.replace(b"workload", b"w").replace(b"env", b"workload").replace(b"w:", b"env:"),
            {"contract:workload", "contract:env"},
        ),
    ],
)
def test_another_contract_is_refuted_by_its_section(contract: bytes, wrong: set[str]) -> None:
    verdict = CASE.whole(contract=contract)
    assert not verdict.holds
    assert {name for name, outcome in outcomes(verdict).items() if outcome == "refuted"} == wrong
    assert outcomes(verdict)["cidata/user-data"] == "not proved"


def test_a_record_without_the_auditors_key_line_is_refuted_where_the_contract_has_one() -> None:
    short = Case(b"\n".join(LINES[:-1]))
    assert outcomes(short.whole())["contract:attestationPublicKey"] == "refuted"
    without = CONTRACT.replace(b"attestationPublicKey: KEY\n", b"")
    verdict = short.whole(contract=without)
    assert verdict.holds and "contract:attestationPublicKey" not in outcomes(verdict)


def volume(**files: bytes) -> bytes:
    image = pycdlib.PyCdlib()
    image.new(vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for number, (name, content) in enumerate(files.items()):
        name = name.replace("_", "-")
        image.add_fp(io.BytesIO(content), len(content), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()


def test_a_cidata_volume_proves_itself_its_files_and_the_contract_on_it() -> None:
    disk = volume(user_data=CONTRACT, meta_data=META, vendor_data=VENDOR)
    text = PUBLISHED.replace(sha256(b"volume").encode(), sha256(disk).encode())
    verdict = Case(text).verify(volume=disk)
    assert verdict.holds
    assert {name for name, outcome in asked(verdict).items() if outcome == "proved"} == {
        *("signature", "/dev/disk/by-label/cidata", "cidata/meta-data", "cidata/user-data", "cidata/vendor-data"),
        *("contract:workload", "contract:env", "contract:attestationPublicKey"),
    }
    verdict = CASE.verify(volume=disk)
    assert [name for name, outcome in asked(verdict).items() if outcome == "refuted"] == ["/dev/disk/by-label/cidata"]
    other = volume(user_data=CONTRACT, meta_data=b"local-hostname: db-2\n")
    assert outcomes(CASE.verify(volume=other))["cidata/meta-data"] == "refuted"
    assert outcomes(CASE.verify(volume=other))["cidata/vendor-data"] == "refuted"  # none on it: as if it were empty


def test_two_sources_that_disagree_never_prove_a_line() -> None:
    disk = volume(user_data=CONTRACT, meta_data=b"another\n")
    verdict = CASE.verify(volume=disk, files={"meta-data": META})
    assert outcomes(verdict)["cidata/meta-data"] == "refuted"


@pytest.mark.parametrize("broken", [{"contract": b"a: ["}, {"contract": b"workload: x\n"}])
def test_a_contract_that_is_none_is_an_error_and_no_verdict(broken: dict[str, bytes]) -> None:
    with pytest.raises(DocumentError):
        CASE.verify(**broken)


# ------------------------------------------------------------------------------------------------- forged lines


@pytest.mark.parametrize(
    "line",
    [
        f"root.tar.gz: {sha256(b'root')}",
        f"contract:workload: {sha256(b'root')}",
        f"{sha256(b'root').upper()} root.tar.gz",
        f"{sha256(b'root')} version",
        f"{sha256(b'root')} signature",
        f"{sha256(b'root')} chain",
        f"{sha256(b'root')} TEE",
        f"{sha256(b'root')} Image age",
        "signature: proved",
        "chain: proved",
        "version: 25.11.0",
    ],
)
def test_no_line_stands_in_for_another_or_takes_the_name_of_a_verdict(line: str) -> None:
    lines = [
        one for one in LINES if not one.endswith((b" root.tar.gz", b" contract:workload")) and b"Image age" not in one
    ]
    text = b"\n".join([*lines, line.encode()])
    verdict = Case(text).whole()
    found = outcomes(verdict)
    assert found[line] == "unknown line"
    assert found["root.tar.gz"] == "refuted" and found["contract:workload"] == "refuted"
    assert [row.name for row in verdict.rows].count("signature") == 1
    assert [row.name for row in verdict.rows].count("chain") == 1
    assert found["signature"] == found["chain"] == "proved"
    assert not verdict.holds


def test_an_unknown_line_is_shown_and_not_asked_for() -> None:
    hashed = f"{sha256(b'x')} something/new"
    verdict = Case(PUBLISHED + f"\nColour: blue\nhello\n{hashed}".encode()).whole()
    found = outcomes(verdict)
    assert verdict.holds
    assert found["Colour: blue"] == found["hello"] == found["something/new"] == "unknown line"


# ------------------------------------------------------------------------------------------------- the chain


IMPOSTOR = {"public": pki.key("other").public_key(), "signer": pki.key("other"), "ca": True}
OTHER_ROOT = pki.certificate("other", "other", ca=True)
OUTDATED = pki.crl("intermediate", start=pki.NOW - 2 * pki.DAY, end=pki.NOW - pki.DAY)
BOTH = [root(), intermediate()]


@pytest.mark.parametrize(
    ("given_", "cause"),
    [
        ({"issuers": [root()]}, "its issuer CN=intermediate was not given"),
        ({"issuers": [intermediate()]}, "its issuer CN=root was not given"),
        ({"issuers": [OTHER_ROOT, intermediate()]}, "its issuer CN=root was not given"),
        (
            {"issuers": [pki.certificate("root", "root", **IMPOSTOR), intermediate()]},
            "not signed with the key of CN=root",
        ),
        ({"untrusted": BOTH, "issuers": [OTHER_ROOT]}, "not one that was given"),
        ({"issuers": BOTH, "crls": [crl(SERIAL)]}, "revoked"),
        ({"issuers": BOTH, "crls": [OUTDATED]}, "revocation list"),
        ({"issuers": BOTH, "crls": [pki.crl("intermediate", signer=pki.key("other"))]}, "revocation list"),
        ({"issuers": BOTH, "time": pki.NOW + 9999 * pki.DAY}, "expired"),
        ({"issuers": BOTH, "time": pki.NOW - 9 * pki.DAY}, "not valid before"),
    ],
)
def test_under_a_chain_that_does_not_hold_no_line_is_proved(given_: dict, cause: str) -> None:
    verdict = CASE.verify(reference=reference(), contract=CONTRACT, **given_)
    assert not verdict.holds and verdict.tee == "not known"
    assert outcomes(verdict)["chain"] == "refuted" and cause in why(verdict, "chain")
    proved = {row.name for row in verdict.rows if row.outcome.value == "proved"}
    assert proved == {"signature"}
    assert "the chain of the signing key does not hold" in why(verdict, "root.tar.gz")


def test_a_revoked_certificate_is_refuted_by_name() -> None:
    verdict = CASE.whole(crls=[crl(SERIAL)])
    assert outcomes(verdict)["revocation"] == "refuted" and "revocation" in verdict.summary()
    assert CASE.whole(crls=[crl(SERIAL + 1)]).holds


def test_revocation_is_open_without_a_list_and_asked_for_with_one() -> None:
    assert outcomes(CASE.whole(crls=[]))["revocation"] == "not proved"
    assert CASE.whole(crls=[]).holds
    of_root = pki.crl("root")
    verdict = CASE.whole(crls=[of_root])
    assert outcomes(verdict)["revocation"] == "not proved" and not verdict.holds


def test_a_revocation_list_without_authorities_is_an_error() -> None:
    with pytest.raises(records.RecordError, match="no authority to check them with"):
        CASE.verify(crls=[crl()])


def test_an_expired_certificate_is_refuted() -> None:
    old = pki.certificate("attestation", "intermediate", end=pki.NOW - pki.DAY / 2)
    verdict = Case(certificate=old).whole()
    assert not verdict.holds and "expired" in why(verdict, "chain")


def test_the_key_is_that_of_the_certificate_that_the_chain_was_verified_for() -> None:
    """A file with two certificates: parsers differ in which is first, so none may be taken for the other."""
    evil = pki.certificate("evil", "evil", ca=True)
    forged = Case(PUBLISHED.replace(sha256(b"root").encode(), sha256(b"evil").encode()))
    forged = forged.with_(signature=sign(forged.text, "evil"))
    hidden = evil.replace(b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN CERTIFICATE-----")
    public = pki.key("evil").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    spki = public.replace(b"-----BEGIN PUBLIC KEY-----\n", b"-----BEGIN PUBLIC KEY-----")
    for together in (
        *(evil + certificate(), certificate() + evil, hidden + certificate(), certificate() + hidden),
        *(public + certificate(), certificate() + public, spki + certificate()),
        hidden.replace(b"CERTIFICATE", b"X509 CERTIFICATE") + certificate(),
        evil.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE") + certificate(),
    ):
        try:
            verdict = forged.with_(certificate=together).verify(issuers=[root(), intermediate()])
        except CasemateError:
            continue
        assert not verdict.holds
        assert outcomes(verdict)["signature"] == "refuted" or outcomes(verdict)["chain"] == "refuted"


def test_more_than_one_certificate_is_refused() -> None:
    for given_ in ({}, {"issuers": [root()]}):
        with pytest.raises(CertificateError, match="more than one certificate"):
            Case(certificate=certificate() + intermediate()).verify(**given_)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_certificate_that_is_none_is_an_error_and_no_verdict(data: bytes) -> None:
    with pytest.raises((KeyFileError, CertificateError)):
        Case(certificate=data or b"\n").verify()


# ------------------------------------------------------------------------------------------------- what it ran on


def marked(where: str) -> tuple[Case, list[bytes]]:
    """A chain with the mark of a development authority at one place."""
    mark = {name: [MARK] if where == name else [] for name in ("root", "intermediate", "attestation")}
    issuers = [
        pki.certificate("root", "root", ca=True, extensions=mark["root"]),
        pki.certificate("intermediate", "root", ca=True, extensions=mark["intermediate"]),
    ]
    return Case(certificate=pki.certificate("attestation", "intermediate", extensions=mark["attestation"])), issuers


@pytest.mark.parametrize("where", ["root", "intermediate", "attestation"])
def test_a_development_mark_anywhere_in_the_chain_makes_a_development_record(where: str) -> None:
    case, issuers = marked(where)
    verdict = case.verify(issuers=issuers)
    assert verdict.development and verdict.holds and "DEVELOPMENT TEE" in verdict.summary()
    assert outcomes(verdict)["TEE"] == "not proved"
    strict = case.verify(issuers=issuers, require_hardware=True)
    assert not strict.holds and outcomes(strict)["TEE"] == "refuted"


def test_a_development_mark_counts_without_a_chain_and_under_one_that_does_not_hold() -> None:
    case, issuers = marked("attestation")
    assert case.verify().development
    assert case.verify(issuers=issuers[:1]).development
    assert case.with_(signature=b"x").verify(issuers=issuers).development


def test_a_record_is_of_a_development_tee_by_its_own_word() -> None:
    text = PUBLISHED.replace(b"25.11.0\n", b"25.11.0\nTEE: development (software)\n")
    verdict = Case(text).whole(require_hardware=True)
    assert verdict.development and not verdict.holds
    assert next(row.value for row in verdict.rows if row.name == "TEE") == "development (software)"


@pytest.mark.parametrize(
    "text",
    [
        PUBLISHED.replace(b"25.11.0\n", b"25.11.0\nTEE: real, believe me\n"),
        PUBLISHED.replace(b"9175/02/C25B8", b"none/none/none"),
        PUBLISHED.replace(b"9175/02/C25B8", b"//"),
        b"\n".join(line for line in LINES if not line.startswith(b"Machine")),
    ],
)
def test_what_names_no_machine_or_praises_itself_is_no_hardware_record(text: bytes) -> None:
    verdict = Case(text).verify(issuers=[root(), intermediate()], require_hardware=True)
    assert not verdict.holds and verdict.tee == "not known" and not verdict.development


def test_hardware_needs_a_chain_that_holds() -> None:
    assert CASE.whole(require_hardware=True).holds
    assert not CASE.verify(require_hardware=True).holds
    assert not CASE.whole(require_hardware=True, issuers=[root()]).holds


# ------------------------------------------------------------------------------------------------- sealed records


def test_a_sealed_record_opens_with_the_auditors_key_alone() -> None:
    auditor = pki.key("auditor")
    public = auditor.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for prefix in ("hyper-protect-basic", "contract-basic"):
        token = seal(PUBLISHED, public, prefix).encode()
        for text in (token, token + b"\n"):
            verdict = Case(text, sign(PUBLISHED)).whole(key=auditor)
            assert verdict.holds and outcomes(verdict)["encryption"] == "proved"
        with pytest.raises(TokenError, match="does not open"):
            Case(token, sign(PUBLISHED)).whole(key=pki.key("another auditor"))
        with pytest.raises(records.RecordError, match="sealed for an auditor"):
            Case(token, sign(PUBLISHED)).whole()


def test_the_signature_is_over_the_plain_record_not_the_sealed_one() -> None:
    auditor = pki.key("auditor")
    public = auditor.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    token = seal(PUBLISHED, public).encode()
    assert not Case(token, sign(token)).whole(key=auditor).holds
    swapped = seal(PUBLISHED.replace(b"3 days", b"2 days"), public).encode()
    assert not Case(swapped, sign(PUBLISHED)).whole(key=auditor).holds


def test_a_damaged_sealed_record_does_not_open() -> None:
    auditor = pki.key("auditor")
    public = auditor.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    token = seal(PUBLISHED, public).encode()
    for damaged in (token[:-4], token[:-8], token + token, token[:40] + b"A" + token[41:], token[:64]):
        with pytest.raises(TokenError):
            Case(damaged, sign(PUBLISHED)).whole(key=auditor)


def test_a_record_sealed_under_a_short_password_says_so() -> None:
    auditor = pki.key("auditor")
    token = craft(auditor.public_key(), b"\nrest", b"", pad(PUBLISHED)).encode()
    verdict = Case(token, sign(PUBLISHED)).whole(key=auditor)
    assert verdict.holds and "short password" in why(verdict, "encryption")


def test_a_key_for_a_record_that_is_not_sealed_does_no_harm() -> None:
    verdict = CASE.whole(key=pki.key("auditor"))
    assert verdict.holds and "encryption" not in outcomes(verdict)


# ------------------------------------------------------------------------------------------------- JSON


def test_the_verdict_as_plain_values() -> None:
    told = CASE.whole().as_dict()
    assert set(told) == {"format", "holds", "summary", "version", "tee", "development", "time", "rows", "chain"}
    assert told["format"] == "casemate-verdict/1" and told["holds"] is True
    assert all(set(row) == {"name", "group", "meaning", "value", "verdict", "why", "asked"} for row in told["rows"])
    assert told["chain"]["format"] == "casemate-chain/1"
    assert CASE.verify().as_dict()["chain"] is None
