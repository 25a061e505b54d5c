"""The tools for workloads: what they take and refuse; secrets come by standard input. The rest: ``tests/machine``."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from casemate.contract.passphrase import passphrase
from casemate.guest import volumes, workloaddisk
from casemate.guest.kernel import Disk
from casemate.guest.report import Stop
from casemate.guest.workloaddisk import block_device, locked, passphrase_of
from casemate.luks.header import labelled, read_header

SEEDS = ("workload-seed-15", "environment-seed", "a-third-seed-too")


class Input:
    """Standard input with these bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_the_same_seeds_give_the_passphrase_of_a_contracts_volume() -> None:
    assert passphrase_of("\n".join(SEEDS)) == passphrase(*SEEDS)
    assert passphrase_of("\n".join(SEEDS[:2]) + "\n") == passphrase(*SEEDS[:2])
    assert len(passphrase_of(SEEDS[0])) == 64


@pytest.mark.parametrize("text", ["", "\n", "short", "a-good-seed-here\n\n", "a seed with spaces in it"])
def test_what_is_no_seed_is_refused_and_not_told(text: str) -> None:
    with pytest.raises(Stop) as stop:
        passphrase_of(text)
    assert stop.value.id == "HPL02121E" and (not text.strip() or text.strip() not in stop.value.detail)


def test_the_generator_reads_seeds_and_prints_the_passphrase_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Input("\n".join(SEEDS).encode()))
    assert workloaddisk.generate() == 0
    assert capsys.readouterr().out == passphrase(*SEEDS)
    monkeypatch.setattr(sys, "stdin", Input(b"x" * 70000))
    assert workloaddisk.generate() == 1
    assert "HPL02121E" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "given", "id"),
    [
        ([], b"p" * 64, "HPL02121E"),
        (["/dev/null", "/mnt", "ntfs"], b"p" * 64, "HPL02121E"),
        (["/dev/null", "/mnt"], b"p" * 64, "HPL02121E"),
        (["/dev/no-such-device", "/mnt"], b"p" * 64, "HPL02122E"),
        (["/dev/null", "/mnt"], b"short", "HPL02121E"),
        (["/dev/null", "/mnt"], b"with a newline at its end\n", "HPL02121E"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    arguments: list[str], given: bytes, id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["se-disk-encryption", *arguments])
    monkeypatch.setattr(sys, "stdin", Input(given))
    assert workloaddisk.encrypt() == 1
    said = capsys.readouterr()
    assert id in said.err and given.decode().strip() not in said.err + said.out


def test_a_file_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    with pytest.raises(Stop, match="HPL02121E"):
        block_device(str(tmp_path / "file"))


def test_two_on_one_device_are_refused_and_two_on_two_are_not(tmp_path: Path) -> None:
    disks = []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(4096))
        disks.append(Disk(f"..{tmp_path}/{name}", "", 4096))
    with locked(disks[0]), locked(disks[1]):
        for disk in disks:
            with pytest.raises(Stop, match="HPL02123E: another se-disk-encryption works"), locked(disk):
                pass
    with locked(disks[0]):
        pass
    assert not [name for name in os.listdir("/proc/self/fd") if str(tmp_path) in _target(name)]


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


def test_the_next_start_leaves_a_workloads_own_disk_alone_and_no_other(tmp_path: Path) -> None:
    from casemate.luks.policy import format_arguments

    file = tmp_path / "disk"
    with file.open("wb") as made:
        made.truncate(32 << 20)
    import subprocess

    command = ["cryptsetup", "luksFormat", *format_arguments(), "--key-file=-", str(file)]
    assert subprocess.run(command, input=b"k" * 64, capture_output=True).returncode == 0
    area = file.read_bytes()[: 1 << 20]
    own = labelled(area, volumes.WORKLOAD_LABEL)
    assert read_header(own).label == "casemate-workload" and read_header(own).intact
    assert volumes.workloads_own(own[: 64 << 10])
    for other in (area, bytes(1 << 20), own[:100], labelled(area, "casemate-workload2")):
        assert not volumes.workloads_own(other[: 64 << 10])
