"""The two-person rule: who approves, what an approval covers, and every way around it that we could think of."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from casemate import approval, strictjson
from casemate.approval import (
    PAYLOAD_TYPE,
    ApprovalError,
    Reviewers,
    envelope,
    key_identity,
    pae,
    parse_reviewers,
    statement,
    verify,
)
from program import Result

Run = Callable[..., Result]
NAMES = ("alice", "bob", "carol")
CONTENT = b"packages: [hello]\n"
P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 3072) if name == "carol" else ec.generate_private_key(ec.SECP384R1())


def pem(name: str) -> str:
    return key(name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def document(keys: dict[str, str], threshold: object = 2) -> bytes:
    return json.dumps({"format": "casemate-reviewers/1", "threshold": threshold, "reviewers": keys}).encode()


@pytest.fixture(scope="module")
def reviewers() -> Reviewers:
    return parse_reviewers(document({name: pem(name) for name in NAMES}))


def signature(name: str, payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    private, data = key(name), pae(payload_type, payload)
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(data, padding.PKCS1v15(), hashes.SHA512())
    return private.sign(data, ec.ECDSA(hashes.SHA384()))


def signed(payload: bytes, names: Sequence[str] = ("alice", "carol")) -> bytes:
    return envelope(payload, [(name, signature(name, payload)) for name in names])


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(ApprovalError) as error:
        act()
    assert error.value.cure
    return error.value.id.removeprefix("APPROVAL-")


def test_what_enough_reviewers_signed_is_accepted(reviewers: Reviewers) -> None:
    payload = statement("build", 7, CONTENT, reviewers)
    for names in (("alice", "carol"), ("carol", "alice"), ("alice", "bob"), NAMES):
        approved = verify(CONTENT, signed(payload, names), reviewers, subject="build")
        assert approved.names == tuple(sorted(names)) and (approved.subject, approved.revision) == ("build", 7)
        assert approved.sha256 == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("names", [(), ("alice",)])
def test_too_few_are_not_enough(reviewers: Reviewers, names: Sequence[str]) -> None:
    payload = statement("build", 7, CONTENT, reviewers)
    assert refused(lambda: verify(CONTENT, signed(payload, names), reviewers, subject="build")) == "THRESHOLD"


def test_one_person_with_two_names_is_refused_where_reviewers_are_named() -> None:
    assert refused(lambda: parse_reviewers(document({"alice": pem("alice"), "alicia": pem("alice")}))) == "REVIEWERS"
    # The same key in another form of PEM is the same key.
    other = pem("alice").replace("\n", "\r\n")
    assert refused(lambda: parse_reviewers(document({"alice": pem("alice"), "alicia": other}))) == "REVIEWERS"


def test_one_private_key_in_two_guises_is_no_quorum() -> None:
    def form(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> str:
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def same(
        one: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, other: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    ) -> str:
        assert form(one) != form(other) and key_identity(one) == key_identity(other)
        return refused(lambda: parse_reviewers(document({"alice": form(one), "alicia": form(other)})))

    modulus = key("carol").public_key()
    assert isinstance(modulus, rsa.RSAPublicKey)
    assert same(modulus, rsa.RSAPublicNumbers(257, modulus.public_numbers().n).public_key()) == "REVIEWERS"
    private = key("alice")
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    number = P384_ORDER - private.private_numbers().private_value
    assert same(private.public_key(), ec.derive_private_key(number, ec.SECP384R1()).public_key()) == "REVIEWERS"
    assert len({key_identity(key(name).public_key()) for name in NAMES}) == 3
    with pytest.raises(TypeError):
        key_identity(object())


def test_one_person_can_not_sign_twice(reviewers: Reviewers) -> None:
    payload = statement("build", 7, CONTENT, reviewers)
    twice = envelope(payload, [("alice", signature("alice", payload)), ("alice", signature("alice", payload))])
    assert refused(lambda: verify(CONTENT, twice, reviewers, subject="build")) == "SIGNATURE"
    as_another = envelope(payload, [("alice", signature("alice", payload)), ("bob", signature("alice", payload))])
    assert refused(lambda: verify(CONTENT, as_another, reviewers, subject="build")) == "SIGNATURE"


def test_a_stranger_among_the_signatures_is_refused_even_where_enough_others_signed(reviewers: Reviewers) -> None:
    payload = statement("build", 7, CONTENT, reviewers)
    assert (
        refused(lambda: verify(CONTENT, signed(payload, (*NAMES, "mallory")), reviewers, subject="build"))
        == "SIGNATURE"
    )


def test_a_signature_over_other_bytes_is_refused(reviewers: Reviewers) -> None:
    payload, other = statement("build", 7, CONTENT, reviewers), statement("build", 7, b"evil", reviewers)
    assert refused(lambda: verify(b"evil", signed(payload), reviewers, subject="build")) == "OTHER"
    mixed = envelope(other, [(name, signature(name, payload)) for name in ("alice", "bob")])
    assert refused(lambda: verify(b"evil", mixed, reviewers, subject="build")) == "SIGNATURE"
    half = envelope(other, [("alice", signature("alice", other)), ("bob", signature("bob", payload))])
    assert refused(lambda: verify(b"evil", half, reviewers, subject="build")) == "SIGNATURE"


def test_a_signature_for_another_kind_of_document_is_refused(reviewers: Reviewers) -> None:
    payload = statement("build", 7, CONTENT, reviewers)
    found = [(name, signature(name, payload, "application/vnd.in-toto+json")) for name in NAMES]
    assert refused(lambda: verify(CONTENT, envelope(payload, found), reviewers, subject="build")) == "SIGNATURE"


def test_an_approval_for_another_subject_is_none(reviewers: Reviewers) -> None:
    payload = statement("test-build", 7, CONTENT, reviewers)
    assert refused(lambda: verify(CONTENT, signed(payload), reviewers, subject="build")) == "OTHER"


def test_an_approval_under_weaker_rules_is_none_under_these(reviewers: Reviewers) -> None:
    four = {name: pem(name) for name in (*NAMES, "dave")}
    stricter = parse_reviewers(document(four, 3))
    payload = statement("build", 7, CONTENT, reviewers)
    assert refused(lambda: verify(CONTENT, signed(payload, NAMES), stricter, subject="build")) == "OTHER"


def test_an_older_revision_does_not_come_back(reviewers: Reviewers) -> None:
    payload = statement("build", 7, CONTENT, reviewers)
    digest = hashlib.sha256(CONTENT).hexdigest()
    for last in ((8, digest), (8, "0" * 64), (7, "0" * 64)):
        act = lambda last=last: verify(CONTENT, signed(payload), reviewers, subject="build", last=last)  # noqa: E731
        assert refused(act) == "REPLAY"
    for last in ((6, digest), (6, "0" * 64), (7, digest)):
        assert verify(CONTENT, signed(payload), reviewers, subject="build", last=last).revision == 7


@pytest.mark.parametrize(
    "change",
    [
        lambda one: {**one, "revision": True},
        lambda one: {**one, "revision": 0},
        lambda one: {**one, "revision": 7.0},
        lambda one: {**one, "more": 1},
        lambda one: {name: value for name, value in one.items() if name != "sha256"},
        lambda one: {**one, "format": "casemate-approval/2"},
    ],
)
def test_a_statement_of_another_form_is_refused_though_all_have_signed_it(reviewers: Reviewers, change) -> None:
    payload = strictjson.dumps(change(json.loads(statement("build", 7, CONTENT, reviewers))))
    assert refused(lambda: verify(CONTENT, signed(payload, NAMES), reviewers, subject="build")) in ("FORM", "OTHER")


def test_a_statement_that_says_something_twice_is_refused(reviewers: Reviewers) -> None:
    payload = statement("build", 7, CONTENT, reviewers).replace(b'"revision":7', b'"revision":9,"revision":7')
    assert refused(lambda: verify(CONTENT, signed(payload, NAMES), reviewers, subject="build")) == "FORM"


@pytest.mark.parametrize("threshold", [0, 1, 4, True, "2", None, 2.0])
def test_a_threshold_that_is_no_rule_of_two_is_refused(threshold: object) -> None:
    data = document({name: pem(name) for name in NAMES}, threshold)
    assert refused(lambda: parse_reviewers(data)) == "REVIEWERS"


def test_a_weak_key_or_none_is_no_reviewers() -> None:
    weak = rsa.generate_private_key(65537, 2048).public_key()
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    for bad in (weak, other):
        text = bad.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        assert refused(lambda text=text: parse_reviewers(document({"alice": pem("alice"), "bob": text}))) == "REVIEWERS"
    assert refused(lambda: parse_reviewers(document({"alice": pem("alice"), "bob": "none"}))) == "REVIEWERS"


@pytest.fixture(scope="module")
def good(reviewers: Reviewers) -> bytes:
    return signed(statement("build", 7, CONTENT, reviewers))


@given(st.data())
def test_any_change_of_one_byte_is_refused_or_changes_nothing(
    reviewers: Reviewers, good: bytes, data: st.DataObject
) -> None:
    where = data.draw(st.integers(0, len(good) - 1))
    bad = good[:where] + bytes([data.draw(st.integers(0, 255))]) + good[where + 1 :]
    with contextlib.suppress(ApprovalError):
        approved = verify(CONTENT, bad, reviewers, subject="build")
        assert (approved.revision, approved.names) == (7, ("alice", "carol"))


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_are_refused(reviewers: Reviewers, content: bytes, data: bytes) -> None:
    with pytest.raises(ApprovalError):
        verify(content, data, reviewers, subject="build")
    with pytest.raises(ApprovalError):
        parse_reviewers(data)
    with contextlib.suppress(ApprovalError):
        approval.parse_last(data)


@given(st.sets(st.sampled_from(NAMES)), st.integers(1, 99), st.integers(0, 99), st.binary(max_size=40))
def test_enough_signatures_and_a_newer_revision_are_what_it_takes(
    reviewers: Reviewers, names: set[str], revision: int, last: int, content: bytes
) -> None:
    made = signed(statement("build", revision, content, reviewers), sorted(names))
    good = len(names) >= 2 and revision > last
    try:
        verify(content, made, reviewers, subject="build", last=(last, "0" * 64))
    except ApprovalError:
        assert not good
    else:
        assert good


def test_commands_collect_signatures_and_refuse_what_was_replaced(run: Run, tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / f"{name}.key"
        path.touch(0o600)
        path.write_bytes(key(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "reviewers.json").write_bytes(document({name: pem(name) for name in NAMES}))
    file, base = tmp_path / "build.yaml", ["--reviewers=reviewers.json", "--subject=build"]
    file.write_bytes(CONTENT)

    def sign(name: str, revision: int = 1, key: str = "") -> Result:
        more = ["--as", name, "--key", f"file:{key or name}.key", f"--revision={revision}", "-o", f"a{revision}"]
        return run("approval", "sign", "build.yaml", *base, *more, "--json")

    def check(revision: int = 1) -> str:
        result = run("approval", "verify", "build.yaml", f"--approval=a{revision}", *base, "--state=last", "--json")
        said = json.loads(result.out)
        return str(said["error"]["id"]) if result.code else ",".join(said["names"])

    assert json.loads(sign("alice").out)["missing"] == 1 and check() == "APPROVAL-THRESHOLD"
    assert json.loads(sign("alice").out)["missing"] == 1  # once more says the same
    assert json.loads(sign("bob", key="alice").out)["error"]["id"] == "APPROVAL-REVIEWERS"
    assert json.loads(sign("mallory", key="alice").out)["error"]["id"] == "APPROVAL-REVIEWERS"
    assert json.loads(sign("carol").out)["missing"] == 0 and check() == check() == "alice,carol"
    for more in ([], ["--json"]):  # the approval alone goes to standard output
        told = run(
            *("approval", "sign", "build.yaml", *base, "--as=bob", "--key=file:bob.key", "--revision=1", "-o", "-"),
            *more,
        )
        assert set(json.loads(told.out)) == {"payload", "payloadType", "signatures"} and "bob" in told.err
    file.write_bytes(b"packages: [evil]\n")
    assert check() == "APPROVAL-OTHER" and json.loads(sign("bob").out)["error"]["id"] == "APPROVAL-OTHER"
    assert sign("alice", 2).code == sign("bob", 2).code == 0 and check(2) == "alice,bob"
    file.write_bytes(CONTENT)
    assert check(1) == "APPROVAL-REPLAY"


@pytest.mark.parametrize("state", ["nowhere/last", "", ".", "..", "file/last"])
def test_a_state_that_can_not_be_kept_is_a_sentence_and_json(run: Run, tmp_path: Path, state: str) -> None:
    (tmp_path / "reviewers.json").write_bytes(document({name: pem(name) for name in NAMES}))
    for name in ("file", "approval"):
        (tmp_path / name).touch()
    words = ["--approval=approval", "--reviewers=reviewers.json", "--subject=s", f"--state={state}"]
    told = run("approval", "verify", "file", *words, "--json")
    error = json.loads(told.out)["error"]
    assert (told.code, error["id"]) == (1, "CLI-FILE") and error["where"] and error["cure"]
    assert told.err.startswith("CLI-FILE: ") and error["cure"] in told.err
