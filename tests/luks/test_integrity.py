"""Authenticated volumes: their headers are accepted where they are asked for and only there; what is mapped is computed."""

from __future__ import annotations

import copy
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.luks import integrity
from casemate.luks.errors import LuksError
from casemate.luks.header import Header, read_header, rebuilt
from casemate.luks.integrity import check_superblock, lower_table, room, upper_table
from casemate.luks.policy import AUTHENTICATED, OURS, check

# As cryptsetup 2.6.1 wrote it in a guest, with format_arguments(integrity=True): it needs a device mapper, so not made here.
METADATA: dict[str, Any] = {
    "keyslots": {
        "0": {
            "type": "luks2",
            "key_size": 96,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {
                "type": "raw",
                "offset": "32768",
                "size": "385024",
                "encryption": "aes-xts-plain64",
                "key_size": 64,
            },
            "kdf": {
                "type": "argon2id",
                "time": 4,
                "memory": 65536,
                "cpus": 1,
                "salt": "xcotekBb98BEkwX+a603GT3zt8OdV0s2uOrCKK+H18I=",
            },
        }
    },
    "tokens": {},
    "segments": {
        "0": {
            "type": "crypt",
            "offset": "1048576",
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": "aes-xts-plain64",
            "sector_size": 4096,
            "integrity": {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"},
        }
    },
    "digests": {
        "0": {
            "type": "pbkdf2",
            "keyslots": ["0"],
            "segments": ["0"],
            "hash": "sha256",
            "iterations": 1000,
            "salt": "tRzLuJFkMed/7P3kFxARkB6DIaOyqG0y/u5NWtv2xd8=",
            "digest": "BouUN+JbJpdweOBimQdVk5mNQs0cMIqngKsdUfRY+sk=",
        }
    },
    "config": {"json_size": "12288", "keyslots_size": "786432"},
}
HEADER = Header(16384, 3, "54e6bca9-2af0-467a-91f8-07b6355da15b", "", "", METADATA)
SIZE = 1 << 30
# As Linux 6.1 wrote it for a segment of 1 GiB - 1 MiB.
SUPERBLOCK = bytes.fromhex(
    "696e74656772740004 0f 2000 f8000000 38ba1e0000000000 08000000 03 0c 0000".replace(" ", "")
).ljust(512, b"\0")


def test_a_header_as_cryptsetup_writes_it_is_admitted_where_integrity_is_asked_for() -> None:
    check(HEADER, SIZE, AUTHENTICATED)
    area = rebuilt(HEADER, bytes(AUTHENTICATED.offset))
    assert read_header(area).metadata == METADATA


def test_a_volume_with_integrity_is_never_taken_for_one_without() -> None:
    with pytest.raises(LuksError, match="never write"):
        check(HEADER, SIZE, OURS)


def edited(*path: str, value: Any = None) -> Header:
    """The header with another value at a place, or without it."""
    metadata = copy.deepcopy(METADATA)
    place: Any = metadata
    for part in path[:-1]:
        place = place[part]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return replace(HEADER, metadata=metadata)


@pytest.mark.parametrize(
    "attack",
    [
        edited("segments", "0", "integrity"),
        edited("segments", "0", "integrity", "type", value="none"),
        edited("segments", "0", "integrity", "type", value="poly1305"),
        edited("segments", "0", "integrity", "journal_integrity", value="hmac(sha256)"),
        edited("segments", "0", "integrity", "journal_encryption"),
        edited("segments", "0", "encryption", value="cipher_null-ecb"),
        edited("segments", "0", "sector_size", value=512),
        edited("segments", "0", "flags", value=["backup-final"]),
        edited("keyslots", "0", "key_size", value=64),
        edited("keyslots", "0", "area", "size", value="258048"),
        edited("keyslots", "0", "area", "encryption", value="cipher_null-ecb"),
        edited("config", "requirements", value={"mandatory": ["online-reencrypt"]}),
    ],
)
def test_no_other_form_is_admitted(attack: Header) -> None:
    for expected in (AUTHENTICATED, OURS):
        with pytest.raises(LuksError):
            check(attack, SIZE, expected)


def test_a_plain_header_is_refused_where_integrity_is_asked_for(area: bytes) -> None:
    check(read_header(area), 64 << 20, OURS)
    with pytest.raises(LuksError, match="lacks an entry that we always write: 'integrity'"):
        check(read_header(area), 64 << 20, AUTHENTICATED)


def test_two_key_slots_of_an_authenticated_volume_fit_before_its_data() -> None:
    metadata = copy.deepcopy(METADATA)
    second = copy.deepcopy(metadata["keyslots"]["0"])
    second["area"]["offset"] = str(32768 + AUTHENTICATED.material)
    metadata["keyslots"]["1"], metadata["digests"]["0"]["keyslots"] = second, ["0", "1"]
    check(replace(HEADER, metadata=metadata), SIZE, AUTHENTICATED)


def test_the_room_is_what_the_kernel_has_found_for_a_gibibyte() -> None:
    assert room(SIZE - AUTHENTICATED.offset) == 2013752 * 512  # of SUPERBLOCK: 0x1eba38


@given(st.integers(0, 1 << 45))
def test_the_last_sector_of_the_room_lies_within_the_segment_and_the_next_does_not(length: int) -> None:
    def end_of(sectors: int) -> int:
        area = (sectors - 1) >> 15
        return integrity._INITIAL + (area + 1) * integrity._RUN + sectors

    sectors = room(length) // 512
    assert sectors % 8 == 0
    assert not sectors or end_of(sectors) <= length // 512
    assert end_of(sectors + 8) > length // 512


def test_a_superblock_as_the_kernel_writes_it_is_admitted() -> None:
    check_superblock(SUPERBLOCK)
    grown = SUPERBLOCK[:16] + struct.pack("<Q", 1 << 40) + SUPERBLOCK[24:]
    check_superblock(grown)  # the kernel writes its own size, and takes ours


@pytest.mark.parametrize("at", [0, 8, 9, 10, 12, 24, 28, 32])
def test_any_other_superblock_is_refused(at: int) -> None:
    with pytest.raises(LuksError):
        check_superblock(SUPERBLOCK[:at] + bytes([SUPERBLOCK[at] ^ 2]) + SUPERBLOCK[at + 1 :])


def test_the_tables_name_cipher_place_and_size_and_no_key() -> None:
    assert lower_table("/dev/vdb", 1 << 20, 4096) == (
        "0 8 integrity /dev/vdb 2048 32 J 5 journal_sectors:65472 interleave_sectors:32768 buffer_sectors:128 "
        "block_size:4096 fix_padding"
    )
    assert upper_table("/dev/mapper/x", 4096, "casemate:data") == (
        "0 8 crypt capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:casemate:data 0 /dev/mapper/x 0 "
        "2 integrity:32:aead sector_size:4096"
    )
