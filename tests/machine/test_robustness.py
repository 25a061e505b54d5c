"""What a running machine survives, and how it ends: two machines, each asked many things, since starts are dear.

The first has a static network, a contract of nearly 1 MB that is signed by a certificate with its authority, and a log backend
of its own that goes away and comes back. The second has all the defaults.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from surroundings import PATIENCE, SHELL, World, shell

from casemate.demo import parties
from casemate.demo.services import LogServer, free_port
from casemate.machine.machines import Machine, Port, Specification, up

pytestmark = pytest.mark.machines
STATIC = b"""\
network:
  version: 2
  ethernets:
    enc1:
      dhcp4: false
      addresses: [10.0.2.77/24]
      gateway4: 10.0.2.2
      nameservers: {addresses: [10.0.2.3], search: [example.com]}
"""


@dataclass
class Subject:
    """A machine, the port of its shell, and its log backend, which can be taken away."""

    world: World
    name: str
    stack: ExitStack = field(default_factory=ExitStack)
    port: int = field(default_factory=free_port)
    logs: LogServer = None  # type: ignore[assignment]
    machine: Machine = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.backend = self.stack.enter_context(LogServer.running(self.world.directory / f"{self.name}-logs"))
        self.logs = self.backend

    def start(self, specification: Specification) -> None:
        self.machine = up(specification, timeout=PATIENCE)

    def ask(self, line: str) -> str:
        return shell(self.port, line).decode(errors="replace")

    def guest(self, line: str) -> str:
        """Run a line as root of the guest, among the guest's own files."""
        return self.ask(f"nsenter -t 1 -m -- /bin/sh -c {line!r}")

    def pid(self, name: str) -> str:
        return self.ask(f"pidof {name}").strip()

    def says(self, text: str) -> None:
        """Send a line through the guest's journal, and see it arrive at the backend."""
        mark = f"{text} {secrets.token_hex(8)}"
        self.guest(f"echo {mark} | systemd-cat -t robust")
        self.logs.wait_for(mark, 60)

    def kill(self, name: str, signal: int) -> None:
        """Kill a service, and see that there is a new process of it."""
        old = self.pid(name)
        assert old, name
        self.ask(f"kill -{signal} {old}")
        end = time.monotonic() + 60
        while (new := self.pid(name)) == old or not new:
            assert time.monotonic() < end, f"{name} did not come back"
            time.sleep(0.5)

    def ends(self, seconds: float = 90.0) -> str:
        """Wait for the end of the machine; return its reason."""
        end = time.monotonic() + seconds
        while self.machine.running:
            assert time.monotonic() < end, self.machine.console()[-3000:]
            time.sleep(0.5)
        return self.machine.reason


@pytest.fixture(scope="module")
def first(world: World) -> Iterator[Subject]:
    """Static network, large contract, a certificate and its authority as ``signingKey``."""
    subject = Subject(world, "robust-a")
    with subject.stack:
        files = {"large.bin": secrets.token_bytes(540_000)}
        workload = parties.workload_section(
            SHELL.format(image=world.container), registry=world.registry, seed=world.seeds[0], files=files
        )
        key = parties.new_key(2048)
        env = parties.env_section(
            subject.backend, registry=world.registry, seed=world.seeds[1], signing_key=_certificates(key)
        )
        contract = parties.contract_of(
            parties.seal(workload, world.certificate), parties.seal(env, world.certificate), signing_key=key
        )
        assert 900_000 < len(contract) < 1_100_000
        specification = world.specification(
            "t-robust-a",
            contract,
            data=(world.data("robust-a"),),
            ports=(Port(subject.port, 7000),),
            network_config=STATIC,
        )
        subject.start(specification)
        yield subject
        subject.machine.down(0.0)


@pytest.fixture(scope="module")
def second(world: World) -> Iterator[Subject]:
    """All defaults."""
    subject = Subject(world, "robust-b")
    with subject.stack:
        workload = world.workload(SHELL.format(image=world.container))
        env = parties.env_section(subject.backend, registry=world.registry, seed=world.seeds[1])
        contract = parties.contract_of(parties.seal(workload, world.certificate), parties.seal(env, world.certificate))
        specification = world.specification(
            "t-robust-b", contract, data=(world.data("robust-b"),), ports=(Port(subject.port, 7000),)
        )
        subject.start(specification)
        yield subject
        subject.machine.down(0.0)


def _certificates(key: object) -> bytes:
    """A signer's certificate for 90 days, and the authority that issued it."""
    now, authority = datetime.datetime.now(datetime.UTC), parties.new_key(2048)
    found = []
    for name, public, ca, days in (("deployer", key, False, 90), ("authority", authority, True, 900)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")]))
            .public_key(public.public_key())  # type: ignore[attr-defined]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        found.append(builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return b"".join(found)


# ------------------------------------------------------------------------------------------------- the first


def test_a_static_network_reaches_registry_and_log_backend(first: Subject) -> None:
    console = first.machine.console()
    assert "HPL13004I" in console and "HPL12005I" in console and "whose issuer was checked" in console
    said = first.guest("cat /proc/1/net/fib_trie /etc/resolv.conf; find /run/systemd/network /run/systemd/netif/leases")
    assert "10.0.2.77" in said and "10.0.2.15" not in said
    assert "nameserver 10.0.2.3" in said and "search example.com" in said
    first.logs.wait_for("HPL10001I", 60)


def test_lines_wait_while_the_backend_is_away_and_arrive_in_order(first: Subject) -> None:
    first.stack.close()
    marks = [f"away-{number}-{secrets.token_hex(4)}" for number in range(3)]
    for mark in marks:
        first.guest(f"echo {mark} | systemd-cat -t robust")
    time.sleep(3)
    backend = first.backend
    first.logs = first.stack.enter_context(
        LogServer.running(first.world.directory / "robust-a-again", authority=backend.authority, port=backend.port)
    )
    first.logs.wait_for(marks[-1], 90)
    arrived = [mark for line in first.logs.lines() for mark in marks if line.endswith(mark)]
    assert list(dict.fromkeys(arrived)) == marks


@pytest.mark.parametrize(
    ("name", "signal"), [("rsyslogd", 9), ("rsyslogd", 15), ("systemd-journald", 9), ("systemd-networkd", 9)]
)
def test_a_service_that_is_killed_comes_back_and_lines_still_arrive(first: Subject, name: str, signal: int) -> None:
    first.kill(name, signal)
    first.says(f"after {name} {signal}")


def test_a_full_disk_stops_neither_machine_nor_logs(first: Subject) -> None:
    said = first.guest(
        "free=$(df --output=avail -B1 /var | tail -1); fallocate -l $((free - 65536)) /var/fill;"
        " dd if=/dev/zero of=/var/rest bs=4096; df -h /var"
    )
    assert "No space left" in said and "100%" in said
    first.says("with a full disk")
    assert "uid=0" in first.ask("id")
    first.guest("rm /var/fill /var/rest")
    first.says("with space again")


def test_a_contract_that_ends_while_the_machine_runs_stops_it(first: Subject) -> None:
    assert "ActiveState=active" in first.guest("systemctl show hpl-expiry.timer")
    first.guest(
        "echo $(( $(date +%s) + 5 )) > /run/casemate/expiry.json; systemctl start --no-block hpl-expiry.service"
    )
    assert first.ends().startswith("HPL12007E: the contract expired on ")
    first.logs.wait_for("HPL12007E")
    first.logs.wait_for("HPL10000E: Service failed -> hpl-expiry")


# ------------------------------------------------------------------------------------------------- the second


def test_without_a_certificate_no_timer_waits(second: Subject) -> None:
    assert "ActiveState=inactive" in second.guest("systemctl show hpl-expiry.timer")
    assert "HPL13004I" not in second.machine.console()


def test_where_logs_can_not_leave_any_more_the_machine_stops(second: Subject) -> None:
    """rsyslog is killed as often as it comes back; after the fifth time systemd gives up, and the machine is switched off.

    The journal hangs meanwhile: the reason reaches the console all the same.
    """
    second.ask("kill -STOP $(pidof systemd-journald)")
    second.ask("( while :; do kill -9 $(pidof rsyslogd); sleep 0.2; done ) >/dev/null 2>&1 &")
    assert second.ends().startswith("HPL10000E: Service failed -> hpl-rsyslog")
