"""Frames, jobs and results: what is written is read, and nothing else is."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.approval import pae
from casemate.attestation import record
from casemate.build import frame
from casemate.build import job as jobs
from casemate.build.frame import Entry, FrameError
from casemate.build.job import Job, JobError, Part, Result, ResultError
from casemate.errors import CasemateError

HEX = "a" * 64
PARTS = {name: Part(HEX, 5) for name in jobs.READY_PARTS}
IMAGE = Job(
    *("image", "buildvm", 1, HEX, "amd64"),
    hosts=(("HKD.crt", b"document"),),
    parts=PARTS,
    root=Part(HEX, 7),
    release="6.1.0-1-amd64",
    selection={"exact": True},
)
KEY = rsa.generate_private_key(65537, 2048)
RESULT = Result(
    *(
        "buildvm",
        1,
        "crl",
        3,
        ("alice", "bob"),
        HEX,
        HEX,
        HEX,
        "",
        4,
        {"crl.pem": Part(HEX, 9)},
        HEX,
        "2026-11-25T00:00:00+00:00",
    )
)


# ------------------------------------------------------------------------------------------------- frames


def test_a_frame_reads_back_with_each_file_in_its_place() -> None:
    entries = [frame.entry("job.json", b"{}"), Entry("empty", 0, HEX), Entry(f"{HEX}.deb", 4097, HEX)]
    data = frame.index("casebuild", entries)
    places = frame.parse(data, "casebuild")
    assert [(one.name, one.size, one.sha256) for one in places] == [(one.name, one.size, one.sha256) for one in entries]
    assert [one.offset for one in places] == [4096, 8192, 8192] and len(data) == frame.length(data) == 4096
    assert frame.is_frame(data, "casebuild") and not frame.is_frame(data, "caseresult")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-a", "a" * 81, "a\0b", "ä", "."])
def test_a_name_that_is_no_plain_one_is_refused(name: str) -> None:
    with pytest.raises(FrameError):
        frame.index("casebuild", [Entry(name, 1, HEX)])


def test_a_frame_with_a_name_twice_or_bytes_that_mean_nothing_is_refused() -> None:
    with pytest.raises(FrameError):
        frame.index("casebuild", [Entry("a", 1, HEX), Entry("a", 2, HEX)])
    good = frame.index("casebuild", [Entry("a", 1, HEX)])
    for at in (40, 127, 130, 250, 300, len(good) - 1):  # fillings: of the header, a name, an entry, the index
        wrong = bytearray(good)
        wrong[at] = 1
        with pytest.raises(FrameError):
            frame.parse(bytes(wrong), "casebuild")
    for data in (good[:-1], good + b"\0", b"", good[:100]):
        with pytest.raises(FrameError):
            frame.parse(data, "casebuild")


@pytest.mark.parametrize("count", [0, 4097, 2**32 - 1])
def test_an_impossible_number_of_files_is_refused_before_anything_is_read(count: int) -> None:
    with pytest.raises(FrameError):
        frame.length(frame.MAGIC + bytes(16) + count.to_bytes(4, "big") + bytes(92))


def test_files_that_no_disk_could_hold_are_refused() -> None:
    for sizes in ([2**63], [frame.LARGEST_FILE] * 5):
        with pytest.raises(FrameError):
            frame.index("casebuild", [Entry(f"f{n}", size, HEX) for n, size in enumerate(sizes)])


@given(st.binary(max_size=9000))
def test_any_bytes_are_a_frame_or_a_frame_error(data: bytes) -> None:
    for tried in (data, frame.MAGIC + data):
        try:
            frame.parse(tried, "casebuild")
        except FrameError:
            continue


# ------------------------------------------------------------------------------------------------- jobs


@pytest.mark.parametrize(
    "job",
    [
        IMAGE,
        Job(
            "builder",
            "b",
            9,
            "",
            "s390x",
            keyset=b"{}",
            parts=PARTS,
            root=Part(HEX, 0),
            release="6",
            selection={"a": 1},
            reviewers=b"x",
        ),
        Job(
            "crl",
            "b",
            1,
            HEX,
            revoke=((0x5AF1, "key-compromise"), (1, "unspecified")),
            intermediate=b"PEM",
            root_list=b"PEM",
        ),
        Job(
            *("image", "b", 1, ""),
            hosts=(("h", b"d"),),
            parts={name: Part(HEX, 1) for name in jobs.BUNDLES},
            signature=b"signed",
        ),
    ],
)
def test_a_job_reads_back(job: Job) -> None:
    assert jobs.parse_job(job.as_bytes()) == job


@pytest.mark.parametrize(
    "change",
    [
        {"format": "casemate-build/2"},
        {"mode": "shell"},
        {"arch": "riscv"},
        {"builder": "../x"},
        {"builder": 7},
        {"generation": 0},
        {"generation": True},
        {"generation": "1"},
        {"after": "short"},
        {"command": "sh"},
        {"hosts": []},
        {"hosts": [{"name": "a", "document": "x"}, {"name": "a", "document": "y"}]},
        {"hosts": [{"name": "a", "document": "x", "more": 1}]},
        {"hosts": [{"name": "../a", "document": "x"}]},
        {"keyset": "{}"},
        {"parts": {}},
        {
            "parts": {
                **{name: {"sha256": HEX, "size": 1} for name in jobs.READY_PARTS},
                "more": {"sha256": HEX, "size": 1},
            }
        },
        {"root": {"sha256": HEX.upper(), "size": 1}},
        {"root": {"sha256": HEX, "size": -1}},
        {"root": {"sha256": HEX, "size": 1.0}},
        {"release": "../../x"},
        {"release": ""},
        {"selection": {}},
        {"signature": "c2ln"},
        {"revoke": [{"serial": "1", "reason": "unspecified"}]},
        {"reviewers": "{}"},
        {"intermediate": 5},
    ],
)
def test_a_job_of_another_form_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(JobError):
        jobs.parse_job(json.dumps(json.loads(IMAGE.as_bytes()) | change).encode())


@pytest.mark.parametrize(
    "change",
    [{"hosts": [{"name": "a", "document": "x"}]}, {"revoke": [{"serial": "0", "reason": "x"}]}, {"release": "6"}],
)
def test_a_list_is_made_of_serial_numbers_only(change: dict[str, object]) -> None:
    job = json.loads(Job("crl", "b", 1, "").as_bytes())
    with pytest.raises(JobError):
        jobs.parse_job(json.dumps(job | change).encode())


def test_a_key_that_stands_twice_or_too_much_of_it_is_refused() -> None:
    data = IMAGE.as_bytes()
    for wrong in (data.replace(b'"mode"', b'"mode": "crl", "mode"'), data + b" " * jobs.LARGEST, b"[]", b"\xff", b""):
        with pytest.raises(JobError):
            jobs.parse_job(wrong)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=20,
    )
)
def test_any_value_in_any_field_is_a_job_or_a_job_error(value: object) -> None:
    document = json.loads(IMAGE.as_bytes())
    for name in document:
        try:
            jobs.parse_job(json.dumps(document | {name: value}).encode())
        except JobError:
            continue


# ------------------------------------------------------------------------------------------------- results


def test_a_result_opens_under_the_key_that_signed_it_and_no_other() -> None:
    envelope = jobs.sign_result(RESULT, KEY)
    assert jobs.open_result(envelope, KEY.public_key()) == RESULT
    with pytest.raises(ResultError, match="has not signed"):
        jobs.open_result(envelope, rsa.generate_private_key(65537, 2048).public_key())


def test_a_record_is_no_result_and_a_result_no_record() -> None:
    document = json.loads(jobs.sign_result(RESULT, KEY))
    text = RESULT.as_bytes()
    bare = base64.b64encode(KEY.sign(text, PKCS1v15(), SHA256())).decode()  # as a record is signed
    with pytest.raises(ResultError):
        jobs.open_result(json.dumps(document | {"signatures": [{"keyid": "", "sig": bare}]}).encode(), KEY.public_key())
    with pytest.raises(CasemateError):
        record.parse(pae(jobs.RESULT_TYPE, text))


@pytest.mark.parametrize(
    "change", [{"payloadType": "x"}, {"signatures": []}, {"payload": "!"}, {"more": 1}, {"signatures": [1]}]
)
def test_an_envelope_of_another_form_is_refused(change: dict[str, object]) -> None:
    document = json.loads(jobs.sign_result(RESULT, KEY)) | change
    with pytest.raises(ResultError):
        jobs.open_result(json.dumps(document).encode(), KEY.public_key())


@given(st.binary(max_size=500))
@settings(max_examples=50)
def test_any_bytes_are_a_result_or_a_result_error(data: bytes) -> None:
    with pytest.raises(ResultError):
        jobs.open_result(data, KEY.public_key())
