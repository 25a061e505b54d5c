"""The log of the keys: what was written stays, and whoever changes it is noticed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.build import keylog
from casemate.build.keylog import KeyLogError, parse


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for n in range(4):
        keylog.append(tmp_path / "log", "list", {"issuer": "root", "number": n})
    return tmp_path / "log"


def test_entries_come_back_as_they_were_written(path: Path) -> None:
    entries = parse(path.read_bytes())
    assert [(one.n, one.action, one.facts) for one in entries] == [
        (n + 1, "list", {"issuer": "root", "number": n}) for n in range(4)
    ]


@pytest.mark.parametrize("attack", ["change", "remove", "swap", "repeat", "insert", "spaces", "first"])
def test_a_line_that_was_changed_moved_or_taken_out_is_noticed(path: Path, attack: str) -> None:
    one, two, three, four = path.read_bytes().splitlines(keepends=True)
    tampered = {
        "change": [one, two.replace(b'"number":1', b'"number":9'), three, four],
        "remove": [one, three, four],
        "swap": [one, three, two, four],
        "repeat": [one, two, two, three, four],
        "insert": [one, two, two.replace(b'"n":2', b'"n":3'), three, four],
        "spaces": [one, two.replace(b'"n":2', b'"n": 2'), three, four],
        "first": [two, three, four],
    }[attack]
    path.write_bytes(b"".join(tampered))
    with pytest.raises(KeyLogError):
        parse(path.read_bytes())
    with pytest.raises(KeyLogError):
        keylog.append(path, "list", {})
    assert path.read_bytes() == b"".join(tampered)


@pytest.mark.parametrize("end", [b'"n": 4', b'"n":4.0', b'"n":true', b'"m":[],"n":4', b'"n":4,"n":4'])
def test_a_last_line_of_another_form_is_refused(path: Path, end: bytes) -> None:
    with pytest.raises(KeyLogError):
        parse(path.read_bytes().replace(b'"n":4', end))


def test_an_end_that_was_cut_off_is_noticed_by_who_knows_the_head(path: Path) -> None:
    head = parse(path.read_bytes())[-1].digest
    assert parse(path.read_bytes(), head)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert len(parse(path.read_bytes())) == 3
    with pytest.raises(KeyLogError, match="cut off"):
        parse(path.read_bytes(), head)


def test_a_line_torn_by_a_power_cut_gives_way_to_the_next(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"action":"list","iss')
    with pytest.raises(KeyLogError, match="not whole"):
        parse(path.read_bytes())
    keylog.append(path, "list", {"number": 4})
    assert path.read_bytes().startswith(whole) and len(parse(path.read_bytes())) == 5


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(KeyLogError):
        parse(data)
