"""What we write is accepted; what an infrastructure could write instead is refused, and said precisely."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from attacks import ATTACKS, edited, put, rewritten, with_binary, with_json
from luksvolumes import KEY, SIZE, cryptsetup, luks_format

from casemate.luks.errors import LuksError
from casemate.luks.header import START, in_order, is_luks, luks_area_size, placed, read_header, rebuilt, with_only
from casemate.luks.policy import OLDER, OURS, Expected, admitted, check, format_arguments, kdf_arguments

pytestmark = pytest.mark.components

QUICK = ("--batch-mode", "--type", "luks2", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "65536")

# What the message of some refusals has to say.
CAUSES = {
    "a null cipher in the segment": "segments.0.encryption: is 'cipher_null-ecb', not 'aes-xts-plain64'",
    "a null cipher in the key slot": "keyslots.0.area.encryption: is 'cipher_null-ecb', not 'aes-xts-plain64'",
    "a null cipher in a second key slot": "keyslots.1.area.encryption: is 'cipher_null-ecb', not 'aes-xts-plain64'",
    "a segment that is not encrypted": "segments.0: lacks an entry that we always write: 'encryption'",
    "a second segment": "segments: has an entry that we never write: '1'",
    "flags of the segment": "segments.0: has an entry that we never write: 'flags'",
    "integrity": "segments.0: has an entry that we never write: 'integrity'",
    "a moved offset": "segments.0.offset: is '2097152', not '1048576'",
    "a foreign key slot": "keyslots: is 3, not one or two key slots",
    "a key slot for no segment": "digests.0.keyslots: is a list, not a list of each key slot, once",
    "key slots that overlap": "keyslots.1.area.offset: is '32768', not a place of its own",
    "key slots that overlap a little": "keyslots.1.area.offset: is '36864', not a place of its own",
    "a key slot within the data": "keyslots.0.area.offset: is '1048576', not a place in the key slots area",
    "huge memory": "keyslots.0.kdf.memory: is 4194304, not from 32768 to 1048576",
    "huge work": "keyslots.0.kdf.time: is 1024, not one that this memory allows: 64 GiB in all passes",
    "true for one": "keyslots.0.kdf.cpus: is True, not from 1 to 4",
    "a foreign digest": "digests: has an entry that we never write: '1'",
    "a token": "tokens: is a dict, not {}",
    "a re-encryption under way": "config: has an entry that we never write: 'requirements'",
    "flags of the volume": "config: has an entry that we never write: 'flags'",
    "a key twice": "header JSON: has a key twice",
    "a key twice by escapes": "header JSON: has a key twice",
    "a fraction": "header JSON: has a number that is not whole",
    "wrong checksums": "header: no copy of the header is intact; first copy: its checksum is wrong",
    "version 1": "header: LUKS version 1, not 2",
    "copies of one age that differ": "the two copies of the header are of the same age and differ",
    "a newer second copy": "segments.0.encryption: is 'cipher_null-ecb', not 'aes-xts-plain64'",
    "a second copy alone": "segments.0.encryption: is 'cipher_null-ecb', not 'aes-xts-plain64'",
}


def opens(header: Path, device: Path, key: bytes = KEY) -> bool:
    return cryptsetup("open", "--test-passphrase", "--header", header, device, key=key).returncode == 0


def test_a_volume_made_with_our_options_is_admitted(area: bytes) -> None:
    assert is_luks(area[:4096])
    assert luks_area_size(area[:START]) == len(area) == OURS.offset
    header = read_header(area)
    assert header.intact
    check(header, SIZE)


def test_a_passphrase_can_roll_and_the_volume_is_admitted_at_each_step(volume: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(volume, tmp_path / "copy"))
    (tmp_path / "new").write_bytes(b"another passphrase")
    for command in (
        ["luksAddKey", *kdf_arguments(), str(copy), str(tmp_path / "new")],
        ["luksKillSlot", str(copy), "0"],
        ["luksAddKey", *kdf_arguments(), "--key-slot", "7", str(copy), str(tmp_path / "new")],
    ):
        key = KEY if command[0] == "luksAddKey" and "--key-slot" not in command else b"another passphrase"
        assert cryptsetup(*command, key=key).returncode == 0
        check(read_header(copy.read_bytes()), SIZE)
    assert opens(copy, copy, b"another passphrase")
    assert not opens(copy, copy)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_header_is_refused_that_has(name: str, area: bytes) -> None:
    attacked = ATTACKS[name](area)
    assert attacked != area
    with pytest.raises(LuksError) as caught:
        admitted(attacked, SIZE)
    assert caught.value.id == "LUKS-HEADER"
    assert str(caught.value).isascii()
    assert "\x1b" not in caught.value.diagnostics()
    if name in CAUSES:
        assert str(caught.value) == CAUSES[name]
    with contextlib.suppress(LuksError):
        assert luks_area_size(attacked) <= 32 << 20


def test_the_causes_belong_to_attacks() -> None:
    assert CAUSES.keys() <= ATTACKS.keys()


def test_cryptsetup_alone_takes_a_null_cipher_in_the_segment(volume: Path, area: bytes, tmp_path: Path) -> None:
    """What this package is for: the right passphrase opens it, and the guest would write plain text."""
    (tmp_path / "attacked").write_bytes(ATTACKS["a null cipher in the segment"](area))
    assert opens(tmp_path / "attacked", volume)


def test_what_is_rebuilt_opens_with_the_passphrase_and_no_other(volume: Path, area: bytes, tmp_path: Path) -> None:
    (tmp_path / "header").write_bytes(admitted(area, SIZE))
    assert opens(tmp_path / "header", volume)
    assert not opens(tmp_path / "header", volume, b"another")
    assert subprocess.run(["cryptsetup", "isLuks", "--type", "luks2", tmp_path / "header"]).returncode == 0


def test_a_passphrase_rolls_in_what_is_rebuilt_and_that_goes_back_to_the_disk(volume: Path, tmp_path: Path) -> None:
    disk, header, new = Path(shutil.copy(volume, tmp_path / "disk")), tmp_path / "header", tmp_path / "new"
    header.write_bytes(admitted(disk.read_bytes()[: 1 << 20], SIZE))
    new.write_bytes(b"another passphrase")
    done = cryptsetup("luksChangeKey", *kdf_arguments(), "--header", header, disk, new)
    assert done.returncode == 0, done.stderr
    with disk.open("r+b") as file:
        file.write(header.read_bytes())
    assert disk.stat().st_size == SIZE
    header.write_bytes(admitted(disk.read_bytes()[: 1 << 20], SIZE))
    assert opens(header, disk, b"another passphrase")
    assert not opens(header, disk)


def test_what_is_placed_opens_the_whole_disk_and_names_the_part_of_it(area: bytes, tmp_path: Path) -> None:
    disk, header = tmp_path / "disk", tmp_path / "header"
    header.write_bytes(placed(admitted(area, SIZE), 101 << 20))
    with disk.open("wb") as file:
        file.truncate((101 << 20) + SIZE + (1 << 20))
    assert opens(header, disk)
    assert not opens(header, disk, b"another")
    segment = read_header(header.read_bytes()).metadata["segments"]["0"]
    assert (segment["offset"], segment["size"]) == (str(102 << 20), "dynamic")
    with pytest.raises(LuksError):
        admitted(header.read_bytes(), SIZE)  # never what may stand on a disk


def test_any_order_of_writes_between_two_waits_leaves_headers_that_open(area: bytes) -> None:
    """Whichever of the sectors between two waits reached the disk before the power was cut."""
    chance = random.Random(7)
    newer = with_only(area, next(iter(read_header(area).metadata["keyslots"])))
    allowed = {read_header(area).sequence, read_header(newer).sequence}
    for counts in (0, 1):
        disk = bytearray(area)
        for offset, part in in_order(newer, counts):
            for _ in range(20):
                cut = bytearray(disk)
                for at in range(0, len(part), 512):
                    if chance.random() < 0.5:
                        cut[offset + at : offset + at + 512] = part[at : at + 512]
                assert read_header(bytes(cut)).sequence in allowed
            disk[offset : offset + len(part)] = part
        assert read_header(bytes(disk)).sequence == max(allowed)


def test_with_one_key_slot_left_the_other_passphrase_opens_nothing(volume: Path, tmp_path: Path) -> None:
    both, new = Path(shutil.copy(volume, tmp_path / "both")), tmp_path / "new"
    new.write_bytes(b"another passphrase")
    assert cryptsetup("luksAddKey", *kdf_arguments(), both, new).returncode == 0
    area = admitted(both.read_bytes()[: 1 << 20], SIZE)
    for kept, opening, other in (("0", KEY, b"another passphrase"), ("1", b"another passphrase", KEY)):
        one = with_only(area, kept)
        (tmp_path / "one").write_bytes(admitted(one, SIZE))
        assert opens(tmp_path / "one", both, opening)
        assert not opens(tmp_path / "one", both, other)
        gone = read_header(area).metadata["keyslots"][str(1 - int(kept))]["area"]
        begin = int(gone["offset"])
        assert not any(one[begin : begin + int(gone["size"])])


def test_a_sequence_number_that_cannot_grow_is_refused(area: bytes) -> None:
    last = with_binary(area, 16, b"\xff" * 8)
    with pytest.raises(LuksError, match="can't grow"):
        with_only(last, "0")


def test_what_is_rebuilt_says_the_same_and_holds_nothing_else(area: bytes) -> None:
    again = admitted(area[:-9] + b"leftovers", SIZE)
    assert len(again) == len(area)
    assert read_header(again) == read_header(area)
    assert read_header(again).intact
    assert b"leftovers" not in again
    assert again == admitted(again, SIZE)


@pytest.mark.parametrize("index", [0, 1])
def test_a_copy_damaged_by_a_power_cut_costs_nothing(volume: Path, area: bytes, tmp_path: Path, index: int) -> None:
    damaged = bytearray(area)
    damaged[index * (16 << 10) + 5000] ^= 0xFF
    header = read_header(bytes(damaged))
    assert header == read_header(area)
    assert not header.intact
    (tmp_path / "header").write_bytes(admitted(bytes(damaged), SIZE))
    assert opens(tmp_path / "header", volume)


def test_the_newer_copy_counts_whichever_it_is(area: bytes) -> None:
    for index in (0, 1):
        newer = with_binary(area, 16, (77).to_bytes(8, "big"), (index,))
        assert read_header(newer).sequence == 77
        assert not read_header(newer).intact
        again = admitted(newer, SIZE)
        assert read_header(again).sequence == 77
        assert read_header(again).intact


def test_a_volume_whose_first_copy_is_gone_is_still_known_as_one(area: bytes) -> None:
    gone = bytes(4096) + area[4096:]
    assert is_luks(gone)
    assert not is_luks(bytes(1 << 20))
    assert luks_area_size(gone) == 32 << 20


def test_other_spellings_of_the_same_json_are_the_same_header(area: bytes) -> None:
    spelt = rewritten(b"aes-xts-plain64", b"aes\\u002dxts-plain64")(rewritten(b'{"', b' {\n"')(area))
    assert admitted(spelt, SIZE) == admitted(area, SIZE)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--hash", "sha512"),
        ("--pbkdf", "argon2i"),
        ("--sector-size", "512"),
        ("--sector-size", "4096"),
    ],
)
def test_an_older_volume_made_by_cryptsetup_as_it_is_is_admitted(options: tuple[str, ...], tmp_path: Path) -> None:
    area = luks_format(tmp_path / "volume", *QUICK, "--key-size", "512", *options).read_bytes()
    check(read_header(area), SIZE, OLDER)
    with pytest.raises(LuksError, match=r"segments.0.offset: is '16777216'"):
        check(read_header(area), SIZE)
    assert luks_area_size(area[:START]) == OLDER.offset


@pytest.mark.parametrize("options", [("--cipher", "aes-cbc-essiv:sha256"), ("--key-size", "256"), ("--hash", "sha1")])
def test_an_older_volume_of_a_weaker_kind_is_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    area = luks_format(tmp_path / "volume", *QUICK, *options).read_bytes()
    with pytest.raises(LuksError):
        check(read_header(area), SIZE, OLDER)


def test_our_volumes_have_only_our_hashes_and_key_derivation(area: bytes) -> None:
    for attack in (put("keyslots.0.kdf.type", "argon2i"), put("digests.0.hash", "sha512")):
        header = read_header(attack(area))
        with pytest.raises(LuksError):
            check(header, SIZE)
        check(header, SIZE, Expected(older=True))


def test_pbkdf2_is_admitted_where_it_is_expected_and_strong(area: bytes) -> None:
    kdf = {"type": "pbkdf2", "hash": "sha256", "iterations": 500_000, "salt": "A" * 43 + "="}
    header = read_header(put("keyslots.0.kdf", kdf)(area))
    with pytest.raises(LuksError, match=r"keyslots.0.kdf"):
        check(header, SIZE)
    check(header, SIZE, Expected(pbkdf2_allowed=True))
    weak = read_header(put("keyslots.0.kdf", kdf | {"iterations": 1000})(area))
    with pytest.raises(LuksError, match=r"keyslots.0.kdf.iterations: is 1000"):
        check(weak, SIZE, Expected(pbkdf2_allowed=True))


def test_a_volume_of_version_1_is_refused_and_never_taken_for_a_blank_disk(tmp_path: Path) -> None:
    options = ("--batch-mode", "--type", "luks1", "--pbkdf-force-iterations", "1000")
    data = luks_format(tmp_path / "volume", *options).read_bytes()
    assert is_luks(data[:4096])
    with pytest.raises(LuksError, match="LUKS version 1, not 2"):
        read_header(data)


@pytest.mark.parametrize("size", [0, 1 << 20, (1 << 20) + 512, (2 << 20) + 512])
def test_a_device_without_whole_sectors_of_data_is_refused(area: bytes, size: int) -> None:
    with pytest.raises(LuksError, match="no whole number of sectors"):
        check(read_header(area), size)


def test_the_error_shows_few_and_harmless_characters_of_what_the_disk_says(area: bytes) -> None:
    header = read_header(put("segments.0.encryption", "\x1b[31m" + "é" * 1000)(area))
    with pytest.raises(LuksError) as caught:
        check(header, SIZE)
    assert len(str(caught.value)) < 120
    assert str(caught.value).isprintable()


def test_an_area_that_ends_before_the_data_is_not_rebuilt(area: bytes) -> None:
    with pytest.raises(LuksError, match="do not reach the data"):
        rebuilt(read_header(area), area[: 64 << 10])


def test_kinds_of_volumes_that_cannot_be_are_refused() -> None:
    for wrong in ({"offset": 0}, {"offset": 1000}, {"offset": 1 << 30}, {"sector_size": 1024}):
        with pytest.raises(ValueError, match="no volume"):
            Expected(**wrong)


def test_the_options_name_no_device_and_no_key() -> None:
    assert not [option for option in format_arguments() if "/" in option or "key-file" in option]
    assert set(kdf_arguments()) <= set(format_arguments())


def test_the_json_of_one_copy_that_is_intact_but_wrong_is_refused(area: bytes) -> None:
    """A wrong content under a right checksum is no accident: the other copy does not help."""
    for index in (0, 1):
        with pytest.raises(LuksError, match="is not JSON"):
            read_header(with_json(area, b"{", (index,)))


def test_an_edit_that_changes_nothing_is_admitted(area: bytes) -> None:
    assert admitted(edited(lambda metadata: None)(area), SIZE) == admitted(area, SIZE)
