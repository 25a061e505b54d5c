"""The keys of a rehearsal: made where they are to be, and taken where they are there."""

from __future__ import annotations

from pathlib import Path

from casemate.build.ceremonyplan import FILE
from casemate.build.rehearsal import Ring


def test_keys_of_a_rehearsal_before_this_one_are_taken_again(tmp_path: Path) -> None:
    template = f"file:{tmp_path}/{{}}.key"
    first, second = Ring(template, {}), Ring(template, {})
    made = first.public("alice")
    assert (tmp_path / "alice.key").is_file()
    assert second.public("alice") == made == first.public("alice")
    assert second.public("bob") != made


def test_keys_without_a_place_are_of_this_program_only(tmp_path: Path) -> None:
    ring = Ring(None, {})
    assert ring.public("alice") == ring.public("alice") != ring.public("bob")
    with ring.open("alice") as (_, custody):
        assert custody == FILE
    assert not any(tmp_path.iterdir())
