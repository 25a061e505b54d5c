"""The ``cidata`` volume: what real tools make is read, what is hostile is refused, two readers agree."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate import cidata
from casemate.cidata import LARGEST, PROBE, CidataError, label, read_volume
from casemate.machine.cidata_disk import make

SECTOR = 2048
FILES = {
    "user-data": b"workload: hyper-protect-basic.a.b\n" * 300,
    "meta-data": b"local-hostname: guest\n",
    "vendor-data": b"#cloud-config\nusers:\n- default\n",
    "network-config": b"version: 2\n",
}
WIDE = 36 << 20  # a volume of 32 bits has 65525 clusters or more for mtools; Linux is less strict


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read volumes of 32 bits whole, though a cidata volume of that size is too large."""
    monkeypatch.setattr(cidata, "LARGEST", WIDE)


def tool(*command: object) -> bytes:
    return subprocess.run(list(map(str, command)), capture_output=True, check=True).stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    return directory


def iso(source: Path, *flags: str, program: str = "genisoimage", name: str = "cidata") -> bytes:
    out = source.parent / "out.iso"
    command = [program, *(["-as", "mkisofs"] if program == "xorriso" else []), "-quiet", "-V", name]
    tool(*command, *flags, "-o", out, source)
    return out.read_bytes()


def fat(source: Path, bits: int, *, name: str = "CIDATA", sectors_per_cluster: int = 1) -> bytes:
    """A FAT volume of the size at which its kind is right: 12, 16 or 32 bits a cluster."""
    out = source.parent / f"fat{bits}"
    out.unlink(missing_ok=True)
    with out.open("wb") as file:
        file.truncate({12: 1 << 20, 16: 8 << 20, 32: WIDE}[bits])
    tool("mkfs.vfat", "-n", name, "-F", bits, "-s", sectors_per_cluster, out)
    for path in sorted(source.iterdir()):
        tool("mcopy", "-i", out, path, "::")
    return out.read_bytes()


ISO_FLAGS = [("-r", "-J"), ("-J",), ("-R",), ("-J", "-joliet-long"), ("-r", "-J", "-l"), ("-relaxed-filenames", "-l")]


@pytest.mark.components
@pytest.mark.parametrize("program", ["genisoimage", "xorriso"])
@pytest.mark.parametrize("flags", ISO_FLAGS, ids=" ".join)
def test_what_iso_tools_make_is_read(source: Path, program: str, flags: tuple[str, ...]) -> None:
    data = iso(source, *flags, program=program)
    assert label(data[:PROBE]) == "cidata"
    assert read_volume(data) == FILES


@pytest.mark.components
def test_plain_names_of_eight_and_three_are_read(source: Path) -> None:
    (source / "network-config").unlink()
    found = read_volume(iso(source))
    assert {name: found[name] for name in ("user-data", "meta-data")} == {
        name: FILES[name] for name in ("user-data", "meta-data")
    }


@pytest.mark.usefixtures("wide")
@pytest.mark.components
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_what_fat_tools_make_is_read(source: Path, bits: int) -> None:
    data = fat(source, bits)
    assert (label(data) or "").lower() == "cidata"
    assert read_volume(data) == FILES


@pytest.mark.components
@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 100_000])
def test_files_of_any_size_are_read_whole(source: Path, size: int) -> None:
    (source / "user-data").write_bytes(bytes(itertools.islice(itertools.cycle(range(251)), size)))
    expected = (source / "user-data").read_bytes()
    for data in (iso(source, "-r", "-J"), fat(source, 12), fat(source, 16, sectors_per_cluster=2)):
        assert read_volume(data)["user-data"] == expected


@pytest.mark.components
def test_other_files_and_directories_are_left_alone(source: Path) -> None:
    (source / "directory").mkdir()
    (source / "directory/user-data").write_bytes(b"another")
    for number in range(100):
        (source / f"file-{number}-{'x' * 90}").write_bytes(b"x")
    (source / "link").symlink_to("user-data")
    assert read_volume(iso(source, "-r", "-J")) == FILES


@pytest.mark.components
def test_fragmented_and_deleted_files_are_read_right(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "fat"
    out.write_bytes(fat(source, 12))
    big, small = tmp_path / "big", tmp_path / "small"
    small.write_bytes(b"s" * 700)
    for number in range(20):
        tool("mcopy", "-i", out, small, f"::gap{number}")
    for number in range(0, 20, 2):
        tool("mdel", "-i", out, f"::gap{number}")
    tool("mdel", "-i", out, "::user-data")
    big.write_bytes(bytes(range(256)) * 60)
    tool("mcopy", "-i", out, big, "::user-data")
    assert read_volume(out.read_bytes())["user-data"] == big.read_bytes()


# ------------------------------------------------------------------------------------------------- two readers agree


@pytest.mark.components
def test_other_readers_find_the_same_in_our_disk(tmp_path: Path) -> None:
    data = make(*(FILES[name] for name in ("user-data", "meta-data", "vendor-data", "network-config")))
    assert read_volume(data) == FILES
    disk = tmp_path / "cidata.iso"
    disk.write_bytes(data)
    for name, content in FILES.items():
        for form in ("-R", "-J"):
            assert tool("isoinfo", form, "-i", disk, "-x", f"/{name}") == content
        tool("xorriso", "-osirrox", "on", "-indev", disk, "-extract", f"/{name}", tmp_path / f"out-{name}")
        assert (tmp_path / f"out-{name}").read_bytes() == content
    assert b"Volume id: cidata" in tool("isoinfo", "-d", "-i", disk)


@pytest.mark.usefixtures("wide")
@pytest.mark.components
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_other_readers_find_the_same_on_fat(source: Path, tmp_path: Path, bits: int) -> None:
    data = fat(source, bits)
    disk = tmp_path / "again"
    disk.write_bytes(data)
    for name, content in read_volume(data).items():
        assert tool("mcopy", "-i", disk, f"::{name}", "-") == content


def test_our_disk_without_a_network_configuration_has_none() -> None:
    assert set(read_volume(make(b"u", b"m", b"v"))) == {"user-data", "meta-data", "vendor-data"}


@given(user=st.binary(max_size=5000), meta=st.binary(max_size=50))
@settings(max_examples=25, deadline=None)
def test_what_our_disk_holds_is_read_back(user: bytes, meta: bytes) -> None:
    found = read_volume(make(user, meta, b"", b"n"))
    assert found == {"user-data": user, "meta-data": meta, "vendor-data": b"", "network-config": b"n"}


# ------------------------------------------------------------------------------------------------- refused


@pytest.mark.components
def test_a_volume_of_another_label_is_refused(source: Path) -> None:
    for data in (iso(source, "-r", name="config-2"), fat(source, 12, name="OTHER")):
        assert label(data) not in (None, "cidata")
        with pytest.raises(CidataError, match="another label"):
            read_volume(data)


def test_what_is_no_volume_is_refused() -> None:
    for data in (b"", b"x", bytes(1 << 20), b"\xff" * (1 << 20), b"\xeb" + bytes(509) + b"\x55\xaa"):
        assert label(data) is None
        with pytest.raises(CidataError, match="neither"):
            read_volume(data)
    with pytest.raises(CidataError, match="more than"):
        read_volume(bytes(LARGEST + 1))


@pytest.mark.components
@pytest.mark.parametrize("name", ["user-data", "meta-data"])
def test_a_link_or_directory_of_a_wanted_name_is_refused(source: Path, name: str) -> None:
    (source / name).unlink()
    (source / name).symlink_to("vendor-data")
    with pytest.raises(CidataError, match="not a regular file"):
        read_volume(iso(source, "-r"))
    (source / name).unlink()
    (source / name).mkdir()
    for flags in (("-r",), ("-J",)):
        with pytest.raises(CidataError, match="not a regular file"):
            read_volume(iso(source, *flags))


@pytest.mark.components
def test_a_directory_on_fat_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "user-data").unlink()
    disk = tmp_path / "disk"
    disk.write_bytes(fat(source, 12))
    tool("mmd", "-i", disk, "::user-data")
    with pytest.raises(CidataError, match="not a regular file"):
        read_volume(disk.read_bytes())


def record(data: bytes, name: bytes) -> int:
    """Where the directory record is whose Rock Ridge name this is."""
    at = data.index(b"NM" + bytes([len(name) + 5]) + b"\x01\x00" + name)
    return next(
        start for start in range(at - 33, 0, -1) if data[start] and start + data[start] > at and plausible(data, start)
    )


def plausible(data: bytes, start: int) -> bool:
    little, big = struct.unpack_from("<I", data, start + 2)[0], struct.unpack_from(">I", data, start + 6)[0]
    return bool(little == big and little and data[start + 1] == 0)


def both(value: int) -> bytes:
    return struct.pack("<I", value) + struct.pack(">I", value)


def our_disk() -> bytearray:
    return bytearray(make(FILES["user-data"], b"m", b"v"))


@pytest.mark.parametrize(
    ("offset", "value", "cause"),
    [
        (2, both(0xFFFFFFFF), "outside"),
        (2, both(100_000), "outside"),
        (10, both(0xFFFFFFFF), "outside"),
        (10, both(1 << 30), "outside"),
        (2, b"\x01", "both byte orders"),
        (10, b"\x01\x02\x03", "both byte orders"),
        (1, b"\x01", "extended attributes"),
        (25, b"\x02", "not a regular file"),
        (25, b"\x04", "not a regular file"),
        (25, b"\x80", "not a regular file"),
        (0, b"\x01", "too short"),
        (0, b"\x21", "too short"),
        (32, b"\xff", "too short"),
    ],
)
def test_a_record_out_of_range_is_refused(offset: int, value: bytes, cause: str) -> None:
    data = our_disk()
    at = record(bytes(data), b"user-data")
    data[at + offset : at + offset + len(value)] = value
    with pytest.raises(CidataError, match=cause):
        read_volume(bytes(data))


def test_two_files_of_one_name_are_refused() -> None:
    data = bytes(our_disk())
    at = data.index(b"NM\x0e\x01\x00meta-data")
    twice = data[: at + 5] + b"user-data" + data[at + 14 :]
    with pytest.raises(CidataError, match="two files"):
        read_volume(twice)


def test_a_continuation_that_refers_to_itself_ends() -> None:
    data = our_disk()
    at = record(bytes(data), b"user-data")
    name = bytes(data).index(b"NM\x0e\x01\x00user-data")
    where = 40 * SECTOR
    data.extend(bytes(max(0, where + SECTOR - len(data))))
    entry = b"CE\x1c\x01" + both(where // SECTOR) + both(0) + both(28)
    data[where : where + 28] = entry
    area = entry[: at + data[at] - name]
    data[name : name + len(area)] = area
    began = time.monotonic()
    with contextlib.suppress(CidataError):
        read_volume(bytes(data))
    assert time.monotonic() - began < 1


def test_a_root_directory_that_is_huge_or_elsewhere_is_refused() -> None:
    root = 16 * SECTOR + 156
    for offset, value in ((10, both(1 << 20)), (2, both(1 << 20)), (25, b"\0"), (10, both(0))):
        data = our_disk()
        data[root + offset : root + offset + len(value)] = value
        with pytest.raises(CidataError):
            read_volume(bytes(data))


def test_a_truncated_volume_is_refused_or_read_whole() -> None:
    data = bytes(our_disk())
    whole = read_volume(data)
    for end in range(0, len(data), 1024):
        try:
            assert read_volume(data[:end]) == whole
        except CidataError:
            continue


@pytest.mark.components
def test_a_chain_of_clusters_that_turns_in_a_circle_is_refused(source: Path) -> None:
    data = bytearray(fat(source, 16))
    reserved, table = struct.unpack_from("<H", data, 14)[0] * 512, struct.unpack_from("<H", data, 22)[0] * 512
    first = next(
        number for number in range(2, 40) if struct.unpack_from("<H", data, reserved + 2 * number)[0] == number + 1
    )
    for target in (first, 0, 1, 0xFFF7, 60_000):
        changed = bytearray(data)
        for copy in (reserved, reserved + table):
            struct.pack_into("<H", changed, copy + 2 * first, target)
        with pytest.raises(CidataError, match="chain of clusters"):
            read_volume(bytes(changed))


@pytest.mark.components
@pytest.mark.parametrize("size", [1, 0xFFFFFFFF, 1 << 24, 11_000])
def test_a_size_that_its_chain_does_not_have_is_refused(source: Path, size: int) -> None:
    data = bytearray(fat(source, 16))
    at = bytes(data).index(b"USER-D") if b"USER-D" in data else bytes(data).index(b"USER")
    struct.pack_into("<I", data, at + 28, size)
    with pytest.raises(CidataError):
        read_volume(bytes(data))


@pytest.mark.usefixtures("wide")
@pytest.mark.components
def test_a_root_directory_of_fat32_in_a_circle_is_refused(source: Path) -> None:
    data = bytearray(fat(source, 32))
    reserved = struct.unpack_from("<H", data, 14)[0] * 512
    struct.pack_into("<I", data, reserved + 8, 2)
    began = time.monotonic()
    with pytest.raises(CidataError):
        read_volume(bytes(data))
    assert time.monotonic() - began < 2


@pytest.mark.usefixtures("wide")
@pytest.mark.components
@pytest.mark.parametrize("kind", ["ours", "genisoimage", "fat12", "fat32"])
def test_flipped_bytes_never_do_worse_than_an_error(source: Path, kind: str) -> None:
    (source / "user-data").write_bytes(b"u" * 100)  # what is flipped is mostly structure
    if kind == "ours":
        data = make(b"u", b"m", b"v", b"n")
    elif kind == "genisoimage":
        data = iso(source, "-r", "-J")
    else:
        data = fat(source, int(kind[3:]))
    used = [at for at in range(min(len(data), 1 << 20)) if data[at]]
    chance = random.Random(kind)
    rounds = 1500 if len(data) < 4 << 20 else 60
    began = time.monotonic()
    for _ in range(rounds):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            changed[chance.choice(used)] = chance.randrange(256)
        with contextlib.suppress(CidataError):
            found = read_volume(bytes(changed))
            assert set(found) <= set(FILES)
            assert all(len(content) <= len(data) for content in found.values())
    assert time.monotonic() - began < 15


@given(st.binary(max_size=3000), st.integers(0, 3), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_else(noise: bytes, kind: int, fill: int) -> None:
    if kind == 0:
        data = noise
    elif kind == 1:
        data = bytes(16 * SECTOR) + b"\x01CD001" + bytes([fill]) * 2042 + noise
    elif kind == 2:
        data = b"\xeb\x3c\x90" + noise[:507].ljust(507, bytes([fill])) + b"\x55\xaa" + noise
    else:
        data = bytes(our_disk())[: 18 * SECTOR] + noise
    label(data)
    with contextlib.suppress(CidataError):
        read_volume(data)
