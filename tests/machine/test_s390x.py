"""Machines for IBM Z under QEMU's emulation of it: the same source, the same services, the demo's whole story.

A root for s390x takes minutes to make where its programs are emulated, so these run where the cache has it, or where
``make test-s390x`` asks for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from surroundings import attempt

from casemate.demo import parties
from casemate.demo.story import image_directory
from casemate.image.build import build_image, is_current
from casemate.image.root import tree_path
from casemate.image.snapshot import format_list, listed
from casemate.machine import home
from casemate.machine.machines import Specification

ARCH = "s390x"
TREE = tree_path(ARCH, home.directory() / "cache", format_list(listed(ARCH)[0]))
pytestmark = [
    pytest.mark.machines,
    pytest.mark.long,
    pytest.mark.skipif(
        not TREE.is_dir() and "CASEMATE_S390X" not in os.environ,
        reason="the cache has no root for s390x: make test-s390x builds it, in four minutes or more",
    ),
    pytest.mark.skipif(shutil.which("qemu-system-s390x") is None, reason="QEMU for s390x is not installed"),
]


@pytest.fixture(scope="module")
def image() -> Path:
    directory = image_directory(ARCH)  # the demo's: built once for both
    if not is_current(directory, arch=ARCH):
        build_image(directory, arch=ARCH)
    return directory


def test_an_archive_that_was_changed_is_refused_on_ibm_z(image: Path, tmp_path: Path) -> None:
    changed = bytearray((image / "root.squashfs").read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "changed.squashfs").write_bytes(changed)
    certificate = (image / "encryption.crt").read_bytes()
    contract = parties.contract_of(*(parties.seal({"type": name}, certificate) for name in ("workload", "env")))
    outcome = attempt(
        Specification(
            *("z-changed-archive", image, contract),
            **{"archive": tmp_path / "changed.squashfs", "memory_mib": 1024, "root_size": 4 << 30},
        )
    )
    assert not outcome.ready
    assert outcome.reason.startswith("HPL11006E"), outcome.console


def test_the_demo_holds_on_ibm_z(image: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    program = [
        sys.executable,
        "-c",
        "from casemate.cli import main; main()",
        "demo",
        "--arch",
        ARCH,
        "--keep",
        str(kept),
    ]
    done = subprocess.run(program, capture_output=True, timeout=2400, check=False)
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, said[-4000:]
    assert "DEVELOPMENT TEE" in said
    kernel = json.loads((image / "image.json").read_text())["kernel"]
    assert kernel.endswith("-s390x")
    assert f"Linux version {kernel} " in (kept / "logs.txt").read_text()
