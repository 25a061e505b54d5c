"""The log backend as the guest meets it: the probe, and a real rsyslog with the guest's own configuration."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casemate.demo.pki import Authority, Identity
from casemate.demo.services import LogServer, ServiceError
from casemate.guest.logging import configuration, probe, seen_by_rsyslog
from casemate.guest.report import Stop

pytestmark = pytest.mark.components
HOST = "127.0.0.1"
JOURNAL = 'module(load="imjournal" stateFile="imjournal.state" ratelimit.interval="0" persistStateInterval="1000")'


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("Log authority")


def files(directory: Path, authority: Authority, client: Identity) -> Path:
    directory.mkdir(exist_ok=True)
    for name, pem in (("server", authority.certificate), ("cert", client.certificate), ("key", client.key)):
        (directory / f"{name}.pem").write_bytes(pem)
    return directory


@contextmanager
def sender(directory: Path, port: int) -> Iterator[Path]:
    """Run rsyslog with the guest's configuration, a socket in the journal's place; yield the socket."""
    text = configuration(HOST, port, str(directory))
    assert JOURNAL in text
    listen = f'module(load="imuxsock" SysSock.Use="off")\ninput(type="imuxsock" Socket="{directory}/log")'
    (directory / "rsyslog.conf").write_text(text.replace(JOURNAL, listen))
    with (directory / "said").open("wb") as said:
        command = ["/usr/sbin/rsyslogd", "-n", "-i", "NONE", "-f", str(directory / "rsyslog.conf")]
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        for _ in range(100):
            if (directory / "log").exists():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
        yield directory / "log"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def say(socket: Path, text: str) -> None:
    subprocess.run(["logger", "-u", str(socket), "-t", "some-service", text], check=True)


def test_lines_arrive_at_a_backend_whose_common_name_is_the_address(tmp_path: Path, authority: Authority) -> None:
    with LogServer.running(tmp_path / "logs", authority=authority, names=(HOST,)) as logs:
        directory = files(tmp_path / "guest", authority, logs.client)
        probe(HOST, logs.port, str(directory))
        with sender(directory, logs.port) as socket:
            say(socket, "a line of the guest")
            assert "some-service:" in logs.wait_for("a line of the guest", 10)


@pytest.mark.parametrize("names", [("logs.example", HOST), ("other.example",), ("127.0.0.9",)])
def test_what_rsyslog_would_refuse_the_probe_refuses(
    names: tuple[str, ...], tmp_path: Path, authority: Authority
) -> None:
    """The first of these has the address among its alternative names, and OpenSSL alone would be content."""
    with LogServer.running(tmp_path / "logs", authority=authority, names=names) as logs:
        directory = files(tmp_path / "guest", authority, logs.client)
        with pytest.raises(Stop, match=r"HPL01011E"):
            probe(HOST, logs.port, str(directory))
        with sender(directory, logs.port) as socket:
            say(socket, "for nobody else")
            with pytest.raises(ServiceError):
                logs.wait_for("for nobody else", 2)
        assert "peer name not authorized" in (directory / "said").read_text()


def test_an_impostor_with_another_authority_gets_nothing(tmp_path: Path, authority: Authority) -> None:
    impostor = Authority.create("Log authority")
    with LogServer.running(tmp_path / "logs", authority=impostor, names=(HOST,)) as logs:
        directory = files(tmp_path / "guest", authority, authority.client("guest"))
        with pytest.raises(Stop, match=r"HPL01011E.*is not the log backend"):
            probe(HOST, logs.port, str(directory))
        with sender(directory, logs.port) as socket:
            say(socket, "for nobody else")
            with pytest.raises(ServiceError):
                logs.wait_for("for nobody else", 2)
        assert "certificate invalid" in (directory / "said").read_text()


def test_a_backend_that_does_not_accept_our_certificate_stops(tmp_path: Path, authority: Authority) -> None:
    stranger = Authority.create("Another").client("guest")
    with LogServer.running(tmp_path / "logs", authority=authority, names=(HOST,)) as logs:
        directory = files(tmp_path / "guest", authority, stranger)
        with pytest.raises(Stop, match=r"HPL01011E: 127.0.0.1:\d+ (refuses|ends) the connection"):
            probe(HOST, logs.port, str(directory))


def test_nobody_at_the_port_stops(tmp_path: Path, authority: Authority) -> None:
    directory = files(tmp_path / "guest", authority, authority.client("guest"))
    with LogServer.running(tmp_path / "logs", authority=authority) as logs:
        port = logs.port
    with pytest.raises(Stop, match=r"HPL01011E.*can't be reached"):
        probe(HOST, port, str(directory))


def test_rsyslog_compares_common_name_and_dns_names_only() -> None:
    certificate = {
        "subject": ((("organizationName", "Org"),), (("commonName", "cn.example"),)),
        "subjectAltName": (("DNS", "dns.example"), ("IP Address", "192.0.2.1"), ("email", "a@example.org")),
    }
    assert seen_by_rsyslog(certificate) == {"cn.example", "dns.example"}
    assert seen_by_rsyslog({}) == set()
