"""What a builder machine remembers from one start to the next: a disk of the infrastructure, sealed under a key of its image.

=========  ==========================================================================
at         what
=========  ==========================================================================
0          ``casemate-state/1``, NUL to 4096
1 MiB      a slot: length (u32), salt (16), and the state, AES-256-GCM
17 MiB     the other slot: they are written in turn, so a start that was cut off loses nothing
64 MiB     finished work, each piece under a key of its own
=========  ==========================================================================

No file system of a hostile disk is mounted: what does not open is refused. The state names each piece of finished work
by the hash of what it was made from, with its own hash; only the builder writes there, no job sees the disk.

What an operator can do is to put an older disk back, or an empty one. Then ``after`` of the next job is not what the
builder expects (:mod:`casemate.build.job`), and the job is refused; only a job that followed on just this older state
runs once more, and its result says the same ``job`` and ``counter`` as the one before: who compares results sees the fork.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from casemate.guest.report import Stop

MAGIC = b"casemate-state/1"
SLOTS, SLOT_SIZE, FINISHED = (1 << 20, 17 << 20), 16 << 20, 64 << 20
CHUNK = 1 << 20
_LENGTH = struct.Struct(">I")
SMALLEST = 128 << 20


@dataclass(frozen=True, slots=True)
class State:
    """The memory of a builder. ``after``: SHA-256 of the last job; ``log``: the log of its keys; ``revoked``: time and reason
    by serial; ``bundle``: number and SHA-256 of the newest source bundle that was built.

    ``finished``: for the hash of what it was made from, the place, size and hash of a piece of finished work. ``sequence`` counts
    how often it was written.
    """

    after: str
    counter: int = 0
    accepted: tuple[int, str] | None = None
    log: str = ""
    revoked: dict[str, tuple[str, str]] = field(default_factory=dict)
    list_number: int = 0
    successor: bool = False
    bundle: tuple[int, str] | None = None
    finished: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    sequence: int = 0

    def as_bytes(self) -> bytes:
        """The state, JSON."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, sort_keys=True).encode()


def _parse(data: bytes) -> State:
    """Read what this program has written: it was authenticated."""
    said = json.loads(data)
    accepted, bundle = said["accepted"], said.get("bundle")
    return State(
        *(said["after"], said["counter"], tuple(accepted) if accepted else None, said["log"]),
        revoked={serial: tuple(one) for serial, one in said["revoked"].items()},
        list_number=said["list_number"],
        successor=said["successor"],
        bundle=tuple(bundle) if bundle else None,
        finished={key: tuple(one) for key, one in said["finished"].items()},
        sequence=said["sequence"],
    )


class Memory:
    """The state disk. ``key``: 32 bytes that came with the image; ``new``: the state of a disk that is empty."""

    def __init__(self, path: Path, key: bytes, new: State) -> None:
        self._path, self._key = path, key
        with path.open("rb") as disk:
            if disk.seek(0, os.SEEK_END) < SMALLEST:
                raise Stop("HPL17005E", f"the state disk has fewer than {SMALLEST >> 20} MiB")
            disk.seek(0)
            first = disk.read(4096)
            if not first.strip(b"\0"):
                self.state = new
            elif first != MAGIC.ljust(4096, b"\0"):
                raise Stop("HPL17005E", "the state disk holds something else, and is left as it is")
            else:
                found = [state for state in (self._read(disk, slot) for slot in SLOTS) if state is not None]
                if not found:
                    raise Stop("HPL17005E", "the state disk was changed, or is another builder's")
                self.state = max(found, key=lambda state: state.sequence)

    def save(self, state: State) -> None:
        """Write the next state, whole and on the disk, or not at all."""
        state = replace(state, sequence=self.state.sequence + 1)
        self._write(state)
        self.state = state

    def _write(self, state: State) -> None:
        salt, plain = os.urandom(16), state.as_bytes()
        slot = SLOTS[state.sequence % 2]
        sealed = self._cipher(b"state" + salt).encrypt(bytes(12), plain, b"%d" % slot)
        if len(sealed) > SLOT_SIZE - 4096:
            raise Stop("HPL17005E", "the builder's memory is full")
        with self._path.open("r+b") as disk:
            disk.write(MAGIC.ljust(4096, b"\0"))
            disk.seek(slot)
            disk.write(_LENGTH.pack(len(sealed)) + salt + sealed)
            disk.flush()
            os.fsync(disk.fileno())

    def _read(self, disk: BinaryIO, slot: int) -> State | None:
        from cryptography.exceptions import InvalidTag

        disk.seek(slot)
        (length,) = _LENGTH.unpack(disk.read(4))
        if not 16 < length <= SLOT_SIZE - 4096:
            return None
        salt, sealed = disk.read(16), disk.read(length)
        try:
            return _parse(self._cipher(b"state" + salt).decrypt(bytes(12), sealed, b"%d" % slot))
        except (InvalidTag, ValueError):
            return None

    # --- finished work ------------------------------------------------------------------------------------------

    def keep(self, key: str, source: BinaryIO, size: int, sha256: str) -> None:
        """Keep a piece of finished work, where there is room; when there is none, all that was kept goes."""
        finished = dict(self.state.finished)
        start = max([FINISHED, *(at + _room(length) for at, length, _ in finished.values())])
        with self._path.open("rb") as disk:
            end = disk.seek(0, os.SEEK_END)
        if start + _room(size) > end:
            finished, start = {}, FINISHED
        if start + _room(size) > end:
            return
        salt = os.urandom(16)
        cipher = self._cipher(key.encode() + salt)
        with self._path.open("r+b") as disk:
            disk.seek(start)
            disk.write(salt)
            for number in range(-(-size // CHUNK)):
                disk.write(cipher.encrypt(number.to_bytes(12, "big"), source.read(CHUNK), b""))
            disk.flush()
            os.fsync(disk.fileno())
        self.save(replace(self.state, finished={**finished, key: (start, size, sha256)}))

    def fetch(self, key: str) -> Iterator[bytes] | None:
        """Return the pieces of finished work; ``None`` where there is none. Raises :class:`Stop` where it was changed."""
        found = self.state.finished.get(key)
        return None if found is None else self._pieces(key, *found)

    def _pieces(self, key: str, start: int, size: int, sha256: str) -> Iterator[bytes]:
        from cryptography.exceptions import InvalidTag

        measured = hashlib.sha256()
        with self._path.open("rb") as disk:
            disk.seek(start)
            cipher = self._cipher(key.encode() + disk.read(16))
            for number in range(-(-size // CHUNK)):
                sealed = disk.read(min(CHUNK, size - number * CHUNK) + 16)
                try:
                    piece = cipher.decrypt(number.to_bytes(12, "big"), sealed, b"")
                except InvalidTag:
                    raise Stop("HPL17005E", "finished work on the state disk was changed") from None
                measured.update(piece)
                yield piece
        if measured.hexdigest() != sha256:
            raise Stop("HPL17005E", "finished work on the state disk was changed")

    def _cipher(self, purpose: bytes) -> Any:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return AESGCM(HKDF(SHA256(), 32, b"casemate-state", purpose).derive(self._key))


def _room(size: int) -> int:
    return 16 + size + 16 * -(-size // CHUNK)
