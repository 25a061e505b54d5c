"""Anchors: a volume that was put back is refused, nobody else is, whatever is cut, replayed or impersonated. Real TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.contract.anchors import Anchor, problem, read_anchor, read_statement, statement
from casemate.contract.archive import write_archive
from casemate.contract.check import check_sections
from casemate.contract.errors import AnchorError
from casemate.demo.anchor import AnchorServer, main
from casemate.demo.pki import Authority
from casemate.guest import anchor, contract, state, storage
from casemate.guest.anchor import AwayError, after, before, raised
from casemate.guest.filesystems import generation
from casemate.guest.report import Stop
from casemate.guest.volumes import Plan

pytestmark = pytest.mark.components

PLAN = Plan("data", "vdb", 1 << 30, 1, 1 << 29, 1 << 28, "btrfs", "/mnt/data", [])
MADE = Plan("data", "vdb", 1 << 30, 1, 1 << 29, 1 << 28, "btrfs", "/mnt/data", [], make=True)
SERVERS, CLIENTS, STRANGERS = (Authority.create(name) for name in ("Servers", "Clients", "Strangers"))
CLIENT = CLIENTS.client("machine")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "RUN", tmp_path / "run")
    monkeypatch.setattr(state, "ANCHORS", tmp_path / "run/anchors.json")
    monkeypatch.setattr(anchor, "PATIENCE", 0.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AnchorServer]:
    with AnchorServer.running(tmp_path / "anchor", SERVERS, CLIENTS.certificate) as running:
        yield running


def named(server: AnchorServer, name: str = "data") -> Anchor:
    return read_anchor(server.entry(name, CLIENT))


def test_a_number_is_raised_and_never_lowered_and_outlives_the_service(server: AnchorServer, tmp_path: Path) -> None:
    assert [raised(named(server), least) for least in (0, 7, 3, 0, 9)] == [None, 7, 7, 7, 9]
    assert raised(named(server, "other"), 0) is None
    with AnchorServer.running(tmp_path / "anchor", SERVERS, CLIENTS.certificate) as again:
        assert raised(named(again), 0) == 9
        assert again.public_key == server.public_key
    assert not list(state.RUN.glob("*.pem"))  # the client's key was there for a moment


def test_a_volume_that_was_put_back_stops(server: AnchorServer, capfd: pytest.CaptureFixture[str]) -> None:
    before(MADE, named(server))
    after(MADE, named(server), lambda plan: 10)
    before(PLAN, named(server), lambda plan: 12)  # a power cut before the anchor was raised
    after(PLAN, named(server), lambda plan: 13)
    for older in (10, 12):
        with pytest.raises(Stop) as stop:
            before(PLAN, named(server), lambda plan, older=older: older)  # type: ignore[misc]
        assert (stop.value.id, "put back" in stop.value.detail) == ("HPL07022E", True)
    before(PLAN, named(server), lambda plan: 13)
    assert "HPL07024W" not in capfd.readouterr().err


def test_an_empty_disk_in_the_place_of_a_volume_stops(server: AnchorServer) -> None:
    after(MADE, named(server), lambda plan: 10)
    with pytest.raises(Stop) as stop:
        before(MADE, named(server))
    assert (stop.value.id, "the disk is empty" in stop.value.detail) == ("HPL07022E", True)
    server.forget("data")
    before(MADE, named(server))


def test_a_volume_from_before_there_was_an_anchor_is_taken_and_told_of(
    server: AnchorServer, capfd: pytest.CaptureFixture[str]
) -> None:
    before(PLAN, named(server), lambda plan: 12)
    assert "HPL07024W" in capfd.readouterr().err
    after(PLAN, named(server), lambda plan: 12)
    assert server.numbers == {"data": 12}


def test_no_disk_is_written_to_where_any_volume_was_put_back(
    server: AnchorServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    volumes, written = [replace(PLAN, name="first"), PLAN, replace(MADE, name="new")], list[str]()
    state.write_json(state.ANCHORS, {plan.name: server.entry(plan.name, CLIENT) for plan in volumes})
    server.numbers |= {"first": 3, "data": 7}
    monkeypatch.setattr(storage, "plans", lambda: volumes)
    monkeypatch.setattr(storage, "carry_out", lambda plan: written.append(plan.name))
    monkeypatch.setattr(before, "__defaults__", (lambda plan: 6,))
    monkeypatch.setattr(after, "__defaults__", (lambda plan: 8,))
    with pytest.raises(Stop, match="HPL07022E: volume data"):
        storage.service()
    assert written == [] and server.numbers == {"first": 3, "data": 7}
    monkeypatch.setattr(before, "__defaults__", (lambda plan: 7,))
    storage.service()
    assert written == ["first", "data", "new"] and server.numbers == {"first": 8, "data": 8, "new": 8}
    assert capfd.readouterr().err.count("HPL07025I") == 3


def test_a_copy_that_runs_elsewhere_is_found(server: AnchorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines on copies of a disk: the one that is behind stops when it comes to raise the anchor."""
    monkeypatch.setattr(anchor, "committed", lambda plan: 20)
    assert anchor.raise_all({"data": named(server)}, [PLAN], set()) == set()
    raised(named(server), 30)
    with pytest.raises(Stop, match="HPL07022E: volume data: another machine uses a copy of it"):
        anchor.raise_all({"data": named(server)}, [PLAN], set())


def test_an_anchor_that_is_away_stops_a_start_and_is_told_of_once_later(
    server: AnchorServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server.away = True
    for way in (
        lambda: before(PLAN, named(server), lambda plan: 1),
        lambda: after(PLAN, named(server), lambda plan: 1),
    ):
        with pytest.raises(Stop, match="HPL07023E"):
            way()
    monkeypatch.setattr(anchor, "committed", lambda plan: 20)
    away = anchor.raise_all({"data": named(server)}, [PLAN], set())
    assert anchor.raise_all({"data": named(server)}, [PLAN], away) == away == {"data"}
    assert capfd.readouterr().err.count("HPL07026W") == 1
    server.away = False
    assert anchor.raise_all({"data": named(server)}, [PLAN], away) == set()
    assert server.numbers == {"data": 20}


def test_a_client_of_somebody_else_is_no_client(server: AnchorServer) -> None:
    raised(named(server), 5)
    with pytest.raises(AwayError):
        raised(read_anchor(server.entry("data", STRANGERS.client("machine"))), 0)
    assert server.numbers == {"data": 5}


def test_an_impostor_of_the_anchor_is_not_believed(server: AnchorServer, tmp_path: Path) -> None:
    true = named(server)
    with AnchorServer.running(tmp_path / "false", STRANGERS, CLIENTS.certificate) as false:
        with pytest.raises(AwayError, match="it is not 127"):  # another authority's certificate
            raised(Anchor("data", true.host, false.port, true.public_key, true.ca, true.cert, true.key), 0)
        with pytest.raises(AwayError, match="not signed by it"):  # even where the authority was lent
            raised(Anchor("data", true.host, false.port, true.public_key, false.ca, true.cert, true.key), 0)


def test_a_statement_is_for_one_question_only(server: AnchorServer) -> None:
    true, nonce = named(server), "ab" * 32
    text = statement("data", nonce, 5)
    assert read_statement(text, server.key.sign(text), true, nonce) == 5
    none = statement("data", nonce, None)
    assert read_statement(none, server.key.sign(none), true, nonce) is None
    for wrong in (
        statement("data", "cd" * 32, 5),  # replayed
        statement("other", nonce, 5),
        text + b"\n",
        text.replace(b"5", b"-5"),
        text.replace(b"5", b"0"),
        b"",
    ):
        with pytest.raises(AnchorError):
            read_statement(wrong, server.key.sign(wrong), true, nonce)
    with pytest.raises(AnchorError, match="not signed"):
        read_statement(text.replace(b"5", b"4"), server.key.sign(text), true, nonce)


@given(st.binary(max_size=200), st.binary(max_size=80))
def test_no_bytes_of_an_anchor_are_believed_without_its_signature(text: bytes, signature: bytes) -> None:
    made = Anchor("data", "x", 1, KEY, b"", b"", b"")
    with pytest.raises(AnchorError):
        read_statement(text, signature, made, "ab" * 32)


def _public() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


KEY = _public()
STEPS = st.lists(
    st.sampled_from(["start", "commit", "raise", "lose the answer", "cut", "snapshot", "put back"]), max_size=60
)


@settings(max_examples=500, deadline=None)
@given(STEPS)
def test_no_interleaving_locks_out_who_is_honest_and_none_hides_a_disk_that_was_put_back(steps: list[str]) -> None:
    """The disk's number, the anchor's, what the machine read before it raises, and cuts between any two of these steps."""
    disk, anchored, read = 1, None, None
    running, stopped, snapshots, made_older = False, False, [], False
    for step in steps:
        if step == "start" and not running:
            refused = problem(False, disk, anchored)
            assert bool(refused) == (anchored is not None and disk < anchored)
            assert not refused or made_older  # an honest disk is never refused
            stopped = bool(refused)
            running, read = not stopped, None
        elif step == "commit" and running:
            disk += 1
        elif step in ("raise", "lose the answer") and running:
            if read is None:
                read = disk  # written out, and read: the disk has this number for good
                continue
            anchored = max(anchored or 0, read)
            if step == "raise" and problem(False, disk, anchored):
                assert made_older
                running = False
            read = None
        elif step == "cut":
            running, read = False, None
        elif step == "snapshot":
            snapshots.append(disk)
        elif step == "put back" and not running and snapshots:
            made_older = made_older or snapshots[0] < disk
            disk = snapshots[0]
    if anchored is not None and not made_older:
        assert disk >= anchored


def test_the_generation_is_read_from_a_superblock_and_from_nothing_else() -> None:
    """That of a real one: ``tests/machine/test_authenticated.py``."""
    block = bytes(0x40) + b"_BHRfS_M" + (9).to_bytes(8, "little")
    assert generation(block.ljust(4096, b"\0")) == 9
    assert generation(bytes(4096)) is None


# ------------------------------------------------------------------------------------------------- the contract


def sections(server: AnchorServer, **volume: object) -> tuple[dict[str, object], dict[str, object]]:
    seed = "s" * 20
    entry = server.entry("data", CLIENT)
    packed = write_archive({"compose.yaml": f"services: {{a: {{image: 'a@sha256:{'0' * 64}'}}}}".encode()})
    workload = {"type": "workload", "compose": {"archive": packed}, "volumes": {"data": {"seed": seed, **volume}}}
    env = {
        "type": "env",
        "logging": {"logRouter": {"hostname": "logs.example.com", "iamApiKey": "x"}},
        "volumes": {"data": {"seed": seed, "anchor": entry}},
    }
    return workload, env


def test_a_contract_with_an_anchor_is_understood_and_its_key_goes_to_the_services_alone(server: AnchorServer) -> None:
    workload, env = sections(server, filesystem="btrfs", integrity="hmac-sha256")
    assert check_sections(workload, env) == []
    assert "PRIVATE KEY" not in str(contract.shown(workload, env))
    taken = contract.take_anchors(env)
    assert taken["data"]["key"].startswith("-----BEGIN PRIVATE KEY") and "anchor" not in str(env)
    state.write_json(state.ANCHORS, taken)
    assert anchor.load() == {"data": named(server)}


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_only_btrfs_has_an_anchor(server: AnchorServer, filesystem: str) -> None:
    (found,) = check_sections(*sections(server, filesystem=filesystem))
    assert found.place == "env.volumes.data.anchor" and "needs a volume with filesystem: btrfs" in found.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "http://anchor.example.com/data"),
        ("url", "https://anchor.example.com/"),
        ("url", "https://anchor.example.com:99999/data"),
        ("url", "https://user@anchor.example.com/data"),
        ("publicKey", "x"),
        ("cert", KEY.decode()),
        ("key", KEY.decode()),
        ("ca", ""),
        ("extra", "surplus"),
        ("key", None),
    ],
)
def test_an_anchor_that_is_not_understood_is_refused_without_a_value(
    server: AnchorServer, key: str, value: str | None
) -> None:
    workload, env = sections(server, filesystem="btrfs")
    env["volumes"]["data"]["anchor"][key] = value  # type: ignore[index]
    found = check_sections(workload, env)
    assert ("env.volumes.data.anchor", "HPL07001E") in [(each.place, each.id) for each in found]
    assert not value or not any(value in each.text for each in found)


@pytest.mark.parametrize("value", ["crc32c", "", None, True, "HMAC-SHA256"])
def test_only_the_one_kind_of_integrity_is_understood(server: AnchorServer, value: object) -> None:
    (found,) = check_sections(*sections(server, filesystem="btrfs", integrity=value))
    assert found.place == "workload.volumes.data.integrity"


def test_the_service_ends_after_a_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    times: list[int] = []
    monkeypatch.setattr(anchor, "plans", list)
    monkeypatch.setattr(anchor, "raise_all", lambda *given: times.append(1) or set())
    monkeypatch.setattr(anchor.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, handler)
        anchor.service()
    assert times == [1]


def test_clients_of_an_anchor_are_named_by_certificates_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its library would pass over a revocation list, and take who was revoked."""
    clients = tmp_path / "clients.pem"
    clients.write_bytes(CLIENTS.certificate + CLIENTS.certificate.replace(b" CERTIFICATE", b" X509 CRL"))
    monkeypatch.setattr("sys.argv", ["anchor", str(tmp_path), "--clients", str(clients)])
    with pytest.raises(SystemExit):
        main()
    assert "--clients must be certificates that are whole" in capfd.readouterr().err
