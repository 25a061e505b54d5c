"""Provenance statements: what is signed, by whom, and every way in which one could pass for another."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from casemate.image import provenance
from casemate.image.ca import DevelopmentCA
from casemate.image.provenance import PAYLOAD_TYPE, SUBJECTS, ProvenanceError, pae, parse_statement, sign

NOW = datetime.datetime.now(datetime.UTC)
DIGESTS = {name: f"{number:064x}" for number, name in enumerate(SUBJECTS)}


def statement(**changed: str) -> bytes:
    return provenance.statement(
        {**DIGESTS, **changed},
        parameters={"arch": "amd64"},
        dependencies=[{"name": "source", "digest": {"sha256": "5" * 64}}],
        values={"sbom": "6" * 64},
        tools={"casemate": "0"},
        started=NOW,
        finished=NOW,
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA.load_or_create(tmp_path_factory.mktemp("home") / "ca")


@pytest.fixture(scope="module")
def signer(authority: DevelopmentCA) -> tuple[bytes, bytes]:
    key, certificate = authority.issue_provenance("1")
    return key.reveal(), certificate


def verify(envelope: bytes, certificate: bytes, authority: DevelopmentCA, **files: str) -> Any:
    return provenance.verify(
        envelope,
        certificate,
        {**DIGESTS, **files},
        time=NOW,
        issuers=[authority.root_pem],
        untrusted=[authority.intermediate_pem],
        crls=[authority.crl_pem],
    )


def test_what_was_signed_is_what_is_read(authority: DevelopmentCA, signer: tuple[bytes, bytes]) -> None:
    document, chain = verify(sign(statement(), signer[0]), signer[1], authority)
    assert document == json.loads(statement()) and chain.proved and chain.development
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    assert provenance.dependency(document, "source") == "5" * 64
    assert provenance.dependency(document, "nothing") == ""


def test_the_encoding_is_that_of_the_published_example() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, test vectors
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_file_that_was_changed_is_named(name: str, authority: DevelopmentCA, signer: tuple[bytes, bytes]) -> None:
    with pytest.raises(ProvenanceError, match=f"{name} is not the file that was signed"):
        verify(sign(statement(), signer[0]), signer[1], authority, **{name: "f" * 64})


def test_a_file_that_is_not_there_or_not_spoken_of_is_refused(
    authority: DevelopmentCA, signer: tuple[bytes, bytes]
) -> None:
    with pytest.raises(ProvenanceError, match="does not speak of other"):
        verify(sign(statement(), signer[0]), signer[1], authority, other="f" * 64)
    with pytest.raises(ProvenanceError, match=r"no attestation\.crt to compare"):
        provenance.verify(
            sign(statement(), signer[0]),
            signer[1],
            {"root.squashfs": DIGESTS["root.squashfs"]},
            time=NOW,
            issuers=[authority.root_pem, authority.intermediate_pem],
        )


def test_another_key_does_not_sign_for_this_certificate(authority: DevelopmentCA, signer: tuple[bytes, bytes]) -> None:
    other, _ = authority.issue_provenance("1")
    with pytest.raises(ProvenanceError, match="signature is not one of this"):
        verify(sign(statement(), other.reveal()), signer[1], authority)


def test_a_changed_statement_is_not_even_parsed(authority: DevelopmentCA, signer: tuple[bytes, bytes]) -> None:
    envelope = json.loads(sign(statement(), signer[0]))
    envelope["payload"] = base64.b64encode(b"not JSON").decode()
    with pytest.raises(ProvenanceError, match="signature is not one of this"):
        verify(json.dumps(envelope).encode(), signer[1], authority)


def test_another_authority_is_not_believed(
    authority: DevelopmentCA, signer: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = DevelopmentCA.load_or_create(tmp_path_factory.mktemp("other") / "ca")
    with pytest.raises(ProvenanceError, match="who signed it is not proved"):
        verify(sign(statement(), signer[0]), signer[1], other)


def test_a_revoked_certificate_is_not_believed(authority: DevelopmentCA) -> None:
    key, certificate = authority.issue_provenance("1")
    authority.revoke(x509.load_pem_x509_certificate(certificate).serial_number)
    with pytest.raises(ProvenanceError, match="who signed it is not proved"):
        verify(sign(statement(), key.reveal()), certificate, authority)


def test_the_key_that_signs_records_can_not_sign_provenance(authority: DevelopmentCA) -> None:
    issued = authority.issue("1")
    key = serialization.load_pem_private_key(issued.attestation_key.reveal(), None)
    from cryptography.hazmat.primitives.asymmetric import padding

    signature = key.sign(pae(PAYLOAD_TYPE, statement()), padding.PKCS1v15(), hashes.SHA384())  # type: ignore[union-attr,call-arg,arg-type]
    envelope = {
        **{"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(statement()).decode()},
        "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    }
    with pytest.raises(ProvenanceError, match="not one that may sign provenance"):
        verify(json.dumps(envelope).encode(), issued.attestation_certificate, authority)


def test_a_signature_over_the_payload_alone_or_another_type_is_none(
    authority: DevelopmentCA, signer: tuple[bytes, bytes]
) -> None:
    key = serialization.load_pem_private_key(signer[0], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    for signed in (statement(), pae("text/plain", statement()), pae("", statement())):
        envelope = json.loads(sign(statement(), signer[0]))
        envelope["signatures"][0]["sig"] = base64.b64encode(key.sign(signed, ec.ECDSA(hashes.SHA384()))).decode()
        with pytest.raises(ProvenanceError, match="signature is not one of this"):
            verify(json.dumps(envelope).encode(), signer[1], authority)


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "text/plain"},
        {"payloadType": None},
        {"payload": "~"},
        {"payload": 1},
        {"signatures": []},
        {"signatures": [{"sig": "AAAA"}, {"sig": "AAAA"}]},
        {"signatures": [{}]},
        {"signatures": "AAAA"},
        {"more": 1},
    ],
)
def test_an_envelope_of_another_form_is_refused(change: dict[str, Any], signer: tuple[bytes, bytes]) -> None:
    envelope = {**json.loads(sign(statement(), signer[0])), **change}
    with pytest.raises(ProvenanceError):
        provenance.open_envelope(json.dumps(envelope).encode())


def test_an_envelope_that_says_something_twice_or_too_much_is_refused(signer: tuple[bytes, bytes]) -> None:
    envelope = sign(statement(), signer[0]).rstrip()
    for bad in (envelope[:-1] + b', "payload": "AAAA"}', b" " * provenance.LARGEST + envelope, b"[" * 100_000, b"\xff"):
        with pytest.raises(ProvenanceError):
            provenance.open_envelope(bad)


@pytest.mark.parametrize(
    "path, value",
    [
        (("_type",), "https://in-toto.io/Statement/v0.1"),
        (("predicateType",), "https://spdx.dev/Document"),
        (("subject",), []),
        (("subject",), [{"name": f"f{n}", "digest": {"sha256": "0" * 64}} for n in range(100)]),
        (("subject", 0, "name"), "../../etc/passwd"),
        (("subject", 0, "name"), "root.squashfs"),
        (("subject", 0, "digest"), {"md5": "0" * 32}),
        (("subject", 0, "digest", "sha256"), "F" * 64),
        (("predicate",), None),
        (("predicate", "buildDefinition", "buildType"), "urn:other"),
        (("predicate", "buildDefinition", "resolvedDependencies"), {}),
    ],
)
def test_a_statement_of_another_form_is_refused(path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(statement())
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ProvenanceError):
        parse_statement(json.dumps(document).encode())


@given(st.binary() | st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
    lambda value: json.dumps(value).encode()
))  # fmt: skip
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ProvenanceError):
        provenance.open_envelope(data)
    with contextlib.suppress(ProvenanceError):
        parse_statement(data)


@given(st.text(), st.binary(), st.text(), st.binary())
def test_two_pairs_never_have_one_encoding(one: str, body: bytes, other: str, rest: bytes) -> None:
    assert (pae(one, body) == pae(other, rest)) == ((one, body) == (other, rest))
