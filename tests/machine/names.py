"""A name server for machines that must find public names at stand-ins on this host: a little DNS (RFC 1035), only A records.

A guest whose ``network-config`` is :data:`CONFIG` asks it at the gateway, port 53: the host's loopback address.
"""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator

from casemate.demo.services import GATEWAY

CONFIG = f"""\
network:
  version: 2
  ethernets:
    enc1:
      dhcp4: false
      addresses: [10.0.2.88/24]
      gateway4: {GATEWAY}
      nameservers: {{addresses: [{GATEWAY}]}}
""".encode()


def answer(query: bytes, names: frozenset[str]) -> bytes:
    """Return the answer to a query: the gateway for each of some names, no such name for all others."""
    labels, place = [], 12
    while length := query[place]:
        labels.append(query[place + 1 : place + 1 + length].decode("ascii", "replace"))
        place += 1 + length
    question, kind = query[12 : place + 5], query[place + 1 : place + 3]
    known = ".".join(labels).lower() in names
    found = known and kind == b"\0\1"
    header = query[:2] + (b"\x81\x80" if known else b"\x81\x83") + b"\0\1" + bytes([0, found]) + bytes(4)
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes(int(part) for part in GATEWAY.split("."))
    return header + question + record * found


@contextlib.contextmanager
def server(*names: str) -> Iterator[list[str]]:
    """Serve some names until the context ends."""
    known = frozenset(names)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, socket = self.request
            with contextlib.suppress(IndexError):
                socket.sendto(answer(data, known), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.1", 53), Handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
        yield sorted(known)
        serving.shutdown()
