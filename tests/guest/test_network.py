"""What ``hpl-network`` believes of systemd-networkd's state file, how names are looked up, what ``network-config`` becomes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from casemate.guest import network, networkconfig
from casemate.guest.network import resolve, resolver
from casemate.guest.report import Stop

OPTIONS = "options timeout:2 attempts:2\n"


def test_a_routable_network_is_usable() -> None:
    assert resolver("# comment\nOPER_STATE=routable\nDNS=10.0.2.3\n") == (True, f"nameserver 10.0.2.3\n{OPTIONS}")


def test_a_carrier_alone_is_not_enough() -> None:
    assert resolver("OPER_STATE=carrier\n") == (False, OPTIONS)


def test_only_addresses_become_name_servers_and_only_names_domains() -> None:
    text = "OPER_STATE=routable\nDNS=10.0.2.3 evil\\nsearch ::1 1.1.1.1;x 9.9.9.9 8.8.8.8\nDOMAINS=example.com a;b ~. x-y\n"
    servers = "".join(f"nameserver {server}\n" for server in ("10.0.2.3", "::1", "9.9.9.9"))
    assert resolver(text) == (True, f"{servers}search example.com x-y\n{OPTIONS}")


def test_without_an_address_in_time_the_machine_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "STATE", tmp_path / "state")
    monkeypatch.setattr(network, "RESOLVER", tmp_path / "public/resolv.conf")
    monkeypatch.setattr(network, "PATIENCE", 0.1)
    with pytest.raises(Stop) as stop:
        network.service()
    assert stop.value.id == "HPL14001E"
    (tmp_path / "state").write_bytes(b"OPER_STATE=routable\nDNS=192.0.2.1\n\xff\n")
    assert "HPL14000I" not in capsys.readouterr().err
    network.service()
    assert capsys.readouterr().err.count("HPL14000I") == 1
    assert (tmp_path / "public/resolv.conf").read_text() == f"nameserver 192.0.2.1\n{OPTIONS}"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_addresses_and_names_that_have_one_are_found(host: str) -> None:
    resolve(host)


@pytest.mark.parametrize(
    ("code", "id", "waits"),
    [
        (socket.EAI_AGAIN, "HPL14002E", True),
        (socket.EAI_NONAME, "HPL14001E", False),
        (socket.EAI_FAIL, "HPL14001E", False),
    ],
)
def test_a_name_without_an_address_stops_at_once_and_silent_servers_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, id: str, waits: bool
) -> None:
    def answer(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with pytest.raises(Stop) as stop:
        resolve("logs.example.com", 0.1)
    assert stop.value.id == id and ("HPL14001I" in capsys.readouterr().err) == waits


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(networkconfig, "GIVEN", tmp_path / "network-config")
    monkeypatch.setattr(networkconfig, "NETWORKD", tmp_path / "network")
    return tmp_path


def test_a_network_config_becomes_files_that_networkd_may_read(given: Path) -> None:
    networkconfig.GIVEN.write_text("network: {version: 2, ethernets: {enc1: {addresses: [10.0.2.15/24]}}}\n")
    networkconfig.service()
    found = sorted((given / "network").iterdir())
    assert [path.name for path in found] == ["05-contract-0.network", "09-contract-rest.network"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in found)
    assert not networkconfig.GIVEN.exists()


def test_a_network_config_that_is_none_stops_and_leaves_no_file(given: Path) -> None:
    for text in (
        "network: {version: 1}\n",
        "{",
        "network: {version: 2, ethernets: {enc1: {addresses: [10.0.2/24]}}}\n",
    ):
        networkconfig.GIVEN.write_text(text)
        with pytest.raises(Stop) as stop:
            networkconfig.service()
        assert stop.value.id == "HPL14003E"
    assert not (given / "network").exists()


@pytest.mark.skipif(not Path("/usr/sbin/ip6tables-restore").exists(), reason="iptables is not installed")
def test_the_firewall_rules_can_be_read() -> None:
    import subprocess

    rules = Path(network.__file__).parent / "files/etc/casemate"
    for program, name in (("iptables-restore", "firewall.rules"), ("ip6tables-restore", "firewall6.rules")):
        subprocess.run([f"/usr/sbin/{program}", "--test", rules / name], check=True, capture_output=True)
