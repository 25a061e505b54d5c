"""The input disk of a builder machine: found and read by the bootloader, before anything else is done.

A frame (:mod:`casemate.build.frame`) labelled ``casebuild``. Its *head* is the index and the first two files, ``job.json`` and
``approval.json``: read once, whole, into memory, and once more to compare. All that follows is named in the approved job by hash,
and is hashed while it is copied, so hash and use are of the same bytes.

The record has the hash of the head, and of both files: whoever approved the job finds it again in the record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.build import frame
from casemate.errors import CasemateError
from casemate.guest.kernel import Disk
from casemate.guest.report import Stop

LABEL, JOB, APPROVAL = "casebuild", "job.json", "approval.json"
LARGEST = 1 << 20
LINE = "/dev/disk/by-label/casebuild"
Read = Callable[[Disk, int], bytes]
"""Reads so many bytes from a disk's beginning, from the device itself."""


@dataclass(frozen=True, slots=True)
class Given:
    """The head of the input disk. ``device``: the disk's name."""

    device: str
    head: bytes
    job: bytes
    approval: bytes

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the record that speak of it, names and hashes."""
        parts = ((LINE, self.head), ("build:job", self.job), ("build:approval", self.approval))
        return [(name, hashlib.sha256(data).hexdigest()) for name, data in parts]

    def hand_over(self, directory: Path) -> None:
        """Leave it where the builder looks for it, in memory."""
        (directory / "input").write_bytes(self.head)
        (directory / "device").write_text(self.device)


def find(candidates: Sequence[Disk], read: Read) -> Given:
    """Return the head of the one input disk among the disks. Raises :class:`Stop`."""
    found = [disk for disk in candidates if frame.is_frame(read(disk, min(frame.FIRST, disk.size)), LABEL)]
    if len(found) != 1:
        said = "no disk" if not found else f"{len(found)} disks"
        raise Stop("HPL17001E", f"{said} with a build configuration ({LABEL}): a builder machine has one job")
    disk = found[0]
    try:
        places = frame.parse(read(disk, frame.length(read(disk, frame.FIRST))), LABEL)
        end = head_size(places)
    except CasemateError as error:
        raise Stop("HPL17001E", f"the build configuration can't be read: {error.cause}") from None
    head = read(disk, end)
    if read(disk, end) != head:
        raise Stop("HPL17002E", "the input disk answered differently when it was read again")
    try:
        return split(disk.name, head)
    except CasemateError as error:
        raise Stop("HPL17002E", f"the input disk changed while it was read: {error.cause}") from None


def head_size(places: Sequence[frame.Placed]) -> int:
    """Return where the head ends. Raises :class:`~casemate.build.frame.FrameError`."""
    if [place.name for place in places[:2]] != [JOB, APPROVAL] or any(place.size > LARGEST for place in places[:2]):
        raise frame.FrameError(f"it begins with {JOB} and {APPROVAL}, each of 1 MiB at most")
    return places[1].offset + frame.filled(places[1].size)


def split(device: str, head: bytes) -> Given:
    """Return what a head holds, its hashes compared. Raises :class:`~casemate.build.frame.FrameError`."""
    places = frame.parse(head[: frame.length(head)], LABEL)
    if len(head) != head_size(places):
        raise frame.FrameError("the head is not whole")
    files = [head[place.offset : place.offset + place.size] for place in places[:2]]
    for place, content in zip(places, files, strict=False):
        if hashlib.sha256(content).hexdigest() != place.sha256:
            raise frame.FrameError(f"{place.name} is not what the index says")
    return Given(device, head, *files)
