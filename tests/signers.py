"""Who signs images, with the real tools: GPG and skopeo, notary and its server, cosign; and in cosign's form.

The registry stands behind a door of ours that keeps simple signatures as hosted registries do (the extension that
``X-Registry-Supports-Signatures`` announces; Debian's registry lacks it), and that can be made to lie.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from casemate.demo import images
from casemate.demo.pki import Authority
from casemate.demo.services import GATEWAY, Registry, _need, _process, _wait_for_port, free_port
from casemate.machine import home

NAMES = ("127.0.0.1", GATEWAY, "localhost")
PASSWORD = "throwaway"


def tool(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, check=False, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, (command[0], done.stdout.decode(), done.stderr.decode())
    return done.stdout.decode()


@dataclass
class Door:
    """A registry as its users see it; its simple signatures by name and digest, and its lies by path."""

    registry: Registry
    port: int
    authority: bytes
    directory: Path
    signatures: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    lies: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    away: dict[str, float] = field(default_factory=dict)
    """By the beginning of a path: after how many seconds the connection is ended without an answer."""
    pace: int | None = None
    """How many bytes of an answer's content are sent in a second."""

    @classmethod
    @contextlib.contextmanager
    def running(cls, registry: Registry, directory: Path, names: Sequence[str] = NAMES) -> Iterator[Door]:
        directory.mkdir()
        authority = Authority.create("Door authority")
        identity = authority.server(names)
        (directory / "trusted").mkdir()
        (directory / "trusted/ca.crt").write_bytes(authority.certificate)
        (directory / "both.pem").write_bytes(identity.certificate + identity.key)
        door = cls(registry, 0, authority.certificate, directory)
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"door": door}))
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "both.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        door.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield door
        finally:
            server.shutdown()
            server.server_close()

    @property
    def here(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def there(self) -> str:
        """The registry's name inside a guest."""
        return f"{GATEWAY}:{self.port}"

    @property
    def auth(self) -> dict[str, object]:
        login = base64.b64encode(f"{self.registry.user}:{self.registry.password}".encode()).decode()
        return {"auths": {self.here: {"auth": login}, self.there: {"auth": login}}}

    def push(self, layout: Path, name: str, *more: str, env: dict[str, str] | None = None) -> None:
        """Copy a layout to ``name:tag`` with skopeo, signing as ``more`` says."""
        login = self.directory / "auth.json"
        login.write_text(json.dumps(self.auth))
        tool(
            *("skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", *more),
            *("--dest-authfile", login, "--dest-cert-dir", self.directory / "trusted"),
            *(f"oci:{layout}", f"docker://{self.here}/{name}"),
            env=env,
        )

    def push_rhs(self, layout: Path, name: str, key: Gpg, identity: str) -> None:
        self.push(layout, name, "--sign-by", key.fingerprint, "--sign-identity", identity, env=key.env)

    def sign_as_cosign(
        self, layout: Path, name: str, key: EllipticCurvePrivateKey, identity: str, **changed: str
    ) -> None:
        """Put a signature in cosign's form beside an image: for where cosign, which Debian doesn't have, is not there."""
        digest = images.digest(layout)
        critical = {
            "identity": {"docker-reference": identity},
            "image": {"docker-manifest-digest": changed.get("digest", digest)},
            "type": changed.get("type", "cosign container image signature"),
        }
        payload = json.dumps({"critical": critical, "optional": None}).encode()
        signature = base64.b64encode(key.sign(payload, ECDSA(SHA256()))).decode()
        beside = self.directory / f"sig-{len(list(self.directory.iterdir()))}"
        images._write_layout(beside, b"", images.Recipe("signature", (), ()))
        blobs = beside / "blobs/sha256"
        media = "application/vnd.dev.cosign.simplesigning.v1+json"
        layer = {"mediaType": media, "digest": _blob(blobs, payload), "size": len(payload)}
        layer["annotations"] = {"dev.cosignproject.cosign/signature": signature}
        index = json.loads((beside / "index.json").read_bytes())
        manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes()) | {"layers": [layer]}
        content = json.dumps(manifest).encode()
        index["manifests"][0] |= {"digest": _blob(blobs, content), "size": len(content)}
        (beside / "index.json").write_text(json.dumps(index))
        self.push(beside, f"{name.rpartition(':')[0]}:{digest.replace(':', '-')}.sig")


@dataclass(frozen=True)
class Cosign:
    """The real cosign, as it comes of the Go module proxy, with a login and keys of its own; it signs in a door's registry."""

    program: Path
    door: Door
    directory: Path

    MODULE, GO = "github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3", 26

    @classmethod
    def built(cls, door: Door, directory: Path) -> Cosign:
        """Build it (minutes), where that was not done before; nobody who did not ask for it waits."""
        version, place = cls.MODULE.rpartition("@")[2], home.directory() / "cache/cosign"
        program = place / version / "cosign"
        if not program.exists():
            go = shutil.which("go")
            said = re.search(r"go1\.(\d+)", tool(go, "version")) if go else None
            if go is None or said is None or int(said[1]) < cls.GO:
                pytest.skip(f"needs Go 1.{cls.GO} or newer")
            if not os.environ.get("CASEMATE_REALTOOLS"):
                pytest.skip("`make realtools` builds cosign first")
            tool(go, "install", cls.MODULE, env={"GOBIN": str(program.parent)})
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(door.auth))
        return cls(program, door, directory)

    def run(self, *command: str | Path) -> str:
        env = {"COSIGN_PASSWORD": PASSWORD, "DOCKER_CONFIG": str(self.directory), "HOME": str(self.directory)}
        return tool(self.program, *command, env=env | {"SSL_CERT_FILE": str(self.door.directory / "trusted/ca.crt")})

    def pair(self, name: str, key: PrivateKeyTypes | None = None) -> Path:
        """Make a pair of keys, or take one; return ``cosign.key``, beside which is ``cosign.pub``."""
        prefix, made = self.directory / name, ("generate-key-pair",)
        if key is not None:
            pem = prefix.with_suffix(".pem")
            pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            made = ("import-key-pair", "--key", str(pem))
        self.run(*made, "--output-key-prefix", prefix)
        return prefix.with_suffix(".key")

    def sign(self, key: Path, image: str, *more: str) -> None:
        """Sign ``registry/path@digest``, with no log and in the form of before bundles."""
        without = [f"--{each}=false" for each in ("tlog-upload", "use-signing-config", "new-bundle-format")]
        self.run("sign", "--yes", *without, "--key", key, *more, image)


def _blob(blobs: Path, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    (blobs / name).write_bytes(content)
    return f"sha256:{name}"


class _Handler(BaseHTTPRequestHandler):
    door: Door
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        door, body = self.door, self._body()
        door.asked.append(f"{self.command} {self.path}")
        for start, seconds in door.away.items():
            if self.path.startswith(start):
                time.sleep(seconds)
                self.close_connection = True
                self.connection.close()
                return
        if self.path.startswith("/extensions/v2/"):
            self._signatures(self.path.removeprefix("/extensions/v2/"), body)
            return
        if self.command in ("GET", "HEAD") and self.path in door.lies:
            content, media = door.lies[self.path]
            self._answer(200, content, {"Content-Type": media})
            return
        backend = http.client.HTTPSConnection(
            "127.0.0.1",
            door.registry.port,
            context=ssl.create_default_context(cadata=door.registry.authority.decode()),
        )
        headers = {
            name: ", ".join(self.headers.get_all(name)) for name in self.headers if name.lower() != "transfer-encoding"
        }
        backend.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = backend.getresponse()
        passed = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date")
        }
        if self.command == "HEAD":
            passed["X-Length"] = answer.getheader("Content-Length", "0")
        self._answer(answer.status, answer.read(), passed)
        backend.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_one

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _signatures(self, key: str, body: bytes) -> None:
        if self.command == "PUT":
            self.door.signatures.setdefault(key, []).append(json.loads(body))
            self._answer(201, b"", {})
        else:
            found = {"signatures": self.door.signatures.get(key, [])}
            self._answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        length = headers.pop("X-Length", None)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("X-Registry-Supports-Signatures", "1")
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        piece = self.door.pace or len(content)
        for start in range(0, len(content), max(1, piece)):
            self.wfile.write(content[start : start + piece])
            if self.door.pace:
                time.sleep(1)

    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Gpg:
    """A key of GPG in a home of its own."""

    home: Path
    fingerprint: str

    @classmethod
    def create(cls, home: Path) -> Gpg:
        home.mkdir(mode=0o700)
        env = {"GNUPGHOME": str(home)}
        options = ("gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "")
        tool(*options, "--quick-generate-key", "signer@example.com", "rsa2048", "sign", "never", env=env)
        listed = tool("gpg", "--batch", "--with-colons", "--list-keys", env=env).splitlines()
        return cls(home, next(line.split(":")[9] for line in listed if line.startswith("fpr")))

    @property
    def env(self) -> dict[str, str]:
        return {"GNUPGHOME": str(self.home)}

    def public(self) -> str:
        """What stands in a contract: base64 of the armored key."""
        return base64.b64encode(tool("gpg", "--batch", "-a", "--export", env=self.env).encode()).decode()

    def close(self) -> None:
        tool("gpgconf", "--kill", "gpg-agent", env=self.env)


@dataclass(frozen=True)
class Notary:
    """A running notary server that keeps its data in memory, and who signs there."""

    port: int
    authority: bytes
    directory: Path

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: Path) -> Iterator[Notary]:
        directory.mkdir()
        _need("notary-server", "notary")
        authority = Authority.create("Notary authority")
        identity = authority.server(NAMES)
        for name, content in (("ca", authority.certificate), ("server", identity.certificate), ("key", identity.key)):
            (directory / f"{name}.pem").write_bytes(content)
        port = free_port()
        configuration = {
            "server": {
                "http_addr": f"127.0.0.1:{port}",
                "tls_cert_file": str(directory / "server.pem"),
                "tls_key_file": str(directory / "key.pem"),
            },
            "trust_service": {"type": "local", "hostname": "", "port": "", "key_algorithm": "ecdsa"},
            "logging": {"level": "error"},
            "storage": {"backend": "memory"},
        }
        (directory / "config.json").write_text(json.dumps(configuration))
        with _process(["notary-server", "-config", str(directory / "config.json")], directory, "notary") as process:
            _wait_for_port(port, process, directory, "the notary server")
            yield cls(port, authority.certificate, directory)

    def sign(self, *command: str | Path, who: str = "signer") -> str:
        """Run ``notary`` as somebody with keys of their own."""
        roles = ("ROOT", "TARGETS", "SNAPSHOT", "DELEGATION")
        return tool(
            *("notary", "-s", f"https://127.0.0.1:{self.port}", "--tlscacert", self.directory / "ca.pem"),
            *("-d", self.directory / who, *command),
            env={f"NOTARY_{role}_PASSPHRASE": PASSWORD for role in roles},
        )

    def start(self, name: str, who: str = "signer") -> str:
        """Begin the trust of an image; return the contract's ``publicKey``: base64 of the root's certificate."""
        self.sign("init", "-p", name, who=who)
        root = json.loads((self.directory / who / "tuf" / name / "metadata/root.json").read_bytes())
        wanted = root["signed"]["roles"]["root"]["keyids"][0]
        return str(root["signed"]["keys"][wanted]["keyval"]["public"])

    def tag(self, name: str, tag: str, digest: str, size: int, *more: str, who: str = "signer") -> None:
        hexadecimal = digest.removeprefix("sha256:")
        self.sign("addhash", "-p", name, tag, str(size), "--sha256", hexadecimal, *more, who=who)
