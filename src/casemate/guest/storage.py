"""``hpl-storage``: writes to the data disks what ``hpl-volumes`` has planned, and mounts the volumes.

Until here no disk has been touched: every image has been admitted, every disk is a volume of this contract or empty.
A cut of the power at any moment leaves a volume that opens, or a disk that counts as empty (``docs/formats/luks.md``):

- A new volume: a mark in one sector; the file system; the headers; the partition table; the mark is taken away.
- A wrapped third seed stands twice, like the headers, and is written before them.
- A volume with ``integrity`` is opened here, with the key that ``hpl-volumes`` left (:mod:`casemate.guest.authenticated`).
- Headers change in one copy, then in the other; a key slot is added before another one goes.
- A larger disk: what counts is computed from its size. The partition table tells others; the file system grows mounted.

Each volume is mounted at ``/var/volumes/<name>``; ``hpl-container`` shows it to containers under the mount point that
the contract names.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from casemate.guest import kernel, state
from casemate.guest.filesystems import MIB, grow_command, make_command, read_when_made
from casemate.guest.report import Stop, say
from casemate.guest.volumes import BEING_MADE, HEADERS, Plan, plans, read
from casemate.luks.header import in_order
from casemate.luks.policy import DATA_START, METADATA_SIZE, METADATA_START

UNFORESEEN = "HPL02120E"


def write(device: str, offset: int, content: bytes) -> None:
    """Write to a place of a device, and wait until all that was written to it is there."""
    descriptor = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        while content:
            written = os.pwrite(descriptor, content, offset)
            content, offset = content[written:], offset + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mark(plan: Plan) -> None:
    """Write the mark that a volume is being made. It stands on the disk before anything else."""
    try:
        write(plan.path, METADATA_START, BEING_MADE)
    except OSError as error:
        raise Stop("HPL02005E", f"volume {plan.name}: {error}") from None


def make(plan: Plan) -> None:
    """Make a file system in a new volume."""
    try:
        if plan.integrity:
            for offset, length in read_when_made(plan.filesystem, plan.room):
                write(plan.device, offset, bytes(length))
        state.call(*make_command(plan.filesystem, plan.device, plan.room, plan.integrity))
        write(plan.device, 0, b"")
    except OSError as error:
        raise Stop("HPL02005E", f"volume {plan.name}: {error}") from None


def write_wrapped(plan: Plan) -> None:
    """Write the wrapped third seed to the metadata partition: the copy that counts is written last."""
    from casemate.luks import wrappedseed

    try:
        for offset, part in wrappedseed.in_order((HEADERS / f"{plan.name}.wrapped").read_bytes(), plan.wrapped or 0):
            write(plan.path, offset, part)
    except OSError as error:
        raise Stop("HPL07007E", f"volume {plan.name}: its wrapped seed can't be written: {error.strerror}") from None


def write_headers(plan: Plan) -> None:
    """Write each of the planned headers to the disk, in the order that no cut can harm."""
    try:
        for file, counts in plan.steps:
            for offset, part in in_order((HEADERS / file).read_bytes(), counts):
                write(plan.path, plan.start + offset, part)
    except OSError as error:
        raise Stop("HPL07014E", f"volume {plan.name}: its headers can't be written: {error.strerror}") from None


def has_partition_table(plan: Plan) -> bool:
    """Whether the disk has a partition table whose second copy is at its end. Nothing of it is ever used here."""
    beginning = read(plan.path, 0, 1024)
    magic, alternate = beginning[512:520], struct.unpack_from("<Q", beginning, 512 + 32)[0]
    return beginning[510:512] == b"\x55\xaa" and magic == b"EFI PART" and alternate == plan.size // 512 - 1


def write_partition_table(plan: Plan) -> None:
    """Tell other systems where metadata and volume are, up to the end of the disk."""
    table = f"label: gpt\nstart={METADATA_START // 512}, size={METADATA_SIZE // 512}, type=linux\n"
    table += f"start={DATA_START // 512}, size={plan.length // 512}, type=linux\n"
    try:
        state.call(
            *("sfdisk", "--quiet", "--force", "--no-reread", "--no-tell-kernel", "--wipe", "never", plan.path),
            stdin=table.encode(),
        )
        write(plan.path, 0, b"")
    except OSError as error:
        if plan.make:
            raise Stop("HPL07003E", f"volume {plan.name}: {error}") from None
        raise Stop("HPL07004E", f"volume {plan.name}: {error}") from None


def mount(plan: Plan) -> str:
    """Mount an open volume; return where."""
    target = state.VOLUMES / plan.name
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    if plan.filesystem != "ext4":
        with suppress(OSError):
            state.call("modprobe", plan.filesystem)
    try:
        kernel.mount(plan.device, str(target), plan.filesystem, kernel.MS_NOSUID | kernel.MS_NODEV)
    except OSError as error:
        text = f"volume {plan.name} can't be mounted as {plan.filesystem}: {error.strerror}"
        raise Stop("HPL02007E", text) from None
    return str(target)


def grow(plan: Plan, target: str) -> None:
    """Grow a mounted file system to the end of its volume."""
    try:
        if plan.integrity:  # the kernel reads the block that is to be the last
            write(plan.device, plan.room - MIB, bytes(MIB))
        state.call(*grow_command(plan.filesystem, plan.device, target, plan.room if plan.start else None))
    except OSError as error:
        raise Stop("HPL02006E", f"volume {plan.name}: {error}") from None
    say("HPL07017I", f"Volume {plan.name} has grown to {plan.length >> 20} MiB.")


def opened(plan: Plan) -> Plan:
    """Open an authenticated volume that exists; all others are open, or are to be made."""
    if plan.make or not plan.integrity:
        return plan
    from casemate.guest import authenticated

    return authenticated.open_volume(plan)


def carry_out(plan: Plan) -> None:
    """Do all the writing for one volume, and mount it."""
    if plan.integrity:
        from casemate.guest import authenticated
    if plan.make:
        mark(plan)
        if plan.integrity:
            authenticated.prepare(plan)
            plan = authenticated.open_volume(plan)
        make(plan)
    if plan.integrity:
        authenticated.watch(plan)
    if plan.wrapped is not None:
        write_wrapped(plan)
    write_headers(plan)
    if plan.start and not has_partition_table(plan):
        write_partition_table(plan)
    if plan.make or plan.being_made:
        write(plan.path, METADATA_START, bytes(len(BEING_MADE)))
        say("HPL02001I", f"Volume {plan.name} has been made and encrypted on {plan.disk}.")
    if plan.rolled:
        say("HPL07018I", f"Volume {plan.name} opens with its new seeds only.")
    target = mount(plan)
    if plan.grow:
        grow(plan, target)
    say("HPL02002I", f"Volume {plan.name} has been mounted at {plan.mount}.")


def service() -> None:
    """Carry out every plan."""
    volumes = [opened(plan) for plan in plans()]
    anchors = {}
    if state.ANCHORS.exists():
        from casemate.guest import anchor

        anchors = anchor.load()
    for plan in volumes:
        if plan.name in anchors:
            anchor.before(plan, anchors[plan.name])
    for plan in volumes:
        carry_out(plan)
    for plan in volumes:
        if plan.name in anchors:
            anchor.after(plan, anchors[plan.name])
    if state.VOLUME_KEYS.exists():
        state.VOLUME_KEYS.rmdir()
    if volumes:
        say("HPL07003I", f"Mounting volumes done: {', '.join(plan.name for plan in volumes)}.")
