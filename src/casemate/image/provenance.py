"""Where an image comes from, signed: an in-toto statement with SLSA provenance, in a DSSE envelope. No I/O here.

Formats: DSSE 1.0 (https://github.com/secure-systems-lab/dsse), in-toto Statement v1, SLSA Provenance v1
(https://slsa.dev/spec/v1.0/provenance). ``docs/formats/provenance.md``.

    statement = verify(envelope, certificate, digests, time=now, issuers=[root], untrusted=[intermediate], crls=[crl])

The rules of :func:`verify`, in this order; the first that does not hold raises:

1. The envelope is at most 1 MiB, JSON without a key twice, of payload type :data:`PAYLOAD_TYPE`, with one signature.
2. The certificate's chain ends in a given issuer, now; it is for signing code (extended key usage), so no key that signs
   records can sign provenance; revocation lists that are given are used.
3. The signature, ECDSA P-384 with SHA-384, holds over the pre-authentication encoding of type and payload.
4. Only then is the payload parsed: a statement of the two types named below, names that are plain file names, once each.
5. Each file that was given is a subject with the same SHA-256, and each of :data:`SUBJECTS` was given; ``encryption.crt``
   need not be there where the statement has none either, as for a builder machine, which opens no contracts.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from casemate import strictjson
from casemate.approval import pae
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from casemate.certificates.chain import Chain

NAME, CERTIFICATE = "provenance.json", "provenance.crt"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:casemate:image-build:1"
BUILDER = "urn:casemate:builder:development"
MACHINE_BUILDER = "urn:casemate:builder:machine"
"""Who built: a program on somebody's machine, or a builder machine, whose own record says what it is."""
ENCRYPTION = "encryption.crt"
SUBJECTS = (
    *("casemate.img", "root.squashfs", "packages.txt", "sbom.spdx.json", "reference-values.json"),
    *(ENCRYPTION, "attestation.crt", "image.json"),
)
"""What a statement speaks of: every file of an image directory but the chain's and its own."""
LARGEST = 1 << 20
MOST_SUBJECTS = 64


class ProvenanceError(CasemateError):
    """A provenance statement does not hold, or says something else of these files."""

    id = "PROVENANCE"


def statement(
    digests: Mapping[str, str],
    *,
    parameters: Mapping[str, Any],
    dependencies: Sequence[Mapping[str, Any]],
    values: Mapping[str, str],
    tools: Mapping[str, str],
    builder: str = BUILDER,
    started: datetime.datetime,
    finished: datetime.datetime,
) -> bytes:
    """Return a statement: ``digests`` of the files (SHA-256 by name), what they were made from, by what and when.

    ``values`` are the reference values; they come as by-products, since a record names them.
    """
    predicate = {
        "buildDefinition": {
            **{"buildType": BUILD_TYPE, "externalParameters": dict(parameters)},
            "resolvedDependencies": [dict(one) for one in dependencies],
        },
        "runDetails": {
            "builder": {"id": builder, "version": dict(tools)},
            "metadata": {"startedOn": _moment(started), "finishedOn": _moment(finished)},
            "byproducts": [{"name": name, "digest": {"sha256": value}} for name, value in sorted(values.items())],
        },
    }
    subjects = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())]
    document = {"_type": STATEMENT_TYPE, "subject": subjects, "predicateType": PREDICATE_TYPE, "predicate": predicate}
    return json.dumps(document, sort_keys=True).encode()


def sign(payload: bytes, key_pem: bytes) -> bytes:
    """Return the envelope of a statement, signed with a private key on P-384 (PKCS#8 PEM)."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_private_key(key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise TypeError("provenance is signed with a key on P-384")
    signature = key.sign(pae(PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA384()))
    envelope = {
        **{"payloadType": PAYLOAD_TYPE, "payload": strictjson.b64(payload)},
        "signatures": [{"keyid": "", "sig": strictjson.b64(signature)}],
    }
    return json.dumps(envelope).encode() + b"\n"


def verify(
    envelope: bytes,
    certificate: bytes,
    digests: Mapping[str, str],
    *,
    time: datetime.datetime,
    issuers: Sequence[bytes],
    untrusted: Sequence[bytes] = (),
    crls: Sequence[bytes] = (),
) -> tuple[dict[str, Any], Chain]:
    """Verify an envelope against files (SHA-256 by name); return the statement and the signer's chain.

    Raises :class:`ProvenanceError` where it does not hold, ``CertificateError`` where a certificate can't be read.
    """
    from casemate.certificates.chain import verify_chain

    payload, signature = open_envelope(envelope)
    chain = verify_chain(certificate, issuers, crls, time=time, untrusted=untrusted)
    if not chain.proved:
        problems = "; ".join(problem.cause for problem in chain.problems)
        raise ProvenanceError(
            f"the certificate of who signed it is not proved: {problems}", "give the issuers that you trust (--ca)"
        )
    _check_signature(certificate, signature, payload)
    document = parse_statement(payload)
    said = {subject["name"]: subject["digest"]["sha256"] for subject in document["subject"]}
    for name in sorted({*SUBJECTS, *digests} - ({ENCRYPTION} - said.keys() - digests.keys())):
        if name not in digests:
            raise ProvenanceError(f"there is no {name} to compare with", "give the whole image directory")
        if name not in said:
            raise ProvenanceError(f"the statement does not speak of {name}", "take the files as they were published")
        if digests[name] != said[name]:
            raise ProvenanceError(f"{name} is not the file that was signed", "take the files as they were published")
    return document, chain


def open_envelope(envelope: bytes) -> tuple[bytes, bytes]:
    """Return payload and signature of an envelope, neither of them verified. Raises :class:`ProvenanceError`."""
    document = _json(envelope, "envelope")
    if set(document) != {"payloadType", "payload", "signatures"}:
        raise _form("an envelope has a payload, its type and signatures, nothing else")
    if document["payloadType"] != PAYLOAD_TYPE:
        raise _form(f"the payload is not of the type {PAYLOAD_TYPE}")
    signatures = document["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise _form("there must be one signature")
    return _decode(document["payload"]), _decode(signatures[0].get("sig"))


def parse_statement(payload: bytes) -> dict[str, Any]:
    """Read a statement whose signature has held. Raises :class:`ProvenanceError`."""
    document = _json(payload, "statement")
    if document.get("_type") != STATEMENT_TYPE or document.get("predicateType") != PREDICATE_TYPE:
        raise _form("not a statement of SLSA provenance, version 1")
    subjects, predicate = document.get("subject"), document.get("predicate")
    if not isinstance(subjects, list) or not 1 <= len(subjects) <= MOST_SUBJECTS or not isinstance(predicate, dict):
        raise _form("the statement has no subjects, too many, or no predicate")
    names = set()
    for subject in subjects:
        digest = subject.get("digest") if isinstance(subject, dict) else None
        if not isinstance(digest, dict) or not _hex(digest.get("sha256")):
            raise _form("a subject has no SHA-256")
        name = subject.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", name) or name in names:
            raise _form("a subject's name is not a plain file name, or stands twice")
        names.add(name)
    definition = predicate.get("buildDefinition")
    if not isinstance(definition, dict) or definition.get("buildType") != BUILD_TYPE:
        raise _form(f"the build is not of the type {BUILD_TYPE}")
    if not isinstance(definition.get("resolvedDependencies"), list) or not isinstance(
        definition.get("externalParameters"), dict
    ):
        raise _form("the build has no parameters or no dependencies")
    return document


def dependency(document: Mapping[str, Any], name: str) -> str:
    """Return the SHA-256 of what a build used under a name; ``""`` where it names no such thing."""
    for one in document["predicate"]["buildDefinition"]["resolvedDependencies"]:
        if isinstance(one, dict) and one.get("name") == name and isinstance(one.get("digest"), dict):
            digest = one["digest"].get("sha256")
            return digest if _hex(digest) else ""
    return ""


def _check_signature(certificate: bytes, signature: bytes, payload: bytes) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    from casemate.certificates.chain import certificates_of

    (one,) = certificates_of(certificate)
    load = x509.load_pem_x509_certificate if one.startswith(b"-----BEGIN ") else x509.load_der_x509_certificate
    signer = load(one)
    key = signer.public_key()
    try:
        usage = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is None or ExtendedKeyUsageOID.CODE_SIGNING not in usage:
        raise ProvenanceError("the certificate is not one that may sign provenance", f"give the image's {CERTIFICATE}")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise ProvenanceError("the certificate has no key on P-384", f"give the image's {CERTIFICATE}")
    try:
        key.verify(signature, pae(PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise ProvenanceError(
            "the signature is not one of this certificate's key over this statement", "nothing in it can be believed"
        ) from None


def _json(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > LARGEST:
        raise _form(f"{len(data)} bytes are too many for a provenance {what}")
    try:
        document = strictjson.loads(data)
    except ValueError:
        raise _form(f"the {what} is not JSON, or says something twice") from None
    if not isinstance(document, dict):
        raise _form(f"the {what} is not an object")
    return document


def _decode(text: object) -> bytes:
    try:
        return strictjson.unb64(text)
    except ValueError:
        raise _form("payload and signature are not base64") from None


def _form(cause: str) -> ProvenanceError:
    return ProvenanceError(cause, f"give the {NAME} of an image directory")


def _hex(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def _moment(time: datetime.datetime) -> str:
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
