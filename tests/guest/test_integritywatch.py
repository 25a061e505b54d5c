"""What ``hpl-integrity`` makes of the kernel's log, and where a file system is written to before it is made."""

from __future__ import annotations

import errno
import os

import pytest

from casemate.guest import integritywatch
from casemate.guest.filesystems import MIB, make_command, read_when_made
from casemate.guest.integritywatch import look
from casemate.guest.report import Stop

# As Linux 6.1 says it.
LINE = b"3,731,%d,-;trusted_key: device-mapper: crypt: dm-%d: INTEGRITY AEAD ERROR, sector 8\n SUBSYSTEM=block\n"
WATCHED = {"dm-2": ("volume data, at /mnt/data", 10.0)}


def test_a_sector_that_is_not_as_it_was_written_stops_the_machine() -> None:
    with pytest.raises(Stop) as stop:
        look([b"6,1,99,-;hello\n", LINE % (10_000_001, 2)], WATCHED)
    assert stop.value.id == "HPL07021E"
    assert stop.value.detail == "volume data, at /mnt/data: sector 8 is not as it was written"


@pytest.mark.parametrize(
    "record",
    [
        LINE % (9_999_999, 2),  # while the file system was made
        LINE % (10_000_001, 3),  # another device
        b"3,1,10000001,-;a container says: device-mapper: crypt: dm-2: nothing\n",
        b"3,1,10000001,-;first line\ndevice-mapper: crypt: dm-2: INTEGRITY AEAD ERROR, sector 8\n",
        b"garbage",
        b"",
    ],
)
def test_nothing_else_does(record: bytes) -> None:
    look([record], WATCHED)


def test_records_that_were_overwritten_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[bytes | OSError] = [b"one", OSError(errno.EPIPE, "lost"), b"two", OSError(errno.EIO, "gone")]

    def read(descriptor: int, size: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "read", read)
    found = integritywatch.records(3)
    assert [next(found), next(found)] == [b"one", b"two"]
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_both_ends_and_the_copies_of_ext4s_superblock_are_written_before_it_is_made() -> None:
    size = 2 << 30
    assert read_when_made("xfs", size) == [(0, MIB), (size - MIB, MIB)]
    assert [place // (128 * MIB) for place, length in read_when_made("ext4", size)[2:]] == [1, 3, 5, 7, 9]
    assert all(place % 4096 == 0 and place + length <= size for place, length in read_when_made("ext4", size))


def test_all_of_ext4s_journal_is_written_where_nothing_else_can_be_read() -> None:
    assert "lazy_journal_init=0" in str(make_command("ext4", "/dev/x", 1 << 30, True))
    assert "lazy_journal_init=1" in str(make_command("ext4", "/dev/x", 1 << 30))
