"""The services around a machine, as its parties would run them: a registry with TLS and logins, a log backend with mutual TLS.

    with Registry.running(directory) as registry, LogServer.running(directory) as logs:
        digest = registry.push(layout, "postgres")
        ...

Both are Debian's own programs (``docker-registry``, ``rsyslogd``) on free ports of the loopback address, which a guest
reaches at :data:`GATEWAY`. They end with the context, also on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from casemate.demo.pki import Authority, Identity
from casemate.errors import CasemateError

GATEWAY = "10.0.2.2"
"""Where QEMU's user network shows a guest the host's loopback address."""
NAMES = (GATEWAY, "127.0.0.1", "localhost")
_PATIENCE = 30.0


class ServiceError(CasemateError):
    """A service around the machine did not start or did not do its part."""

    id = "DEMO-SERVICE"


def free_port() -> int:
    """Return a port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(command: list[str], directory: Path, package: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service until the context ends. Ctrl-C reaches only us: we end it in our order, or die and it ends too."""
    _need(command[0], package)
    with (directory / "output.log").open("wb") as said:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        raise ServiceError(f"{program} is not installed", f"apt-get install {package}; or casemate doctor --install")


def _wait_for_port(port: int, process: subprocess.Popen[bytes], directory: Path, name: str) -> None:
    end = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    said = (directory / "output.log").read_text(errors="replace").strip().splitlines()
    raise ServiceError(f"{name} does not start: {said[-1] if said else 'no word'}", "is something of it still running?")


def private(path: Path, content: bytes) -> Path:
    """Write a file for its owner only; return its path."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    return path


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry. ``host`` is its name inside a guest, ``authority`` the certificate (PEM) to trust it by."""

    port: int
    authority: bytes
    user: str
    password: str = field(repr=False)
    directory: Path = field(default=Path())

    @property
    def host(self) -> str:
        """Host and port as a guest reaches it."""
        return f"{GATEWAY}:{self.port}"

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: Path, user: str = "provider", password: str | None = None) -> Iterator[Registry]:
        """Start a registry with its state in a new directory."""
        directory.mkdir(mode=0o700, parents=True)
        password = password or secrets.token_urlsafe(24)
        authority = Authority.create("Registry authority")
        identity = authority.server(NAMES)
        (directory / "server.crt").write_bytes(identity.certificate)
        private(directory / "server.key", identity.key)
        _need("htpasswd", "apache2-utils")
        made = subprocess.run(
            ["htpasswd", "-niB", user], input=password.encode(), capture_output=True, check=True
        )  # by standard input: an argument could be read by anyone on the host
        private(directory / "htpasswd", made.stdout)
        port = free_port()
        configuration = {
            **{"version": 0.1, "log": {"level": "error", "accesslog": {"disabled": False}}},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
            "http": {
                "addr": f"127.0.0.1:{port}",
                "secret": secrets.token_hex(16),
                "tls": {"certificate": str(directory / "server.crt"), "key": str(directory / "server.key")},
            },
            "auth": {"htpasswd": {"realm": "Casemate", "path": str(directory / "htpasswd")}},
        }
        private(directory / "config.yml", json.dumps(configuration).encode())  # JSON is YAML
        command = ["docker-registry", "serve", str(directory / "config.yml")]
        with _process(command, directory, "docker-registry") as process:
            _wait_for_port(port, process, directory, "the registry")
            yield cls(port, authority.certificate, user, password, directory)

    def fetched(self) -> list[str]:
        """Return the digests of the blobs that somebody has fetched, in this order: configurations and layers of images."""
        said = (self.directory / "output.log").read_text(errors="replace")
        return re.findall(r'"GET /v2/\S+/blobs/(sha256:[0-9a-f]{64})\S* HTTP/[0-9.]+" 200', said)

    def push(self, layout: Path, name: str, tag: str = "latest") -> str:
        """Copy an OCI layout into the registry; return the digest of the image."""
        from casemate.demo import images

        _need("skopeo", "skopeo")
        here = f"127.0.0.1:{self.port}"
        login = b64encode(f"{self.user}:{self.password}".encode()).decode()
        auth = private(self.directory / "auth.json", json.dumps({"auths": {here: {"auth": login}}}).encode())
        trusted = self.directory / "trusted"
        trusted.mkdir(exist_ok=True)
        (trusted / "ca.crt").write_bytes(self.authority)
        done = subprocess.run(
            [
                *("skopeo", "copy", "--quiet", "--preserve-digests"),
                *("--dest-authfile", str(auth), "--dest-cert-dir", str(trusted)),
                *(f"oci:{layout}", f"docker://{here}/{name}:{tag}"),
            ],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise ServiceError(f"the image can't be pushed: {said[-1] if said else 'no word'}")
        return images.digest(layout)


@dataclass(frozen=True, slots=True)
class LogServer:
    """A running log backend that takes lines from clients of its own authority only."""

    port: int
    authority: Authority
    client: Identity
    file: Path

    @classmethod
    @contextlib.contextmanager
    def running(
        cls,
        directory: Path,
        *,
        authority: Authority | None = None,
        port: int | None = None,
        names: Sequence[str] = NAMES,
    ) -> Iterator[LogServer]:
        """Start a backend with its state in a new directory. The first of its names is what rsyslog compares."""
        directory.mkdir(mode=0o700, parents=True)
        authority = authority or Authority.create("Log authority")
        identity = authority.server(names)
        (directory / "ca.pem").write_bytes(authority.certificate)
        (directory / "server.pem").write_bytes(identity.certificate)
        private(directory / "server.key", identity.key)
        port = port or free_port()
        lines = directory / "lines.log"
        lines.touch(0o600)
        (directory / "rsyslog.conf").write_text(
            f"""\
global(workDirectory="{directory}" maxMessageSize="64k" defaultNetstreamDriver="gtls"
       defaultNetstreamDriverCAFile="{directory}/ca.pem"
       defaultNetstreamDriverCertFile="{directory}/server.pem"
       defaultNetstreamDriverKeyFile="{directory}/server.key")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
template(name="line" type="string" string="%timestamp:::date-rfc3339% %hostname% %app-name%: %msg%\\n")
input(type="imtcp" address="127.0.0.1" port="{port}")
action(type="omfile" file="{lines}" template="line" fileCreateMode="0600" flushOnTXEnd="on")
"""
        )
        command = ["/usr/sbin/rsyslogd", "-n", "-i", "NONE", "-f", str(directory / "rsyslog.conf")]
        with _process(command, directory, "rsyslog rsyslog-gnutls") as process:
            _wait_for_port(port, process, directory, "the log backend")
            yield cls(port, authority, authority.client("casemate-guest"), lines)

    def lines(self) -> list[str]:
        """Return what has arrived."""
        return self.file.read_text(errors="replace").splitlines()

    def wait_for(self, text: str, seconds: float = 30.0) -> str:
        """Return the first line with ``text`` in it. Raises :class:`ServiceError` where none comes in time."""
        end = time.monotonic() + seconds
        while True:
            for line in self.lines():
                if text in line:
                    return line
            if time.monotonic() > end:
                raise ServiceError(f"no line with {text!r} arrived at the log backend")
            time.sleep(0.1)
