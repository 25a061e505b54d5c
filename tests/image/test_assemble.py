"""An image of ready parts: what is in it, what is beside it, and that its keys are in the first only."""

from __future__ import annotations

import ast
import datetime
import hashlib
import io
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from boundaries import _imports
from casemate.guest.kinds import KINDS, LAYER
from casemate.image.assemble import Identity, Parts, assemble, command_line, digests
from casemate.image.provenance import SUBJECTS
from casemate.image.root import guest_files
from casemate.secret import Secret
from casemate.secureexec.hostkey import HostKey
from casemate.secureexec.image import open_image

WHOLE = ("__version__", "guest/builderinput")  # the second: imported where an image is a builder's
NOW = datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC)
KERNEL, BASE, KEY = b"kernel" * 1000, b"base" * 700, b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n"


def parts(kind: str = "layer") -> Parts:
    files = io.BytesIO(KERNEL), io.BytesIO(BASE)
    return Parts("amd64", KINDS[kind], "6.1", *files, "a" * 64, 4096, b"bill", b"packages", {"exact": True})


def make(kind: str = "layer") -> tuple[io.BytesIO, Parts, dict[str, bytes], dict[str, bytes]]:
    out, host, made = io.BytesIO(), ec.generate_private_key(ec.SECP521R1()), parts(kind)
    identity = Identity(
        secrets={"attestation.pem": Secret(KEY)},
        files={"attestation.crt": b"certificate"},
        contracts_until=NOW if KINDS[kind].opens else None,
        public={"reviewers.json": b"who"},
        facts={"generation": 3},
    )
    assembled = assemble(out, made, identity, [("HKD.crt", HostKey(host.public_key(), "tomorrow"))], created=NOW)
    sinks: dict[str, io.BytesIO] = {}
    out.seek(0)
    contents = open_image(out, host, lambda name, size: sinks.setdefault(name, io.BytesIO()))
    found = {name: sink.getvalue()[: contents.sizes[name]] for name, sink in sinks.items()}
    assert assembled.tag == contents.header.tag
    return out, made, assembled.files, found


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_and_initrd_are_the_parts_and_the_images_own_comes_after(kind: str) -> None:
    _, _, files, opened = make(kind)
    assert opened["kernel"] == KERNEL and opened["initrd"].startswith(BASE)
    own = opened["initrd"].removeprefix(BASE)
    for name in (b"casemate/image.json", b"casemate/keys/attestation.pem", b"casemate/public/reviewers.json", KEY):
        assert name in own
    assert b'"kind": "%s"' % kind.encode() in own and b'"generation": 3' in own
    assert (b'"contracts_until"' in own) is KINDS[kind].opens
    assert json.loads(files["image.json"])["kind"] == kind


def test_a_key_is_nowhere_but_in_the_encrypted_image() -> None:
    out, _, files, _ = make()
    for data in (out.getvalue(), *files.values()):
        assert b"PRIVATE KEY" not in data and b"c2VjcmV0" not in data


def test_values_are_those_of_the_parts_whatever_the_keys_are() -> None:
    (_, made, files, _), (_, _, again, _) = make(), make()
    values = json.loads(files["reference-values.json"])["values"]
    base = hashlib.sha256(KERNEL + command_line("amd64").encode() + BASE).hexdigest()
    assert values == made.values() == json.loads(again["reference-values.json"])["values"]
    assert values == {"root.tar.gz": "a" * 64, "baseimage": base, "sbom": hashlib.sha256(b"bill").hexdigest()}


def test_digests_are_of_the_files_as_they_are_published() -> None:
    out, made, files, _ = make()
    found = digests(out, made, files, SUBJECTS)
    assert found["casemate.img"] == hashlib.sha256(out.getvalue()).hexdigest()
    assert found["root.squashfs"] == "a" * 64 and found["packages.txt"] == hashlib.sha256(b"packages").hexdigest()
    assert "encryption.crt" not in found  # this one has none


def test_a_kind_has_one_row_and_only_the_layer_opens_contracts() -> None:
    assert {kind.name for kind in KINDS.values() if kind.opens} == {"layer"} == {LAYER.name}
    assert len({kind.target for kind in KINDS.values()}) == len(KINDS)


def test_each_root_has_its_own_part_of_the_guest_and_all_that_that_imports() -> None:
    layer, builder = ({name for name, _ in guest_files(flavor)} for flavor in ("layer", "builder"))
    own = {name for name in builder if name.split("/")[-1].startswith(("builder", "bootstrap"))}
    assert {"guest/builder.py", "guest/buildersandbox.py", "guest/units/builder.target"} <= own
    assert not own & layer and not {name for name in layer if name.startswith(("image/", "build/"))}
    assert not {"guest/container.py", "guest/units/hpl-container.service", "guest/network.py"} & builder
    for flavor, names in (("layer", layer), ("builder", builder)):
        for name, data in guest_files(flavor):
            for _, module in _imports(name, ast.parse(data)) if name.endswith(".py") else ():
                path = module.removeprefix("casemate.").replace(".", "/")
                if module.startswith("casemate.") and (path not in WHOLE):
                    assert {f"{path}.py", f"{path}/__init__.py"} & names, f"{flavor}: {name} imports {module}"
