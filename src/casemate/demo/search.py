"""Searches raw disk files for what must not stand in them, as whoever owns the disks could.

Holes of sparse files are skipped; nothing is mounted or understood, so what is found stands there in the clear.
"""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """The first place where a text stands in a file."""

    path: Path
    name: str
    offset: int


def forms(secret: bytes) -> list[bytes]:
    """Return a secret as it may stand in a file: as it is, in hexadecimal, in base64 at each of the three alignments."""
    encoded = []
    for before in range(3):
        text = base64.b64encode(bytes(before) + secret)
        # What depends on the bytes before and after the secret is cut off.
        start, end = (0, 2, 3)[before], len(text) - (0 if (before + len(secret)) % 3 == 0 else 4)
        encoded.append(text[start:end])
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), *encoded]


def search(
    paths: Iterable[Path],
    secrets: Mapping[str, bytes],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Found]:
    """Return where secrets stand in files, in any of their forms: the first place for each file and secret.

    ``progress`` is told how many bytes are done, and of how many. Raises ``ValueError`` for a secret so short that it
    would be found anywhere.
    """
    needles = [(name, form) for name, secret in secrets.items() for form in dict.fromkeys(forms(secret))]
    if any(len(secret) < 5 for secret in secrets.values()):
        raise ValueError("too short to search for")
    files = list(paths)
    total = sum(_allocated(path) for path in files)
    overlap = max((len(needle) for _, needle in needles), default=1) - 1
    done = 0
    found: dict[tuple[Path, str], Found] = {}
    for path in files:
        with path.open("rb", buffering=0) as file:
            before, end = b"", 0
            for offset, chunk in _data(file):
                window = (before if offset == end else b"") + chunk
                start = offset + len(chunk) - len(window)
                for name, needle in needles:
                    if (path, name) not in found and (place := window.find(needle)) >= 0:
                        found[path, name] = Found(path, name, start + place)
                before, end = window[-overlap:] if overlap else b"", offset + len(chunk)
                done += len(chunk)
                progress(min(done, total), total)
    return list(found.values())


def _allocated(path: Path) -> int:
    status = path.stat()
    return min(status.st_size, status.st_blocks * 512)


def _data(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield offset and content of what is not a hole, in pieces."""
    descriptor, offset = file.fileno(), 0
    while True:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(descriptor, offset, os.SEEK_HOLE)
        while offset < end and (chunk := os.pread(descriptor, min(CHUNK, end - offset), offset)):
            yield offset, chunk
            offset += len(chunk)
