"""What ``hpl-disk-encryption-check`` takes for a change, and how often it may run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casemate.guest.diskcheck import (
    MOST,
    WINDOW,
    Volume,
    crypt_problem,
    delay,
    direct,
    drain,
    mounted,
    root_problem,
    split_tables,
)

VOLUME = Volume("data-db", "vdd", 102 << 20, 400 << 20, "/var/volumes/db", "/mnt/data")
KEY = ":64:logon:cryptsetup:e27591fd-726f-4607-9f5f-c62707e8a76e-d0"
GOOD = f"0 819200 crypt aes-xts-plain64 {KEY} 0 252:48 208896 3 no_read_workqueue no_write_workqueue sector_size:4096"


def test_a_device_as_it_was_opened_is_none() -> None:
    assert crypt_problem({"data-db": GOOD}, VOLUME, "252:48") == ""


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("", "is not encrypted"),
        ("0 819200 linear 252:48 208896", "is not encrypted"),
        ("0 819200 linear 252:48 208896 crypt aes-xts-plain64 x", "is not encrypted"),
        (GOOD.replace("aes-xts-plain64", "cipher_null-ecb"), "is not encrypted as it was"),
        (GOOD.replace("aes-xts-plain64", "aes-cbc-plain64"), "is not encrypted as it was"),
        (GOOD.replace(KEY, "0" * 128), "is not encrypted as it was"),
        (GOOD.replace(KEY, ":32:logon:cryptsetup:x"), "is not encrypted as it was"),
        (GOOD.replace(" 0 252:48", " 8 252:48"), "is not encrypted as it was"),
        (GOOD.replace("252:48", "252:64"), "lies on another device"),
        (GOOD.replace("208896", "0"), "lies in another place"),
        (GOOD.replace("819200", "819192"), "lies in another place"),
        ("8" + GOOD, "lies in another place"),
    ],
)
def test_a_device_that_is_another_is_found(table: str, problem: str) -> None:
    assert crypt_problem({"data-db": table}, VOLUME, "252:48") == problem
    assert crypt_problem({"other": GOOD}, VOLUME, "252:48") == "is not encrypted"


def test_both_parts_of_the_root_lie_on_its_encrypted_device() -> None:
    good = {"casemate-system": "0 8 linear 253:0 0", "casemate-state": "0 8 linear 253:0 8"}
    assert root_problem(good, "253:0") == ""
    for name in good:
        for table in ("", "0 8 linear 252:0 0", "0 8 zero", "0 8 linear 253:0 0\n8 8 linear 252:0 0"):
            assert name in root_problem({**good, name: table}, "253:0")


def test_tables_are_taken_apart_by_device() -> None:
    said = "data-db: 0 8 crypt x\ncasemate-state: 0 8 linear 253:0 0\ncasemate-state: 8 8 linear 253:1 0\n"
    tables = {"data-db": "0 8 crypt x", "casemate-state": "0 8 linear 253:0 0\n8 8 linear 253:1 0"}
    assert split_tables(said) == tables
    assert split_tables("No devices found\n") == {}


def test_what_is_mounted_last_is_on_top() -> None:
    text = (
        "21 1 253:3 / /var/volumes/db rw - ext4 /dev/mapper/data-db rw\n22 21 0:44 / /var/volumes/db rw - tmpfs x rw\n"
    )
    assert mounted(text) == {"/var/volumes/db": "0:44"}


def test_of_btrfs_the_device_is_looked_at_that_lies_below() -> None:
    """It has a number of its own in ``mountinfo``: seen in a machine, which stopped for it ten seconds after its start."""
    text = "21 1 0:51 / /var/volumes/db rw shared:9 - btrfs /dev/mapper/data-db rw,space_cache=v2\n"
    assert mounted(text, {"/dev/mapper/data-db": "253:3"}.__getitem__) == {"/var/volumes/db": "253:3"}
    assert mounted(text.replace("data-db", "no-such")) == {"/var/volumes/db": ""}
    assert mounted("21 1 0:51 / /x rw - btrfs\n21 1 0:51\n\n") == {"/x": ""}


def test_three_checks_in_five_minutes_and_the_next_one_waits() -> None:
    assert (MOST, WINDOW) == (3, 300.0)
    assert delay([], 1000) == delay([999, 998], 1000) == 0
    assert delay([900, 950, 999], 1000) == 200
    assert delay([600, 950, 999], 1000) == 0
    assert delay([10, 900, 950, 999], 1000) == 200


def test_what_was_asked_is_taken_from_the_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    os.write(descriptor, b"x" * 60000)
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    drain(descriptor)
    assert os.read(descriptor, 1) == b"x"
    monkeypatch.setenv("LISTEN_FDS", "1")
    drain(descriptor)
    with pytest.raises(BlockingIOError):
        os.read(descriptor, 1)
    drain(descriptor)
    os.close(descriptor)


def test_a_disk_is_read_in_whole_blocks(tmp_path: Path) -> None:
    path = Path("/var/tmp") / f"casemate-{os.getpid()}"  # where direct reads are possible
    try:
        path.write_bytes(bytes(range(256)) * 64)
        assert direct(str(path), 4096, 8192) == path.read_bytes()[4096:12288]
    finally:
        path.unlink()
