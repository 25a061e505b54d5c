"""Authenticated volumes, on the guest's kernel: nothing that was changed is read, no cut of the power costs what was synced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lab import run_in_lab, script_of

pytestmark = [pytest.mark.machines, pytest.mark.long]

MIB = 1 << 20


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("lab")
    disks = [directory / f"{name}.img" for name in "bcdefg"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(1 << 30)
    said = run_in_lab(script_of("volume_steps.py", "authenticated_scenario.py"), disks, directory)
    print(said)
    for disk in disks:
        Path(disk).unlink()
    found = [json.loads(line[5:]) for line in said.splitlines() if line.startswith("FACT ")]
    assert found and found[-1] == {"what": "all"}, said
    return found


def fact(facts: list[dict[str, Any]], what: str) -> dict[str, Any]:
    (found,) = [each for each in facts if each["what"] == what]
    return found


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_file_systems_are_made_rolled_and_grown_and_read_nothing_that_they_did_not_write(
    facts: list[dict[str, Any]], filesystem: str
) -> None:
    first, rolled = fact(facts, f"first {filesystem}"), fact(facts, f"rolled {filesystem}")
    assert (first["make"], first["rolled"]) == (True, False)
    assert (rolled["make"], rolled["rolled"], rolled["kept"]) == (False, filesystem == "ext4", True)
    assert rolled["size"] > first["size"] + 300 * MIB
    assert fact(facts, "first watched")["watched"] == fact(facts, "rolled watched")["watched"] == []


def test_each_commit_of_btrfs_has_a_larger_generation_and_the_kernel_and_the_disk_agree(
    facts: list[dict[str, Any]],
) -> None:
    first, rolled = fact(facts, "first generations"), fact(facts, "rolled generations")
    numbers = [first["before"], first["after"], rolled["before"], rolled["after"]]
    assert all(kernel == disk for kernel, disk in numbers)
    assert numbers == sorted(numbers) and len({kernel for kernel, _ in numbers}) == 4


def test_no_table_of_the_kernel_shows_a_key(facts: list[dict[str, Any]]) -> None:
    found = [each for each in facts if each["what"] == "tables"][-1]
    assert found["tables"]["data-e"] == "crypt" and found["tables"]["data-e.integrity"] == "integrity"
    assert ":96:logon:casemate:e " in found["upper"]


@pytest.mark.parametrize("what", ["a bit turned", "a bit of the tag turned", "swapped with their tags"])
def test_a_sector_that_was_changed_or_moved_is_not_read_and_stops_the_machine(
    facts: list[dict[str, Any]], what: str
) -> None:
    before, found = fact(facts, "as it was"), fact(facts, what)
    assert before["one"] == "oneoneoneoneoneo" and before["watched"] == []
    assert found["one"] in ("Input/output error", "Invalid or incomplete multibyte or wide character")
    assert found["watched"][0] == "HPL07021E" and "volume data, at /mnt/data: sector " in found["watched"][1]


def test_a_sector_that_is_put_back_with_its_tag_is_read_as_the_documents_say(facts: list[dict[str, Any]]) -> None:
    """What tags can't do: the threat model says so, and here it is seen."""
    assert fact(facts, "written anew") == {
        "what": "written anew",
        "one": "newnewnewnewnewn",
        "watched": [],
        "same": True,
    }
    assert fact(facts, "an older state of the sector")["one"] == "oneoneoneoneoneo"


def test_the_check_of_the_disks_knows_both_devices(facts: list[dict[str, Any]]) -> None:
    assert fact(facts, "check: as it was")["slots"] == 1
    for what in ("plain", "straight on the disk"):
        found = fact(facts, f"check: {what}")
        assert found["id"] == "HPL13010E" and "is not encrypted and authenticated as it was" in found["detail"]


def test_a_volume_of_the_other_kind_is_refused(facts: list[dict[str, Any]]) -> None:
    found = fact(facts, "the contract asks for none")
    assert found["id"] == "HPL07020E" and "has it with integrity, and the contract asks for none" in found["detail"]
    found = fact(facts, "the contract asks for it")
    assert found["id"] == "HPL07020E" and "has it without integrity, and the contract asks for it" in found["detail"]
    assert fact(facts, "another superblock")["id"] == "HPL07016E"
    assert fact(facts, "as before")["make"] is False


def test_a_cut_anywhere_costs_nothing_that_was_synced(facts: list[dict[str, Any]]) -> None:
    assert [each for each in facts if each["what"] == "cut"] == []
    found = fact(facts, "cuts")
    assert found["first"] == "prepared"  # nothing was written before
    marks = ["prepared", "made", *(f"{text}{n}" for n in range(4) for text in ("", "again-")), "dm-log-writes-end"]
    assert found["passed"] == marks  # the last is the kernel's own
    assert found["states"] > 20


def test_a_container_encrypts_several_devices_at_once_and_finds_them_again(facts: list[dict[str, Any]]) -> None:
    """``se-disk-encryption`` and ``se-lukspassphrase-gen``, from the root that containers are shown."""
    first, again = fact(facts, "tools 0"), fact(facts, "tools 1")
    assert first["code"] == again["code"] == 0, (first, again)
    assert first["err"].count("HPL02001I") == 2 and again["err"].count("HPL02001I") == 0
    assert first["err"].count("HPL02002I") == again["err"].count("HPL02002I") == 2
    assert "kept" not in first["out"] and "kept" in again["out"]
    assert again["err"].count("HPL07017I") == 1 and again["sizes"][0] > first["sizes"][0] + 60 * 1024
    for each in (first, again):
        assert "TWICE" not in each["out"] and "HPL02123E" in each["err"]
        assert "WRONG" not in each["out"] and "HPL02003E" in each["err"]
    assert fact(facts, "tools own")["own"] is True
