"""``hpl-network-config``: gives systemd-networkd what the volume's ``network-config`` asks for, before networkd looks.

Where the volume brings none, this service does not run, and networkd asks for addresses by DHCP.
"""

from __future__ import annotations

from pathlib import Path

from casemate.contract.errors import DocumentError
from casemate.contract.network import networkd_files
from casemate.guest import state
from casemate.guest.report import Stop, say

UNFORESEEN = "HPL14003E"
GIVEN = state.RUN / "network-config"
NETWORKD = Path("/run/systemd/network")


def service() -> None:
    """Translate, write, forget."""
    try:
        files = networkd_files(GIVEN.read_bytes())
    except DocumentError as error:
        raise Stop("HPL14003E", f"network-config: {error}") from None
    for name, content in files.items():
        state.write(NETWORKD / name, content, 0o644)
    GIVEN.unlink()
    say("HPL13004I", f"Network configured by network-config: {len(files) - 1} interface(s)")
