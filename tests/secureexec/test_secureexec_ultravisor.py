"""The software ultravisor: sealed memory, nothing on a disk, nothing given out that does not hold."""

from __future__ import annotations

import fcntl
import io
import json
import os
import resource
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casemate.errors import CasemateError
from casemate.machine.ultravisor import SoftwareUltravisor
from casemate.secureexec import hostkey, image
from casemate.secureexec.errors import ImageError, NoSlotError

KERNEL, INITRD = os.urandom(9000), os.urandom(3 << 20)


@pytest.fixture(autouse=True)
def core_limit() -> Iterator[None]:
    """``open`` forbids core files for the process: let the other tests have theirs."""
    limit = resource.getrlimit(resource.RLIMIT_CORE)
    yield
    resource.setrlimit(resource.RLIMIT_CORE, limit)


@pytest.fixture(scope="module")
def ultravisor(tmp_path_factory: pytest.TempPathFactory) -> SoftwareUltravisor:
    return SoftwareUltravisor.load_or_create(tmp_path_factory.mktemp("ultravisor") / "host")


def packed(
    ultravisor: SoftwareUltravisor, path: Path, cmdline: bytes = b"quiet", initrd: bytes | None = INITRD
) -> bytes:
    with path.open("w+b") as out:
        packed = image.pack(
            out,
            kernel=KERNEL,
            cmdline=cmdline,
            initrd=None if initrd is None else io.BytesIO(initrd),
            hosts=[hostkey.load(ultravisor.document)],
        )
    return packed.tag


def memory_files() -> list[str]:
    links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)]
    return [link for link in links if link.startswith("/memfd:casemate")]


def _is_open(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")


def test_the_parts_are_in_sealed_memory_until_the_end(ultravisor: SoftwareUltravisor, tmp_path: Path) -> None:
    tag = packed(ultravisor, tmp_path / "image")
    with ultravisor.open(tmp_path / "image") as opened:
        assert (opened.cmdline, opened.header.tag) == ("quiet", tag)
        for descriptor, content in ((opened.kernel, KERNEL), (opened.initrd, INITRD)):
            assert os.fstat(descriptor).st_size == len(content)
            assert os.pread(descriptor, len(content), 0) == content
            assert fcntl.fcntl(descriptor, 1034) == 0xF  # F_GET_SEALS: seal, shrink, grow, write
            for tamper in (
                lambda descriptor=descriptor: os.pwrite(descriptor, b"x", 0),
                lambda descriptor=descriptor: os.ftruncate(descriptor, 1),
                lambda descriptor=descriptor: os.ftruncate(descriptor, 1 << 24),
            ):
                with pytest.raises(PermissionError):
                    tamper()
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
        assert len(memory_files()) == 4
    assert memory_files() == []


def test_nothing_is_given_out_of_an_image_that_does_not_hold(ultravisor: SoftwareUltravisor, tmp_path: Path) -> None:
    path = tmp_path / "image"
    packed(ultravisor, path)
    whole = path.read_bytes()
    for at in (0x14000, 0x14100, 0x16000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ImageError), ultravisor.open(path):
            pytest.fail("was opened")
        assert memory_files() == []


def test_the_image_of_another_host_is_refused(ultravisor: SoftwareUltravisor, tmp_path: Path) -> None:
    packed(ultravisor, tmp_path / "image")
    other = SoftwareUltravisor.load_or_create(tmp_path / "other")
    with pytest.raises(NoSlotError), other.open(tmp_path / "image"):
        pytest.fail("was opened")


@pytest.mark.parametrize(
    ("cmdline", "initrd", "id"), [(b"caf\xc3\xa9", b"I", "IMAGE-CMDLINE"), (b"x", None, "IMAGE-NO-BOOTLOADER")]
)
def test_images_that_cannot_be_started_are_refused(
    ultravisor: SoftwareUltravisor, tmp_path: Path, cmdline: bytes, initrd: bytes | None, id: str
) -> None:
    packed(ultravisor, tmp_path / "image", cmdline, initrd)
    with pytest.raises(CasemateError) as caught, ultravisor.open(tmp_path / "image"):
        pytest.fail("was opened")
    assert caught.value.id == id
    assert memory_files() == []


def test_a_missing_image_is_told(ultravisor: SoftwareUltravisor, tmp_path: Path) -> None:
    with pytest.raises(CasemateError) as caught, ultravisor.open(tmp_path / "nothing"):
        pytest.fail("was opened")
    assert caught.value.id == "IMAGE-NOT-FOUND"


WATCHED = """
    import json, os, sys
    from pathlib import Path
    from casemate.machine.ultravisor import SoftwareUltravisor

    writes = []

    def watch(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                writes.append([event, str(path)])
        elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "tempfile.mkstemp", "tempfile.mkdtemp"):
            writes.append([event, str(arguments[0])])

    sys.dont_write_bytecode = True
    ultravisor = SoftwareUltravisor(Path("host"))
    sys.addaudithook(watch)
    with ultravisor.open(Path("image")) as opened:
        size = os.fstat(opened.initrd).st_size
    print(json.dumps({"writes": writes, "size": size}))
"""


def test_nothing_is_written_to_a_disk(tmp_path: Path) -> None:
    """The interpreter tells of every file that is opened for writing while an image is opened: there is none."""
    packed(SoftwareUltravisor.load_or_create(tmp_path / "host"), tmp_path / "image")
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(WATCHED)],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"writes": [], "size": len(INITRD)}
    assert sorted(tmp_path.rglob("*")) == before


def test_the_host_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "host"
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: SoftwareUltravisor.load_or_create(directory).document, range(4)))
    assert len(set(made)) == 1
    assert SoftwareUltravisor.load_or_create(directory).document == made[0]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "host.key").stat().st_mode) == 0o600
    private = hostkey.load_private((directory / "host.key").read_bytes())
    assert hostkey.load(made[0]).fingerprint == hostkey.HostKey(private.public_key()).fingerprint
    assert [path.name for path in directory.parent.iterdir()] == ["host"]


def test_its_document_says_development(ultravisor: SoftwareUltravisor) -> None:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(ultravisor.document)
    assert "DEVELOPMENT, no protection" in certificate.subject.rfc4514_string().replace("\\", "")
