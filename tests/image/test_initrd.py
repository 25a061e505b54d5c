"""The archives that make up an initrd, read back by the real ``cpio``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from casemate.image.cpio import Cpio, own

pytestmark = pytest.mark.components


def unpack(archive: bytes, directory: Path) -> None:
    subprocess.run(["cpio", "-idm", "--quiet"], input=archive, cwd=directory, check=True)


def test_cpio_reads_what_we_write(tmp_path: Path) -> None:
    cpio = Cpio()
    cpio.file("a/b/file", b"content", 0o600)
    cpio.link("a/link", "b/file")
    cpio.directory("empty", 0o700)
    unpack(cpio.finish(), tmp_path)
    assert (tmp_path / "a/b/file").read_bytes() == b"content"
    assert (tmp_path / "a/b/file").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a/link").read_bytes() == b"content"
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 4095, 4096, 4097])
def test_contents_of_any_length_stay_aligned(size: int, tmp_path: Path) -> None:
    cpio = Cpio()
    cpio.file("odd", bytes(range(256)) * (size // 256) + bytes(size % 256))
    cpio.file("next", b"still here")
    archive = cpio.finish()
    assert len(archive) % 512 == 0
    unpack(archive, tmp_path)
    assert (tmp_path / "odd").stat().st_size == size
    assert (tmp_path / "next").read_bytes() == b"still here"


def test_the_same_content_gives_the_same_bytes() -> None:
    assert own(b"{}", {"a.pem": b"x", "b.pem": b"y"}) == own(b"{}", {"b.pem": b"y", "a.pem": b"x"})


def test_private_keys_are_readable_by_root_only(tmp_path: Path) -> None:
    unpack(own(b"{}", {"contract.pem": b"key"}), tmp_path)
    assert (tmp_path / "casemate/keys").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "casemate/keys/contract.pem").stat().st_mode & 0o777 == 0o600
