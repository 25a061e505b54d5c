"""``newc`` archives, made in memory (kernel: ``Documentation/driver-api/early-userspace/buffer-format.rst``); no I/O here."""

from __future__ import annotations

import io
import posixpath
import stat
from collections.abc import Mapping

EPOCH = 1672531200
"""Time stamp of every file that an image holds, in seconds since 1970: an archive must not depend on the day."""


class Cpio:
    """Writes a ``newc`` archive into memory; every file is root's and has the same time stamp."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._inode = 0
        self._directories: set[str] = set()

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (self._inode, mode, 0, 0, links, EPOCH, len(content), 0, 0, 0, 0, len(encoded), 0)
        out = self._out
        out.write(b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded)
        out.write(bytes(-out.tell() % 4))
        out.write(content)
        out.write(bytes(-out.tell() % 4))

    def _parents(self, name: str) -> None:
        parent = posixpath.dirname(name)
        if parent and parent not in self._directories:
            self.directory(parent)

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory and those above it."""
        if name not in self._directories:
            self._parents(name)
            self._directories.add(name)
            self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._parents(name)
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> bytes:
        """Return the archive, padded so that another may follow."""
        self._entry("TRAILER!!!", 0, b"")
        self._out.write(bytes(-self._out.tell() % 512))
        return self._out.getvalue()


def own(image: bytes, keys: Mapping[str, bytes], public: Mapping[str, bytes] | None = None) -> bytes:
    """Return the archive of what is the image's own: ``image.json``, the private keys, and what else it is to know."""
    cpio = Cpio()
    cpio.file("casemate/image.json", image, 0o400)
    cpio.directory("casemate/keys", 0o700)
    for name, content in sorted(keys.items()):
        cpio.file(f"casemate/keys/{name}", content, 0o600)
    for name, content in sorted((public or {}).items()):
        cpio.file(f"casemate/public/{name}", content, 0o644)
    return cpio.finish()
