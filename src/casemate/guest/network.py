"""``hpl-network``: waits until the machine has an address, and tells the resolver where to ask.

The address comes from systemd-networkd: by DHCP, or as the volume's ``network-config`` says (later). What it
says is the infrastructure's word; nothing is trusted because of it: every connection is authenticated on its own.
"""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path

from casemate.guest.report import Stop, run, say

STATE = Path("/run/systemd/netif/state")
RESOLVER = Path("/run/casemate-public/resolv.conf")
PATIENCE = 60.0
"""Seconds that the machine waits for an address."""


def read_state(text: str) -> tuple[bool, list[str]]:
    """Return whether the network is usable, and the name servers that are really addresses, at most three."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    servers = []
    for word in values.get("DNS", "").split():
        try:
            servers.append(str(ipaddress.ip_address(word)))
        except ValueError:
            continue
    return values.get("OPER_STATE") == "routable", servers[:3]


def service() -> None:
    """Wait for an address, write the resolver's configuration, say so."""
    end = time.monotonic() + PATIENCE
    while True:
        usable, servers = read_state(STATE.read_text()) if STATE.is_file() else (False, [])
        if usable:
            break
        if time.monotonic() > end:
            raise Stop("HPL14001E", f"the machine got no address within {PATIENCE:.0f} seconds")
        time.sleep(0.05)
    RESOLVER.parent.mkdir(mode=0o755, exist_ok=True)
    RESOLVER.write_text("".join(f"nameserver {server}\n" for server in servers))
    say("HPL14000I", "Network connectivity check completed successfully.")


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL14001E"))
