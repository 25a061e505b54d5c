"""What ``hpl-volumes`` takes a disk for: a volume of ours, an empty disk, or a reason to stop. Real headers of cryptsetup."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from casemate.contract.passphrase import passphrase
from casemate.guest import state, storage, volumes
from casemate.guest.filesystems import (
    LEAST,
    MIB,
    SUPERBLOCKS,
    filesystem_size,
    grow_command,
    make_command,
    worth_growing,
)
from casemate.guest.kernel import Disk, disks
from casemate.guest.lukspassphrase import passphrases
from casemate.guest.report import Stop
from casemate.guest.volumes import BEING_MADE, SMALLEST, Plan, examine, places, unlocked
from casemate.luks.header import in_order, with_only
from casemate.luks.policy import DATA_START, METADATA_START, OURS, format_arguments
from casemate.secureexec.disk import boot_map
from casemate.secureexec.image import STAGE3A

SIZE = SMALLEST + 64 * MIB


def disk(path: Path, size: int = SIZE, **content: bytes) -> Disk:
    """A disk that is a file: ``at123=…`` puts bytes there."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(size)
        for place, data in content.items():
            file.seek(int(place.removeprefix("at")))
            file.write(data)
    return Disk(f"..{path}", "", size)  # /dev/../path


def luks(path: Path, *options: str) -> bytes:
    """The headers that cryptsetup makes, with the start of the data behind them."""
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    command = ["cryptsetup", "luksFormat", "--batch-mode", "--key-file=-", *options, str(path)]
    done = subprocess.run(command, input=b"x" * 64, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return path.read_bytes()[: OURS.offset]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return luks(tmp_path_factory.mktemp("luks") / "ours", *format_arguments())


def stopped(each: Disk) -> tuple[str, str]:
    before = Path(each.path).read_bytes()
    with pytest.raises(Stop) as stop:
        examine(each)
    assert Path(each.path).read_bytes() == before
    return stop.value.id, stop.value.detail


def test_an_empty_disk_is_one_to_make_a_volume_on(tmp_path: Path) -> None:
    found = examine(disk(tmp_path / "disk"))
    assert (found.headers, found.start, found.length) == (None, DATA_START, SIZE - DATA_START - MIB)


def test_a_disk_that_is_too_small_stops(tmp_path: Path) -> None:
    assert stopped(disk(tmp_path / "disk", SMALLEST - 512))[0] == "HPL02121E"


@pytest.mark.parametrize(
    "place",
    [
        *(0, 511, 1080, MIB - 1, DATA_START, DATA_START + MIB - 1, SIZE - MIB, SIZE - 1),
        *(MIB, 64 * MIB + 0x40, 128 * MIB, SIZE // 2, SIZE * 3 // 256, SIZE * 255 // 256 + 100),
    ],
)
def test_a_disk_with_anything_on_it_is_never_made_a_volume(tmp_path: Path, place: int) -> None:
    id, detail = stopped(disk(tmp_path / "disk", **{f"at{place}": b"\1"}))
    assert id == "HPL02123E" and "only empty disks" in detail


@pytest.mark.parametrize(("number", "id"), [(0, "HPL07006E"), (1, "HPL07006E"), (2, "HPL02123E"), (3, "HPL07006E")])
def test_a_disk_of_somebodys_partitions_stops_and_says_how_many(tmp_path: Path, number: int, id: str) -> None:
    each = disk(tmp_path / "disk")
    table = "label: gpt\n" + "size=2048, type=linux\n" * number
    command = ["/usr/sbin/sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", each.path]
    subprocess.run(command, input=table.encode(), check=True)
    said, detail = stopped(each)
    assert said == id and (id == "HPL02123E" or f"with {number} partitions" in detail)


def test_a_table_of_partitions_that_is_none_is_only_something_on_a_disk(tmp_path: Path) -> None:
    assert stopped(disk(tmp_path / "mbr", at510=b"\x55\xaa"))[0] == "HPL02123E"
    assert stopped(disk(tmp_path / "noise", at512=b"EFI PART" + b"\xff" * 20000))[0] == "HPL07006E"


def test_a_file_system_in_the_middle_of_a_disk_is_somebodys(tmp_path: Path) -> None:
    """On a partition far from both ends, with the partition table gone."""
    made = tmp_path / "made"
    with made.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(made)], check=True)
    each = disk(tmp_path / "disk", 8 << 30)
    with Path(each.path).open("r+b") as file:
        file.seek(3 << 30)
        file.write(made.read_bytes())
    with pytest.raises(Stop) as stop:
        examine(each)
    assert stop.value.id == "HPL02123E"


@pytest.mark.parametrize("size", [SMALLEST, SIZE + 512, 1 << 40])
def test_the_places_looked_at_are_few_and_all_over_the_disk(size: int) -> None:
    found = places(size)
    assert sum(length for _, length in found) < 6 * MIB
    assert all(0 <= start and start + length <= size for start, length in found)
    starts = sorted(start for start, _ in found)
    assert max(later - start for start, later in itertools.pairwise(starts)) <= size // 256 + 4096


def test_a_volume_that_was_never_finished_counts_as_empty(tmp_path: Path) -> None:
    noise = b"\x5a" * MIB
    found = examine(disk(tmp_path / "disk", **{f"at{METADATA_START}": BEING_MADE, f"at{DATA_START + 2 * MIB}": noise}))
    assert found.headers is None
    assert stopped(disk(tmp_path / "other", **{f"at{METADATA_START}": BEING_MADE[:10], f"at{DATA_START}": noise}))


@pytest.mark.components
def test_a_volume_that_was_nearly_finished_is_one(tmp_path: Path, ours: bytes) -> None:
    found = examine(disk(tmp_path / "disk", **{f"at{METADATA_START}": BEING_MADE, f"at{DATA_START}": ours}))
    assert found.headers is not None and found.being_made
    cut = examine(disk(tmp_path / "cut", **{f"at{METADATA_START}": BEING_MADE, f"at{DATA_START}": ours[:4300]}))
    assert cut.headers is None


@pytest.mark.components
def test_a_damaged_copy_and_what_is_left_of_a_key_slot_are_mended(tmp_path: Path, ours: bytes) -> None:
    clean = examine(disk(tmp_path / "clean", **{f"at{DATA_START}": ours})).headers
    assert clean is not None
    for name, at, counts in (("first", 5000, 1), ("second", 21000, 0), ("slot", 500_000, 0)):
        changed = bytearray(clean)
        changed[at] ^= 0xFF
        found = examine(disk(tmp_path / name, **{f"at{DATA_START}": bytes(changed)}))
        assert (found.headers, found.copy) == (clean, counts)
    assert examine(disk(tmp_path / "whole", **{f"at{DATA_START}": clean})).copy is None


@pytest.mark.components
def test_a_volume_of_ours_is_found_where_it_must_be(tmp_path: Path, ours: bytes) -> None:
    found = examine(disk(tmp_path / "disk", **{f"at{DATA_START}": ours}))
    assert found.start == DATA_START and found.headers is not None
    older = examine(disk(tmp_path / "older", at0=ours))
    assert older.start == 0 and older.headers is not None and older.length == SIZE


@pytest.mark.components
def test_headers_anywhere_else_are_not_looked_for(tmp_path: Path, ours: bytes) -> None:
    assert stopped(disk(tmp_path / "disk", **{f"at{MIB // 2}": ours}))[0] == "HPL02123E"


@pytest.mark.components
@pytest.mark.parametrize("place", [0, DATA_START])
def test_a_header_that_is_not_ours_stops_and_the_disk_stays_as_it_is(tmp_path: Path, place: int) -> None:
    foreign = luks(tmp_path / "foreign", "--type", "luks2", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256",
                   "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")  # fmt: skip
    id, detail = stopped(disk(tmp_path / "disk", **{f"at{place}": foreign}))
    assert id == "HPL07016E" and "not ours" in detail


@pytest.mark.components
def test_a_header_of_the_first_version_stops(tmp_path: Path) -> None:
    old = luks(tmp_path / "old", "--type", "luks1", "--pbkdf-force-iterations", "1000")
    assert stopped(disk(tmp_path / "disk", at0=old))[0] == "HPL07016E"


@pytest.mark.components
@pytest.mark.parametrize("cut", [6, 100, 4096, 4396])
def test_a_header_that_is_cut_stops(tmp_path: Path, ours: bytes, cut: int) -> None:
    assert stopped(disk(tmp_path / "disk", **{f"at{DATA_START}": ours[:cut]}))[0] == "HPL07016E"


def test_file_systems_of_the_contract_can_be_made_and_grown() -> None:
    assert set(LEAST) == {"ext4", "xfs", "btrfs"}
    assert [make_command(name, "device", 8192)[0] for name in LEAST] == ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"]
    for size in (8192, None):
        commands = [grow_command(name, "device", "target", size)[0] for name in LEAST]
        assert commands == ["resize2fs", "xfs_growfs", "btrfs"]


@pytest.mark.components
def test_the_size_of_a_file_system_is_read(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with path.open("wb") as file:
        file.truncate(300 * MIB)
    subprocess.run(make_command("ext4", str(path), 299 * MIB), check=True)
    start = path.read_bytes()[:SUPERBLOCKS]
    assert filesystem_size("ext4", start) == 299 * MIB
    assert filesystem_size("xfs", start) is filesystem_size("btrfs", start) is None
    assert filesystem_size("ext4", start[:100]) is filesystem_size("ext4", bytes(SUPERBLOCKS)) is None


def test_a_file_system_grows_only_where_it_is_worth_it() -> None:
    assert not worth_growing(300 * MIB, 300 * MIB)
    assert not worth_growing(300 * MIB, 316 * MIB)
    assert worth_growing(300 * MIB, 316 * MIB + 1)
    assert not worth_growing(300 * MIB, 200 * MIB)


def test_the_key_slot_is_what_cryptsetup_says() -> None:
    assert unlocked("Key slot 7 unlocked.\nCommand successful.\n") == "7"
    assert unlocked("Command successful.\n") is None


def test_disks_are_what_the_kernel_calls_disks(tmp_path: Path) -> None:
    for name, size, serial in (("vda", "8", "casemate-root\n"), ("vdb", "0", "x"), ("loop0", "8", ""), ("dm-0", "8", ""),
                               ("sr0", "16", None), ("vdc", "many", "")):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
        if serial is not None:
            (tmp_path / name / "serial").write_text(serial)
    assert list(disks(tmp_path)) == [Disk("sr0", "", 8192), Disk("vda", "casemate-root", 4096)]
    assert Disk("vda", "", 1).path == "/dev/vda"


# ------------------------------------------------------------------------------------------------- passphrases, waiting


@pytest.mark.parametrize(
    ("before", "ways"),
    [
        ({}, []),
        ({"env": "E" * 15}, ["wE"]),
        ({"workload": "W" * 15}, ["We"]),
        ({"workload": "W" * 15, "env": "E" * 15}, ["WE", "We", "wE"]),  # together, or one after the other
        ({"workload": "w" * 15}, []),  # the seed of today
    ],
)
def test_an_earlier_passphrase_has_the_earlier_seed_of_either_party_or_both(
    before: dict[str, str], ways: list[str]
) -> None:
    seeds = {"data": {"seed": {"workload": "w" * 15, "env": "e" * 15}, "previousSeed": before}}
    made = passphrases(seeds, ["data"])["data"]
    assert made == [passphrase(way[0] * 15, way[1] * 15) for way in ("we", *ways)]


def test_an_earlier_seed_that_is_none_stops() -> None:
    seeds = {"data": {"seed": {"workload": "w" * 15, "env": "e" * 15}, "previousSeed": {"env": "short"}}}
    with pytest.raises(Stop) as stop:
        passphrases(seeds, ["data"])
    assert stop.value.id == "HPL07001E" and "short" not in stop.value.detail


def test_a_late_disk_is_waited_for_and_its_absence_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    began, late = time.monotonic(), Disk("vdx", "", SIZE)
    monkeypatch.setattr(volumes, "EVERY", 0.3)
    monkeypatch.setattr(volumes, "data_disks", lambda: iter([late] if time.monotonic() - began > 1 else []))
    assert volumes.wait_for_disks(1) == [late]
    said = capfd.readouterr().err
    assert said.count("HPL07019I: the contract has 1 volumes, and 0 data disks are attached") in (2, 3)
    monkeypatch.setattr(volumes, "PATIENCE", 0.3)
    with pytest.raises(Stop) as stop:
        volumes.wait_for_disks(2)
    assert stop.value.id == "HPL02122E"


def test_the_disk_that_firmware_started_from_is_no_data_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    there = next(path.name for path in Path("/sys/block").iterdir() if not any((path / "holders").iterdir()))
    found = Disk(there, "", SIZE)
    monkeypatch.setattr("casemate.guest.kernel.disks", lambda: iter([found]))
    monkeypatch.setattr(volumes, "read", lambda path, start, size: boot_map(STAGE3A + MIB))
    assert list(volumes.data_disks()) == []
    monkeypatch.setattr(volumes, "read", lambda path, start, size: b"\0" + boot_map(STAGE3A + MIB))
    assert list(volumes.data_disks()) == [found]


def test_the_wait_is_a_quarter_of_an_hour_and_the_unit_allows_it() -> None:
    assert (volumes.PATIENCE, volumes.EVERY) == (900, 60)
    unit = (Path(volumes.__file__).parent / "units/hpl-volumes.service").read_text()
    assert int(re.findall(r"TimeoutStartSec=(\d+)", unit)[0]) > 900


# ------------------------------------------------------------------------------------------------- disks that fail


def broken(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EIO, "Input/output error")


def plan(path: Path, **more: bool) -> Plan:
    """A plan for a disk that is a file; its mapped device is none of this machine."""
    length = SIZE - DATA_START - MIB
    room = length - OURS.offset
    return Plan(
        "x",
        f"..{path}",
        SIZE,
        DATA_START,
        length,
        room,
        "ext4",
        "/mnt/data",
        [("x.headers", 0)],
        make=more.get("make", False),
    )


FAILURES: dict[str, tuple[Callable[[Plan], object], bool, str]] = {
    "the mark": (storage.mark, True, "HPL02005E"),
    "the headers": (storage.write_headers, False, "HPL07014E"),
    "the table of a new volume": (storage.write_partition_table, True, "HPL07003E"),
    "the table of a larger disk": (storage.write_partition_table, False, "HPL07004E"),
}


@pytest.mark.components
@pytest.mark.parametrize(("act", "make", "id"), FAILURES.values(), ids=FAILURES)
def test_a_disk_that_takes_no_write_stops_with_what_was_to_be_written(
    act: Callable[[Plan], object], make: bool, id: str, tmp_path: Path, ours: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "HEADERS", tmp_path)
    (tmp_path / "x.headers").write_bytes(ours)
    each = plan(Path(disk(tmp_path / "disk").path), make=make)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite" if "table" not in act.__name__ else "fsync", broken)
        with pytest.raises(Stop, match=f"{id}: volume x: .*Input/output error"):
            act(each)
    act(each)
    (tmp_path / "disk").unlink()
    with pytest.raises(Stop, match=f"{id}: volume x"):
        act(each)


def test_a_file_system_that_can_not_be_made_mounted_or_grown_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real programs and the kernel: the mapped device is missing."""
    monkeypatch.setattr(state, "VOLUMES", tmp_path)
    monkeypatch.setattr(Plan, "device", str(tmp_path / "missing/x"))
    each = plan(tmp_path / "disk")
    with pytest.raises(Stop, match=r"HPL02005E: volume x: mkfs\.ext4 ended with 1"):
        storage.make(each)
    with pytest.raises(Stop, match="HPL02007E: volume x can't be mounted as ext4"):
        storage.mount(each)
    with pytest.raises(Stop, match="HPL02006E: volume x: resize2fs ended with 1"):
        storage.grow(each, str(tmp_path))


@pytest.mark.components
def test_headers_that_can_not_be_made_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real cryptsetup: the disk is gone since it was judged."""
    monkeypatch.setattr(volumes, "HEADERS", tmp_path / "headers")
    found = examine(disk(tmp_path / "disk"))
    (tmp_path / "disk").unlink()
    with pytest.raises(Stop, match="HPL02002E: volume x can't be made: cryptsetup ended with"):
        volumes.format_headers("x", found, b"x" * 64)
    assert list((tmp_path / "headers").iterdir()) == []


@pytest.mark.components
def test_a_passphrase_that_can_not_be_changed_stops_and_the_disk_is_untouched(
    tmp_path: Path, ours: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real cryptsetup: the new passphrase is not there; then the headers don't open with what was added."""
    monkeypatch.setattr(volumes, "HEADERS", tmp_path / "headers")
    monkeypatch.setattr(state, "PASSPHRASES", tmp_path / "passphrases")
    each = disk(tmp_path / "disk", **{f"at{DATA_START}": ours})
    found, before = examine(each), Path(each.path).read_bytes()
    with pytest.raises(Stop, match="HPL02125E: volume x: the passphrase can't be changed: cryptsetup ended with"):
        volumes.with_another("x", found, found.headers or b"", b"x" * 64, tmp_path / "missing")
    state.write(state.PASSPHRASES / "x", b"n" * 64)
    state.write(state.PASSPHRASES / "x.previous", b"x" * 64)
    monkeypatch.setattr(volumes, "unlock", lambda *_: None)
    with pytest.raises(Stop, match="HPL02125E: volume x does not open with its new passphrase"):
        volumes.roll("x", found)
    assert Path(each.path).read_bytes() == before


# ------------------------------------------------------------------------------------------------- rolling


@pytest.mark.components
def test_a_cut_while_a_passphrase_rolls_leaves_a_volume_that_the_old_or_the_new_one_opens(
    tmp_path: Path, ours: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same headers and writes as in the guest, but for the mapped device; any sectors of a write may be missing."""
    monkeypatch.setattr(volumes, "HEADERS", tmp_path / "headers")
    chance, old, new = random.Random(3), b"x" * 64, tmp_path / "new"
    new.write_bytes(b"n" * 64)
    each = disk(tmp_path / "disk", **{f"at{DATA_START}": ours})
    found = examine(each)
    assert found.headers is not None and found.copy is not None  # cryptsetup's own bytes: to be written anew
    both = volumes.with_another("data", found, found.headers, old, new)
    assert both is not None
    slot = volumes.slot_of("data", both, new.read_bytes())
    assert (slot, volumes.slot_of("data", both, old), volumes.slot_of("data", both, b"?")) == ("1", "0", None)
    last = with_only(both, "1")
    known: dict[bytes, tuple[bool, bool]] = {}

    def opened() -> tuple[bool, bool]:
        headers = examine(each).headers
        assert headers is not None
        if headers not in known:
            known[headers] = tuple(volumes.slot_of("data", headers, key) is not None for key in (old, new.read_bytes()))  # type: ignore[assignment]
        return known[headers]

    seen = []
    for headers, counts in ((found.headers, found.copy), (both, 0), (last, 0)):
        for offset, part in in_order(headers, counts):
            for share in (0.0, 0.2, 0.5, 0.8, 1.0):
                with Path(each.path).open("r+b") as file:
                    for at in range(0, len(part), 512):
                        if chance.random() < share or share == 1:
                            file.seek(DATA_START + offset + at)
                            file.write(part[at : at + 512])
                seen.append(opened())
    assert set(seen) == {(True, False), (True, True), (False, True)}
    assert seen == sorted(seen, key=[(True, False), (True, True), (False, True)].index)
    assert examine(each).headers == last and examine(each).copy is None
    assert volumes.with_another("data", examine(each), last, old, new) is None


@pytest.mark.parametrize("start", [DATA_START, 0])
def test_headers_are_read_once_so_a_disk_that_answers_differently_later_changes_nothing(
    start: int, ours: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened is what was judged: the disk turns into another after each first reading of a byte."""
    each = disk(tmp_path / "disk", **{f"at{start}": ours})
    honest, truth, given = examine(each), volumes.read, set[int]()

    def two_faced(path: str, place: int, size: int) -> bytes:
        content = bytearray(truth(path, place, size))
        for block in range(place // 512, -(-(place + size) // 512)):
            at = block * 512 - place
            if block in given:
                content[max(at, 0) : max(at + 512, 0)] = b"\xff" * len(content[max(at, 0) : max(at + 512, 0)])
            given.add(block)
        return bytes(content)

    monkeypatch.setattr(volumes, "read", two_faced)
    assert examine(each) == honest and honest.headers is not None and honest.start == start
