"""Signatures of cosign: that one holds for an image, by its name, its tag and its digest.

Debian's container engine is built without them, so they are verified here. Beside an image with the digest ``sha256:X`` lies
one with the tag ``sha256-X.sig``; each of its layers is a signed payload, its annotation the signature.

    digest = digest_of(manifest)
    for layer in layers(signatures):                       # the manifest of sha256-X.sig
        problem = fault(payload, layer, key, "r.example.com/app:17", digest)     # None: it holds

A signature counts only where it names the tag: cosign's own names the repository alone unless told otherwise
(``--sign-container-identity``), and so could be put under any tag. The bundles that cosign 3 writes at other places name
nothing but the digest: they are not looked at.

Hashes: SHA-256; from cosign 2.6 on SHA-384 and SHA-512 by keys of P-384 and P-521, so these hold too. Its Ed25519ph, which
``cryptography`` doesn't have, does not.

Formats: cosign ``specs/SIGNATURE_SPEC.md``; the payload is containers/image's simple signing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from casemate.contract.errors import TrustError
from casemate.contract.tuf import read_pin

LARGEST_MANIFEST, LARGEST_PAYLOAD, MOST_LAYERS = 4 << 20, 64 << 10, 32
MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_ANNOTATION = "dev.cosignproject.cosign/signature"
_TYPE = "cosign container image signature"


@dataclass(frozen=True, slots=True)
class Layer:
    """One signature: the digest of its payload, and the signature itself."""

    digest: str
    signature: bytes


def digest_of(manifest: bytes) -> str:
    """Return the digest of an image's manifest, as it was received."""
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def layers(manifest: bytes) -> list[Layer]:
    """Return the signatures that a manifest lists; what has another form is passed over. Raises :class:`TrustError`."""
    found = []
    listed = _json(manifest).get("layers")
    for layer in listed[:MOST_LAYERS] if isinstance(listed, list) else []:
        try:
            digest, signature = layer["digest"], base64.b64decode(layer["annotations"][_ANNOTATION], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            continue
        if isinstance(digest, str) and re.fullmatch("sha256:[0-9a-f]{64}", digest):
            found.append(Layer(digest, signature))
    return found


def fault(payload: bytes, layer: Layer, key: bytes, image: str, digest: str) -> str | None:
    """Return why a signature does not count for ``image`` (``registry/path:tag``) with this digest, or ``None``: it does.

    ``key`` is PEM. The signature is verified before the payload is parsed.
    """
    if digest_of(payload) != layer.digest or not _holds(payload, layer.signature, key):
        return "by another key"
    try:
        critical = _json(payload)["critical"]
        said = critical["identity"]["docker-reference"], critical["image"]["docker-manifest-digest"], critical["type"]
    except (KeyError, TypeError, TrustError):
        return "of another form"
    if said[2] != _TYPE or said[1] != digest:
        return "of another image"
    if said[0] != image:
        bare = said[0] == image.rpartition(":")[0]
        return "that names no tag (sign with --sign-container-identity)" if bare else "for another name or tag"
    return None


def _holds(payload: bytes, signature: bytes, key: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

    public: Any = read_pin(key).public
    try:
        if isinstance(public, ec.EllipticCurvePublicKey):
            with suppress(InvalidSignature):
                public.verify(signature, payload, ec.ECDSA(SHA256()))
                return True
            public.verify(signature, payload, ec.ECDSA({384: SHA384, 521: SHA512}.get(public.key_size, SHA256)()))
        elif isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, payload)
        else:
            public.verify(signature, payload, padding.PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


def _json(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise TrustError("is not the JSON of a signature")
    return document
