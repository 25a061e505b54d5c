"""``builder-build``: does the one job of a builder machine, and puts the result on its disk (white paper, 5.2).

In this order; the first thing that does not hold stops the machine, and nothing is put out:

1. takes the builder's keys into memory and removes their files: no other process ever sees them;
2. checks that the required number of reviewers have approved the job, for this builder; only then reads it: it must be for this
   generation, and come after the job that the builder remembers as its last;
3. copies what the job names from the input disk, hashing the same bytes;
4. does the work (:mod:`casemate.guest.builderwork`). What runs code that a bundle brings runs in a sandbox
   (:mod:`casemate.guest.buildersandbox`), as another user, without sight of keys, disks and network;
5. looks through all that goes out for private keys;
6. remembers the job, and the log of its own keys, before anything is out;
7. writes the result, signed, and tied to the record of this start.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from casemate import approval
from casemate.build import forms, frame
from casemate.build import job as jobs
from casemate.errors import CasemateError
from casemate.guest import builderinput, builderwork, kernel
from casemate.guest.builderstate import Memory, State
from casemate.guest.builderwork import ATTESTATION, INTERMEDIATE, REVIEWERS, STATE, Builder, Issuer, Out, Work
from casemate.guest.report import Stop, say
from casemate.secret import Secret

UNFORESEEN = "HPL17000E"
RESULT_SERIAL, STATE_SERIAL = "casemate-result", "casemate-state"
RESULT_LABEL = "caseresult"
RESULT, RECORD, SIGNATURE, LOG = "result.json", "se-checksums.txt", "se-signature.bin", "keys.jsonl"
MARK = b"PRIVATE KEY-----"
CHUNK = 1 << 20
PR_SET_DUMPABLE = 4


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything is. ``run``: what the bootloader has left; ``record``: its record; ``work``: on the encrypted root."""

    run: Path
    record: Path
    work: Path
    input: Path
    state: Path
    result: Path


def take_secrets(directory: Path) -> dict[str, Secret]:
    """Read the builder's keys, and remove their files."""
    found = {}
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        found[path.name] = Secret(data)
        with path.open("r+b") as file:
            file.write(bytes(len(data)))
        path.unlink()
    directory.rmdir()
    if not {ATTESTATION, INTERMEDIATE, STATE} <= set(found):
        raise Stop("HPL17007E", "the image lacks a key that a builder has")
    return found


def approve(builder: Builder, given: builderinput.Given, state: State) -> tuple[approval.Approval, jobs.Job]:
    """Return the job, which the required number of reviewers have approved for this builder, now. Raises :class:`Stop`."""
    try:
        reviewers = approval.parse_reviewers(builder.public[REVIEWERS])
        subject = jobs.subject(builder.name)
        approved = approval.verify(given.job, given.approval, reviewers, subject=subject, last=state.accepted)
        job = jobs.parse_job(given.job)
    except CasemateError as error:
        raise Stop("HPL17003E", f"{error.id}: {error.cause}") from None
    if (job.builder, job.generation) != (builder.name, builder.generation):
        raise Stop("HPL17004E", f"the job is for {job.builder}, generation {job.generation}")
    if job.after != state.after:
        raise Stop("HPL17004E", "the job comes after another one than the last job of this builder")
    if state.successor and job.mode == jobs.IMAGE:
        raise Stop("HPL17004E", "this builder has a successor, which makes images now")
    return approved, job


def copy_input(device: Path, given: builderinput.Given, job: jobs.Job, directory: Path) -> dict[str, Path]:
    """Copy the files that a job names to the encrypted disk, each compared with its hash in the job; return them by name.

    The index of the disk was read with the head, so it can't change any more; it must name just what the job names.
    """
    places = frame.parse(given.head[: frame.length(given.head)], builderinput.LABEL)[2:]
    wanted = dict(job.parts)
    found: dict[str, Path] = {}
    with device.open("rb", buffering=0) as disk:
        for place in places:
            if wanted.get(place.name) != jobs.Part(place.sha256, place.size):
                raise Stop("HPL17006E", f"the input disk brings {place.name}, which the job does not name so")
            target = directory / place.name
            copy(disk.fileno(), place, target)
            found[place.name] = target
            if place.name == jobs.PACKAGES and not job.ready:
                from casemate.guest import builderbundles

                wanted |= builderbundles.wanted(target.read_bytes(), places)
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise Stop("HPL17006E", f"the input disk lacks {missing[0]}")
    return found


def copy(source: int, place: frame.Placed, target: Path) -> None:
    """Copy a file off a disk; what was written is what was hashed. Raises :class:`Stop`."""
    measured, done = hashlib.sha256(), 0
    with target.open("xb") as out:
        while done < place.size:
            piece = os.pread(source, min(CHUNK, place.size - done), place.offset + done)
            if not piece:
                break
            measured.update(piece)
            out.write(piece)
            done += len(piece)
    if measured.hexdigest() != place.sha256:
        raise Stop("HPL17006E", f"{place.name} on the input disk is not what was approved")


def do(work: Work, files: dict[str, Path], image: dict[str, Any]) -> tuple[Out, State]:
    """Do what the job says; return what goes out, and what is to be remembered."""
    job = work.job
    if job.mode == jobs.CRL:
        return builderwork.revoke(work)
    if not job.ready:
        from casemate.guest import builderbundles

        return builderbundles.build(work, files, image)
    with files[jobs.KERNEL].open("rb") as kernel_file, files[jobs.INITRD].open("rb") as initrd:
        bill, packages = files[jobs.BILL].read_bytes(), files[jobs.PACKAGES].read_bytes()
        return builderwork.make(work, builderwork.parts_of(work, kernel_file, initrd, bill, packages))


# --- what goes out ----------------------------------------------------------------------------------------------


def needles(secrets: Sequence[Secret]) -> list[bytes]:
    """Return what must not be in anything that goes out: keys as they are, and the numbers that make them."""
    found = []
    for secret in secrets:
        data = secret.reveal()
        if not data.startswith(b"-----BEGIN"):
            found.append(data)
            continue
        lines = [line for line in data.split(b"\n") if len(line) == 64]
        found += lines[1 :: max(1, len(lines) // 3)]  # not the first, which is the same for many keys; each costs time
        numbers: Any = forms.load_private(data).private_numbers()
        for name in ("p", "q", "d", "private_value"):
            if value := getattr(numbers, name, 0):
                found.append(value.to_bytes((value.bit_length() + 7) // 8, "big"))
    return found


def require_no_keys(files: Out, secrets: Sequence[Secret]) -> None:
    """Look through all that goes out. Raises :class:`Stop`: then a program of ours is wrong, and nothing goes out."""
    unwanted = needles(secrets)
    longest = max(map(len, [*unwanted, MARK]))
    for name, content in files.items():
        # The packed root holds programs that know the words.
        words = unwanted if name.endswith(".squashfs") else [*unwanted, MARK]
        before = b""
        for piece in pieces(content):
            window = before + piece
            if any(word in window for word in words):
                raise Stop("HPL17008E", f"{name} holds a private key, and nothing is put out")
            before = window[-longest:]


def pieces(content: bytes | Path) -> Iterator[bytes]:
    """Yield a file's content."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def measure(content: bytes | Path) -> jobs.Part:
    """Return hash and size of a file."""
    measured, size = hashlib.sha256(), 0
    for piece in pieces(content):
        measured.update(piece)
        size += len(piece)
    return jobs.Part(measured.hexdigest(), size)


def put_out(device: Path, result: bytes, files: Out) -> None:
    """Write the frame of a result to its disk, the beginning last: what was cut off is no frame."""
    everything: Out = {RESULT: result, **files}
    parts = {name: measure(content) for name, content in everything.items()}
    entries = [frame.Entry(name, part.size, part.sha256) for name, part in parts.items()]
    index = frame.index(RESULT_LABEL, entries)
    places = frame.parse(index, RESULT_LABEL)
    with device.open("r+b") as disk:
        for place, content in zip(places, everything.values(), strict=True):
            disk.seek(place.offset)
            for piece in pieces(content):
                disk.write(piece)
        disk.flush()
        os.fsync(disk.fileno())
        disk.seek(0)
        disk.write(index)
        disk.flush()
        os.fsync(disk.fileno())


# --- the story --------------------------------------------------------------------------------------------------


def build(places: Places) -> jobs.Result:
    """Do everything of this module's list; return what was put out."""
    secrets = take_secrets(places.run / "keys")
    image = json.loads((places.run / "image.json").read_bytes())
    public = {path.name: path.read_bytes() for path in (places.run / "public").iterdir()}
    builder = Builder(secrets, public, image["builder"])
    require_free(places.result)
    memory = Memory(places.state, secrets[STATE].reveal(), State(after=str(builder.facts["after"])))
    given = builderinput.split("", (places.run / "input").read_bytes())
    approved, job = approve(builder, given, memory.state)
    say("HPL17010I", f"job {job.mode}, revision {approved.revision}, approved by {', '.join(approved.names)}")
    digest, approval_digest = (hashlib.sha256(data).hexdigest() for data in (given.job, given.approval))
    statement = {
        **{"builder": builder.name, "generation": builder.generation, "revision": approved.revision},
        **{"approved_by": list(approved.names), "job": digest, "approval": approval_digest},
    }
    places.work.mkdir(mode=0o700, parents=True)
    (places.work / "in").mkdir(mode=0o700)
    files = copy_input(places.input, given, job, places.work / "in")
    issuer = Issuer(builder, job, memory.state.log)
    work = Work(builder, job, issuer, memory, places.work, statement)
    out, state = do(work, files, image)
    record = (places.record / RECORD).read_bytes()
    out |= {LOG: issuer.log.encode(), RECORD: record, SIGNATURE: (places.record / SIGNATURE).read_bytes()}
    require_no_keys(out, [*secrets.values(), *work.fresh])
    result = jobs.Result(
        *(builder.name, builder.generation, job.mode, approved.revision, approved.names),
        *(digest, approval_digest, hashlib.sha256(record).hexdigest(), job.after),
        counter=memory.state.counter + 1,
        files={name: measure(content) for name, content in sorted(out.items())},
        head=issuer.head,
        finished=forms.moment().isoformat(),
    )
    key: Any = forms.load_private(secrets[ATTESTATION].reveal())
    envelope = jobs.sign_result(result, key)
    require_room(places.result, [len(envelope), *(part.size for part in result.files.values())])
    accepted = (approved.revision, approved.sha256)
    memory.save(replace(state, after=digest, counter=result.counter, accepted=accepted, log=issuer.log))
    put_out(places.result, envelope, out)
    for secret in (*secrets.values(), *work.fresh):
        secret.wipe()
    return result


def require_room(device: Path, sizes: Sequence[int]) -> None:
    """The result's disk is large enough: asked before the job counts as done."""
    needed = sum(map(frame.filled, sizes)) + frame.filled(128 * (len(sizes) + 1))
    with device.open("rb") as disk:
        if disk.seek(0, os.SEEK_END) < needed:
            raise Stop("HPL17009E", f"the result needs a disk of {needed} bytes")


def require_free(device: Path) -> None:
    """The result's disk is empty, or holds an earlier result: its serial number is the infrastructure's word."""
    with device.open("rb") as disk:
        first = disk.read(frame.FIRST)
    if first.strip(b"\0") and not frame.is_frame(first, RESULT_LABEL):
        raise Stop("HPL17009E", "the result's disk holds something else, and is left as it is")


def disk(serial: str) -> Path:
    """Return the one disk with a serial number. Raises :class:`Stop`."""
    found = [each for each in kernel.disks() if each.serial == serial]
    if len(found) != 1:
        raise Stop("HPL17009E", f"{len(found)} disks with the serial number {serial} are attached, one is needed")
    return Path(found[0].path)


def service() -> None:
    """Do the job of this machine."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.umask(0o077)
    given = Path("/run/casemate")
    result = build(
        Places(
            run=given,
            record=Path("/var/hyperprotect"),
            work=Path("/var/lib/builder"),
            input=Path("/dev") / (given / "device").read_text(),
            state=disk(STATE_SERIAL),
            result=disk(RESULT_SERIAL),
        )
    )
    say("HPL17011I", f"the result is on its disk: {result.mode}, number {result.counter}")
