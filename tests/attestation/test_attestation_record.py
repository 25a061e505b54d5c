"""The text of a record and its signature: what reads, what does not, and that nothing else can be signed."""

from __future__ import annotations

from contextlib import suppress

import pki
import pytest
from attestation_kit import PUBLISHED, sha256, sign
from hypothesis import example, given
from hypothesis import strategies as st

from casemate.attestation import record
from casemate.attestation.record import RecordError

DIGEST = sha256(b"x")


def test_a_published_record_reads_to_the_last_line() -> None:
    parsed = record.parse(PUBLISHED)
    assert parsed.version == "25.11.0"
    assert parsed.facts == {
        "Machine Type/Plant/Serial": "9175/02/C25B8",
        "Image age": "3 days since creation.",
        "Ultravisor CUID": "0x3e0531460c9bf87a442736a5e2c2d10c",
        "Host HKD": "HKD-9175-02C25B8.crt (HKD-9175-02C25B8.crt)",
        "HKD is valid until": "Apr 1 15:03:09 2027 GMT",
    }
    assert list(parsed.hashes)[-3:] == ["contract:workload", "contract:env", "contract:attestationPublicKey"]
    assert len(parsed.hashes) == 11 and parsed.unknown == ()


def test_an_older_record_with_fewer_lines_reads() -> None:
    text = f"1.0.23\nMachine Type/Plant/Serial: 3931/02/8A018\n{DIGEST} root.tar.gz\n{DIGEST} baseimage".encode()
    parsed = record.parse(text)
    assert (parsed.version, list(parsed.facts), list(parsed.hashes)) == (
        "1.0.23",
        ["Machine Type/Plant/Serial"],
        ["root.tar.gz", "baseimage"],
    )


def test_one_newline_at_the_end_is_allowed_and_says_the_same() -> None:
    with_one, without = record.parse(PUBLISHED + b"\n"), record.parse(PUBLISHED)
    assert with_one == without


def test_lines_of_an_unknown_kind_are_kept_and_not_understood() -> None:
    odd = ("something new", DIGEST, DIGEST.upper() + " root.tar.gz", DIGEST[1:] + " root.tar.gz", "=: x")
    parsed = record.parse("\n".join(["26.1", *odd]).encode())
    assert parsed.unknown == odd
    assert parsed.facts == parsed.hashes == {}
    assert parsed.lines == ("26.1", *odd)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"", "not a version"),
        (b"\n25.11.0", "not a version"),
        (b"Image age: 3 days", "not a version"),
        (b"hyper-protect-basic.AAAA.BBBB" + b"A" * 60, "not a version"),
        (b"25.11.0\nImage age: 1\nImage age: 2", "says twice what Image age is"),
        (f"25\n{DIGEST} sbom\n{DIGEST} sbom".encode(), "says twice what sbom is"),
        (b"25.11.0\n\xff", "not text"),
        (b"25.11.0\nImage age: \x1b[2J", "can't be printed"),
        (b"25.11.0\r\nImage age: 1", "can't be printed"),
        ("25.11.0\nImage age: \u202e1".encode(), "can't be printed"),
        ("25.11.0\nImage age: 1\u2028TEE: x".encode(), "can't be printed"),
        (b"25.11.0" + b"\nx" * 256, "too many lines"),
        (b"25.11.0\n" + b"x" * (64 << 10), "too many for a record"),
    ],
)
def test_what_is_no_record_is_refused(text: bytes, cause: str) -> None:
    with pytest.raises(RecordError, match=cause) as error:
        record.parse(text)
    assert error.value.id == "RECORD"


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
@example(PUBLISHED)
def test_any_bytes_are_a_record_or_an_error_and_no_line_is_lost(text: bytes) -> None:
    try:
        parsed = record.parse(text)
    except RecordError:
        return
    assert "\n".join(parsed.lines).encode() == text.removesuffix(b"\n")
    filled = [line for line in parsed.lines[1:] if line.strip()]
    assert len(parsed.facts) + len(parsed.hashes) + len(parsed.unknown) == len(filled)
    assert all(line.isprintable() for line in parsed.lines)


@given(st.data())
def test_a_record_with_any_byte_changed_reads_differently_or_not_at_all(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(PUBLISHED) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != PUBLISHED[at]))
    changed = PUBLISHED[:at] + bytes([byte]) + PUBLISHED[at + 1 :]
    with suppress(RecordError):
        assert record.parse(changed).lines != record.parse(PUBLISHED).lines


FACTS = st.dictionaries(
    st.from_regex(r"[A-Za-z][A-Za-z0-9 /_.-]{0,30}", fullmatch=True),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    max_size=6,
)
HASHES = st.dictionaries(
    st.from_regex(r"[!-~][ -~]{0,30}", fullmatch=True), st.from_regex("[0-9a-f]{64}", fullmatch=True), max_size=6
)


@given(st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._-]{0,31}", fullmatch=True), FACTS, HASHES)
def test_what_is_built_reads_back_or_is_not_built(version: str, facts: dict[str, str], hashes: dict[str, str]) -> None:
    try:
        text = record.build(version, list(facts.items()), list(hashes.items()))
    except RecordError:
        return
    parsed = record.parse(text)
    assert (parsed.version, parsed.facts, parsed.hashes) == (version, facts, hashes)
    assert not text.endswith(b"\n")


@pytest.mark.parametrize(
    ("version", "facts", "hashes"),
    [
        ("not a version", [], []),
        ("1", [("Image age", "3 days\n" + DIGEST + " root.tar.gz")], []),
        ("1", [("a\nTEE", "x")], []),
        ("1", [], [("root.tar.gz", "short")]),
        ("1", [], [("a\nb", DIGEST)]),
        ("1", [(DIGEST + " x", "y")], []),
        ("1", [("A", "1"), ("A", "2")], []),
    ],
)
def test_no_value_can_smuggle_a_line_into_a_record(version: str, facts: list, hashes: list) -> None:
    with pytest.raises(RecordError):
        record.build(version, facts, hashes)


def test_a_signature_holds_for_its_record_and_key_alone() -> None:
    public = pki.key("attestation").public_key()
    record.verify_signature(PUBLISHED, sign(PUBLISHED), public)
    for text, signature in (
        (PUBLISHED + b"\n", sign(PUBLISHED)),
        (PUBLISHED, sign(PUBLISHED + b"\n")),
        (PUBLISHED, sign(PUBLISHED, "another image")),
        (PUBLISHED, b""),
        (PUBLISHED, bytes(256)),
        (PUBLISHED, sign(PUBLISHED) + b"\0"),
        (PUBLISHED, sign(PUBLISHED)[:-1]),
    ):
        with pytest.raises(RecordError, match="does not belong"):
            record.verify_signature(text, signature, public)


@given(st.integers(0, 2047))
def test_a_signature_with_any_bit_flipped_does_not_hold(bit: int) -> None:
    signature = bytearray(sign(PUBLISHED))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordError):
        record.verify_signature(PUBLISHED, bytes(signature), pki.key("attestation").public_key())
