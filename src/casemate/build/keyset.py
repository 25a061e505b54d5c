"""Keysets: the hosts that images are built for, with what proves that their keys are theirs.

    keyset = make("production", [("HKD-1.crt", data)], authorities, lists, time=now)      # raises where a document does not hold
    path.write_bytes(keyset.as_bytes())
    for host in parse(path.read_bytes()).check(now): host.name, host.problem

A keyset is one JSON file, at most 16 MiB: the host key documents, the certificates above them, revocation lists, all as PEM, and
whether they were verified when it was made. Nothing of this is believed when it is used: documents are verified again each
time, at the time of use, against the lists in the file or newer ones, and the file's only authority is that the user gave it, as
with roots that are given (:mod:`casemate.secureexec.documents` has the rules). ``"verified": false`` marks keysets of documents
from anybody, ``"revocation": false`` those of which nobody says that they are still good; they serve tests, and no authority but
a development one certifies images for them.

The same host twice is an error: one of the two documents would never count.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from casemate import strictjson
from casemate.certificates.errors import CertificateError
from casemate.errors import CasemateError
from casemate.secureexec import documents, hostkey
from casemate.secureexec.errors import HostKeyError

FORMAT = "casemate-keyset/1"
LARGEST, MOST_HOSTS = 16 << 20, 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class KeysetError(CasemateError):
    """A keyset can't be read, or does not hold. ``KEYSET``, ``KEYSET-HOST``."""

    id = "KEYSET"


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a keyset: name of its document, SHA-256 of its key as machines find it (hex), its end, what is wrong."""

    name: str
    fingerprint: str
    valid_until: str
    problem: str


@dataclass(frozen=True, slots=True)
class Keyset:
    """Host key documents by name, and what is above them."""

    name: str
    made: str
    verified: bool
    revocation: bool
    hosts: tuple[tuple[str, bytes], ...]
    authorities: tuple[bytes, ...] = ()
    signing: tuple[bytes, ...] = ()
    lists: tuple[bytes, ...] = ()

    @property
    def proved(self) -> bool:
        """Whether the hosts are proved to be what they say, as of now too: what is for more than development needs both."""
        return self.verified and self.revocation

    def as_bytes(self) -> bytes:
        """The file."""
        document = {
            **{"format": FORMAT, "name": self.name, "made": self.made},
            **{"verified": self.verified, "revocation": self.revocation},
            "hosts": [{"name": name, "document": data.decode("ascii")} for name, data in self.hosts],
            **{
                name: [data.decode("ascii") for data in getattr(self, name)]
                for name in ("authorities", "signing", "lists")
            },
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    def check(self, time: datetime.datetime, lists: Sequence[bytes] = ()) -> list[Host]:
        """Return each host with what is wrong with it at a time, if anything. ``lists`` take the place of the file's."""
        found: list[Host] = []
        for name, document in self.hosts:
            fingerprint = until = problem = ""
            try:
                host = hostkey.load(document, check_validity=False)
                fingerprint, until = host.fingerprint.hex(), host.valid_until
                self._verify([document], time, lists)
                hostkey.load(document)
            except (HostKeyError, CertificateError) as error:
                problem = error.cause
            found.append(Host(name, fingerprint, until, problem))
        return found

    def require(self, time: datetime.datetime, lists: Sequence[bytes] = ()) -> list[tuple[str, bytes]]:
        """Return the documents, all of which hold at a time. Raises :class:`KeysetError`, which names the first that doesn't."""
        for host in self.check(time, lists):
            if host.problem:
                raise KeysetError(
                    host.problem,
                    "get newer documents and lists, and make the keyset anew: casemate keyset create --replace",
                    f"{self.name}: {host.name}",
                    id="KEYSET-HOST",
                )
        return list(self.hosts)

    def _verify(self, given: Sequence[bytes], time: datetime.datetime, lists: Sequence[bytes]) -> None:
        if self.verified:
            above = list(self.authorities)
            crls = lists or self.lists
            documents.verify(given, above, crls, time=time, signing=self.signing, revocation=self.revocation)


def make(
    name: str,
    hosts: Sequence[tuple[str, bytes]],
    authorities: Sequence[bytes],
    lists: Sequence[bytes],
    *,
    time: datetime.datetime,
    signing: Sequence[bytes] = (),
    verified: bool = True,
    revocation: bool = True,
) -> Keyset:
    """Return a keyset of documents that hold. Raises :class:`KeysetError`, or the error of the document that doesn't."""
    keyset = Keyset(
        name=name,
        made=time.astimezone(datetime.UTC).replace(microsecond=0).isoformat(),
        verified=verified,
        revocation=verified and revocation,
        hosts=tuple((file, _pem(data)) for file, data in hosts),
        authorities=tuple(map(_pem, authorities)),
        signing=tuple(map(_pem, signing)),
        lists=tuple(_list_pem(data) for data in lists),
    )
    _require_form(keyset)
    if verified:
        keyset._verify([data for _, data in keyset.hosts], time, ())
    keyset.require(time)
    return parse(keyset.as_bytes())


def parse(data: bytes) -> Keyset:
    """Read a keyset; what it holds is not verified yet. Raises :class:`KeysetError`."""
    if len(data) > LARGEST:
        raise _form("is too large for a keyset")
    try:
        document: Any = strictjson.loads(data)
        texts = {
            name: tuple(one.encode("ascii") for one in document[name]) for name in ("authorities", "signing", "lists")
        }
        keyset = Keyset(
            name=document["name"],
            made=document["made"],
            verified=document["verified"],
            revocation=document["revocation"],
            hosts=tuple((one["name"], one["document"].encode("ascii")) for one in document["hosts"]),
            **texts,
        )
        wanted = {"format", "name", "made", "verified", "revocation", "hosts", "authorities", "signing", "lists"}
        sound = document["format"] == FORMAT and set(document) == wanted
        sound = sound and all(set(one) == {"name", "document"} for one in document["hosts"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _form("can't be read as a keyset") from None
    if not sound or type(keyset.verified) is not bool or type(keyset.revocation) is not bool:
        raise _form(f"is none of the form {FORMAT}")
    _require_form(keyset)
    return keyset


def _require_form(keyset: Keyset) -> None:
    if not isinstance(keyset.name, str) or not _NAME.fullmatch(keyset.name) or not isinstance(keyset.made, str):
        raise _form("a keyset's name has letters, digits, dot, dash and underscore, 128 at most")
    if not 1 <= len(keyset.hosts) <= MOST_HOSTS:
        raise _form(f"a keyset has 1 to {MOST_HOSTS} hosts")
    seen: dict[bytes, str] = {}
    for name, document in keyset.hosts:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _form("the name of a document is a plain file name")
        fingerprint = hostkey.load(document, check_validity=False).fingerprint
        if fingerprint in seen:
            raise KeysetError(f"is the same host as {seen[fingerprint]}", "give each host once", name, id="KEYSET-HOST")
        seen[fingerprint] = name


def _pem(data: bytes) -> bytes:
    """A certificate, several, or a bare key, as text. What it is, is checked where it is used."""
    if b"-----BEGIN " in data:
        try:
            data.decode("ascii")
        except UnicodeDecodeError:
            raise _form("a certificate in it has text that is not ASCII") from None
        return data
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        return x509.load_der_x509_certificate(data).public_bytes(Encoding.PEM)
    except (ValueError, x509.InvalidVersion):
        raise KeysetError("not a certificate that can be read", "give it as PEM or DER") from None


def _list_pem(data: bytes) -> bytes:
    if b"-----BEGIN " in data:
        return _pem(data)
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        return x509.load_der_x509_crl(data).public_bytes(Encoding.PEM)
    except (ValueError, x509.InvalidVersion):
        raise KeysetError("not a revocation list that can be read", "give it as PEM or DER") from None


def _form(cause: str) -> KeysetError:
    return KeysetError(cause, "casemate keyset create makes one")
