"""The two-person rule: bytes that the required number of named reviewers have signed, and nothing else, are accepted.

    reviewers = parse_reviewers(reviewers_json)
    approved = verify(config, envelope, reviewers, subject="build-config", last=(6, "ab…"))
    approved.revision, approved.names            # 7, ("alice", "carol")

**Reviewers** (``casemate-reviewers/1``, JSON): ``threshold`` and ``reviewers``, an object of names and public keys (PEM; P-384,
or RSA of 3072 bits and more). At least two must sign; nobody has two names, and no key is there twice, in no other guise either
(:func:`key_identity`).

**An approval** is an envelope of DSSE 1.0: one statement, and signatures whose ``keyid`` is a reviewer's name. The statement
(``casemate-approval/1``, JSON in one form: sorted keys, no spaces, ASCII) has

- ``subject``: what the bytes are for, so that an approval for one thing is none for another;
- ``revision``: a whole number from 1, which only grows, so that an older one can't come back;
- ``sha256``: of the bytes;
- ``reviewers``: SHA-256 of the reviewers' file, so that signatures given under other rules don't count under these.

What is signed is DSSE's pre-authentication encoding, with type and lengths: ECDSA with SHA-384, DER; RSA PKCS#1 v1.5 with
SHA-512.

The rules, all of them refusals: a signature under a name that is no reviewer's; a name that signs twice; a signature that
doesn't hold; fewer than the threshold; and, only after that, a statement of another form, subject, hash or reviewers, or of a
revision that is older than the last one that was accepted (the same again, for the same bytes, is accepted again).

Pure, so that a builder inside of a machine and the host can check with the same code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from casemate import strictjson
from casemate.errors import CasemateError

REVIEWERS_FORMAT, FORMAT = "casemate-reviewers/1", "casemate-approval/1"
PAYLOAD_TYPE = "application/vnd.casemate.approval+json"
LARGEST, MOST_REVIEWERS, LARGEST_REVISION = 256 << 10, 64, 2**53 - 1
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_HEX = re.compile(r"[0-9a-f]{64}")


class ApprovalError(CasemateError):
    """Not what the reviewers have approved. ``APPROVAL-FORM -REVIEWERS -SIGNATURE -THRESHOLD -OTHER -REPLAY``."""

    id = "APPROVAL"


@dataclass(frozen=True, slots=True)
class Reviewers:
    """Who may approve, and how many must. ``digest`` is the SHA-256 of the file (hex); ``keys`` are public keys by name."""

    threshold: int
    keys: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class Approval:
    """What was approved: for what, as which revision, SHA-256 of the bytes (hex), by whom (sorted)."""

    subject: str
    revision: int
    sha256: str
    names: tuple[str, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: what is signed, with lengths, so that no two pairs give the same bytes.

    pae("t", b"body")   # b"DSSEv1 1 t 4 body"
    """
    name = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def parse_reviewers(data: bytes) -> Reviewers:
    """Read a reviewers' file, which the caller trusts. Raises :class:`ApprovalError`."""
    document = _json(data, "REVIEWERS", "file of reviewers")
    named, threshold = document.get("reviewers"), document.get("threshold")
    if document.get("format") != REVIEWERS_FORMAT or set(document) != {"format", "threshold", "reviewers"}:
        raise _error("REVIEWERS", f"the reviewers' file is none of the form {REVIEWERS_FORMAT}", "see docs/approval.md")
    if not isinstance(named, dict) or not 2 <= len(named) <= MOST_REVIEWERS:
        raise _error("REVIEWERS", f"there are 2 to {MOST_REVIEWERS} reviewers", "name them")
    if type(threshold) is not int or not 2 <= threshold <= len(named):
        raise _error("REVIEWERS", "at least two must sign, and no more than there are", "correct the threshold")
    keys: dict[str, Any] = {}
    owners: dict[bytes, str] = {}
    for name, pem in named.items():
        if not _NAME.fullmatch(name):
            raise _error("REVIEWERS", "a name has small letters, digits, dot, dash, underscore, @", "correct it")
        keys[name] = _public_key(name, pem)
        identity = key_identity(keys[name])
        if identity in owners:
            raise _error("REVIEWERS", f"{owners[identity]} and {name} have the same key", "give each person one name")
        owners[identity] = name
    return Reviewers(threshold, keys, hashlib.sha256(data).hexdigest())


def key_identity(key: Any) -> bytes:
    """Return what two public keys have in common if one private key serves both.

    That is an RSA key's modulus, whatever the exponent, and a curve with the point's x: Q and -Q have the same private number
    but for its sign. Raises :class:`TypeError` for a key of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, rsa.RSAPublicKey):
        return b"rsa %x" % key.public_numbers().n
    if isinstance(key, ec.EllipticCurvePublicKey):
        return b"%s %x" % (key.curve.name.encode(), key.public_numbers().x)
    raise TypeError("neither RSA nor on an elliptic curve")


def statement(subject: str, revision: int, content: bytes, reviewers: Reviewers) -> bytes:
    """Return the statement about bytes. Raises :class:`ApprovalError` where subject or revision can't be."""
    if not _NAME.fullmatch(subject) or not 1 <= revision <= LARGEST_REVISION:
        raise _error("FORM", "a subject is a plain name, a revision a whole number from 1", "correct it")
    return strictjson.dumps(
        {
            **{"format": FORMAT, "subject": subject, "revision": revision},
            **{"sha256": hashlib.sha256(content).hexdigest(), "reviewers": reviewers.digest},
        }
    )


def envelope(payload: bytes, signatures: Sequence[tuple[str, bytes]]) -> bytes:
    """Return an approval: the statement, and signatures by name."""
    document = {
        **{"payloadType": PAYLOAD_TYPE, "payload": strictjson.b64(payload)},
        "signatures": [{"keyid": name, "sig": strictjson.b64(one)} for name, one in sorted(signatures)],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def signatures_of(data: bytes, reviewers: Reviewers) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return statement and signatures of an approval, each of which holds, by reviewers, each once; perhaps too few.

    Raises :class:`ApprovalError`.
    """
    document = _json(data, "FORM", "approval")
    if set(document) != {"payloadType", "payload", "signatures"} or document["payloadType"] != PAYLOAD_TYPE:
        raise _error("FORM", "this is no envelope of an approval", "give the file that casemate approval sign made")
    payload, found = _decode(document["payload"]), document["signatures"]
    if not isinstance(found, list) or len(found) > MOST_REVIEWERS:
        raise _error("FORM", "signatures are a list, one for each reviewer at most", "take the file as it was signed")
    signatures: dict[str, bytes] = {}
    for one in found:
        name = one.get("keyid") if isinstance(one, dict) and set(one) == {"keyid", "sig"} else None
        if not isinstance(name, str) or name not in reviewers.keys:
            raise _error("SIGNATURE", "somebody has signed who is no reviewer", "only reviewers sign; take it out")
        if name in signatures:
            raise _error("SIGNATURE", f"{name} has signed twice", "one signature for each person; take one out")
        signatures[name] = _decode(one["sig"])
        if not signature_holds(reviewers.keys[name], signatures[name], pae(PAYLOAD_TYPE, payload)):
            raise _error("SIGNATURE", f"the signature of {name} does not hold over this statement", "sign it again")
    return payload, list(signatures.items())


def verify(
    content: bytes, approval: bytes, reviewers: Reviewers, *, subject: str, last: tuple[int, str] | None = None
) -> Approval:
    """Return what was approved. ``last`` is revision and SHA-256 (hex) of what was accepted last for this subject.

    Raises :class:`ApprovalError`. Nothing of the statement is read before enough signatures hold.
    """
    payload, signatures = signatures_of(approval, reviewers)
    if len(signatures) < reviewers.threshold:
        missing = sorted(set(reviewers.keys) - {name for name, _ in signatures})
        raise _error(
            "THRESHOLD",
            f"{len(signatures)} of {reviewers.threshold} have signed",
            f"one of these must sign too: {', '.join(missing)}",
        )
    document = _json(payload, "FORM", "statement")
    revision = document.get("revision")
    if type(revision) is not int or not 1 <= revision <= LARGEST_REVISION or document.get("format") != FORMAT:
        raise _error("FORM", f"the statement is none of the form {FORMAT}", "sign with casemate approval sign")
    if document.get("subject") != subject:
        raise _error("OTHER", "the approval is for something else", f"get one for {subject}")
    if document.get("reviewers") != reviewers.digest:
        raise _error("OTHER", "the approval was given under other reviewers", "let these reviewers sign it")
    if payload != statement(subject, revision, content, reviewers):
        raise _error("OTHER", "the approval is for other bytes", "give what was signed, or have this signed")
    digest = hashlib.sha256(content).hexdigest()
    if last is not None and not (revision > last[0] or (revision, digest) == last):
        raise _error(
            "REPLAY", f"revision {revision} is not newer than {last[0]}, which was accepted", "approve it anew"
        )
    return Approval(subject, revision, digest, tuple(sorted(name for name, _ in signatures)))


def parse_last(data: bytes) -> dict[str, tuple[int, str]]:
    """Read what was accepted last: revision and SHA-256 by subject. Raises :class:`ApprovalError`."""
    document = _json(data, "FORM", "file of accepted revisions")
    found: dict[str, tuple[int, str]] = {}
    for subject, one in document.items():
        revision, digest = (one.get("revision"), one.get("sha256")) if isinstance(one, dict) else (None, None)
        if type(revision) is not int or not isinstance(digest, str) or not _HEX.fullmatch(digest):
            raise _error("FORM", "the accepted revisions can't be read", "take the file from a copy")
        found[subject] = (revision, digest)
    return found


def format_last(last: dict[str, tuple[int, str]]) -> bytes:
    """Return the file that :func:`parse_last` reads."""
    return (
        strictjson.dumps({name: {"revision": revision, "sha256": digest} for name, (revision, digest) in last.items()})
        + b"\n"
    )


def _public_key(name: str, pem: object) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_public_key(pem.encode() if isinstance(pem, str) else b"")
    except (ValueError, UnsupportedAlgorithm):
        raise _error("REVIEWERS", f"the key of {name} can't be read", "give the public key, PEM") from None
    if not is_used(key):
        raise _error("REVIEWERS", f"the key of {name} is of another kind", "P-384, or RSA of 3072 bits and more")
    return key


def is_used(key: Any) -> bool:
    """Whether a public key is of a kind that people sign with here: P-384, or RSA of 3072 bits and more."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    curve = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1"
    return curve or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= 3072)


def signature_holds(key: Any, signature: bytes, data: bytes) -> bool:
    """Whether an ECDSA signature with SHA-384, or one of RSA PKCS#1 v1.5 with SHA-512, over these bytes holds under a key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding

    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA384()))
        else:
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA512())
    except (InvalidSignature, ValueError):
        return False
    return True


def _json(data: bytes, kind: str, what: str) -> dict[str, Any]:
    if len(data) > LARGEST:
        raise _error(kind, f"{len(data)} bytes are too many for a {what}", "is it the right file?")
    try:
        document = strictjson.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _error(kind, f"the {what} is no JSON object, or says something twice", "is it the right file?")
    return document


def _decode(text: object) -> bytes:
    try:
        return strictjson.unb64(text)
    except ValueError:
        raise _error("FORM", "statement and signatures are base64", "take the file as it was signed") from None


def _error(kind: str, cause: str, cure: str) -> ApprovalError:
    return ApprovalError(cause, cure, id=f"APPROVAL-{kind}")
