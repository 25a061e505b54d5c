"""The one way out of a sandbox: a socket that leads to the hosts that this step may reach, and to no other.

    with Proxy(path, {"git.example.com:443"}, addresses, most=1 << 30) as proxy: ...

Of HTTP it knows ``CONNECT host:port``, so all that passes is TLS between the step and the host; names are resolved here. A name
that leads to the server's own loopback, or to link-local addresses where clouds keep credentials, is refused, unless the
configuration says that address itself. Together the connections of a step may receive ``most`` bytes.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from casemate.hpsb.sandbox import FIRST_ID

_PATIENCE, _LONGEST_HEAD, _MOST_AT_ONCE = 60.0, 8192, 64


class Proxy:
    """A proxy that runs until its context ends. ``denied``: hosts that were asked for in vain; ``full``: too many bytes."""

    def __init__(self, path: Path, allowed: Iterable[str], addresses: Mapping[str, tuple[str, int]], most: int) -> None:
        self._allowed, self._addresses, self._left = frozenset(name.lower() for name in allowed), addresses, most
        self.path, self.denied, self.full = path, list[str](), False
        self._lock, self._places = threading.Lock(), threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._listener = socket.socket(socket.AF_UNIX)
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Proxy:
        self.path.unlink(missing_ok=True)
        self._listener.bind(str(self.path))
        os.chown(self.path, FIRST_ID, FIRST_ID)
        self.path.chmod(0o600)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            left = list(self._open)
        for each in left:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._places.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
            else:
                client.close()

    def _serve(self, client: socket.socket) -> None:
        server = None
        try:
            client.settimeout(_PATIENCE)
            name, early = _asked(client)
            where = self._where(name)
            if where is None:
                with self._lock:
                    self.denied = [*self.denied, name][-100:]
                client.sendall(b"HTTP/1.1 403 Not named by the server's configuration\r\nContent-Length: 0\r\n\r\n")
                return
            server = socket.create_connection(where, _PATIENCE)
            with self._lock:
                self._open |= {client, server}
            client.settimeout(None)
            server.settimeout(None)
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            server.sendall(early)
            back = threading.Thread(target=self._copy, args=(server, client, True), daemon=True)
            back.start()
            self._copy(client, server, False)
            back.join()
        except OSError:
            with suppress(OSError):
                client.sendall(b"HTTP/1.1 502 Not reached\r\nContent-Length: 0\r\n\r\n")
        finally:
            with self._lock:
                self._open -= {client, *([server] if server else [])}
            client.close()
            if server is not None:
                server.close()
            self._places.release()

    def _where(self, name: str) -> tuple[str, int] | None:
        """Return address and port of a host that may be reached."""
        if name not in self._allowed:
            return None
        if name in self._addresses:
            return self._addresses[name]
        host, _, port = name.rpartition(":")
        for *_, found in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
            address = ipaddress.ip_address(str(found[0]).partition("%")[0])
            address = getattr(address, "ipv4_mapped", None) or address
            if not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified):
                return str(address), int(port)
        return None

    def _copy(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                if counted:
                    with self._lock:
                        self._left -= len(part)
                        self.full = self.full or self._left < 0
                    if self.full:
                        source.shutdown(socket.SHUT_RDWR)
                        break
                target.sendall(part)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR if self.full else socket.SHUT_WR)


def _asked(client: socket.socket) -> tuple[str, bytes]:
    """Return the ``host:port`` that a client asks for, and what it sent after. Raises :class:`OSError` for anything else."""
    head = b""
    while b"\r\n\r\n" not in head:
        part = client.recv(4096)
        head += part
        if not part or len(head) > _LONGEST_HEAD:
            raise OSError("no request")
    first, _, rest = head.partition(b"\r\n")
    words = first.decode("ascii", "replace").split(" ")
    if len(words) != 3 or words[0] != "CONNECT" or ":" not in words[1]:
        return f"{words[0][:10]} {words[-2][:100] if len(words) > 1 else ''}", b""
    return words[1].lower(), rest.partition(b"\r\n\r\n")[2]
