"""A cut of the power between any two writes, and within one, leaves a volume that opens, or a disk that counts as empty.

A real kernel records each write that the storage services cause (dm-log-writes). Here the disk is made again as it was after
each of them; the guest's own code looks at it, cryptsetup opens it, and e2fsck and debugfs read what had been synced.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from lab import run_in_lab, script_of
from luksvolumes import cryptsetup

from casemate.contract.passphrase import passphrase
from casemate.guest.kernel import Disk
from casemate.guest.volumes import examine
from casemate.luks.policy import DATA_START, OURS

pytestmark = pytest.mark.machines

MIB = 1 << 20
SMALL, LARGE = 384 * MIB, 512 * MIB
KEYS = {name: passphrase("w" * 15, seed * 15).encode() for name, seed in (("old", "e"), ("new", "n"))}


@dataclass(frozen=True)
class Write:
    """One recorded write, or a mark."""

    offset: int
    data: bytes
    mark: str


@dataclass(frozen=True)
class Recorded:
    """What the lab said, and what it wrote."""

    facts: list[dict[str, Any]]
    writes: list[list[Write]]


def record_of(path: Path) -> Iterator[Write]:
    """Read a log of dm-log-writes. Format: Linux ``drivers/md/dm-log-writes.c``."""
    with path.open("rb") as file:
        magic, version, entries, sector = struct.unpack("<QQQI", file.read(28))
        assert (magic, version) == (0x6A736677736872, 1)
        for _ in range(entries):
            file.seek(-(-file.tell() // sector) * sector)
            start, sectors, flags, length = struct.unpack("<QQQQ", file.read(32))
            if flags & 8:
                mark = file.read(length).rstrip(b"\0").decode()
                if mark != "dm-log-writes-end":
                    yield Write(0, b"", mark)
                continue
            file.seek(-(-file.tell() // sector) * sector)
            assert not flags & 4  # nothing is discarded
            yield Write(start * 512, file.read(sectors * 512), "")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    directory = tmp_path_factory.mktemp("lab")
    disks = [directory / f"{name}.img" for name in "bcdefg"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(1 << 30)
    said = run_in_lab(script_of("volume_steps.py", "volume_scenario.py"), disks, directory)
    print(said)
    facts = [json.loads(line[5:]) for line in said.splitlines() if line.startswith("FACT ")]
    assert facts and facts[-1] == {"what": "all"}, said
    logs = [list(record_of(disk)) for disk in disks[1:3]]
    for disk in disks:
        disk.unlink()
    return Recorded(facts, logs)


def of(recorded: Recorded, what: str) -> list[dict[str, Any]]:
    return [fact for fact in recorded.facts if fact["what"] == what]


def test_nothing_is_written_before_storage_may_write(recorded: Recorded) -> None:
    first, second = recorded.writes
    for log, mark in ((first, "prepared"), (second, "growing")):
        assert [write.offset for write in log[: [write.mark for write in log].index(mark)] if write.data] == []
    marks = [write.mark for write in first]
    late = [write.offset for write in first[marks.index("one") : marks.index("rolling")] if write.data]
    assert late and all(
        offset >= DATA_START + OURS.offset for offset in late
    )  # of the file system, when it was unmounted


def test_a_volume_is_made_once_rolled_once_and_grown_once(recorded: Recorded) -> None:
    assert of(recorded, "new") == [{"what": "new", "make": True, "grow": False}]
    assert of(recorded, "rolled") == [{"what": "rolled", "rolled": True, "steps": 2, "grow": False}]
    assert of(recorded, "again") == [{"what": "again", "rolled": False, "steps": 0, "grow": False}]
    assert of(recorded, "third") == [{"what": "third", "rolled": True, "steps": 3}]
    assert of(recorded, "the old contract") == [{"what": "the old contract", "opens": False, "id": "HPL02003E"}]
    assert of(recorded, "larger") == [{"what": "larger", "grow": True}]
    assert of(recorded, "grown")[0]["size"] > 360 * MIB and of(recorded, "grown")[0]["table"]
    assert of(recorded, "the end")[0]["copy"] == "EFI PART"


@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"])
def test_other_file_systems_grow_once_and_keep_their_files(recorded: Recorded, filesystem: str) -> None:
    first, larger, again = of(recorded, f"grown {filesystem}")
    assert (first["make"], larger["make"], again["make"]) == (True, False, False)
    assert (first["grow"], larger["grow"], again["grow"]) == (False, True, False)
    assert first["kept"] and larger["kept"] and again["kept"]
    assert larger["more"] > 180 * MIB and again["more"] == 0


def test_an_older_volume_rolls_and_grows(recorded: Recorded) -> None:
    first, rolled, after = of(recorded, "older")
    assert (first["start"], first["rolled"], first["grow"], first["steps"]) == (0, False, False, 0)
    assert (rolled["rolled"], rolled["grow"], rolled["steps"]) == (True, True, 2)
    assert (after["rolled"], after["grow"], after["steps"]) == (False, False, 0)
    assert rolled["size"] == after["size"] > first["size"] + 80 * MIB


def test_the_check_of_the_disks_finds_what_was_tampered_with(recorded: Recorded) -> None:
    found = {fact["what"]: fact for fact in recorded.facts if fact["what"].startswith("check: ")}
    whole = ("as it was", "as it was again", "rolled")
    assert [found[f"check: {what}"].get("slots") for what in whole] == [1, 1, 1]
    for what, detail in {
        "a key slot": "the LUKS headers of the volume at /mnt/data were changed on the disk",
        "the second copy": "the LUKS headers of the volume at /mnt/data were changed on the disk",
        "plain": "the volume at /mnt/data is not encrypted",
        "another disk, plain": "the volume at /mnt/data is not encrypted",
        "something mounted over it": "the volume at /mnt/data is not what is mounted there",
        "closed": "the volume at /mnt/data is not encrypted",
    }.items():
        fact = found[f"check: {what}"]
        assert (fact.get("id"), fact.get("detail")) == ("HPL13010E", detail), what


def written(descriptor: int, start: int, end: int) -> Iterator[int]:
    """Yield the places, from ``start`` on, of blocks that are no holes of a file."""
    place = start
    while place < end:
        try:
            place = max(place, os.lseek(descriptor, place, os.SEEK_DATA) // 4096 * 4096)
        except OSError:  # only holes follow
            return
        hole = os.lseek(descriptor, place, os.SEEK_HOLE)
        while place < min(hole, end):
            yield place - start
            place += 4096


class Replayed:
    """A disk as a file, written to as the record says; ``whole`` knows its files through the encryption."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[bytes, set[str]] = {}
        self.key = b""

    def write(self, write: Write, part: slice = slice(None)) -> None:
        with self.path.open("r+b") as file:
            file.seek(write.offset)
            file.write(write.data[part])

    def opens(self) -> set[str] | None:
        """Return which passphrases open it; ``None`` where the guest takes it for a disk to make a volume on."""
        found = examine(Disk(f"..{self.path}", "", self.path.stat().st_size))
        if found.headers is None:
            return None
        digest = hashlib.sha256(found.headers).digest()
        if digest not in self.known:
            header = self.path.with_suffix(".header")
            header.write_bytes(found.headers)
            names = {name for name, key in KEYS.items()
                     if cryptsetup("open", "--test-passphrase", header, key=key).returncode == 0}  # fmt: skip
            self.known[digest] = names
            if names and not self.key:
                secret = self.path.with_suffix(".key")
                key = KEYS[names.copy().pop()]
                done = cryptsetup(
                    "luksDump", "--dump-volume-key", "--batch-mode", "--volume-key-file", secret, header, key=key
                )
                assert done.returncode == 0, done.stderr
                self.key = secret.read_bytes()
        return self.known[digest]

    def files(self) -> dict[str, bytes]:
        """Return what e2fsck makes of the file system, with the files in it."""
        plain = self.path.with_suffix(".plain")
        start = DATA_START + OURS.offset
        length = (self.path.stat().st_size - start - MIB) // 4096 * 4096
        with self.path.open("rb") as source, plain.open("wb") as target:
            target.truncate(length)
            for at in written(source.fileno(), start, start + length):
                block = os.pread(source.fileno(), 4096, start + at)
                if any(block):
                    tweak = (at // 512).to_bytes(16, "little")
                    target.seek(at)
                    target.write(Cipher(algorithms.AES(self.key), modes.XTS(tweak)).decryptor().update(block))
        done = subprocess.run(["e2fsck", "-fy", str(plain)], capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout  # 1: what a cut leaves was put in order
        found = {}
        for name in ("one", "two", "three"):
            shown = subprocess.run(["debugfs", "-R", f"cat {name}", str(plain)], capture_output=True, check=True)
            found[name] = shown.stdout
        return found


def test_a_cut_anywhere_costs_nothing(recorded: Recorded, tmp_path: Path) -> None:
    disk = Replayed(tmp_path / "disk")
    with disk.path.open("wb") as file:
        file.truncate(SMALL)
    passed: list[str] = []
    states = 0

    def look(torn: bool = False) -> None:
        nonlocal states
        states += 1
        opens = disk.opens()
        if "made" not in passed:
            assert opens in (None, {"old"})
        elif "rolling" not in passed:
            assert opens == {"old"}
        elif "rolled" not in passed:
            assert opens in ({"old"}, {"old", "new"}, {"new"})
        else:
            assert opens == {"new"}
        if opens and not torn and states % (10 if passed[-1:] in (["rolling"], ["growing"]) else 100) == 0:
            files = disk.files()
            for name in ("one", "two", "three"):
                assert name not in passed or files[name] == name_of(name), (passed, name)

    def name_of(name: str) -> bytes:
        return {"one": b"1", "two": b"2", "three": b"3"}[name] * MIB

    for number, log in enumerate(recorded.writes):
        if number == 1:
            with disk.path.open("r+b") as file:
                file.truncate(LARGE)
        for write in log:
            if write.mark:
                passed.append(write.mark)
                look()
                continue
            if len(write.data) > 512:
                disk.write(write, slice(0, len(write.data) // 1024 * 512))
                look(torn=True)
            disk.write(write)
            look()
    assert passed == ["prepared", "made", "one", "rolling", "rolled", "two", "growing", "grown", "three"]
    assert states > 100
    assert disk.files() == {name: name_of(name) for name in ("one", "two", "three")}
