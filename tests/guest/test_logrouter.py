"""IBM Cloud Logs as the guest meets it: what is sent, and whatever a backend may answer."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.demo.logservers import CloudLogs, status
from casemate.demo.pki import Authority
from casemate.guest import conversation, logrouter, state
from casemate.guest import logging as guest_logging
from casemate.guest.conversation import Refused, read_token
from casemate.guest.logrouter import (
    LARGEST_LINE,
    LARGEST_TEXT,
    Entry,
    Lines,
    Router,
    Sender,
    batches,
    deliver,
    entry,
    lost,
)
from casemate.guest.report import Stop
from casemate.guest.start import start

HOST = "127.0.0.1"
KEY = "KEYMARK-0123456789"


def line(**fields: object) -> bytes:
    default = {"__CURSOR": "s=aa;i=1f;b=bb;m=1;t=2;x=3", "__REALTIME_TIMESTAMP": "1700000000123456", "MESSAGE": "m"}
    return json.dumps(default | fields).encode()


def sent(**fields: object) -> dict[str, object]:
    found = entry(line(**fields))
    assert found is not None
    value: dict[str, object] = json.loads(found.sent)
    return value


# ------------------------------------------------------------------------------------------------- what is sent


def test_an_entry_has_the_fields_of_the_interface() -> None:
    found = entry(line(SYSLOG_IDENTIFIER="hpl-image", PRIORITY="4", _HOSTNAME="vm"))
    assert found is not None
    assert (found.series, found.number, found.cursor) == ("aa", 31, "s=aa;i=1f;b=bb;m=1;t=2;x=3")
    assert json.loads(found.sent) == {
        **{"applicationName": "casemate", "subsystemName": "hpl-image", "computerName": "vm", "severity": 4},
        **{"timestamp": 1700000000123.456, "text": "m"},
    }


def test_an_entry_of_a_container_has_its_name_its_image_and_its_identifier() -> None:
    value = sent(CONTAINER_NAME="app", CONTAINER_TAG="r/app@sha256:0", CONTAINER_ID="0123", PRIORITY="3")
    names = ("applicationName", "subsystemName", "category", "threadId", "severity")
    assert [value[name] for name in names] == ["container", "app", "r/app@sha256:0", "0123", 5]


@pytest.mark.parametrize(("level", "severity"), [("0", 6), ("2", 6), ("3", 5), ("4", 4), ("6", 3), ("7", 1), ("x", 3)])
def test_levels_are_kept(level: str, severity: int) -> None:
    assert sent(PRIORITY=level)["severity"] == severity


def test_bytes_and_several_values_are_read_and_control_characters_replaced() -> None:
    assert sent(MESSAGE=list(b"a\x07\xff"))["text"] == "a��"
    assert sent(MESSAGE=["first", "second"])["text"] == "first"
    assert sent(MESSAGE="a\nforged\tb")["text"] == "a�forged\tb"
    assert sent(MESSAGE=None)["text"] == ""
    assert len(str(sent(MESSAGE="x" * 99999)["text"])) == LARGEST_TEXT


@given(
    st.binary(max_size=400)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_whatever_a_line_is_it_is_read_or_left_out(data: bytes) -> None:
    assert entry(data) is None


@given(
    st.dictionaries(
        st.sampled_from(["MESSAGE", "PRIORITY", "CONTAINER_NAME", "SYSLOG_IDENTIFIER", "_HOSTNAME", "CONTAINER_TAG"]),
        st.recursive(st.none() | st.text() | st.integers() | st.booleans(), lambda inner: st.lists(inner, max_size=4)),
    )
)
def test_whatever_the_fields_of_an_entry_are_it_is_one_json_object(fields: dict[str, object]) -> None:
    value = sent(**fields)
    assert {"applicationName", "subsystemName", "severity", "text"} <= set(value)
    assert 1 <= int(str(value["severity"])) <= 6


@given(st.binary(max_size=300))
def test_whatever_the_answer_to_a_request_for_a_token_is_it_is_one_or_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        read_token(data)


def test_a_token_that_would_end_a_header_is_refused() -> None:
    assert read_token(b'{"access_token": "abc", "expires_in": 1200}') == ("abc", 1200.0)
    for access in ("a\\r\\nHost: other", "", "a b", "x" * 20000):
        with pytest.raises(Refused):
            read_token(f'{{"access_token": "{access}", "expires_in": 3600}}'.encode())


def numbered(number: int, series: str = "s") -> Entry:
    return Entry("c", series, number, b"{}")


def test_what_the_journal_dropped_is_counted_within_one_series() -> None:
    assert lost(None, numbered(9)) == lost(numbered(8), numbered(9)) == lost(numbered(8, "other"), numbered(99)) == 0
    assert lost(numbered(8), numbered(12)) == 3


@given(st.lists(st.binary(max_size=30).filter(lambda each: b"\n" not in each), max_size=20))
def test_lines_come_out_of_a_pipe_as_they_went_in(lines: list[bytes]) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"".join(each + b"\n" for each in lines) + b"without an end")
        os.close(writing)
        found = Lines(reading)
        assert [found.next() for _ in lines] == lines
        assert found.next() is None
    finally:
        os.close(reading)


def test_a_line_without_end_takes_no_more_memory_than_one_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"x" * (5 * LARGEST_LINE) + b"\n" + line() + b"\n")
    with path.open("rb", buffering=0) as file:
        lines = Lines(file.fileno())
        [(batch, last)] = list(batches_to_the_end(lines))
    assert last is not None and last.number == 31
    assert b"a line was lost" in batch[0] and len(batch) == 2


def batches_to_the_end(lines: Lines) -> Iterator[tuple[list[bytes], Entry | None]]:
    """A file is always ready, so a batch is complete at its end only where there is a line more."""
    lines.ready = lambda seconds: lines._held != b""  # type: ignore[method-assign]
    return batches(lines)


def test_lines_that_come_one_by_one_are_gathered_but_not_for_long() -> None:
    reading, writing = os.pipe()

    def trickle() -> None:
        for _ in range(40):
            os.write(writing, line() + b"\n")
            time.sleep(0.05)
        os.close(writing)

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        sizes = [len(batch) for batch, _ in batches(Lines(reading))]
    finally:
        thread.join()
        os.close(reading)
    assert 1 <= len(sizes) <= 4 and max(sizes) < 30  # what is gathered when the journal ends is read again


# ------------------------------------------------------------------------------------------------- what is answered


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("Log authority")


@pytest.fixture
def logs(tmp_path: Path, authority: Authority) -> Iterator[CloudLogs]:
    with CloudLogs.running(tmp_path / "logs", authority, KEY, names=(HOST,)) as logs:
        yield logs


@pytest.fixture
def router(tmp_path: Path, authority: Authority, logs: CloudLogs) -> Router:
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    return Router(HOST, logs.port, KEY, str(tmp_path / "ca.pem"), (HOST, logs.port))


def delivered(router: Router, *texts: str) -> list[float]:
    """Deliver; return the pauses, which are not waited for."""
    pauses: list[float] = []
    deliver(Sender(router).send, [json.dumps({"text": text}).encode() for text in texts], pauses.append)
    return pauses


def texts(logs: CloudLogs) -> list[str]:
    return [entry["text"] for entry in logs.entries]


@pytest.mark.components
def test_one_token_serves_many_batches_and_is_renewed_in_time(router: Router, logs: CloudLogs) -> None:
    sender = Sender(router)
    for _ in range(3):
        sender.send([b'{"text": "x"}'])
    assert logs.requests == ["/identity/token"] + ["/logs/v1/singles"] * 3
    sender._until = 0.0
    sender.send([b'{"text": "x"}'])
    assert logs.requests[-2:] == ["/identity/token", "/logs/v1/singles"]


@pytest.mark.components
def test_a_token_that_is_refused_is_replaced(router: Router, logs: CloudLogs) -> None:
    sender = Sender(router)
    sender.send([b'{"text": "a"}'])
    logs.tokens.clear()
    deliver(sender.send, [b'{"text": "b"}'], lambda pause: None)
    assert texts(logs) == ["a", "b"] and logs.requests.count("/identity/token") == 2


@pytest.mark.components
def test_a_backend_in_trouble_is_asked_again_ever_more_rarely(
    router: Router, logs: CloudLogs, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.answers.extend([status(500)] * 8)
    assert delivered(router, "late") == [1, 2, 4, 8, 16, 32, 60, 60]
    assert texts(logs) == ["late"]
    said = capsys.readouterr().err
    assert said.count("HPL01013W") == said.count("HPL01014I") == 1 and KEY not in said


@pytest.mark.components
def test_who_asks_for_a_pause_gets_it_within_reason(router: Router, logs: CloudLogs) -> None:
    logs.answers.extend([status(429, Retry_After=text) for text in ("7", "999999999", "-1", "Wed, 21 Oct 2026")])
    assert delivered(router, "late") == [7, 300, 4, 8]


@pytest.mark.components
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(
    router: Router, logs: CloudLogs, tmp_path: Path, authority: Authority, code: int
) -> None:
    with CloudLogs.running(tmp_path / "other", authority, KEY, names=(HOST,)) as other:
        logs.answers.append(status(code, Location=f"https://{HOST}:{other.port}/logs/v1/singles"))
        logs.token_answer = None
        assert delivered(router, "x") == [1]
        logs.token_answer = status(code, Location=f"https://{HOST}:{other.port}/identity/token")
        with pytest.raises(Refused, match=f"answers {code}"):
            logrouter.token(router)
        assert other.requests == [] and texts(logs) == ["x"]


@pytest.mark.components
def test_a_line_that_the_backend_never_takes_is_left_out_and_the_others_arrive(
    router: Router, logs: CloudLogs, capsys: pytest.CaptureFixture[str]
) -> None:
    send = Sender(router).send

    def picky(entries: list[bytes]) -> None:
        if any(b"poison" in each for each in entries):
            raise Refused(400, "it answers 400")
        send(entries)

    deliver(picky, [json.dumps({"text": text}).encode() for text in ("a", "b", "poison", "c", "d")], time.sleep)
    assert texts(logs) == ["a", "b", "c", "d"]
    assert "HPL01012W: a line was lost" in capsys.readouterr().err


@pytest.mark.components
def test_answers_without_end_are_left(router: Router, logs: CloudLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "CONVERSATION", 1.5)

    def endless_body(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b" " * 65536)

    def endless_headers(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            request.wfile.write(b"X-More: more\r\n")

    def drop_by_drop(request: http.server.BaseHTTPRequestHandler) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50:
            request.wfile.write(bytes([byte]))
            time.sleep(0.2)

    def nonsense(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"\0\xff" * 100 + b"\r\n\r\n")

    def nothing(request: http.server.BaseHTTPRequestHandler) -> None:
        request.connection.shutdown(socket.SHUT_RDWR)

    def silence(request: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(3)

    start = time.monotonic()
    logs.answers.extend([endless_headers, drop_by_drop, nonsense, nothing, silence])
    assert delivered(router, "x") == [1, 2, 4, 8, 16]
    logs.answers.append(endless_body)
    assert delivered(router, "y") == []  # its status was good, and the rest is not read
    logs.token_answer = endless_body
    with pytest.raises(Refused):
        logrouter.token(router)
    assert time.monotonic() - start < 15


@pytest.mark.components
def test_an_impostor_hears_neither_key_nor_line(router: Router, tmp_path: Path) -> None:
    with CloudLogs.running(tmp_path / "other", Authority.create("Log authority"), KEY, names=(HOST,)) as other:
        false = Router(HOST, other.port, KEY, router.authorities, (HOST, other.port))
        with pytest.raises(Stop, match=r"HPL01011E.*no access token.*it is not 127.0.0.1") as stop:
            logrouter.probe(false)
        assert other.requests == [] and KEY not in str(stop.value) + repr(false)


@pytest.mark.components
def test_a_key_that_iam_does_not_know_stops_the_start(router: Router, logs: CloudLogs) -> None:
    wrong = Router(HOST, logs.port, "wrong-key", router.authorities, (HOST, logs.port))
    with pytest.raises(Stop, match=r"HPL01011E.*no access token from 127.0.0.1: it answers 400") as stop:
        logrouter.probe(wrong)
    assert "wrong-key" not in str(stop.value)


def test_private_backends_ask_the_private_iam() -> None:
    assert logrouter.iam_of("id.ingress.eu-es.logs.cloud.ibm.com") == "iam.cloud.ibm.com"
    assert logrouter.iam_of("id.ingress.private.eu-es.logs.cloud.ibm.com") == "private.iam.cloud.ibm.com"


@pytest.mark.components
def test_the_service_leaves_the_key_in_a_file_for_root_only(
    guest: Path, monkeypatch: pytest.MonkeyPatch, router: Router, logs: CloudLogs, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = guest / "run/casemate/logging"
    monkeypatch.setattr(guest_logging, "DIRECTORY", directory)
    monkeypatch.setattr(guest_logging, "ROOTS", Path(router.authorities))
    monkeypatch.setattr(logrouter, "iam_of", lambda host: host)  # IAM is where a test can't be: beside the backend
    monkeypatch.setattr(logrouter, "IAM_PORT", logs.port)
    given = {"hostname": HOST, "port": logs.port, "iamApiKey": KEY}
    state.write_json(state.SECTIONS / "env.json", {"type": "env", "logging": {"logRouter": given}})
    guest_logging.service()
    assert KEY in (directory / "logrouter.json").read_text()
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.iterdir())
    assert texts(logs) == ["HPL01010I: logging begins"]
    said = capsys.readouterr().err
    assert "HPL01010I" in said and KEY not in said


def test_a_sender_that_fails_as_nobody_foresaw_says_so_without_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logrouter, "DIRECTORY", tmp_path)
    (tmp_path / "logrouter.json").write_text(f'{{"host": "{HOST}", "key": "{KEY}"}}')
    assert start("logrouter") == 1
    said = capsys.readouterr().err
    assert "HPL01015E: unexpected KeyError at service:" in said and KEY not in said
