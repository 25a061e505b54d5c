"""The whole story, as a newcomer runs it: every step of it checks itself, and the program ends with 0 only if all held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.machines


def test_the_demo_holds_and_leaves_nothing_running(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    program = [sys.executable, "-c", "from casemate.cli import main; main()", "demo", "--keep", str(kept)]
    done = subprocess.run(program, capture_output=True, timeout=1500)
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, said[-4000:]
    assert "DEVELOPMENT TEE" in said
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"casemate-demo" in _read(path)]
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # ended meanwhile
