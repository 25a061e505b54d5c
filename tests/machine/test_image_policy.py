"""Images in real machines: four services, each image admitted in another way; and a tag that was moved."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from surroundings import PATIENCE, World, attempt

from casemate.demo import images
from casemate.demo.services import GATEWAY
from casemate.machine.machines import Specification, up
from signers import Door, Gpg, Notary

pytestmark = pytest.mark.machines


@dataclass(frozen=True)
class Signed:
    """What signs around the machines, and the contract's keys for it."""

    door: Door
    notary: Notary
    keys: dict[str, Any]

    def specification(self, world: World, name: str, services: dict[str, str]) -> Specification:
        lines = [
            f"  {service}: {{image: '{image}', command: [sleep, '1000000']}}" for service, image in services.items()
        ]
        workload = world.workload("\n".join(["services:", *lines, ""]), seed=False)
        registry = self.door.registry
        workload["auths"] = {self.door.there: {"username": registry.user, "password": registry.password}}
        workload["images"] = self.keys
        env = world.env(seed=False)
        authorities = {"door": self.door.authority, "notary": self.notary.authority}
        env["cacerts"] = [{name: base64.b64encode(pem).decode() for name, pem in authorities.items()}]
        return world.specification(name, world.contract(workload, env))


@pytest.fixture(scope="module")
def signed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    directory = tmp_path_factory.mktemp("signed")
    layout = images.build(images.BUSYBOX)
    digest = images.digest(layout)
    home = Path(tempfile.mkdtemp(prefix="gpg-"))
    key = Gpg.create(home / "signer")
    signer = generate_private_key(SECP256R1())
    try:
        with (
            Door.running(world.registry, directory / "door") as door,
            Notary.running(directory / "notary") as notary,
        ):
            name = f"{door.there}/{{}}".format
            door.push(layout, "plain:1")
            door.push_rhs(layout, "rhs:1", key, name("rhs:1"))
            door.push_rhs(layout, "moved:1", key, name("moved:2"))
            door.push(layout, "dct:1")
            root = notary.start(name("dct"))
            notary.tag(name("dct"), "1", digest, (layout / "blobs/sha256" / digest[7:]).stat().st_size)
            door.push(layout, "cosign:1")
            door.sign_as_cosign(layout, "cosign:1", signer, name("cosign:1"))
            public = signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            keys = {
                "rhs": {name(path): {"publicKey": key.public()} for path in ("rhs", "moved")},
                "dct": {name("dct"): {"notary": f"https://{GATEWAY}:{notary.port}", "publicKey": root}},
                "cosign": {name("cosign"): {"publicKey": base64.b64encode(public).decode()}},
            }
            yield Signed(door, notary, keys)
    finally:
        key.close()
        shutil.rmtree(home, ignore_errors=True)  # the agent takes its sockets away when it likes


def test_images_by_digest_gpg_content_trust_and_cosign_start(signed: Signed, world: World) -> None:
    there, digest = signed.door.there, images.digest(images.build(images.BUSYBOX))
    services = {kind: f"{there}/{kind}:1" for kind in ("rhs", "dct", "cosign")}
    services["digest"] = f"{there}/plain@{digest}"
    machine = up(signed.specification(world, "t-images", services), timeout=PATIENCE)
    try:
        console = machine.console()
        assert "HPL16003I: 4 images admitted and pulled" in console
        for kind in ("dct", "cosign"):
            assert f"{there}/{kind}:1 is {digest} by its signature ({kind})" in console
        for service in services:
            assert f"service {service} has been started" in console
        assert signed.door.registry.password not in console
    finally:
        machine.down(0.0)


def test_an_image_whose_signature_is_for_another_tag_stops_the_machine(signed: Signed, world: World) -> None:
    services = {"app": f"{signed.door.there}/moved:1"}
    outcome = attempt(signed.specification(world, "t-image-moved", services))
    assert not outcome.ready
    assert outcome.reason.startswith("HPL16005E: "), outcome.console[-3000:]
    assert "moved:2" in outcome.reason and signed.door.registry.password not in outcome.console
