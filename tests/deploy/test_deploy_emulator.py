"""The program in QEMU's place opens an image as the ultravisor does, and gives nothing else to QEMU in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.deploy.emulator import replaced
from casemate.deploy.errors import DeployError
from casemate.machine.ultravisor import SoftwareUltravisor
from casemate.secureexec import hostkey, image

SAYING = """#!/usr/bin/env python3
import os, sys
for word in sys.argv[1:]:
    print(open(word, "rb").read() if word.startswith("/proc/self/fd/") else word)
"""


def test_the_image_gives_way_to_its_parts_and_the_rest_stays() -> None:
    given = ["-name", "guest=db", "-kernel", "/i/casemate.img", "-S"]
    parts = ["-kernel", "/proc/self/fd/5", "-initrd", "/proc/self/fd/6", "-append", "quiet"]
    assert replaced(given, 5, 6, "quiet") == ["-name", "guest=db", *parts, "-S"]


@pytest.mark.parametrize(
    "given",
    [
        ["-kernel", "a", "-append", "init=/bin/sh"],
        ["-initrd", "evil", "-kernel", "a"],
        ["-kernel", "a", "-kernel", "b"],
        ["-kernel"],
        [],
    ],
)
def test_what_would_replace_a_measured_part_is_refused(given: list[str]) -> None:
    with pytest.raises(DeployError):
        replaced(given, 5, 6, "quiet")


@pytest.fixture
def emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image for this user's software ultravisor, and a QEMU that says what it was given."""
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    host = hostkey.load(SoftwareUltravisor.load_or_create().document)
    (tmp_path / "kernel").write_bytes(b"KERNEL" * 1000)
    (tmp_path / "initrd").write_bytes(b"INITRD" * 1000)
    with (tmp_path / "kernel").open("rb") as kernel, (tmp_path / "image").open("wb") as out:
        image.pack(out, kernel=kernel, cmdline=b"quiet", initrd=(tmp_path / "initrd").open("rb"), hosts=[host])
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(SAYING)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return tmp_path / "image"


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "casemate.deploy.emulator", "amd64", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True)


def test_qemu_gets_the_parts_in_memory(emulated: Path) -> None:
    done = start("-S", "-kernel", emulated)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "-S",
        "-kernel",
        str(b"KERNEL" * 1000),
        "-initrd",
        str(b"INITRD" * 1000),
        "-append",
        "quiet",
    ]


def test_libvirts_questions_pass_as_they_are(emulated: Path) -> None:
    assert start("-machine", "none").stdout.splitlines() == ["-machine", "none"]


def test_an_image_with_a_changed_byte_starts_nothing(emulated: Path) -> None:
    data = bytearray(emulated.read_bytes())
    data[-5000] ^= 1
    emulated.write_bytes(data)
    done = start("-S", "-kernel", emulated)
    assert done.returncode == 1 and done.stdout == "" and "SE-" in done.stderr


def test_a_kernel_that_is_no_image_starts_nothing(emulated: Path) -> None:
    emulated.write_bytes(b"MZ" * 50_000)
    done = start("-kernel", emulated)
    assert done.returncode == 1 and done.stdout == ""
