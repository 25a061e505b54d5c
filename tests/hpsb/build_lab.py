"""A real build server on this machine, and what stands around it: git over HTTPS, a registry that can be made to lie, clients.

The registry has a name that no name server knows, git the address that a guest would use; the server's configuration says where
both are.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from casemate.demo import images
from casemate.demo.pki import Authority
from casemate.demo.services import GATEWAY, Registry, free_port
from casemate.hpsb.client import Client, Settings
from casemate.hpsb.manifest import Keys, parse_keys
from signers import NAMES, Door, tool

SOURCE = Path(__file__).parents[2] / "src"
REGISTRY = "registry.example"
_START = """\
umount -R /sys/fs/cgroup 2>/dev/null
mount -t cgroup2 none /sys/fs/cgroup
exec "$@"
"""
"""crun wants the unified hierarchy of control groups, which a machine of a build farm may not show."""


@dataclass
class Git:
    """Repositories served by git's own ``http-backend``, behind TLS and a password."""

    directory: Path
    authority: Authority
    port: int = 0
    user: str = "reader"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: Path) -> Iterator[Git]:
        directory.mkdir()
        git = cls(directory, Authority.create("Git authority"))
        identity = git.authority.server(NAMES)
        (directory / "both.pem").write_bytes(identity.certificate + identity.key)
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Backend,), {"git": git}))
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "both.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        git.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield git
        finally:
            server.shutdown()
            server.server_close()

    def url(self, name: str) -> str:
        return f"https://{GATEWAY}:{self.port}/{name}.git"

    def commit(
        self, name: str, files: dict[str, str | bytes | Path], branch: str = "main", when: int = 1_700_000_000
    ) -> str:
        """Make one commit with these files (a path stands for a link to it) and put it on a branch; return its hash."""
        bare = self.directory / f"{name}.git"
        if not bare.exists():
            tool("git", "init", "--quiet", "--bare", "--initial-branch=main", bare)
        with tempfile.TemporaryDirectory() as work:
            env = {
                **{"GIT_DIR": str(bare), "GIT_WORK_TREE": work, "GIT_INDEX_FILE": f"{work}/.index"},
                **{"GIT_AUTHOR_DATE": f"{when} +0000", "GIT_COMMITTER_DATE": f"{when} +0000"},
                **{
                    f"GIT_{who}_{what}": "a@example.com"
                    for who in ("AUTHOR", "COMMITTER")
                    for what in ("NAME", "EMAIL")
                },
            }
            for path, content in files.items():
                place = Path(work) / path
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    place.symlink_to(content)
                else:
                    place.write_bytes(content if isinstance(content, bytes) else content.encode())
            tool("git", "-C", work, "add", "--all", "--", *files, env=env)
            tree = tool("git", "write-tree", env=env).strip()
            made = tool("git", "commit-tree", "-m", "a commit", tree, env=env).strip()
            if branch:
                tool("git", "update-ref", f"refs/heads/{branch}", made, env=env)
        return made


class _Backend(BaseHTTPRequestHandler):
    git: Git

    def answer(self) -> None:
        login = base64.b64encode(f"{self.git.user}:{self.git.password}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = {
            **{"PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.git.directory), "GIT_HTTP_EXPORT_ALL": "1"},
            **{"PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_ADDR": "127.0.0.1"},
            **{"CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body))},
            **{"HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", "")},
            **{"GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "GIT_CONFIG_COUNT": "1"},
            **{"GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


class Page(BaseHTTPRequestHandler):
    """A site that says another thing each time."""

    said = 0

    def do_GET(self) -> None:
        type(self).said += 1
        content = f"number {type(self).said}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Lab:
    """All of it. ``base`` is an image by digest, as a Containerfile names it."""

    directory: Path
    git: Git
    door: Door
    base: str
    site: str
    site_authority: bytes
    clients: Authority = field(default_factory=lambda: Authority.create("Clients"))
    servers: Authority = field(default_factory=lambda: Authority.create("Build server"))
    secrets: tuple[str, str] = ("workload-" + "w" * 20, "deployer-" + "d" * 20)

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: Path) -> Iterator[Lab]:
        layout = images.build(images.BUSYBOX)
        with (
            Registry.running(directory / "registry") as registry,
            Door.running(registry, directory / "door", (*NAMES, REGISTRY)) as door,
            Git.running(directory / "git") as git,
            _site(directory / "site") as (port, authority),
        ):
            door.push(layout, "busybox:1")
            base = f"{REGISTRY}:{door.port}/busybox@{images.digest(layout)}"
            yield cls(directory, git, door, base, f"{GATEWAY}:{port}", authority)

    @property
    def registry(self) -> str:
        return f"{REGISTRY}:{self.door.port}"

    @property
    def name(self) -> str:
        return f"{self.registry}/team/app"

    def config(self, **more: Any) -> dict[str, Any]:
        login = {"username": self.door.registry.user, "password": self.door.registry.password}
        hosts = {
            self.registry: self.door.port,
            f"{GATEWAY}:{self.git.port}": self.git.port,
            self.site: self.site.rpartition(":")[2],
        }
        return {
            "repositories": {
                f"https://{GATEWAY}:{self.git.port}/": {"username": self.git.user, "password": self.git.password}
            },
            "registries": {self.registry: login},
            "images": {self.name: login},
            "authorities": "".join(
                pem.decode() for pem in (self.door.authority, self.git.authority.certificate, self.site_authority)
            ),
            "addresses": {name: f"127.0.0.1:{port}" for name, port in hosts.items()},
            "limits": {"minutes": 3, "source_mib": 8, "fetch_mib": 64, "job_mib": 512},
            **more,
        }

    @contextlib.contextmanager
    def server(self, data: Path | None = None, **more: Any) -> Iterator[Running]:
        """Run a server; with ``data`` on a volume that is there."""
        place = Path(tempfile.mkdtemp(prefix="hpsb-"))
        place.chmod(0o711)
        port = free_port()
        identity = self.servers.server(NAMES)
        variables = {
            **{"CLIENT_CA": self.clients.certificate.decode(), "SERVER_CRT": identity.certificate.decode()},
            **{"SERVER_KEY": base64.b64encode(identity.key).decode(), "HPSB_CONFIG": json.dumps(self.config(**more))},
            **{"HPSB_SECRET_WORKLOAD": self.secrets[0], "HPSB_SECRET_ENV": self.secrets[1]},
        }
        volume = data or place / "data"
        env = {
            **{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(SOURCE), "HPSB_DATA": str(volume)},
            **{"HPSB_RUN": str(place / "run"), "HPSB_ADDRESS": "127.0.0.1", "HPSB_PORT": str(port), **variables},
        }
        said = (place / "said").open("wb")
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "unshare", "-m", "--propagation", "private", "sh", "-c", _START, "sh",
             sys.executable, "-m", "casemate.hpsb.server"],
            env=env, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            (place / "ca.crt").write_bytes(self.servers.certificate)
            client = self.clients.client("builder")
            (place / "client.crt").write_bytes(client.certificate)
            (place / "client.key").write_bytes(client.key)
            lines = [
                f"server: https://127.0.0.1:{port}",
                "ca: ca.crt",
                "certificate: client.crt",
                "key: client.key",
                "keys: keys.json",
            ]
            (place / "build.yaml").write_text("\n".join(lines) + "\n")
            running = Running(self, place, volume, port, process)
            running.wait_until_up()
            yield running
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            said.close()
            shutil.rmtree(place, ignore_errors=True)


@dataclass
class Running:
    """A running server."""

    lab: Lab
    place: Path
    volume: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def settings(self) -> Settings:
        files = (self.place / name for name in ("ca.crt", "client.crt", "client.key", "keys.json"))
        return Settings("127.0.0.1", self.port, *files)

    @property
    def client(self) -> Client:
        return Client(self.settings)

    @property
    def said(self) -> str:
        return (self.place / "said").read_text(errors="replace")

    def wait_until_up(self) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.client.ask("GET", "/v1/status")
                return
            except Exception:
                time.sleep(0.05)
        raise AssertionError(self.said)

    def init(self) -> Keys:
        """Have the keys made, and keep the public ones."""
        data = json.dumps(self.client.ask("POST", "/v1/init")).encode()
        self.settings.keys.write_bytes(data)
        return parse_keys(data)

    @property
    def keys(self) -> Keys:
        return parse_keys(self.settings.keys.read_bytes())

    def manifest(self, job: dict[str, Any]) -> bytes:
        return self.client.fetch("GET", f"/v1/jobs/{job['job']}/manifest")

    def job(self, repository: str, revision: str, **more: Any) -> dict[str, Any]:
        return {"repository": self.lab.git.url(repository), "revision": revision, "name": self.lab.name, **more}

    def build(self, repository: str, revision: str, **more: Any) -> dict[str, Any]:
        """Start a job and wait for its end."""
        name = self.client.ask("POST", "/v1/jobs", self.job(repository, revision, **more))["job"]
        while True:
            told: dict[str, Any] = self.client.ask("GET", f"/v1/jobs/{name}")
            if told["state"] in ("done", "failed"):
                return told
            time.sleep(0.1)

    def log(self, job: dict[str, Any]) -> str:
        return self.client.fetch("GET", f"/v1/jobs/{job['job']}/log?from=0").decode(errors="replace")


@contextlib.contextmanager
def _site(directory: Path) -> Iterator[tuple[int, bytes]]:
    directory.mkdir()
    authority = Authority.create("Site")
    identity = authority.server(NAMES)
    (directory / "both.pem").write_bytes(identity.certificate + identity.key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "both.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], authority.certificate
    finally:
        server.shutdown()
        server.server_close()


def as_server(script: str, *arguments: object) -> str:
    """Run Python as the server runs: as root, with what crun needs; return what it prints. Its source is beside ours."""
    command = (
        "unshare",
        "-m",
        "--propagation",
        "private",
        "sh",
        "-c",
        _START,
        "sh",
        sys.executable,
        "-c",
        script,
        *arguments,
    )
    return tool(*(str(part) for part in command), env={"PYTHONPATH": str(SOURCE)})
