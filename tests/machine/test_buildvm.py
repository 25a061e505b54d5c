"""A ceremony makes a builder machine, which makes an image inside; the image boots, and its record leads back to the root."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from buildvm_kit import Reviewers
from surroundings import PATIENCE, World

from casemate.attestation.verify import verify
from casemate.build import buildvm, forms, rehearsal
from casemate.build import job as jobs
from casemate.demo import parties
from casemate.errors import CasemateError
from casemate.machine import home
from casemate.machine.machines import MachineError, Specification, up
from casemate.machine.ultravisor import SoftwareUltravisor
from program import Result as Run

pytestmark = pytest.mark.machines


@dataclass(frozen=True)
class Built:
    """A builder, the job that it did, and the image that came of it."""

    builder: buildvm.BuilderDirectory
    reviewers: Reviewers
    ready: buildvm.Ready
    job: bytes
    approval: bytes
    state: Path
    image: Path
    result: jobs.Result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    directory, reviewers = tmp_path_factory.mktemp("buildvm"), Reviewers()
    cache = home.directory() / "cache"
    rehearsal.hold(directory / "ceremony", patience=PATIENCE)
    builder = buildvm.BuilderDirectory(directory / "ceremony/buildvm")
    reviewers.file = (builder.path / "reviewers.json").read_bytes()
    for name in ("alice", "bob"):  # their next keys: none that was used in the ceremony is valid after it
        reviewers.keys[name] = forms.load_private((directory / f"ceremony/{name}.key").read_bytes())
    ready = buildvm.ready_parts("amd64", "layer", cache)
    hosts = (("development.crt", SoftwareUltravisor.load_or_create().document),)
    job = jobs.Job("image", "buildvm", 1, "", hosts=hosts, **ready.job_fields()).as_bytes()
    approval, image = reviewers.approve(job, 1, by=("alice", "bob")), directory / "image"
    result = buildvm.run(
        *(builder, job, approval, ready.files, directory / "state.img", image),
        archive=ready.archive,
        memory_mib=1024,
        timeout=PATIENCE,
    )
    yield Built(builder, reviewers, ready, job, approval, directory / "state.img", image, result)


def test_the_builder_came_of_a_ceremony_that_verifies(built: Built, run: Callable[..., Run]) -> None:
    directory = built.builder.path.parent
    done = run("ceremony", "verify", directory, "--root", directory / "root.crt", "--json")
    report = json.loads(done.out)
    assert done.code == 0 and report["holds"] and report["development"], done.err
    assert [step["action"] for step in report["steps"]][-3:] == ["built", "witness", "end"]
    inside = [key for key in report["keys"] if key["made"] == "inside the BootstrapVM"]
    assert {key["name"].partition(":")[0] for key in inside} >= {"intermediate", "BuildVM"}
    transcript = directory / "transcript.jsonl"
    lines = transcript.read_bytes().splitlines(keepends=True)
    transcript.write_bytes(b"".join(lines[:3] + lines[4:]))  # somebody's part is taken out
    try:
        assert run("ceremony", "verify", directory, "--json").code == 1
    finally:
        transcript.write_bytes(b"".join(lines))
    assert (built.builder.path / "root.crt").read_bytes() == (directory / "root.crt").read_bytes()


def test_the_image_was_made_by_the_machine_whose_record_says_so(built: Built) -> None:
    assert buildvm.trace(built.image, built.builder) == built.result
    assert built.result.approved_by == ("alice", "bob") and built.result.job == hashlib.sha256(built.job).hexdigest()


def test_the_image_has_the_values_of_a_build_on_this_host(built: Built, world: World) -> None:
    values = [
        json.loads((path / "reference-values.json").read_bytes())["values"] for path in (built.image, world.image)
    ]
    assert values[0] == values[1]


def test_a_machine_of_that_image_has_a_record_that_leads_back_to_the_root(
    built: Built, world: World, run: Callable[..., Run], tmp_path: Path
) -> None:
    certificate = (built.image / "encryption.crt").read_bytes()
    contract = parties.contract_of(
        parties.seal(world.workload(seed=False), certificate),
        parties.seal(world.env(seed=False), certificate),
        signing_key=world.signing_key,
    )
    machine = up(Specification("t-built", built.image, contract, memory_mib=1024, root_size=4 << 30), timeout=PATIENCE)
    try:
        record = machine.record()
    finally:
        machine.down()
    verdict = verify(
        record["se-checksums.txt"],
        record["se-signature.bin"],
        (built.image / "attestation.crt").read_bytes(),
        time=datetime.datetime.now(datetime.UTC),
        issuers=[(built.builder.path / "root.crt").read_bytes()],
        untrusted=[(built.image / "intermediate.crt").read_bytes()],
        crls=[(built.image / "crl.pem").read_bytes(), (built.image / "root.crl.pem").read_bytes()],
        reference=(built.image / "reference-values.json").read_bytes(),
        contract=contract,
    )
    assert verdict.holds, verdict.summary()
    assert len(verdict.chain.links) == 3  # the builder's key is the intermediate
    directory = built.builder.path.parent
    for name, content in record.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    words = (
        "ceremony",
        "verify",
        directory,
        "--root",
        directory / "root.crt",
        "--json",
        "--record",
        tmp_path,
        "--image",
    )
    done = run(*words, built.image)  # from the people of the ceremony to this machine, in one go
    report = json.loads(done.out)
    assert done.code == 0 and report["holds"], done.err
    assert [check["name"] for check in report["checks"]][-2:] == ["image image", "record of image"]
    later = [key for key in report["keys"] if key["made"] == "inside the BuildVM"]
    assert len(later) == 2 and all(key["verdict"] == "proved" for key in later)
    done = run(*words, world.image)  # no builder machine has made it, and the record is not of it
    assert done.code == 1 and [c["verdict"] for c in json.loads(done.out)["checks"]][-2:] == ["refuted", "refuted"]
    with pytest.raises(CasemateError, match="there is no build"):
        buildvm.trace(world.image, built.builder)  # which no builder machine has made


def test_the_same_job_again_is_refused_and_nothing_is_put_out(built: Built, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="HPL17004E"):
        buildvm.run(
            *(built.builder, built.job, built.approval, built.ready.files, built.state, tmp_path / "again"),
            archive=built.ready.archive,
            memory_mib=1024,
            timeout=PATIENCE,
        )
    assert not (tmp_path / "again").exists()
