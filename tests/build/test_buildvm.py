"""Builder machines from the host's side: what the commands say, and whose keys the root certifies for builders."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from buildvm_kit import PARTS, ROOT_ARCHIVE, Bench, Reviewers
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.build import buildvm, forms
from casemate.build import job as jobs
from casemate.errors import CasemateError
from program import Result

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def image(bench: Bench) -> tuple[Path, bytes]:
    """An image that the builder has made, and the job."""
    job = bench.image_job()
    places = bench.run(job, 1, PARTS)
    bench.unpack(places, job, bench.directory / "image")
    (bench.directory / "result.img").hardlink_to(places.result)
    return bench.directory / "image", job


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(CasemateError) as error:
        act()
    assert error.value.cure
    return error.value.id


# ------------------------------------------------------------------------------------------------- commands


def test_verify_says_who_made_an_image_and_on_whose_word(run: Run, bench: Bench, image: tuple[Path, bytes]) -> None:
    result = run("buildvm", "verify", str(image[0]), "--builder", str(bench.published.path), "--json")
    said = json.loads(result.out)
    assert result.code == 0 and said["approved_by"] == ["alice", "carol"] and said["mode"] == "image"
    assert said["job"] == buildvm.measure(image[1]).sha256
    kept = (image[0] / "build/approval.json").read_bytes()
    (image[0] / "build/approval.json").write_bytes(b"{}")
    result = run("buildvm", "verify", str(image[0]), "--builder", str(bench.published.path))
    (image[0] / "build/approval.json").write_bytes(kept)
    assert result.code == 1 and "BUILDVM-RECORD" in result.err


@pytest.mark.parametrize("name", ["crl.pem", "root.crl.pem"])
def test_a_builder_without_a_revocation_list_is_not_taken_for_one_that_is_not_revoked(
    run: Run, bench: Bench, image: tuple[Path, bytes], name: str
) -> None:
    path = bench.published.path / name
    kept = path.read_bytes()
    path.unlink()
    try:
        result = run("buildvm", "verify", str(image[0]), "--builder", str(bench.published.path))
    finally:
        path.write_bytes(kept)
    assert result.code == 1 and "BUILDVM-LIST" in result.err and name in result.err


@pytest.mark.parametrize("change", [b"", b"{", b"[]", b'{"values": 7}', b"\xff", None])
def test_a_broken_builder_is_told(run: Run, bench: Bench, image: tuple[Path, bytes], change: bytes | None) -> None:
    path = bench.published.path / ("reference-values.json" if change is not None else "attestation.crt")
    kept = path.read_bytes()
    path.write_bytes(change) if change is not None else path.unlink()
    try:
        result = run("buildvm", "verify", str(image[0]), "--builder", str(bench.published.path))
    finally:
        path.write_bytes(kept)
    assert result.code == 1 and "BUILDVM-BROKEN" in result.err, result.err


@pytest.mark.parametrize("option", ["--root-list", "--intermediate"])
def test_what_is_given_to_a_job_as_der_is_told(run: Run, bench: Bench, tmp_path: Path, option: str) -> None:
    der = x509.load_pem_x509_crl((bench.published.path / "root.crl.pem").read_bytes()).public_bytes(Encoding.DER)
    (tmp_path / "der").write_bytes(der)
    words = ("buildvm", "job", "crl", "--builder", str(bench.published.path), "-o", "list.json", option, "der")
    result = run(*words)
    assert result.code == 1 and "BUILD-JOB" in result.err and "PEM" in result.err, result.err


def test_show_names_the_reviewers(run: Run, bench: Bench) -> None:
    said = json.loads(run("buildvm", "show", str(bench.published.path), "--json").out)
    assert (said["name"], said["generation"], said["threshold"]) == ("buildvm", 1, 2)
    assert said["reviewers"] == ["alice", "bob", "carol"]


def test_a_list_job_comes_after_the_last_one(run: Run, bench: Bench, image: tuple[Path, bytes], tmp_path: Path) -> None:
    (tmp_path / "last.json").write_bytes(image[1])
    words = ["buildvm", "job", "crl", "--builder", str(bench.published.path), "--after", "last.json", "-o", "list.json"]
    result = run(*words, "--revoke", "5AF1:key-compromise", "--revoke", "77")
    assert result.code == 0 and b"--subject build.buildvm" in result.out
    job = jobs.parse_job((tmp_path / "list.json").read_bytes())
    assert job.after == buildvm.measure(image[1]).sha256
    assert job.revoke == ((0x5AF1, "key-compromise"), (0x77, "unspecified"))
    bench.run((tmp_path / "list.json").read_bytes(), 2)
    for wrong in ("xyz", "5af1:because", "0"):
        assert run(*words, "--revoke", wrong).code == 1
    for wrong in ("0x10", "1_0", " 10", "+10", "-10", "\N{FULLWIDTH DIGIT ONE}", ""):  # another's serial, or none
        told = run(*words, "--revoke", wrong, "--json")
        assert told.code == 1 and json.loads(told.out)["error"]["id"] == "BUILDVM-SERIAL"


@pytest.mark.parametrize(
    "words",
    [["crl", "--keyset", "k"], ["image", "--revoke", "1"], ["image", "--reviewers", "k"], ["crl", "--bundle", "k"]],
)
def test_what_makes_no_sense_is_code_2(run: Run, bench: Bench, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "k").write_text("{}")
    assert run("buildvm", "job", *words, "--builder", str(bench.published.path), "-o", "job.json").code == 2


def test_a_directory_that_is_no_builder_is_refused(run: Run, image: tuple[Path, bytes]) -> None:
    result = run("buildvm", "show", str(image[0]))
    assert result.code == 1 and "BUILDVM-NONE" in result.err


def test_no_development_builder_is_made_under_a_real_authority(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    (tmp_path / "reviewers.json").write_bytes(Reviewers().file)
    made = run("ca", "init", "real", "--name", "Example", "--algorithm", "p-384")
    assert made.code == 0, made.err
    result = run("buildvm", "create", "builder", "--reviewers", "reviewers.json", "--ca", "real")
    assert result.code == 1 and "BUILDVM-REAL" in result.err and not (tmp_path / "builder").exists()


@pytest.fixture
def creating(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``buildvm create``, as far as parts would be made."""

    def never(*_: object) -> None:
        raise AssertionError("parts were made")

    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(buildvm, "root_and_initrd", never)
    (tmp_path / "reviewers.json").write_bytes(Reviewers().file)
    return lambda *words: run("buildvm", "create", "new", "--reviewers", "reviewers.json", *words)


@pytest.mark.parametrize("name", ["Build VM", "a.b", "", "a" * 41])
def test_a_builder_that_no_job_can_name_is_not_made(creating: Run, name: str) -> None:
    result = creating("--name", name)
    assert result.code == 1 and "BUILDVM-NAME" in result.err, result.err


def test_a_builder_whose_pipeline_has_no_key_on_p_384_is_not_made(creating: Run, tmp_path: Path) -> None:
    private = forms.private_pem(ec.generate_private_key(ec.SECP384R1()))
    strange = (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 3072))
    for pem in (b"", b"x", private, *map(public, strange)):
        (tmp_path / "key").write_bytes(pem)
        result = creating("--pipeline", "key")
        assert result.code == 1 and "BUILDVM-PIPELINE" in result.err, result.err


def public(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_job_of_parts_that_this_source_does_not_build_is_told(
    image: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "root.squashfs").write_bytes(b"another")
    files: dict[str, bytes | Path] = {**PARTS, "kernel": b"another"}
    ready = buildvm.Ready("amd64", files, tmp_path / "root.squashfs", "6.1", {"exact": True})
    monkeypatch.setattr(buildvm, "ready_parts", lambda *_: ready)
    assert refused(lambda: buildvm.files_of(image[1])) == "BUILDVM-PARTS"


def test_a_source_bundle_is_the_same_bytes_each_time_and_needs_a_key_on_p_384(tmp_path: Path) -> None:
    for name in ("one.deb", "two.deb"):
        buildvm.source_bundle(tmp_path / name)
    assert (tmp_path / "one.deb").read_bytes() == (tmp_path / "two.deb").read_bytes()
    assert refused(lambda: buildvm.sign_bundle(tmp_path / "one.deb", rsa.generate_private_key(65537, 2048), 1))


def test_a_wrong_output_costs_no_approved_job(
    run: Run, bench: Bench, image: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "job").write_bytes(image[1])

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a machine was started")

    monkeypatch.setattr("casemate.machine.machines.start", never)
    monkeypatch.setattr(buildvm, "files_of", never)
    words = ["buildvm", "run", str(bench.published.path), "--job", "job", "--approval", "job"]
    for state, output, wanted in (
        *(("state", "full", "IMAGE-IN-THE-WAY"), ("state", "file", "BUILDVM-OUTPUT")),
        *(("state", str(bench.published.path), "BUILDVM-OUTPUT"), ("new/state", "new", "BUILDVM-OUTPUT")),
    ):
        result = run(*words, "--state", state, "-o", output)
        assert result.code == 1 and wanted in result.err, result.err
    nowhere = tmp_path / "nothing"
    assert refused(lambda: buildvm.unpack(nowhere, bench.published, image[1], b"", bench.published.path)) == (
        "BUILDVM-OUTPUT"
    )
    assert refused(lambda: buildvm.run(bench.published, image[1], b"", {}, nowhere, tmp_path / "full")) == (
        "IMAGE-IN-THE-WAY"
    )


def lists(bench: Bench, days: int, number: int, *, revoked: bool = False) -> list[bytes]:
    """Lists of builder and root that hold a week from a day on; ``revoked``: the root's has the builder."""
    path, found = bench.published.path, []
    keys = (bench.secrets["intermediate.pem"], (bench.directory / "ca/root.key").read_bytes())
    serial = forms.load_certificate((path / "intermediate.crt").read_bytes()).serial_number
    for pem, above in zip(keys, ("intermediate.crt", "root.crt"), strict=True):
        key, issuer = forms.load_private(pem), forms.load_certificate((path / above).read_bytes())
        begin = forms.moment() + days * forms.DAY
        form = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
        form = form.last_update(begin).next_update(begin + 7 * forms.DAY)
        form = form.add_extension(x509.CRLNumber(number), critical=False)
        form = form.add_extension(forms.authority_key(issuer), critical=False)
        if revoked and above == "root.crt":
            form = form.add_revoked_certificate(forms.revoked(serial, begin, "ca-compromise"))
        found.append(forms.pem(form.sign(key, forms.algorithm_for(key.public_key()))))
    return found


def test_a_builder_outlives_its_lists_where_newer_ones_are_given(bench: Bench, image: tuple[Path, bytes]) -> None:
    later, new = forms.moment() + 40 * forms.DAY, lists(bench, 38, 1000)
    builder = bench.published.beside(new)
    assert refused(lambda: buildvm.trace(image[0], bench.published, time=later)) == "BUILDVM-RECORD"
    assert buildvm.trace(image[0], builder, time=later).mode == "image"
    later = forms.moment() + 500 * forms.DAY  # the root's list holds longer
    assert refused(lambda: buildvm.require_valid(bench.published, image[1], time=later)) == "BUILDVM-CHAIN"
    beside = bench.published.beside(lists(bench, 498, 1000)[1:])
    buildvm.require_valid(beside, image[1], time=later)  # its own it makes anew
    older = lists(bench, 38, 0)  # a list that was before this one takes nobody's place
    assert bench.published.beside(older).lists() == bench.published.lists() != builder.lists() == new


def test_a_newer_list_that_revokes_the_builder_counts(
    run: Run, bench: Bench, image: tuple[Path, bytes], tmp_path: Path
) -> None:
    (tmp_path / "new.pem").write_bytes(lists(bench, -1, 1000, revoked=True)[1])
    (tmp_path / "none.pem").write_bytes(b"none")
    path = str(bench.published.path)
    for name, wanted in (("new.pem", "BUILDVM-RECORD"), ("none.pem", "BUILDVM-LIST")):
        result = run("buildvm", "verify", str(image[0]), "--builder", path, "--crl", name)
        assert result.code == 1 and wanted in result.err, result.err
    (tmp_path / "job").write_bytes(image[1])
    words = ("buildvm", "run", path, "--job", "job", "--approval", "job", "--state", "state", "-o", "out")
    result = run(*words, "--crl", "new.pem")
    assert result.code == 1 and "BUILDVM-CHAIN" in result.err and not (tmp_path / "state").exists()


def test_what_came_out_is_kept_where_it_does_not_verify(
    run: Run, bench: Bench, image: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from casemate.machine import machines

    class Machine:
        def remove(self) -> None:
            pass

    disk = bench.directory / "result.img"
    approval, archive, state = (image[0] / "build/approval.json").read_bytes(), tmp_path / "archive", tmp_path / "state"

    def start(spec: machines.Specification, **_: object) -> Machine:
        spec.disks[2].path.write_bytes(disk.read_bytes())
        return Machine()

    monkeypatch.setattr(machines, "start", start)
    monkeypatch.setattr(machines, "wait", lambda *_, **__: None)
    assert refused(lambda: buildvm.run(bench.published, image[1], approval + b" ", {}, state, tmp_path / "out")) == (
        "BUILDVM-RECORD"
    )
    (kept,) = tmp_path.glob("state.*.result")
    archive.write_bytes(ROOT_ARCHIVE)
    monkeypatch.setattr(buildvm, "files_of", lambda *_: ({}, archive))
    (tmp_path / "job").write_bytes(image[1])
    (tmp_path / "approval").write_bytes(approval)
    words = ("buildvm", "unpack", str(bench.published.path), "--job", "job", "--approval", "approval")
    result = run(*words, "--result", str(kept), "-o", "out")
    assert result.code == 0, result.err
    assert (tmp_path / "out/casemate.img").read_bytes() == (image[0] / "casemate.img").read_bytes()


# ------------------------------------------------------------------------------------------------- the root's part


def request(bench: Bench, common: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    return forms.pem(forms.request(bench.authority.describe(), common).sign(key, forms.algorithm_for(key.public_key())))


def test_the_root_certifies_a_builder_whose_certificate_signs_no_authorities(bench: Bench) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    one = forms.load_certificate(bench.authority.certify_builder(request(bench, "Casemate builder x 1", key)))
    basic = one.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert basic.ca and basic.path_length == 0 and one.public_key() == key.public_key()
    last = bench.authority.log()[-1]
    assert last.action == "certificate" and last.facts["for"] == "builder"


def test_a_request_that_nobody_holds_the_key_of_or_that_takes_a_name_is_refused(bench: Bench) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    good = request(bench, "Casemate builder x 1", key)
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(Encoding.DER))
    der[-1] ^= 1
    broken = (
        b"-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.encodebytes(bytes(der))
        + b"-----END CERTIFICATE REQUEST-----\n"
    )
    weak = rsa.generate_private_key(65537, 2048)
    small = forms.pem(forms.request(bench.authority.describe(), "y").sign(weak, forms.algorithm_for(weak.public_key())))
    for wrong in (broken, b"", b"nonsense", small, request(bench, "Development intermediate", key)):
        assert refused(lambda: bench.authority.certify_builder(wrong)) in ("AUTHORITY-REQUEST", "AUTHORITY-KEYS")  # noqa: B023
