"""``hpl-network``: waits until the machine has an address, and tells the resolver where to ask.

The address comes from systemd-networkd: by DHCP, or as the volume's ``network-config`` says (``hpl-network-config``). What
it says is the infrastructure's word; nothing is trusted because of it: every connection is authenticated on its own.
"""

from __future__ import annotations

import ipaddress
import re
import time
from pathlib import Path

from casemate.guest.report import Stop, say

UNFORESEEN = "HPL14001E"
STATE = Path("/run/systemd/netif/state")
RESOLVER = Path("/run/casemate-public/resolv.conf")
PATIENCE = 60.0
"""Seconds that the machine waits for an address."""

LOOKUP_PATIENCE = 20.0
"""Seconds that it waits for name servers to answer."""


def resolver(text: str) -> tuple[bool, str]:
    """Return whether the network is usable, and ``resolv.conf``: name servers that are really addresses, at most three,
    and search domains that are really names, at most six. ``text`` is the state that networkd writes.
    """
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    servers = []
    for word in values.get("DNS", "").split():
        try:
            servers.append(str(ipaddress.ip_address(word)))
        except ValueError:
            continue
    domains = [
        word for word in values.get("DOMAINS", "").split() if re.fullmatch(r"[A-Za-z0-9-][A-Za-z0-9.-]{0,252}", word)
    ]
    lines = [f"nameserver {server}\n" for server in servers[:3]]
    lines += [f"search {' '.join(domains[:6])}\n"] if domains else []
    return values.get("OPER_STATE") == "routable", "".join([*lines, "options timeout:2 attempts:2\n"])


def resolve(host: str, patience: float = LOOKUP_PATIENCE) -> None:
    """Wait until a name has an address; return at once for what is one."""
    import socket

    end = time.monotonic() + patience
    waiting = False
    while True:
        try:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                raise Stop("HPL14001E", f"the name {host} has no address") from None
            if time.monotonic() > end:
                raise Stop("HPL14002E", f"no name server says within {patience:.0f} seconds where {host} is") from None
        else:
            return
        if not waiting:
            say("HPL14001I", f"waiting for a name server to say where {host} is")
            waiting = True
        time.sleep(0.5)


def service() -> None:
    """Wait for an address, write the resolver's configuration, say so."""
    end = time.monotonic() + PATIENCE
    while True:
        usable, configuration = resolver(STATE.read_text(errors="replace")) if STATE.is_file() else (False, "")
        if usable:
            break
        if time.monotonic() > end:
            raise Stop("HPL14001E", f"the machine got no address within {PATIENCE:.0f} seconds")
        time.sleep(0.05)
    RESOLVER.parent.mkdir(mode=0o755, exist_ok=True)
    RESOLVER.write_text(configuration)
    say("HPL14000I", "Network connectivity check completed successfully.")
