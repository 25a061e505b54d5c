"""A volume with ``integrity`` in whole machines: whoever has the disk changes it between two starts of one contract.

What the kernel makes of each change is tried in the laboratory (``test_authenticated.py``). Here: what the workload gets to read,
how the machine ends, and what nobody can find without an anchor (with one: ``test_key_service.py``).
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attacks import Attack, edited
from surroundings import PATIENCE, World, attempt, shell

from casemate.demo.services import free_port
from casemate.luks.policy import AUTHENTICATED, DATA_START
from casemate.machine.machines import Machine, Port, Specification, up

pytestmark = [pytest.mark.machines, pytest.mark.long]

BLOCK = 4096
DATA = DATA_START + AUTHENTICATED.offset + (33 << 20)
"""Behind the superblock and the journal of dm-integrity."""
FILE = b"".join(b"%07d\n" % number for number in range(1 << 20))
"""8 MiB, which ``seq -w 0 1048575`` prints."""
ERRORS = (b"Input/output error", b"Invalid or incomplete multibyte or wide character", b"Illegal byte sequence")
COMPOSE = """\
services:
  app:
    image: {image}
    command: [nc, -ll, -p, "7000", -e, /bin/sh]
    volumes: ["/mnt/data:/data"]
    ports: ["7000:7000"]
"""


class Volume:
    """One contract and its disk, which is kept as it was at several times."""

    def __init__(self, world: World) -> None:
        self.disk = world.data("tampered")
        self.port = free_port()
        workload, env = world.workload(COMPOSE.format(image=world.container)), world.env()
        workload["volumes"]["data"] |= {"filesystem": "xfs", "integrity": "hmac-sha256"}
        self.specification: Specification = world.specification(
            "t-tampered", world.contract(workload, env), data=(self.disk,), ports=(Port(self.port, 7000),)
        )

    def ask(self, line: str) -> bytes:
        return shell(self.port, line, 120)

    @contextmanager
    def running(self) -> Iterator[Machine]:
        machine = up(self.specification, timeout=PATIENCE)
        try:
            yield machine
            machine.stop()
        finally:
            machine.down(0.0)

    def kept(self, when: str) -> Path:
        return self.disk.path.with_suffix(f".{when}")

    def keep(self, when: str) -> None:
        shutil.copyfile(self.disk.path, self.kept(when))

    def put_back(self, when: str) -> None:
        shutil.copyfile(self.kept(when), self.disk.path)

    def inside(self) -> int:
        """Where on the disk the workload's file is: the middle of the longest run of sectors that its writing has changed."""
        earlier, later = (self.kept(when).read_bytes() for when in ("earlier", "later"))
        places = range(DATA, len(later) - BLOCK, BLOCK)
        runs = itertools.groupby(places, lambda at: earlier[at : at + BLOCK] != later[at : at + BLOCK])
        longest = max((list(run) for changed, run in runs if changed), key=len)
        assert len(longest) > 500
        return longest[len(longest) // 2]


@pytest.fixture(scope="module")
def volume(world: World) -> Iterator[Volume]:
    """Made, written to, and read as it was written: three starts."""
    volume = Volume(world)
    with volume.running() as machine:
        assert "HPL02001I: Volume data has been made" in machine.console()
        assert volume.ask("echo earlier > /data/state; sync; cat /data/state") == b"earlier\n"
    volume.keep("earlier")
    with volume.running():
        assert volume.ask("echo later > /data/state; seq -w 0 1048575 > /data/file; sync") == b""
    # What the journal of dm-integrity has is written out by the next start: now it stands where it belongs.
    with volume.running() as machine:
        assert volume.ask("cat /data/state /data/file") == b"later\n" + FILE
        assert "HPL07021E" not in machine.console()
    volume.keep("later")
    yield volume
    for path in (volume.disk.path, volume.kept("earlier"), volume.kept("later")):
        path.unlink()


def turn(disk: bytearray, at: int) -> None:
    disk[at] ^= 1


def swap(disk: bytearray, at: int) -> None:
    other = at + 8 * BLOCK
    disk[at : at + BLOCK], disk[other : other + BLOCK] = disk[other : other + BLOCK], disk[at : at + BLOCK]


@pytest.mark.parametrize("change", [turn, swap])
def test_a_sector_that_was_changed_gives_an_error_and_never_other_bytes_and_the_machine_stops(
    volume: Volume, change: Callable[[bytearray, int], None]
) -> None:
    disk = bytearray(volume.kept("later").read_bytes())
    change(disk, volume.inside())
    volume.disk.path.write_bytes(disk)
    with volume.running() as machine:
        assert volume.ask("cat /data/state") == b"later\n"
        read, _, said = volume.ask("cat /data/file").partition(b"cat: ")
        assert FILE.startswith(read) and len(read) < len(FILE) and any(error in said for error in ERRORS), said
        end = time.monotonic() + 90
        while machine.running:
            assert time.monotonic() < end, machine.console()[-3000:]
            time.sleep(0.5)
        assert machine.reason.startswith("HPL07021E: volume data, at /mnt/data: sector "), machine.reason


def test_the_disk_as_it_was_opens_again_with_every_byte(volume: Volume) -> None:
    volume.put_back("later")
    with volume.running() as machine:
        assert volume.ask("cat /data/state /data/file") == b"later\n" + FILE
        assert "HPL07021E" not in machine.console()


def test_a_whole_disk_that_is_put_back_is_taken_as_the_documents_say(volume: Volume) -> None:
    """Without an anchor nobody remembers (``docs/threat-model.md``, "Rollback of data")."""
    volume.put_back("earlier")
    with volume.running() as machine:
        assert volume.ask("cat /data/state; ls /data/file") == b"earlier\nls: /data/file: No such file or directory\n"
        assert "HPL07021E" not in machine.console()


def turned(area: bytes) -> bytes:
    """A bit of both copies."""
    return bytes(byte ^ (at in (100, 16484)) for at, byte in enumerate(area))


@pytest.mark.parametrize("attack", [turned, edited(lambda metadata: metadata["segments"]["0"].pop("integrity"))])
def test_changed_headers_are_refused_and_nothing_is_written(volume: Volume, attack: Attack) -> None:
    volume.put_back("later")
    with volume.disk.path.open("r+b") as file:
        file.seek(DATA_START)
        area = file.read(AUTHENTICATED.offset)
        file.seek(DATA_START)
        file.write(attack(area))
    outcome = attempt(volume.specification)
    assert outcome.reason.startswith("HPL07016E: "), outcome.console[-3000:]
    assert outcome.disks_untouched and not outcome.ready
