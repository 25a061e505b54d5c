"""A builder machine builds a whole root of Debian's packages, to the same bytes as a host: a quarter of an hour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from buildvm_kit import Reviewers
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from surroundings import World

from casemate.build import buildvm

pytestmark = [pytest.mark.machines, pytest.mark.long]


def test_a_root_built_of_bundles_inside_has_the_bytes_of_one_built_on_a_host(world: World, tmp_path: Path) -> None:
    pipeline, reviewers = ec.generate_private_key(ec.SECP384R1()), Reviewers()
    public = pipeline.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    builder = buildvm.create(tmp_path / "builder", reviewers.file, pipeline=public)
    source, image = tmp_path / "source.deb", tmp_path / "image"
    buildvm.source_bundle(source)
    job = buildvm.make_job(builder, "image", bundle=(source, buildvm.sign_bundle(source, pipeline, 1))).as_bytes()
    files, archive = buildvm.files_of(job, source)
    assert archive is None  # nothing of the root comes ready
    approval = reviewers.approve(job, 1, by=("alice", "bob"))
    where = (files, tmp_path / "state.img", image)
    result = buildvm.run(builder, job, approval, *where, memory_mib=4096, timeout=3600)
    assert result.mode == "image" and buildvm.trace(image, builder) == result
    assert (image / "root.squashfs").read_bytes() == (world.image / "root.squashfs").read_bytes()
    values = [json.loads((path / "reference-values.json").read_bytes())["values"] for path in (image, world.image)]
    assert values[0] == values[1]
