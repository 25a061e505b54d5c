"""``casemate doctor``: what it finds on the machine that runs the tests, and what it says where something is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate import doctor
from program import Result


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A search path with nothing in it but what packages are asked with."""
    (tmp_path / "dpkg-query").symlink_to(str(shutil.which("dpkg-query")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_PATHS", ())
    return tmp_path


def test_a_missing_program_is_told_with_its_package_and_one_command(bare: Path) -> None:
    findings = doctor.examine(["machine"])
    assert [(row.name, row.ok) for row in findings if row.group] == [("qemu-system-x86_64", False)]
    assert doctor.missing(findings) == ["qemu-system-x86"]
    assert not doctor.healthy(findings)
    assert doctor.command(["qemu-system-x86"])[-1] == "qemu-system-x86"
    assert "apt-get" in doctor.command(["x"])


def test_what_is_there_is_not_asked_for(bare: Path) -> None:
    (bare / "qemu-system-x86_64").write_text("#!/bin/sh\n")
    (bare / "qemu-system-x86_64").chmod(0o755)
    (bare / "psql").touch()  # no program: it can't be run
    findings = doctor.examine(["demo", "machine"])
    missing = doctor.missing(findings)
    assert "qemu-system-x86" not in missing
    assert {"skopeo", "postgresql-client"} <= set(missing)


def test_only_the_asked_groups_are_looked_at(bare: Path) -> None:
    assert {row.group for row in doctor.examine(["image"])} == {"", "image"}
    assert {row.group for row in doctor.examine()} == {"", *doctor.USUAL}


def test_programs_of_ibm_z_need_an_emulator_on_any_other_machine(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert doctor.missing(doctor.examine(["s390x"])) == ["qemu-system-misc", "qemu-user-static"]
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    assert doctor.missing(doctor.examine(["s390x"])) == ["qemu-system-misc"]


def test_every_need_belongs_to_a_group_and_a_daemon_to_a_need() -> None:
    assert {need.group for need in doctor.NEEDS} <= set(doctor.GROUPS)
    assert set(doctor.DAEMONS) <= {need.package for need in doctor.NEEDS}


def test_too_little_disk_is_told_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "not/yet/there"))
    monkeypatch.setattr(doctor, "DISK", 1 << 62)
    found = {row.name: row for row in doctor.examine(["image"])}
    assert found["disk"].ok is False
    assert str(tmp_path) in found["disk"].cure


def test_the_program_prints_json_and_its_exit_code_agrees(run: Callable[..., Result]) -> None:
    result = run("doctor", "--json")
    said = json.loads(result.out)
    assert result.code == (0 if said["ok"] else 1)
    assert {"Python", "disk", "memory", "mmdebstrap", "psql"} <= {row["name"] for row in said["findings"]}
    assert bool(said["missing"]) == bool(said["command"])


def test_the_program_says_what_to_type(run: Callable[..., Result], bare: Path) -> None:
    result = run("doctor", "--for", "machine")
    assert result.code == 1
    assert "apt-get install --yes --no-install-recommends qemu-system-x86\n" in result.out.decode()
