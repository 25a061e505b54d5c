"""Files of reference values: strict, since who is misled here takes another image for the right one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attestation_kit import reference, sha256
from hypothesis import given
from hypothesis import strategies as st

from casemate.attestation.reference import ReferenceValuesError, parse

GOOD = json.loads(reference())


def test_reference_values_read() -> None:
    found = parse(reference())
    assert (found.version, found.arch, found.values["root.tar.gz"]) == ("25.11.0", "s390x", sha256(b"root"))


def test_version_and_architecture_may_be_left_out() -> None:
    found = parse(json.dumps({"format": GOOD["format"], "values": GOOD["values"]}).encode())
    assert (found.version, found.arch) == ("", "")


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "casemate-reference-values/2"},
        {"format": None},
        {"values": {}},
        {"values": []},
        {"values": {"root.tar.gz": sha256(b"").upper()}},
        {"values": {"root.tar.gz": sha256(b"")[1:]}},
        {"values": {"root.tar.gz": sha256(b"") + "\n"}},
        {"values": {"root.tar.gz": None}},
        {"values": {"two words": sha256(b"")}},
        {"values": {"root.tar.gz\n": sha256(b"")}},
        {"values": {f"line{number}": sha256(b"") for number in range(65)}},
        {"version": 25},
        {"version": "2" * 40},
        {"arch": ["s390x"]},
    ],
)
def test_what_is_no_reference_value_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ReferenceValuesError) as error:
        parse(json.dumps({**GOOD, **changed}).encode())
    assert error.value.cure and error.value.id == "REFERENCE-VALUES"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 60_000,
        b" " * (65 << 10),
        reference().replace(b'"sbom"', b'"root.tar.gz"'),
        reference()[:-1] + b', "version": "26"}',
    ],
)
def test_what_is_not_json_or_says_something_twice_is_refused(data: bytes) -> None:
    with pytest.raises(ReferenceValuesError):
        parse(data)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_bytes_are_reference_values_or_an_error(data: bytes) -> None:
    with pytest.raises(ReferenceValuesError):
        parse(data)
