"""What ``hpl-network`` believes of systemd-networkd's state file."""

from __future__ import annotations

from casemate.guest.network import read_state


def test_a_routable_network_is_usable() -> None:
    assert read_state("# comment\nOPER_STATE=routable\nDNS=10.0.2.3\n") == (True, ["10.0.2.3"])


def test_a_carrier_alone_is_not_enough() -> None:
    assert read_state("OPER_STATE=carrier\n") == (False, [])


def test_only_addresses_become_name_servers() -> None:
    _, servers = read_state("OPER_STATE=routable\nDNS=10.0.2.3 evil\\nsearch ::1 1.1.1.1;x 9.9.9.9 8.8.8.8\n")
    assert servers == ["10.0.2.3", "::1", "9.9.9.9"]
