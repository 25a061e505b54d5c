"""A small key service for a machine's third seeds: for tests, demonstrations, and whoever wants to run their own.

    with KeyServer.running(directory, authority, "the API key") as keys:
        key = keys.create()                        # a root key; keys.crn(key) is its name for a contract
        keys.rotate(key); keys.disable(key)

    python -m casemate.demo.keyservice DIRECTORY [--name HOST]... [--port PORT] [--cert CRT --key KEY]

It behaves as IBM Key Protect is documented to, as far as machines use it, and gives access tokens too: wrap, unwrap, rewrap,
rotate, disable, enable, delete, metadata, over TLS, to who has the API key. Root keys are AES-256-GCM, each version another
key; what is wrapped by an earlier version still unwraps. With a directory its state lies in ``keys.json`` there, for its
owner only: **in plain**, so the machine that it runs on must be trusted; this is no HSM.

Source: IBM Cloud documentation, API reference of Key Protect (status codes and error codes among them), "Key states".
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.server
import json
import os
import re
import secrets
import socket
import ssl
import threading
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from casemate.demo.https import answering, send, tls, until_interrupted
from casemate.demo.logservers import Answer
from casemate.demo.pki import Authority, Identity
from casemate.demo.services import NAMES, free_port, private

ACTIVE, SUSPENDED, DESTROYED = 1, 2, 5
LARGEST_BODY = 64 << 10
_PATH = re.compile(r"/api/v2/keys(?:/(?P<key>[0-9a-f-]{36})(?:/(?P<what>metadata|actions/[a-z]+))?)?")


class _Refusal(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


@dataclass
class RootKey:
    """A root key: its state, and its versions from the oldest to today's, name and material (hex)."""

    state: int = ACTIVE
    versions: list[tuple[str, str]] = field(default_factory=list, repr=False)


@dataclass
class KeyServer:
    """The service. ``requests``: what was asked, in order; ``answers``: those to the next requests for keys, for tests."""

    port: int
    api_key: str = field(repr=False)
    instance: str
    store: Path | None = None
    life: int = 3600
    keys: dict[str, RootKey] = field(default_factory=dict, repr=False)
    requests: list[str] = field(default_factory=list)
    answers: deque[Answer] = field(default_factory=deque)
    tokens: dict[str, float] = field(default_factory=dict, repr=False)
    brokered: dict[str, str] = field(default_factory=dict)
    """The addresses that it gives as a broker, by network."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    @contextlib.contextmanager
    def running(
        cls,
        directory: Path,
        authority: Authority,
        api_key: str,
        *,
        port: int | None = None,
        names: Sequence[str] = NAMES,
        address: str = "127.0.0.1",
        keep: bool = False,
        identity: Identity | None = None,
    ) -> Iterator[KeyServer]:
        """Start one with a certificate of an authority. ``keep``: its keys stay in the directory."""
        context = tls(directory, identity or authority.server(names))
        server = cls(port or free_port(), api_key, str(uuid.uuid4()), directory / "keys.json" if keep else None)
        with server.serving(context, address):
            yield server

    @contextlib.contextmanager
    def serving(self, context: ssl.SSLContext, address: str) -> Iterator[None]:
        """Listen."""
        self._load()
        with answering(context, (address, self.port), self._answer, methods=("GET", "POST", "DELETE")):
            yield

    # ------------------------------------------------------------------------------------------------- keys

    def create(self) -> str:
        """Make a root key; return its identifier."""
        name = str(uuid.uuid4())
        with self.lock:
            self.keys[name] = RootKey(versions=[_version()])
            self._save()
        return name

    def crn(self, key: str) -> str:
        """Return the name of a key, as a contract has it."""
        return f"crn:v1:casemate:private:kms::a/own:{self.instance}:key:{key}"

    def entry(self, key: str, host: str = "127.0.0.1") -> dict[str, str]:
        """Return what stands in ``kms`` of a contract."""
        return {"apiKey": self.api_key, "crn": self.crn(key), "type": f"https://{host}:{self.port}"}

    def rotate(self, key: str) -> None:
        """Give a key a new version; what the earlier ones wrapped still unwraps."""
        self._change(key, lambda found: found.versions.append(_version()))

    def disable(self, key: str) -> None:
        """Suspend a key."""
        self._change(key, lambda found: setattr(found, "state", SUSPENDED))

    def enable(self, key: str) -> None:
        """Make a suspended key active again."""
        self._change(key, lambda found: setattr(found, "state", ACTIVE))

    def delete(self, key: str) -> None:
        """Destroy a key: nothing that it wrapped unwraps ever again."""

        def destroy(found: RootKey) -> None:
            found.state = DESTROYED
            found.versions.clear()

        self._change(key, destroy)

    def _change(self, key: str, change: Callable[[RootKey], object]) -> None:
        with self.lock:
            change(self.keys[key])
            self._save()

    def _load(self) -> None:
        if self.store is not None and self.store.exists():
            given = json.loads(self.store.read_text())
            self.instance = given["instance"]
            self.keys = {
                name: RootKey(each["state"], [tuple(version) for version in each["versions"]])
                for name, each in given["keys"].items()
            }

    def _save(self) -> None:
        if self.store is not None:
            keys = {name: {"state": key.state, "versions": key.versions} for name, key in self.keys.items()}
            new = self.store.with_suffix(".new")
            private(new, json.dumps({"instance": self.instance, "keys": keys}).encode())
            new.replace(self.store)

    # ------------------------------------------------------------------------------------------------- the interface

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        try:
            length = int(request.headers.get("Content-Length") or 0)
            if not 0 <= length <= LARGEST_BODY:
                raise _Refusal(413, "REQ_TOO_LARGE_ERR")
            body = request.rfile.read(length)
            self.requests.append(f"{request.command} {request.path}")
            if request.path == "/identity/token":
                self._token(request, body)
            elif self.answers:
                self.answers.popleft()(request)
            else:
                with self.lock:
                    code, value = self._keys(request, body)
                send(request, code, value)
        except _Refusal as refusal:
            reason = {"code": refusal.code, "status": refusal.status}
            send(request, refusal.status, {"resources": [{"errorMsg": refusal.code, "reasons": [reason]}]})
        except ValueError:
            send(request, 400, {"resources": [{"errorMsg": "BAD_BODY_ERR"}]})

    def _token(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        form = urllib.parse.parse_qs(body.decode())
        given = form.get("apikey", [""])[0]
        if form.get("grant_type") != ["urn:ibm:params:oauth:grant-type:apikey"] or not secrets.compare_digest(
            given.encode(), self.api_key.encode()
        ):
            send(request, 400, {"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."})
            return
        access, now = secrets.token_urlsafe(32), time.monotonic()
        self.tokens = {token: end for token, end in self.tokens.items() if end > now} | {access: now + self.life}
        send(request, 200, {"access_token": access, "token_type": "Bearer", "expires_in": self.life})

    def _keys(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, Any]]:
        access = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens.get(access, 0.0) < time.monotonic():
            raise _Refusal(401, "UNAUTHORIZED_ERR")
        if request.path == f"/crypto_v2/instances/{self.instance}" and self.brokered:
            return 200, {"instance_id": self.instance, "kms": self.brokered}
        if request.headers.get("Bluemix-Instance") != self.instance:
            raise _Refusal(404, "INSTANCE_NOT_FOUND_ERR")
        path = _PATH.fullmatch(request.path)
        if path is None:
            raise _Refusal(404, "NOT_FOUND_ERR")
        if path["key"] is None:
            if request.command != "POST":
                raise _Refusal(405, "METHOD_NOT_ALLOWED_ERR")
            name = str(uuid.uuid4())
            self.keys[name] = RootKey(versions=[_version()])
            self._save()
            return 201, self._metadata(name)
        if path["key"] not in self.keys:
            raise _Refusal(404, "KEY_NOT_FOUND_ERR")
        if request.command == "GET" and path["what"] == "metadata":
            return 200, self._metadata(path["key"])
        if request.command == "DELETE" and path["what"] is None:
            self.keys[path["key"]] = RootKey(DESTROYED)
            self._save()
            return 200, self._metadata(path["key"])
        if request.command != "POST" or path["what"] is None:
            raise _Refusal(405, "METHOD_NOT_ALLOWED_ERR")
        return self._act(path["key"], path["what"].removeprefix("actions/"), json.loads(body) if body else {})

    def _metadata(self, name: str) -> dict[str, Any]:
        key = self.keys[name]
        found: dict[str, Any] = {"id": name, "type": "application/vnd.ibm.kms.key+json", "extractable": False}
        found |= {"crn": self.crn(name), "state": key.state, "deleted": key.state == DESTROYED}
        if key.versions:
            found["keyVersion"] = {"id": key.versions[-1][0]}
        return {"metadata": {"collectionTotal": 1}, "resources": [found]}

    def _act(self, name: str, action: str, given: Any) -> tuple[int, dict[str, Any]]:
        key = self.keys[name]
        if key.state == DESTROYED:
            raise _Refusal(410, "KEY_DELETED_ERR")
        if action in ("enable", "disable"):
            key.state = ACTIVE if action == "enable" else SUSPENDED
            self._save()
            return 204, {}
        if key.state != ACTIVE:
            raise _Refusal(409, "KEY_ACTION_INVALID_STATE_ERR")
        if action == "rotate":
            key.versions.append(_version())
            self._save()
            return 204, {}
        if not isinstance(given, dict) or action not in ("wrap", "unwrap", "rewrap"):
            raise _Refusal(400, "BAD_BODY_ERR")
        aad = json.dumps(given.get("aad", [])).encode()
        if action == "wrap":
            plain = base64.b64decode(given.get("plaintext") or base64.b64encode(secrets.token_bytes(32)), validate=True)
            return 200, {"ciphertext": _wrap(key, plain, aad), "keyVersion": {"id": key.versions[-1][0]}}
        plain, version = _unwrap(key, given.get("ciphertext"), aad)
        if action == "unwrap":
            return 200, {"plaintext": base64.b64encode(plain).decode(), "keyVersion": {"id": version}}
        new = {"id": key.versions[-1][0]}
        return 200, {"ciphertext": _wrap(key, plain, aad), "keyVersion": {"id": version}, "rewrappedKeyVersion": new}


def _version() -> tuple[str, str]:
    return str(uuid.uuid4()), secrets.token_hex(32)


def _wrap(key: RootKey, plain: bytes, aad: bytes) -> str:
    version, material = key.versions[-1]
    iv = secrets.token_bytes(12)
    text = AESGCM(bytes.fromhex(material)).encrypt(iv, plain, aad)
    values = {"ciphertext": base64.b64encode(text).decode(), "iv": base64.b64encode(iv).decode(), "version": version}
    return base64.b64encode(json.dumps(values).encode()).decode()


def _unwrap(key: RootKey, wrapped: Any, aad: bytes) -> tuple[bytes, str]:
    try:
        values = json.loads(base64.b64decode(wrapped, validate=True))
        version = values["version"]
        material = bytes.fromhex(dict(key.versions)[version])
        text, iv = (base64.b64decode(values[name], validate=True) for name in ("ciphertext", "iv"))
        return AESGCM(material).decrypt(iv, text, aad), version
    except (ValueError, KeyError, TypeError, InvalidTag, RecursionError):
        raise _Refusal(422, "UNPROCESSABLE_CIPHERTEXT_ERR") from None


# ------------------------------------------------------------------------------------------------- to run one's own


def main() -> None:
    """Run a service until it is interrupted; at the first start it gets an API key, a root key, and certificates."""
    parser = argparse.ArgumentParser(prog="python -m casemate.demo.keyservice", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", action="append", help="host name or address of this service, for its certificate")
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--cert", type=Path, help="its certificate (PEM), where it has one already")
    parser.add_argument("--key", type=Path, help="the private key of that")
    given = parser.parse_args()
    directory: Path = given.directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = given.name or [socket.gethostname(), "127.0.0.1", "localhost"]
    if not (directory / "api-key").exists():
        private(directory / "api-key", secrets.token_urlsafe(32).encode())
    authority = Authority.create("Key service authority")
    identity = Identity(given.cert.read_bytes(), given.key.read_bytes()) if given.cert else authority.server(names)
    if not given.cert:  # valid for 30 days, and made anew at each start: an address to begin with
        (directory / "ca.pem").write_bytes(authority.certificate)
    api_key = (directory / "api-key").read_text().strip()
    with KeyServer.running(
        directory, authority, api_key, port=given.port, address=given.address, keep=True, identity=identity
    ) as server:
        key = next(iter(server.keys), None) or server.create()
        host = names[0]
        print(f"Listening on {given.address}:{given.port}. In env.volumes.NAME of a contract:")
        print(f"  kms:\n  - crn: {server.crn(key)}\n    type: https://{host}:{given.port}")
        print(f"    apiKey: the text in {directory / 'api-key'}")
        if not given.cert:
            print(f"and in env: cacerts with base64 of {directory / 'ca.pem'}")
        until_interrupted()


if __name__ == "__main__":
    os.umask(0o077)
    main()
