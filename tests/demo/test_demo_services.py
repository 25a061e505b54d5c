"""Registry, log backend and container images: the real programs, and that they let in nobody but whom they should."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.demo import images
from casemate.demo.pki import Authority, Identity
from casemate.demo.services import LogServer, Registry, ServiceError

pytestmark = pytest.mark.components


@pytest.fixture(scope="module")
def layout() -> Path:
    return images.build(images.BUSYBOX)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[Registry]:
    with Registry.running(tmp_path_factory.mktemp("demo") / "registry") as running:
        running.push(layout, "busybox")
        yield running


def ask(registry: Registry, path: str, user: str = "", password: str = "") -> tuple[int, bytes]:
    context = ssl.create_default_context(cadata=registry.authority.decode())
    accept = "application/vnd.oci.image.manifest.v1+json"
    request = urllib.request.Request(f"https://127.0.0.1:{registry.port}{path}", headers={"Accept": accept})
    if user:
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_registry_serves_the_image_to_who_knows_the_password(registry: Registry, layout: Path) -> None:
    code, manifest = ask(registry, f"/v2/busybox/manifests/{images.digest(layout)}", registry.user, registry.password)
    assert code == 200
    assert json.loads(manifest)["layers"]


@pytest.mark.parametrize(("user", "password"), [("", ""), ("provider", "wrong"), ("nobody", "wrong")])
def test_the_registry_refuses_everyone_else(registry: Registry, user: str, password: str) -> None:
    assert ask(registry, "/v2/busybox/manifests/latest", user, password)[0] == 401


def test_the_registry_is_known_by_its_own_authority_only(registry: Registry) -> None:
    context = ssl.create_default_context(cadata=Authority.create("Registry authority").certificate.decode())
    with (
        socket.create_connection(("127.0.0.1", registry.port), 5) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_the_registry_writes_its_password_nowhere_but_as_a_hash_and_a_login_of_its_owner(registry: Registry) -> None:
    for path in registry.directory.rglob("*"):
        if path.is_file():
            assert registry.password.encode() not in path.read_bytes(), path
    assert (registry.directory / "auth.json").stat().st_mode & 0o077 == 0
    assert "$2y$" in (registry.directory / "htpasswd").read_text()


def test_a_wrong_password_pushes_nothing(registry: Registry, layout: Path, tmp_path: Path) -> None:
    wrong = Registry(registry.port, registry.authority, registry.user, "wrong", tmp_path)
    with pytest.raises(ServiceError, match="can't be pushed"):
        wrong.push(layout, "stolen")


def send(server: LogServer, authority: Authority, client: Identity | None, line: str, directory: Path) -> None:
    """Send one line; whether the server takes it is seen in what it writes."""
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    if client is not None:
        (directory / "client.pem").write_bytes(client.certificate + client.key)
        context.load_cert_chain(directory / "client.pem")
    frame = f"<14>1 2026-01-01T00:00:00Z host name - - - {line}".encode()
    try:
        with (
            socket.create_connection(("127.0.0.1", server.port), 5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            secure.sendall(b"%d %s" % (len(frame), frame))
            secure.settimeout(0.5)
            secure.recv(1)
    except OSError:
        pass


def test_the_log_backend_takes_lines_of_its_own_clients_only(tmp_path: Path) -> None:
    with LogServer.running(tmp_path / "logs") as server:
        send(server, server.authority, None, "from nobody", tmp_path)
        send(server, server.authority, Authority.create("Log authority").client("guest"), "from a stranger", tmp_path)
        send(server, server.authority, server.client, "from a client", tmp_path)
        assert "host name: from a client" in server.wait_for("from a client", 10)
        assert not [line for line in server.lines() if "nobody" in line or "stranger" in line]


def listening(port: int) -> list[str]:
    """Return the addresses, as the kernel writes them, on which something listens at a port."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]


def test_services_listen_on_loopback_only_and_are_gone_afterwards(tmp_path: Path) -> None:
    with Registry.running(tmp_path / "registry") as registry, LogServer.running(tmp_path / "logs") as logs:
        for port in (registry.port, logs.port):
            assert listening(port) == ["0100007F"]
    for port in (registry.port, logs.port):
        assert listening(port) == []


def test_a_service_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from casemate.demo.services import LogServer\n"
        "with LogServer.running(Path(sys.argv[1])) as logs: print(logs.port, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "logs")], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    port = int(starter.stdout.readline())
    assert listening(port)
    starter.kill()
    starter.wait()
    end = time.monotonic() + 10
    while listening(port):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_an_image_made_again_has_the_same_digest(layout: Path, tmp_path: Path) -> None:
    again = images.build(images.BUSYBOX, cache=tmp_path)
    assert again.parent != layout.parent
    assert images.digest(again) == images.digest(layout)
    for blob in sorted((layout / "blobs/sha256").iterdir()):
        assert (again / "blobs/sha256" / blob.name).read_bytes() == blob.read_bytes()


def test_an_image_is_made_once(layout: Path) -> None:
    before = (layout / "index.json").stat().st_mtime_ns
    assert images.build(images.BUSYBOX) == layout
    assert (layout / "index.json").stat().st_mtime_ns == before


def test_the_image_holds_what_it_starts(layout: Path, tmp_path: Path) -> None:
    """skopeo reads the layout and checks each digest; the layer has a shell that runs."""
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"oci:{layout}", f"dir:{tmp_path / 'copied'}"], check=True, capture_output=True
    )
    manifest = json.loads((tmp_path / "copied/manifest.json").read_text())
    layer = tmp_path / "copied" / manifest["layers"][0]["digest"].removeprefix("sha256:")
    (tmp_path / "root").mkdir()
    subprocess.run(["tar", "-xzf", str(layer), "-C", str(tmp_path / "root")], check=True)
    shell = shutil.which("chroot")
    said = subprocess.run(
        [str(shell), str(tmp_path / "root"), "/bin/sh", "-c", "echo it runs; id -un"], capture_output=True, check=True
    )
    assert said.stdout == b"it runs\nroot\n"
