"""The manifest of a build: what was built of what, signed by the server's key. Written, verified, made into a contract's part.

    envelope = sign(statement, key)                      # inside
    manifest = verify(envelope, keys)                    # outside, with the keys that `init` gave: raises BuildError
    images(manifest, "gpg")                              # (image as a compose file names it, the `images` of a workload section)

An envelope of DSSE 1.0, signed with ECDSA P-256 and SHA-256 over its pre-authentication encoding, so that it can be taken for no
other signature of the server's. The statement is JSON (``casemate-secure-build/1``); `docs/secure-build.md` lists its fields.

A key counts because the one who verifies had it before, never because it stands in the manifest.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from casemate import strictjson
from casemate.approval import pae
from casemate.hpsb.errors import BuildError, refused

FORMAT, TYPE = "casemate-secure-build/1", "application/vnd.casemate.secure-build+json"
KEYS_FORMAT = "casemate-build-keys/1"
LARGEST = 1 << 20
_DIGEST, _HEX = re.compile(r"sha256:[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Keys:
    """The public keys of a server: an armored GPG key; PEM of the key for cosign's form, and of that for manifests."""

    server: str
    gpg: str
    cosign: str
    manifest: str

    def document(self) -> dict[str, str]:
        """Return the keys as they are kept."""
        return {
            "format": KEYS_FORMAT,
            "server": self.server,
            "gpg": self.gpg,
            "cosign": self.cosign,
            "manifest": self.manifest,
        }


def parse_keys(data: bytes) -> Keys:
    """Read the keys of a server, as `init` keeps them. Raises :class:`BuildError`."""
    try:
        document = strictjson.loads(data)
        names = ("server", "gpg", "cosign", "manifest")
        if document.pop("format") != KEYS_FORMAT or set(document) != set(names):
            raise ValueError
        if not all(isinstance(text, str) for text in document.values()) or not _HEX.fullmatch(document["server"]):
            raise ValueError
        keys = Keys(*(document[name] for name in names))
        _public(keys.manifest)
        _public(keys.cosign)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise refused("KEYS", "not the keys of a build server", "`casemate build init` writes them") from None
    return keys


def sign(statement: Mapping[str, Any], private: str) -> bytes:
    """Return the signed manifest of a statement."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key: Any = load_pem_private_key(private.encode(), None)
    payload = json.dumps({"format": FORMAT, **statement}, sort_keys=True).encode()
    signature = key.sign(pae(TYPE, payload), ec.ECDSA(SHA256()))
    entry = {"keyid": statement["server"]["id"], "sig": base64.b64encode(signature).decode()}
    envelope = {"payloadType": TYPE, "payload": base64.b64encode(payload).decode(), "signatures": [entry]}
    return json.dumps(envelope, indent=1).encode() + b"\n"


def verify(envelope: bytes, keys: Keys) -> dict[str, Any]:
    """Return the statement of a manifest, once its signature has held. Raises :class:`BuildError`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    wrong = refused(
        "MANIFEST",
        "the manifest is not one that this server has signed",
        "get it again; was it changed, or is it another's?",
    )
    try:
        if len(envelope) > LARGEST:
            raise wrong
        outer = strictjson.loads(envelope)
        (entry,) = outer["signatures"]
        payload, signature = (base64.b64decode(text, validate=True) for text in (outer["payload"], entry["sig"]))
        if outer["payloadType"] != TYPE:
            raise wrong
        _public(keys.manifest).verify(signature, pae(TYPE, payload), ec.ECDSA(SHA256()))
    except (ValueError, KeyError, TypeError, binascii.Error, InvalidSignature):
        raise wrong from None
    statement = strictjson.loads(payload)
    if not isinstance(statement, dict) or statement.get("format") != FORMAT:
        raise refused(
            "MANIFEST", f"the manifest has another form than {FORMAT}", "use the casemate of the server's version"
        )
    if statement["server"]["id"] != keys.server or statement["keys"] != {"gpg": keys.gpg, "cosign": keys.cosign}:
        raise refused(
            "MANIFEST",
            "the manifest names other keys than those of its server",
            "this is a mistake of the server: tell us",
        )
    return statement


def images(statement: Mapping[str, Any], by: str) -> tuple[str, dict[str, Any]]:
    """Return how a compose file names the image, and the ``images`` of a workload section that admits it.

    ``by`` is digest, gpg or cosign.
    """
    image = statement["image"]
    if by == "digest":
        return f"{image['name']}@{image['digest']}", {}
    kind = {"gpg": "rhs", "cosign": "cosign"}[by]
    public = base64.b64encode(statement["keys"][by].encode()).decode()
    return f"{image['name']}:{image['tag']}", {kind: {image["name"]: {"publicKey": public}}}


def _public(pem: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode())
    except UnsupportedAlgorithm:
        raise ValueError from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError
    return key


def public_of(private: str) -> str:
    """Return the public half of a PEM key, PEM."""
    from cryptography.hazmat.primitives import serialization as to

    key: Any = to.load_pem_private_key(private.encode(), None)
    return str(key.public_key().public_bytes(to.Encoding.PEM, to.PublicFormat.SubjectPublicKeyInfo).decode())


__all__ = ["BuildError", "Keys", "images", "parse_keys", "public_of", "sign", "verify"]
