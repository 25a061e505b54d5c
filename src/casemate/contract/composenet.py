"""Networks of a compose file: which there are, which containers are on which of them, under which names.

Networks are kept apart from each other, as Docker keeps them; one that is ``internal`` leads nowhere else. Where all containers
are on one network without options it is the engine's own, or, as soon as there are two of them, one that knows their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from casemate.contract.composevalues import File, Making
from casemate.contract.errors import WorkloadError
from casemate.contract.workload import (
    NAME,
    WORKLOAD,
    Network,
    Problems,
    flag,
    listed,
    mapped,
    only,
    plain,
    require_address,
)

_SPAN = r"[0-9]{1,5}(?:-[0-9]{1,5})?"
_ALL = r"0\.0\.0\.0|\[::\]"
_HERE = r"127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}"
_PORT = re.compile(
    rf"(?:(?:(?:{_ALL})|(?P<address>{_HERE})):)?(?:(?P<host>{_SPAN}):)?(?P<inside>{_SPAN})(?:/(?P<kind>tcp|udp))?"
)
_DEFAULT = "default"
_SHARED = re.compile(r"(?:service|container):[^:]+")


def declare(file: File, value: Any, problems: Problems) -> None:
    """Read the networks of a file, by its names for them; ``default`` is always there."""
    for name, item in mapped(value, "networks").items():
        file.networks[name] = Network(WORKLOAD if name == _DEFAULT else f"{WORKLOAD}-{name}")
        with problems.caught():
            file.networks[name] = _network(file.networks[name].name, name, item, f"networks.{name}")


def _network(engines: str, name: str, item: Any, place: str) -> Network:
    if not NAME.fullmatch(name):
        raise WorkloadError("networks", "names have letters, digits, _ . - only")
    known = (
        *("name", "labels", "attachable", "driver", "external", "enable_ipv6", "enable_ipv4"),
        "internal",
        "ipam",
    )
    given = only({key: one for key, one in mapped(item, place).items() if one not in (None, {}, [])}, place, known)
    if given.get("driver", "bridge") not in ("bridge", "default") or flag(given.get("external", False), place):
        raise WorkloadError(place, "must be of this workload only, and of the driver bridge")
    if flag(given.get("enable_ipv6", False), place) or not flag(given.get("enable_ipv4", True), place):
        raise WorkloadError(f"{place}.enable_ipv6", "containers have IPv4 only")
    internal = flag(given.get("internal", False), f"{place}.internal")
    return Network(engines, tuple(_ipam(given.get("ipam"), f"{place}.ipam")), internal)


def _ipam(value: Any, place: str) -> Iterator[str]:
    given = only(value, place, ("driver", "config"))
    if given.get("driver", "default") != "default":
        raise WorkloadError(f"{place}.driver", "must be default")
    entries = listed(given.get("config", []), f"{place}.config")
    if len(entries) > 1:
        raise WorkloadError(f"{place}.config", "has one entry: containers have IPv4 only")
    for entry in entries:
        config = only(entry, f"{place}.config", ("subnet", "gateway", "ip_range"))
        if config and "subnet" not in config:
            raise WorkloadError(f"{place}.config", "needs `subnet`")
        for key, text in config.items():
            said = _ipv4(text, f"{place}.config.{key}", network=key != "gateway")
            yield f"--{key.replace('_', '-')}={said}"


def _ipv4(value: Any, place: str, *, network: bool = False) -> str:
    import ipaddress  # late: few files need it

    try:
        return str((ipaddress.IPv4Network if network else ipaddress.IPv4Address)(plain(value, place)))
    except ValueError:
        raise WorkloadError(place, "must be of IPv4: 10.1.0.0/24 for a network, 10.1.0.1 for an address") from None


def attach(making: Making, value: Any, place: str) -> None:
    """``networks`` of a service: a list of names, or a mapping with aliases and addresses."""
    if isinstance(value, list):
        value = dict.fromkeys(plain(item, place) for item in value)
    for name, item in mapped(value, place).items():
        if name not in making.file.networks:
            raise WorkloadError(place, "is not declared under `networks:` of the file")
        given = only(item, f"{place}.{name}", ("aliases", "ipv4_address", "priority", "gw_priority"))
        options = []
        for alias in listed(given.get("aliases", []), place):
            if not isinstance(alias, str) or not NAME.fullmatch(alias):
                raise WorkloadError(place, "an alias has letters, digits, _ . - only")
            options.append(f"alias={alias}")
        if "ipv4_address" in given:
            options.append(f"ip={_ipv4(given['ipv4_address'], f'{place}.{name}.ipv4_address')}")
        making.made.networks[name] = tuple(options)


def mode(making: Making, value: Any, place: str) -> None:
    """``network_mode``: none, the machine's network, another container's, or the usual."""
    if making.raw.get("networks"):
        raise WorkloadError(place, "stands beside networks: give one of both")
    if value in ("none", "host"):
        making.made.options.append(f"--network={value}")
        return
    if value not in ("bridge", "default"):
        join(making, "--network", value, place, "bridge, host, none, service:NAME or container:NAME")
        if making.raw.get("ports"):
            raise WorkloadError(place, "ports are published by the service whose network it is")


def join(making: Making, option: str, value: Any, place: str, must: str) -> None:
    """Have a container share something with another one, ``service:NAME`` or ``container:NAME``."""
    if not isinstance(value, str) or not _SHARED.fullmatch(value):
        raise WorkloadError(place, f"must be {must}")
    making.joined.append((f"{option}=container:{{}}", value, place))


def link(making: Making, value: Any, place: str) -> None:
    """``links``: services that are started before, with a name for them."""
    for item in listed(value, place):
        name, _, alias = plain(item, place).partition(":")
        if alias and not NAME.fullmatch(alias):
            raise WorkloadError(place, "an alias has letters, digits, _ . - only")
        making.links.append((name, alias or name, place))


def connect(makings: Mapping[str, Making]) -> list[Network]:
    """Give every container its networks, names and what it shares with others; return the networks that are to be made."""
    containers = {each.made.container: name for name, each in makings.items()}
    for making in makings.values():
        made = making.made
        for option, what, place in making.joined:
            kind, _, name = what.partition(":")
            target = containers.get(name, "") if kind == "container" else name
            if target not in makings or target == made.name:
                raise WorkloadError(place, "the file has no other service of this name")
            made.options.append(option.format(makings[target].made.container))
            made.after.setdefault(target, "service_started")
        if not made.networks and not any(option.startswith("--network=") for option in made.options):
            made.networks[_DEFAULT] = ()
    for making in makings.values():
        for name, alias, place in making.links:
            if name not in makings or name == making.made.name:
                raise WorkloadError(place, "the file has no other service of this name")
            making.made.after.setdefault(name, "service_started")
            for network in making.made.networks.keys() & makings[name].made.networks.keys():
                makings[name].made.networks[network] += (f"alias={alias}",)
    return _made({name: each.made.networks for name, each in makings.items()}, makings)


def _made(used: Mapping[str, Mapping[str, tuple[str, ...]]], makings: Mapping[str, Making]) -> list[Network]:
    declared = {name: network for each in makings.values() for name, network in each.file.networks.items()}
    names = list(dict.fromkeys(name for each in used.values() for name in each))
    is_plain = len(names) == 1 and not declared[names[0]].options and not declared[names[0]].internal
    on_it = [each for each in used.values() if each]
    if not names or (is_plain and len(on_it) == 1 and not any(on_it[0].values())):
        for each in makings.values():
            each.made.networks.clear()
        return []
    for name, making in makings.items():
        making.made.networks = {
            declared[network].name: (
                f"alias={name}",
                *(one for one in dict.fromkeys(options) if one != f"alias={name}"),
            )
            for network, options in making.made.networks.items()
        }
    return [declared[name] for name in names]


# ------------------------------------------------------------------------------------------------- ports and names


def ports(making: Making, value: Any, place: str) -> None:
    """``ports``: published at all addresses of the machine, or at its loopback only."""
    if making.raw.get("network_mode") == "host":
        making.problems.note(place, "says nothing where the network is the machine's: all ports can be reached")
        return
    for number, item in enumerate(listed(value, place)):
        with making.problems.caught():
            making.made.options.append(f"--publish={port(item, f'{place}[{number}]')}")


def port(value: Any, place: str) -> str:
    """Return a published port as the engine takes it: ``[127.0.0.1:]8080:80/tcp``."""
    if isinstance(value, dict):
        only(value, place, ("target", "published", "protocol", "mode", "host_ip", "name", "app_protocol"))
        target, published = value.get("target"), value.get("published", value.get("target"))
        host = value.get("host_ip", "0.0.0.0")  # noqa: S104
        value = f"{'[::]' if host == '::' else host}:{published}:{target}/{value.get('protocol', 'tcp')}"
    match = _PORT.fullmatch(str(value))
    wrong = WorkloadError(
        place,
        "write PORT:PORT, each from 1 to 65535, or two spans of one length; before that an address of the loopback or none",
    )
    if not match or isinstance(value, bool):
        raise wrong
    if match["address"]:
        _ipv4(match["address"], place)
    sizes = set()
    for span in (match["host"] or match["inside"], match["inside"]):
        first, _, last = span.partition("-")
        if not 0 < int(first) <= int(last or first) < 65536:
            raise wrong
        sizes.add(int(last or first) - int(first))
    if len(sizes) > 1:
        raise wrong
    at = f"{match['address']}:" if match["address"] else ""
    return f"{at}{match['host'] or match['inside']}:{match['inside']}/{match['kind'] or 'tcp'}"


def apart(makings: Mapping[str, Making]) -> None:
    """Two services have not one container name, and publish not one port."""
    names: dict[str, str] = {}
    taken: dict[tuple[int, str], str] = {}
    for each in (making.made for making in makings.values()):
        if (other := names.setdefault(each.container, each.name)) != each.name:
            raise WorkloadError(f"services.{each.name}.container_name", f"is that of {other} already")
        for option in each.options:
            if option.startswith("--publish="):
                span, inside = option.removeprefix("--publish=").split(":")[-2:]
                first, _, last = span.partition("-")
                for number in range(int(first), int(last or first) + 1):
                    if (other := taken.setdefault((number, inside[-3:]), option + each.name)) != option + each.name:
                        raise WorkloadError(f"services.{each.name}.ports", f"{number} is published twice")


def hosts(making: Making, value: Any, place: str) -> None:
    """``extra_hosts``; ``host-gateway`` is the machine's own address, which only the machine knows."""
    if isinstance(value, dict):
        value = [
            f"{name}:{plain(one, place)}"
            for name, item in value.items()
            for one in (item if isinstance(item, list) else [item])
        ]
    for item in listed(value, place):
        name, _, where = re.sub("=", ":", plain(item, place), count=1).partition(":")
        where = where.strip("[]")
        if where != "host-gateway":
            require_address(where, place)
        making.made.options.append(f"--add-host={name}:{where}")
