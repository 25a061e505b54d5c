"""Keys for images and what the engine is told of them; signatures as cosign left them in a registry."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from tuf_kit import certified, new

from casemate.contract import cosign
from casemate.contract.admission import Admitted, ImageKey, admit, entries, lookups, policy, read_keys
from casemate.contract.check import check_workload
from casemate.contract.errors import ImageError, TrustError
from casemate.contract.images import Reference, parse_reference

DIGEST, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
PUBLIC_PACKET = b"\x98\x05abcde"
RECORDED = Path(__file__).parent / "cosign"
NAME = "r.example.com/app"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


PEM = (RECORDED / "cosign.pub").read_bytes()
GOOD: dict[str, Any] = {
    "dct": {NAME: {"notary": "https://notary.example.com:4443", "publicKey": b64(certified().certificate)}},
    "rhs": {NAME: {"publicKey": b64(PUBLIC_PACKET)}},
    "cosign": {NAME: {"publicKey": b64(PEM)}},
}


def private() -> bytes:
    return new().key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def armored(data: bytes, kind: str = "PUBLIC") -> str:
    return b64(
        f"-----BEGIN PGP {kind} KEY BLOCK-----\nComment: x\n\n{b64(data)}\n=abcd\n-----END PGP {kind} KEY BLOCK-----\n".encode()
    )


# ------------------------------------------------------------------------------------------------- keys


def test_keys_are_found_by_the_full_name_of_their_image() -> None:
    found = read_keys({"images": GOOD | {"rhs": {"app": {"publicKey": armored(PUBLIC_PACKET)}}}})
    assert {name: [key.kind for key in keys] for name, keys in found.items()} == {
        NAME: ["dct", "cosign"],
        "docker.io/library/app": ["rhs"],
    }
    assert found["docker.io/library/app"][0].key == PUBLIC_PACKET


def test_keys_of_confidential_containers_are_read_where_they_stand_there() -> None:
    workload = {"confidential-containers": {"config": {"cosign": {NAME: {"publicKey": PEM.decode()}}}}}
    assert read_keys(workload) == {NAME: [ImageKey("cosign", NAME, PEM)]}


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("rhs", {"publicKey": "AAAA"}, "not a public key of GPG"),
        ("rhs", {"publicKey": b64(b"\x98\x09abcde")}, "not a public key of GPG"),  # cut off
        ("rhs", {"publicKey": b64(b"\xb4\x05abcde")}, "not a public key of GPG"),  # a user's name
        ("rhs", {"publicKey": b64(PEM)}, "not a public key of GPG"),
        ("rhs", {"publicKey": b64(b"\x94\x05abcde")}, "private key of GPG"),
        ("rhs", {"publicKey": b64(PUBLIC_PACKET + b"\xc5\x05abcde")}, "private key of GPG"),
        ("rhs", {"publicKey": armored(PUBLIC_PACKET, "PRIVATE")}, "private key of GPG"),
        ("rhs", {"lookaside": "http://example.com"}, "https://host"),
        ("dct", {"publicKey": "AAAA"}, "neither PEM nor base64 of PEM"),
        ("dct", {"publicKey": b64(private())}, "neither a certificate nor a public key"),
        ("dct", {"publicKey": b64(PEM.replace(b"M", b"N"))}, "damaged"),
        ("dct", {"publicKey": b64(certified(name="r.example.com/other").certificate)}, "not of this image"),
        ("dct", {"notary": "http://notary.example.com"}, "https://host"),
        ("dct", {"notary": "https://user:password@notary.example.com"}, "https://host"),
        ("cosign", {"publicKey": b64(certified().certificate)}, "not a public key"),
        ("cosign", {"publicKey": b64(private())}, "not a public key"),
        ("cosign", {"publicKey": b64(PEM[:60] + PEM[90:])}, "damaged"),
    ],
)
def test_a_key_that_is_none_is_told_with_its_place(kind: str, change: dict[str, str], said: str) -> None:
    images = {kind: {NAME: GOOD[kind][NAME] | change}}
    with pytest.raises(ImageError, match=said) as error:
        read_keys({"images": images})
    assert error.value.id == "HPL16004E" and error.value.where.startswith(f"workload.images.{kind}.{NAME}")
    problems = check_workload({"type": "workload", "compose": {"archive": "AAAA"}, "images": images})
    place = f'workload.images.{kind}["{NAME}"].{next(iter(change))}'
    assert place in [problem.place for problem in problems]


@pytest.mark.parametrize("name", ["UPPER", f"{NAME}:17", f"{NAME}@{DIGEST}", ""])
def test_a_name_that_is_no_image_or_has_a_tag_is_told(name: str) -> None:
    ((_, _, found),) = entries({"images": {"cosign": {name: GOOD["cosign"][NAME]}}})
    assert isinstance(found, ImageError) and found.id == "HPL16000E"


@pytest.mark.parametrize("more", [":1.2.3", f"@{DIGEST}"])
def test_a_key_for_simple_signing_may_be_given_by_tag_or_digest(more: str) -> None:
    ((_, name, found),) = entries({"images": {"rhs": {NAME + more: {"publicKey": b64(PUBLIC_PACKET)}}}})
    assert name == NAME and not isinstance(found, ImageError) and found.name == NAME


@given(st.binary(max_size=300))
def test_any_bytes_as_a_key_are_refused_and_no_more(data: bytes) -> None:
    for kind in GOOD:
        for text in (b64(data), data.decode("latin-1")):
            for _, _, found in entries({"images": {kind: {NAME: GOOD[kind][NAME] | {"publicKey": text}}}}):
                assert isinstance(found, ImageError) or (
                    kind == "rhs" and data[:1] in (b"\x98", b"\x99", b"\x9a", b"\xc6")
                )


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_value_in_place_of_keys_is_passed_over_or_told(value: Any) -> None:
    for workload in ({"images": value}, {"images": {"dct": value}}, {"confidential-containers": {"config": value}}):
        assert all(isinstance(found, ImageError) for _, _, found in entries(workload))


# ------------------------------------------------------------------------------------------------- admission


def resolve(key: ImageKey, image: Reference) -> str:
    return {"dct": DIGEST, "cosign": DIGEST}[key.kind]


def test_a_digest_admits_by_itself_and_nobody_is_asked() -> None:
    def never(key: ImageKey, image: Reference) -> str:
        raise AssertionError

    name = f"{NAME}@{OTHER}"
    assert admit(parse_reference(name), read_keys({"images": GOOD}), never) == Admitted(name, name)


def test_a_tag_is_admitted_by_every_key_that_its_name_has() -> None:
    found = admit(parse_reference(f"{NAME}:17"), read_keys({"images": GOOD}), resolve)
    assert (found.named, found.pulled) == (f"{NAME}:17", f"{NAME}@{DIGEST}")
    assert [key.kind for key in found.keys] == ["rhs"]
    with pytest.raises(ImageError, match="different digests"):
        admit(
            parse_reference(NAME),
            read_keys({"images": GOOD}),
            lambda key, image: DIGEST if key.kind == "dct" else OTHER,
        )


@pytest.mark.parametrize("name", [f"{NAME}2:17", "r.example.com/ap:17", "other.example.com/app:17", "app:17"])
def test_a_key_is_for_its_name_alone(name: str) -> None:
    with pytest.raises(ImageError, match="neither a digest nor a key"):
        admit(parse_reference(name), read_keys({"images": GOOD}), resolve)


def test_the_policy_rejects_all_but_the_exact_references() -> None:
    key = ImageKey("rhs", NAME, PUBLIC_PACKET, "https://example.com/signatures")
    digest = f"{NAME}@{DIGEST}"
    found = [Admitted(digest, digest), Admitted(f"{NAME}:17", f"{NAME}:17", (key,))]
    said = policy(found)
    assert said["default"] == [{"type": "reject"}]
    signed = {
        **{"type": "signedBy", "keyType": "GPGKeys", "keyData": b64(PUBLIC_PACKET)},
        "signedIdentity": {"type": "matchRepoDigestOrExact"},
    }
    accepted = {digest: [{"type": "insecureAcceptAnything"}], f"{NAME}:17": [signed]}
    assert said["transports"] == {"docker": accepted}
    assert lookups(found) == {"docker": {NAME: {"lookaside": "https://example.com/signatures"}}}
    assert policy([])["transports"] == {"docker": {}}


def test_a_digest_that_one_name_needs_a_key_for_needs_it_under_every_name() -> None:
    """Content trust gives the digest that another service names: what is signed must be, whichever comes first."""
    key, digest = ImageKey("rhs", NAME, PUBLIC_PACKET), f"{NAME}@{DIGEST}"
    both = [Admitted(digest, digest), Admitted(f"{NAME}:17", digest, (key,))]
    for order in (both, both[::-1]):
        (rules,) = policy(order)["transports"]["docker"].values()
        assert [rule["type"] for rule in rules] == ["signedBy"]


# ------------------------------------------------------------------------------------------------- cosign


def recorded() -> tuple[list[cosign.Layer], list[bytes], str]:
    found = cosign.layers((RECORDED / "signatures.json").read_bytes())
    payloads = [(RECORDED / f"payload-{number}.json").read_bytes() for number in range(len(found))]
    return found, payloads, cosign.digest_of((RECORDED / "manifest.json").read_bytes())


def test_what_cosign_signed_holds_for_its_name_tag_and_digest_alone() -> None:
    layers, payloads, digest = recorded()
    assert [json.loads(payload)["critical"]["identity"]["docker-reference"] for payload in payloads] == [
        f"{NAME}:17",
        NAME,
    ]
    tagged, bare = zip(payloads, layers, strict=True)
    assert cosign.fault(*tagged, PEM, f"{NAME}:17", digest) is None
    assert "names no tag" in str(cosign.fault(*bare, PEM, f"{NAME}:17", digest))
    for image in (f"{NAME}:18", f"{NAME}2:17", "evil.example.com/app:17", NAME):
        assert cosign.fault(*tagged, PEM, image, digest) == "for another name or tag"
    assert cosign.fault(*tagged, PEM, f"{NAME}:17", OTHER) == "of another image"
    other = new().key.public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert cosign.fault(*tagged, pem, f"{NAME}:17", digest) == "by another key"
    assert cosign.fault(payloads[0], layers[1], PEM, f"{NAME}:17", digest) == "by another key"


KEYS = json.loads((RECORDED / "keys.json").read_bytes())


@pytest.mark.parametrize(
    "made", KEYS, ids=lambda made: " ".join((made["cosign"], made["key"], *(made.keys() & {"index"})))
)
def test_what_cosign_signed_with_any_kind_of_key_holds_and_is_refused_where_it_is_not_that(
    made: dict[str, str],
) -> None:
    image = f"{NAME}:17"
    (key,) = read_keys({"images": {"cosign": {NAME: {"publicKey": made["public"]}}}})[NAME]
    manifest = made["index"].encode() if "index" in made else (RECORDED / "manifest.json").read_bytes()
    digest, payload = cosign.digest_of(manifest), made["payload"].encode()
    (layer,) = cosign.layers(made["signatures"].encode())
    if (made["cosign"], made["key"]) == ("3.1.3", "Ed25519"):  # Ed25519ph, which nothing here knows
        assert cosign.fault(payload, layer, key.key, image, digest) == "by another key"
        return
    assert cosign.fault(payload, layer, key.key, image, digest) is None
    assert json.loads(payload)["optional"] == {"team": "blue"}
    assert cosign.fault(payload, layer, key.key, f"{NAME}:18", digest) == "for another name or tag"
    assert cosign.fault(payload, layer, key.key, image, OTHER) == "of another image"
    for other in KEYS:
        if other["public"] != made["public"]:
            assert cosign.fault(payload, layer, other["public"].encode(), image, digest) == "by another key"
    changed = payload.replace(b"blue", b"gold")
    forged = cosign.Layer(cosign.digest_of(changed), layer.signature)
    assert cosign.fault(changed, layer, key.key, image, digest) == "by another key"
    assert cosign.fault(changed, forged, key.key, image, digest) == "by another key"


@given(st.integers(min_value=0), st.integers(0, 255))
def test_a_changed_payload_never_counts(place: int, byte: int) -> None:
    layers, payloads, digest = recorded()
    changed = bytearray(payloads[0])
    changed[place % len(changed)] = byte
    fault = cosign.fault(bytes(changed), layers[0], PEM, f"{NAME}:17", digest)
    assert (fault is None) == (bytes(changed) == payloads[0])


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["layers", "digest", "annotations", "x"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_manifest_of_signatures_gives_none_or_is_refused(data: bytes) -> None:
    try:
        assert cosign.layers(data) == []
    except TrustError as error:
        assert "JSON" in str(error)
