"""What the bootloader decides; what it does is tried in real machines (``tests/machine``)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from casemate.contract.token import open_token
from casemate.guest import bootloader
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
    with pytest.raises(Stop):
        bootloader.write_record(tmp_path, b"1.0", private, b"no key", "1.0")


@pytest.mark.parametrize(("days", "id"), [(-1, "HPL12013W"), (0.5, "HPL12011W"), (29, "HPL12011W"), (31, None)])
def test_a_start_warns_of_the_end_of_the_encryption_certificate(days: float, id: str | None) -> None:
    said = bootloader.expiry(1_800_000_000 + days * 86400, 1_800_000_000)
    assert (said is None) if id is None else (said is not None and id in said and "2027-0" in said)
