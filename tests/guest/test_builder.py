"""What a builder does and refuses, run here as its machine runs it; the host's side of it; and every attack that needs
no machine."""

from __future__ import annotations

import datetime
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from buildvm_kit import PARTS, Bench
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from casemate.build import buildvm, forms, frame, keylog
from casemate.certificates.chain import verify_chain
from casemate.errors import CasemateError
from casemate.guest import builder, builderinput
from casemate.guest.builder import require_no_keys
from casemate.guest.builderstate import SLOTS, Memory, State
from casemate.guest.kernel import Disk
from casemate.guest.report import Stop
from casemate.image import provenance
from casemate.secret import Secret
from casemate.secureexec.image import open_image

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A builder that has done nothing yet; tests work on copies."""
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def bench(made: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A builder with a fresh state disk. Keys of images are smaller than real ones."""
    real = rsa.generate_private_key
    monkeypatch.setattr(rsa, "generate_private_key", lambda public_exponent, key_size: real(public_exponent, 2048))
    copy = object.__new__(Bench)
    copy.__dict__.update(made.__dict__)
    copy.directory, copy.state, copy.runs = tmp_path, tmp_path / "state.img", 0
    with copy.state.open("wb") as disk:
        disk.truncate(256 << 20)
    return copy


def stopped(act: Callable[[], object]) -> Stop:
    with pytest.raises(Stop) as stop:
        act()
    return stop.value


def untouched(places: builder.Places) -> bool:
    """Whether nothing was put out."""
    return not places.result.read_bytes()[:4096].strip(b"\0")


# ------------------------------------------------------------------------------------------------- what it does


def test_a_revocation_list_is_signed_numbered_and_remembered(bench: Bench, tmp_path: Path) -> None:
    first = bench.job(revoke=((0x5AF1, "key-compromise"),))
    places = bench.run(first, 1)
    result = bench.unpack(places, first, tmp_path / "first")
    second = bench.job(after=first, revoke=((0x77, "unspecified"),))
    bench.unpack(bench.run(second, 2), second, tmp_path / "second")
    lists = [x509.load_pem_x509_crl((tmp_path / name / "crl.pem").read_bytes()) for name in ("first", "second")]
    assert [sorted(entry.serial_number for entry in one) for one in lists] == [[0x5AF1], [0x77, 0x5AF1]]
    above = forms.load_certificate(bench.public["intermediate.crt"])
    assert all(one.is_signature_valid(above.public_key()) for one in lists)
    assert [one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for one in lists] == [1, 2]
    log = keylog.parse((tmp_path / "second/build/keys.jsonl").read_bytes(), result.head)  # the first log goes on
    assert [entry.action for entry in log] == ["revoke", "list", "revoke", "list"]


def test_an_image_has_keys_that_were_made_inside_and_chains_to_the_root(bench: Bench, tmp_path: Path) -> None:
    job = bench.image_job()
    places = bench.run(job, 1, PARTS)
    bench.unpack(places, job, tmp_path / "image")
    image = tmp_path / "image"
    sinks: dict[str, io.BytesIO] = {}
    with (image / "casemate.img").open("rb") as file:
        open_image(file, bench.host, lambda name, size: sinks.setdefault(name, io.BytesIO()))
    inside = sinks["initrd"].getvalue()
    assert sinks["kernel"].getvalue().startswith(PARTS["kernel"]) and inside.startswith(PARTS["initrd"])
    assert inside.count(b"-----BEGIN PRIVATE KEY-----") == 2
    for name in ("encryption.crt", "attestation.crt", "provenance.crt"):
        chain = verify_chain(
            (image / name).read_bytes(),
            [bench.authority.root_pem],
            [(image / "crl.pem").read_bytes()],
            time=NOW + datetime.timedelta(seconds=5),
            untrusted=[(image / "intermediate.crt").read_bytes()],
        )
        assert chain.proved and len(chain.links) == 3
    document, _ = provenance.verify(
        (image / "provenance.json").read_bytes(),
        (image / "provenance.crt").read_bytes(),
        {name: buildvm.measure(image / name).sha256 for name in provenance.SUBJECTS},
        time=NOW + datetime.timedelta(seconds=5),
        issuers=[bench.authority.root_pem],
        untrusted=[(image / "intermediate.crt").read_bytes()],
    )
    assert document["predicate"]["runDetails"]["builder"]["id"] == provenance.MACHINE_BUILDER
    assert document["predicate"]["buildDefinition"]["externalParameters"]["approved_by"] == ["alice", "carol"]
    assert buildvm.trace(image, bench.published).mode == "image"


def test_no_private_key_is_left_where_the_builder_worked_or_goes_out(bench: Bench) -> None:
    job = bench.image_job()
    places = bench.run(job, 1, PARTS)
    assert not (places.run / "keys").exists()
    for path in places.run.parent.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"PRIVATE KEY-----" not in data and bench.secrets["state.key"] not in data, path
    assert b"PRIVATE KEY-----" not in bench.state.read_bytes()


def test_the_next_generation_has_keys_of_its_own_and_none_of_the_old_goes_on(bench: Bench, tmp_path: Path) -> None:
    old = dict(bench.secrets)
    job = bench.image_job(mode="builder")
    bench.unpack(bench.run(job, 1, PARTS), job, tmp_path / "next")
    refused = bench.image_job(after=job)
    assert stopped(lambda: bench.run(refused, 2, PARTS)).id == "HPL17004E"  # it has a successor
    bench.run(bench.job(after=job), 3)  # but signs its list
    sinks: dict[str, io.BytesIO] = {}
    with (tmp_path / "next/casemate.img").open("rb") as file:
        open_image(file, bench.host, lambda name, size: sinks.setdefault(name, io.BytesIO()))
    baked = unpack_cpio(sinks["initrd"].getvalue().split(PARTS["initrd"])[1])
    secrets = {name.removeprefix("casemate/keys/"): data for name, data in baked.items() if "/keys/" in name}
    assert set(secrets) == set(old) and not set(secrets.values()) & set(old.values())
    assert all(data not in sinks["initrd"].getvalue() for data in old.values())

    image = json.loads(baked["casemate/image.json"])
    assert image["builder"] == {"name": "buildvm", "generation": 2, "after": jobs_digest(job)}
    public = {name.removeprefix("casemate/public/"): data for name, data in baked.items() if "/public/" in name}
    files = {
        path.name: path.read_bytes()
        for path in (tmp_path / "next").iterdir()
        if path.suffix in (".crt", ".pem", ".json")
    }
    bench.settle({n: Secret(d) for n, d in secrets.items()}, public, {"builder": image["builder"]}, files)
    with bench.state.open("wb") as disk:
        disk.truncate(256 << 20)
    assert stopped(lambda: bench.run(bench.job(), 1)).id == "HPL17007E"  # its key is certified by nobody yet
    other = forms.pem(
        forms.request(bench.authority.describe(), "x").sign(
            key := ec.generate_private_key(ec.SECP384R1()), forms.algorithm_for(key.public_key())
        )
    )
    wrong = bench.job(intermediate=bench.authority.certify_builder(other))
    assert stopped(lambda: bench.run(wrong, 1)).id == "HPL17007E"  # for another key
    answer = bench.authority.certify_builder((tmp_path / "next/intermediate.csr").read_bytes())
    right = bench.job(intermediate=answer, revoke=((1, "superseded"),))
    bench.unpack(bench.run(right, 1), right, tmp_path / "list")


def test_a_result_says_who_approved_and_an_approval_by_others_is_not_believed(bench: Bench, tmp_path: Path) -> None:
    """A builder that did not ask its reviewers is found out by who verifies."""
    job = bench.job()
    places = bench.places(job, bench.reviewers.approve(job, 1))
    real = builder.approve

    def careless(*given: Any) -> Any:
        approved, parsed = real(*given)
        return replace(approved, names=("alice", "bob", "carol")), parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "approve", careless)
        builder.build(places)
    with pytest.raises(CasemateError) as error:
        bench.unpack(places, job, tmp_path / "out")
    assert error.value.id == "BUILDVM-OTHER"


def jobs_digest(job: bytes) -> str:
    return buildvm.measure(job).sha256


def unpack_cpio(data: bytes) -> dict[str, bytes]:
    found, at = {}, 0
    while data[at : at + 6] == b"070701":
        size, length = (int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in (6, 11))
        name = data[at + 110 : at + 110 + length - 1].decode()
        start = at + (110 + length + 3) // 4 * 4
        found[name] = data[start : start + size]
        at = start + (size + 3) // 4 * 4
    return found


# ------------------------------------------------------------------------------------------------- who approved what


def test_a_job_that_too_few_have_approved_is_refused(bench: Bench) -> None:
    job = bench.job()
    places = bench.places(job, bench.reviewers.approve(job, 1, by=("alice",)))
    assert stopped(lambda: builder.build(places)).id == "HPL17003E" and untouched(places)


def test_a_job_that_was_changed_after_its_approval_is_refused(bench: Bench) -> None:
    approval = bench.reviewers.approve(bench.job(), 1)
    places = bench.places(bench.job(revoke=((1, "unspecified"),)), approval)
    assert stopped(lambda: builder.build(places)).id == "HPL17003E" and untouched(places)


def test_an_approval_for_another_builder_is_none(bench: Bench) -> None:
    job = bench.job()
    places = bench.places(job, bench.reviewers.approve(job, 1, builder="other"))
    assert stopped(lambda: builder.build(places)).id == "HPL17003E"


@pytest.mark.parametrize("field", [{"builder": "other"}, {"generation": 2}, {"after": "a" * 64}])
def test_an_approved_job_out_of_turn_is_refused(bench: Bench, field: dict[str, object]) -> None:
    job = json.loads(bench.job()) | field
    data = json.dumps(job).encode()
    assert stopped(lambda: bench.run(data, 1)).id == "HPL17004E"


def test_the_same_job_again_and_an_older_one_are_refused(bench: Bench) -> None:
    first = bench.job()
    bench.run(first, 5)
    assert stopped(lambda: bench.run(first, 5)).id == "HPL17004E"
    older = bench.job(after=first)
    assert stopped(lambda: bench.run(older, 4)).id == "HPL17003E"


def test_an_older_or_empty_state_disk_does_not_bring_a_job_back(bench: Bench, tmp_path: Path) -> None:
    shutil.copy(bench.state, tmp_path / "empty.img")
    first = bench.job()
    bench.run(first, 1)
    shutil.copy(bench.state, tmp_path / "older.img")
    second = bench.job(after=first)
    bench.run(second, 2)
    third = bench.job(after=second)
    for name in ("older.img", "empty.img"):
        bench.state = tmp_path / name
        assert stopped(lambda: bench.run(third, 3)).id == "HPL17004E"


# ------------------------------------------------------------------------------------------------- the input disk


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_not_what_was_approved_is_refused(bench: Bench, name: str) -> None:
    job = bench.image_job()
    wrong = {**PARTS, name: PARTS[name][:-1] + b"X"}
    assert stopped(lambda: bench.run(job, 1, wrong)).id == "HPL17006E"
    missing = {other: data for other, data in PARTS.items() if other != name}
    assert stopped(lambda: bench.run(job, 1, missing)).id == "HPL17006E"


def test_a_file_that_the_job_does_not_name_is_refused(bench: Bench) -> None:
    assert stopped(lambda: bench.run(bench.image_job(), 1, {**PARTS, "more": b"x"})).id == "HPL17006E"


def test_a_disk_that_changes_after_its_head_was_read_brings_nothing_in(bench: Bench) -> None:
    def change(disk: Path) -> None:
        data = disk.read_bytes()
        disk.write_bytes(data.replace(b"kernelkernel", b"KERNELkernel", 1))

    job = bench.image_job()
    places = bench.places(job, bench.reviewers.approve(job, 1), PARTS, change)
    stop = stopped(lambda: builder.build(places))
    assert stop.id == "HPL17006E" and "kernel" in stop.detail and untouched(places)


def input_of(bench: Bench) -> bytes:
    job = bench.job()
    path = bench.directory / "given.img"
    buildvm.input_disk(path, job, bench.reviewers.approve(job, 1), {})
    return path.read_bytes()


def test_an_input_disk_that_answers_differently_twice_is_refused(bench: Bench) -> None:
    data = input_of(bench)
    other = data.replace(b'"mode": "crl"', b'"mode": "xrl"')
    disk = Disk("vdb", "", len(data))
    for turn in (1, 2, 3, 4):
        count = 0

        def read(_: Disk, size: int) -> bytes:
            nonlocal count
            count += 1
            return (other if count >= turn else data)[:size]  # noqa: B023

        assert stopped(lambda: builderinput.find([disk], read)).id == "HPL17002E"
    assert builderinput.find([disk], lambda _, size: data[:size]).head == data


def test_one_input_disk_is_needed_and_no_more(bench: Bench) -> None:
    data = input_of(bench)
    disks = [Disk(name, "", len(data)) for name in ("vdb", "vdc")]
    assert stopped(lambda: builderinput.find(disks, lambda _, size: data[:size])).id == "HPL17001E"
    assert stopped(lambda: builderinput.find(disks, lambda _, size: bytes(size))).id == "HPL17001E"


def test_a_job_alone_on_its_disk_or_too_large_is_refused(bench: Bench) -> None:
    for entries in (
        [frame.entry("job.json", b"{}")],
        [frame.Entry("job.json", 2 << 20, "0" * 64), frame.entry("approval.json", b"")],
        [frame.entry("approval.json", b""), frame.entry("job.json", b"{}")],
    ):
        data = frame.index("casebuild", entries).ljust(1 << 16, b"\0")
        disk = Disk("vdb", "", len(data))
        assert stopped(lambda: builderinput.find([disk], lambda _, size: data[:size])).id == "HPL17001E"  # noqa: B023


# ------------------------------------------------------------------------------------------------- the state disk


def memory(path: Path, key: bytes = b"k" * 32) -> Memory:
    return Memory(path, key, State(after=""))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "memory.img"
    with path.open("wb") as file:
        file.truncate(256 << 20)
    return path


def test_the_memory_goes_on_and_a_torn_write_loses_one_step_at_most(disk: Path) -> None:
    for number in range(1, 4):
        kept = memory(disk)
        assert kept.state.counter == number - 1
        kept.save(State(after="a" * 64, counter=number, accepted=(number, "b" * 64), log="line\n"))
    kept = memory(disk)
    assert kept.state.accepted == (3, "b" * 64) and kept.state.log == "line\n"
    with disk.open("r+b") as file:
        file.seek(SLOTS[kept.state.sequence % 2] + 30)
        file.write(b"torn")
    assert memory(disk).state.counter == 2


def test_a_state_disk_that_was_changed_or_is_anothers_is_refused(disk: Path) -> None:
    memory(disk).save(State(after="", counter=1))
    assert stopped(lambda: memory(disk, b"o" * 32)).id == "HPL17005E"
    with disk.open("r+b") as file:
        for slot in SLOTS:
            file.seek(slot + 25)
            file.write(b"x")
    assert stopped(lambda: memory(disk)).id == "HPL17005E"


def test_a_disk_with_something_else_is_left_as_it_is(tmp_path: Path, disk: Path) -> None:
    with disk.open("r+b") as file:
        file.write(b"somebody's data")
    assert stopped(lambda: memory(disk)).id == "HPL17005E"
    assert stopped(lambda: builder.require_free(disk)).id == "HPL17009E"
    (tmp_path / "small.img").write_bytes(bytes(1 << 20))
    assert stopped(lambda: memory(tmp_path / "small.img")).id == "HPL17005E"


def test_finished_work_is_kept_for_its_own_input_only_and_a_change_is_seen(disk: Path) -> None:
    kept, work = memory(disk), os.urandom((2 << 20) + 7)
    part = buildvm.measure(work)
    kept.keep("one", io.BytesIO(work), part.size, part.sha256)
    kept.keep("two", io.BytesIO(b"other"), 5, buildvm.measure(b"other").sha256)
    again = memory(disk)
    assert b"".join(again.fetch("one") or ()) == work and b"".join(again.fetch("two") or ()) == b"other"
    assert again.fetch("three") is None
    assert work[:64] not in disk.read_bytes()
    start = again.state.finished["one"][0]
    with disk.open("r+b") as file:
        file.seek(start + 16 + (1 << 20) + 99)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert stopped(lambda: b"".join(memory(disk).fetch("one") or ())).id == "HPL17005E"
    one, two = again.state.finished["one"], again.state.finished["two"]
    again.save(State(after="", finished={"one": two, "two": one}))  # a piece in another's place does not open
    assert stopped(lambda: b"".join(memory(disk).fetch("one") or ())).id == "HPL17005E"


# ------------------------------------------------------------------------------------------------- what goes out


@pytest.mark.parametrize("kind", ["p-384", "rsa"])
def test_a_key_in_what_goes_out_is_found_in_whatever_form(kind: str, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1()) if kind == "p-384" else rsa.generate_private_key(65537, 2048)
    pem = forms.private_pem(key)
    secrets = [Secret(pem), Secret(b"s" * 31 + b"t")]
    numbers = key.private_numbers()
    number = numbers.private_value if kind == "p-384" else numbers.p
    forms_of_it = (
        *(pem, pem.split(b"\n", 1)[1], b"s" * 31 + b"t", b"-----BEGIN EC PRIVATE KEY-----"),
        number.to_bytes((number.bit_length() + 7) // 8, "big"),
    )
    for data in forms_of_it:
        large = tmp_path / "large"
        large.write_bytes(bytes((1 << 20) - 9) + data + bytes(100))  # across the border of two pieces
        for content in (b"before " + data + b" after", large):
            assert stopped(lambda: require_no_keys({"file": content}, secrets)).id == "HPL17008E"  # noqa: B023
    require_no_keys({"file": b"-----BEGIN CERTIFICATE-----", "root.squashfs": b"PRIVATE KEY-----"}, secrets)


def test_a_result_that_was_changed_or_swapped_on_its_way_is_refused(bench: Bench, tmp_path: Path) -> None:
    first = bench.image_job()
    one = bench.run(first, 1, PARTS)
    second = bench.image_job(after=first)
    two = bench.run(second, 2, PARTS)

    def refused(places: builder.Places, job: bytes) -> str:
        with pytest.raises(CasemateError) as error:
            bench.unpack(places, job, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return error.value.id

    whole = one.result.read_bytes()
    places = frame.parse(whole[: frame.length(whole)], "caseresult")
    for place in places:  # a byte of each file
        data = bytearray(whole)
        data[place.offset + place.size // 2] ^= 1
        one.result.write_bytes(data)
        assert refused(one, first) in ("BUILDVM-RESULT", "BUILD-RESULT", "BUILDVM-RECORD"), place.name
    content = {place.name: whole[place.offset : place.offset + place.size] for place in places}
    content["encryption.crt"] = bench.authority.root_pem  # and the index with it
    builder.put_out(one.result, content.pop("result.json"), content)
    assert refused(one, first) == "BUILDVM-RESULT"
    one.result.write_bytes(whole)
    assert refused(two, first) == "BUILDVM-RECORD"  # the result of another job
    shutil.copy(two.result, one.result)
    assert refused(one, first) == "BUILDVM-RECORD"
    one.result.write_bytes(whole)
    bench.unpack(one, first, tmp_path / "out")


def test_an_image_of_another_builder_or_changed_later_does_not_lead_back(bench: Bench, tmp_path: Path) -> None:
    job = bench.image_job()
    bench.unpack(bench.run(job, 1, PARTS), job, tmp_path / "image")
    for name in ("encryption.crt", "casemate.img", "build/keys.jsonl", "root.squashfs"):
        path = tmp_path / "image" / name
        before = path.read_bytes()
        path.unlink()
        path.write_bytes(before + b"x")
        with pytest.raises(CasemateError) as error:
            buildvm.trace(tmp_path / "image", bench.published)
        assert error.value.id == "BUILDVM-CHANGED"
        path.write_bytes(before)
    stranger = Bench(tmp_path / "stranger", authority=bench.authority)
    with pytest.raises(CasemateError):
        buildvm.trace(tmp_path / "image", stranger.published)


def test_a_result_needs_room_and_takes_no_disk_with_something_else(bench: Bench) -> None:
    job = bench.job()
    places = bench.places(job, bench.reviewers.approve(job, 1))
    places.result.write_bytes(bytes(8192))
    assert stopped(lambda: builder.build(places)).id == "HPL17009E"
    assert places.result.read_bytes() == bytes(8192)
    bench.run(job, 1)  # and the job does not count as done


def test_an_image_for_hosts_that_nobody_verified_is_for_development_only(bench: Bench) -> None:
    bench.public["authority.json"] = bench.public["authority.json"].replace(b"true", b"false")
    assert stopped(lambda: bench.run(bench.image_job(), 1, PARTS)).id == "HPL17007E"  # the chain says development
