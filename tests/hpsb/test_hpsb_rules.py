"""The rules of secure builds that need no server: configuration, jobs, Containerfiles, images on disk, state, manifests."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from casemate.demo.pki import Authority
from casemate.hpsb import containerfile, layout, manifest, vault
from casemate.hpsb.client import settings
from casemate.hpsb.config import Config, parse_config, parse_job, registry_hosts, repository_login
from casemate.hpsb.errors import BuildError
from casemate.hpsb.sandbox import Sandbox, bundle
from casemate.hpsb.server import told_by
from casemate.hpsb.vault import Built, Secrets, State

DIGEST = f"sha256:{'1' * 64}"
GOOD: dict[str, Any] = {
    "repositories": {
        "https://git.example.com/team/": {"username": "u", "password": "p"},
        "https://git.example.com/one.git": None,
    },
    "registries": {"docker.io": {"hosts": ["auth.docker.io"]}, "r.example.com:5000": {}},
    "images": {"r.example.com:5000/team/app": {"username": "u", "password": "p"}},
}
JOB = {
    "repository": "https://git.example.com/team/app.git",
    "revision": "a" * 40,
    "name": "r.example.com:5000/team/app",
}
AUTHORITY = Authority.create("Servers").certificate.decode()
PARTIES = Secrets("w" * 20, "e" * 20)


def config(**more: Any) -> Config:
    return parse_config(json.dumps({**GOOD, **more}))


def refusal(act: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(BuildError) as error:
        act(*arguments, **more)
    return error.value.id


# ------------------------------------------------------------------------------------------------- configuration and jobs


def test_a_configuration_says_what_may_be_reached() -> None:
    found = config(hosts=["deb.debian.org", "x.example:8443"], addresses={"r.example.com:5000": "10.0.0.7:5000"})
    assert found.hosts == ("deb.debian.org:443", "x.example:8443")
    assert config(authorities=f"words\n{AUTHORITY}").authorities
    assert found.addresses == {"r.example.com:5000": ("10.0.0.7", 5000)}
    assert registry_hosts("docker.io", found.registries["docker.io"]) == (
        "registry-1.docker.io:443",
        "auth.docker.io:443",
    )
    assert registry_hosts("r.example.com:5000", found.registries["r.example.com:5000"]) == ("r.example.com:5000",)
    assert repository_login(found, "https://git.example.com/one.git/x") is None
    login = repository_login(found, "https://git.example.com/team/x.git")
    assert login is not None and login.username == "u" and "p" not in repr(login).replace("password", "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"repositories": {}},
        {"repositories": {"http://x/": {}}},
        {"repositories": {"https://x/../": {}}},
        {"repositories": []},
        {"images": {}},
        {"images": {"r.example.com/app:1": {}}},
        {"images": {"r.example.com/App": {}}},
        {"images": {"app": {}}},
        {"registries": {"a/b": {}}},
        {"registries": {"a": {"user": "x"}}},
        {"registries": {"a": {"password": "a b"}}},
        {"hosts": "x"},
        {"hosts": ["https://x"]},
        {"hosts": ["*"]},
        {"addresses": {"a:1": "b:1"}},
        {"addresses": {"a": "1.2.3.4"}},
        {"limits": {"minutes": 0}},
        {"limits": {"minutes": True}},
        {"limits": {"hours": 1}},
        {"authorities": 1},
        {"authorities": "nonsense"},
        {"authorities": AUTHORITY + AUTHORITY.replace(" CERTIFICATE", " X509 CRL")},
        {"addresses": {"a:1": "1.2.3.4:99999999"}},
        {"addresses": {"a:99999": "1.2.3.4:1"}},
        {"hosts": ["a:99999"]},
        {"hosts": ["a:0"]},
        {"registries": {"a": {"hosts": ["b:65536"]}}},
        {"registries": {"a:65536": {}}},
        {"repositories": {"https://x:65536/": {}}},
        {"more": 1},
    ],
)
def test_a_mistake_in_the_configuration_is_told(wrong: dict[str, Any]) -> None:
    assert refusal(config, **wrong) == "HPSB-CONFIG"


@given(some.text())
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    assert refusal(parse_config, text) == "HPSB-CONFIG"


@pytest.mark.parametrize(
    ("change", "id"),
    [
        ({"revision": "main"}, "REVISION"),
        ({"revision": "a" * 39}, "REVISION"),
        ({"revision": "A" * 40}, "REVISION"),
        ({"repository": "https://git.example.com/team/../x"}, "REPOSITORY"),
        ({"repository": "https://evil.example/x"}, "REPOSITORY"),
        ({"repository": "https://git.example.com/teams/x"}, "REPOSITORY"),
        ({"repository": "https://git.example.com/team/x\n"}, "REPOSITORY"),
        ({"name": "r.example.com:5000/team/other"}, "NAME"),
        ({"tag": "a b"}, "JOB"),
        ({"tag": "sha256-x.sig"}, "JOB"),
        ({"expect": "sha256:1"}, "JOB"),
        ({"arguments": {"A-B": "x"}}, "JOB"),
        ({"arguments": {"A": "x\ny"}}, "JOB"),
        ({"arguments": {"https_proxy": "x"}}, "JOB"),
        ({"arguments": ["A=x"]}, "JOB"),
        ({"arguments": {"A": "x" * 5000}}, "JOB"),
        ({"containerfile": "../x"}, "CONTAINERFILE"),
        ({"containerfile": "/x"}, "CONTAINERFILE"),
        ({"containerfile": "a/.git/x"}, "CONTAINERFILE"),
        ({"more": 1}, "JOB"),
        ({"revision": 1}, "JOB"),
    ],
)
def test_a_job_that_does_not_fit_the_configuration_is_refused(change: dict[str, Any], id: str) -> None:
    assert refusal(parse_job, {**JOB, **change}, config()) == f"HPSB-{id}"


def test_a_job_has_defaults_and_inputs_that_decide_the_result() -> None:
    job = parse_job(JOB, config())
    assert (job.containerfile, job.tag) == ("Containerfile", "a" * 12)
    assert job.inputs() == parse_job({**JOB, "tag": "other", "expect": DIGEST}, config()).inputs()
    for change in ({"arguments": {"A": "1"}}, {"containerfile": "x"}, {"revision": "b" * 40}):
        assert parse_job({**JOB, **change}, config()).inputs() != job.inputs()


def test_a_server_that_is_not_told_everything_does_not_start() -> None:
    assert refusal(told_by, {}) == "HPSB-CONFIG"
    text = {
        name: "x"
        for name in ("CLIENT_CA", "SERVER_CRT", "SERVER_KEY", "HPSB_CONFIG", "HPSB_SECRET_WORKLOAD", "HPSB_SECRET_ENV")
    }
    assert refusal(told_by, text) == "HPSB-CONFIG"
    for parties in (Secrets("short", "e" * 20), Secrets("same" * 5, "same" * 5)):
        assert refusal(parties.check) == "HPSB-SECRETS"


def test_settings_name_files_beside_them() -> None:
    text = b"{server: 'https://x:1', ca: a, certificate: b, key: c, keys: d}"
    assert settings(text, Path("/there")).key == Path("/there/c")
    for wrong in (b"{}", b"[", text.replace(b"https", b"http"), text.replace(b"ca: a", b"ca: 1")):
        assert refusal(settings, wrong, Path()) == "HPSB-SETTINGS"
    for host in (b"a..b:1", b"a" * 64, b"x:99999", b"x:65536", b"x:0", b"..", b"."):
        assert refusal(settings, text.replace(b"x:1", host), Path()) == "HPSB-SETTINGS"
    assert refusal(settings, text.replace(b"ca: a", b'ca: "a\\0"'), Path()) == "HPSB-SETTINGS"


# ------------------------------------------------------------------------------------------------- Containerfiles


def bases(text: str, **arguments: str) -> list[str]:
    return [base.written for base in containerfile.bases(text.encode(), arguments)]


def test_all_images_of_a_containerfile_are_found() -> None:
    text = f"""\
# syntax=none
ARG TAG="{DIGEST}"
ARG NAME=one
FROM --platform=linux/amd64 r.example/$NAME@${{TAG}} AS first
COPY --from=r.example/two@{DIGEST} /a /b
FROM first AS second
RUN --mount=type=bind,from=r.example/three@{DIGEST},target=/x \\
    # a comment
    echo FROM nothing
RUN <<END
FROM nothing:1
END
COPY --from=first /a /b
COPY --from=0 /a /b
FROM scratch
"""
    assert bases(text) == [f"r.example/{name}@{DIGEST}" for name in ("one", "two", "three")]
    assert bases(text, NAME="other")[0] == f"r.example/other@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("FROM a:1", "BASE-TAG"),
        ("FROM a", "BASE-TAG"),
        (f"FROM a@{DIGEST}\nADD https://x /y", "ADD-URL"),
        (f"FROM a@{DIGEST}\nADD --chown=1 git@github.com:x/y.git /y", "ADD-URL"),
        ("RUN x", "CONTAINERFILE"),
        ("", "CONTAINERFILE"),
        ("FROM $A", "CONTAINERFILE"),
        (f"FROM a@{DIGEST} AS", "CONTAINERFILE"),
        ("FROM A@B", "BASE"),
        (f"FROM \\\na@{DIGEST}\nadd https://x /y", "ADD-URL"),
        (f"# escape=`\nFROM a@{DIGEST}\nADD `\nhttps://x /y", "ADD-URL"),
        ("FROM scratch\n" + "".join(f"COPY --from=r.example/{n}@{DIGEST} / /\n" for n in range(33)), "CONTAINERFILE"),
    ],
)
def test_what_can_change_is_refused_before_anything_is_built(text: str, id: str) -> None:
    assert refusal(bases, text) == f"HPSB-{id}"


@given(
    some.one_of(some.binary(), some.text().map(str.encode), some.text(alphabet="FROM ARGD<\n\\$={}@:a").map(str.encode))
)
def test_any_bytes_are_a_containerfile_or_refused(data: bytes) -> None:
    with contextlib.suppress(BuildError):
        containerfile.bases(data, {})


# ------------------------------------------------------------------------------------------------- images out of a sandbox


def image(place: Path, layer: bytes = b"layer") -> dict[str, Any]:
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes) -> dict[str, Any]:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"digest": f"sha256:{name}", "size": len(content), "mediaType": layout.MANIFEST}

    parts = {"layer": blob(layer), "config": blob(b"{}")}
    made = {"schemaVersion": 2, "mediaType": layout.MANIFEST, "config": parts["config"], "layers": [parts["layer"]]}
    parts["manifest"] = blob(json.dumps(made).encode())
    (place / "index.json").write_text(json.dumps({"manifests": [parts["manifest"]]}))
    return parts


def test_an_image_is_what_its_digests_say(tmp_path: Path) -> None:
    parts = image(tmp_path)
    found = layout.read(tmp_path)
    assert (found.digest, found.size) == (parts["manifest"]["digest"], 5)
    assert refusal(layout.read, tmp_path, DIGEST) == "HPSB-LAYOUT"


@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
@pytest.mark.parametrize("how", ["changed", "longer", "gone", "link", "pipe", "directory"])
def test_an_image_with_a_part_that_is_another_is_refused(tmp_path: Path, part: str, how: str) -> None:
    parts = image(tmp_path)
    path = tmp_path / "blobs/sha256" / parts[part]["digest"][7:]
    content = path.read_bytes()
    path.unlink()
    if how == "changed":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif how == "longer":
        path.write_bytes(content + b" ")
    elif how == "link":  # to a file with the right content, even
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    assert refusal(layout.read, tmp_path) == "HPSB-LAYOUT"


def test_a_link_on_the_way_to_a_part_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "real")
    (tmp_path / "made").mkdir()
    (tmp_path / "made/blobs").symlink_to(tmp_path / "real/blobs")
    (tmp_path / "made/index.json").write_bytes((tmp_path / "real/index.json").read_bytes())
    assert refusal(layout.read, tmp_path / "made") == "HPSB-LAYOUT"
    (tmp_path / "whole").symlink_to(tmp_path / "real")
    with pytest.raises(OSError):
        layout.read(tmp_path / "whole")


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"manifests": []}',
        b'{"manifests": [1]}',
        b'{"manifests": [{}, {}]}',
        b'{"manifests": [], "manifests": []}',
        b'{"manifests": [{"digest": "sha256:../../x", "size": 1}]}',
        b'{"manifests": [{"digest": "%s", "size": -1}]}' % DIGEST.encode(),
    ],
)
def test_an_index_of_another_form_is_refused(tmp_path: Path, index: bytes) -> None:
    image(tmp_path)
    (tmp_path / "index.json").write_bytes(index)
    assert refusal(layout.read, tmp_path) == "HPSB-LAYOUT"


def test_an_index_without_this_machines_kind_is_refused() -> None:
    entry = {"digest": DIGEST, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    index = json.dumps({"manifests": [entry]}).encode()
    assert layout.instance(index, "amd64") == DIGEST and layout.instance(b"{}", "amd64") is None
    assert refusal(layout.instance, index, "s390x") == "HPSB-BASE"


# ------------------------------------------------------------------------------------------------- sandbox


def test_a_sandbox_shows_its_own_places_and_no_others(tmp_path: Path) -> None:
    box = Sandbox("x", tmp_path, ("true",), tmp_path / "work", {"/context": tmp_path / "context"})
    made = bundle(box, tmp_path)
    writable = [each["destination"] for each in made["mounts"] if "rw" in each.get("options", ())]
    assert sorted(writable) == ["/tmp", "/var/tmp", "/work"]
    assert {each["destination"] for each in made["mounts"] if each["type"] == "bind"} == {*writable, "/usr", "/context"}
    kinds = {each["type"] for each in made["linux"]["namespaces"]}
    assert kinds == {"user", "mount", "pid", "network", "ipc", "uts", "cgroup"}
    assert made["process"]["noNewPrivileges"] and made["root"]["readonly"]
    assert not {"CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_SYS_MODULE"} & set(made["process"]["capabilities"]["bounding"])


# ------------------------------------------------------------------------------------------------- state and manifests


def state(**more: Any) -> State:
    made = vault.create("a gpg key")
    return State(**{**{name: getattr(made, name) for name in State.__slots__}, **more})


def test_a_state_comes_back_with_both_secrets_only() -> None:
    built = Built("1" * 64, "r/x", "1", DIGEST, "job", "2026-01-01T00:00:00Z")
    whole = state().with_build(built)
    data = vault.seal(whole, PARTIES)
    assert vault.open_state(data, PARTIES) == whole and vault.generation_of(data) == 2
    assert b"PRIVATE" not in data and "PRIVATE" not in repr(whole) and "gpg key" not in repr(whole)
    assert whole.digests("1" * 64) == [DIGEST] and whole.tags("r/x", DIGEST) == ["1"]
    for other in (Secrets("w" * 20, "x" * 20), Secrets("x" * 20, "e" * 20), Secrets("e" * 20, "w" * 20)):
        assert refusal(vault.open_state, data, other) == "HPSB-STATE"
    shifted = Secrets("w" * 20 + "e", "e" * 19)  # the same characters, cut elsewhere
    assert refusal(vault.open_state, data, shifted) == "HPSB-STATE"


@given(some.data())
def test_a_state_that_was_changed_anywhere_is_refused(data: some.DataObject) -> None:
    whole = vault.seal(State("0" * 32, 3, "g", "c", "m"), PARTIES)
    place, bit = data.draw(some.integers(0, len(whole) - 1)), data.draw(some.integers(0, 7))
    changed = bytes([*whole[:place], whole[place] ^ (1 << bit), *whole[place + 1 :]])
    assert refusal(vault.open_state, changed, PARTIES) == "HPSB-STATE"
    cut = whole[: data.draw(some.integers(0, len(whole) - 1))]
    assert refusal(vault.open_state, cut, PARTIES) == "HPSB-STATE"


def test_the_oldest_builds_are_forgotten_and_not_the_newest() -> None:
    built = Built("1" * 64, "r/x", "1", DIGEST, "job", "now")
    whole = state(builds=(built,) * vault.MOST_BUILDS).with_build(Built("2" * 64, "r/x", "new", DIGEST, "job", "now"))
    assert len(whole.builds) == vault.MOST_BUILDS and whole.builds[-1].tag == "new"


@given(some.one_of(some.binary(), some.text().map(str.encode)))
def test_any_bytes_are_a_signed_manifest_or_refused(data: bytes) -> None:
    assert refusal(manifest.verify, data, KEYS) == "HPSB-MANIFEST"
    assert refusal(manifest.parse_keys, data) == "HPSB-KEYS"


_STATE = vault.create("g")
KEYS = manifest.Keys(_STATE.server, "g", manifest.public_of(_STATE.cosign), manifest.public_of(_STATE.manifest))


def test_a_manifest_holds_for_its_key_and_its_keys_only() -> None:
    shown = {"gpg": KEYS.gpg, "cosign": KEYS.cosign}
    signed = manifest.sign({"server": {"id": KEYS.server}, "keys": shown}, _STATE.manifest)
    assert manifest.verify(signed, KEYS)["format"] == manifest.FORMAT
    by_another = manifest.sign({"server": {"id": KEYS.server}, "keys": shown}, _STATE.cosign)
    other_keys = manifest.sign({"server": {"id": KEYS.server}, "keys": {**shown, "gpg": "x"}}, _STATE.manifest)
    other_server = manifest.sign({"server": {"id": "f" * 32}, "keys": shown}, _STATE.manifest)
    for wrong in (by_another, other_keys, other_server, signed.replace(b"secure-build", b"secure-guild")):
        assert refusal(manifest.verify, wrong, KEYS) == "HPSB-MANIFEST"
    assert manifest.parse_keys(json.dumps(KEYS.document()).encode()) == KEYS


def test_keys_of_a_curve_that_nobody_knows_are_refused() -> None:
    one = state()
    good = manifest.Keys("a" * 32, "gpg", manifest.public_of(one.cosign), manifest.public_of(one.manifest)).document()
    assert manifest.parse_keys(json.dumps(good).encode()).server == "a" * 32
    der = base64.b64decode("".join(good["cosign"].splitlines()[1:-1]))
    p256, other = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d03017f")
    assert p256 in der
    text = base64.b64encode(der.replace(p256, other)).decode()
    good["cosign"] = f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"
    assert refusal(manifest.parse_keys, json.dumps(good).encode()) == "HPSB-KEYS"


def test_every_identifier_stands_on_the_page() -> None:
    root = Path(__file__).parents[2]
    source = "".join(
        path.read_text() for path in [*(root / "src/casemate/hpsb").glob("*.py"), root / "src/casemate/cli/build.py"]
    )
    used = set(re.findall(r'refused\(\s*"([A-Z-]+)"', source)) | {"STOPPED", "TIME", "SIZE"}
    assert len(used) > 30
    page = (root / "docs/secure-build.md").read_text().partition("## Identifiers")[2]
    assert used - set(re.findall(r"`(?:HPSB)?-([A-Z-]+)`", page)) == set()
