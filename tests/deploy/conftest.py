"""A real libvirt for these tests: its daemon, for one user, in directories of its own, with QEMU's driver.

Where the tests are root's it is started in a user namespace, in which root is somebody else: so it is a session of one user, and
touches nothing of this host.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployments import CONTRACT, make_image

PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"))


@pytest.fixture(scope="session")
def socket() -> Iterator[Path]:
    """The socket of a running libvirt daemon."""
    daemon = shutil.which("libvirtd", path=PATH)
    drivers = list(Path("/usr/lib").glob("*/libvirt/connection-driver/libvirt_driver_qemu.so"))
    if daemon is None or not drivers or shutil.which("virsh") is None:
        pytest.skip("libvirt is not installed: casemate doctor --for tests --install")
    directory = Path(tempfile.mkdtemp(prefix="cm-lv-"))
    words = [daemon]
    if os.geteuid() == 0:
        words = [str(shutil.which("unshare")), "--user", "--map-user=1000", "--map-group=1000", daemon]
    programs = (
        directory / "bin"
    )  # all that it finds: it asks every QEMU of its path what it can do, and there are dozens
    programs.mkdir()
    for name in ("qemu-system-x86_64", "qemu-system-s390x", "qemu-img", "env"):
        if found := shutil.which(name, path=PATH):
            (programs / name).symlink_to(found)
    environment = {"PATH": str(programs), "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory), "LC_ALL": "C"}
    said = directory.with_name(f"{directory.name}.log")
    with said.open("wb") as log:
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
    try:
        path = directory / "libvirt/libvirt-sock"
        end = time.monotonic() + 30
        while subprocess.run(
            ["virsh", "-c", f"test+unix:///default?socket={path}", "uri"], capture_output=True
        ).returncode:
            assert process.poll() is None and time.monotonic() < end, said.read_text(errors="replace")
            time.sleep(0.1)
        yield path
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)
        said.unlink(missing_ok=True)


@pytest.fixture
def connection(socket: Path) -> Iterator[str]:
    """libvirt's test driver, which starts and stops domains of any kind without a machine; empty at first.

    Its domains live as long as somebody is connected: so one stays connected.
    """
    uri = f"test+unix:///default?socket={socket}"
    with subprocess.Popen(
        ["virsh", "-q", "-c", uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        try:
            holder.stdin.write("destroy test; undefine test; echo ready\n")
            holder.stdin.flush()
            while "ready" not in (line := holder.stdout.readline()):
                assert line
            yield uri
        finally:
            holder.stdin.close()


@pytest.fixture
def session(socket: Path) -> str:
    """libvirt's QEMU driver, of one user."""
    return f"qemu+unix:///session?socket={socket}"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a deployment file, with an amd64 image, an s390x image and a contract beside it."""
    make_image(tmp_path / "pc")
    make_image(tmp_path / "z", "s390x")
    (tmp_path / "contract.yaml").write_bytes(CONTRACT)

    def write(text: str, connection: str = "qemu:///session") -> Path:
        path = tmp_path / "deployment.yaml"
        path.write_text(f"connection: {connection}\ndirectory: made\n{text}")
        return path

    return write
