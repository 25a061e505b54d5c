"""The wrapped third seed in the metadata partition: strict, bounded, and whole or old after any cut."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.luks.errors import LuksError
from casemate.luks.policy import DATA_START, METADATA_START
from casemate.luks.wrappedseed import (
    AREA_SIZE,
    AREA_START,
    COPIES,
    COPY_SIZE,
    FoundSeed,
    WrappedSeed,
    _sealed,
    copy_of,
    in_order,
    read_wrapped,
)

KEY = "crn:v1:bluemix:public:hs-crypto:eu-de:a/1:22222222-aaaa:key:33333333-bbbb"
SEED = WrappedSeed("data", KEY, "eyJjaXBoZXJ0ZXh0Ijo=", 7)
NEXT = replace(SEED, wrapped="eyJuZXciOjE=", generation=8)

volumes = st.from_regex(r"[a-z_][a-z0-9_-]{0,254}", fullmatch=True)
printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=512)
seeds = st.builds(WrappedSeed, volumes, printable, printable, st.integers(1, (1 << 64) - 1))


def area(first: bytes = b"", second: bytes = b"") -> bytes:
    return first.ljust(AREA_SIZE - COPY_SIZE, b"\0") + second.ljust(COPY_SIZE, b"\0")


@given(seeds)
def test_what_was_written_is_read(seed: WrappedSeed) -> None:
    copy = copy_of(seed)
    assert len(copy) == COPY_SIZE
    assert read_wrapped(area(copy, copy)) == FoundSeed(seed, 0, True)
    assert read_wrapped(area(copy)) == FoundSeed(seed, 0, False)
    assert read_wrapped(area(b"", copy)) == FoundSeed(seed, 1, False)


def test_the_copies_lie_in_the_metadata_partition_in_the_part_that_must_be_empty_on_an_empty_disk() -> None:
    places = [METADATA_START + at for at in COPIES]
    assert min(places) == AREA_START >= METADATA_START + 512
    assert max(places) + COPY_SIZE == AREA_START + AREA_SIZE <= METADATA_START + (1 << 20) < DATA_START


def test_nothing_there_is_nothing_and_damage_is_not() -> None:
    assert read_wrapped(area()) is None
    for place in (area(b"\1"), area(b"", b"\1"), area(copy_of(SEED)[:-1] + b"x"), b"", b"x"):
        if place.strip(b"\0"):
            with pytest.raises(LuksError, match="damaged"):
                read_wrapped(place)
    assert read_wrapped(b"") is None


def test_of_two_whole_copies_the_newer_counts_and_two_of_one_age_that_differ_are_refused() -> None:
    assert read_wrapped(area(copy_of(SEED), copy_of(NEXT))) == FoundSeed(NEXT, 1, False)
    assert read_wrapped(area(copy_of(NEXT), copy_of(SEED))) == FoundSeed(NEXT, 0, False)
    with pytest.raises(LuksError, match="of one age"):
        read_wrapped(area(copy_of(SEED), copy_of(replace(NEXT, generation=SEED.generation))))


@given(st.binary(max_size=COPY_SIZE), st.binary(max_size=COPY_SIZE))
def test_any_bytes_are_read_or_refused(first: bytes, second: bytes) -> None:
    try:
        found = read_wrapped(area(first, second))
    except LuksError:
        return
    assert found is None or copy_of(found.seed) in (first, second)


@given(
    st.integers(0, 1 << 63),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.integers(0, (1 << 32) - 1),
    st.binary(max_size=2000),
)
def test_a_right_checksum_over_anything_else_is_no_wrapped_seed(
    generation: int, volume: int, key: int, wrapped: int, rest: bytes
) -> None:
    """The infrastructure can compute checksums too: lengths, alphabets and zeros are looked at after them."""
    head = struct.pack(">16sQHHI32s", b"casemate-seed-1\n", generation, volume, key, wrapped, bytes(32))
    copy = _sealed((head + rest).ljust(COPY_SIZE, b"\0"))
    try:
        found = read_wrapped(area(copy))
    except LuksError:
        return
    assert found is not None and copy_of(found.seed) == copy


@pytest.mark.parametrize("bit", [*range(0, 64 * 8, 5), 8 * 100, 8 * COPY_SIZE - 1])
def test_a_flipped_bit_costs_one_copy_and_two_cost_both(bit: int) -> None:
    whole = copy_of(SEED)
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    assert read_wrapped(area(bytes(damaged), whole)) == FoundSeed(SEED, 1, False)
    assert read_wrapped(area(whole, bytes(damaged))) == FoundSeed(SEED, 0, False)
    with pytest.raises(LuksError):
        read_wrapped(area(bytes(damaged), bytes(damaged)))


@pytest.mark.parametrize(
    "seed",
    [
        replace(SEED, volume=""),
        replace(SEED, volume="a" * 256),
        replace(SEED, volume="Data"),
        replace(SEED, volume="dät"),
        replace(SEED, key=""),
        replace(SEED, key="k" * 513),
        replace(SEED, key="a b"),
        replace(SEED, wrapped=""),
        replace(SEED, wrapped="w" * 7169),
        replace(SEED, wrapped="a\nb"),
        replace(SEED, generation=0),
        replace(SEED, generation=1 << 64),
    ],
)
def test_what_would_not_be_read_is_not_written(seed: WrappedSeed) -> None:
    with pytest.raises(LuksError):
        copy_of(seed)


@pytest.mark.parametrize("counts", [0, 1])
@pytest.mark.parametrize("other", ["same", "older", "damaged", "empty"])
def test_a_cut_leaves_the_old_or_the_new_one(counts: int, other: str) -> None:
    """Any sectors of a write may be missing; before the next begins all of them are there."""
    old, new = replace(SEED, wrapped="A" * 7000), replace(NEXT, wrapped="B" * 6000)
    beside = {"same": old, "older": replace(old, generation=6, wrapped="C" * 5000)}.get(other)
    copies = [b"", b""]
    copies[counts] = copy_of(old)
    copies[1 - counts] = copy_of(beside) if beside else {"damaged": b"\xff" * COPY_SIZE, "empty": b""}[other]
    disk = bytearray(area(*copies))
    before = read_wrapped(bytes(disk))
    assert before is not None and before.seed == old
    chance, seen = random.Random(5), []
    for offset, part in in_order(copy_of(new), before.copy):
        for share in (0.0, 0.1, 0.5, 0.9, 1.0):
            for at in range(0, COPY_SIZE, 512):
                if share == 1.0 or chance.random() < share:
                    disk[offset - AREA_START + at : offset - AREA_START + at + 512] = part[at : at + 512]
            found = read_wrapped(bytes(disk))
            assert found is not None and found.seed in (old, new)
            seen.append(found.seed.generation)
    assert set(seen) == {7, 8} and seen == sorted(seen)
    assert read_wrapped(bytes(disk)) == FoundSeed(new, 0, True)
