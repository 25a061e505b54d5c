"""``network-config``: what is understood, and that nothing else, nor any value, becomes a line of networkd's files."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.contract.errors import DocumentError
from casemate.contract.network import LARGEST, networkd_files


def files(ethernets: Any, **more: Any) -> dict[str, str]:
    return networkd_files(json.dumps({"network": {"version": 2, "ethernets": ethernets, **more}}).encode())


def lines(**entry: Any) -> list[str]:
    """The lines of the one interface that this entry describes."""
    return files({"enc1": entry})["05-contract-0.network"].splitlines()


STATIC = {"addresses": ["192.0.2.7/24"], "gateway4": "192.0.2.1"}


def test_a_file_of_the_platform_works_whatever_the_interface_is_called() -> None:
    text = b"""\
network:
  version: 2
  ethernets:
    enc1:
      dhcp4: false
      addresses:
      - 192.168.122.5/24
      gateway4: 192.168.122.1
      nameservers:
        addresses: [192.168.122.1]
        search: [example.com]
"""
    found = networkd_files(text)
    assert sorted(found) == ["05-contract-0.network", "09-contract-rest.network"]
    said = found["05-contract-0.network"].splitlines()
    for line in (
        "Type=ether",
        "Name=!veth* !podman* !cni-podman*",
        "DHCP=no",
        "Address=192.168.122.5/24",
        "Gateway=192.168.122.1",
        "DNS=192.168.122.1",
        "Domains=example.com",
        "LinkLocalAddressing=no",
        "IPv6AcceptRA=no",
    ):
        assert line in said
    assert "Unmanaged=yes" in found["09-contract-rest.network"]


def test_the_outer_key_may_be_missing_as_cloud_init_allows() -> None:
    inner = {"version": 2, "ethernets": {"enc1": STATIC}}
    assert networkd_files(json.dumps(inner).encode()) == files({"enc1": STATIC})


def test_dhcp_in_all_its_words() -> None:
    for yes in (True, "yes", "on", "True"):
        assert "DHCP=ipv4" in lines(dhcp4=yes)
    assert "DHCP=yes" in lines(dhcp4=True, dhcp6=True) and "DHCP=ipv6" in lines(dhcp6=True)
    assert "ClientIdentifier=mac" in lines(**{"dhcp4": True, "dhcp-identifier": "mac"})
    assert "UseDomains=yes" not in "\n".join(lines(dhcp4=True))


def test_several_interfaces_are_told_apart_by_name_or_hardware_address() -> None:
    found = files(
        {
            "enc1": STATIC,
            "lan": {"match": {"macaddress": "52:54:00:AA:bb:01"}, "dhcp4": True, "set-name": "lan0"},
            "more": {"match": {"name": "en*"}, "dhcp4": True},
        }
    )
    assert "Name=enc1\n" in found["05-contract-0.network"]
    assert "MACAddress=52:54:00:AA:bb:01\n" in found["05-contract-1.network"]
    assert "Name=en*\n" in found["05-contract-2.network"]


def test_routes_of_both_versions() -> None:
    said = "\n".join(
        lines(
            addresses=["192.0.2.7/24", "2001:db8::7/64"],
            gateway6="fe80::1",
            routes=[
                {"to": "default", "via": "192.0.2.1", "metric": 100},
                {"to": "198.51.100.0/24", "via": "192.0.2.9"},
                {"to": "203.0.113.0/24", "on-link": True},
                {"to": "0.0.0.0/0", "via": "10.0.0.1", "on-link": True, "metric": 200},
            ],
            mtu=1400,
        )
    )
    assert "[Route]\nGateway=fe80::1\n" in said and "[Route]\nGateway=192.0.2.1\nMetric=100\n" in said
    assert "[Route]\nDestination=198.51.100.0/24\nGateway=192.0.2.9\n" in said
    assert "[Route]\nDestination=203.0.113.0/24\nScope=link\n" in said
    assert "[Route]\nGateway=10.0.0.1\nMetric=200\nGatewayOnLink=yes\n" in said
    assert "MTUBytes=1400" in said and "LinkLocalAddressing=ipv6" in said


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ({}, "enc1"),
        ({"dhcp4": "maybe"}, "enc1.dhcp4"),
        ({"addresses": ["192.0.2.7"]}, "enc1.addresses"),
        ({"addresses": ["192.0.2.0/24"]}, "enc1.addresses"),
        ({"addresses": ["192.0.2.255/24"]}, "enc1.addresses"),
        ({"addresses": ["224.0.0.1/24"]}, "enc1.addresses"),
        ({"addresses": ["127.0.0.1/8"]}, "enc1.addresses"),
        ({"addresses": ["fe80::1%eth0/64"]}, "enc1.addresses"),
        ({"addresses": ["192.0.2.7/24\nDNS=192.0.2.9"]}, "enc1.addresses"),
        ({"addresses": ["192.0.2.7/24", "192.0.2.7/25"]}, "enc1.addresses"),
        ({"addresses": "192.0.2.7/24"}, "enc1.addresses"),
        ({"addresses": [f"192.0.2.{n}/24" for n in range(1, 40)]}, "enc1.addresses"),
        ({**STATIC, "gateway4": "198.51.100.1"}, "enc1.gateway4"),
        ({**STATIC, "gateway4": "2001:db8::1"}, "enc1.gateway4"),
        ({**STATIC, "gateway4": "0.0.0.0"}, "enc1.gateway4"),
        ({**STATIC, "routes": [{"to": "default", "via": "192.0.2.2"}]}, "enc1.routes[0]"),
        ({**STATIC, "routes": [{"to": "default"}]}, "enc1.routes[0]"),
        ({**STATIC, "routes": [{"to": "198.51.100.7/24", "via": "192.0.2.1"}]}, "enc1.routes[0].to"),
        ({**STATIC, "routes": [{"via": "192.0.2.1"}]}, "enc1.routes[0].to"),
        ({**STATIC, "routes": [{"to": "2001:db8::/32", "via": "192.0.2.1"}]}, "enc1.routes[0]"),
        ({**STATIC, "routes": [{"to": "198.51.100.0/24", "via": "192.0.2.1", "metric": -1}]}, "enc1.routes[0].metric"),
        ({**STATIC, "mtu": 9}, "enc1.mtu"),
        ({**STATIC, "mtu": True}, "enc1.mtu"),
        ({**STATIC, "addresses": ["2001:db8::7/64"], "mtu": 1000}, "enc1"),
        ({**STATIC, "nameservers": {"addresses": ["dns.example.com"]}}, "enc1.nameservers.addresses"),
        ({**STATIC, "nameservers": {"search": ["a\nb"]}}, "enc1.nameservers.search"),
        ({**STATIC, "nameservers": {"search": ["~."]}}, "enc1.nameservers.search"),
        ({**STATIC, "match": {"name": "!eth0"}}, "enc1.match.name"),
        ({**STATIC, "match": {"macaddress": "52:54:00"}}, "enc1.match.macaddress"),
        ({**STATIC, "match": {}}, "enc1.match"),
        ({**STATIC, "match": {"driver": "x"}}, "enc1.match"),
        ({**STATIC, "dhcp4-overrides": {}}, "enc1"),
        ([], "enc1"),
    ],
)
def test_what_is_wrong_or_not_understood_is_refused_with_its_place(entry: Any, where: str) -> None:
    with pytest.raises(DocumentError) as error:
        files({"enc1": entry})
    assert error.value.where.startswith(where)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"network": []},
        {"network": {"version": 1, "config": []}},
        {"network": {"version": 2}},
        {"network": {"version": 2, "ethernets": {}}},
        {"network": {"version": 2, "ethernets": {"a b": STATIC}}},
        {"network": {"version": 2, "ethernets": {f"e{n}": STATIC for n in range(33)}}},
        {"network": {"version": 2, "ethernets": {"e": STATIC}, "bonds": {}}},
        {"network": {"version": 2, "ethernets": {"e": STATIC}}, "write_files": []},
    ],
)
def test_other_documents_are_refused(document: Any) -> None:
    with pytest.raises(DocumentError):
        networkd_files(json.dumps(document).encode())


def test_size_anchors_and_second_keys_are_refused() -> None:
    for text in (b"#" * (LARGEST + 1), b"network: &a {}\nother: *a\n", b"network: {}\nnetwork: {}\n", b"\xff", b""):
        with pytest.raises(DocumentError):
            networkd_files(text)


LINE = re.compile(
    r"|\[(Match|Link|Network|Route|DHCPv4|DHCPv6|IPv6AcceptRA)\]|Type=ether|Name=[A-Za-z0-9_.*?!-]+( !podman\*)?"
    r"|MACAddress=[0-9a-fA-F:]{17}|MTUBytes=\d+|DHCP=\w+|IPv6AcceptRA=\w+|LinkLocalAddressing=\w+|LLMNR=no"
    r"|MulticastDNS=no|(Address|DNS|Gateway|Destination)=[0-9a-f.:/]+|Domains=[A-Za-z0-9. -]+|Metric=\d+|Scope=link"
    r"|GatewayOnLink=yes|Use\w+=no|SendHostname=no|ClientIdentifier=\w+|Unmanaged=yes"
)
VALUE = st.recursive(
    st.one_of(
        st.sampled_from(
            ["192.0.2.7/24", "192.0.2.1", "2001:db8::7/64", "default", "mac", True, False, 1500, "enc1", "\n"]
        ),
        st.text(max_size=20),
        st.integers(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["addresses", "search", "to", "via", "name", "on-link"]), inner, max_size=3),
    ),
    max_leaves=6,
)
KEY = st.sampled_from(
    ["addresses", "gateway4", "gateway6", "routes", "nameservers", "mtu", "match", "dhcp4", "dhcp6", "accept-ra", "x"]
)


@given(st.dictionaries(st.text(max_size=5), st.dictionaries(KEY, VALUE, max_size=4), max_size=3))
def test_whatever_stands_there_only_known_lines_come_out(ethernets: Any) -> None:
    try:
        found = files(ethernets)
    except DocumentError:
        return
    for content in found.values():
        for line in content.splitlines():
            assert LINE.fullmatch(line), line


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(DocumentError):
        networkd_files(data)
