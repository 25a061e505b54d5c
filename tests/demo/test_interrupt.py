"""The demo is ended in the middle: what it had started ends with it, and nothing is left on the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.machine.machines import all_machines
from program import PROGRAM

pytestmark = pytest.mark.machines


def processes(directory: Path) -> list[str]:
    """Return the command lines of what runs and has to do with a directory."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{directory}/casemate-demo-" in line:
            lines.append(line)
    return lines


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.parametrize("moment", ["services", "machine"])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_whatever_was_started_ends_with_the_demo(kind: signal.Signals, moment: str, tmp_path: Path) -> None:
    before = {each.name for each in all_machines()}

    def machines() -> list[str]:
        found = [each for each in all_machines() if each.name not in before and each.name.startswith("demo-")]
        return [each.name for each in found if moment == "services" or "run attestation" in each.console()]

    with (tmp_path / "said").open("wb") as said:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen([*PROGRAM, "demo"], stdout=said, stderr=said, env=environment)
    wait_until(lambda: machines() if moment == "machine" else len(processes(tmp_path)) >= 2, process)
    process.send_signal(kind)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # somebody who can't wait does not keep it from cleaning up
    code = process.wait(60)
    assert code in (130, -signal.SIGINT), (tmp_path / "said").read_text()  # the second may come when all is done
    assert processes(tmp_path) == []
    assert list(tmp_path.glob("casemate-demo-*")) == []
    assert {each.name for each in all_machines() if each.name.startswith("demo-")} <= before
