"""Images by their signatures: a real registry, real signers, and the engine that the guest has, with the guest's own policy.

Each attack is one that whoever runs the registry, the notary server or the network can make.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
import shutil
import socket
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from tuf_kit import certified

from casemate.contract import tuf
from casemate.contract.admission import lookups, policy
from casemate.contract.images import parse_reference
from casemate.demo import images
from casemate.demo.services import Registry, free_port
from casemate.guest import image, imagepolicy, state, web
from casemate.guest.report import Stop
from signers import Cosign, Door, Gpg, Notary, tool

pytestmark = pytest.mark.components
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Layout:
    """A small image of its own: nothing in it but one file."""

    path: Path
    digest: str
    size: int


def layout(directory: Path, content: str, layer: bytes = b"\0" * 10240) -> Layout:
    recipe = images.Recipe(name="tiny", packages=(), paths=(), config={"Cmd": [content]})
    images._write_layout(directory, layer, recipe)
    digest = images.digest(directory)
    return Layout(directory, digest, (directory / "blobs/sha256" / digest[7:]).stat().st_size)


@dataclass(frozen=True)
class Around:
    door: Door
    notary: Notary
    good: Layout
    evil: Layout
    mine: Gpg
    theirs: Gpg


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    directory = tmp_path_factory.mktemp("signed")
    keys = Path(tempfile.mkdtemp(prefix="gpg-"))  # sockets of GPG's agent want a short path
    good, evil = layout(directory / "good", "good"), layout(directory / "evil", "evil")
    mine, theirs = Gpg.create(keys / "mine"), Gpg.create(keys / "theirs")
    try:
        with (
            Registry.running(directory / "registry") as registry,
            Door.running(registry, directory / "door") as door,
            Notary.running(directory / "notary") as server,
        ):
            yield Around(door, server, good, evil, mine, theirs)
    finally:
        mine.close()
        theirs.close()
        shutil.rmtree(keys, ignore_errors=True)  # the agent takes its sockets away when it likes


@pytest.fixture
def engine(guest: Path, around: Around, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guest's engine on this machine, its store and settings under a temporary directory."""
    home = guest / "home"
    settings = home / ".config/containers"
    settings.mkdir(parents=True)
    (settings / "policy.json").symlink_to(imagepolicy.POLICY)
    (settings / "registries.d").symlink_to(imagepolicy.LOOKUPS.parent)
    store = Path(tempfile.mkdtemp(prefix="store-"))
    places = ("--root", str(store / "root"), "--runroot", str(store / "run"), "--storage-driver", "vfs")
    monkeypatch.setattr(image, "ENGINE", ("/usr/bin/env", f"HOME={home}", "/usr/bin/podman", *places))
    state.write_json(state.AUTH, around.door.auth)
    state.write(state.CERTIFICATES / "door.crt", around.door.authority)
    state.write(state.CERTIFICATES / "notary.crt", around.notary.authority)
    yield store
    shutil.rmtree(store)


def admit(reference: str, keys: dict[str, Any], now: datetime.datetime | None = None) -> dict[str, str]:
    """What ``hpl-image-policy`` does with one image."""
    signed = imagepolicy.Signed(now or datetime.datetime.now(datetime.UTC))
    found = imagepolicy.admitted({"images": keys}, [parse_reference(reference)], signed.digest)
    state.write(imagepolicy.POLICY, json.dumps(policy(found)), 0o644)
    state.write(imagepolicy.LOOKUPS, json.dumps(lookups(found)), 0o644)
    (one,) = found
    return {"named": one.named, "pulled": one.pulled}


def start(reference: str, keys: dict[str, Any], now: datetime.datetime | None = None) -> str:
    """Admit and pull one image; return its command, which says which one it is."""
    image.pull(**admit(reference, keys, now))
    said = state.call(*image.ENGINE, "image", "inspect", "--format", "{{index .Config.Cmd 0}}", reference)
    return said.strip()


def refused(reference: str, keys: dict[str, Any], now: datetime.datetime | None = None) -> Stop:
    with pytest.raises(Stop) as stop:
        start(reference, keys, now)
    assert state.call(*image.ENGINE, "image", "list", "--quiet").strip() == ""
    return stop.value


def rhs(name: str, key: Gpg, **more: str) -> dict[str, Any]:
    return {"rhs": {name: {"publicKey": key.public(), **more}}}


SIGNER = generate_private_key(SECP256R1())


def cosign(name: str, key: EllipticCurvePrivateKey = SIGNER, public: bytes = b"") -> dict[str, Any]:
    pem = public or key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {"cosign": {name: {"publicKey": base64.b64encode(pem).decode()}}}


# ------------------------------------------------------------------------------------------------- digests


def test_an_image_by_digest_needs_no_key(engine: Path, around: Around) -> None:
    around.door.push(around.good.path, "plain/app:1")
    assert start(f"{around.door.here}/plain/app@{around.good.digest}", {}) == "good"


def test_an_image_that_the_contract_does_not_name_is_rejected(engine: Path, around: Around) -> None:
    around.door.push(around.good.path, "plain/app:1")
    admit(f"{around.door.here}/plain/app@{around.evil.digest}", {})
    for other in (f"plain/app@{around.good.digest}", "plain/app:1"):
        name = f"{around.door.here}/{other}"
        with pytest.raises(Stop) as stop:
            image.pull(name, name)
        assert stop.value.id == "HPL16005E", stop.value


def test_a_registry_that_gives_other_content_under_a_digest_is_refused(engine: Path, around: Around) -> None:
    around.door.push(around.evil.path, "plain/app:1")
    content = (around.evil.path / "blobs/sha256" / around.evil.digest[7:]).read_bytes()
    path = f"/v2/plain/app/manifests/sha256:{'ab' * 32}"
    around.door.lies[path] = (content, MANIFEST)
    stop = refused(f"{around.door.here}/plain/app@sha256:{'ab' * 32}", {})
    assert stop.id == "HPL06004E" and f"GET {path}" in around.door.asked


def test_an_image_by_tag_without_a_key_is_not_even_asked_for(engine: Path, around: Around) -> None:
    before = len(around.door.asked)
    assert refused(f"{around.door.here}/plain/app:1", {}).id == "HPL06010E"
    assert refused(f"{around.door.here}/plain/app:1", rhs(f"{around.door.here}/other", around.mine)).id == "HPL06010E"
    assert len(around.door.asked) == before


# ------------------------------------------------------------------------------------------------- simple signing


def sign(around: Around, name: str, key: Gpg | None = None, what: Layout | None = None, identity: str = "") -> str:
    """Push and sign an image; return its whole reference."""
    whole = f"{around.door.here}/{name}"
    around.door.push_rhs((what or around.good).path, name, key or around.mine, identity or whole)
    return whole


def test_an_image_signed_by_the_key_of_the_contract_starts(engine: Path, around: Around) -> None:
    whole = sign(around, "rhs/good:1")
    assert around.door.signatures
    assert start(whole, rhs(f"{around.door.here}/rhs/good", around.mine)) == "good"


def test_signatures_may_lie_at_a_lookaside(engine: Path, around: Around, tmp_path: Path) -> None:
    """A registry without the extension: the door at another port would serve it; here the real registry has none."""
    registry = around.door.registry
    here = f"127.0.0.1:{registry.port}"
    registry.push(around.good.path, "aside/app", "1")
    manifest = around.good.path / "blobs/sha256" / around.good.digest[7:]
    tool(
        *("skopeo", "standalone-sign", manifest, f"{here}/aside/app:1", around.mine.fingerprint),
        *("--output", tmp_path / "signature"),
        env=around.mine.env,
    )
    path = f"/lookaside/aside/app@{around.good.digest.replace(':', '=')}/signature-1"
    around.door.lies[path] = ((tmp_path / "signature").read_bytes(), "application/octet-stream")
    state.write(state.CERTIFICATES / "registry.crt", registry.authority)
    login = base64.b64encode(f"{registry.user}:{registry.password}".encode()).decode()
    state.write_json(state.AUTH, {"auths": {here: {"auth": login}}})
    name = f"{here}/aside/app"
    assert refused(f"{name}:1", rhs(name, around.mine)).id == "HPL16005E"
    keys = rhs(name, around.mine, lookaside=f"https://{around.door.here}/lookaside")
    assert start(f"{name}:1", keys) == "good"
    assert f"GET {path}" in around.door.asked


def test_a_tag_moved_to_an_unsigned_image_is_refused(engine: Path, around: Around) -> None:
    whole = sign(around, "rhs/moved:1")
    around.door.push(around.evil.path, "rhs/moved:1")
    stop = refused(whole, rhs(f"{around.door.here}/rhs/moved", around.mine))
    assert stop.id == "HPL16005E" and "no signature exists" in stop.detail


def test_the_signature_of_another_image_does_not_count(engine: Path, around: Around) -> None:
    whole = sign(around, "rhs/other:1")
    around.door.push(around.evil.path, "rhs/other:1")
    stolen = around.door.signatures[f"rhs/other/signatures/{around.good.digest}"]
    around.door.signatures[f"rhs/other/signatures/{around.evil.digest}"] = stolen
    assert refused(whole, rhs(f"{around.door.here}/rhs/other", around.mine)).id == "HPL16005E"


def test_a_signature_for_another_tag_or_repository_does_not_count(engine: Path, around: Around) -> None:
    """The tag is moved to another image that is signed just as well, for its own name."""
    for number, identity in enumerate(("rhs/renamed0:2", "elsewhere/renamed1:1")):
        name = f"rhs/renamed{number}"
        whole = sign(around, f"{name}:1", identity=f"{around.door.here}/{identity}")
        stop = refused(whole, rhs(f"{around.door.here}/{name}", around.mine))
        assert stop.id == "HPL16005E" and identity in stop.detail


def test_a_signature_by_another_key_is_refused(engine: Path, around: Around) -> None:
    whole = sign(around, "rhs/theirs:1", around.theirs)
    assert refused(whole, rhs(f"{around.door.here}/rhs/theirs", around.mine)).id == "HPL16005E"


def test_an_image_whose_signature_is_withheld_is_refused(engine: Path, around: Around) -> None:
    whole = sign(around, "rhs/bare:1")
    del around.door.signatures[f"rhs/bare/signatures/{around.good.digest}"]
    assert refused(whole, rhs(f"{around.door.here}/rhs/bare", around.mine)).id == "HPL16005E"


# ------------------------------------------------------------------------------------------------- cosign's keys


def sealed(around: Around, name: str, what: Layout | None = None, **changed: Any) -> str:
    """Push an image and a signature in cosign's form beside it; return its whole reference."""
    what, whole = what or around.good, f"{around.door.here}/{name}"
    around.door.push(what.path, name)
    values = {"key": SIGNER, "identity": whole, **changed}
    around.door.sign_as_cosign(what.path, name, **values)
    return whole


def test_an_image_signed_in_cosigns_form_starts(engine: Path, around: Around) -> None:
    assert start(sealed(around, "cosign/good:1"), cosign(f"{around.door.here}/cosign/good")) == "good"


def test_a_tag_moved_to_an_image_without_cosigns_signature_is_refused(engine: Path, around: Around) -> None:
    whole = sealed(around, "cosign/moved:1")
    around.door.push(around.evil.path, "cosign/moved:1")
    stop = refused(whole, cosign(f"{around.door.here}/cosign/moved"))
    assert stop.id == "HPL16010E" and "no signature" in stop.detail


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "sha256:" + "ab" * 32}, "of another image"),
        ({"type": "atomic container signature"}, "of another image"),
        ({"key": generate_private_key(SECP256R1())}, "by another key"),
        ({"identity": "r.example.com/cosign/changed:1"}, "for another name or tag"),
    ],
)
def test_a_signature_of_another_image_key_or_name_does_not_count(
    engine: Path, around: Around, change: dict[str, Any], said: str
) -> None:
    whole = sealed(around, "cosign/changed:1", **change)
    stop = refused(whole, cosign(f"{around.door.here}/cosign/changed"))
    assert stop.id == "HPL16010E" and said in stop.detail


def test_a_tag_moved_to_an_image_signed_under_another_tag_is_refused(engine: Path, around: Around) -> None:
    name = f"{around.door.here}/cosign/tags"
    sealed(around, "cosign/tags:1", around.evil)
    sealed(around, "cosign/tags:2")
    around.door.push(around.evil.path, "cosign/tags:2")
    assert "for another name or tag" in refused(f"{name}:2", cosign(name)).detail


def test_an_image_moved_between_the_check_and_the_pull_is_pulled_as_checked(engine: Path, around: Around) -> None:
    whole = sealed(around, "cosign/race:1")
    found = admit(whole, cosign(f"{around.door.here}/cosign/race"))
    around.door.push(around.evil.path, "cosign/race:1")
    image.pull(**found)
    assert found["pulled"].endswith(around.good.digest)
    assert "good" in state.call(*image.ENGINE, "image", "inspect", whole)


def test_an_image_with_two_keys_needs_both(engine: Path, around: Around) -> None:
    name = f"{around.door.here}/both/app"
    both = rhs(name, around.mine) | cosign(name)
    sign(around, "both/app:1")
    assert refused(f"{name}:1", both).id == "HPL16010E"
    sealed(around, "both/app:1")
    assert start(f"{name}:1", both) == "good"
    around.door.signatures.clear()
    state.call(*image.ENGINE, "rmi", "--all", "--force")
    assert refused(f"{name}:1", both).id == "HPL16005E"


# ------------------------------------------------------------------------------------------------- cosign itself

KINDS: dict[str, Callable[[], Any] | None] = {
    "as cosign makes it": None,  # ECDSA with P-256
    "P-384": lambda: generate_private_key(SECP384R1()),
    "P-521": lambda: generate_private_key(SECP521R1()),
    "RSA of 2048 bits": lambda: rsa.generate_private_key(65537, 2048),
    "RSA of 4096 bits": lambda: rsa.generate_private_key(65537, 4096),
}


@pytest.fixture(scope="module")
def real(around: Around, tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    return Cosign.built(around.door, tmp_path_factory.mktemp("cosign") / "home")


@pytest.fixture(scope="module")
def pair(real: Cosign) -> Path:
    return real.pair("pair")


def by(key: Path, name: str) -> dict[str, Any]:
    return cosign(name, public=key.with_suffix(".pub").read_bytes())


def signatures_of(what: Layout) -> str:
    return f"{what.digest.replace(':', '-')}.sig"


def together(directory: Path, *parts: Layout) -> Layout:
    """An image for several platforms, this one first."""
    blobs = directory / "blobs/sha256"
    for part in parts:
        shutil.copytree(part.path / "blobs", directory / "blobs", dirs_exist_ok=True)
    platforms = [{"os": "linux", "architecture": name} for name in ("amd64", "s390x")]
    listed = [
        {"mediaType": MANIFEST, "digest": part.digest, "size": part.size, "platform": platform}
        for part, platform in zip(parts, platforms, strict=True)
    ]
    media = MANIFEST.replace("manifest", "index")
    content = json.dumps({"schemaVersion": 2, "mediaType": media, "manifests": listed}).encode()
    name = hashlib.sha256(content).hexdigest()
    (blobs / name).write_bytes(content)
    top = {"mediaType": media, "digest": f"sha256:{name}", "size": len(content)}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return Layout(directory, f"sha256:{name}", len(content))


@pytest.mark.parametrize("kind", KINDS)
def test_what_cosign_has_signed_with_any_key_starts_and_nothing_else_does(
    engine: Path, around: Around, real: Cosign, pair: Path, kind: str
) -> None:
    path = f"cosign/{re.sub('[^a-z0-9]', '', kind.lower())}"
    name, make = f"{around.door.here}/{path}", KINDS[kind]
    key = real.pair(path.rpartition("/")[2], make() if make else None)
    around.door.push(around.good.path, f"{path}:1")
    real.sign(key, f"{name}@{around.good.digest}", "-a", "team=blue", "--sign-container-identity", f"{name}:1")
    assert "by another key" in refused(f"{name}:1", by(pair, name)).detail
    around.door.push(around.good.path, f"{path}:2")
    assert "for another name or tag" in refused(f"{name}:2", by(key, name)).detail
    around.door.push(around.evil.path, f"{path}:2")
    assert "no signature" in refused(f"{name}:2", by(key, name)).detail
    assert start(f"{name}:1", by(key, name)) == "good"


def test_what_cosign_writes_and_is_not_looked_at_does_not_count(
    engine: Path, around: Around, real: Cosign, pair: Path
) -> None:
    """Its bundles, which name no tag, and Ed25519ph: here as where nobody has signed."""
    name, ed25519 = f"{around.door.here}/cosign/new", real.pair("ed25519", Ed25519PrivateKey.generate())
    around.door.push(around.good.path, "cosign/new:1")
    identity = ("--sign-container-identity", f"{name}:1")
    real.sign(pair, f"{name}@{around.good.digest}", *identity, "--new-bundle-format=true")
    assert f"PUT /v2/cosign/new/manifests/{around.good.digest.replace(':', '-')}" in around.door.asked
    assert "no signature" in refused(f"{name}:1", by(pair, name)).detail
    real.sign(ed25519, f"{name}@{around.good.digest}", *identity)
    assert "by another key" in refused(f"{name}:1", by(ed25519, name)).detail
    real.sign(pair, f"{name}@{around.good.digest}", *identity)
    assert start(f"{name}:1", by(pair, name)) == "good"


def test_of_two_signatures_of_cosign_the_one_for_the_tag_counts(
    engine: Path, around: Around, real: Cosign, pair: Path
) -> None:
    name = f"{around.door.here}/cosign/twice"
    around.door.push(around.good.path, "cosign/twice:1")
    real.sign(pair, f"{name}@{around.good.digest}")
    stop = refused(f"{name}:1", by(pair, name))
    assert stop.id == "HPL16010E" and "--sign-container-identity" in stop.detail
    real.sign(pair, f"{name}@{around.good.digest}", "--sign-container-identity", f"{name}:1")
    assert start(f"{name}:1", by(pair, name)) == "good"


def test_of_an_image_for_several_platforms_the_whole_is_signed(
    engine: Path, around: Around, real: Cosign, pair: Path, tmp_path: Path
) -> None:
    name, whole = f"{around.door.here}/cosign/whole", together(tmp_path / "whole", around.good, around.evil)
    around.door.push(whole.path, "cosign/whole:1", "--all")
    identity = ("--sign-container-identity", f"{name}:1")
    real.sign(pair, f"{name}@{around.good.digest}", *identity)  # one platform's
    assert "no signature" in refused(f"{name}:1", by(pair, name)).detail
    real.sign(pair, f"{name}@{whole.digest}", *identity)
    assert start(f"{name}:1", by(pair, name)) == "good"


def test_a_signature_of_cosign_that_was_moved_or_changed_is_refused(
    engine: Path, around: Around, real: Cosign, pair: Path
) -> None:
    door, name = around.door, f"{around.door.here}/cosign/stolen"
    door.push(around.good.path, "cosign/stolen:1")
    real.sign(pair, f"{name}@{around.good.digest}", "--sign-container-identity", f"{name}:1")
    server = imagepolicy.Signed(datetime.datetime.now(datetime.UTC))._server(door.here, door.here)
    place = "/v2/cosign/stolen"
    listed = server.get(f"{place}/manifests/{signatures_of(around.good)}", 1 << 20, MANIFEST)
    payload = f"{place}/blobs/{json.loads(listed)['layers'][0]['digest']}"
    signed = server.get(payload, 1 << 20)
    door.push(around.evil.path, "cosign/stolen:1")
    door.lies[f"{place}/manifests/{signatures_of(around.evil)}"] = (listed, MANIFEST)
    assert "of another image" in refused(f"{name}:1", by(pair, name)).detail
    changed = signed.replace(around.good.digest.encode(), around.evil.digest.encode())
    door.lies[payload] = (changed, "application/octet-stream")
    assert "by another key" in refused(f"{name}:1", by(pair, name)).detail
    digest = f"sha256:{hashlib.sha256(changed).hexdigest()}"
    again = listed.replace(payload.rpartition("/")[2].encode(), digest.encode())
    door.lies[f"{place}/manifests/{signatures_of(around.evil)}"] = (again, MANIFEST)
    door.lies[f"{place}/blobs/{digest}"] = (changed, "application/octet-stream")
    assert "by another key" in refused(f"{name}:1", by(pair, name)).detail


# ------------------------------------------------------------------------------------------------- a registry that is away


@pytest.mark.parametrize("stage", ["/v2/", "/v2/away/app/manifests/", "/v2/away/app/blobs/"])
@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_registry_that_ends_or_hangs_at_any_stage_is_the_reason_of_a_stop_in_time(
    engine: Path, around: Around, stage: str, seconds: float
) -> None:
    around.door.push(around.good.path, "away/app:1")
    name = f"{around.door.here}/away/app@{around.good.digest}"
    found = admit(name, {})
    around.door.away[stage] = seconds
    begun = time.monotonic()
    try:
        with pytest.raises(Stop) as stop:
            image.pull(**found, patience=4.0)
    finally:
        around.door.away.clear()
    assert stop.value.id == "HPL06004E" and name in stop.value.detail
    if seconds:
        assert "did not end within" in stop.value.detail
    assert time.monotonic() - begun < 20
    assert around.door.registry.password not in str(stop.value)


@pytest.mark.parametrize("stage", ["", "/v2/", "/v2/away/app/manifests/", "/v2/away/app/blobs/"])
def test_a_registry_that_takes_connections_and_is_silent_is_given_up_early(
    engine: Path, around: Around, stage: str
) -> None:
    around.door.push(around.good.path, "away/app:1")
    name = f"{around.door.here}/away/app@{around.good.digest}"
    with socket.create_server(("127.0.0.1", 0)) as mute:  # the first does not even answer to the handshake
        if stage:
            around.door.away[stage] = 60.0
        else:
            name = name.replace(str(around.door.port), str(mute.getsockname()[1]))
        found = admit(name, {})
        begun = time.monotonic()
        try:
            with pytest.raises(Stop) as stop:
                image.pull(**found, silence=3.0)
        finally:
            around.door.away.clear()
    text = f"{name} can't be pulled: the registry has not answered for 3 seconds"
    assert str(stop.value) == f"HPL06004E: {text}" and 3 < time.monotonic() - begun < 20
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(str(engine).encode() in command for command in commands)


def test_a_slow_registry_is_waited_for(engine: Path, around: Around, tmp_path: Path) -> None:
    file = tarfile.TarInfo("file")
    file.size = 24 << 10
    layer = file.tobuf() + os.urandom(file.size) + bytes(10240)
    slow = layout(tmp_path / "slow", "slow", layer)
    around.door.push(slow.path, "slow/app:1")
    found = admit(f"{around.door.here}/slow/app@{slow.digest}", {})
    around.door.pace = 2 << 10
    begun = time.monotonic()
    try:
        image.pull(**found, silence=3.0)
    finally:
        around.door.pace = None
    assert time.monotonic() - begun > 10


def test_a_registry_that_stumbles_is_asked_again(engine: Path, around: Around) -> None:
    around.door.push(around.good.path, "away/again:1")
    found = admit(f"{around.door.here}/away/again@{around.good.digest}", {})
    around.door.away["/v2/away/again/blobs/"] = 0.0
    threading.Timer(3.0, around.door.away.clear).start()
    image.pull(**found)


# ------------------------------------------------------------------------------------------------- content trust


def dct(around: Around, name: str, public: str, port: int = 0) -> dict[str, Any]:
    return {"dct": {name: {"notary": f"https://127.0.0.1:{port or around.notary.port}", "publicKey": public}}}


def test_a_tag_is_what_its_signer_said_wherever_the_registry_moves_it(
    engine: Path, around: Around, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{around.door.here}/dct/good"
    public = around.notary.start(name)
    around.notary.tag(name, "1", around.good.digest, around.good.size)
    around.door.push(around.good.path, "dct/good:1")
    around.door.push(around.evil.path, "dct/good:1")  # the tag is moved: of no effect, the digest counts
    assert start(f"{name}:1", dct(around, name, public)) == "good"
    assert f"HPL16011I: {name}:1 is {around.good.digest} by its signature (dct)" in capsys.readouterr().err
    assert refused_by_policy(f"{name}:2", dct(around, name, public)).id == "HPL16009E"


def refused_by_policy(reference: str, keys: dict[str, Any], now: datetime.datetime | None = None) -> Stop:
    with pytest.raises(Stop) as stop:
        admit(reference, keys, now)
    return stop.value


def test_releases_signed_by_a_delegate_count_first(engine: Path, around: Around, tmp_path: Path) -> None:
    name = f"{around.door.here}/dct/delegated"
    public = around.notary.start(name)
    around.notary.tag(name, "1", around.evil.digest, around.evil.size)
    key, certificate = tmp_path / "delegate.key", tmp_path / "delegate.crt"
    tool(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9"),
        *("-subj", "/CN=delegate", "-keyout", key, "-out", certificate),
    )
    around.notary.sign("key", "rotate", name, "snapshot", "-r")
    around.notary.sign("delegation", "add", "-p", name, "targets/releases", certificate, "--all-paths")
    around.notary.sign("key", "import", key, "--role", "delegate")
    around.notary.tag(name, "1", around.good.digest, around.good.size, "--roles", "targets/releases")
    around.door.push(around.good.path, "dct/delegated:1")
    assert start(f"{name}:1", dct(around, name, public)) == "good"


def test_trust_by_another_key_is_refused(engine: Path, around: Around) -> None:
    name = f"{around.door.here}/dct/one"
    around.notary.start(name)
    around.notary.tag(name, "1", around.good.digest, around.good.size)
    stranger = base64.b64encode(certified(name=name).certificate).decode()
    assert refused_by_policy(f"{name}:1", dct(around, name, stranger)).id == "HPL16006E"


def test_trust_data_of_another_image_by_the_same_signer_is_refused(engine: Path, around: Around) -> None:
    """One person has one root key: all of it is signed as it should be, and says what another image's tag is."""
    mine, other = f"{around.door.here}/dct/mine", f"{around.door.here}/dct/theirs"
    public = {name: around.notary.start(name) for name in (mine, other)}
    keys = [load_pem_x509_certificate(base64.b64decode(each)).public_key() for each in public.values()]
    pem = keys[0].public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert pem == keys[1].public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    around.notary.tag(other, "1", around.evil.digest, around.evil.size)
    tls = web.context([around.notary.authority.decode()])
    server = web.Server(f"127.0.0.1:{around.notary.port}", around.door.here, {}, tls)

    def passed_on(name: str, limit: int) -> bytes:
        content = server.get(f"/v2/{other}/_trust/tuf/{name}.json", limit) or b""
        around.door.lies[f"/v2/{mine}/_trust/tuf/{name}.json"] = (content, "application/json")
        return content

    pin, now = tuf.read_pin(pem), datetime.datetime.now(datetime.UTC)
    assert tuf.digest_of(tuf.signed_targets(other, pin, now, passed_on), "1") == around.evil.digest
    stop = refused_by_policy(f"{mine}:1", dct(around, mine, base64.b64encode(pem).decode(), around.door.port))
    assert stop.id == "HPL16006E" and "no certificate for this image" in stop.detail


def test_trust_data_that_is_too_old_is_refused(engine: Path, around: Around) -> None:
    name = f"{around.door.here}/dct/old"
    public = around.notary.start(name)
    around.notary.tag(name, "1", around.good.digest, around.good.size)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=20)  # a timestamp of notary's lives 14 days
    stop = refused_by_policy(f"{name}:1", dct(around, name, public), later)
    assert stop.id == "HPL16007E" and "timestamp" in stop.detail


def test_an_image_that_nobody_signed_and_a_server_out_of_reach_are_refused(
    engine: Path, around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    name, unsigned = f"{around.door.here}/dct/reach", f"{around.door.here}/dct/unsigned"
    public = around.notary.start(name)
    nobody = base64.b64encode(certified(name=unsigned).certificate).decode()
    assert refused_by_policy(f"{unsigned}:1", dct(around, unsigned, nobody)).id == "HPL16008E"
    assert refused_by_policy(f"{name}:1", dct(around, name, public, free_port())).id == "HPL16008E"
    (state.CERTIFICATES / "notary.crt").unlink()  # a server that is somebody else's
    stop = refused_by_policy(f"{name}:1", dct(around, name, public))
    assert stop.id == "HPL16008E" and "SSLCertVerificationError" in stop.detail


def test_a_mirror_of_older_files_is_refused(engine: Path, around: Around) -> None:
    """The notary server gives an older list of tags, all signed and in time, beside the newest timestamp."""
    name = f"{around.door.here}/dct/rolled"
    public = around.notary.start(name)
    around.notary.tag(name, "1", around.evil.digest, around.evil.size)
    folder = around.notary.directory / "signer/tuf" / name / "metadata"
    old = {role: (folder / f"{role}.json").read_bytes() for role in ("targets", "snapshot")}
    around.notary.sign("remove", "-p", name, "1")
    around.notary.tag(name, "1", around.good.digest, around.good.size)
    tls = web.context([around.notary.authority.decode()])
    honest = web.Server(f"127.0.0.1:{around.notary.port}", around.door.here, {}, tls)
    base = f"/v2/{name}/_trust/tuf"
    root, timestamp = (honest.get(f"{base}/{role}.json", 1 << 20) or b"" for role in ("root", "timestamp"))
    current = json.loads(timestamp)["signed"]["meta"]["snapshot"]["hashes"]["sha256"]
    snapshot = f"snapshot.{base64.b64decode(current).hex()}"
    assert hashlib.sha256(old["snapshot"]).digest() != base64.b64decode(current)
    kind = "application/json"
    for file, content in (("root", root), ("timestamp", timestamp), (snapshot, old["snapshot"])):
        around.door.lies[f"{base}/{file}.json"] = (content, kind)
    keys = dct(around, name, public, around.door.port)
    stop = refused_by_policy(f"{name}:1", keys)  # of another length, or another hash
    assert stop.id in ("HPL16006E", "HPL16008E"), stop
    size = json.loads(timestamp)["signed"]["meta"]["snapshot"]["length"]
    around.door.lies[f"{base}/{snapshot}.json"] = (old["snapshot"][:size].ljust(size), kind)
    stop = refused_by_policy(f"{name}:1", keys)
    assert stop.id == "HPL16006E" and "snapshot" in stop.detail
    around.door.lies[f"{base}/root.json"] = (b"{" * (1 << 20), kind)
    assert refused_by_policy(f"{name}:1", keys).id == "HPL16006E"
    around.door.lies[f"{base}/root.json"] = (b"{" * ((1 << 20) + 1), kind)
    stop = refused_by_policy(f"{name}:1", keys)
    assert stop.id == "HPL16008E" and "more than" in stop.detail
