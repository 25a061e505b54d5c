"""The units, obeyed by a real systemd: the programs are replaced by ones that say that they ran, or fail; the order is theirs.

systemd is process 1 of namespaces of its own (processes, mounts, network, names, control groups), so that no machine has to start
for each of the failures. Without root, systemd or a writable control group there is nothing to run it in, and the tests say so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import casemate

UNITS = Path(casemate.__file__).parent / "guest/units"
SERVICES = sorted(path.stem for path in UNITS.glob("hpl-*.service"))
LATER = ("hpl-anchor", "hpl-integrity", "hpl-attestation")
"""Those of the first two that a contract asks for, and what answers when all has succeeded: not a part of each start."""
START = [
    name
    for name in SERVICES
    if not name.startswith("hpl-catch") and name not in LATER and not (UNITS / f"{name}.timer").exists()
]
SENDERS = {"hpl-rsyslog": "rsyslog.conf", "hpl-logrouter": "logrouter.json"}
"""Of both one starts, by the file that ``hpl-logging`` leaves for it."""
DEBIAN = (
    "systemd-networkd.service",
    "systemd-journald.service",
    "systemd-sysctl.service",
    "systemd-tmpfiles-setup.service",
)
KEPT = ("Type", "RemainAfterExit", "Restart", "RestartSec")
SYSTEMD = "/usr/lib/systemd/systemd"
GROUP = f"casemate-units-{os.getpid()}"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path(SYSTEMD).exists() or shutil.which("unshare") is None, reason="needs root and systemd"
)


class Run:
    """A start of the layer under a systemd of its own."""

    def __init__(
        self, directory: Path, fails: str = "", network_config: bool = False, expiry: bool = False, keys: bool = False
    ) -> None:
        self.said = directory / "said"
        self.state = directory / "state"
        self.fails = fails
        (self.state / "logging").mkdir(parents=True)
        for name, wanted in (("network-config", network_config), ("expiry.json", expiry), ("keycheck.json", keys)):
            if wanted:
                (self.state / name).touch()
        sender = fails if fails in SENDERS else "hpl-rsyslog"
        (self.state / "logging" / SENDERS[sender]).touch()
        self.said.touch()
        units = directory / "units"
        units.mkdir()
        for path in UNITS.iterdir():
            (units / path.name).write_text(self._replaced(path))
        for name in DEBIAN:
            text = "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
            (units / name).write_text(f"{text}ExecStart={self._program(name.removesuffix('.service'))}\n")
        for name in ("sysinit", "basic", "shutdown"):
            (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        script = directory / "start"
        script.write_text(f"""\
set -e
umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run; : > /run/id; mount --bind /run/id /etc/machine-id
export container=other SYSTEMD_UNIT_PATH={units}
exec {SYSTEMD} --system --unit=hyperprotect.target --log-target=null --show-status=0
""")
        # The group must be entered before its namespace is made: systemd then sees it as the root of all.
        outer = "mount -t cgroup2 none /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/$0 && echo $$ > /sys/fs/cgroup/$0/cgroup.procs"
        inner = ["unshare", "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net", "--fork", "--kill-child"]
        command = " ".join([*inner, "--mount-proc", "sh", str(script)])
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"umount -l /sys/fs/cgroup; {outer} && exec {command}", GROUP],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(directory / "error").open("wb"),
            start_new_session=True,
        )

    def _program(self, name: str) -> str:
        end = "exit 1" if name == self.fails else "exit 0"
        return f"/bin/sh -c 'echo {name} >> {self.said}; {end}'"

    def _replaced(self, path: Path) -> str:
        """Keep what says when something runs; replace what runs, where it looks, and what would end the machine."""
        lines, section = [], ""
        for line in path.read_text("utf-8").splitlines():
            key = line.partition("=")[0]
            if line.startswith("["):
                section = line
            elif (section == "[Service]" and key not in KEPT) or key in ("FailureAction", "JobTimeoutAction"):
                continue
            lines.append(line.replace("/run/casemate", str(self.state)).replace("OnActiveSec=1min", "OnActiveSec=1s"))
        kind = "exec" if any(line.startswith("Restart=") for line in lines) else "oneshot"
        text = "\n".join(lines).replace("Type=notify", f"Type={kind}") + "\n"
        if path.suffix != ".service":
            return text
        if "Restart=" in text and path.stem != self.fails:
            ready = f"ExecStartPost=/bin/touch {self.state}/logging/ready\n"
            return f"{text}ExecStart=/bin/sleep 1000\nExecStartPost={self._program(path.stem)}\n{ready}"
        stops = f"ExecStop=/bin/sh -c 'echo -{path.stem} >> {self.said}'\n"
        return f"{text}ExecStart={self._program(path.stem)}\n{stops}"

    def ran(self) -> list[str]:
        return self.said.read_text().split()

    def wait_for(self, name: str, seconds: float = 40.0) -> list[str]:
        end = time.monotonic() + seconds
        while name not in self.ran():
            assert self.process.poll() is None, "systemd ended"
            assert time.monotonic() < end, f"{name} did not run: {self.ran()}"
            time.sleep(0.05)
        time.sleep(0.3)
        return self.ran()

    def kill(self, program: str) -> None:
        """Kill the one process of this name in the group."""
        for path in Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):
                if path.read_text().strip() == program and GROUP in (path.parent / "cgroup").read_text():
                    os.kill(int(path.parent.name), 9)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        groups = next(
            (g for g in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if (g / GROUP).is_dir()), None
        )
        for _ in range(50):
            if groups is None or not (groups / GROUP).exists():
                break
            for path in sorted((groups / GROUP).rglob("*"), reverse=True):
                if path.is_dir():
                    with contextlib.suppress(OSError):
                        path.rmdir()
            with contextlib.suppress(OSError):
                (groups / GROUP).rmdir()
            time.sleep(0.1)


@contextlib.contextmanager
def running(directory: Path, **how: object) -> Iterator[Run]:
    run = Run(directory, **how)  # type: ignore[arg-type]
    try:
        yield run
    finally:
        run.end()


def test_all_services_start_and_success_is_said_last(tmp_path: Path) -> None:
    with running(tmp_path, network_config=True) as run:
        ran = run.wait_for("hpl-catch-success")
    assert set(START) - {"hpl-logrouter"} <= set(ran) and "hpl-catch-failure" not in ran
    assert [name for name in ran if name.lstrip("-") not in LATER][-1] == "hpl-catch-success" and len(ran) == len(
        set(ran)
    )
    order = {name: number for number, name in enumerate(ran)}
    assert order["hpl-network-config"] < order["systemd-networkd"] < order["hpl-network"]
    assert (
        order["hpl-signature"] < order["hpl-image"] < order["hpl-storage"] < order["hpl-seal"] < order["hpl-container"]
    )


def test_without_network_config_nothing_runs_for_it_and_the_rest_does(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        ran = run.wait_for("hpl-catch-success")
    assert not {"hpl-network-config", "hpl-expiry", "hpl-key-check"} & set(ran)
    assert set(START) - {"hpl-network-config", "hpl-logrouter"} <= set(ran)


NEVER_AFTER = ("hpl-storage", "hpl-seal", "hpl-container", "hpl-catch-success")


@pytest.mark.parametrize("name", [*START, "systemd-sysctl", "systemd-tmpfiles-setup"])
def test_the_failure_of_each_stops_what_needs_it_and_reaches_the_catch(tmp_path: Path, name: str) -> None:
    with running(tmp_path, fails=name, network_config=True) as run:
        ran = run.wait_for("hpl-catch-failure")
        time.sleep(1)
        ran = run.ran()
    assert name in ran and "hpl-catch-success" not in ran
    later = NEVER_AFTER[NEVER_AFTER.index(name) + 1 :] if name in NEVER_AFTER else NEVER_AFTER
    if name not in ("hpl-firewall", "hpl-modules", "systemd-sysctl", "systemd-tmpfiles-setup"):
        assert not set(later) & set(ran)
    assert "hpl-container" not in ran or name == "hpl-container"


def test_the_end_of_a_contract_reaches_the_catch_while_the_machine_runs(tmp_path: Path) -> None:
    with running(tmp_path, fails="hpl-expiry", expiry=True) as run:
        ran = run.wait_for("hpl-catch-failure")
    assert "hpl-catch-success" in ran and ran.index("hpl-expiry") < ran.index("hpl-catch-failure")


def test_the_end_of_a_key_reaches_the_catch_while_the_machine_runs(tmp_path: Path) -> None:
    with running(tmp_path, fails="hpl-key-check", keys=True) as run:
        ran = run.wait_for("hpl-catch-failure")
    assert ran.index("hpl-storage") < ran.index("hpl-key-check") < ran.index("hpl-catch-failure")


def test_a_crash_of_rsyslog_starts_it_again_and_nothing_else_and_the_fifth_stops_the_machine(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        before = run.wait_for("hpl-catch-success")
        for turn in range(1, 5):
            run.kill("sleep")
            end = time.monotonic() + 15
            while run.ran().count("hpl-rsyslog") < turn + 1:
                assert time.monotonic() < end, run.ran()
                time.sleep(0.1)
        beside = ("hpl-rsyslog", "hpl-log-loss", "hpl-attestation")  # a timer's, and what waits for success
        assert [name for name in run.ran()[len(before) :] if name.lstrip("-") not in beside] == []
        run.kill("sleep")
        run.wait_for("hpl-catch-failure")
    last = run.ran()
    assert last.count("hpl-catch-failure") == 1 and last.index("hpl-catch-failure") > last.index("hpl-catch-success")
