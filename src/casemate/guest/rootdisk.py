"""The encrypted root: made anew at every start, under a random passphrase that is never stored.

The root disk becomes one LUKS2 volume; inside it, two areas:

- ``system``: the root archive (squashfs), byte for byte as measured, mounted read-only as ``/``;
- ``state``: an empty ext4 file system, mounted as ``/var``.

The archive comes from a disk of the infrastructure. It is read once: each block is hashed and the very same
memory is written through the encryption. Only when the hash over the whole is the one that is baked into the image
is anything of it mounted, and what is mounted is the encrypted copy; the archive's disk is not looked at again.

The passphrase has 512 random bits, so key stretching would add nothing: PBKDF2 at cryptsetup's least, not argon2id.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from pathlib import Path

from casemate.guest import kernel
from casemate.guest.report import Stop
from casemate.luks.header import is_luks

CHUNK = 4 << 20
BLOCK = 4096
MAPPING = "casemate-root"
SYSTEM, STATE = "casemate-system", "casemate-state"
SMALLEST_ROOT_DISK = 2 << 30
LABEL = "casemate-root"


def is_free(beginning: bytes, at_data: bytes) -> bool:
    """Whether a disk may become the root, by its first bytes and those where a data volume would begin.

    Its serial number is the infrastructure's word: a data disk under that name must not be lost. Free is what is
    empty, or an earlier root of ours, by the label of its LUKS2 header.
    """
    if is_luks(at_data):
        return False
    ours = is_luks(beginning) and beginning[6:8] == b"\0\x02" and beginning[24:72].rstrip(b"\0") == LABEL.encode()
    return ours or not beginning.strip(b"\0")


class RootDisk:
    """Makes the root disk; ``start`` begins in the background, ``finish`` waits and says whether the hash held."""

    def __init__(self, disk: kernel.Disk, archive: kernel.Disk, archive_size: int, archive_sha256: str) -> None:
        self._disk, self._archive = disk, archive
        self._size, self._sha256 = archive_size, archive_sha256
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded)

    def encrypt(self) -> None:
        """Make and open the LUKS2 volume and its two areas."""
        passphrase = os.urandom(64)
        kernel.run(
            *("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--key-file=-"),
            *("--cipher", "aes-xts-plain64", "--key-size", "512", "--sector-size", "4096"),
            *("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha256"),
            *(
                "--label",
                LABEL,
                "--luks2-keyslots-size",
                "512k",
                "--luks2-metadata-size",
                "16k",
                "--use-urandom",
                self._disk.path,
            ),
            stdin=passphrase,
        )
        kernel.run(
            *("cryptsetup", "open", "--type", "luks2", "--key-file=-", "--allow-discards"),
            *("--perf-no_read_workqueue", "--perf-no_write_workqueue"),
            *(self._disk.path, MAPPING),
            stdin=passphrase,
        )
        del passphrase
        with Path(f"/dev/mapper/{MAPPING}").open("rb") as mapped:
            sectors = mapped.seek(0, os.SEEK_END) // 512
        system = -(-self._size // CHUNK) * (CHUNK // 512)
        for name, start, length in ((SYSTEM, 0, system), (STATE, system, sectors - system)):
            table = f"0 {length} linear /dev/mapper/{MAPPING} {start}\n"
            kernel.run("dmsetup", "create", name, stdin=table.encode())

    def start(self) -> None:
        """Begin to copy the archive and to make the state file system, in the background."""
        self._thread.start()

    def finish(self) -> None:
        """Wait for the copy; raise :class:`Stop` where the archive isn't the measured one."""
        self._thread.join()
        if isinstance(self._failure, OSError):
            raise Stop("HPL11000E", f"the root disk could not be written: {self._failure}")
        if self._failure is not None:
            raise self._failure

    def _guarded(self) -> None:
        try:
            self._copy()
        except BaseException as failure:
            self._failure = failure

    def _copy(self) -> None:
        if self._archive.size < self._size:
            raise Stop("HPL11006E", "the root archive is shorter than the one that the image was built with")
        measured = hashlib.sha256()
        buffer = mmap.mmap(-1, CHUNK)  # begins at a page, as direct access asks for
        flags = os.O_DIRECT | os.O_CLOEXEC
        source = os.open(self._archive.path, os.O_RDONLY | flags)
        target = os.open(f"/dev/mapper/{SYSTEM}", os.O_WRONLY | flags)
        try:
            for done in range(0, self._size, CHUNK):
                want = min(CHUNK, self._size - done)
                whole = memoryview(buffer)[: -(-want // BLOCK) * BLOCK]
                got = os.preadv(source, [whole], done)
                if got < want:
                    raise Stop("HPL11006E", "the root archive ended early")
                # One processor measures while the other encrypts: the same memory, which nobody writes to meanwhile.
                measuring = threading.Thread(target=measured.update, args=(whole[:want],))
                measuring.start()
                try:
                    if os.pwrite(target, whole, done) != len(whole):
                        raise OSError("a part was not written")
                finally:
                    measuring.join()
        finally:
            os.close(source)
            os.close(target)
        if measured.hexdigest() != self._sha256:
            raise Stop("HPL11006E", "the root archive is not the one that the image was built with")

    @staticmethod
    def make_state() -> None:
        """Make the ext4 file system of ``/var``."""
        kernel.run(
            *("mkfs.ext4", "-q", "-F", "-O", "^has_journal,^resize_inode", "-m", "0"),
            *("-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", f"/dev/mapper/{STATE}"),
        )

    @staticmethod
    def mount(root: str) -> None:
        """Mount both areas: the system read-only at ``root``, the state at ``root/var``."""
        kernel.mount(f"/dev/mapper/{SYSTEM}", root, "squashfs", kernel.MS_RDONLY | kernel.MS_NODEV)
        options = "discard,barrier=0"  # what is there is void after a power cut, so no write waits for another
        kernel.mount(f"/dev/mapper/{STATE}", f"{root}/var", "ext4", kernel.MS_NODEV | kernel.MS_NOSUID, options)
