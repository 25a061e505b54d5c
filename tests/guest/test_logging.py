"""The log backend as the guest meets it: the probe, and a real rsyslog with the guest's own configuration."""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from casemate.demo import pki
from casemate.demo.logservers import SyslogServer
from casemate.demo.pki import Authority, Identity
from casemate.demo.services import LogServer, ServiceError
from casemate.guest import logging as guest_logging
from casemate.guest import state
from casemate.guest.logging import configuration, pems, permitted, probe, trusted
from casemate.guest.report import Stop

pytestmark = pytest.mark.components
HOST = "127.0.0.1"
JOURNAL = 'module(load="imjournal" stateFile="imjournal.state" ratelimit.interval="0" persistStateInterval="100")'


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("Log authority")


def files(directory: Path, authority: Authority, client: Identity) -> Path:
    directory.mkdir(exist_ok=True)
    for name, pem in (("server", authority.certificate), ("cert", client.certificate), ("key", client.key)):
        (directory / f"{name}.pem").write_bytes(pem)
    return directory


def only_server(directory: Path, authority: Authority) -> Path:
    directory.mkdir()
    (directory / "server.pem").write_bytes(authority.certificate)
    return directory


@contextmanager
def sender(directory: Path, port: int, name: str = HOST) -> Iterator[Path]:
    """Run rsyslog with the guest's configuration, a socket in the journal's place; yield the socket.

    ``name``: the one of the backend's certificate, or a whole configuration.
    """
    text = name if "\n" in name else configuration(HOST, port, str(directory), name)
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


@pytest.mark.parametrize("drip", [b"", b"\x16\x03\x03\x40\x00" + bytes(200)])
def test_a_backend_that_takes_connections_and_is_silent_or_drips_stops(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, drip: bytes
) -> None:
    monkeypatch.setattr(guest_logging, "PATIENCE", 2.0)
    directory = files(tmp_path / "guest", authority, authority.client("guest"))
    with socket.create_server((HOST, 0)) as mute:

        def speak() -> None:
            peer, _ = mute.accept()
            with peer, suppress(OSError):
                for byte in drip:
                    peer.sendall(bytes([byte]))
                    time.sleep(0.2)
                peer.recv(1 << 16, socket.MSG_WAITALL)

        threading.Thread(target=speak, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(Stop, match=r"HPL01011E.*can't be reached"):
            probe(HOST, mute.getsockname()[1], str(directory))
    assert time.monotonic() - begun < 6


def test_rsyslog_compares_common_name_and_dns_names_only() -> None:
    certificate = {
        "subject": ((("organizationName", "Org"),), (("commonName", "cn.example"),)),
        "subjectAltName": (("DNS", "dns.example"), ("DNS", "*.w.example"), ("IP Address", "192.0.2.1")),
    }
    assert permitted("cn.example", certificate) == "cn.example"
    assert permitted("dns.example", certificate) == "dns.example"
    assert permitted("a.w.example", certificate) == "*.w.example"
    for other in ("192.0.2.1", "w.example", "a.b.w.example", "other.example", "example"):
        assert permitted(other, certificate) is None
    assert permitted("a.example", {"subjectAltName": (("DNS", "*.example"),)}) is None  # of a whole top-level domain
    assert permitted("cn.example", {}) is None


def test_a_backend_with_a_wildcard_certificate_is_known_by_it(tmp_path: Path, authority: Authority) -> None:
    names = ("cn.example", "*.logs.example")
    with LogServer.running(tmp_path / "logs", authority=authority, names=names) as logs:
        directory = files(tmp_path / "guest", authority, logs.client)
        certificate = {"subjectAltName": tuple(("DNS", name) for name in names)}
        name = permitted("a.logs.example", certificate)
        assert name == "*.logs.example"
        with sender(directory, logs.port, name) as socket:
            say(socket, "to a wildcard")
            logs.wait_for("to a wildcard", 10)


def test_without_a_certificate_of_ours_only_the_backend_s_is_checked(tmp_path: Path, authority: Authority) -> None:
    with SyslogServer.running(tmp_path / "logs", authority, names=(HOST,)) as logs:
        directory = only_server(tmp_path / "guest", authority)
        assert probe(HOST, logs.port, str(directory)) == HOST
        with sender(directory, logs.port) as socket:
            say(socket, "from anyone")
            logs.wait_for("from anyone", 10)
        assert (directory / "said").read_text() == ""


def test_a_backend_that_asks_for_a_certificate_where_we_have_none_stops(tmp_path: Path, authority: Authority) -> None:
    directory = only_server(tmp_path / "guest", authority)
    with (
        LogServer.running(tmp_path / "logs", authority=authority, names=(HOST,)) as logs,
        pytest.raises(Stop, match=r"HPL01011E: 127.0.0.1:\d+ (refuses|ends) the connection"),
    ):
        probe(HOST, logs.port, str(directory))


def test_an_impostor_gets_nothing_also_where_we_show_no_certificate(tmp_path: Path, authority: Authority) -> None:
    with SyslogServer.running(tmp_path / "logs", Authority.create("Log authority"), names=(HOST,)) as logs:
        directory = only_server(tmp_path / "guest", authority)
        with pytest.raises(Stop, match=r"HPL01011E.*is not the log backend"):
            probe(HOST, logs.port, str(directory))
        with sender(directory, logs.port) as socket:
            say(socket, "for nobody else")
            with pytest.raises(ServiceError):
                logs.wait_for("for nobody else", 2)


def test_a_backend_with_an_expired_certificate_gets_nothing(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pki, "LIFE", timedelta(seconds=-1))  # for what is issued from here on
    expired = authority.server((HOST,))
    with SyslogServer.running(tmp_path / "logs", authority, identity=expired) as logs:
        directory = only_server(tmp_path / "guest", authority)
        with pytest.raises(Stop, match=r"HPL01011E.*has expired"):
            probe(HOST, logs.port, str(directory))
        with sender(directory, logs.port) as socket:
            say(socket, "too late")
            with pytest.raises(ServiceError):
                logs.wait_for("too late", 2)


@pytest.mark.parametrize("missing", ["cert", "key"])
def test_one_of_certificate_and_key_alone_stops(authority: Authority, missing: str) -> None:
    client = authority.client("guest")
    given = {"server": authority.certificate, "cert": client.certificate, "key": client.key}
    text = {name: pem.decode() for name, pem in given.items() if name != missing}
    with pytest.raises(Stop, match=rf"HPL0100[89]E.*{missing} is missing"):
        pems(text)
    assert set(pems({"server": text["server"]})) == {"server"}


def test_a_public_service_is_known_by_the_image_s_authorities_and_by_those_of_env(authority: Authority) -> None:
    text = base64.b64encode(authority.certificate).decode()
    assert trusted({"cacerts": [{"mine": text}]}, b"ROOTS") == b"ROOTS\n" + authority.certificate
    assert trusted({}, b"ROOTS") == b"ROOTS"
    with pytest.raises(Stop, match="HPL01005E"):
        trusted({"cacerts": [{"mine": "AAAA"}]}, b"ROOTS")


def test_the_authority_of_a_backend_is_certificates_alone(authority: Authority) -> None:
    """OpenSSL would take a revocation list that stands beside, and rsyslog would not."""
    pem = authority.certificate.decode()
    assert pems({"server": f"Autorité\n{pem}"}) == {"server": authority.certificate}
    for kind in ("X509 CRL", "TRUSTED CERTIFICATE"):
        with pytest.raises(Stop, match=r"HPL01007E: env\.logging\.syslog\.server must be certificates that are whole"):
            pems({"server": pem + pem.replace(" CERTIFICATE", f" {kind}")})


def env_of(logging: dict[str, object], **more: object) -> None:
    state.write_json(state.SECTIONS / "env.json", {"type": "env", "logging": logging, **more})


@pytest.fixture
def directory(guest: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(guest_logging, "DIRECTORY", guest / "run/casemate/logging")
    (guest / "roots.pem").write_bytes(Authority.create("Some public one").certificate)
    monkeypatch.setattr(guest_logging, "ROOTS", guest / "roots.pem")
    return guest / "run/casemate/logging"


def test_logdna_is_syslog_with_the_key_in_each_line(directory: Path, guest: Path, authority: Authority) -> None:
    mine = base64.b64encode(authority.certificate).decode()
    with SyslogServer.running(guest / "logs", authority, names=(HOST,)) as logs:
        given = {"hostname": HOST, "port": logs.port, "ingestionKey": "0123456789abcdef" * 2, "tags": ["a", "b"]}
        env_of({"logDNA": given}, cacerts=[{"mine": mine}])
        guest_logging.service()
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.iterdir())
        with sender(directory, logs.port, (directory / "rsyslog.conf").read_text()) as socket:
            say(socket, "a line of the guest")
            frame = logs.wait_for("a line of the guest", 10).decode()
        assert '[logdna@48950 key="0123456789abcdef0123456789abcdef" tags="a,b"]  a line of the guest' in frame


def test_a_private_service_is_not_known_without_its_authority(
    directory: Path, guest: Path, authority: Authority
) -> None:
    with SyslogServer.running(guest / "logs", authority, names=(HOST,)) as logs:
        env_of({"logDNA": {"hostname": HOST, "port": logs.port, "ingestionKey": "KEYMARK"}})
        with pytest.raises(Stop, match=r"HPL01011E.*is not the log backend") as stop:
            guest_logging.service()
        assert "KEYMARK" not in str(stop.value) and logs.frames == []


@pytest.mark.parametrize("port", [0, 65536, -1])
@pytest.mark.parametrize("kind", ["syslog", "logDNA", "logRouter"])
def test_a_port_that_is_none_stops_before_anything_is_sent(directory: Path, kind: str, port: int) -> None:
    env_of({kind: {"hostname": HOST, "port": port}})
    with pytest.raises(Stop, match=f"HPL01001E: env.logging.{kind}.port is no port"):
        guest_logging.service()
    assert not directory.exists()
