"""Third seeds against a real key service over TLS, real LUKS headers, and disks that are files.

What can't run on a host is the mapped device: a volume counts as opened where cryptsetup opens its headers.
"""

from __future__ import annotations

import base64
import http.server
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casemate.contract import keyservices
from casemate.contract.keyservices import patience, read_services
from casemate.contract.passphrase import passphrase
from casemate.demo.keyservice import KeyServer
from casemate.demo.logservers import status
from casemate.demo.pki import Authority
from casemate.guest import conversation, filesystems, keycheck, lukspassphrase, state, storage, thirdseed, volumes
from casemate.guest.kernel import Disk
from casemate.guest.keyservice import (
    KeyAwayError,
    KeyProtect,
    KeyRefusedError,
    KeyRevokedError,
    Unwrapped,
    first_answer,
)
from casemate.guest.report import Stop
from casemate.guest.start import start
from casemate.guest.volumes import BEING_MADE, SMALLEST
from casemate.luks.header import read_header
from casemate.luks.policy import METADATA_START
from casemate.luks.wrappedseed import AREA_SIZE, AREA_START, COPIES, COPY_SIZE, copy_of, read_wrapped

API_KEY = "MARK-api-key-0123456789"
SEEDS = {"workload": "w" * 15, "env": "e" * 15}
MIB = 1 << 20

pytestmark = pytest.mark.components


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("Key service authority")


@pytest.fixture
def keys(tmp_path: Path, authority: Authority) -> Iterator[KeyServer]:
    with KeyServer.running(tmp_path / "keys", authority, API_KEY) as server:
        yield server


class World:
    """A machine's services with disks that are files, at one start after the other."""

    def __init__(self, directory: Path, authority: Authority, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.cacerts = [{"keys": base64.b64encode(authority.certificate).decode()}]
        self.disks: list[Disk] = []
        self.opened: dict[str, str] = {}
        patch.setattr(volumes, "HEADERS", directory / "headers")
        patch.setattr(volumes, "PLANS", directory / "headers/plans.json")
        patch.setattr(storage, "HEADERS", directory / "headers")
        patch.setattr(volumes, "wait_for_disks", lambda number: self.disks)
        patch.setattr(volumes, "open_volume", self._open)
        patch.setattr(volumes, "filesystem_size", lambda kind, data: 1 << 50)
        real = volumes.read
        patch.setattr(volumes, "read", lambda path, *where: b"" if "/mapper/" in path else real(path, *where))
        patch.setattr(storage, "make", lambda plan: storage.write(plan.path, METADATA_START, BEING_MADE))
        patch.setattr(storage, "mount", lambda plan: "")

    def _open(self, name: str, found: volumes.Found, headers: bytes, secret: bytes) -> str | None:
        slot = volumes.slot_of(name, headers, secret)
        if slot is not None:
            self.opened[name] = secret.decode()
        return slot

    def disk(self, name: str) -> Disk:
        path = self.directory / name
        with path.open("wb") as file:
            file.truncate(SMALLEST + 64 * MIB)
        self.disks.append(Disk(f"..{path}", "", SMALLEST + 64 * MIB))
        return self.disks[-1]

    def look(
        self, kms: Any, names: tuple[str, ...] = ("data",), plain: tuple[str, ...] = (), **more: Any
    ) -> list[volumes.Plan]:
        """The services up to ``hpl-volumes``."""
        self.opened.clear()
        given = {name: {"kms": kms, "kmsTimeout": 1} for name in names}
        if given:
            state.write_json(state.KEY_SERVICES, given)
        seeds = {name: {"seed": {**SEEDS, "workload": (name * 15)[:15]}, **more} for name in (*names, *plain)}
        state.write_json(state.SEEDS, seeds)
        state.write_json(state.SECTIONS / "workload.json", {"volumes": {name: {} for name in (*names, *plain)}})
        state.write_json(state.SECTIONS / "env.json", {"cacerts": self.cacerts})
        lukspassphrase.service()
        volumes.service()
        return volumes.plans()

    def start(self, kms: Any, **more: Any) -> None:
        """All services that have to do with disks."""
        for plan in self.look(kms, **more):
            storage.carry_out(plan)

    def stopped(self, kms: Any, **more: Any) -> Stop:
        """A start that is refused: no disk is touched."""
        before = [Path(disk.path).read_bytes() for disk in self.disks]
        with pytest.raises(Stop) as stop:
            self.look(kms, **more)
        assert [Path(disk.path).read_bytes() for disk in self.disks] == before
        assert API_KEY not in str(stop.value)
        return stop.value


@pytest.fixture
def world(guest: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(guest, authority, monkeypatch)


def area(disk: Disk) -> bytes:
    return volumes.read(disk.path, AREA_START, AREA_SIZE)


def put(disk: Disk, offset: int, data: bytes) -> None:
    with Path(disk.path).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def everything(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.stat().st_size < 64 * MIB
    }


# ------------------------------------------------------------------------------------------------- a volume's life


def test_a_volume_is_made_opened_and_wrapped_anew_when_the_key_was_rotated(
    world: World, keys: KeyServer, capfd: pytest.CaptureFixture[str]
) -> None:
    key, disk = keys.create(), world.disk("disk")
    kms = [keys.entry(key)]
    world.start(kms)
    first = read_wrapped(area(disk))
    assert first is not None and first.intact and first.seed.key == keys.crn(key) and first.seed.volume == "data"
    made = world.opened["data"]
    assert "HPL07004I: Volume data" in capfd.readouterr().err

    world.start(kms)  # the second start: the same passphrase, nothing is written
    assert world.opened["data"] == made and read_wrapped(area(disk)) == first
    assert volumes.plans()[0].wrapped is None
    [way] = read_services(kms)
    third = KeyProtect(way, thirdseed.tls({"cacerts": world.cacerts})).unwrap(
        first.seed.wrapped, thirdseed.bound_to("data")
    )
    assert made == passphrase(("data" * 15)[:15], SEEDS["env"], third.seed.hex())
    assert len(third.seed) == 32

    keys.rotate(key)
    capfd.readouterr()
    world.start(kms)
    rotated = read_wrapped(area(disk))
    assert rotated is not None and rotated.intact and rotated.seed.generation == first.seed.generation + 1
    assert rotated.seed.wrapped != first.seed.wrapped and world.opened["data"] == made
    said = capfd.readouterr().err
    assert "HPL18001I: Volume data: the key has been rotated, and its seed is wrapped anew." in said

    world.start(kms)
    assert read_wrapped(area(disk)) == rotated and "HPL18001I" not in capfd.readouterr().err

    keys.disable(key)
    stop = world.stopped(kms)
    assert stop.id == "HPL18008E" and "not active" in stop.detail
    keys.enable(key)
    world.start(kms)
    keys.delete(key)
    assert world.stopped(kms).id == "HPL18008E"


def test_no_secret_is_left_anywhere_but_for_the_check_of_the_key(
    world: World, keys: KeyServer, guest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key, disk = keys.create(), world.disk("disk")
    world.start([keys.entry(key)])
    found = read_wrapped(area(disk))
    assert found is not None
    [way] = read_services([keys.entry(key)])
    seed = (
        KeyProtect(way, thirdseed.tls({"cacerts": world.cacerts}))
        .unwrap(found.seed.wrapped, thirdseed.bound_to("data"))
        .seed
    )
    said = "".join(capfd.readouterr())
    raw = Path(disk.path).read_bytes()
    for secret in (API_KEY.encode(), seed, seed.hex().encode(), base64.b64encode(seed), world.opened["data"].encode()):
        assert secret not in said.encode() and secret not in raw
        where = [
            name for name, content in everything(guest).items() if secret in content and not name.startswith("keys/")
        ]
        assert where == (["run/casemate/keycheck.json"] if secret == API_KEY.encode() else [])
    assert state.KEY_CHECK.stat().st_mode & 0o777 == 0o600
    assert not state.KEY_SERVICES.exists() and not state.PASSPHRASES.exists() and not state.SEEDS.exists()


def test_the_seeds_of_the_parties_still_roll(world: World, keys: KeyServer) -> None:
    key, disk = keys.create(), world.disk("disk")
    world.start([keys.entry(key)])
    before = world.opened["data"]
    seeds = {"seed": {**SEEDS, "env": "n" * 15}}
    assert world.stopped([keys.entry(key)], **seeds).id == "HPL02003E"
    world.start([keys.entry(key)], **seeds, previousSeed={"workload": ("data" * 15)[:15], "env": SEEDS["env"]})
    after = world.opened["data"]
    assert after != before
    world.start([keys.entry(key)], **seeds)
    assert world.opened["data"] == after and read_wrapped(area(disk)) is not None


def test_volumes_with_and_without_a_third_seed_go_together_in_any_order_of_the_disks(
    world: World, keys: KeyServer
) -> None:
    key = keys.create()
    for name in ("a", "b", "c"):
        world.disk(name)
    kms, names = [keys.entry(key)], {"names": ("first", "second"), "plain": ("third",)}
    world.start(kms, **names)
    made = dict(world.opened)
    assert len(set(made.values())) == 3
    world.disks.reverse()
    world.start(kms, **names)
    assert world.opened == made
    world.disks[:] = [world.disks[1], world.disks[2], world.disks[0]]
    world.start(kms, **names)
    assert world.opened == made


def test_a_contract_without_key_services_loads_nothing_of_them() -> None:
    code = "import sys; from casemate.guest import contract, lukspassphrase, volumes, storage\n"
    code += "from casemate.contract.check import check_sections\n"
    code += "wrong = ('keyservice', 'thirdseed', 'keyservices', 'wrappedseed', 'conversation', 'ssl', 'http')\n"
    code += "print([name for name in sys.modules if name.split('.')[-1] in wrong])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------- attacks on the disk


@pytest.fixture
def made(world: World, keys: KeyServer) -> tuple[Disk, str]:
    key, disk = keys.create(), world.disk("disk")
    world.start([keys.entry(key)])
    return disk, key


def test_bits_flipped_in_one_copy_are_mended_and_in_both_stop(
    world: World, keys: KeyServer, made: tuple[Disk, str]
) -> None:
    disk, key = made
    whole = read_wrapped(area(disk))
    for at in COPIES:
        put(disk, METADATA_START + at + 100, b"\xff")
        world.start([keys.entry(key)])
        assert read_wrapped(area(disk)) == whole
    for at in COPIES:
        put(disk, METADATA_START + at + 100, b"\xff")
    stop = world.stopped([keys.entry(key)])
    assert stop.id == "HPL18001E" and "damaged" in stop.detail
    for at in COPIES:
        put(disk, METADATA_START + at, bytes(COPY_SIZE))
    stop = world.stopped([keys.entry(key)])
    assert stop.id == "HPL18001E" and "no wrapped seed" in stop.detail


def test_the_wrapped_seed_of_another_volume_is_not_unwrapped_even_under_a_changed_name(
    world: World, keys: KeyServer, made: tuple[Disk, str]
) -> None:
    disk, key = made
    other = world.disk("other")
    world.start([keys.entry(key)], names=("data", "second"))
    theirs = read_wrapped(area(other))
    assert theirs is not None and theirs.seed.volume == "second"
    world.disks.remove(other)
    ours = read_wrapped(area(disk))
    assert ours is not None
    renamed = copy_of(type(theirs.seed)("data", theirs.seed.key, theirs.seed.wrapped, 9))
    for at in COPIES:
        put(disk, METADATA_START + at, renamed)
    stop = world.stopped([keys.entry(key)])
    assert stop.id == "HPL07012E" and "422" in stop.detail


def test_the_wrapped_seed_of_another_machine_opens_nothing(
    world: World, keys: KeyServer, made: tuple[Disk, str]
) -> None:
    """Same key, same name of the volume: the service unwraps it, and the volume does not open."""
    disk, key = made
    world.disks.remove(disk)
    other = world.disk("other")
    world.start([keys.entry(key)])
    put(disk, AREA_START, area(other))
    world.disks[:] = [disk]
    assert world.stopped([keys.entry(key)]).id == "HPL02003E"


def test_a_wrapped_seed_on_an_otherwise_empty_disk_is_never_used(
    world: World, keys: KeyServer, made: tuple[Disk, str]
) -> None:
    disk, key = made
    old = area(disk)
    world.disks.clear()
    planted = world.disk("planted")
    put(planted, AREA_START, old)
    assert world.stopped([keys.entry(key)]).id == "HPL02123E"
    put(planted, METADATA_START, BEING_MADE)  # what a cut leaves: made anew, with a seed of its own
    before = read_wrapped(old)
    world.start([keys.entry(key)])
    after = read_wrapped(area(planted))
    assert before is not None and after is not None and after.seed.wrapped != before.seed.wrapped and after.intact


def test_a_key_that_the_contract_does_not_name_is_not_asked(
    world: World, keys: KeyServer, made: tuple[Disk, str]
) -> None:
    assert world.stopped([keys.entry(keys.create())]).id == "HPL18006E"


def test_a_volume_without_a_third_seed_does_not_silently_stay_without(world: World, keys: KeyServer) -> None:
    world.disk("disk")
    world.start([], names=(), plain=("data",))
    stop = world.stopped([keys.entry(keys.create())])
    assert stop.id == "HPL18001E" and "no wrapped seed" in stop.detail


def test_a_volume_with_a_third_seed_does_not_open_without_it(
    world: World, keys: KeyServer, made: tuple[Disk, str]
) -> None:
    assert world.stopped([], names=(), plain=("data",)).id == "HPL02003E"


@pytest.mark.parametrize("rotated", [False, True])
def test_a_cut_between_any_two_writes_leaves_a_volume_that_the_next_start_opens(
    world: World, keys: KeyServer, monkeypatch: pytest.MonkeyPatch, rotated: bool
) -> None:
    """The disk as it is after each write of ``hpl-storage``, each with half of the next write there too."""
    key, disk = keys.create(), world.disk("disk")
    kms = [keys.entry(key)]
    if rotated:
        world.start(kms)
        keys.rotate(key)
    plans = world.look(kms)
    secret = world.opened["data"]
    states: list[bytes] = []
    real = storage.write

    def recording(device: str, offset: int, content: bytes) -> None:
        if content and "/mapper/" not in device:
            head = bytearray(volumes.read(device, 0, 102 * MIB))
            states.append(bytes(head))
            half = len(content) // 1024 * 512
            head[offset : offset + half] = content[:half]
            states.append(bytes(head))
        real(device, offset, content)

    monkeypatch.setattr(storage, "write", recording)
    for plan in plans:
        storage.carry_out(plan)
    monkeypatch.setattr(storage, "write", real)
    states.append(volumes.read(disk.path, 0, 102 * MIB))
    end = volumes.read(disk.path, disk.size - MIB, MIB)
    opened = 0
    for content in dict.fromkeys(states):
        with Path(disk.path).open("r+b") as file:
            file.write(content)
            file.truncate()
            file.truncate(disk.size)
        if content == states[-1]:
            put(disk, disk.size - MIB, end)
        if not rotated and content[METADATA_START : METADATA_START + 512] != BEING_MADE and content != states[-1]:
            continue  # before the mark stands, and where half of it does: an empty disk
        [plan] = world.look(kms)
        assert plan.make or world.opened["data"] == secret
        opened += not plan.make
        assert not (rotated and plan.make)
    assert opened >= (3 if rotated else 1)  # a wrapped seed of this length is one sector: there or not


# ------------------------------------------------------------------------------------------------- attacks on the way


def test_a_wrong_api_key_stops_a_start_and_is_not_said(world: World, keys: KeyServer, made: tuple[Disk, str]) -> None:
    _, key = made
    wrong = {**keys.entry(key), "apiKey": "MARK-wrong"}
    stop = world.stopped([wrong])
    assert stop.id == "HPL07012E" and "it answers 400" in stop.detail and "MARK" not in stop.detail
    world.disks.clear()
    world.disk("new")
    assert world.stopped([wrong]).id == "HPL07011E"


def test_an_impostor_hears_no_key_and_its_answer_counts_for_nothing(
    world: World, keys: KeyServer, made: tuple[Disk, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thirdseed, "patience", lambda volume: 1.0)
    with KeyServer.running(tmp_path / "false", Authority.create("Key service authority"), API_KEY) as false:
        stop = world.stopped([{**keys.entry(made[1]), "type": f"https://127.0.0.1:{false.port}"}])
        assert stop.id == "HPL07010E" and "it is not 127.0.0.1" in stop.detail
        assert false.requests == [] and false.tokens == {}


def test_a_service_that_is_away_is_waited_for_and_then_stops(
    world: World,
    keys: KeyServer,
    made: tuple[Disk, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    keys.answers.extend([status(503)] * 2)
    world.start([keys.entry(made[1])])
    assert "HPL18001W" not in capfd.readouterr().err  # a network that is just coming up
    monkeypatch.setattr(thirdseed, "QUIET", 0.0)
    keys.answers.extend([status(503)] * 3)
    world.start([keys.entry(made[1])])
    assert capfd.readouterr().err.count("HPL18001W: volume data: no key service answers yet") == 1
    monkeypatch.setattr(thirdseed, "patience", lambda volume: 1.0)
    keys.answers.extend([status(503)] * 100)
    begun = time.monotonic()
    stop = world.stopped([keys.entry(made[1])])
    assert stop.id == "HPL07010E" and "503" in stop.detail and time.monotonic() - begun < 20
    monkeypatch.setattr(thirdseed, "patience", lambda volume: patience({"kmsTimeout": 0}))
    keys.answers.clear()
    keys.answers.append(status(503))
    assert world.stopped([keys.entry(made[1])]).id == "HPL07010E"  # asked once, not again
    world.start([keys.entry(made[1])])


def test_the_first_entry_that_answers_counts(world: World, keys: KeyServer) -> None:
    gone, key = keys.create(), keys.create()
    away = {**keys.entry(gone), "type": "https://127.0.0.1:9"}
    disk = world.disk("disk")
    world.start([away, keys.entry(key)])
    found = read_wrapped(area(disk))
    assert found is not None and found.seed.key == keys.crn(key)
    made = world.opened["data"]
    world.start([keys.entry(gone), keys.entry(key)])  # the volume keeps its key, whoever answers now
    assert world.opened["data"] == made
    world.start([{**keys.entry(key), "type": "https://127.0.0.1:9"}, keys.entry(key)])
    assert world.opened["data"] == made


def _body(value: bytes, code: int = 200) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.send_header("Content-Length", str(len(value)))
        request.end_headers()
        request.wfile.write(value)

    return answer


def _endless(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b" " * 65536)


def _drop_by_drop(request: http.server.BaseHTTPRequestHandler) -> None:
    while True:
        request.wfile.write(b"H")
        time.sleep(0.1)


def _elsewhere(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", "https://127.0.0.1:9/")
    request.send_header("Content-Length", "0")
    request.end_headers()


@pytest.mark.parametrize(
    "answer",
    [
        _endless,
        _drop_by_drop,
        _elsewhere,
        _body(b""),
        _body(b"[" * 60000),
        _body(b"[]"),
        _body(b"{}"),
        _body(b'{"resources": []}'),
        _body(b'{"resources": [1]}'),
        _body(b'{"resources": [{"state": true}]}'),
        _body(b'{"resources": [{"state": "1"}]}'),
        _body(b'{"resources": [{"id": "another", "state": 1}]}'),
        _body(b'{"resources": [{"state": 1, "keyVersion": {"id": 5}}]}'),
        _body(b'{"resources": [{"state": 1, "keyVersion": "x"}]}'),
        _body(b"\0\xff" * 100),
        status(500),
        status(429),
    ],
)
def test_an_answer_that_is_none_counts_as_away(
    keys: KeyServer, authority: Authority, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr(conversation, "CONVERSATION", 1.5)
    service = protect(keys, authority, keys.create())
    keys.answers.append(answer)
    begun = time.monotonic()
    with pytest.raises(KeyAwayError):
        service.version()
    assert time.monotonic() - begun < 10
    assert service.version() != ""


def protect(keys: KeyServer, authority: Authority, key: str) -> KeyProtect:
    cacerts = [{"keys": base64.b64encode(authority.certificate).decode()}]
    return KeyProtect(read_services([keys.entry(key)])[0], thirdseed.tls({"cacerts": cacerts}))


def test_an_instance_is_where_its_broker_says_and_else_where_its_name_says(
    keys: KeyServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = thirdseed.tls({"cacerts": [{"k": base64.b64encode(authority.certificate).decode()}]})
    [way] = read_services([keys.entry(keys.create())])
    lost = replace(way, port=9, broker=("127.0.0.1", keys.port))
    keys.brokered["public"] = f"127.0.0.1:{keys.port}"
    with pytest.raises(KeyAwayError):
        KeyProtect(lost, context).version()  # an address that is none of IBM's
    monkeypatch.setattr(keyservices, "_IBM", ("127.0.0.1",))
    service = KeyProtect(lost, context)
    assert service.version() and service.place == f"127.0.0.1:{keys.port}"
    with pytest.raises(KeyAwayError):
        KeyProtect(replace(lost, private=True), context).version()
    unknown = replace(way, key="0" * 36, broker=("127.0.0.1", 9))  # a broker that is away: a 404 may be of anyone
    with pytest.raises(KeyAwayError, match="the broker does not say"):
        KeyProtect(unknown, context).version()
    with pytest.raises(KeyRevokedError):
        KeyProtect(replace(unknown, broker=("127.0.0.1", keys.port)), context).version()


@pytest.mark.parametrize(
    "answer",
    [
        _body(b'{"plaintext": "!!"}'),
        _body(b'{"plaintext": 5}'),
        _body(b"{}"),
        _body(b'{"plaintext": "AAAA", "keyVersion": {"id": 5}}'),
    ],
)
def test_an_answer_to_unwrap_that_is_none_counts_as_away(keys: KeyServer, authority: Authority, answer: Any) -> None:
    service = protect(keys, authority, keys.create())
    keys.answers.append(answer)
    with pytest.raises(KeyAwayError):
        service.unwrap("eyJ", "x")


def test_the_service_tells_refusals_from_revocations(keys: KeyServer, authority: Authority) -> None:
    key = keys.create()
    service = protect(keys, authority, key)
    wrapped = service.wrap(b"s" * 32, "one")
    assert service.unwrap(wrapped, "one").seed == b"s" * 32
    with pytest.raises(KeyRefusedError, match="422"):
        service.unwrap(wrapped, "two")
    with pytest.raises(KeyRefusedError, match="422"):
        protect(keys, authority, keys.create()).unwrap(wrapped, "one")
    before = service.version()
    keys.rotate(key)
    again = service.rewrap(wrapped, "one")
    assert service.version() != before == service.unwrap(wrapped, "one").version
    assert service.unwrap(again, "one") == Unwrapped(b"s" * 32, service.version())
    keys.disable(key)
    with pytest.raises(KeyRevokedError):
        service.version()
    with pytest.raises(KeyRefusedError, match="409"):
        service.unwrap(wrapped, "one")
    keys.delete(key)
    for ask in (service.version, lambda: service.unwrap(wrapped, "one")):
        with pytest.raises(KeyRevokedError):
            ask()
    for code in (401, 403):
        keys.answers.append(status(code))
        with pytest.raises(KeyRefusedError):
            service.version()


def test_a_token_that_has_ended_is_asked_for_anew(keys: KeyServer, authority: Authority) -> None:
    service = protect(keys, authority, keys.create())
    service.version()
    keys.tokens.clear()
    with pytest.raises(KeyRefusedError, match="401"):
        service.version()
    assert service.version()


def test_of_several_a_revocation_counts_at_once_and_a_refusal_where_none_is_away(
    keys: KeyServer, authority: Authority
) -> None:
    good, other = keys.create(), keys.create()
    keys.disable(other)
    one, two = protect(keys, authority, good), protect(keys, authority, other)
    assert first_answer([one, two], lambda service: service.key, 0.0) == keys.crn(good)
    with pytest.raises(KeyRevokedError):
        first_answer([two, one], lambda service: service.version(), 0.0)
    keys.answers.extend([status(403), status(503)])
    with pytest.raises(KeyAwayError):
        first_answer([one, one], lambda service: service.version(), 0.0)
    keys.answers.append(status(403))
    assert first_answer([one, one], lambda service: service.version(), 0.0)
    keys.answers.extend([status(403), status(403)])
    with pytest.raises(KeyRefusedError):
        first_answer([one, one], lambda service: service.version(), 0.0)


def test_a_service_that_gives_another_seed_than_was_wrapped_stops(world: World, keys: KeyServer) -> None:
    world.disk("disk")
    key = keys.create()
    wrapped = json.dumps({"ciphertext": "eyJ4"}).encode()
    metadata = json.dumps({"resources": [{"id": key, "state": 1}]}).encode()
    wrong = json.dumps({"plaintext": base64.b64encode(b"x" * 32).decode()}).encode()
    keys.answers.extend([_body(metadata), _body(wrapped), _body(wrong)])
    assert world.stopped([keys.entry(key)]).id == "HPL07011E"
    keys.answers.extend([_body(metadata), _body(b'{"ciphertext": "a\\nb"}')])
    world.start([keys.entry(key)])  # one that is none: asked again


@pytest.mark.parametrize("failure", ["refused", "other"])
def test_a_seed_that_can_not_be_wrapped_anew_stops_and_the_old_one_stays(
    world: World, keys: KeyServer, made: tuple[Disk, str], failure: str
) -> None:
    _, key = made
    keys.rotate(key)
    real = keys._keys

    def failing(request: http.server.BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, Any]]:
        if not request.path.endswith("/rewrap"):
            return real(request, body)
        if failure == "refused":
            return 403, {}
        bound = [thirdseed.bound_to("data")]
        given = {"plaintext": base64.b64encode(b"x" * 32).decode(), "aad": bound}
        return keys._act(key, "wrap", given)

    keys._keys = failing  # type: ignore[method-assign]
    assert world.stopped([keys.entry(key)]).id == "HPL18002E"


def test_a_generation_that_can_not_grow_stops_and_does_not_begin_anew(
    world: World, keys: KeyServer, made: tuple[Disk, str]
) -> None:
    """The infrastructure can write it: it costs the rotation, not the volume."""
    disk, key = made
    found = read_wrapped(area(disk))
    assert found is not None
    for at in COPIES:
        put(disk, METADATA_START + at, copy_of(replace(found.seed, generation=(1 << 64) - 1)))
    world.start([keys.entry(key)])
    keys.rotate(key)
    assert world.stopped([keys.entry(key)]).id == "HPL18007E"


def test_a_disk_that_takes_no_write_stops_before_the_headers(
    world: World, keys: KeyServer, made: tuple[Disk, str]
) -> None:
    disk, key = made
    keys.rotate(key)
    [plan] = world.look([keys.entry(key)])
    Path(disk.path).unlink()
    with pytest.raises(Stop) as stop:
        storage.carry_out(plan)
    assert stop.value.id == "HPL07007E"


def test_a_volume_with_another_file_system_stops_and_is_left_as_it_is(
    world: World, keys: KeyServer, made: tuple[Disk, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "filesystem_size", filesystems.filesystem_size)  # finds nothing in what is read
    stop = world.stopped([keys.entry(made[1])])
    assert stop.id == "HPL02007E" and "no file system of the kind ext4" in stop.detail


def test_an_authority_that_is_none_stops(world: World, keys: KeyServer) -> None:
    world.disk("disk")
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    world.cacerts = [{"keys": base64.b64encode(pem.encode()).decode()}]
    assert world.stopped([keys.entry(keys.create())]).id == "HPL07010E"


# ------------------------------------------------------------------------------------------------- while the machine runs


def checked(capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    keycheck.service()
    return capfd.readouterr().err


def test_a_key_that_is_revoked_stops_the_running_machine_and_one_that_is_away_does_not(
    world: World, keys: KeyServer, made: tuple[Disk, str], capfd: pytest.CaptureFixture[str]
) -> None:
    disk, key = made
    before = Path(disk.path).read_bytes()
    said = checked(capfd)
    assert "HPL18003I: The keys of data are checked" in said and said.count("HPL") == 1
    assert checked(capfd) == ""
    keys.answers.append(status(503))
    assert "HPL18001W: volume data: its key can't be checked" in checked(capfd)
    keys.answers.append(status(503))
    assert checked(capfd) == ""  # said once
    assert "HPL18002I: Volume data" in checked(capfd)
    keys.rotate(key)
    assert "HPL18001I: Volume data" in checked(capfd)
    assert checked(capfd) == ""
    keys.disable(key)
    for _ in range(2):
        with pytest.raises(Stop) as stop:
            keycheck.service()
        assert stop.value.id == "HPL18008E" and API_KEY not in str(stop.value)
    keys.enable(key)
    assert checked(capfd) == ""
    keys.answers.append(status(403))
    with pytest.raises(Stop, match="HPL18008E"):
        keycheck.service()
    keys.delete(key)
    with pytest.raises(Stop, match="HPL18008E"):
        keycheck.service()
    assert Path(disk.path).read_bytes() == before


def test_a_check_that_fails_as_nobody_foresaw_says_so_without_the_api_key(
    world: World, made: tuple[Disk, str], capfd: pytest.CaptureFixture[str]
) -> None:
    state.KEY_CHECK.write_text(state.KEY_CHECK.read_text()[:-1])
    capfd.readouterr()
    assert start("keycheck") == 1
    said = capfd.readouterr().err
    assert "HPL18004E: unexpected JSONDecodeError" in said and API_KEY not in said


def test_an_impostor_can_not_stop_the_running_machine(
    world: World, keys: KeyServer, made: tuple[Disk, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = state.read_json(state.KEY_CHECK)
    with KeyServer.running(tmp_path / "false", Authority.create("False"), API_KEY) as false:
        given["volumes"]["data"]["kms"][0]["type"] = f"https://127.0.0.1:{false.port}"
        state.write_json(state.KEY_CHECK, given)
        assert "HPL18001W" in checked(capfd)
        assert false.requests == []


def test_one_key_of_many_volumes_is_asked_once_and_slow_services_take_no_more_than_their_time(
    world: World, keys: KeyServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key = keys.create()
    world.disk("a"), world.disk("b")
    world.start([keys.entry(key)], names=("first", "second"))
    keys.requests.clear()
    assert "HPL18003I: The keys of first, second" in checked(capfd)
    assert [request.split()[0] for request in keys.requests] == ["POST", "GET"]
    monkeypatch.setattr(keycheck, "BUDGET", -1.0)
    assert checked(capfd).count("HPL18001W") == 2
    unit = Path(keycheck.__file__).parent / "units/hpl-key-check.service"
    assert "TimeoutStartSec=1200" in unit.read_text()


# ------------------------------------------------------------------------------------------------- the small service


def test_the_small_service_keeps_its_keys_for_its_owner_only(tmp_path: Path, authority: Authority) -> None:
    with KeyServer.running(tmp_path / "keys", authority, API_KEY, keep=True) as keys:
        key = keys.create()
        wrapped = protect(keys, authority, key).wrap(b"s" * 32, "x")
        keys.rotate(key)
        instance = keys.instance
    assert (tmp_path / "keys/keys.json").stat().st_mode & 0o777 == 0o600
    with KeyServer.running(tmp_path / "keys", authority, API_KEY, keep=True) as keys:
        assert keys.instance == instance
        assert protect(keys, authority, key).unwrap(wrapped, "x").seed == b"s" * 32


def test_who_runs_their_own_finds_out_how_a_contract_names_it(tmp_path: Path) -> None:
    from casemate.demo.services import free_port

    port = free_port()
    command = [sys.executable, "-u", "-m", "casemate.demo.keyservice", str(tmp_path / "own"), "--port", str(port)]
    command += ["--name", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        try:
            assert process.stdout is not None
            said = "".join(process.stdout.readline() for _ in range(5))
            crn = said.split("crn: ")[1].split()[0]
            api_key = (tmp_path / "own/api-key").read_text()
            assert api_key not in said
            way = {"apiKey": api_key, "crn": crn, "type": f"https://127.0.0.1:{port}"}
            cacerts = [{"own": base64.b64encode((tmp_path / "own/ca.pem").read_bytes()).decode()}]
            service = KeyProtect(read_services([way])[0], thirdseed.tls({"cacerts": cacerts}))
            assert service.unwrap(service.wrap(b"s" * 32, "x"), "x").seed == b"s" * 32
        finally:
            process.terminate()


def test_headers_of_a_volume_with_a_third_seed_are_like_all_others(
    world: World, keys: KeyServer, made: tuple[Disk, str]
) -> None:
    found = volumes.examine(made[0])
    assert found.headers is not None and len(read_header(found.headers).metadata["keyslots"]) == 1
