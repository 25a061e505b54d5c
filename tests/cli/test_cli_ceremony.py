"""``casemate ceremony``, each person's part as they type it, against the real service without a machine."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ceremony_kit as kit
import pytest
from ceremony_kit import Held, held, key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.build import ceremonyhost, forms, keyset, signers
from casemate.build import ceremonyplan as plans
from program import Result

Run = Callable[..., Result]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What a person has: the plan, the image that they packed, keys."""
    made = kit.plan()
    (tmp_path / "plan.json").write_bytes(made.as_bytes())
    (tmp_path / "bootstrap").mkdir()
    with (tmp_path / "bootstrap/casemate.img").open("w+b") as out:
        ceremonyhost.write_image(made, kit.FILES, out, kit.SECRET)
    (tmp_path / "bootstrap/root.squashfs").write_bytes(kit.ARCHIVE)
    for name in (*kit.PEOPLE, "next", "other", "root key"):
        signers.write_private(tmp_path / f"{name}.key", forms.private_pem(key(name)))
    (tmp_path / "HKD.crt").write_bytes(kit.host())
    (tmp_path / "secret").write_bytes(b"what only one knows")
    return tmp_path


@pytest.fixture
def open_one(place: Path) -> Iterator[Held]:
    with held(plans.parse_plan((place / "plan.json").read_bytes())) as found:
        yield found


def join(run: Run, place: Path, found: Held, name: str, *more: object, yes: bool = True) -> Result:
    words = [
        "--plan",
        place / "plan.json",
        "--image",
        place / "bootstrap",
        "--as",
        name,
        "--key",
        f"file:{place}/{name}.key",
    ]
    return run("ceremony", "join", f"127.0.0.1:{found.port}", *words, *(["--yes"] if yes else []), *more)


def test_each_person_does_their_part_and_an_auditor_verifies_all(run: Run, place: Path, open_one: Held) -> None:
    def said(name: str, *more: object) -> str:
        done = join(run, place, open_one, name, "--json", *more)
        assert done.code == 0, done.err
        return str(json.loads(done.out)["action"])

    assert said("alice", "--next-key", f"file:{place}/next.key") == "approve"
    status = run(
        *("ceremony", "status", f"127.0.0.1:{open_one.port}", "--plan", place / "plan.json"),
        *("--image", place / "bootstrap"),
    )
    assert status.code == 0 and b"missing: 1 of reviewers (bob, carol)" in status.out
    assert said("bob", "--next-key", f"file:{place}/other.key") == "approve"
    assert said("heidi", "--host-key", place / "HKD.crt") == "hosts"
    for name in ("dave", "erin"):
        (place / "secret").write_bytes(f"what only {name} knows".encode())
        assert said(name, "--secret-file", place / "secret") == "contribute"
    open_one.service.step()
    assert said("rita", "--root", f"file:{place}/root key.key") == "certify"
    for name, data in kit.FILES.items():
        open_one.visit.bring(name, data)
    open_one.service.step()
    stepping = threading.Timer(2.0, open_one.service.step)  # the machine ends the ceremony when it is witnessed
    stepping.start()
    until = join(run, place, open_one, "oscar", "-o", place / "kept")
    stepping.join()
    assert until.code == 0, until.err
    assert (place / "kept/buildvm/root.squashfs").read_bytes() == kit.ARCHIVE  # so it starts
    (place / "another").write_bytes(b"another root")
    assert not ceremonyhost.finish(place / "kept/buildvm", place / "another", open_one.service.plan)
    words = (
        "ceremony",
        "verify",
        place / "kept",
        "--plan",
        place / "plan.json",
        "--root",
        place / "root.crt",
        "--bootstrap",
        place / "bootstrap",
    )
    (place / "root.crt").write_bytes(kit.root_pem())
    done = run(*words, "--json")
    report = json.loads(done.out)
    assert done.code == 0 and report["holds"], report
    assert {"BootstrapVM", "image of the BootstrapVM", "witness", "end"} <= {one["name"] for one in report["checks"]}
    alone = tuple(word for word in words if word not in ("--plan", place / "plan.json"))
    assert run(*alone).code == 1  # a plan that comes with the files proves nothing
    for name in (ceremonyhost.HEADER, ceremonyhost.MEASUREMENT, ceremonyhost.PROTECTION_KEY):
        kept = (place / "kept" / name).read_bytes()
        (place / "kept" / name).unlink()
        assert run(*words).code == 1, name
        (place / "kept" / name).write_bytes(kept)


def test_what_is_signed_is_shown_first_and_nothing_is_signed_without_a_yes(
    run: Run, place: Path, open_one: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    done = join(run, place, open_one, "alice", "--next-key", f"file:{place}/next.key", yes=False)
    assert done.code != 0 and "You are alice (reviewers). You sign: the whole plan" in done.err
    assert not open_one.service.ceremony.of("approve")


def test_who_has_packed_another_image_does_not_sign(run: Run, place: Path, open_one: Held) -> None:
    with (place / "bootstrap/casemate.img").open("w+b") as out:
        ceremonyhost.write_image(kit.plan(nonce="1" * 32), kit.FILES, out, kit.SECRET)
    done = join(run, place, open_one, "alice", "--next-key", f"file:{place}/next.key")
    assert done.code == 1 and "CEREMONY-MEASUREMENT" in done.err and not open_one.service.ceremony.of("approve")


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        *(("alice", "--next-key"), ("heidi", "--host-key"), ("dave", "--secret-file"), ("rita", "--root")),
        ("oscar", "--output"),
    ],
)
def test_what_a_part_needs_is_asked_for(run: Run, place: Path, open_one: Held, name: str, needs: str) -> None:
    done = join(run, place, open_one, name)
    assert done.code == 2 and needs in done.err


def test_another_s_key_a_stranger_and_a_directory_without_an_image(run: Run, place: Path, open_one: Held) -> None:
    (place / "alice.key").unlink()
    signers.write_private(place / "alice.key", forms.private_pem(key("bob")))
    done = join(run, place, open_one, "alice", "--next-key", f"file:{place}/next.key")
    assert done.code == 1 and "CEREMONY-PERSONA" in done.err
    assert "CEREMONY-PERSONA" in join(run, place, open_one, "next").err
    (place / "bootstrap/casemate.img").unlink()
    done = join(run, place, open_one, "bob", "--next-key", f"file:{place}/next.key")
    assert done.code == 1 and "CEREMONY-IMAGE" in done.err and "casemate ceremony pack" in done.err


def test_a_host_key_document_in_der_is_told(run: Run, place: Path, open_one: Held) -> None:
    open_one.approve("alice", "bob")
    der = kit.host_key("host").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    (place / "HKD.der").write_bytes(b"\x80" + der)
    done = join(run, place, open_one, "heidi", "--host-key", place / "HKD.der")
    assert done.code == 1 and "CEREMONY-CONTENT" in done.err and "PEM" in done.err, done.err


@pytest.mark.parametrize("change", ["minutes: '120'", "minutes: 0", "minutes: 100000", "name: 7", "organization: [a]"])
def test_a_value_of_another_kind_is_told_before_anything_is_made(run: Run, place: Path, change: str) -> None:
    (place / "root.crt").write_bytes(kit.root_pem())
    (place / "alice.pub").write_text(kit.pem(key("alice")))
    said = {"name": "spring", "organization": "Example", "minutes": "60"}
    said |= dict([change.split(": ")])
    lines = [f"{name}: {value}" for name, value in said.items()]
    lines += ["root: root.crt", "roles: {root: {quorum: 1, people: {alice: alice.pub}}}"]
    (place / "ceremony.yaml").write_text("\n".join(lines))
    done = run("ceremony", "plan", place / "ceremony.yaml", "-o", place / "new.json")
    assert done.code == 1 and "CEREMONY-PLAN" in done.err, done.err
    assert not (place / "new.json").exists() and not (place / "new.secret").exists()


@pytest.mark.parametrize("size", [0, 3, 15])
def test_a_secret_that_is_too_short_is_told_and_nothing_is_sent(
    run: Run, place: Path, open_one: Held, size: int
) -> None:
    (place / "short").write_bytes(b"s" * size)
    done = join(run, place, open_one, "dave", "--secret-file", place / "short", "--json")
    error = json.loads(done.out)["error"]
    assert done.code == 1 and error["id"] == "CEREMONY-CONTENT" and "16 to 1024 bytes" in error["cause"]
    assert not open_one.service.ceremony.of("contribute")


@pytest.fixture
def paper(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a file for a plan says; the parts are those of the kit."""
    made = kit.plan()
    (place / "root.crt").write_bytes(kit.root_pem())
    (place / "archive").write_bytes(kit.ARCHIVE)
    ready = ceremonyhost.Ready("amd64", "6.1", kit.FILES, place / "archive", made.values, {})
    monkeypatch.setattr(ceremonyhost, "ready_parts", lambda *_, **__: ready)
    for name, pem in made.personas.items():
        (place / f"{name}.pub").write_text(pem)
    roles = {
        name: {"quorum": one.quorum, "people": {who: f"{who}.pub" for who in one.members}}
        for name, one in made.roles.items()
    }
    common = {"name": "spring", "organization": "Example", "root": "root.crt", "hosts": ["HKD.crt"]}
    return {**common, "minutes": 30, "roles": roles}


def write(run: Run, place: Path, said: dict[str, Any], output: str = "new.json") -> Result:
    (place / "ceremony.yaml").write_text(json.dumps(said))
    return run("ceremony", "plan", place / "ceremony.yaml", "-o", place / output)


def test_a_plan_says_when_its_window_is(run: Run, place: Path, paper: dict[str, Any]) -> None:
    done = write(run, place, paper | {"begins": "2099-01-01T09:00:00Z", "window_minutes": 480})
    assert done.code == 0, done.err
    made = plans.parse_plan((place / "new.json").read_bytes())
    assert (plans.text_of(made.not_before), plans.text_of(made.not_after), made.minutes) == (
        *("2099-01-01T09:00:00Z", "2099-01-01T17:00:00Z"),
        30,
    )
    done = write(run, place, paper)
    assert done.code == 1 and "CEREMONY-IN-THE-WAY" in done.err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *(({"not_before": "2099-01-01T09:00:00Z"}, "not_before"), ({"pipelin": "root.crt"}, "pipelin")),
        *(({"hosts": "HKD.crt"}, "hosts"), ({"begins": "tomorrow"}, "2026-11-25T09:00:00Z")),
        *(({"begins": "2020-01-01T09:00:00Z"}, "window is over"), ({"window_minutes": 5}, "has not what a plan needs")),
        ({"window_minutes": 10**40}, "has not what a plan needs"),
    ],
)
def test_what_a_file_for_a_plan_can_not_say_is_told(
    run: Run, place: Path, paper: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    done = write(run, place, paper | change)
    assert done.code == 1 and "CEREMONY-PLAN" in done.err and named in done.err, done.err
    assert not (place / "new.json").exists() and not (place / "new.secret").exists()


def test_what_a_role_can_not_say_is_told(run: Run, place: Path, paper: dict[str, Any]) -> None:
    paper["roles"]["root"]["quorom"] = 2
    done = write(run, place, paper)
    assert done.code == 1 and "CEREMONY-PLAN" in done.err and "roles.root.quorom" in done.err


def test_a_plan_needs_a_name_of_its_own(run: Run, place: Path, paper: dict[str, Any]) -> None:
    assert write(run, place, paper, ".").code == 1
    assert write(run, place, paper, "plan.secret").code == 2


@pytest.mark.parametrize(("verified", "revocation"), [(True, False), (False, False)])
def test_a_keyset_that_was_not_checked_for_revocation_verifies_no_hosts(
    run: Run, place: Path, verified: bool, revocation: bool
) -> None:
    kept = keyset.Keyset("hosts", "2026-11-25T09:00:00+00:00", verified, revocation, (("HKD.crt", kit.host()),))
    (place / "hosts.json").write_bytes(kept.as_bytes())
    done = run(
        *("ceremony", "status", "127.0.0.1:1", "--plan", place / "plan.json", "--image", place / "bootstrap"),
        *("--keyset", place / "hosts.json"),
    )
    assert done.code == 1 and "CEREMONY-HOSTS" in done.err, done.err
