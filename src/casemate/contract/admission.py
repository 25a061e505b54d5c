"""Which images may start, and by what: a digest, or a key of the contract. Written as the container engine reads it.

    keys = read_keys(workload)
    admitted = [admit(image, keys, resolve) for image in images]
    policy(admitted); lookups(admitted)          # policy.json, and a file of registries.d

The keys stand under ``workload.images``, by the image's name without tag:

- ``dct``: ``notary`` (URL) and ``publicKey``, base64 of the PEM of its root (certificate or key; :mod:`casemate.contract.tuf`);
- ``rhs``: ``publicKey``, base64 of an exported GPG key, armored or not; ``lookaside`` (ours, optional): where signatures lie
  whose registry doesn't keep them itself;
- ``cosign`` (ours here; elsewhere ``confidential-containers.config.cosign``): ``publicKey``, PEM or base64 of PEM.

An image with a digest needs no key. One with a tag needs all the keys that its name has; a signature must name the
image with just this tag, or any tag may be served as any other. The engine checks digests and GPG signatures; content trust
and cosign's signatures come to a digest before (Debian's engine is built without sigstore). All else it rejects.

Formats: ``containers-policy.json(5)``, ``containers-registries.d(5)`` of containers/image 5.23.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casemate.contract.errors import ImageError, KeyFileError
from casemate.contract.images import Reference, parse_reference
from casemate.contract.keys import first_block, kinds, pem_of

HTTPS = re.compile(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
LARGEST_KEYRING = 1 << 20
_ARMOR = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
_SECRET = {5, 7}
"""Tags of OpenPGP packets that hold private keys."""


@dataclass(frozen=True, slots=True)
class ImageKey:
    """One key of an image: ``kind`` is dct, rhs or cosign; ``key`` PEM or a GPG keyring; ``url`` Notary's or the lookaside's."""

    kind: str
    name: str
    key: bytes
    url: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """An image that may start: ``named`` as workloads call it, ``pulled`` as the engine fetches it; its GPG keys."""

    named: str
    pulled: str
    keys: tuple[ImageKey, ...] = ()


Keys = Mapping[str, Sequence[ImageKey]]


def read_keys(workload: Mapping[str, Any]) -> Keys:
    """Return all keys by the full name of their image. Raises the first :class:`ImageError`."""
    found: dict[str, list[ImageKey]] = {}
    for path, name, entry in entries(workload):
        if isinstance(entry, ImageError):
            raise ImageError(entry.cause, entry.cure, ".".join(("workload", *path)), id=entry.id)
        found.setdefault(name, []).append(entry)
    return found


def entries(workload: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, ImageKey | ImageError]]:
    """Give path, full name of the image, and key of each entry, or what is wrong with it (``id`` of the messages)."""
    config = ("confidential-containers", "config")
    for *path, kind in (("images", "dct"), ("images", "rhs"), ("images", "cosign"), (*config, "cosign")):
        table: Any = workload
        for part in (*path, kind):
            table = _mapping(table).get(part)
        for name, value in _mapping(table).items():
            place, full = (*path, kind, name), ""
            try:
                reference = parse_reference(name)
                full = reference.name
                if kind != "rhs" and (reference.tag or reference.digest):  # which IBM's form allows for rhs
                    raise ImageError("has a tag or digest", "write registry/path only")
                yield place, full, _entry(kind, full, _mapping(value))
            except ImageError as error:
                yield (
                    (*place, error.where) if error.where else place,
                    full,
                    ImageError(error.cause, error.cure, id="HPL16004E" if error.where else "HPL16000E"),
                )


def _entry(kind: str, name: str, value: Mapping[str, Any]) -> ImageKey:
    field = {"dct": "notary", "rhs": "lookaside"}.get(kind, "")
    url = value.get(field, "")
    if (kind == "dct" or url) and not (isinstance(url, str) and HTTPS.fullmatch(url)):
        raise ImageError("must be a URL of the kind https://host", where=field)
    text = value.get("publicKey")
    if not isinstance(text, str):
        raise ImageError("is missing", where="publicKey")
    try:
        if kind == "dct":
            return ImageKey(kind, name, _pinned(text, name), url)
        return ImageKey(kind, name, _keyring(text) if kind == "rhs" else _cosign(text), url)
    except KeyFileError as error:
        raise ImageError(error.cause, error.cure, "publicKey") from None


def _pinned(text: str, name: str) -> bytes:
    from casemate.contract.tuf import common_names, read_pin  # late: most images have a digest and no key

    pem = pem_of(text)
    pin = read_pin(pem)
    if pin.certificate and common_names(pin) != [name]:
        raise KeyFileError("the certificate is not of this image", "its common name is the image's name")
    return first_block(pem)


def _cosign(text: str) -> bytes:
    from casemate.contract.tuf import read_pin

    pem = pem_of(text)
    if kinds(pem)[0] != "PUBLIC KEY":
        raise KeyFileError("not a public key", "give what `cosign generate-key-pair` writes to cosign.pub")
    read_pin(pem)
    return first_block(pem)


def _keyring(text: str) -> bytes:
    """Return the packets of an exported GPG key. Only public keys: what is secret has no place in a contract."""
    cure = "give what `gpg --export KEY | base64 -w0` prints"
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
        lines = data.decode("ascii", "replace").strip().splitlines()
        if lines[0].startswith("-----BEGIN PGP PRIVATE KEY"):
            raise KeyFileError("a private key of GPG; a public one is needed", "keep it to yourself")
        if lines[0] == _ARMOR:
            body = [
                line for line in lines[lines.index("") + 1 : -1] if not line.startswith("=")
            ]  # the last: a checksum
            data = base64.b64decode("".join(body), validate=True)
        tags = _packets(data)
    except (binascii.Error, ValueError, IndexError):
        raise KeyFileError("not a public key of GPG", cure) from None
    if _SECRET & set(tags):
        raise KeyFileError("a private key of GPG; a public one is needed", "keep it to yourself")
    if tags[:1] != [6]:
        raise KeyFileError("not a public key of GPG", cure)
    return data


def _packets(data: bytes) -> list[int]:
    """Return the tags of OpenPGP packets (RFC 4880, 4.2). Raises :class:`ValueError`: no packets, or not whole."""
    tags, position = [], 0
    if len(data) > LARGEST_KEYRING:
        raise ValueError("too large")
    while position < len(data):
        head = data[position]
        if not head & 0x80:
            raise ValueError("no packet")
        if head & 0x40:  # the newer form
            tag, first = head & 0x3F, data[position + 1]
            if first < 192:
                size, begins = first, position + 2
            elif first < 224:
                size, begins = ((first - 192) << 8) + data[position + 2] + 192, position + 3
            elif first == 255:
                size, begins = int.from_bytes(data[position + 2 : position + 6], "big"), position + 6
            else:
                raise ValueError("of partial length")
        else:
            tag, kind = head >> 2 & 0x0F, head & 3
            if kind == 3:
                raise ValueError("of no length")
            begins = position + 1 + (1 << kind)
            size = int.from_bytes(data[position + 1 : begins], "big")
        position = begins + size
        if position > len(data):
            raise ValueError("cut off")
        tags.append(tag)
    return tags


def admit(image: Reference, keys: Keys, resolve: Callable[[ImageKey, Reference], str]) -> Admitted:
    """Say how an image is admitted. ``resolve`` returns the digest that a key of dct or cosign has for its tag.

    Raises :class:`ImageError` for an image with neither digest nor key, and what ``resolve`` raises.
    """
    if image.digest is not None:
        return Admitted(image.canonical, image.canonical)
    found = keys.get(image.name, ())
    if not found:
        cure = "write name@sha256:…, or add its key under images"
        raise ImageError(f"the image {image.canonical} has neither a digest nor a key", cure)
    digests = {resolve(key, image) for key in found if key.kind != "rhs"}
    if len(digests) > 1:
        raise ImageError(f"the keys of the image {image.canonical} stand for different digests")
    pulled = f"{image.name}@{digests.pop()}" if digests else image.canonical
    return Admitted(image.canonical, pulled, tuple(key for key in found if key.kind == "rhs"))


def policy(admitted: Iterable[Admitted]) -> dict[str, Any]:
    """Return a ``containers-policy.json(5)``: reject all but these, each under its exact reference."""
    scopes: dict[str, list[dict[str, Any]]] = {}
    for each in admitted:
        wanted = scopes.setdefault(each.pulled, [])
        wanted += [rule for rule in map(_requirement, each.keys) if rule not in wanted]
    accepted = {scope: rules or [{"type": "insecureAcceptAnything"}] for scope, rules in scopes.items()}
    return {"default": [{"type": "reject"}], "transports": {"docker": accepted}}


def _requirement(key: ImageKey) -> dict[str, Any]:
    data = base64.b64encode(key.key).decode("ascii")
    identity = {"type": "matchRepoDigestOrExact"}
    return {"type": "signedBy", "keyType": "GPGKeys", "keyData": data, "signedIdentity": identity}


def lookups(admitted: Iterable[Admitted]) -> dict[str, Any]:
    """Return a file of ``containers-registries.d(5)``: where the engine looks for GPG signatures of these images."""
    return {"docker": {key.name: {"lookaside": key.url} for each in admitted for key in each.keys if key.url}}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
