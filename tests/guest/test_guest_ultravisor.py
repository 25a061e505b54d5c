"""The guest's part of an attestation: what it asks, what it believes, and what strangers at its port can do."""

from __future__ import annotations

import ctypes
import io
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from casemate.attestation.machine import user_data
from casemate.guest import attestation, bootloader, ultravisor
from casemate.machine.ultravisor import SoftwareUltravisor
from casemate.secureexec import attestation as att
from casemate.secureexec import image
from casemate.secureexec.header import Header
from casemate.secureexec.hostkey import HostKey, coordinates

HOST = ec.generate_private_key(ec.SECP521R1())
PUBLIC = HostKey(HOST.public_key())
SAID = user_data(b"26.11.0")


@pytest.fixture(scope="module")
def header() -> Header:
    out = io.BytesIO()
    image.pack(out, kernel=bytes(4096), cmdline=b"quiet", initrd=io.BytesIO(bytes(4096)), hosts=[PUBLIC])
    return image.read_clear(io.BytesIO(out.getvalue())).header


@pytest.fixture
def line(tmp_path: Path, header: Header) -> Iterator[socket.socket]:
    """A machine's end of the line to a real software ultravisor, in a process of its own."""
    pem = HOST.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "host.key").write_bytes(pem)
    (tmp_path / "host.crt").write_bytes(b"")
    with SoftwareUltravisor(tmp_path).attach(header) as line:
        line.setblocking(False)
        yield line


@pytest.fixture
def guest(line: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process asks as a guest does: its port is the line."""
    monkeypatch.setattr(ultravisor, "port", lambda name: f"/dev/fd/{line.fileno()}")
    monkeypatch.setattr(os, "open", lambda path, flags, *_: os.dup(line.fileno()))


@pytest.mark.usefixtures("guest")
def test_the_software_ultravisor_answers_as_often_as_it_is_asked(header: Header) -> None:
    seen = set()
    for _ in range(2):
        request, key = att.create([PUBLIC], att.FIRMWARE)
        found = att.verify(ultravisor.attest(request, SAID), key, header)
        assert (found.user_data, found.development) == (SAID, True)
        seen.add(found.cuid)
    assert len(seen) == 1  # one machine


@pytest.mark.usefixtures("guest")
def test_a_machine_learns_what_it_is(header: Header) -> None:
    found = ultravisor.identify([HostKey(ec.generate_private_key(ec.SECP521R1()).public_key()), PUBLIC])
    assert (found.image_host_key, found.firmware) == (PUBLIC.fingerprint, att.SOFTWARE_STATE)
    other = HostKey(ec.generate_private_key(ec.SECP521R1()).public_key())
    hosts = [
        {"document": name, "valid_until": "never", "key": coordinates(each.public).hex()}
        for name, each in (("a.crt", other), ("b.crt", PUBLIC))
    ]
    asked = bootloader.ask_ultravisor(hosts)
    assert asked is not None and asked.cuid == found.cuid
    image = {
        **dict.fromkeys(("root_sha256", "baseimage", "sbom"), "ab" * 32),
        "version": "1",
        "created": 0,
        "hosts": hosts,
    }
    text = bootloader.make_record(image, [], 0.0, asked).decode()
    assert f"\nUltravisor CUID: 0x{found.cuid.hex()}\nHost HKD: b.crt\n" in text
    assert f"\n{bootloader.hashlib.sha256(att.SOFTWARE_STATE).hexdigest()} uv_firmware.state\n" in text
    without = bootloader.make_record(image, [], 0.0, None).decode()
    assert "CUID" not in without and "HKD" not in without  # of two hosts nobody knows which


@pytest.mark.usefixtures("guest")
def test_a_request_for_another_host_is_refused_and_the_next_one_answered() -> None:
    stranger = HostKey(ec.generate_private_key(ec.SECP521R1()).public_key())
    with pytest.raises(ultravisor.NoUltravisor):
        ultravisor.attest(att.create([stranger])[0], SAID)
    ultravisor.attest(att.create([PUBLIC])[0], SAID)


@pytest.mark.usefixtures("guest")
def test_without_an_answer_a_machine_starts_and_its_record_says_less(
    line: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    line.shutdown(socket.SHUT_RDWR)
    hosts = [{"document": "b.crt", "valid_until": "never", "key": coordinates(PUBLIC.public).hex()}]
    assert bootloader.ask_ultravisor(hosts) is None
    assert "HPL11010W" in capsys.readouterr().out


@pytest.mark.usefixtures("guest")
def test_whoever_asks_gets_the_hash_of_the_record_and_nothing_else(header: Header) -> None:
    request, key = att.create([PUBLIC])
    answer = att.unpack(attestation.answer(att.pack_request(request, b"say this instead"), SAID))
    assert att.verify(answer, key, header).user_data == SAID


@pytest.mark.parametrize("data", [b"", b"noise", att.REFUSAL, b"pvattest" + bytes(200)])
def test_what_is_no_request_gets_an_empty_file(data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert attestation.answer(data, SAID) == att.REFUSAL
    assert "HPL20001W" in capsys.readouterr().err


@pytest.mark.usefixtures("guest")
def test_after_noise_at_its_port_the_service_still_answers(header: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestation, "PAUSE", 0.05)
    inside, outside = socket.socketpair()
    inside.setblocking(False)
    with inside, outside, outside.makefile("rwb") as files:
        for sent in (b"x" * 1000, b"pvattest" + struct.pack(">II", 0x100, 1 << 31)):
            files.write(sent)
            files.flush()
            attestation.serve(inside.fileno(), SAID)
            assert files.read(len(att.REFUSAL)) == att.REFUSAL
        request, key = att.create([PUBLIC])
        files.write(att.pack_request(request))
        files.flush()
        attestation.serve(inside.fileno(), SAID)
        start = files.read(att.START)
        answer = att.unpack(start + files.read(att.file_size(start) - len(start)))
        assert att.verify(answer, key, header).user_data == SAID
        outside.shutdown(socket.SHUT_RDWR)
        with pytest.raises(EOFError):
            attestation.serve(inside.fileno(), SAID)


def test_a_file_that_never_ends_is_waited_for_no_longer_than_it_may_take() -> None:
    inside, outside = socket.socketpair()
    inside.setblocking(False)
    with inside, outside:
        outside.sendall(b"pvattest")
        with pytest.raises(TimeoutError):
            ultravisor.receive(inside.fileno(), 0.1)


def test_a_large_file_passes_in_pieces() -> None:
    inside, outside = socket.socketpair()
    inside.setblocking(False)
    request, _ = att.create([PUBLIC] * 200)
    file = att.pack_request(request)
    with inside, outside:
        sender = threading.Thread(target=ultravisor.send, args=(inside.fileno(), file, 10.0))
        outside.setblocking(False)
        sender.start()
        assert ultravisor.receive(outside.fileno(), 10.0) == file
        sender.join()


def test_the_port_is_found_by_its_name(tmp_path: Path) -> None:
    for name, called in (("vport0p1", "casemate.record\n"), ("vport0p2", "casemate.attestation\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(called)
    (tmp_path / "vport0p3").mkdir()  # the infrastructure gave it no name
    assert ultravisor.port("casemate.attestation", tmp_path) == "/dev/vport0p2"
    assert ultravisor.port("casemate.ultravisor", tmp_path) is None


class Device:
    """``/dev/uv`` as Linux has it, by the layout of its header file; the answer is computed for real. Big-endian as IBM Z is."""

    def __init__(self, header: Header, code: int = 1) -> None:
        self.header, self.code, self.orders = header, code, []

    def __call__(self, descriptor: int, order: int, control: bytearray, mutate: bool) -> int:
        self.orders.append(order)
        assert mutate and len(control) == 0x40 and control[0x14:] == bytes(0x40 - 0x14)
        flags, _, _, address, size = struct.unpack_from(">IHHQI", control)
        assert (flags, size) == (0, 0x138)
        block = ctypes.string_at(address, size)
        places = struct.unpack_from(">QQQ", block)
        sizes = dict(
            zip(("arcb", "meas", "more", "user", "zero"), struct.unpack_from(">IIIHH", block, 0x128), strict=True)
        )
        assert sizes["zero"] == 0 and block[0x118:0x128] == bytes(16)
        said = block[0x18:0x118]
        assert said[sizes["user"] :] == bytes(0x100 - sizes["user"])
        struct.pack_into(">HH", control, 4, self.code, 0x102 if self.code != 1 else 0)
        if self.code == 1:
            configuration = att.Configuration(self.header, b"\xc1" * 16, PUBLIC.fingerprint, firmware=b"f" * 320)
            request = ctypes.string_at(places[0], sizes["arcb"])
            answer = att.perform(request, HOST, configuration, said[: sizes["user"]])
            assert (len(answer.measurement), len(answer.additional)) == (sizes["meas"], sizes["more"])
            ctypes.memmove(places[1], answer.measurement, len(answer.measurement))
            ctypes.memmove(places[2], answer.additional, len(answer.additional))
            ctypes.memmove(address + 0x118, answer.cuid, 16)
        return 0


@pytest.fixture
def firmware(header: Header, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    (tmp_path / "query").mkdir()
    (tmp_path / "prot_virt_guest").write_text("1\n")
    (tmp_path / "query/supp_att_pflags").write_text("7c00000000000000\n")
    (tmp_path / "uv").touch()
    device = Device(header)
    monkeypatch.setattr(ultravisor, "FIRMWARE", tmp_path)
    monkeypatch.setattr(ultravisor, "DEVICE", tmp_path / "uv")
    monkeypatch.setattr(ultravisor.fcntl, "ioctl", device)
    monkeypatch.setattr(ultravisor, "port", lambda name: pytest.fail("a port is asked in place of the firmware"))
    return device


def test_the_firmware_is_asked_as_linux_wants_it(firmware: Device, header: Header) -> None:
    request, key = att.create([PUBLIC], att.IMAGE_HOST_KEY | att.FIRMWARE)
    found = att.verify(ultravisor.attest(request, SAID), key, header)
    assert (found.cuid, found.user_data, found.development) == (b"\xc1" * 16, SAID, False)
    assert firmware.orders == [0xC0407501]
    request, key = att.create([PUBLIC])
    assert att.verify(ultravisor.attest(request, b""), key, header).firmware == b""


def test_the_firmware_is_asked_for_no_more_than_it_knows(firmware: Device, tmp_path: Path) -> None:
    assert ultravisor.identify([PUBLIC]).firmware == b"f" * 320
    (tmp_path / "query/supp_att_pflags").write_text("7000000000000000\n")  # without secret store and firmware state
    found = ultravisor.identify([PUBLIC])
    assert (found.image_host_key, found.firmware) == (PUBLIC.fingerprint, b"")


def test_what_the_firmware_refuses_has_its_codes_in_the_message(firmware: Device) -> None:
    firmware.code = 0x106
    with pytest.raises(ultravisor.NoUltravisor, match="0x0106, 0x0102"):
        ultravisor.attest(att.create([PUBLIC])[0], SAID)
