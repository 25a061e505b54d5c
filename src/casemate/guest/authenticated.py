"""Opens authenticated volumes: dm-integrity on the disk, dm-crypt over it. Imported only where a contract asks for one.

What is mapped, and where, is computed (:mod:`casemate.luks.integrity`); of the disk only dm-integrity's superblock is read, past
the kernel's cache, and has to be of the one form that the kernel writes. dm-crypt is given the volume key by the kernel's
keyring, so that no argument and no table has it. A sector that does not fit its tag can't be read, and the kernel says so in
its log: ``hpl-integrity`` (:mod:`casemate.guest.integritywatch`) reads that and stops the machine.

The disk is not written all over when a volume is made: a large one would take hours. Sectors that nobody wrote have no tag, so
they can't be read. No file system reads what it did not write, once it is made; what is read while it is made
(:func:`casemate.guest.filesystems.read_when_made`) and all of ext4's journal is written before.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from casemate.guest import state
from casemate.guest.diskcheck import devices, direct
from casemate.guest.filesystems import SUPERBLOCK_PLACES, SUPERBLOCKS, filesystem_size, worth_growing
from casemate.guest.report import Stop
from casemate.guest.volumes import Plan, lower_mapping, mapping
from casemate.luks.errors import LuksError
from casemate.luks.integrity import SUPERBLOCK, check_superblock, lower_table, room, upper_table
from casemate.luks.policy import AUTHENTICATED, SECTOR_SIZE

_ADD_KEY, _KEYCTL = {"s390x": (278, 280)}.get(os.uname().machine, (248, 250))
"""Numbers of the system calls ``add_key(2)`` and ``keyctl(2)``: of s390x, and of x86-64."""
_SESSION, _UNLINK = -3, 9
_libc = ctypes.CDLL(None, use_errno=True)


def prepare(plan: Plan) -> None:
    """Have the kernel write superblock and journal of a new volume. What a power cut left of one before is written over."""
    from casemate.guest.storage import write

    start = plan.start + AUTHENTICATED.offset
    write(plan.path, start, bytes(SUPERBLOCK))
    name = lower_mapping(plan.name)
    _create(name, lower_table(plan.path, start, SECTOR_SIZE))
    _remove(name)


def open_volume(plan: Plan) -> Plan:
    """Open a volume, with the key that ``hpl-volumes`` left and that goes with this; return its plan with what is known now."""
    start = plan.start + AUTHENTICATED.offset
    assert plan.room == room(plan.length - AUTHENTICATED.offset)
    lower = lower_mapping(plan.name)
    try:
        check_superblock(direct(plan.path, start, SUPERBLOCK))
    except LuksError as error:
        raise Stop("HPL07016E", f"disk {plan.disk}: {error}") from None
    file = state.VOLUME_KEYS / plan.name
    key = file.read_bytes()
    file.unlink()
    if len(key) != AUTHENTICATED.key_size:
        raise Stop("HPL02003E", f"volume {plan.name}: its key has another size than that of an authenticated volume")
    _create(lower, lower_table(plan.path, start, plan.room))
    description = f"casemate:{plan.name}"
    with _in_keyring(description, key):
        _create(mapping(plan.name), upper_table(f"/dev/mapper/{lower}", plan.room, description))
    if plan.make:
        return plan
    size = file_system(plan)
    if size is None:
        raise Stop("HPL02007E", f"volume {plan.name} holds no file system of the kind {plan.filesystem}")
    return replace(plan, grow=worth_growing(size, plan.room))


def file_system(plan: Plan) -> int | None:
    """Return how many bytes the file system in an open volume takes: only the block that says so is read."""
    place = SUPERBLOCK_PLACES[plan.filesystem]
    try:
        block = direct(plan.device, place // SECTOR_SIZE * SECTOR_SIZE, SECTOR_SIZE)
    except OSError as error:
        raise Stop("HPL07021E", f"{of_volume(plan)}: its superblock can't be read ({error.strerror})") from None
    beginning = bytes(place // SECTOR_SIZE * SECTOR_SIZE) + block
    return filesystem_size(plan.filesystem, beginning.ljust(SUPERBLOCKS, b"\0"))


def of_volume(plan: Plan) -> str:
    """Return how a volume is called in messages."""
    return f"volume {plan.name}, at {plan.mount}"


def watch(plan: Plan) -> None:
    """Have an open volume watched from now on: what is read from here on has been written before.

    Left for ``hpl-integrity``: by the kernel's name of dm-integrity's device, how the volume is called, and since when (seconds).
    """
    watched = state.read_json(state.INTEGRITY) if state.INTEGRITY.exists() else {}
    block = devices()[lower_mapping(plan.name)][1]
    state.write_json(state.INTEGRITY, {**watched, block.name: [of_volume(plan), time.monotonic()]})


@contextmanager
def _in_keyring(description: str, key: bytes) -> Iterator[None]:
    """Hold a key in the session's keyring, where ``dmsetup`` looks for it, as long as the context lasts; dm-crypt copies it."""
    serial = _libc.syscall(_ADD_KEY, b"logon", description.encode(), key, len(key), _SESSION)
    if serial < 0:
        raise Stop("HPL02003E", f"no key can be handed to the kernel: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        _libc.syscall(_KEYCTL, _UNLINK, serial, _SESSION)


def _create(name: str, table: str) -> None:
    try:
        state.call("dmsetup", "create", name, stdin=f"{table}\n".encode(), env={"DM_DISABLE_UDEV": "1"})
    except OSError as error:
        raise Stop("HPL02003E", f"{name} can't be mapped: {error}") from None


def _remove(name: str) -> None:
    try:
        state.call("dmsetup", "remove", name, env={"DM_DISABLE_UDEV": "1"})
    except OSError as error:
        raise Stop("HPL02002E", f"{name}: {error}") from None
