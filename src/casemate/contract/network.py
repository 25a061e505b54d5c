"""``network-config`` of the cidata volume: netplan version 2, as cloud-init reads it, to files of systemd-networkd.

    files = networkd_files(b"network: {version: 2, ethernets: {enc1: {addresses: [192.0.2.7/24], gateway4: 192.0.2.1}}}")
    files["05-contract-0.network"]       # "[Match]\nType=ether\n…"

The text comes from the infrastructure and is hostile; nothing is trusted because of it. The rules:

- At most 64 KiB, strict YAML (:mod:`casemate.contract.document`), with or without the outer key ``network``.
- ``ethernets`` only. What is not understood is refused, since a machine with another network than the one that was asked
  for is worse than none. ``renderer``, ``optional`` and ``set-name`` mean nothing inside and are passed over.
- Addresses, networks and gateways are parsed and written anew by :mod:`ipaddress`; names have few characters: no value can
  become a line of a file.
- An entry without ``match`` is for the interface of its name. The only entry without one is for every Ethernet interface:
  names differ from platform to platform (``enc1``, ``ens3``), and the file is to work on both.
- Interfaces that no entry names stay down.

Source of the format: netplan's YAML reference, cloud-init's "Networking config Version 2".
"""

from __future__ import annotations

import re
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

from casemate.contract.document import parse_section
from casemate.contract.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address

LARGEST, MOST = 64 << 10, 32
"""Bytes of the file; interfaces, and entries of each list."""

_FLAGS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_PASSED_OVER = ("renderer", "optional", "set-name")
_ALL = "Name=!veth* !podman* !cni-podman*"
_REST = f"[Match]\nType=ether\n{_ALL}\n\n[Link]\nUnmanaged=yes\n"
_DHCP = "UseHostname=no\nUseDomains=no\nUseNTP=no\n"

_Interface = IPv4Interface | IPv6Interface


def networkd_files(data: bytes) -> dict[str, str]:
    """Return the ``.network`` files that a ``network-config`` asks for, by name. Raises :class:`DocumentError`."""
    if len(data) > LARGEST:
        raise DocumentError(f"{len(data)} bytes, more than the {LARGEST} that are read")
    document = parse_section(data)
    if "network" in document:
        _keys(document, "", "network")
        document = _mapping(document["network"], "network")
    if document.get("version", 2) != 2:
        raise DocumentError("must be 2, netplan's", "write `version: 2` and `ethernets`", "version")
    _keys(document, "", "version", "ethernets", "renderer")
    ethernets = _mapping(document.get("ethernets"), "ethernets")
    if not 1 <= len(ethernets) <= MOST:
        raise DocumentError(f"must name 1 to {MOST} interfaces", where="ethernets")
    files = {}
    for number, (name, entry) in enumerate(ethernets.items()):
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", name):
            raise DocumentError(
                "the name of an interface has other characters than letters, digits, - _ .", where="ethernets"
            )
        only = len(ethernets) == 1
        files[f"05-contract-{number}.network"] = _ethernet(name, _mapping(entry, name), only=only)
    files["09-contract-rest.network"] = _REST
    return files


def _ethernet(name: str, entry: dict[str, Any], *, only: bool) -> str:
    _keys(
        entry, name, "match", "dhcp4", "dhcp6", "dhcp-identifier", "accept-ra", "addresses", "gateway4", "gateway6",
        "routes", "nameservers", "mtu", *_PASSED_OVER,
    )  # fmt: skip
    dhcp4, dhcp6 = _flag(entry, name, "dhcp4"), _flag(entry, name, "dhcp6")
    addresses = [_address(text, f"{name}.addresses") for text in _list(entry, name, "addresses")]
    if not (dhcp4 or dhcp6 or addresses):
        raise DocumentError("has neither addresses nor dhcp4 or dhcp6", where=name)
    if len({address.ip for address in addresses}) < len(addresses):
        raise DocumentError("an address stands here twice", where=f"{name}.addresses")
    servers, domains = _nameservers(entry, name)
    advertised = _flag(entry, name, "accept-ra", dhcp6)
    sixth = dhcp6 or advertised or any(address.version == 6 for address in addresses)
    lines = ["[Match]", "Type=ether", *_match(entry, name, only)]
    if "mtu" in entry:
        lines += ["", "[Link]", f"MTUBytes={_number(entry['mtu'], 1280 if sixth else 576, 65535, f'{name}.mtu')}"]
    lines += ["", "[Network]", f"DHCP={('no', 'ipv4', 'ipv6', 'yes')[dhcp4 + 2 * dhcp6]}"]
    lines += [f"IPv6AcceptRA={'yes' if advertised else 'no'}", f"LinkLocalAddressing={'ipv6' if sixth else 'no'}"]
    lines += ["LLMNR=no", "MulticastDNS=no", *(f"Address={address}" for address in addresses)]
    lines += [f"DNS={server}" for server in servers]
    lines += [f"Domains={' '.join(domains)}"] if domains else []
    learned = {4} if dhcp4 else set()
    learned |= {6} if dhcp6 or advertised else set()
    lines += _routes(entry, name, addresses, learned)
    identifier = ""
    if "dhcp-identifier" in entry:
        if entry["dhcp-identifier"] not in ("mac", "duid"):
            raise DocumentError("must be mac or duid", where=f"{name}.dhcp-identifier")
        identifier = f"ClientIdentifier={entry['dhcp-identifier']}\n"
    tail = f"\n\n[DHCPv4]\n{_DHCP}SendHostname=no\n{identifier}\n[DHCPv6]\n{_DHCP}\n[IPv6AcceptRA]\nUseDomains=no\n"
    return "\n".join(lines) + tail


def _match(entry: dict[str, Any], name: str, only: bool) -> list[str]:
    """Say which interface is meant: by hardware address, by name (with ``*`` and ``?``), or both."""
    if "match" not in entry:
        if not only and len(name) > 15:
            raise DocumentError("is no name of an interface; say which with `match`", where=name)
        return [_ALL if only else f"Name={name}"]
    place = f"{name}.match"
    match = _mapping(entry["match"], place)
    _keys(match, place, "macaddress", "name")
    lines = []
    if "macaddress" in match:
        if not re.fullmatch("[0-9a-f]{2}(:[0-9a-f]{2}){5}", str(match["macaddress"]).lower()):
            raise DocumentError("must be six pairs of hexadecimal digits with colons", where=f"{place}.macaddress")
        lines.append(f"MACAddress={match['macaddress']}")
    if "name" in match:
        if not re.fullmatch(r"[A-Za-z0-9_.*?-]{1,15}", str(match["name"])):
            raise DocumentError("must be the name of an interface; * and ? may stand in it", where=f"{place}.name")
        lines.append(f"Name={match['name']}")
    if not lines:
        raise DocumentError("must have macaddress or name", where=place)
    return lines


def _routes(entry: dict[str, Any], name: str, addresses: list[_Interface], learned: set[int]) -> list[str]:
    """Return the ``[Route]`` sections. ``learned`` are the versions of IP whose networks come from the network itself."""
    lines: list[str] = []
    defaults: dict[int, list[int]] = {4: [], 6: []}

    def add(to: str | None, via: IPv4Address | IPv6Address | None, metric: int | None, link: bool, place: str) -> None:
        version = via.version if via is not None else ip_network(str(to)).version
        beside = via is not None and any(via in address.network for address in addresses)
        local = isinstance(via, IPv6Address) and via.is_link_local
        if via is not None and not (link or local or beside or version in learned):
            raise DocumentError("is in no network of addresses", "correct it, or say `on-link: true`", place)
        if to is None:
            if (metric or 0) in defaults[version]:
                raise DocumentError("is a second default route", where=place)
            defaults[version].append(metric or 0)
        lines.extend(["", "[Route]"])
        lines.extend([f"Destination={to}"] if to is not None else [])
        lines.extend([f"Gateway={via}"] if via is not None else ["Scope=link"])
        lines.extend([f"Metric={metric}"] if metric is not None else [])
        lines.extend(["GatewayOnLink=yes"] if link and via is not None else [])

    for version in (4, 6):
        key = f"gateway{version}"
        if key in entry:
            add(None, _ip(entry[key], f"{name}.{key}", version), None, False, f"{name}.{key}")
    for number, item in enumerate(_list(entry, name, "routes")):
        place = f"{name}.routes[{number}]"
        route = _mapping(item, place)
        _keys(route, place, "to", "via", "metric", "on-link")
        via = _ip(route["via"], f"{place}.via") if "via" in route else None
        link = _flag(route, place, "on-link")
        metric = _number(route["metric"], 0, 0xFFFFFFFF, f"{place}.metric") if "metric" in route else None
        if (to := _destination(route.get("to"), f"{place}.to")) is None and via is None:
            raise DocumentError("a default route needs via", where=place)
        if to is not None and via is None and not link:
            raise DocumentError("needs via, or `on-link: true`", where=place)
        if to is not None and via is not None and ip_network(to).version != via.version:
            raise DocumentError("to and via are of different versions of IP", where=place)
        add(to, via, metric, link, place)
    return lines


def _destination(value: Any, place: str) -> str | None:
    """A network; ``None`` for the default route."""
    if value in ("default", "0.0.0.0/0", "::/0"):
        return None
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError
        return str(ip_network(value))
    except ValueError:
        raise DocumentError("must be a network such as 192.0.2.0/24, or default", where=place) from None


def _nameservers(entry: dict[str, Any], name: str) -> tuple[list[str], list[str]]:
    if "nameservers" not in entry:
        return [], []
    place = f"{name}.nameservers"
    given = _mapping(entry["nameservers"], place)
    _keys(given, place, "addresses", "search")
    servers = [str(_ip(text, f"{place}.addresses")) for text in _list(given, place, "addresses")]
    domains = _list(given, place, "search")
    if not all(isinstance(domain, str) and is_domain(domain) for domain in domains):
        raise DocumentError("must be domain names", where=f"{place}.search")
    return servers, domains


def is_domain(text: str) -> bool:
    """Whether a text is the name of a domain or host: labels of letters, digits and ``-``, at most 253 characters."""
    label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    return len(text) <= 253 and re.fullmatch(rf"{label}(\.{label})*", text) is not None


def _address(value: Any, place: str) -> _Interface:
    """An address with the length of its network, one that a host may have."""
    try:
        if not isinstance(value, str) or "/" not in value or "%" in value:
            raise ValueError
        address = ip_interface(value)
    except ValueError:
        raise DocumentError("must be addresses with their prefix length, such as 192.0.2.7/24", where=place) from None
    ip, network = address.ip, address.network
    ends = (network.network_address, network.broadcast_address) if address.version == 4 else (network.network_address,)
    whole = network.num_addresses <= 2
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or (ip in ends and not whole):
        raise DocumentError("has an address that no host can have", where=place)
    return address


def _ip(value: Any, place: str, version: int | None = None) -> IPv4Address | IPv6Address:
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError
        address = ip_address(value)
    except ValueError:
        raise DocumentError("must be an IP address", where=place) from None
    if version is not None and address.version != version:
        raise DocumentError(f"must be an address of IP version {version}", where=place)
    if address.is_multicast or address.is_unspecified:
        raise DocumentError("is an address that no host can have", where=place)
    return address


def _flag(entry: dict[str, Any], place: str, key: str, default: bool = False) -> bool:
    """True or false, also in the words of YAML 1.1, which netplan reads."""
    value = entry.get(key, default)
    value = _FLAGS.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise DocumentError("must be true or false", where=f"{place}.{key}")
    return value


def _number(value: Any, least: int, most: int, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise DocumentError(f"must be a number from {least} to {most}", where=place)
    return value


def _list(entry: dict[str, Any], place: str, key: str) -> list[Any]:
    value = entry.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MOST:
        raise DocumentError(f"must be a list of at most {MOST}", where=f"{place}.{key}")
    return value


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DocumentError("must be a mapping of keys to values", where=place)
    return value


def _keys(entry: dict[str, Any], place: str, *known: str) -> None:
    """Refuse what is not understood."""
    if unknown := [key for key in entry if key not in known]:
        shown = ", ".join(key if re.fullmatch("[A-Za-z0-9_-]{1,40}", key) else "a strange key" for key in unknown[:5])
        raise DocumentError(f"not understood: {shown}", f"known are {_words(known)}", place)


def _words(known: Iterable[str]) -> str:
    return ", ".join(known)
