"""Attacks on real machines: each is refused by its message, the machine stops, no secret is seen, data disks stay as they are."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from refusals import REFUSALS
from surroundings import Outcome, World

pytestmark = pytest.mark.machines


@pytest.mark.parametrize("refusal", REFUSALS)
def test_the_machine_refuses(refusal: str, world: World, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[refusal].result()
    assert not outcome.ready
    assert outcome.reason.startswith(f"{REFUSALS[refusal].id}: "), outcome.console[-3000:]
    assert outcome.disks_untouched
    seen = outcome.console + outcome.left_behind + "\n".join(world.logs.lines())
    for name, secret in (world.secrets | world.marks).items():
        assert secret not in seen, name
    assert "sysrq: Power Off" not in outcome.console  # the firmware's tables give systemd no orders
