"""What the bootloader decides; what it does is tried in real machines (``tests/machine``)."""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from contract_kit import Pair, craft, pad
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from casemate.contract.token import open_token
from casemate.guest import bootloader, init, kernel, kinds, rootdisk
from casemate.guest.kernel import ARCHIVE_SERIAL, ROOT_SERIAL, Disk
from casemate.guest.report import Stop


@pytest.mark.parametrize(
    ("meta_data", "name"),
    [
        (b"local-hostname: db-1\n", "db-1"),
        (b'instance-id: x\nlocal-hostname: "quoted"\n', "quoted"),
        (b"", "casemate"),
        (b"local-hostname: -bad\n", "casemate"),
        (b"local-hostname: two words\n", "casemate"),
        (b"local-hostname: " + b"a" * 64, "casemate"),
        (b"local-hostname: a;reboot\n", "casemate"),
        (b"\xff\xfe local-hostname", "casemate"),
    ],
)
def test_only_a_host_name_becomes_the_host_name(meta_data: bytes, name: str) -> None:
    assert bootloader.hostname(meta_data) == name


@pytest.mark.parametrize(
    ("said", "available", "taken"),
    [
        ("tsc: PIT calibration deviates from HPET: 488139 2595854", "tsc hpet acpi_pm", "hpet"),
        ("tsc: PIT calibration deviates from PMTIMER: 488139 2595854", "tsc acpi_pm", "acpi_pm"),
        ("tsc: PIT calibration deviates from PMTIMER: 488139 2595854", "tsc", "tsc"),
        ("tsc: using HPET reference calibration", "tsc hpet acpi_pm", "tsc"),
    ],
)
def test_a_counter_that_was_measured_on_a_busy_host_is_not_the_clock(
    tmp_path: Path, said: str, available: str, taken: str
) -> None:
    (tmp_path / "kmsg").write_text(f"6,1,0,-;Linux\n4,2,0,-;{said}\n")
    for name, text in (("available", available), ("current", "tsc")):
        (tmp_path / f"{name}_clocksource").write_text(text)
    kernel.mend_clock(tmp_path / "kmsg", tmp_path)
    assert (tmp_path / "current_clocksource").read_text() == taken


def test_keys_are_overwritten_and_gone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "contract.pem").write_bytes(b"very secret")
    with (keys / "contract.pem").open("rb") as still_open:
        bootloader.destroy_keys(keys)
        assert still_open.read() == bytes(11)
    assert not keys.exists()


def test_what_is_handed_over_is_roots_alone(tmp_path: Path) -> None:
    opened = bootloader.Opened({"workload": "W", "env": "E"}, {"workload": b"w", "env": b"e"}, "sig", 0)
    bootloader.hand_over(opened, tmp_path / "run")
    contract = tmp_path / "run/contract"
    assert {path.name: path.read_bytes() for path in contract.iterdir()} == {
        "workload": b"w",
        "env": b"e",
        "sealed-workload": b"W",
        "sealed-env": b"E",
        "envWorkloadSignature": b"sig",
    }
    assert contract.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in contract.iterdir())


def test_what_is_no_contract_stops_the_machine() -> None:
    with pytest.raises(Stop) as stop:
        bootloader.open_contract(b"workload: only\n", b"")
    assert stop.value.id == "HPL11001E"


@pytest.mark.parametrize("encode", [bytes, base64.b64encode])
def test_the_record_is_encrypted_for_an_auditors_key_as_tools_write_it(
    tmp_path: Path, encode: Callable[[bytes], bytes]
) -> None:
    key = generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    files = bootloader.write_record(tmp_path, b"1.0", private, encode(public), "1.0")
    assert "se-checksums.txt" not in files
    assert open_token(files["se-checksums.txt.enc"].decode(), key).plain == b"1.0"
    with pytest.raises(Stop, match="HPL11002E"):
        bootloader.write_record(tmp_path, b"1.0", private, b"no key", "1.0")
    with pytest.raises(Stop, match="HPL11002E"):
        bootloader.write_record(tmp_path, b"1.0", private, private, "1.0")


@pytest.mark.parametrize(("days", "id"), [(-1, "HPL12013W"), (0.5, "HPL12011W"), (29, "HPL12011W"), (31, None)])
def test_a_start_warns_of_the_end_of_the_encryption_certificate(days: float, id: str | None) -> None:
    said = bootloader.expiry(1_800_000_000 + days * 86400, 1_800_000_000)
    assert (said is None) if id is None else (said is not None and id in said and "2027-0" in said)


@pytest.mark.parametrize(("password", "warned"), [(b"0123456789abcdef" * 2, False), (b"ab\n" + b"c" * 30, True)])
def test_a_token_with_a_short_password_opens_with_a_warning(
    pair: Pair, password: bytes, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    token = craft(pair.key.public_key(), password, password.partition(b"\n")[0], pad(b"type: workload\n"))
    opened = bootloader.open_contract(f"workload: {token}\nenv: |\n  type: env\n".encode(), pair.private)
    assert opened.plain["workload"] == b"type: workload\n"
    assert ("HPL11008W: the token of workload" in capsys.readouterr().out) == warned


GIB = 1 << 30
ARCHIVE, ROOT = Disk("vda", ARCHIVE_SERIAL, GIB), Disk("vdb", ROOT_SERIAL, 8 * GIB)


@pytest.mark.parametrize(
    ("disks", "content", "cause"),
    [
        ([ROOT], b"", f"no disk with the serial number {ARCHIVE_SERIAL}"),
        ([ARCHIVE], b"", f"no disk with the serial number {ROOT_SERIAL}"),
        ([ARCHIVE, ROOT, Disk("vdc", ROOT.serial, GIB)], b"", f"two disks with the serial number {ROOT.serial}"),
        ([ARCHIVE, ROOT, Disk("vdc", ARCHIVE.serial, GIB)], b"", f"two disks with the serial number {ARCHIVE.serial}"),
        ([ARCHIVE, Disk("vdb", ROOT.serial, GIB)], b"", "has 1024 MiB, too few"),
        ([ARCHIVE, ROOT], b"somebody's", "something else than a root of ours, and is left as it is"),
    ],
)
def test_a_machine_without_the_two_disks_it_needs_stops(
    disks: list[Disk], content: bytes, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "memory_mib", lambda: 2048)
    monkeypatch.setattr(kernel, "disks", lambda: disks)
    found = {disk.serial: disk for disk in reversed(disks)}
    monkeypatch.setattr(kernel, "wait_for_disk", lambda serial, seconds: found.get(serial))
    monkeypatch.setattr(bootloader, "read_cidata", lambda disks: b"")
    monkeypatch.setattr(bootloader, "_read_disk", lambda disk, size, start=0: content)
    with pytest.raises(Stop, match=f"HPL11009E.*{cause}"):
        bootloader.boot({"root_size": 1 << 20, "root_sha256": "00" * 32}, kinds.LAYER)


def test_a_root_disk_that_can_not_be_written_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails while the archive is copied, in the background."""
    (tmp_path / "archive").write_bytes(bytes(8192))
    opened = os.open

    def nowhere(path: str, flags: int) -> int:
        return opened(path if "archive" in path else tmp_path / "archive", flags & ~os.O_DIRECT)

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", nowhere)
    monkeypatch.setattr(os, "pwrite", fail)
    root = rootdisk.RootDisk(ROOT, Disk(f"..{tmp_path / 'archive'}", ARCHIVE_SERIAL, 8192), 8192, "00" * 32)
    root.start()
    with pytest.raises(Stop, match=r"HPL11000E: the root disk could not be written: .*Input/output error"):
        root.finish()


def test_what_nobody_foresaw_switches_the_machine_off_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    off: list[bool] = []
    monkeypatch.setattr(init, "IMAGE", tmp_path / "missing")
    monkeypatch.setattr(kernel, "power_off", lambda: off.append(True))
    with pytest.raises(SystemExit):
        init.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("# HPL11000E: unexpected FileNotFoundError at ") and str(tmp_path) not in said[0]
    assert said[1] == "# the machine stops" and off == [True]
