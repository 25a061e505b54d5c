"""A real libvirt for these tests, and deployment files for it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon import libvirtd
from deployments import CONTRACT, make_image


@pytest.fixture(scope="session")
def socket() -> Iterator[Path]:
    """The socket of a running libvirt daemon."""
    with libvirtd() as path:
        yield path


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
