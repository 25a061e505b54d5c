"""The two loaders: the bytes are those of the sources, and an emulated IBM Z machine executes them.

There is no Secure Execution under emulation. Executed is everything up to DIAGNOSE 308 and everything after the ultravisor;
between the two, this test is the ultravisor, and opens the image with the code that the software ultravisor opens it with.
"""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from se_format import read
from zmachine import DISABLED_WAIT, PSW_ADDRESS, PSW_MASK, R0, Machine, machine

from casemate.image import loader as sources
from casemate.secureexec import disk, header, image, loader
from casemate.secureexec.errors import ImageError
from casemate.secureexec.hostkey import HostKey

Key = ec.EllipticCurvePrivateKey
DIAGNOSE, LOAD_PSW = bytes.fromhex("83260308"), bytes.fromhex("b2b24000")
SET, OPEN = (0x10000 + found.start() for found in re.finditer(re.escape(DIAGNOSE), loader.STAGE3A))
WAITS = 0x10000 + loader.STAGE3A.index(LOAD_PSW)
LINE, INITRD = b"console=ttysclp0 word=vault", os.urandom(5000)


def kernel(size: int = 0x15000, largest: int = 4096) -> bytes:
    """What looks like a Linux kernel for IBM Z; it ends in a disabled wait at once."""
    code = bytes.fromhex("b2b20020")  # lpswe 0x20
    data = code.ljust(8, b"\0") + b"S390EP" + bytes(2)
    data = (data.ljust(0x430, b"\0") + struct.pack(">Q", largest)).ljust(0x1000, b"\0")
    return (bytes(0x10000) + data).ljust(size, b"K")[:size]


def packed(host: Key, kernel: bytes, cmdline: bytes = LINE, initrd: bytes | None = INITRD) -> bytes:
    out = io.BytesIO()
    image.pack(out, kernel=kernel, cmdline=cmdline, initrd=initrd, hosts=[HostKey(host.public_key())])
    return out.getvalue()


def opened(data: bytes, host: Key) -> tuple[image.Contents, dict[int, bytes]]:
    """Return the opened image, and its components by address."""
    parts: dict[str, io.BytesIO] = {}

    def sink(name: str, _: int) -> io.BytesIO:
        parts[name] = io.BytesIO()
        return parts[name]

    contents = image.open_image(io.BytesIO(data), host, sink)
    names = image.NAMES if len(contents.components) == 4 else image.WITHOUT_INITRD
    placed = zip(names, contents.components, strict=True)
    return contents, {part.address: parts[name].getvalue().ljust(part.size, b"\0") for name, part in placed}


def play_ultravisor(z: Machine, data: bytes, host: Key) -> image.Contents:
    """Decrypt the components where they stand, and start what the encrypted area says."""
    contents, parts = opened(data, host)
    for address, content in parts.items():
        z.write(address, content)
    z.set_register(PSW_MASK, contents.secrets.psw_mask)
    z.set_register(PSW_ADDRESS, contents.secrets.psw_address)
    return contents


@pytest.mark.components
def test_the_bytes_are_those_of_the_sources() -> None:
    assert sources.stage3a() == loader.STAGE3A
    assert sources.stage3b() == loader.STAGE3B


def test_a_kernel_for_z_gets_the_loaders_and_another_does_not(host: Key) -> None:
    data = packed(host, kernel())
    assert loader.STAGE3A[:-24] in data
    assert opened(data, host)[0].sizes["stage3b"] == len(loader.STAGE3B)
    assert read(data, host).kernel == kernel()
    assert loader.STAGE3A[:-24] not in packed(host, kernel().replace(b"S390EP", b"S390E!"))


def test_every_flipped_byte_in_the_clear_is_refused_where_the_loaders_are_ours(host: Key) -> None:
    data = packed(host, kernel())
    known = [*range(16), *range(0x10000, 0x10008), *range(0x11000, 0x11000 + len(loader.STAGE3A) - 0x1000, 3)]
    for at in [*known, 0x12FFF, 0x13078, 0x15FFF]:
        with pytest.raises(ImageError):
            opened(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], host)


@pytest.mark.components
@pytest.mark.parametrize("entry", [0x10000, 0x11000])
def test_the_machine_is_asked_with_the_right_block_and_the_kernel_starts(host: Key, entry: int) -> None:
    data = packed(host, kernel())
    contents, _ = opened(data, host)
    with machine(data) as z:
        assert z.register(PSW_ADDRESS) == 0x11000  # QEMU starts where the short PSW says
        z.set_register(PSW_ADDRESS, entry)
        where, length = len(contents.header.raw), image.HEADER
        z.write(image.IPIB + 120, bytes(16))  # as tools write it that leave these for the loader
        assert z.run_to(SET) == SET
        assert (z.register(R0 + 6), z.register(R0 + 2)) == (8, image.IPIB)
        block = z.read(z.register(R0 + 2), header.PAGE)
        assert header.parse_ipib(block) == (list(contents.components), length, where)
        assert block == data[image.IPIB :][: header.PAGE]
        assert z.read(image.HEADER, where) == contents.header.raw
        z.answer(3, 1)
        assert z.run_to(OPEN) == OPEN
        assert (z.register(R0 + 6), z.register(R0 + 2)) == (10, 0)

        play_ultravisor(z, data, host)
        assert z.run_to(0x10000) == 0x10000
        assert z.register(PSW_MASK) & 0xFF0000FFFFFFFFFF == 0x180000000
        moved = z.read(0x10000, 0x5000)
        start = contents.components[2].address
        expected = bytearray(kernel()[0x10000:])
        expected[0x408:0x418] = struct.pack(">QQ", start, len(INITRD))
        expected[0x480 : 0x480 + len(LINE) + 1] = LINE + b"\0"
        assert moved == expected
        assert z.read(start, len(INITRD)) == INITRD


@pytest.mark.components
@pytest.mark.parametrize(("initrd", "size"), [(None, 0x11000), (b"i", 0x11001), (INITRD, 0x30123)])
def test_kernels_of_any_size_are_moved_whole(host: Key, initrd: bytes | None, size: int) -> None:
    """Where it goes and where it comes from overlap."""
    whole = kernel(0x10000) + kernel()[0x10000:0x11000] + os.urandom(size - 0x11000)
    data = packed(host, whole, initrd=initrd)
    with machine(data) as z:
        contents = play_ultravisor(z, data, host)
        assert z.run_to(0x10000) == 0x10000
        place = (contents.components[2].address, len(initrd)) if initrd else (0, 0)
        assert z.read(0x11000, size - 0x11000) == whole[0x11000:]
        assert struct.unpack(">QQ", z.read(0x10408, 16)) == place


@pytest.mark.components
def test_a_machine_without_secure_execution_stops_and_says_so(host: Key) -> None:
    """The emulated machine itself answers DIAGNOSE 308 here: with a specification exception."""
    with machine(packed(host, kernel())) as z:
        assert z.stop_code(WAITS) == 0x0CA5000E00000006
        z.step()
        assert z.register(PSW_MASK) == DISABLED_WAIT


@pytest.mark.components
@pytest.mark.parametrize(("subcode", "answer", "code"), [(8, 0x0402, 0x00000402), (10, 0xBEEF_0108_0A02, 0x01080A02)])
def test_what_the_machine_refuses_is_told(host: Key, subcode: int, answer: int, code: int) -> None:
    """The lower half of an answer is told: the code of DIAGNOSE, and above it the ultravisor's."""
    with machine(packed(host, kernel())) as z:
        z.run_to(SET)
        if subcode == 10:
            z.answer(3, 1)
            z.run_to(OPEN)
        z.answer(3, answer)
        assert z.stop_code(WAITS) == 0x0CA5000000000000 | subcode << 32 | code


@pytest.mark.components
@pytest.mark.parametrize(
    ("whole", "cmdline", "change", "reason"),
    [
        (kernel(0x10FFF), LINE, None, 1),
        (kernel(largest=20), LINE, None, 2),
        (kernel(largest=0), b"x" * 896, None, 2),
        (kernel(), LINE, lambda part: part.replace(LINE + b"\0", LINE + b"!"), 3),
    ],
    ids=["kernel too small", "line too long", "line too long for an old kernel", "line without end"],
)
def test_what_cannot_be_started_is_not(
    host: Key, whole: bytes, cmdline: bytes, change: Callable[[bytes], bytes] | None, reason: int
) -> None:
    data = packed(host, whole, cmdline)
    with machine(data) as z:
        contents = play_ultravisor(z, data, host)
        if change:
            line = contents.components[1]
            z.write(line.address, change(z.read(line.address, line.size)))
        waits = contents.secrets.psw_address + loader.STAGE3B.index(LOAD_PSW)
        assert z.stop_code(waits) == 0x0CA5000B00000000 | reason


@pytest.mark.components
@pytest.mark.parametrize("size", [0x15000, 40 << 20], ids=["small", "more than one pointer"])
def test_firmware_starts_the_image_from_a_disk(host: Key, size: int) -> None:
    """The firmware that QEMU has for disks follows the map, loads all of it, and stage3a asks with the right block."""
    data = packed(host, kernel(size))
    out = io.BytesIO()
    assert disk.write(io.BytesIO(data), out, len(data)) == len(out.getvalue())
    with machine(disk=out.getvalue()) as z:
        assert z.run_to(SET) == SET
        assert (z.register(R0 + 6), z.register(R0 + 2)) == (8, image.IPIB)
        assert z.read(image.IPIB, 0x3000) == data[image.IPIB :][:0x3000]
        for at in (len(data) - 0x2000, len(data) // 2):
            assert z.read(at, 0x2000) == data[at : at + 0x2000]


def test_what_no_machine_could_start_gets_no_disk(host: Key, small: bytes) -> None:
    with pytest.raises(ImageError, match="no loaders"):
        disk.write(io.BytesIO(small), io.BytesIO(), len(small))
    data = packed(host, kernel())
    for size in (len(data) - 1, len(data) + 1):
        with pytest.raises(ImageError, match="changed"):
            disk.write(io.BytesIO(data), io.BytesIO(), size)
    with pytest.raises(ImageError):
        disk.write(io.BytesIO(bytes(1 << 20)), io.BytesIO(), 1 << 20)


def test_an_image_too_large_for_a_disk_is_refused() -> None:
    assert len(disk.boot_map(disk.LARGEST)) == disk.DATA
    for size in (0, 0x10000, disk.LARGEST + 1):
        with pytest.raises(ImageError, match="from a disk"):
            disk.boot_map(size)


KERNEL = os.environ.get("CASEMATE_S390X_KERNEL", "")


@pytest.mark.components
@pytest.mark.skipif(not KERNEL, reason="CASEMATE_S390X_KERNEL names no kernel (vmlinuz of Debian's linux-image-s390x)")
def test_a_real_kernel_is_started_with_its_command_line_and_initrd(host: Key, tmp_path: Path) -> None:
    """The components are in the clear and in their places, and the machine begins with stage3b, as the ultravisor leaves it."""
    assembled = tmp_path / "init"
    (tmp_path / "init.S").write_text(INIT)
    for words in (["as", "-o", "init.o", "init.S"], ["ld", "-o", "init", "init.o"]):
        subprocess.run([f"s390x-linux-gnu-{words[0]}", *words[1:]], cwd=tmp_path, check=True)
    initrd = archive(
        [("dev", 0o40755, b"", 0), ("dev/console", 0o20600, b"", 1), ("init", 0o100755, assembled.read_bytes(), 0)]
    )
    data = packed(host, Path(KERNEL).read_bytes(), b"console=ttysclp0 panic=-1 casemate.word=vault", initrd)
    contents, parts = opened(data, host)
    memory = bytearray(data)
    for address, part in parts.items():
        memory[address : address + len(part)] = part
    memory[:8] = struct.pack(">II", 0x00080000, 0x80000000 | contents.secrets.psw_address)
    (tmp_path / "memory").write_bytes(memory)
    words = ["qemu-system-s390x", "-M", "s390-ccw-virtio", "-accel", "tcg", "-m", "512", "-nographic", "-no-reboot"]
    done = subprocess.run(
        [*words, "-kernel", "memory"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=True,
    )
    text = done.stdout.decode(errors="replace")
    assert re.search(r"Kernel command line: .*casemate\.word=vault", text), text[-2000:]
    assert "the initrd runs" in text, text[-2000:]


INIT = """
        .globl  _start
_start: lghi    %r2, 1
        larl    %r3, text
        lghi    %r4, end - text
        svc     4
        llilf   %r2, 0xfee1dead
        llilf   %r3, 672274793
        llilf   %r4, 0x4321fedc
        svc     88
        .balign 2
text:   .ascii  "the initrd runs\\n"
end:
"""


def archive(files: list[tuple[str, int, bytes, int]]) -> bytes:
    """A cpio archive (newc) of name, mode, content and the minor number of a device with the major number 5."""
    out = b""
    for number, (name, mode, data, minor) in enumerate([*files, ("TRAILER!!!", 0, b"", 0)], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 5, minor, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % value for value in fields) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return out
