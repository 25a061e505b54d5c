"""What the bootloader decides; what it does is tried in real machines (``tests/machine``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.guest import bootloader
from casemate.guest.report import Stop


@pytest.mark.parametrize(
    ("meta_data", "name"),
    [
        (b"local-hostname: db-1\n", "db-1"),
        (b'instance-id: x\nlocal-hostname: "quoted"\n', "quoted"),
        (b"", "casemate"),
        (b"local-hostname: -bad\n", "casemate"),
        (b"local-hostname: two words\n", "casemate"),
        (b"local-hostname: " + b"a" * 64, "casemate"),
        (b"local-hostname: a;reboot\n", "casemate"),
        (b"\xff\xfe local-hostname", "casemate"),
    ],
)
def test_only_a_host_name_becomes_the_host_name(meta_data: bytes, name: str) -> None:
    assert bootloader.hostname(meta_data) == name


def test_keys_are_overwritten_and_gone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "contract.pem").write_bytes(b"very secret")
    with (keys / "contract.pem").open("rb") as still_open:
        bootloader.destroy_keys(keys)
        assert still_open.read() == bytes(11)
    assert not keys.exists()


def test_what_is_handed_over_is_roots_alone(tmp_path: Path) -> None:
    opened = bootloader.Opened({"workload": "W", "env": "E"}, {"workload": b"w", "env": b"e"}, "sig", 0)
    bootloader.hand_over(opened, tmp_path / "run")
    contract = tmp_path / "run/contract"
    assert {path.name: path.read_bytes() for path in contract.iterdir()} == {
        "workload": b"w",
        "env": b"e",
        "sealed-workload": b"W",
        "sealed-env": b"E",
        "envWorkloadSignature": b"sig",
    }
    assert contract.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in contract.iterdir())


def test_what_is_no_contract_stops_the_machine() -> None:
    with pytest.raises(Stop) as stop:
        bootloader.open_contract(b"workload: only\n", b"")
    assert stop.value.id == "HPL11001E"
