"""What ``hpl-storage`` takes a disk for: a volume of ours, an empty disk, or a reason to stop. Real headers of cryptsetup."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from casemate.guest.kernel import Disk, disks
from casemate.guest.report import Stop
from casemate.guest.storage import MAKE, MIB, SMALLEST, examine
from casemate.luks.policy import DATA_START, OURS, format_arguments

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


@pytest.mark.parametrize("place", [0, 511, 1080, MIB - 1, DATA_START, DATA_START + MIB - 1, SIZE - MIB, SIZE - 1])
def test_a_disk_with_anything_on_it_is_never_made_a_volume(tmp_path: Path, place: int) -> None:
    id, detail = stopped(disk(tmp_path / "disk", **{f"at{place}": b"\1"}))
    assert id == "HPL02123E" and "only empty disks" in detail


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


def test_file_systems_of_the_contract_can_be_made() -> None:
    assert set(MAKE) == {"ext4", "xfs", "btrfs"}


def test_disks_are_what_the_kernel_calls_disks(tmp_path: Path) -> None:
    for name, size, serial in (("vda", "8", "casemate-root\n"), ("vdb", "0", "x"), ("loop0", "8", ""), ("dm-0", "8", ""),
                               ("sr0", "16", None), ("vdc", "many", "")):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
        if serial is not None:
            (tmp_path / name / "serial").write_text(serial)
    assert list(disks(tmp_path)) == [Disk("sr0", "", 8192), Disk("vda", "casemate-root", 4096)]
    assert Disk("vda", "", 1).path == "/dev/vda"
