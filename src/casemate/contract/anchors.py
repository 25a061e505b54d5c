"""Freshness anchors: what a contract says of one, what an anchor says, and what follows from it (``docs/anchors.md``).

An anchor keeps one number for a volume, outside the reach of whoever has the disk: a generation of its btrfs. btrfs counts its
commits; the number stands in the superblock, and every block below is bound to it, by the generation and checksum that the
block above has of it. So a disk whose superblock has the anchor's number or a later one is no older than what the anchor knows.

    anchor = read_anchor(volume["anchor"])               # AnchorError: its text has no value of the contract
    statement(name, nonce, value)                        # what an anchor signs (Ed25519)
    value = read_statement(text, signature, anchor, nonce)
    problem(made, generation, value)                     # "" where all is well

**The number at the anchor is never larger than the one on the disk**: a machine has its file system commit, waits until that is
on the disk, and only then raises the anchor's. So a power cut at any moment locks nobody out; and a disk that is behind the
anchor was put back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from casemate.contract.errors import AnchorError

FILESYSTEM: Final = "btrfs"
LARGEST: Final = (1 << 63) - 1
NONCE_SIZE: Final = 32
_URL = re.compile(
    r"https://(?P<host>[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(:(?P<port>[0-9]{1,5}))?/(?P<name>[a-z0-9-]{1,64})"
)
_KEYS = frozenset({"url", "publicKey", "ca", "cert", "key"})
_HEAD = "casemate-anchor-1"
_STATEMENT = re.compile(
    rf"{_HEAD}\n(?P<name>[a-z0-9-]{{1,64}})\n(?P<nonce>[0-9a-f]{{64}})\n(?P<value>none|[0-9]{{1,19}})\n"
)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A number at an anchor: ``name``; how it is reached, host and port; PEM of who it is and of who asks.

    ``public_key``: of what the anchor signs with; ``ca``: the authority of its TLS certificate; ``cert``, ``key``: the client's.
    """

    name: str
    host: str
    port: int
    public_key: bytes
    ca: bytes
    cert: bytes
    key: bytes = field(repr=False)


def read_anchor(entry: Any) -> Anchor:
    """Return what ``anchor`` of a volume in ``env`` says. Raises :class:`AnchorError`."""
    from casemate.contract.errors import KeyFileError
    from casemate.contract.keys import certificates_alone, pem_of

    if (
        not isinstance(entry, Mapping)
        or entry.keys() != _KEYS
        or not all(isinstance(each, str) for each in entry.values())
    ):
        raise AnchorError(f"anchor needs the texts {', '.join(sorted(_KEYS))}, and nothing else")
    url = _URL.fullmatch(entry["url"])
    port = int(url["port"] or 443) if url else 0
    if url is None or not 0 < port < 65536:
        raise AnchorError("anchor.url is not one", "https://HOST:PORT/NAME; a name has small letters, digits and -")
    pem = {}
    for key, label in (
        ("publicKey", "PUBLIC KEY"),
        ("ca", "CERTIFICATE"),
        ("cert", "CERTIFICATE"),
        ("key", "PRIVATE KEY"),
    ):
        try:
            pem[key] = pem_of(entry[key])
        except KeyFileError:
            raise AnchorError(f"anchor.{key} is neither PEM nor base64 of it") from None
        if f"{label}-----".encode() not in pem[key]:
            raise AnchorError(f"anchor.{key} is no {label.lower()}")
    try:
        authority = b"".join(certificates_alone(pem["ca"]))
    except KeyFileError as error:
        raise AnchorError(f"anchor.ca {error.cause}", error.cure) from None
    return Anchor(url["name"], url["host"].lower(), port, pem["publicKey"], authority, pem["cert"], pem["key"])


def statement(name: str, nonce: str, value: int | None) -> bytes:
    """Return what an anchor signs: the number that it keeps under a name, for who asked with this nonce (hex of 32 bytes)."""
    return f"{_HEAD}\n{name}\n{nonce}\n{'none' if value is None else value}\n".encode()


def read_statement(text: bytes, signature: bytes, anchor: Anchor, nonce: str) -> int | None:
    """Return the number of a statement that was signed for this question; ``None``: the anchor has none yet.

    Raises :class:`AnchorError`. The signature is verified before anything is parsed.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key: object = load_pem_public_key(anchor.public_key)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise AnchorError("anchor.publicKey is no Ed25519 key")
    try:
        key.verify(signature, text)
    except InvalidSignature:
        raise AnchorError("what the anchor says is not signed by it") from None
    found = _STATEMENT.fullmatch(text.decode("ascii", "replace"))
    if found is None or (found["name"], found["nonce"]) != (anchor.name, nonce):
        raise AnchorError("what the anchor says answers another question")
    if found["value"] == "none":
        return None
    value = int(found["value"])
    if not 0 < value <= LARGEST:
        raise AnchorError("what the anchor says is no generation")
    return value


def problem(made: bool, generation: int, value: int | None) -> str:
    """Return what is wrong about a disk, by the generation that it has and the anchor's; "" where nothing is.

    ``made``: the disk is empty, and the volume is made now.
    """
    if value is None:
        return ""
    if made:
        return "the anchor knows this volume, and the disk is empty: another one is in its place"
    if generation < value:
        return f"the disk has been put back: it is at generation {generation}, and was at {value}"
    return ""
