"""What the stand-ins for services of others have in common: TLS on a port of this machine, and answers in JSON."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from casemate.demo.pki import Identity
from casemate.demo.services import private


def tls(directory: Path, identity: Identity, clients: bytes | None = None) -> ssl.SSLContext:
    """Return a server's side of TLS, its files in ``directory``; ``clients``: PEM of who signs the certificates it asks for."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (directory / "server.pem").write_bytes(identity.certificate)
    context.load_cert_chain(directory / "server.pem", private(directory / "server.key", identity.key))
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients.decode())
    return context


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is nothing to tell of."""


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Have a server work in the background."""
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def answering(
    context: ssl.SSLContext,
    address: tuple[str, int],
    answer: Callable[[http.server.BaseHTTPRequestHandler], None],
    *,
    methods: Sequence[str] = ("POST",),
    patience: float | None = 30.0,
) -> Iterator[None]:
    """Have ``answer`` answer the requests of these methods by HTTPS; ``patience``: seconds that a client may say nothing."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = patience

        def setup(self) -> None:
            self.request.settimeout(patience)
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def log_message(self, *arguments: Any) -> None:
            """Nothing is told on the terminal."""

    def act(handler: http.server.BaseHTTPRequestHandler) -> None:
        answer(handler)

    for method in methods:
        setattr(Handler, f"do_{method}", act)
    with Server(address, Handler) as server, serving(server):
        yield


def send(request: http.server.BaseHTTPRequestHandler, code: int, value: object) -> None:
    """Answer a request with JSON."""
    body = json.dumps(value).encode()
    request.send_response(code)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def until_interrupted() -> None:
    """Wait for Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
