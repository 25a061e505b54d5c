"""Docker Content Trust: which digest a tag stands for, by the signed data (TUF) of a Notary v1 server.

    pin = read_pin(pem)                                        # of the contract: the root certificate or public key
    found = signed_targets("docker.io/user/app", pin, now, fetch)
    digest_of(found, "17")                                     # "sha256:…"

``fetch(name, limit)`` returns the bytes of one file, at most ``limit``; it is all that this module asks of the world. The
server is not trusted. The rules, those of docker's own client, with nothing remembered from earlier starts:

- The root's keys are certificates whose common name is the image's; one of them is the contract's key and has signed; the
  root's own threshold holds too. So the data of another image by the same signer is refused.
- timestamp, snapshot, targets: signed by the root's keys for it, by as many different keys as the threshold asks for (a key
  under two names is one key). A key's name is the hash of the key.
- Each file is of its type and not expired; signatures are verified before anything of the content is used.
- timestamp names the snapshot's hash and length, snapshot those of the root, the targets and delegations: nothing older or
  newer is mixed in. Files are asked for by hash, and no byte beyond the length is read.
- Tags stand in the delegation ``targets/releases`` first, where it is and may have the tag, then in ``targets``.

What it can't see: a whole set of older data whose timestamp has not expired, since the machine remembers nothing.

Formats: The Update Framework 0.9 as in theupdateframework/notary (``tuf/data``): signatures cover canonical JSON (sorted
keys, no blanks, only quote and backslash escaped); ECDSA is r‖s with SHA-256, RSA is PSS or PKCS#1 v1.5 with SHA-256, Ed25519.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from casemate.contract.errors import KeyFileError, TrustError
from casemate.contract.keys import LARGEST_KEY, SMALLEST_KEY, first_block, kinds, validity
from casemate.strictjson import once

LARGEST_FIRST, LARGEST_LISTED = 1 << 20, 8 << 20
"""Bytes: of root and timestamp, whose length nothing tells beforehand; of files whose length signed data tells."""
MOST_KEYS, DEEPEST = 100, 20
RELEASES = "targets/releases"
Fetch = Callable[[str, int], bytes]


@dataclass(frozen=True, slots=True)
class Key:
    """A public key as ``cryptography`` has it, its DER form, and the certificate (PEM) where it comes in one."""

    public: Any
    der: bytes
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class Role:
    """Keys by name, and how many of them must have signed."""

    keys: Mapping[str, Key]
    threshold: int


@dataclass(frozen=True, slots=True)
class Targets:
    """What one role says of tags, and which tags it may speak of (prefixes)."""

    role: str
    digests: Mapping[str, str]
    paths: Sequence[str] = ("",)


def read_pin(pem: bytes) -> Key:
    """Return the contract's key: the first block is a certificate or a public key (EC, RSA). Raises :class:`KeyFileError`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    kind = (kinds(pem) or [""])[0]
    try:
        if kind == "CERTIFICATE":
            return _certified(first_block(pem))
        if kind == "PUBLIC KEY":
            return _checked(load_pem_public_key(first_block(pem)))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileError("the certificate or public key is damaged, or of a kind that is not used") from None
    raise KeyFileError("neither a certificate nor a public key")


def signed_targets(gun: str, pin: Key, now: datetime, fetch: Fetch) -> list[Targets]:
    """Return what the signed data of the image ``gun`` (``registry/path``) says, in the order in which it counts.

    Raises :class:`TrustError`, and whatever ``fetch`` raises.
    """
    root_bytes = fetch("root", LARGEST_FIRST)
    root = _root(root_bytes, gun, pin, now)
    timestamp = _open(fetch("timestamp", LARGEST_FIRST), "timestamp", "Timestamp", root["timestamp"], now)
    snapshot_bytes = _listed(timestamp, "snapshot", fetch)
    snapshot = _open(snapshot_bytes, "snapshot", "Snapshot", root["snapshot"], now)
    if not _is(root_bytes, _entry(snapshot, "root", "meta")):
        raise TrustError("the root is not the one that the snapshot names", where="root")
    targets = _open(_listed(snapshot, "targets", fetch), "targets", "Targets", root["targets"], now)
    found = [Targets("targets", _digests(targets))]
    delegated = _delegation(targets)
    if delegated is not None and RELEASES in _mapping(snapshot, "meta"):
        role, paths = delegated
        releases = _open(_listed(snapshot, RELEASES, fetch), RELEASES, "Targets", role, now)
        found.insert(0, Targets(RELEASES, _digests(releases), paths))
    return found


def digest_of(found: Sequence[Targets], tag: str) -> str | None:
    """Return the digest that a tag stands for, ``sha256:…``, or ``None`` where nobody has signed it."""
    for targets in found:
        if tag in targets.digests and tag.startswith(tuple(targets.paths)):
            return targets.digests[tag]
    return None


# ------------------------------------------------------------------------------------------------- roles


def _root(data: bytes, gun: str, pin: Key, now: datetime) -> dict[str, Role]:
    signed = _mapping(_parse(data, "root"), "signed", "root")
    keys = _keys(signed, "root")
    given = _mapping(signed, "roles", "root")
    roles = {}
    for name in ("root", "timestamp", "snapshot", "targets"):
        roles[name] = _role(_mapping(given, name, "root"), keys, "root")
    ours = {name: key for name, key in roles["root"].keys.items() if _fits(key, pin, gun, now)}
    if not ours:
        raise TrustError("the root has no certificate for this image with the key of the contract", where="root")
    _verify(data, "root", Role(ours, 1))
    _open(data, "root", "Root", roles["root"], now)
    return roles


def _fits(key: Key, pin: Key, gun: str, now: datetime) -> bool:
    """Whether a root key is the contract's, in a certificate for this image and in its time."""
    if not key.certificate or key.der != pin.der or (pin.certificate and not _same_certificate(key, pin)):
        return False
    begins, ends = validity(key.certificate)
    return begins <= now <= ends and common_names(key) == [gun]


def _same_certificate(one: Key, other: Key) -> bool:
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificate

    return len({load_pem_x509_certificate(key.certificate).public_bytes(Encoding.DER) for key in (one, other)}) == 1


def common_names(key: Key) -> list[str]:
    """Return whom a key's certificate is for: the common names of its subject."""
    from cryptography.x509 import load_pem_x509_certificate
    from cryptography.x509.oid import NameOID

    subject = load_pem_x509_certificate(key.certificate).subject
    return [str(name.value) for name in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def _delegation(targets: Mapping[str, Any]) -> tuple[Role, list[str]] | None:
    """Return the role of releases and the tags that it may speak of, where the targets name it."""
    given = targets.get("delegations")
    if not isinstance(given, dict) or not given.get("roles"):
        return None
    named = [
        role for role in _list(given, "roles", "targets") if isinstance(role, dict) and role.get("name") == RELEASES
    ]
    if not named:
        return None
    if len(named) > 1:
        raise TrustError(f"{RELEASES} is delegated twice", where="targets")
    paths = [path for path in named[0].get("paths") or [] if isinstance(path, str)]
    return _role(named[0], _keys(given, "targets"), "targets"), paths


def _role(given: Mapping[str, Any], keys: Mapping[str, Key], where: str) -> Role:
    names = _list(given, "keyids", where)
    threshold = given.get("threshold")
    if type(threshold) is not int or threshold < 1 or not names or not all(isinstance(name, str) for name in names):
        raise TrustError("a role without keys or threshold", where=where)
    if lost := set(names) - keys.keys():
        raise TrustError(f"a role names {len(lost)} keys that are not there", where=where)
    return Role({name: keys[name] for name in names}, threshold)


def _keys(given: Mapping[str, Any], where: str) -> dict[str, Key]:
    listed = _mapping(given, "keys", where)
    if len(listed) > MOST_KEYS:
        raise TrustError("too many keys", where=where)
    return {name: _key(name, value, where) for name, value in listed.items()}


def _key(name: str, given: Any, where: str) -> Key:
    """Read a key; its name must be the SHA-256 of its canonical form."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        kind, text = given["keytype"], given["keyval"]["public"]
        content = base64.b64decode(text, validate=True)
        plain = {"keytype": kind, "keyval": {"private": None, "public": text}}
        if hashlib.sha256(_canonical(plain)).hexdigest() != name:
            raise TrustError("a key whose name is not its hash", where=where)
        if kind in ("ecdsa-x509", "rsa-x509"):
            return _certified(first_block(content))
        if kind == "ed25519":
            return _checked(Ed25519PublicKey.from_public_bytes(content))
        if kind in ("ecdsa", "rsa"):
            return _checked(load_der_public_key(content))
    except (KeyError, TypeError, ValueError, binascii.Error, UnsupportedAlgorithm, KeyFileError):
        raise TrustError("a key that is none", where=where) from None
    raise TrustError("a key of an unknown kind", where=where)


def _certified(pem: bytes) -> Key:
    from cryptography.x509 import load_pem_x509_certificate

    bare = _checked(load_pem_x509_certificate(pem).public_key())
    return Key(bare.public, bare.der, pem)


def _checked(public: Any) -> Key:
    """Let pass EC keys on NIST curves, RSA keys of the sizes that contracts use, Ed25519. Raises :class:`ValueError`."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if isinstance(public, ec.EllipticCurvePublicKey):
        good = isinstance(public.curve, (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))
    elif isinstance(public, rsa.RSAPublicKey):
        good = SMALLEST_KEY <= public.key_size <= LARGEST_KEY
    else:
        good = isinstance(public, ed25519.Ed25519PublicKey)
    if not good:
        raise ValueError("a key of another kind")
    return Key(public, public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


# ------------------------------------------------------------------------------------------------- signatures


def _open(data: bytes, where: str, kind: str, role: Role, now: datetime) -> dict[str, Any]:
    """Verify a file and return its signed part: signatures first, then type and time."""
    signed = _verify(data, where, role)
    if signed.get("_type") != kind:
        raise TrustError(f"is not of the type {kind}", where=where)
    if type(signed.get("version")) is not int or signed["version"] < 1:
        raise TrustError("has no version", where=where)
    try:
        expires = datetime.fromisoformat(str(signed.get("expires")))
    except ValueError:
        raise TrustError("has no date of expiry", where=where) from None
    if expires.tzinfo is None:
        raise TrustError("has no date of expiry", where=where)
    if expires <= now:
        text = f"expired on {expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        raise TrustError(text, "sign the tag again, or look at the clock", where, id=TrustError.EXPIRED)
    return signed


def _verify(data: bytes, where: str, role: Role) -> dict[str, Any]:
    document = _parse(data, where)
    signed = _mapping(document, "signed", where)
    signatures = _list(document, "signatures", where)
    if len(signatures) > MOST_KEYS:
        raise TrustError("too many signatures", where=where)
    message = _canonical(signed)
    held = set()
    for signature in signatures:
        name = signature.get("keyid") if isinstance(signature, dict) else None
        key = role.keys.get(name) if isinstance(name, str) else None
        if key is not None and key.der not in held and _holds(key, signature, message):
            held.add(key.der)
    if len(held) < role.threshold:
        text = f"{len(held)} of the {role.threshold} signatures that are needed"
        raise TrustError(text, where=where)
    return signed


def _holds(key: Key, given: Mapping[str, Any], message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256

    public: Any = key.public
    try:
        signature, method = base64.b64decode(given["sig"], validate=True), given["method"]
        if isinstance(public, ec.EllipticCurvePublicKey):
            half = (public.curve.key_size + 7) // 8
            if method != "ecdsa" or len(signature) != 2 * half:
                return False
            pair = (int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
            public.verify(encode_dss_signature(*pair), message, ec.ECDSA(SHA256()))
        elif isinstance(public, ed25519.Ed25519PublicKey):
            if method != "eddsa":
                return False
            public.verify(signature, message)
        else:
            pss, old = padding.PSS(padding.MGF1(SHA256()), SHA256.digest_size), padding.PKCS1v15()
            paddings: dict[str, Any] = {"rsapss": pss, "rsapkcs1v15": old}
            public.verify(signature, message, paddings[method], SHA256())
    except (InvalidSignature, KeyError, TypeError, ValueError, binascii.Error):
        return False
    return True


# ------------------------------------------------------------------------------------------------- files


def _listed(parent: Mapping[str, Any], name: str, fetch: Fetch) -> bytes:
    """Return a file that signed data lists by hash and length."""
    entry = _entry(parent, name, "meta")
    length = entry.get("length")
    if type(length) is not int or not 0 < length <= LARGEST_LISTED:
        raise TrustError("a length that is none, or too large", where=name)
    data = fetch(f"{name}.{_sha256(entry, name).hex()}", length)
    if len(data) != length or not _is(data, entry):
        raise TrustError("is not the file that the signed data names", where=name)
    return data


def _entry(parent: Mapping[str, Any], name: str, table: str) -> dict[str, Any]:
    return _mapping(_mapping(parent, table, name), name, name)


def _is(data: bytes, entry: Mapping[str, Any]) -> bool:
    """Whether a file has every hash that is known here; SHA-256 must be among them."""
    hashes = _mapping(entry, "hashes", "hashes")
    if hashlib.sha256(data).digest() != _sha256(entry, "hashes"):
        return False
    return hashes.get("sha512") in (None, base64.b64encode(hashlib.sha512(data).digest()).decode())


def _sha256(entry: Mapping[str, Any], where: str) -> bytes:
    try:
        digest = base64.b64decode(_mapping(entry, "hashes", where)["sha256"], validate=True)
    except (KeyError, TypeError, ValueError):
        digest = b""
    if len(digest) != 32:
        raise TrustError("has no SHA-256", where=where)
    return digest


def _digests(signed: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each tag."""
    listed = _mapping(signed, "targets", "targets")
    tags = {tag: entry for tag, entry in listed.items() if re.fullmatch(r"[\w][\w.-]{0,127}", tag, re.ASCII)}
    return {tag: f"sha256:{_sha256(entry, 'targets').hex()}" for tag, entry in tags.items() if isinstance(entry, dict)}


def _parse(data: bytes, where: str) -> dict[str, Any]:
    """Parse JSON strictly: a key stands once, numbers are whole."""

    def refused(text: str) -> Any:
        raise ValueError("not a whole number")

    try:
        text = data.decode("utf-8")
        document = json.loads(text, object_pairs_hook=once, parse_float=refused, parse_constant=refused)
    except (ValueError, RecursionError):
        raise TrustError("is not the JSON of trust data", where=where) from None
    if not isinstance(document, dict):
        raise TrustError("is not the JSON of trust data", where=where)
    return document


def _canonical(value: Any, depth: int = 0) -> bytes:
    """Write canonical JSON, as docker/go's ``canonical/json`` does."""
    if depth > DEEPEST:
        raise TrustError("nested too deep")
    if isinstance(value, str):
        return b'"' + value.replace("\\", "\\\\").replace('"', '\\"').encode("utf-8", "surrogatepass") + b'"'
    if isinstance(value, dict):
        pairs = (_canonical(key, depth + 1) + b":" + _canonical(value[key], depth + 1) for key in sorted(value))
        return b"{" + b",".join(pairs) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(_canonical(item, depth + 1) for item in value) + b"]"
    if type(value) is int:
        return str(value).encode()
    return {True: b"true", False: b"false", None: b"null"}[value]


def _mapping(parent: Mapping[str, Any], name: str, where: str = "") -> dict[str, Any]:
    value = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(value, dict):
        raise TrustError(f"has no {name}", where=where)
    return value


def _list(parent: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = parent.get(name)
    if not isinstance(value, list):
        raise TrustError(f"has no {name}", where=where)
    return value
