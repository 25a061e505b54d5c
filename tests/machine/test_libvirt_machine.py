"""A whole machine through libvirt: applied, running until its services have succeeded, unchanged by a second apply, destroyed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from surroundings import PATIENCE, World

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))

from daemon import libvirtd

pytestmark = [pytest.mark.machines, pytest.mark.long]

FILE = """\
connection: qemu+unix:///session?socket={socket}
directory: made
machines:
  db:
    image: {image}
    contract: contract.yaml
    memory: 1G
    cpus: 2
    root: {{size: 4G}}
    volumes: {{data: {{path: data.img, size: 512M}}}}
"""


def casemate(work: Path, *words: str) -> str:
    program = [sys.executable, "-c", "from casemate.cli import main; main()", *words]
    done = subprocess.run(program, cwd=work, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_machine_is_started_watched_and_taken_away_through_libvirt(world: World, tmp_path: Path) -> None:
    def steps(*words: str) -> list[str]:
        return [step["act"] for step in json.loads(casemate(tmp_path, "deploy", *words, "--json"))["steps"]]

    def state() -> str:
        return str(json.loads(casemate(tmp_path, "deploy", "show", "d.yaml", "--json"))[0]["state"])

    (tmp_path / "contract.yaml").write_bytes(world.contract())
    with libvirtd() as socket:
        (tmp_path / "d.yaml").write_text(FILE.format(socket=socket, image=world.image))
        try:
            assert steps("apply", "d.yaml")[-2:] == ["define", "start"]
            end = time.monotonic() + PATIENCE
            while "HPL10001I" not in (console := casemate(tmp_path, "deploy", "logs", "d.yaml", "db")):
                assert state() == "running" and time.monotonic() < end, console[-3000:]
                time.sleep(1)
            assert "HPL07003I" in console  # the volume of the deployment file is in use
            assert steps("apply", "d.yaml") == []
            assert state() == "running"
            casemate(tmp_path, "deploy", "record", "d.yaml", "db", "-o", "record")
            casemate(tmp_path, *("attestation", "verify", "--record", "record", "--image", str(world.image)))
        finally:
            gone = steps("destroy", "d.yaml", "--yes", "--patience", "1")
        assert gone == ["stop", "remove"]
        assert not any((tmp_path / "made/db").glob("*"))
        assert (tmp_path / "data.img").stat().st_size == 512 << 20  # volumes stay
