"""When a machine counts as started, by what stands on its console."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.machine import machines
from casemate.machine.machines import Machine, MachineError


@pytest.mark.parametrize(
    ("console", "starts"),
    [
        ("[ 9.0] hpl-catch[9]: HPL10001I: Services succeeded -> all", True),
        ("[ 9.0] hpl-container[9]: HPL10002I: The workload is complete: the machine stops in 5 seconds.", True),
        ("[ 9.0] hpl-image[9]: HPL06004E: the registry is away", False),
        ("[ 9.0] hpl-network[9]: HPL14000I: Network connectivity check completed successfully.", False),
    ],
)
def test_a_machine_that_has_ended_was_started_where_its_workload_ran(
    tmp_path: Path, console: str, starts: bool
) -> None:
    (tmp_path / "console.log").write_text(console)
    (tmp_path / "qemu.log").write_text("")
    machine = Machine("app", tmp_path)
    if starts:
        machines.wait(machine, timeout=1.0)
    else:
        with pytest.raises(MachineError, match="the machine stopped"):
            machines.wait(machine, timeout=1.0)
