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
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from surroundings import PATIENCE, World

from casemate.attestation.verify import verify
from casemate.build import buildvm, ceremonyhost, forms, rehearsal, signers
from casemate.build import ceremonyplan as plans
from casemate.build import job as jobs
from casemate.certificates.chain import verify_chain
from casemate.demo import parties
from casemate.errors import CasemateError
from casemate.machine import home
from casemate.machine.machines import MachineError, Specification, up
from casemate.machine.ultravisor import SoftwareUltravisor
from program import Result as Run
from tokens import Token

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
    root: signers.Signer


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, new_token: Callable[[], Token]) -> Iterator[Built]:
    directory, reviewers, token = tmp_path_factory.mktemp("buildvm"), Reviewers(), new_token()
    cache = home.directory() / "cache"
    rehearsal.hold(directory / "ceremony", keys=token.uri("{}"), patience=PATIENCE)  # every key of a person in an HSM
    builder = buildvm.BuilderDirectory(directory / "ceremony/buildvm")
    reviewers.file = (builder.path / "reviewers.json").read_bytes()
    for name in ("alice", "bob"):  # their next keys: none that was used in the ceremony is valid after it
        reviewers.signers[name] = signers.find(token.uri(f"{name}-next"), directory)
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
    root = signers.find(token.uri("root"), directory)
    yield Built(builder, reviewers, ready, job, approval, directory / "state.img", image, result, root)


def verify_words(built: Built) -> tuple[object, ...]:
    """The command with which an auditor verifies the ceremony."""
    directory = built.builder.path.parent
    known = ("--plan", directory / "plan.json", "--root", directory / "root.crt")
    return "ceremony", "verify", directory, *known, "--json"


def test_the_builder_came_of_a_ceremony_that_verifies(built: Built, run: Callable[..., Run]) -> None:
    directory = built.builder.path.parent
    done = run(*verify_words(built))
    report = json.loads(done.out)
    assert done.code == 0 and report["holds"] and report["development"], done.err
    assert [step["action"] for step in report["steps"]][-3:] == ["built", "witness", "end"]
    # every private key was shown to have been in a TEE or an HSM only
    assert {key["made"] for key in report["keys"]} == {"inside the BootstrapVM", "a token (HSM)"}
    assert all(key["verdict"] == "proved" for key in report["keys"]), report["keys"]
    assert not list(directory.glob("*.key"))[1:] and (directory / "measurement.key").is_file()
    transcript = directory / "transcript.jsonl"
    lines = transcript.read_bytes().splitlines(keepends=True)
    transcript.write_bytes(b"".join(lines[:3] + lines[4:]))  # somebody's part is taken out
    try:
        assert run("ceremony", "verify", directory, "--json").code == 1
    finally:
        transcript.write_bytes(b"".join(lines))
    assert (built.builder.path / "root.crt").read_bytes() == (directory / "root.crt").read_bytes()


def test_a_plan_is_written_of_a_file_for_people(built: Built, run: Callable[..., Run], tmp_path: Path) -> None:
    directory = built.builder.path.parent
    first = plans.parse_plan((directory / "plan.json").read_bytes())
    for name, pem in first.personas.items():
        (tmp_path / f"{name}.pub").write_text(pem)
    roles = {
        name: {"quorum": role.quorum, "people": {who: f"{who}.pub" for who in role.members}}
        for name, role in first.roles.items()
    }
    pipeline = ec.generate_private_key(ec.SECP384R1()).public_key()
    public = pipeline.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    (tmp_path / "pipeline.pub").write_text(public)
    (tmp_path / "root.crt").write_text(first.root_certificate)
    said = {"name": "spring", "organization": "Example", "minutes": 30, "root": "root.crt", "roles": roles}
    (tmp_path / "ceremony.yaml").write_text(json.dumps(said | {"pipeline": "pipeline.pub"}))
    done = run("ceremony", "plan", tmp_path / "ceremony.yaml", "-o", tmp_path / "plan.json", "--json")
    assert done.code == 0, done.err
    made = plans.parse_plan((tmp_path / "plan.json").read_bytes())
    assert json.loads(done.out)["plan"] == made.digest and made.pipeline == public
    assert (made.parts, made.values, made.hosts, made.minutes) == (first.parts, first.values, first.hosts, 30)
    (tmp_path / "ceremony.yaml").write_text(json.dumps({"name": "spring"}))
    assert hashlib.sha256((tmp_path / "plan.secret").read_bytes()).hexdigest() == made.image_secret
    done = run("ceremony", "plan", tmp_path / "ceremony.yaml", "-o", tmp_path / "other.json")
    assert done.code == 1 and "CEREMONY-PLAN" in done.err and not (tmp_path / "other.json").exists()


def test_whoever_has_the_plan_packs_the_machine_that_was_measured(
    built: Built, run: Callable[..., Run], tmp_path: Path
) -> None:
    directory = built.builder.path.parent
    done = run("ceremony", "pack", tmp_path / "mine", "--plan", directory / "plan.json", "--json")
    assert done.code == 0, done.err
    images = [(path / "casemate.img").read_bytes() for path in (tmp_path / "mine", directory / "bootstrap")]
    assert images[0] == images[1]
    words = (*verify_words(built), "--bootstrap")
    report = json.loads(run(*words, tmp_path / "mine").out)
    assert {check["name"]: check["verdict"] for check in report["checks"]}["image of the BootstrapVM"] == "proved"
    assert run(*words, built.builder.path).code == 1  # that is another image


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
    for name, content in record.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    words = (*verify_words(built), "--record", tmp_path, "--image")
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


def do(
    built: Built, builder: buildvm.BuilderDirectory, job: bytes, revision: int, state: Path, out: Path
) -> jobs.Result:
    """Have a builder machine do a job that its reviewers approve."""
    files, archive = buildvm.files_of(job)
    approval = built.reviewers.approve(job, revision, by=("alice", "bob"))
    return buildvm.run(*(builder, job, approval, files, state, out), archive=archive, memory_mib=1024, timeout=PATIENCE)


def test_a_builder_takes_certificates_back_and_makes_its_successor_which_works(built: Built, tmp_path: Path) -> None:
    moment = datetime.datetime.now(datetime.UTC)
    attestation, intermediate = ((built.image / name).read_bytes() for name in ("attestation.crt", "intermediate.crt"))
    root = (built.builder.path / "root.crt").read_bytes()
    serial = forms.load_certificate(attestation).serial_number

    def proved(revocation: bytes, leaf: bytes = attestation, above: bytes = intermediate) -> bool:
        lists = [revocation, (built.image / "root.crl.pem").read_bytes()]
        return verify_chain(leaf, [root], lists, time=moment + datetime.timedelta(hours=1), untrusted=[above]).proved

    assert proved((built.image / "crl.pem").read_bytes())
    listing = buildvm.make_job(built.builder, "crl", after=built.job, revoke=[f"{serial:x}:key-compromise"]).as_bytes()
    result = do(built, built.builder, listing, 2, built.state, tmp_path / "list")
    assert result.mode == "crl" and not proved((tmp_path / "list/crl.pem").read_bytes())

    following = buildvm.make_job(built.builder, "builder", after=listing).as_bytes()
    result = do(built, built.builder, following, 3, built.state, tmp_path / "next")
    assert (result.mode, result.generation) == ("builder", 1)
    last = buildvm.make_job(built.builder, "image", after=following).as_bytes()
    with pytest.raises(MachineError, match="HPL17004E"):  # it has a successor, and makes no more images
        do(built, built.builder, last, 4, built.state, tmp_path / "refused")

    plan = plans.parse_plan((built.builder.path.parent / "plan.json").read_bytes())
    request = (tmp_path / "next/intermediate.csr").read_bytes()
    with built.root.open() as key:  # in its token
        answer = json.loads(ceremonyhost.answer_request(plan, request, key, plans.TOKEN))["certificate"].encode()
    successor = buildvm.BuilderDirectory(tmp_path / "next")
    first = buildvm.make_job(successor, "crl", intermediate=answer).as_bytes()
    result = do(built, successor, first, 1, tmp_path / "next.state", tmp_path / "first")
    assert result.generation == 2 and (tmp_path / "first/crl.pem").is_file()
    certificate = (tmp_path / "next/attestation.crt").read_bytes()  # the old builder's key has certified it
    assert proved((tmp_path / "list/crl.pem").read_bytes(), certificate)
