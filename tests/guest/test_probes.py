"""Probes by port and HTTP against real servers, also such as are slow, silent or hostile; and volumes given to a group."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from casemate.contract.workload import Probe
from casemate.guest.container import Asking, give

HOST = "127.0.0.1"
Serve = Callable[[socket.socket], None]


@contextmanager
def server(serve: Serve) -> Iterator[int]:
    """One connection after the other is given to ``serve``."""
    with socket.create_server((HOST, 0)) as listening:

        def run() -> None:
            with suppress(OSError):
                while True:
                    connection = listening.accept()[0]
                    with suppress(OSError), connection:
                        serve(connection)

        threading.Thread(target=run, daemon=True).start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)


def answers(line: bytes, seen: list[bytes] | None = None) -> Serve:
    def serve(connection: socket.socket) -> None:
        request = connection.recv(65536)
        if seen is not None:
            seen.append(request)
        connection.sendall(line)

    return serve


def asked(probe: Probe, timeout: float = 2.0) -> int:
    asking = Asking(lambda: HOST, probe, timeout)
    end = time.monotonic() + 10
    while (code := asking.poll()) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return code


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 0),
        (b"HTTP/1.0 204 No Content\r\n\r\n", 0),
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.2.2/\r\n\r\n", 0),  # as kubelet has it; nobody goes there
        (b"HTTP/1.1 404 Not Found\r\n\r\n", 1),
        (b"HTTP/1.1 503 Busy\r\n\r\n", 1),
        (b"HTTP/1.1 100 Continue\r\n\r\n", 1),
        (b"HTTP/1.1 2000 OK\r\n\r\n", 1),
        (b"SSH-2.0-OpenSSH\r\n", 1),
        (b"\xff" * 100_000, 1),
        (b"", 1),
    ],
)
def test_a_page_is_well_by_its_status(line: bytes, code: int) -> None:
    with server(answers(line)) as port:
        assert asked(Probe(port=port, path="/")) == code


def test_the_request_has_path_and_headers_and_no_header_twice() -> None:
    seen: list[bytes] = []
    with server(answers(b"HTTP/1.1 200 OK\r\n\r\n", seen)) as port:
        assert asked(Probe(port=port, path="/a?b", headers=(("host", "web"), ("X-A", "b c")))) == 0
    lines = seen[0].split(b"\r\n")
    assert lines[0] == b"GET /a?b HTTP/1.1" and b"host: web" in lines and b"X-A: b c" in lines
    assert sum(line.lower().startswith(b"host:") for line in lines) == 1


def test_a_port_is_well_when_it_takes_a_connection() -> None:
    with server(lambda connection: None) as port:
        assert asked(Probe(port=port)) == 0
    assert asked(Probe(port=port)) == 1


def test_a_server_that_is_silent_is_not_well_after_its_time() -> None:
    begun = time.monotonic()
    with server(lambda connection: time.sleep(20)) as port:
        assert asked(Probe(port=port, path="/"), timeout=0.3) == 1
    assert time.monotonic() - begun < 5


def test_a_server_that_drips_is_ended_with_the_question() -> None:
    def drip(connection: socket.socket) -> None:
        for _ in range(1000):
            connection.sendall(b"H")
            time.sleep(0.05)

    with server(drip) as port:
        asking = Asking(lambda: HOST, Probe(port=port, path="/"), 1.0)
        time.sleep(1.5)
        assert asking.poll() is None
        asking.kill()
        assert asking.wait() == 1 and asking.poll() == 1


# ------------------------------------------------------------------------------------------------- groups


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_directory_is_given_to_a_group_with_all_in_it_and_through_no_link(tmp_path: Path) -> None:
    top, other = tmp_path / "top", tmp_path / "other"
    (top / "below").mkdir(parents=True)
    other.mkdir()
    for path, mode in ((top / "below/file", 0o600), (top / "program", 0o755), (other / "file", 0o600)):
        path.write_text("x")
        path.chmod(mode)
    (top / "link").symlink_to(other / "file")
    (top / "directory").symlink_to(other)
    os.mkfifo(top / "pipe", 0o600)

    def state(path: Path) -> tuple[int, str]:
        found = path.lstat()
        return found.st_gid, oct(found.st_mode & 0o7777)

    def given(*, whole: bool) -> None:
        descriptor = os.open(top, os.O_PATH)
        give(descriptor, 1234, whole=whole)
        os.close(descriptor)

    given(whole=False)
    assert state(top) == state(top / "below") == (1234, "0o2775")
    assert state(top / "below/file") == (1234, "0o660") and state(top / "program") == (1234, "0o775")
    assert state(other / "file") == (0, "0o600") and state(other)[0] == 0 and state(top / "pipe") == (0, "0o600")
    (top / "new").write_text("x")
    os.chown(top / "new", 0, 0)
    given(whole=False)  # the top is the group's already
    assert state(top / "new")[0] == 0
    given(whole=True)
    assert state(top / "new")[0] == 1234
