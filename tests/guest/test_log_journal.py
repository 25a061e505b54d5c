"""The journal as the queue: a real journald with the guest's settings, and what sends it to backends that come and go.

journald runs in a mount namespace of its own, with empty ``/run`` and ``/var/log``; so do rsyslog and the shipper.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from casemate.demo.logservers import CloudLogs, SyslogServer
from casemate.demo.pki import Authority
from casemate.demo.services import free_port
from casemate.guest import logloss
from casemate.guest.logging import configuration

pytestmark = pytest.mark.components
HOST = "127.0.0.1"
SETTINGS = Path(__file__).parents[2] / "src/casemate/guest/files/etc/systemd/journald.conf.d/casemate.conf"
PROGRAM = """
import json, sys
from pathlib import Path
from casemate.guest import logrouter
given = json.loads(sys.stdin.read())
router = logrouter.Router(given["host"], given["port"], given["key"], given["ca"], ("127.0.0.1", given["port"]))
logrouter.LONGEST_PAUSE = 1.0
logrouter.forward(logrouter.Sender(router).send, Path(given["cursor"]))
"""


@dataclass(frozen=True)
class Journal:
    process: subprocess.Popen[bytes]
    directory: Path

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.process.pid}", "--mount", "--root", *command]

    def say(self, lines: Sequence[str], name: str = "count") -> None:
        text = "".join(f"{line}\n" for line in lines).encode()
        subprocess.run(self.inside("systemd-cat", "-t", name), input=text, check=True, timeout=60)

    def native(self, **fields: str) -> None:
        """Write one entry as the engine's monitor does for a container's line."""
        text = "".join(f"{name}={value}\n" for name, value in fields.items()).encode()
        subprocess.run(self.inside("logger", "--journald"), input=text, check=True, timeout=60)


@contextmanager
def journald(directory: Path, most: str = "64M") -> Iterator[Journal]:
    (directory / "log").mkdir()
    text = SETTINGS.read_text()
    assert "SystemMaxUse=64M" in text
    (directory / "journald.conf").write_text(
        text.replace("SystemMaxUse=64M", f"SystemMaxUse={most}").replace("ReadKMsg=yes", "ReadKMsg=no")
    )
    script = f"""
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && touch /run/systemd/journal/flushed
mount --bind {directory}/log /var/log && mount --bind {directory}/journald.conf /etc/systemd/journald.conf
exec /lib/systemd/systemd-journald
"""
    process = subprocess.Popen(["unshare", "--mount", "sh", "-ec", script], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if list(directory.glob("log/journal/*/system.journal")):
                break
            time.sleep(0.05)
        yield Journal(process, directory)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def running(command: list[str], said: Path, stdin: str = "") -> Iterator[subprocess.Popen[bytes]]:
    with said.open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file)
    assert process.stdin is not None
    process.stdin.write(stdin.encode())
    process.stdin.close()
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()


@contextmanager
def rsyslog(journal: Journal, authority: Authority, port: int) -> Iterator[subprocess.Popen[bytes]]:
    guest = journal.directory / "guest"
    guest.mkdir(exist_ok=True)
    (guest / "server.pem").write_bytes(authority.certificate)
    (guest / "rsyslog.conf").write_text(configuration(HOST, port, str(guest)))
    command = journal.inside("/usr/sbin/rsyslogd", "-n", "-i", "NONE", "-f", str(guest / "rsyslog.conf"))
    with running(command, guest / "said") as process:
        yield process


def numbers(lines: Sequence[bytes]) -> list[int]:
    return [int(found[1]) for line in lines if (found := re.search(rb"count-(\d+)-", line))]


def counted(first: int, last: int) -> list[str]:
    return [f"count-{number}- {'x' * 60}" for number in range(first, last + 1)]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("Log authority")


def test_what_is_logged_while_the_backend_is_away_arrives_later_in_order(tmp_path: Path, authority: Authority) -> None:
    port = free_port()
    with journald(tmp_path) as journal, rsyslog(journal, authority, port) as process:
        with SyslogServer.running(tmp_path / "one", authority, names=(HOST,), port=port) as one:
            journal.say(counted(1, 2000))
            one.wait_for("count-2000-")
        journal.say(counted(2001, 9000))
        time.sleep(2)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) < 48 << 10  # lines wait in the journal, not in memory
        with SyslogServer.running(tmp_path / "two", authority, names=(HOST,), port=port) as two:
            two.wait_for("count-9000-", 40)
    assert numbers(one.frames) + numbers(two.frames) == list(range(1, 9001))


def test_a_backend_that_reads_slowly_gets_every_line_and_stops_nobody(tmp_path: Path, authority: Authority) -> None:
    with (
        SyslogServer.running(tmp_path / "logs", authority, names=(HOST,)) as logs,
        journald(tmp_path) as journal,
        rsyslog(journal, authority, logs.port),
    ):
        logs.pause = 0.2
        start = time.monotonic()
        journal.say(counted(1, 20000))
        assert time.monotonic() - start < 15
        time.sleep(1)
        assert len(numbers(logs.frames)) < 20000
        logs.pause = 0.0
        logs.wait_for("count-20000-", 60)
    assert numbers(logs.frames) == list(range(1, 20001))


def test_beyond_the_bound_the_oldest_lines_go_and_what_is_left_keeps_its_order(
    tmp_path: Path, authority: Authority
) -> None:
    port = free_port()
    with journald(tmp_path, "8M") as journal, rsyslog(journal, authority, port):
        journal.say(counted(1, 40000))
        used = sum(path.stat().st_blocks * 512 for path in tmp_path.glob("log/journal/*/*"))
        assert used < 10 << 20
        with SyslogServer.running(tmp_path / "logs", authority, names=(HOST,), port=port) as logs:
            logs.wait_for("count-40000-", 60)
    found = numbers(logs.frames)
    assert found == sorted(set(found)) and found[-1] == 40000
    assert found[-5000:] == list(range(35001, 40001))  # the newest are never lost


def test_what_rsyslog_found_dropped_is_counted_and_told_once(
    tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.guest.logging.INTERVAL", 1)
    monkeypatch.setattr("casemate.guest.logloss.INTERVAL", 1)
    monkeypatch.setattr("casemate.guest.logloss.PATIENCE", 5.0)
    port = free_port()
    with journald(tmp_path, "8M") as journal, rsyslog(journal, authority, port):

        def look() -> str:
            time.sleep(1.5)
            logloss.look(tmp_path / "log/journal", tmp_path / "guest")
            return capsys.readouterr().err

        journal.say(counted(1, 500))
        with SyslogServer.running(tmp_path / "one", authority, names=(HOST,), port=port) as one:
            one.wait_for("count-500-")
            assert look() == "" and (tmp_path / "guest/loss.json").exists()
        journal.say(counted(501, 40000))
        assert look() == ""  # nobody can say yet: lines wait
        with SyslogServer.running(tmp_path / "two", authority, names=(HOST,), port=port) as two:
            two.wait_for("count-40000-", 60)
            said = look()
            assert (tmp_path / "guest/statistics").stat().st_size < 4096
            journal.say(counted(40001, 40100))
            two.wait_for("count-40100-", 60)
            assert look() == ""
    found = numbers(one.frames) + numbers(two.frames)
    assert (
        int(re.findall(r"HPL01012W: (\d+) lines were lost: the journal was full", said)[0]) == 40100 - len(found) > 1000
    )


def test_a_line_of_a_container_has_its_name_its_identifier_its_image_and_its_level(
    tmp_path: Path, authority: Authority
) -> None:
    with (
        SyslogServer.running(tmp_path / "logs", authority, names=(HOST,)) as logs,
        journald(tmp_path) as journal,
        rsyslog(journal, authority, logs.port),
    ):
        container = {"CONTAINER_NAME": "app-1", "CONTAINER_ID": "0123456789ab"}
        image = "10.0.2.2:5000/busybox@sha256:" + "0" * 64
        journal.native(MESSAGE="to stderr", PRIORITY="3", CONTAINER_TAG=image, **container)
        journal.native(MESSAGE="with a bell \a and ümlauts", PRIORITY="6", CONTAINER_TAG='x"] forged', **container)
        journal.native(MESSAGE="of nobody", PRIORITY="6", CONTAINER_NAME='x y"]', CONTAINER_ID="0123456789ab")
        journal.say(["x" * 40000 + "END", "the line after it"])
        error = logs.wait_for("to stderr").decode()
        assert re.match(rf'<11>1 \S+ \S+ container/app-1 0123456789ab - \[container@32473 image="{image}"\] to', error)
        assert b"- - with a bell #007 and \xc3\xbcmlauts" in logs.wait_for("with a bell")
        assert b" logger - - - of nobody" in logs.wait_for("of nobody")
        logs.wait_for("the line after it")
        assert 16000 < len(logs.wait_for("xxxx")) < 16500
        assert all(b"\n" not in frame.rstrip(b"\n") for frame in logs.frames)


# ------------------------------------------------------------------------------------------------- IBM Cloud Logs


@contextmanager
def shipper(journal: Journal, authority: Authority, port: int, key: str) -> Iterator[subprocess.Popen[bytes]]:
    ca = journal.directory / "ca.pem"
    ca.write_bytes(authority.certificate)
    given = {"host": HOST, "port": port, "key": key, "ca": str(ca), "cursor": str(journal.directory / "cursor")}
    command = journal.inside(sys.executable, "-c", PROGRAM)
    with running(command, journal.directory / "said", json.dumps(given)) as process:
        yield process


def test_the_journal_reaches_cloud_logs_also_after_it_was_away_and_the_shipper_was_killed(
    tmp_path: Path, authority: Authority
) -> None:
    port = free_port()
    with journald(tmp_path) as journal, ExitStack() as stack:
        with CloudLogs.running(tmp_path / "one", authority, "KEYMARK", port=port, names=(HOST,)) as one:
            first = stack.enter_context(shipper(journal, authority, port, "KEYMARK"))
            journal.say(counted(1, 2000))
            one.wait_for("count-2000-")
        journal.say(counted(2001, 5000))
        time.sleep(4)
        first.kill()
        first.wait()
        with CloudLogs.running(tmp_path / "two", authority, "KEYMARK", port=port, names=(HOST,)) as two:
            second = stack.enter_context(shipper(journal, authority, port, "KEYMARK"))
            two.wait_for("count-5000-", 60)
            status = Path(f"/proc/{second.pid}/status").read_text()
        arrived = [*one.entries, *two.entries]
        found = numbers([entry["text"].encode() for entry in arrived])
        assert sorted(set(found)) == list(range(1, 5001))
        assert found == sorted(found)  # whoever is killed may send a batch again, in its place
        assert not [entry for entry in arrived if "lost" in entry["text"]]
        assert int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) < 64 << 10
        assert "KEYMARK" not in (tmp_path / "said").read_text() + " ".join(second.args)  # type: ignore[arg-type]
        assert "HPL01013W" in (tmp_path / "said").read_text()


def test_what_the_journal_had_to_drop_is_counted_and_told(tmp_path: Path, authority: Authority) -> None:
    port = free_port()
    with journald(tmp_path, "8M") as journal, shipper(journal, authority, port, "k"):
        journal.say(counted(1, 40000))
        with CloudLogs.running(tmp_path / "logs", authority, "k", port=port, names=(HOST,)) as logs:
            logs.wait_for("count-40000-", 60)

            def lost() -> tuple[int, list[int]]:
                texts = [entry["text"] for entry in list(logs.entries)]
                told = [int(m[1]) for text in texts if (m := re.search(r"(\d+) lines were lost", text))]
                return sum(told), numbers([text.encode() for text in texts])

            end = time.monotonic() + 30  # what was dropped last may be told last
            while lost()[0] != 40000 - len(lost()[1]) and time.monotonic() < end:
                time.sleep(0.2)
    told, found = lost()
    assert found == sorted(set(found))
    assert told == 40000 - len(found) > 1000
