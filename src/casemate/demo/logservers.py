"""Log backends that behave as public services are documented to, for tests: syslog over TLS, IBM Cloud Logs with its IAM.

    with SyslogServer.running(directory, authority) as logs: ...        # Mezmo's interface for syslog, any other
    with CloudLogs.running(directory, authority, "the API key") as logs: ...

Both speak real TLS on the loopback address, and can misbehave: read slowly, answer whatever a test wants.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import secrets
import socket
import socketserver
import ssl
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate.demo.https import Server, answering, send, serving, tls
from casemate.demo.pki import Authority, Identity
from casemate.demo.services import NAMES, ServiceError, free_port


@dataclass
class SyslogServer:
    """A backend for syslog over TLS with octet-counted frames (RFC 5425). ``frames``: what arrived, in order."""

    port: int
    frames: list[bytes] = field(default_factory=list)
    pause: float = 0.0
    """Seconds to wait before each read: a slow backend."""
    open: list[socket.socket] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def running(
        cls,
        directory: Path,
        authority: Authority,
        *,
        names: Sequence[str] = NAMES,
        port: int | None = None,
        clients: Authority | None = None,
        identity: Identity | None = None,
    ) -> Iterator[SyslogServer]:
        """Start one; ``clients``: who signs the certificates that it asks for, by default none."""
        context = tls(directory, identity or authority.server(names), clients.certificate if clients else None)
        backend = cls(port or free_port())

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with context.wrap_socket(self.request, server_side=True) as secure:
                    backend.open.append(secure)
                    backend._read(secure)

        with Server(("127.0.0.1", backend.port), Handler) as server, serving(server):
            try:
                yield backend
            finally:
                for each in backend.open:
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

    def _read(self, secure: ssl.SSLSocket) -> None:
        held = b""
        while True:
            time.sleep(self.pause)
            part = secure.recv(1 << 14)
            if not part:
                return
            held += part
            while b" " in held[:8]:
                length, rest = held.split(b" ", 1)
                if len(rest) < int(length):
                    break
                self.frames.append(rest[: int(length)])
                held = rest[int(length) :]

    def wait_for(self, text: str, seconds: float = 30.0) -> bytes:
        """Return the first frame with ``text`` in it. Raises :class:`ServiceError` where none comes in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for frame in list(self.frames):
                if text.encode() in frame:
                    return frame
            time.sleep(0.05)
        raise ServiceError(f"no line with {text!r} arrived at the log backend")


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]
"""How to answer one request, in the place of the normal answer."""


def status(code: int, **headers: str) -> Answer:
    """Answer with a status and headers (``_`` for ``-``), and nothing else."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@dataclass
class CloudLogs:
    """IBM Cloud Logs and its IAM, in one server: tokens for an API key, entries for a token."""

    port: int
    key: str = field(repr=False)
    life: int = 3600
    entries: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    answers: deque[Answer] = field(default_factory=deque)
    """The answers to the next requests for entries; after them the normal one."""
    tokens: dict[str, float] = field(default_factory=dict, repr=False)
    token_answer: Answer | None = None

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, directory: Path, authority: Authority, key: str, *, port: int | None = None, names: Sequence[str] = NAMES
    ) -> Iterator[CloudLogs]:
        """Start one with a certificate of an authority."""
        context = tls(directory, authority.server(names))
        backend = cls(port or free_port(), key)
        with answering(context, ("127.0.0.1", backend.port), backend._answer, patience=None):
            yield backend

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.requests.append(request.path)
        if request.path == "/identity/token":
            form = urllib.parse.parse_qs(body.decode())
            if self.token_answer is not None:
                self.token_answer(request)
            elif form != {"grant_type": ["urn:ibm:params:oauth:grant-type:apikey"], "apikey": [self.key]}:
                send(request, 400, {"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."})
            else:
                access = secrets.token_urlsafe(32)
                self.tokens[access] = time.monotonic() + self.life
                send(request, 200, {"access_token": access, "token_type": "Bearer", "expires_in": self.life})
        elif self.answers:
            self.answers.popleft()(request)
        elif request.path != "/logs/v1/singles":
            send(request, 404, {})
        elif self.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "), 0) < time.monotonic():
            send(request, 401, {"message": "Unauthorized"})
        else:
            self.entries += json.loads(body)
            send(request, 200, {})

    def wait_for(self, text: str, seconds: float = 30.0) -> dict[str, Any]:
        """Return the first entry with ``text`` in it. Raises :class:`ServiceError` where none comes in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for entry in list(self.entries):
                if text in entry["text"]:
                    return entry
            time.sleep(0.05)
        raise ServiceError(f"no entry with {text!r} arrived at the log backend")
