"""A small anchor for volumes: for tests, demonstrations, and whoever wants to run their own (``docs/anchors.md``).

    with AnchorServer.running(directory, authority, clients) as anchor:
        entry = anchor.entry("data", client)        # what stands in env.volumes.NAME.anchor of a contract

    python -m casemate.demo.anchor DIRECTORY [--name HOST]... [--port PORT] [--cert CRT --key KEY --clients CA]

It keeps one number under a name, raises it and never lowers it, and signs what it has for who asks, with the nonce of the
question. Who may ask has a client certificate of the authority ``clients`` (PEM). Its numbers lie in ``anchors.json`` of the
directory, written anew and synced before it answers; its key in ``signing.pem``, for its owner only. It must run where whoever
has the disks can't put **it** back to an older state: with a party, not beside the machine.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.server
import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from casemate.contract.anchors import LARGEST, statement
from casemate.contract.errors import KeyFileError
from casemate.contract.keys import certificates_alone
from casemate.demo.https import answering, send, tls, until_interrupted
from casemate.demo.pki import Authority, Identity
from casemate.demo.services import NAMES, free_port, private

LARGEST_BODY = 4096
_NAME = re.compile(r"/([a-z0-9-]{1,64})")


@dataclass
class AnchorServer:
    """The service. ``away``: it answers nobody, for tests."""

    port: int
    directory: Path
    ca: bytes
    key: Ed25519PrivateKey = field(repr=False)
    numbers: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    away: bool = False

    @classmethod
    @contextlib.contextmanager
    def running(
        cls,
        directory: Path,
        authority: Authority,
        clients: bytes,
        *,
        port: int | None = None,
        names: Sequence[str] = NAMES,
        address: str = "127.0.0.1",
        identity: Identity | None = None,
    ) -> Iterator[AnchorServer]:
        """Start one, with a certificate of an authority; it asks for certificates that ``clients`` (PEM) has signed."""
        context = tls(directory, identity or authority.server(names), clients)
        server = cls(port or free_port(), directory, authority.certificate, _signing_key(directory / "signing.pem"))
        if server._store.exists():
            server.numbers = json.loads(server._store.read_bytes())
        with server.serving(context, address):
            yield server

    @contextlib.contextmanager
    def serving(self, context: ssl.SSLContext, address: str) -> Iterator[None]:
        """Listen."""
        with answering(context, (address, self.port), self._answer):
            yield

    @property
    def public_key(self) -> bytes:
        """The public half of what it signs with, PEM."""
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def _store(self) -> Path:
        return self.directory / "anchors.json"

    def entry(self, name: str, client: Identity, host: str = "127.0.0.1") -> dict[str, str]:
        """Return what stands in ``anchor`` of a volume in ``env``."""
        return {
            "url": f"https://{host}:{self.port}/{name}",
            "publicKey": self.public_key.decode(),
            "ca": self.ca.decode(),
            "cert": client.certificate.decode(),
            "key": client.key.decode(),
        }

    def forget(self, name: str) -> None:
        """Forget a number: its volume is given up, or its owner wants an older state back."""
        with self.lock:
            self.numbers.pop(name, None)
            self._save()

    def raised(self, name: str, least: int) -> int | None:
        """Raise a number where it is smaller; return it."""
        with self.lock:
            if least > self.numbers.get(name, 0):
                self.numbers[name] = least
                self._save()
            return self.numbers.get(name)

    def _save(self) -> None:
        new = self._store.with_suffix(".new")
        private(new, json.dumps(self.numbers).encode())
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(self._store)
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path, length = _NAME.fullmatch(request.path), request.headers.get("Content-Length") or ""
        if self.away:
            return send(request, 503, {})
        if path is None or not re.fullmatch("[0-9]{1,4}", length) or int(length) > LARGEST_BODY:
            return send(request, 404 if path is None else 400, {})
        try:
            given = json.loads(request.rfile.read(int(length)))
            nonce, least = given["nonce"], given["least"]
            if not re.fullmatch("[0-9a-f]{64}", nonce) or type(least) is not int or not 0 <= least <= LARGEST:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            return send(request, 400, {})
        text = statement(path[1], nonce, self.raised(path[1], least))
        signed = {"statement": text, "signature": self.key.sign(text)}
        return send(request, 200, {name: base64.b64encode(value).decode() for name, value in signed.items()})


def _signing_key(path: Path) -> Ed25519PrivateKey:
    if path.exists():
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise SystemExit(f"{path} is no Ed25519 key")
        return key
    key = Ed25519PrivateKey.generate()
    private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def main() -> None:
    """Run an anchor until it is interrupted. Without certificates of one's own it makes some for 30 days, at each start."""
    parser = argparse.ArgumentParser(prog="python -m casemate.demo.anchor", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", action="append", help="host name or address of this service, for its certificate")
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8444)
    for option in ("cert", "key", "clients"):
        parser.add_argument(f"--{option}", type=Path, help="PEM; give --cert, --key and --clients (authority), or none")
    given = parser.parse_args()
    names = given.name or [socket.gethostname(), "127.0.0.1", "localhost"]
    authority, own = Authority.create("Anchor authority"), Authority.create("Clients of the anchor")
    identity = Identity(given.cert.read_bytes(), given.key.read_bytes()) if given.cert else None
    try:
        clients = b"".join(certificates_alone(given.clients.read_bytes())) if given.clients else own.certificate
    except KeyFileError as error:
        parser.error(f"--clients {error.cause}; {error.cure}")
    with AnchorServer.running(
        given.directory, authority, clients, port=given.port, names=names, address=given.address, identity=identity
    ) as server:
        print(f"Listening on {given.address}:{given.port}.", flush=True)
        (given.directory / "public-key.pem").write_bytes(server.public_key)
        if not given.cert:
            entry = json.dumps({"anchor": server.entry("data", own.client("machine"), names[0])}, indent=1)
            private(given.directory / "anchor.yaml", entry.encode())
            print(f"What stands in env.volumes.NAME, the client's key too, is in {given.directory / 'anchor.yaml'};")
            print("change the name at the end of url for each volume.", flush=True)
        until_interrupted()


if __name__ == "__main__":
    os.umask(0o077)
    main()
