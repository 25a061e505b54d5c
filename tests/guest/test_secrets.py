"""A marked secret stands in every field of a contract; the services run, well and badly; no mark is said, or left elsewhere.

The fields are read from the schema, so a new one is tried too. Where a mark may lie is what :mod:`casemate.guest.state` names.
What a message may have of a contract are names: of hosts, of volumes, of keys.
"""

from __future__ import annotations

import base64
import copy
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from contract_kit import Pair

from casemate.contract.archive import write_archive
from casemate.contract.check import schema
from casemate.contract.signature import sign
from casemate.demo.services import LogServer, free_port
from casemate.guest import contract, image, imagepolicy, logging, lukspassphrase, registryauth, signature, state
from casemate.guest.report import run

MARK = "MARKmarkMARKmark"
DIGEST = "sha256:" + "0123456789abcdef" * 4
Section = dict[str, Any]
Place = tuple[str | int, ...]
SERVICES: dict[str, tuple[Callable[[], None], str]] = {
    "contract": (contract.service, "HPL05000E"),
    "signature": (signature.service, "HPL12002E"),
    "lukspassphrase": (lukspassphrase.service, "HPL07001E"),
    "registryauth": (registryauth.service, "HPL09000E"),
    "logging": (logging.service, "HPL01000E"),
    "imagepolicy": (imagepolicy.service, "HPL16002E"),
    "image": (image.service, "HPL06005E"),
}
NAMES = ("hostname",)
"""Fields whose value is said: a person must know which host does not answer."""


def fields(node: Section, definitions: Section, place: Place = ()) -> Iterator[Place]:
    """Give every place of a section that the schema knows, lists with one item, mappings of any key with ``data``."""
    while "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    if place:
        yield place
    for name, inner in node.get("properties", {}).items():
        yield from fields(inner, definitions, (*place, name))
    if isinstance(node.get("additionalProperties"), dict):
        yield from fields(node["additionalProperties"], definitions, (*place, "data"))
    if "items" in node:
        yield from fields(node["items"], definitions, (*place, 0))


DEFINITIONS = schema()["$defs"]
PLACES = [(name, *place) for name in ("workload", "env") for place in fields(DEFINITIONS[name], DEFINITIONS)]


def sections(pair: Pair, port: int, logs: LogServer | None = None) -> dict[str, Section]:
    """A whole contract, with marks in all that is secret, and good as it is."""
    compose = f"services: {{db: {{image: '127.0.0.1:{port}/db@{DIGEST}', environment: {{P: '${{PASSWORD}}'}}}}}}\n"
    identity = (pair.certificate, pair.certificate, pair.private)
    if logs is not None:
        identity = (logs.authority.certificate, logs.client.certificate, logs.client.key)
    server, cert, key = (text.decode() for text in identity)
    login = {"username": f"{MARK}user", "password": f"{MARK}password"}
    return {
        "workload": {
            "type": "workload",
            "compose": {"archive": write_archive({"docker-compose.yaml": compose.encode(), "f": MARK.encode()})},
            "auths": {f"127.0.0.1:{port}": login},
            "images": {},
            "volumes": {"data": {"seed": f"{MARK}1", "previousSeed": f"{MARK}2", "mount": "/mnt/data"}},
            "env": {"PASSWORD": f"{MARK}variable"},
        },
        "env": {
            "type": "env",
            "logging": {
                "syslog": {
                    "hostname": "127.0.0.1",
                    "port": logs.port if logs else port,
                    "server": server,
                    "cert": cert,
                    "key": key,
                }
            },
            "auths": {"https://index.docker.io/v1/": login},
            "cacerts": [{"data": base64.b64encode(pair.certificate).decode()}],
            "volumes": {"data": {"seed": f"{MARK}3", "previousSeed": f"{MARK}4"}},
            "env": {"OTHER": f"{MARK}other"},
            "signingKey": pair.public.decode(),
        },
    }


def deliver(both: dict[str, Section], pair: Pair) -> None:
    """What the bootloader leaves, signed."""
    texts = {name: yaml.safe_dump(section) for name, section in both.items()}
    for name, text in texts.items():
        state.write(state.CONTRACT / name, text)
        state.write(state.CONTRACT / f"sealed-{name}", text)
    state.write(state.CONTRACT / "envWorkloadSignature", sign(texts["workload"], texts["env"], pair.key))


def start(names: Iterator[str] | list[str]) -> list[str]:
    """Run services as their units would, until one fails; return those that succeeded."""
    done = []
    for name in names:
        if run(*SERVICES[name]):
            break
        done.append(name)
    return done


def marked(directory: Path) -> set[str]:
    forms = (MARK.encode(), base64.b64encode(f"{MARK}user:".encode())[:20])
    found = set()
    for path in directory.rglob("*"):
        if path.is_file() and any(form in path.read_bytes() for form in forms):
            found.add(str(path.relative_to(directory)))
    return found


@pytest.fixture
def places(guest: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(logging, "DIRECTORY", state.RUN / "logging")
    monkeypatch.setattr(logging, "PATIENCE", 2.0)
    return guest


def test_after_every_service_marks_lie_where_they_may_and_nowhere_else(
    places: Path, pair: Pair, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    with LogServer.running(tmp_path_factory.mktemp("logs") / "server", names=("127.0.0.1",)) as logs:
        deliver(sections(pair, free_port(), logs), pair)
        sealed = {"run/casemate/contract/sealed-workload", "run/casemate/contract/sealed-env"}
        kept = {
            "run/casemate/sections/workload.json",
            "run/casemate/sections/env.json",
            "run/casemate/environment.json",
        }
        shown = {"user-data.decrypted"}  # the variables, which are the workload's own; nothing that is only the layer's
        allowed = {
            "contract": {*sealed, *kept, *shown, "run/casemate/seeds.json"},
            "signature": {*kept, *shown, "run/casemate/seeds.json"},
            "lukspassphrase": {*kept, *shown},
            "registryauth": {*kept, *shown, "run/casemate/auth.json"},
            "logging": {*kept, *shown, "run/casemate/auth.json"},
        }
        for name, expected in allowed.items():
            assert start([name]) == [name], capfd.readouterr().err
            assert marked(places) == expected, name
        said = capfd.readouterr()
        assert MARK not in said.out + said.err and "HPL01010I" in said.err and "HPL12005I" in said.err
    text = (places / "user-data.decrypted").read_text()
    assert f"{MARK}variable" in text
    for secret in ("password", *"1234"):
        assert f"{MARK}{secret}" not in text
    for path in places.rglob("*"):
        if path.is_file() and path.name != "user-data.decrypted":
            assert path.stat().st_mode & 0o77 == 0, path


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_mark_in_any_field_is_never_said_whatever_fails(
    places: Path, pair: Pair, capfd: pytest.CaptureFixture[str], place: Place
) -> None:
    """As text, as what is no text, and as the end of what stands there; the services run until one fails."""
    port = free_port()
    good = sections(pair, port)
    for spoil in (lambda old: MARK, lambda old: [MARK], lambda old: {"x": {"y": MARK}}, lambda old: f"{old} {MARK}"):
        both = copy.deepcopy(good)
        _put(both, place, spoil)
        deliver(both, pair)
        done = start(["contract", "signature", "lukspassphrase", "registryauth", "logging"])
        said = capfd.readouterr()
        if place[-1] not in NAMES:
            assert MARK not in said.out + said.err, said.err
        assert len(done) < 5 and "HPL" in said.err  # the last of them at the latest: nobody listens there
        assert "unexpected" not in said.err, said.err


def _put(target: Any, place: Place, spoil: Callable[[Any], Any]) -> None:
    """Change the value at a place; what is missing on the way is made."""
    for part, following in itertools.pairwise(place):
        if isinstance(part, int):
            if not target:
                target.append([] if isinstance(following, int) else {})
            target = target[part]
        else:
            if part in ("logRouter", "logDNA"):  # there is one backend
                target.clear()
            target = target.setdefault(part, [] if isinstance(following, int) else {})
    if isinstance(place[-1], int):
        target[:] = [spoil(target[0] if target else "")]
    else:
        target[place[-1]] = spoil(target.get(place[-1], ""))


@pytest.mark.parametrize("name", ["contract", "signature", "lukspassphrase", "registryauth", "logging"])
def test_what_is_missing_or_damaged_between_services_is_told_without_a_mark(
    places: Path, pair: Pair, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """Each file that a service finds is taken away, cut and filled with marks; the failure is told by its kind alone."""
    before = list(SERVICES)[: list(SERVICES).index(name)]
    for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:40]), _all_marks):
        deliver(sections(pair, free_port()), pair)
        assert start(before) == before
        found = [path for path in state.RUN.rglob("*") if path.is_file()]
        for path in found:
            content = path.read_bytes()
            spoil(path)
            run(*SERVICES[name])
            state.RUN.mkdir(exist_ok=True)
            deliver(sections(pair, free_port()), pair)
            start(before)
            if path.exists():
                path.write_bytes(content)
        said = capfd.readouterr()
        assert MARK not in said.out + said.err


def _all_marks(path: Path) -> None:
    path.write_text(json.dumps({MARK: MARK}))


@pytest.mark.skipif(not Path("/usr/bin/podman").exists(), reason="podman is not installed")
def test_a_registry_that_does_not_answer_is_told_without_login(
    places: Path, pair: Pair, capfd: pytest.CaptureFixture[str]
) -> None:
    deliver(sections(pair, free_port()), pair)
    before = ["contract", "signature", "registryauth", "imagepolicy"]
    assert start(before) == before
    assert start(["image"]) == []
    said = capfd.readouterr()
    assert MARK not in said.out + said.err and "HPL06004E" in said.err
