"""What must be true of the units, whatever service is added: failure is caught, success is required, nothing hangs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import casemate

UNITS = Path(casemate.__file__).parent / "guest/units"
ROOT = Path(__file__).resolve().parents[2]
CATCH = ("hpl-catch-failure", "hpl-catch-success")


def read(path: Path) -> dict[str, dict[str, str]]:
    """A unit file; of a key that stands twice the values are joined."""
    sections: dict[str, dict[str, str]] = {}
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section[key] = f"{section[key]} {value}" if key in section else value
    return sections


ALL = {path.stem: read(path) for path in sorted(UNITS.glob("hpl-*.service"))}
AFTERWARDS = {"hpl-attestation"}
TIMERS = {path.stem: read(path) for path in sorted(UNITS.glob("hpl-*.timer"))}


@pytest.mark.parametrize("name", [name for name in ALL if name != "hpl-catch-failure"])
def test_the_failure_of_every_service_is_caught(name: str) -> None:
    assert ALL[name]["Unit"].get("OnFailure") == "hpl-catch-failure.service"


def test_where_the_catch_itself_fails_or_hangs_process_1_ends_the_machine() -> None:
    catch = ALL["hpl-catch-failure"]
    assert catch["Unit"]["FailureAction"] == catch["Unit"]["JobTimeoutAction"] == "poweroff-force"
    assert 0 < int(catch["Service"]["TimeoutStartSec"]) < int(catch["Unit"]["JobTimeoutSec"]) <= 120
    assert ALL["hpl-catch-success"]["Unit"]["JobTimeoutAction"] == "poweroff-force"


def needed_directly(name: str) -> set[str]:
    unit = ALL[name]["Unit"]
    return {one.removesuffix(".service") for one in unit.get("Requires", "").split()}


def needed(name: str) -> set[str]:
    """The services without which this one does not start, directly or through others, and for which it waits."""
    unit = ALL[name]["Unit"]
    named = f"{unit.get('Requires', '')} {unit.get('Wants', '')}".split()
    direct = set(named) & set(unit.get("After", "").split())
    names = {one.removesuffix(".service") for one in direct} & set(ALL)
    return names.union(*(needed(one) for one in names)) if names else set()


def test_success_is_said_when_every_service_has_succeeded() -> None:
    assert needed("hpl-catch-success") == set(ALL) - set(CATCH) - set(TIMERS) - AFTERWARDS


def test_what_comes_after_success_is_started() -> None:
    for name in AFTERWARDS:
        assert "hpl-catch-success" in needed_directly(name)
        assert f"{name}.service" in read(UNITS / "hyperprotect.target")["Unit"]["Wants"].split()


@pytest.mark.parametrize("name", ["hpl-container", "hpl-anchor", "hpl-rsyslog", "hpl-logrouter"])
def test_what_talks_to_the_end_ends_before_the_network_does(name: str) -> None:
    """Of its own: an order through services that have nothing to stop counts for a start only."""
    unit = ALL[name]["Unit"]
    assert "systemd-networkd.service" in unit["After"].split() and "shutdown.target" in unit["Conflicts"].split()


@pytest.mark.parametrize("name", sorted(set(ALL) - set(CATCH)))
def test_what_is_required_is_waited_for(name: str) -> None:
    """``Requires`` without ``After`` starts both at once: the second would not see the failure of the first."""
    unit = ALL[name]["Unit"]
    assert set(unit.get("Requires", "").split()) <= set(unit.get("After", "").split())


@pytest.mark.parametrize("name", ALL)
def test_nothing_requires_a_service_that_may_be_started_again(name: str) -> None:
    """It would be started again with it: images pulled anew without logins, containers stopped. It asserts instead."""
    unit = ALL[name]["Unit"]
    again = {f"{other}.service" for other in ALL if "Restart" in ALL[other]["Service"]}
    assert again == {"hpl-rsyslog.service", "hpl-logrouter.service"}
    assert not again & set(unit.get("Requires", "").split())
    if again & set(unit.get("Wants", "").split()):
        for sender in again:
            post = ALL[sender.removesuffix(".service")]["Service"]["ExecStartPost"]
            assert unit["AssertPathExists"] in post


@pytest.mark.parametrize("name", ALL)
def test_no_service_may_hang(name: str) -> None:
    """systemd bounds no ``Type=oneshot`` by itself."""
    service = ALL[name]["Service"]
    assert service["Type"] in ("oneshot", "notify", "exec")
    text = service["TimeoutStartSec"]
    seconds = int(text.removesuffix("min")) * 60 if text.endswith("min") else int(text)
    assert 0 < seconds <= 5400


@pytest.mark.parametrize("name", [name for name in ALL if "python3" in ALL[name]["Service"]["ExecStart"]])
def test_every_program_of_ours_leaves_no_core_and_speaks_to_console_and_journal(name: str) -> None:
    service = ALL[name]["Service"]
    assert service["LimitCORE"] == "0"
    where = "journal" if name.endswith("catch-failure") else "journal+console"  # it writes to the console by itself
    assert service["StandardOutput"] == service["StandardError"] == where
    *start, module = service["ExecStart"].split()
    assert start == ["/usr/bin/python3", "-ISB", "/usr/lib/python3/dist-packages/casemate/guest/start.py"]
    program = importlib.import_module(f"casemate.guest.{module}")
    assert callable(program.service) and re.fullmatch(r"HPL\d{5}E", program.UNFORESEEN)


@pytest.mark.parametrize("name", [name for name in ALL if "SystemCallFilter" in ALL[name]["Service"]])
def test_a_filter_of_system_calls_knows_no_other_architecture(name: str) -> None:
    assert ALL[name]["Service"]["SystemCallArchitectures"] == "native"


@pytest.mark.parametrize("name", TIMERS)
def test_every_timer_is_started_and_has_its_service(name: str) -> None:
    target = read(UNITS / "hyperprotect.target")
    assert f"{name}.timer" in target["Unit"]["Wants"].split()
    assert name in ALL and "RemainAfterExit" not in ALL[name]["Service"]


def test_the_network_is_configured_before_networkd_looks() -> None:
    unit = ALL["hpl-network-config"]["Unit"]
    assert unit["Before"] == "systemd-networkd.service"
    assert unit["ConditionPathExists"] == "/run/casemate/network-config"
    assert "hpl-network-config" in needed("hpl-network")


def test_the_picture_shows_the_services_that_start_and_those_of_timers() -> None:
    subprocess.run([sys.executable, ROOT / "tools/units_graph.py", "--check"], check=True)
    picture = (ROOT / "docs/images/layer.svg").read_text("utf-8")
    for name in set(ALL):
        assert name in picture


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """``systemd-analyze verify`` where the host has it: it tells of unknown keys and of loops in the order."""
    analyze = Path("/usr/bin/systemd-analyze")
    if not analyze.exists():
        pytest.skip("systemd is not installed")
    for path in UNITS.iterdir():
        text = path.read_text("utf-8")
        if path.suffix == ".service":  # its programs are those of the guest
            text = "\n".join(
                "ExecStart=/bin/true" if line.startswith("ExecStart=") else line for line in text.splitlines()
            )
            text = "\n".join(line for line in text.splitlines() if not line.startswith("ExecStop=")) + "\n"
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--recursive-errors=no", *sorted(map(str, tmp_path.iterdir()))],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "hpl-" in line and "not executable" not in line]
    assert ours == []
