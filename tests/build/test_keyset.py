"""Keysets: hosts that are verified when they are written down, and again whenever an image is built for them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.build import keyset
from casemate.build.authority import Authority, Plan
from casemate.build.keyset import KeysetError, parse
from casemate.errors import CasemateError
from casemate.guest import builderwork
from casemate.guest.report import Stop
from casemate.image.build import build_image
from program import Result
from secureexec.signed import ABOVE, LISTS, ec, write

Run = Callable[..., Result]
TRUST = [*(f"--ca={name}" for name in ABOVE), *(f"--crl={name}" for name in LISTS)]


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    write(tmp_path, ec.generate_private_key(ec.SECP521R1()))
    return tmp_path


def test_a_keyset_keeps_hosts_that_are_verified_and_shows_them(run: Run, hosts: Path) -> None:
    assert run("keyset", "create", "set.json", "--host-key=host.crt", *TRUST).code == 0
    shown = json.loads(run("keyset", "show", "set.json", "--json").out)
    assert shown["holds"] and shown["verified"] and [row["name"] for row in shown["hosts"]] == ["host.crt"]
    before = (hosts / "set.json").read_bytes()
    again = run("keyset", "create", "set.json", "--host-key=host.crt", *TRUST, "--json")
    assert again.code == 1 and json.loads(again.out)["error"]["id"] == "KEYSET-EXISTS"
    assert (hosts / "set.json").read_bytes() == before
    assert run("keyset", "create", "set.json", "--host-key=host.der", *TRUST, "--replace").code == 0
    assert run("keyset", "show", "set.json").code == 0


@pytest.mark.parametrize("document", ["stranger", "revoked", "expired", "forged", "by-self"])
def test_a_host_that_does_not_hold_gets_into_no_keyset(run: Run, hosts: Path, document: str) -> None:
    assert run("keyset", "create", "set.json", f"--host-key={document}.crt", *TRUST).code == 1
    assert not (hosts / "set.json").exists()


def test_the_same_host_twice_is_refused(run: Run, hosts: Path) -> None:
    result = run("keyset", "create", "set.json", "--host-key=host.crt", "--host-key=armonk.crt", *TRUST)
    assert result.code == 1 and "the same host as host.crt" in result.err


def test_a_signing_key_revoked_since_is_noticed_when_an_image_is_built(
    run: Run, hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(hosts / "home"))
    assert run("keyset", "create", "set.json", "--host-key=host.crt", *TRUST).code == 0
    newer = ["--crl=signing.crl", "--crl=inter-revokes.crl", "--crl=root.crl"]
    shown = run("keyset", "show", "set.json", *newer, "--json")
    assert shown.code == 1 and "revoked" in json.loads(shown.out)["hosts"][0]["problem"]
    kept = json.loads((hosts / "set.json").read_text())
    kept["lists"] = [(hosts / name).read_text() for name in ("signing.crl", "inter-revokes.crl", "root.crl")]
    (hosts / "set.json").write_text(json.dumps(kept))
    with pytest.raises(KeysetError, match="revoked"):
        build_image(hosts / "image", keyset=hosts / "set.json")
    assert not (hosts / "home").exists()


def test_stale_lists_stop_a_build(run: Run, hosts: Path) -> None:
    assert run("keyset", "create", "set.json", "--host-key=host.crt", *TRUST).code == 0
    found = parse((hosts / "set.json").read_bytes())
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=40)
    (host,) = found.check(later)
    assert "not valid at this time" in host.problem


@pytest.mark.parametrize("document", ["stranger", "forged", "expired"])
def test_a_document_put_into_the_file_is_not_believed(run: Run, hosts: Path, document: str) -> None:
    assert run("keyset", "create", "set.json", "--host-key=host.crt", *TRUST).code == 0
    kept = json.loads((hosts / "set.json").read_text())
    kept["hosts"][0]["document"] = (hosts / f"{document}.crt").read_text()
    with pytest.raises(KeysetError):
        parse(json.dumps(kept).encode()).require(datetime.datetime.now(datetime.UTC))


def test_a_keyset_of_documents_from_anybody_says_so(run: Run, hosts: Path) -> None:
    assert run("keyset", "create", "set.json", "--host-key=stranger.crt", "--no-verify").code == 0
    shown = run("keyset", "show", "set.json")
    assert shown.code == 0 and b"NOT verified" in shown.out


def test_hosts_whose_revocation_nobody_checked_are_for_development_only(
    run: Run, hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(hosts / "home"))
    authority = Authority.create(hosts / "ca", Plan("Example", algorithm="p-384"))
    trust = [each for each in TRUST if each.startswith("--ca")]
    assert run("keyset", "create", "set.json", "--host-key=host.crt", *trust, "--no-revocation-check").code == 0
    shown = run("keyset", "show", "set.json")
    assert shown.code == 0 and b"revocation NOT checked" in shown.out
    lines = len(authority.log())
    with pytest.raises(CasemateError) as error:
        build_image(hosts / "image", keyset=hosts / "set.json", ca=authority.directory)
    assert error.value.id == "IMAGE-HOST-UNVERIFIED" and len(authority.log()) == lines

    data = (hosts / "set.json").read_bytes()
    for development in (False, True):  # and inside of a builder
        job = SimpleNamespace(keyset=data, hosts=())
        work = SimpleNamespace(job=job, issuer=SimpleNamespace(names=SimpleNamespace(development=development)))
        if development:
            assert [name for name, _ in builderwork._hosts(work)] == ["host.crt"]
            continue
        with pytest.raises(Stop) as stop:
            builderwork._hosts(work)
        assert stop.value.id == "HPL17006E"


def test_a_keyset_in_which_a_key_stands_twice_is_refused(run: Run, hosts: Path) -> None:
    assert run("keyset", "create", "set.json", "--host-key=stranger.crt", "--no-verify").code == 0
    path = hosts / "set.json"
    path.write_bytes(path.read_bytes().replace(b"{", b'{\n "verified": true,', 1))
    result = run("keyset", "show", "set.json", "--json")
    assert result.code == 1 and json.loads(result.out)["error"]["id"] == "KEYSET"


@given(
    st.binary(max_size=120)
    | st.dictionaries(st.text(max_size=9), st.text(max_size=9)).map(lambda d: json.dumps(d).encode())
)
def test_any_bytes_are_a_keyset_or_refused(data: bytes) -> None:
    with pytest.raises(CasemateError):
        keyset.parse(data)
