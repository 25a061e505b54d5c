"""An authority over signing keys: root, intermediates, the certificates of images, revocation lists, and a log of it all.

    authority = Authority.create(Path("ca"), Plan("Example", root="pkcs11:…", intermediate="pkcs11:…"))
    issued = authority.issue("26.11.0")            # two private keys for one image, and their certificates
    authority.rotate("pkcs11:…;object=second?…")   # new images under a new intermediate, old ones keep theirs
    authority.revoke_certificate(pem, "key-compromise")

A directory of public things, and of keys only where their signers are files in it:

===========================  ==========================================================================
``authority.json``           name, where lists are published, the signer (URI) of each issuer, its state
``root.crt`` ``NAME.crt``    certificates of the issuers, PEM; the intermediates' names are ``intermediate``, ``intermediate-2`` …
``chain.crt``                what a public authority has between its root and our intermediate
``NAME.crl.pem``             the newest revocation list of each issuer that is ours
``NAME.csr``                 what a public authority is to sign
``keys.jsonl``               each use of a key (:mod:`casemate.build.keylog`)
``root.key`` …               keys, 0600, where a signer is a file here
===========================  ==========================================================================

The rules:

- One intermediate is *current*: it certifies new images. Others *overlap*: they sign their revocation lists and nothing
  else, and what they certified stays valid. A revoked or expired one certifies nothing.
- Each intermediate has a name and a key of its own, so that no list can be taken for another's.
- No certificate outlives its issuer. An intermediate certifies no authorities (path length 0).
- What a key has signed is verified with the issuer's certificate, then logged, then published: in this order.
- Numbers of revocation lists only grow, and no entry is lost: both are taken from the log too, so that an older list that
  somebody puts back is made whole again.
- An intermediate that the root has revoked is revoked, whatever ``authority.json`` says: the log and the root's list count.
  Without its log an authority does nothing.
- Every change is made under a lock, and each file is replaced whole.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from casemate import strictjson
from casemate.build import forms, keylog, signers
from casemate.build.forms import (
    DAY,
    IMAGE_DAYS,
    INTERMEDIATE_DAYS,
    ROOT_DAYS,
    Key,
    PublicKey,
    certificate,
    moment,
    name_of,
    private_pem,
    sign,
)
from casemate.build.forms import REASONS as REASONS
from casemate.certificates.chain import (
    LARGEST_BUNDLE,
    LARGEST_CERTIFICATE,
    certificates_of,
    verify_chain,
)
from casemate.errors import CasemateError
from casemate.secret import Secret

FORMAT = "casemate-authority/1"
DESCRIPTION, LOG = "authority.json", "keys.jsonl"
CURRENT, OVERLAP, REQUESTED, REVOKED = "current", "overlap", "requested", "revoked"
SOON = datetime.timedelta(days=60)
# With the longest of its issuers' names behind it, each still has a name of its own.
LONGEST_NAME = forms.LONGEST_NAME - len(" intermediate 9999")
_NAME = re.compile(r"root|intermediate(-[1-9][0-9]{0,3})?")


class AuthorityError(CasemateError):
    """An authority can't do what was asked. ``AUTHORITY-…`` names the kind."""

    id = "AUTHORITY"


def _error(kind: str, cause: str, cure: str = "", where: str = "") -> AuthorityError:
    return AuthorityError(cause, cure, where, id=f"AUTHORITY-{kind}")


@dataclass(frozen=True, slots=True)
class ImageCertificates:
    """What an image gets: two private keys (PKCS#8 PEM) and their certificates (PEM)."""

    encryption_key: Secret
    encryption_certificate: bytes
    attestation_key: Secret
    attestation_certificate: bytes

    @property
    def until(self) -> datetime.datetime:
        """When the encryption certificate ends, and with it what may be sealed for the image."""
        return x509.load_pem_x509_certificate(self.encryption_certificate).not_valid_after_utc


@dataclass(frozen=True, slots=True)
class Plan:
    """What an authority is to be. ``root`` and ``intermediate`` are URIs of signers.

    ``lists_at`` is the URL below which ``NAME.crl`` is published; it goes into certificates. ``adopt``: keys that are there
    already are taken, otherwise they are made.
    """

    name: str
    root: str = "file:root.key"
    intermediate: str = "file:intermediate.key"
    algorithm: str = "rsa-4096"
    lists_at: str = ""
    list_days: int = 30
    development: bool = False
    adopt: bool = False


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer of an authority: its name, its signer's URI (empty: not ours), its state."""

    name: str
    signer: str
    state: str


@dataclass(frozen=True, slots=True)
class Description:
    """What ``authority.json`` says."""

    name: str
    development: bool
    lists_at: str
    list_days: int
    root: Issuer
    intermediates: tuple[Issuer, ...]

    def as_bytes(self) -> bytes:
        """The file."""
        document = {
            **{"format": FORMAT, "name": self.name, "development": self.development},
            **{"lists_at": self.lists_at, "list_days": self.list_days, "root": {"signer": self.root.signer}},
            "intermediates": [
                {"name": one.name, "signer": one.signer, "state": one.state} for one in self.intermediates
            ],
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Description:
        """Read the file. Raises :class:`AuthorityError`."""
        try:
            document = strictjson.loads(data)
            intermediates = tuple(
                Issuer(str(one["name"]), str(one["signer"]), str(one["state"])) for one in document["intermediates"]
            )
            found = cls(
                name=str(document["name"]),
                development=document["development"],
                lists_at=str(document["lists_at"]),
                list_days=document["list_days"],
                root=Issuer("root", str(document["root"]["signer"]), CURRENT),
                intermediates=intermediates,
            )
        except (ValueError, KeyError, TypeError):
            raise _error("DESCRIPTION", f"{DESCRIPTION} can't be read", "take it from a copy") from None
        names = [one.name for one in found.intermediates]
        if (
            document.get("format") != FORMAT
            or type(found.development) is not bool
            or type(found.list_days) is not int
            or not all(_NAME.fullmatch(name) for name in names)
            or len(set(names)) != len(names)
            or not all(one.state in (CURRENT, OVERLAP, REQUESTED, REVOKED) for one in found.intermediates)
            or sum(one.state == CURRENT for one in found.intermediates) > 1
        ):
            raise _error("DESCRIPTION", f"{DESCRIPTION} is none of the form {FORMAT}", "take it from a copy")
        return found


@dataclass(frozen=True, slots=True)
class Status:
    """What a listing says of one certificate or list."""

    kind: str
    name: str
    subject: str
    serial: str
    until: datetime.datetime
    state: str
    warnings: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **{"kind": self.kind, "name": self.name, "subject": self.subject, "serial": self.serial},
            **{"until": self.until.isoformat(), "state": self.state, "warnings": list(self.warnings)},
        }


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority that is kept in a directory. What it is, is read anew for each thing that it does."""

    directory: Path

    # --- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, directory: Path, plan: Plan) -> Authority:
        """Make root and intermediate. Raises :class:`AuthorityError` where something is there already."""
        with _new_directory(directory) as new:
            made = cls(new)
            issuers = (Issuer("intermediate", plan.intermediate, CURRENT),)
            described = _description(plan, Issuer("root", plan.root, CURRENT), issuers)
            publics = made._prepare(plan, [("root", plan.root), ("intermediate", plan.intermediate)])
            made.write_description(described)
            with made._signer(described.root).open() as key:
                subject = _subject(described, "root")
                root = sign(certificate(described, subject, key.public_key(), None, ROOT_DAYS, path=1), key)
            made._publish_certificate("root", "root", root, root)
            made._certify_intermediate(described, issuers[0], publics["intermediate"])
            for issuer in (described.root, issuers[0]):
                made._issue_list(described, issuer)
        return cls(directory)

    @classmethod
    def request(cls, directory: Path, plan: Plan) -> Authority:
        """Make the key of an intermediate and what a public authority is to sign (``intermediate.csr``)."""
        with _new_directory(directory) as new:
            made = cls(new)
            issuer = Issuer("intermediate", plan.intermediate, REQUESTED)
            described = _description(plan, Issuer("root", "", CURRENT), (issuer,))
            made._prepare(plan, [("intermediate", plan.intermediate)])
            made.write_description(described)
            made._write_request(described, issuer)
        return cls(directory)

    def accept(self, certificate: bytes, issuers: Sequence[bytes], crls: Sequence[bytes] = ()) -> str:
        """Take what a public authority answered; return the intermediate's name.

        ``issuers`` are certificates up to the root, which is trusted because it is given. The answer must be for the key that
        was requested, an authority, and its chain must hold. Accepted twice, it is the same.
        """
        now = moment()
        with self.locked():
            described = self.describe()
            answer = _load(certificate)
            for issuer in described.intermediates:
                path = self.directory / f"{issuer.name}.csr"
                if not path.is_file():
                    continue
                if _asked_for(path) == _public(answer):
                    break
            else:
                raise _error(
                    "ANSWER", "this certificate is for no key that was requested here", "give the answer to the .csr"
                )
            if issuer.state != REQUESTED:
                if self._is(issuer, answer):
                    return issuer.name
                raise _error(
                    "ANSWER", f"{issuer.name} has another certificate already", "casemate ca rotate asks for a new one"
                )
            basic = (
                answer.extensions.get_extension_for_class(x509.BasicConstraints).value if _has_basic(answer) else None
            )
            usage = _usage(answer)
            if basic is None or not basic.ca or (usage is not None and not (usage.key_cert_sign and usage.crl_sign)):
                raise _error(
                    "ANSWER", "it is no certificate of an authority that signs certificates and lists", "ask for one"
                )
            chain = verify_chain(certificate, issuers, crls, time=now)
            if not chain.proved:
                raise _error(
                    "ANSWER", f"its chain does not hold: {chain.problems[0].cause}", "give every issuer up to the root"
                )
            if chain.development is not described.development:
                raise _error("ANSWER", "development and production don't mix in one chain", "make the authority anew")
            others = (self.directory / f"{one.name}.crt" for one in described.intermediates if one != issuer)
            if answer.subject in [_load(path.read_bytes()).subject for path in others if path.is_file()]:
                raise _error("ANSWER", "another intermediate here has the same name", "ask for one of its own")
            above = [_load(one) for bundle in issuers for one in certificates_of(bundle)]
            by_hash = {hashlib.sha256(_der(one)).hexdigest(): one for one in above}
            if len(chain.links) < 2:
                raise _error(
                    "ANSWER", "it is its own root: nobody answered the request", "give what the authority signed"
                )
            *between, root = [by_hash[link.fingerprint] for link in chain.links[1:]]
            issued_root = self.directory / "root.crt"
            if issued_root.is_file() and issued_root.read_bytes() != _pem(root):
                raise _error("ANSWER", "its root is another than the one of this authority", "make another authority")
            _log(self.directory, "accept", issuer.name, answer, chain.links[0].subject)
            _replace(issued_root, _pem(root))
            _replace(self.directory / "chain.crt", b"".join(map(_pem, between)))
            _replace(self.directory / f"{issuer.name}.crt", _pem(answer))
            self._make_current(described, issuer)
            self._issue_list(self.describe(), issuer)
            return issuer.name

    def rotate(self, signer: str = "", algorithm: str = "rsa-4096", *, adopt: bool = False) -> str:
        """Begin a new intermediate under a key of its own; return its name. The old one overlaps.

        Where the root is a public authority's, this writes the request, and :meth:`accept` takes the answer.
        """
        with self.locked():
            described = self.describe()
            name = f"intermediate-{len(described.intermediates) + 1}"
            issuer = Issuer(name, signer or f"file:{name}.key", REQUESTED)
            waiting = [one for one in described.intermediates if one.state == REQUESTED]
            if waiting:
                raise _error(
                    "ROTATION", f"{waiting[0].name} waits for its certificate", "casemate ca accept takes the answer"
                )
            used = [one for one in (described.root, *described.intermediates) if _same_key(one.signer, issuer.signer)]
            if used:
                raise _error("ROTATION", f"{used[0].name} has this key", "name another: each intermediate has its own")
            name_of(described, _subject(described, name))  # what can't be certified is not made
            if described.root.signer:
                root = self._require_valid("root")
                with self._signer(described.root).open() as key:
                    _require_key(key, root)
            public = self._key(issuer, algorithm, adopt)
            paths = [path for path in self.directory.glob("*.crt") if path.stem not in ("chain", name)]
            others = [_load(path.read_bytes()) for path in paths]
            if signers.spki(public) in map(_public, others):
                raise _error("ROTATION", "an issuer here has this key under another name", "make a new one")
            if described.root.signer:
                self._certify_intermediate(described, issuer, public)
                self._make_current(replace(described, intermediates=(*described.intermediates, issuer)), issuer)
                self._issue_list(self.describe(), issuer)
            else:
                self.write_description(replace(described, intermediates=(*described.intermediates, issuer)))
                self._write_request(described, issuer)
            return name

    # --- what it certifies --------------------------------------------------------------------------------------

    def issue(self, version: str) -> ImageCertificates:
        """Make the keys and certificates of a new image. The private halves are returned, and kept nowhere."""
        with ThreadPoolExecutor(2) as pool:
            encryption, attestation = pool.map(lambda _: signers.new_key("rsa-4096"), range(2))
        first = self._issue_leaf(f"Casemate {version} contract encryption", encryption.public_key(), encrypts=True)
        return ImageCertificates(
            encryption_key=Secret(private_pem(encryption)),
            encryption_certificate=first,
            attestation_key=Secret(private_pem(attestation)),
            attestation_certificate=self._issue_leaf(f"Casemate {version} attestation", attestation.public_key()),
        )

    def issue_provenance(self, version: str) -> tuple[Secret, bytes]:
        """Make the key (P-384, PKCS#8 PEM) that signs one provenance statement, and its certificate (PEM).

        Its purpose is signing code, and only that: no key of an image can pass for it, nor it for one of an image.
        """
        signer = ec.generate_private_key(ec.SECP384R1())
        purpose = ExtendedKeyUsageOID.CODE_SIGNING
        made = self._issue_leaf(f"Casemate {version} build provenance", signer.public_key(), purpose=purpose)
        return Secret(private_pem(signer)), made

    def certify_builder(self, request: bytes) -> bytes:
        """Certify the key of a builder machine as an intermediate's; ``request``: PEM; return the certificate, PEM.

        Its lists are the builder's to sign, so it is none of this authority's intermediates. Raises :class:`AuthorityError`.
        """
        try:
            asked = x509.load_pem_x509_csr(request if len(request) <= LARGEST_CERTIFICATE else b"")
            held, public = asked.is_signature_valid, asked.public_key()
            (common,) = asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
            raise _error("REQUEST", "not a request that can be read", "give the builder's intermediate.csr") from None
        if not held or not isinstance(public, PublicKey):
            raise _error("REQUEST", "who asked does not hold this key", "give the builder's intermediate.csr")
        _require_strong(public)
        with self.locked():
            described, root = self.describe(), self._require_valid("root")
            if not described.root.signer:
                raise _error("REQUEST", "the root is not ours", "give the request to the public authority")
            subject = name_of(described, str(common.value))
            issuers = [_load(path.read_bytes()) for path in self.directory.glob("*.crt") if path.stem != "chain"]
            if subject in [one.subject for one in issuers] or signers.spki(public) in map(_public, issuers):
                raise _error("REQUEST", "an issuer here has this name or key", "the builder needs its own")
            with self._signer(described.root).open() as key:
                _require_key(key, root)
                made = sign(certificate(described, subject, public, root, INTERMEDIATE_DAYS, path=0), key)
            _require_holds(made, root)
            _log(self.directory, "certificate", "root", made, made.subject.rfc4514_string(), "builder")
            return _pem(made)

    def require_ready(self) -> None:
        """Return if an image could be certified now: there is a valid intermediate, and its key can be used.

        Raises :class:`AuthorityError` or :class:`~casemate.build.signers.SignerError`.
        """
        issuer = self._current(self.describe())
        with self._signer(issuer).open() as key:
            _require_key(key, self._require_valid(issuer.name))

    def require_chain(self, *certificates: bytes) -> None:
        """Return if the current intermediate has certified all of these (PEM). Raises :class:`AuthorityError`: a rotation."""
        above = _load(certificates_of(self.intermediate_pem)[0])
        if not all(_holds(_load(one), above) for one in certificates):
            raise _error("ROTATED", "the intermediate was rotated meanwhile", "do it again", str(self.directory))

    # --- what it takes back -------------------------------------------------------------------------------------

    def revoke(self, serial: int, reason: str = "unspecified") -> None:
        """Put a serial number on the current intermediate's list."""
        with self.locked():
            described = self.describe()
            self._revoke(described, self._current(described), serial, reason)

    def revoke_certificate(self, certificate: bytes, reason: str = "unspecified") -> tuple[str, bool]:
        """Revoke a certificate (PEM or DER) that an issuer here has signed; return the issuer's name, and whether it is new.

        An intermediate that is revoked certifies nothing any more. Raises :class:`AuthorityError`: nobody here signed it.
        """
        one = _load(certificate)
        with self.locked():
            described = self.describe()
            for issuer in (described.root, *described.intermediates):
                path = self.directory / f"{issuer.name}.crt"
                if not issuer.signer or not path.is_file() or one.issuer != (found := _load(path.read_bytes())).subject:
                    continue
                if _holds(one, found) and _der(one) != _der(found):
                    break
            else:
                raise _error(
                    "STRANGER",
                    "no issuer of this authority has signed this certificate",
                    "whoever signed it revokes it; a root is revoked by telling everybody",
                )
            new = self._revoke(described, issuer, one.serial_number, reason)
            if issuer.name == "root":
                states = tuple(
                    replace(each, state=REVOKED) if self._is(each, one) else each for each in described.intermediates
                )
                if states != self._description().intermediates:
                    self.write_description(replace(described, intermediates=states))
            return issuer.name, new

    def issue_lists(self, names: Sequence[str] = ()) -> list[tuple[str, int]]:
        """Sign the revocation lists anew, those of ``names`` or all; return the names and the lists' numbers."""
        with self.locked():
            described = self.describe()
            ours = [
                one
                for one in (described.root, *described.intermediates)
                if one.signer and one.state in (CURRENT, OVERLAP) and (self.directory / f"{one.name}.crt").is_file()
            ]
            unknown = set(names) - {one.name for one in ours}
            if unknown:
                raise _error(
                    "NAME", f"no issuer here signs lists under the name {min(unknown)}", "casemate ca list shows them"
                )
            return [(one.name, self._issue_list(described, one)) for one in ours if not names or one.name in names]

    # --- what it shows ------------------------------------------------------------------------------------------

    def describe(self) -> Description:
        """Return what the directory says that it is; whom the root has revoked is revoked, whatever ``authority.json`` says.

        Raises :class:`AuthorityError`, or :class:`~casemate.build.keylog.KeyLogError` where the log is away or does not hold.
        """
        described = self._description()
        data = self._log_bytes()
        # A torn last line speaks of nothing that was published; the next one takes its place.
        entries = keylog.parse(data[: data.rfind(b"\n") + 1])
        gone = self._revoked("root") | set(_taken_back(entries, "root"))
        states = tuple(
            replace(one, state=REVOKED) if self._serial(one) in gone else one for one in described.intermediates
        )
        return replace(described, intermediates=states)

    @property
    def root_pem(self) -> bytes:
        """The root's certificate, PEM."""
        return (self.directory / "root.crt").read_bytes()

    @property
    def intermediate_pem(self) -> bytes:
        """The current intermediate's certificate, PEM; after it what stands between it and a public root."""
        name = self._current(self.describe()).name
        chain = self.directory / "chain.crt"
        return (self.directory / f"{name}.crt").read_bytes() + (chain.read_bytes() if chain.is_file() else b"")

    @property
    def crl_pem(self) -> bytes:
        """The current intermediate's newest revocation list, PEM; signed anew where it is older than a day."""
        with self.locked():
            described = self.describe()
            issuer = self._current(described)
            found = self._list(issuer.name)
            if found is None or moment() - found.last_update_utc > 2 * DAY:
                self._issue_list(described, issuer)
            return (self.directory / f"{issuer.name}.crl.pem").read_bytes()

    @property
    def root_crl_pem(self) -> bytes | None:
        """The root's newest revocation list, PEM, as it was last signed; ``None`` where the root is not ours."""
        path = self.directory / "root.crl.pem"
        return path.read_bytes() if path.is_file() else None

    def published(self) -> dict[str, bytes]:
        """Return what everybody may have: certificates (PEM) and lists (``NAME.crl`` DER, as RFC 5280 has it, and PEM)."""
        described, found = self._description(), {}
        for name in ("root", "chain", *(one.name for one in described.intermediates)):
            for suffix in ("crt", "crl.pem"):
                path = self.directory / f"{name}.{suffix}"
                if path.is_file():
                    found[path.name] = path.read_bytes()
            crl = self._list(name)
            if crl is not None:
                found[f"{name}.crl"] = crl.public_bytes(serialization.Encoding.DER)
        return found

    def log(self, head: str = "") -> list[keylog.Entry]:
        """Return the log of the keys, verified."""
        return keylog.parse(self._log_bytes(), head)

    def status(self) -> list[Status]:
        """Return issuers, their lists and the images' certificates, with what should be done soon."""
        described, now = self.describe(), moment()
        written = {one.name: one.state for one in self._description().intermediates}
        found = []
        for issuer in (described.root, *described.intermediates):
            path = self.directory / f"{issuer.name}.crt"
            if not path.is_file():
                continue
            one = _load(path.read_bytes())
            end = one.not_valid_after_utc
            warnings = _ends(end, now)
            if issuer.state == CURRENT and issuer.name != "root" and end - now < IMAGE_DAYS * DAY:
                warnings = (*warnings, "new images' certificates would end early: rotate")
            state = "" if issuer.name == "root" else issuer.state
            if state and state != written[issuer.name]:
                warnings = (*warnings, f"{DESCRIPTION} says {written[issuer.name]}: it was put back or changed")
            found.append(
                Status(
                    "issuer", issuer.name, one.subject.rfc4514_string(), f"{one.serial_number:x}", end, state, warnings
                )
            )
            crl = self._list(issuer.name)
            if crl is not None and issuer.state != REVOKED:
                until = crl.next_update_utc or now
                late = ("out of date: casemate ca crl",) if until <= now else ()
                if not late and until - now < max(DAY, described.list_days * DAY / 4):
                    late = ("soon out of date: casemate ca crl",)
                entries = f"{len(crl)} revoked"
                found.append(
                    Status("list", issuer.name, one.subject.rfc4514_string(), str(_number(crl)), until, entries, late)
                )
        if not any(one.state == CURRENT for one in described.intermediates):
            waiting = any(one.state == REQUESTED for one in described.intermediates)
            say = "no intermediate certifies images: " + ("casemate ca accept" if waiting else "casemate ca rotate")
            found.insert(0, Status("authority", described.name, "", "", now, "", (say,)))
        revoked = {name: self._revoked(name) for name in ("root", *(one.name for one in described.intermediates))}
        for entry in self.log():
            facts = entry.facts
            if entry.action == "certificate" and facts.get("for") == "image":
                end = datetime.datetime.fromisoformat(str(facts["until"]))
                gone = int(str(facts["serial"]), 16) in revoked.get(str(facts["issuer"]), set())
                state = "revoked" if gone else "expired" if end < now else "valid"
                warnings = _ends(end, now) if state == "valid" else ()
                found.append(
                    Status(
                        "image", str(facts["issuer"]), str(facts["subject"]), str(facts["serial"]), end, state, warnings
                    )
                )
        return found

    # --- the parts ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the authority: one change at a time, whichever program makes it."""
        try:
            descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _error(
                "NONE", f"can't be changed: {error.strerror}", "casemate ca init makes one", str(self.directory)
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _description(self) -> Description:
        try:
            return Description.parse((self.directory / DESCRIPTION).read_bytes())
        except OSError:
            raise _error("NONE", "there is no authority", "casemate ca init makes one", str(self.directory)) from None

    def _log_bytes(self) -> bytes:
        path = self.directory / LOG
        data = path.read_bytes() if path.is_file() else b""
        if b"\n" not in data:
            raise keylog.KeyLogError("the log of the keys is not there", "take it from a copy", str(path))
        return data

    def _serial(self, issuer: Issuer) -> int | None:
        path = self.directory / f"{issuer.name}.crt"
        return self._certificate(issuer.name).serial_number if path.is_file() else None

    def _signer(self, issuer: Issuer) -> signers.Signer:
        return signers.find(issuer.signer, self.directory)

    def write_description(self, described: Description) -> None:
        """Write ``authority.json``; the lock is held."""
        _replace(self.directory / DESCRIPTION, described.as_bytes())

    def adopt(self, issuer: Issuer) -> None:
        """Log an issuer whose key and certificate are there already; the lock is held."""
        self._key(issuer, "", True)

    def _prepare(self, plan: Plan, wanted: list[tuple[str, str]]) -> dict[str, PublicKey]:
        if _same_key(plan.root, plan.intermediate):
            raise _error("KEYS", "root and intermediate would share a key", "name two")
        for _, uri in wanted:
            signers.find(uri, self.directory)  # what is wrong with a URI is said before any key is made
        if not plan.adopt and all(uri.startswith("file:") for _, uri in wanted):
            with ThreadPoolExecutor(2) as pool:  # two RSA keys take a while
                list(pool.map(lambda one: signers.find(one[1], self.directory).generate(plan.algorithm), wanted))
            publics = {name: self._key(Issuer(name, uri, ""), plan.algorithm, True, made=True) for name, uri in wanted}
        else:
            publics = {name: self._key(Issuer(name, uri, ""), plan.algorithm, plan.adopt) for name, uri in wanted}
        if len(set(map(signers.spki, publics.values()))) != len(publics):
            raise _error("KEYS", "root and intermediate have the same key", "name two")
        return publics

    def _key(self, issuer: Issuer, algorithm: str, adopt: bool, made: bool = False) -> PublicKey:
        """Make a key, or take the one that is there; log which. Return its public half, whose private half was seen to sign."""
        signer = self._signer(issuer)
        if not adopt:
            signer.generate(algorithm)
        with signer.open() as key:
            public: PublicKey = key.public_key()
            _require_strong(public)
            _require_possession(key)
        action = "generate" if made or not adopt else "adopt"
        facts = {"issuer": issuer.name, "key": signers.fingerprint(public), "signer": issuer.signer.partition("?")[0]}
        keylog.append(self.directory / LOG, action, facts)
        return public

    def _current(self, described: Description) -> Issuer:
        for issuer in described.intermediates:
            if issuer.state == CURRENT:
                return issuer
        waiting = any(one.state == REQUESTED for one in described.intermediates)
        cure = (
            "casemate ca accept takes the public authority's answer"
            if waiting
            else "casemate ca rotate begins a new one"
        )
        raise _error("CURRENT", "no intermediate certifies images", cure, str(self.directory))

    def _certificate(self, name: str) -> x509.Certificate:
        path = self.directory / f"{name}.crt"
        if not path.is_file():
            raise _error("CERTIFICATE", "the certificate is not there", "take it from a copy", str(path))
        try:
            return _load(path.read_bytes())
        except CasemateError as error:
            raise _error("CERTIFICATE", error.cause, "take it from a copy", str(path)) from None

    def _require_valid(self, name: str) -> x509.Certificate:
        one = self._certificate(name)
        if not one.not_valid_before_utc <= moment() < one.not_valid_after_utc:
            cure = "casemate ca rotate begins a new one" if name != "root" else "make a new authority"
            raise _error("EXPIRED", f"{name} is not valid today (until {one.not_valid_after_utc:%Y-%m-%d})", cure)
        return one

    def _is(self, issuer: Issuer, certificate: x509.Certificate) -> bool:
        path = self.directory / f"{issuer.name}.crt"
        return path.is_file() and _der(_load(path.read_bytes())) == _der(certificate)

    def _certify_intermediate(self, described: Description, issuer: Issuer, public: PublicKey) -> None:
        root = self._require_valid("root")
        subject = _subject(described, issuer.name)
        with self._signer(described.root).open() as key:
            _require_key(key, root)
            made = sign(certificate(described, subject, public, root, INTERMEDIATE_DAYS, path=0), key)
        self._publish_certificate(issuer.name, "root", made, root)

    def _publish_certificate(self, name: str, issuer: str, made: x509.Certificate, above: x509.Certificate) -> None:
        _require_holds(made, above)
        _log(self.directory, "certificate", issuer, made, made.subject.rfc4514_string(), name)
        _replace(self.directory / f"{name}.crt", _pem(made))

    def _issue_leaf(
        self, common: str, public: PublicKey, *, encrypts: bool = False, purpose: x509.ObjectIdentifier | None = None
    ) -> bytes:
        with self.locked():
            described = self.describe()
            issuer = self._current(described)
            above = self._require_valid(issuer.name)
            with self._signer(issuer).open() as key:
                _require_key(key, above)
                builder = certificate(
                    described,
                    name_of(described, common),
                    public,
                    above,
                    IMAGE_DAYS,
                    encrypts=encrypts,
                    purpose=purpose,
                    issuer=issuer.name,
                )
                made = sign(builder, key)
            _require_holds(made, above)
            _log(self.directory, "certificate", issuer.name, made, made.subject.rfc4514_string(), "image")
            return _pem(made)

    def _make_current(self, described: Description, issuer: Issuer) -> None:
        states = tuple(
            replace(one, state=CURRENT)
            if one.name == issuer.name
            else replace(one, state=OVERLAP)
            if one.state == CURRENT
            else one
            for one in described.intermediates
        )
        for before, after in zip(described.intermediates, states, strict=True):
            if (before.state, after.state) == (CURRENT, OVERLAP):
                keylog.append(self.directory / LOG, "retire", {"issuer": before.name, "for": issuer.name})
        self.write_description(replace(described, intermediates=states))

    def _write_request(self, described: Description, issuer: Issuer) -> None:
        with self._signer(issuer).open() as key:
            public: PublicKey = key.public_key()
            builder = forms.request(described, _subject(described, issuer.name))
            request = builder.sign(key, signers.algorithm_for(public))
        if not request.is_signature_valid:
            raise _error(
                "SIGNATURE", "the key's signature does not hold under its own public half", "the signer is broken"
            )
        data = request.public_bytes(serialization.Encoding.PEM)
        facts = {"issuer": issuer.name, "key": signers.fingerprint(public), "sha256": hashlib.sha256(data).hexdigest()}
        keylog.append(self.directory / LOG, "request", facts)
        _replace(self.directory / f"{issuer.name}.csr", data)

    def _list(self, name: str) -> x509.CertificateRevocationList | None:
        path = self.directory / f"{name}.crl.pem"
        if not path.is_file():
            return None
        try:
            found = x509.load_pem_x509_crl(path.read_bytes())
            _ = found.issuer, found.extensions, [entry.extensions for entry in found]  # which are read only now
            return found
        except (ValueError, x509.InvalidVersion, x509.DuplicateExtension):
            cure = "take it from a copy; or take it away, and casemate ca crl signs it anew from the log"
            raise _error("LIST", "can't be read as a revocation list", cure, str(path)) from None

    def _revoked(self, name: str) -> set[int]:
        found = self._list(name)
        return set() if found is None else {entry.serial_number for entry in found}

    def _revoke(self, described: Description, issuer: Issuer, serial: int, reason: str) -> bool:
        if reason not in REASONS:
            raise _error("REASON", f"{reason} is no reason", f"one of {', '.join(REASONS)}")
        if serial in self._revoked(issuer.name):
            return False
        if not issuer.signer or not (self.directory / f"{issuer.name}.crt").is_file():
            raise _error("NAME", f"{issuer.name} signs no list here", "casemate ca list shows who does")
        self._issue_list(described, issuer, (serial, reason))
        return True

    def _issue_list(self, described: Description, issuer: Issuer, new: tuple[int, str] | None = None) -> int:
        """Sign a revocation list with all earlier entries, and perhaps a new one; return its number."""
        above = self._certificate(issuer.name)
        before = self._list(issuer.name)
        if before is not None and (before.issuer != above.subject or not before.is_signature_valid(_key_of(above))):
            raise _error("LIST", f"{issuer.name}.crl.pem was not signed by {issuer.name}", "take it from a copy")
        logged = [entry for entry in self.log() if entry.facts.get("issuer") == issuer.name]
        numbers = [int(entry.facts["number"]) for entry in logged if entry.action == "list"]
        entries = [] if before is None else list(before)
        listed = {entry.serial_number for entry in entries}
        revoked = _taken_back(logged, issuer.name)
        if new is not None and new[0] not in revoked:
            facts: dict[str, Any] = {"issuer": issuer.name, "serial": f"{new[0]:x}", "reason": new[1]}
            revoked[new[0]] = keylog.append(self.directory / LOG, "revoke", facts)
        # What is logged and not listed: the new one, and what an interruption or an older list lost.
        entries += [_entry(serial, one) for serial, one in revoked.items() if serial not in listed]
        number = max([0, *numbers, *([] if before is None else [_number(before)])]) + 1
        with self._signer(issuer).open() as key:
            _require_key(key, above)
            builder = forms.revocation_list(above, number, entries, described.list_days)
            signed = builder.sign(key, signers.algorithm_for(key.public_key()))
        if not signed.is_signature_valid(_key_of(above)):
            raise _error(
                "SIGNATURE", f"the list does not hold under the certificate of {issuer.name}", "the signer is broken"
            )
        fingerprint = signers.fingerprint(_key_of(above))
        data = signed.public_bytes(serialization.Encoding.PEM)
        digest = hashlib.sha256(signed.public_bytes(serialization.Encoding.DER)).hexdigest()
        facts = {"issuer": issuer.name, "key": fingerprint, "number": number, "entries": len(signed), "sha256": digest}
        keylog.append(self.directory / LOG, "list", facts)
        _replace(self.directory / f"{issuer.name}.crl.pem", data)
        return number


# --- forms ------------------------------------------------------------------------------------------------------


def _description(plan: Plan, root: Issuer, intermediates: tuple[Issuer, ...]) -> Description:
    if not re.fullmatch(r"[^\x00-\x1f\x7f\ud800-\udfff]+", plan.name) or len(plan.name.encode()) > LONGEST_NAME:
        raise _error("NAME", f"a name has 1 to {LONGEST_NAME} bytes (UTF-8) that can be printed", "--name")
    if plan.lists_at and not re.fullmatch(r"https?://[\x21-\x7e]{1,200}", plan.lists_at):
        raise _error(
            "URL", "lists are published at an address of the web", "--lists-at http://crl.example.com/casemate"
        )
    if not 1 <= plan.list_days <= 366:
        raise _error("DAYS", "a list is good for 1 to 366 days", "--list-days")
    return Description(plan.name, plan.development, plan.lists_at.rstrip("/"), plan.list_days, root, intermediates)


def _subject(described: Description, issuer: str) -> str:
    return f"{'Development' if described.development else described.name} {issuer.replace('-', ' ')}"


def _ends(end: datetime.datetime, now: datetime.datetime) -> tuple[str, ...]:
    if end <= now:
        return ("expired",)
    return (f"ends in {(end - now).days} days",) if end - now < SOON else ()


def _pem(one: x509.Certificate) -> bytes:
    return one.public_bytes(serialization.Encoding.PEM)


def _der(one: x509.Certificate) -> bytes:
    return one.public_bytes(serialization.Encoding.DER)


def _key_of(one: x509.Certificate) -> PublicKey:
    key = one.public_key()
    if not isinstance(key, PublicKey):
        raise _error("KEYS", "an issuer's key is RSA or on an elliptic curve", "use such a key")
    return key


def _public(one: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    return one.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _asked_for(path: Path) -> bytes:
    try:
        return _public(x509.load_pem_x509_csr(path.read_bytes()))
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        raise _error("REQUEST", "can't be read as a request", "take it from a copy", str(path)) from None


def _usage(one: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return one.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _has_basic(one: x509.Certificate) -> bool:
    return any(isinstance(extension.value, x509.BasicConstraints) for extension in one.extensions)


def _load(data: bytes) -> x509.Certificate:
    if len(data) > max(LARGEST_CERTIFICATE, LARGEST_BUNDLE):
        raise _error("CERTIFICATE", "is too large for a certificate", "is it the right file?")
    try:
        (one,) = certificates_of(data)
        pem = one.startswith(b"-----BEGIN ")
        found = x509.load_pem_x509_certificate(one) if pem else x509.load_der_x509_certificate(one)
        _ = found.subject, found.issuer, found.extensions, found.public_key()  # which are read only now
        return found
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension, UnsupportedAlgorithm):
        raise _error("CERTIFICATE", "not one certificate that can be read", "give one, PEM or DER") from None


def _holds(one: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        one.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _require_holds(made: x509.Certificate, above: x509.Certificate) -> None:
    if not _holds(made, above):
        raise _error(
            "SIGNATURE", "what was signed does not hold under the issuer's certificate", "the signer is broken"
        )


def _require_key(key: Key, above: x509.Certificate) -> None:
    if signers.spki(key.public_key()) != _public(above):
        raise _error(
            "KEYS", "the signer has another key than the issuer's certificate", f"check its URI in {DESCRIPTION}"
        )


def _require_strong(public: PublicKey) -> None:
    curve = isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name == "secp384r1"
    if not curve and not (isinstance(public, rsa.RSAPublicKey) and public.key_size >= 3072):
        raise _error("KEYS", "this key is of another kind", "RSA of 3072 bits and more, or P-384")


def _require_possession(key: Key) -> None:
    """A token's public half is an object of its own, which somebody may have replaced: nothing is certified unseen."""
    public: PublicKey = key.public_key()
    asked = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, signers.algorithm_for(public))
    if not asked.is_signature_valid:
        raise _error("SIGNATURE", "the key's signature does not hold under its public half", "make another key")


def _same_key(one: str, other: str) -> bool:
    return one.partition("?")[0] == other.partition("?")[0]


def _number(crl: x509.CertificateRevocationList) -> int:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _taken_back(entries: Sequence[keylog.Entry], issuer: str) -> dict[int, keylog.Entry]:
    """Return what the log says that an issuer has revoked, by serial numbers."""
    revoked = [one for one in entries if (one.action, one.facts.get("issuer")) == ("revoke", issuer)]
    return {int(str(one.facts["serial"]), 16): one for one in revoked}


def _entry(serial: int, logged: keylog.Entry) -> x509.RevokedCertificate:
    facts = logged.facts
    return forms.revoked(serial, datetime.datetime.fromisoformat(logged.time), str(facts["reason"]))


def _log(directory: Path, action: str, issuer: str, made: x509.Certificate, subject: str, what: str = "") -> None:
    facts = {
        **{"issuer": issuer, "key": hashlib.sha256(_public(made)).hexdigest(), "subject": subject},
        **{"serial": f"{made.serial_number:x}", "until": made.not_valid_after_utc.isoformat(), "for": what},
        "sha256": hashlib.sha256(_der(made)).hexdigest(),
    }
    keylog.append(directory / LOG, action, facts)


@contextlib.contextmanager
def _new_directory(directory: Path) -> Iterator[Path]:
    """Give a new directory that takes its name when it is whole. Raises :class:`AuthorityError`: there is one."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise _error("EXISTS", "there is something already", "name another directory", str(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ca-", dir=directory.parent) as work:
        new = Path(work) / "ca"
        new.mkdir(mode=0o700)
        yield new
        try:
            new.rename(directory)
        except OSError:
            raise _error("EXISTS", "somebody made one meanwhile", "use that one", str(directory)) from None


def _replace(path: Path, data: bytes) -> None:
    """Write a public file, whole and on the disk, or not at all."""
    new = path.with_name(f".{path.name}-{os.urandom(8).hex()}")
    try:
        with new.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
