"""Whatever stands on the disk: an error of ours, or the header that was there before."""

from __future__ import annotations

import contextlib
import json

import pytest
from attacks import text_of, with_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from luksvolumes import SIZE

from casemate.luks.errors import LuksError
from casemate.luks.header import luks_area_size, read_header
from casemate.luks.policy import OLDER, OURS, Expected, admitted, check

pytestmark = pytest.mark.components

RELAXED = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = (OURS, OLDER, Expected(pbkdf2_allowed=True, sector_size=None))
HEADERS = 32 << 10

leaves = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["0", "crypt", "raw", "1048576"])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def refused_or_equal(data: bytes, before: bytes) -> None:
    with contextlib.suppress(LuksError):
        luks_area_size(data)
    with contextlib.suppress(LuksError):
        assert read_header(data) == read_header(before)


def places(value: object, way: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [way]
    return [way, *(place for name, inner in value.items() for place in places(inner, (*way, name)))]


@RELAXED
@given(flips=st.lists(st.tuples(st.integers(0, HEADERS - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes(area: bytes, flips: list[tuple[int, int]]) -> None:
    data = bytearray(area)
    for at, value in flips:
        data[at] ^= value
    refused_or_equal(bytes(data), area)


def test_each_byte_of_the_binary_header_and_the_json_flipped(area: bytes) -> None:
    for at in range(4096 + len(text_of(area)) + 1):
        data = bytearray(area[:HEADERS])
        data[at] ^= 0x20
        refused_or_equal(bytes(data), area)


@RELAXED
@given(end=st.integers(0, HEADERS))
def test_cut_off_anywhere(area: bytes, end: int) -> None:
    refused_or_equal(area[:end], area)


@RELAXED
@given(text=st.binary(max_size=400) | values.map(lambda value: json.dumps(value).encode()))
def test_any_json_under_right_checksums(area: bytes, text: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(LuksError):
            admitted(with_json(area, text), SIZE, kind)


@RELAXED
@given(at=st.integers(0, 1100), piece=st.binary(max_size=6), drop=st.integers(0, 6))
def test_a_changed_piece_of_the_json_under_right_checksums(area: bytes, at: int, piece: bytes, drop: int) -> None:
    text = text_of(area)
    with contextlib.suppress(LuksError):
        check(read_header(with_json(area, text[:at] + piece + text[at + drop :])), SIZE)


@RELAXED
@given(data=st.data(), value=values)
def test_any_value_in_any_place_under_right_checksums(area: bytes, data: st.DataObject, value: object) -> None:
    metadata = json.loads(text_of(area))
    *way, last = data.draw(st.sampled_from(places(metadata)[1:]))
    inner = metadata
    for name in way:
        inner = inner[name]
    inner[last] = value
    for kind in KINDS:
        with contextlib.suppress(LuksError):
            admitted(with_json(area, json.dumps(metadata).encode()), SIZE, kind)


@RELAXED
@given(data=st.binary(max_size=9000))
def test_any_bytes(data: bytes) -> None:
    for start in (b"", b"LUKS\xba\xbe\x00\x02", b"LUKS\xba\xbe\x00\x02" + (16 << 10).to_bytes(8, "big")):
        with pytest.raises(LuksError):
            read_header(start + data)
