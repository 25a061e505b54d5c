"""The search of raw disks finds what stands there, wherever it stands: else its silence would prove nothing."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.demo.search import CHUNK, Found, forms, search

SECRET = b"a seed that nobody may see"


def planted(path: Path, offset: int, content: bytes = SECRET, size: int = 3 * CHUNK) -> Path:
    """A sparse file with something at one place."""
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(offset)
        file.write(content)
    return path


@pytest.mark.parametrize(
    "offset", [0, 1, CHUNK - 1, CHUNK - len(SECRET), CHUNK - 7, CHUNK, 2 * CHUNK - 13, 3 * CHUNK - len(SECRET)]
)
@pytest.mark.parametrize("filled", [False, True])
def test_a_planted_text_is_found_across_every_border(tmp_path: Path, offset: int, filled: bool) -> None:
    path = planted(tmp_path / "disk", offset)
    if filled:  # no holes: the borders are those of the pieces
        content = bytearray(b"x" * 3 * CHUNK)
        content[offset : offset + len(SECRET)] = SECRET
        path.write_bytes(content)
    assert search([path], {"seed": SECRET}) == [Found(path, "seed", offset)]


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    path = planted(tmp_path / "disk", CHUNK, SECRET[:-1] + b"!")
    assert search([path], {"seed": SECRET}) == []


def test_holes_are_not_read_and_all_that_is_read_is_counted(tmp_path: Path) -> None:
    path = planted(tmp_path / "disk", 1 << 30, size=1 << 40)
    told: list[tuple[int, int]] = []
    assert [found.offset for found in search([path], {"seed": SECRET}, lambda *done: told.append(done))] == [1 << 30]
    assert told[-1][0] == told[-1][1] < 1 << 20


def test_each_secret_and_file_is_told_by_name(tmp_path: Path) -> None:
    one, two = planted(tmp_path / "one", 5), planted(tmp_path / "two", 9, b"the password")
    found = search([one, two], {"seed": SECRET, "password": b"the password", "other": b"not there"})
    assert {(each.path, each.name) for each in found} == {(one, "seed"), (two, "password")}


@given(secret=st.binary(min_size=5, max_size=40), before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_a_secret_inside_of_something_encoded_is_found(secret: bytes, before: bytes, after: bytes) -> None:
    whole = before + secret + after
    assert any(form in base64.b64encode(whole) for form in forms(secret)[3:])
    assert any(form in whole.hex().encode() for form in forms(secret))


def test_a_secret_too_short_to_mean_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too short"):
        search([planted(tmp_path / "disk", 0)], {"x": b"abcd"})
