"""Verifies a certificate against issuers, revocation lists and a time; says for each link what was proved by what.

    chain = verify_chain(attestation_crt, [intermediate_crt, root_crt], [crl], time=now)
    chain.proved, chain.development, [link.subject for link in chain.links]

The rules:

- A chain ends in a self-issued certificate that the caller *gave* as one to trust (``issuers``); the signature of such
  a root over itself says nothing and is not looked at. ``untrusted`` ones may stand between, never at the end. A
  chain that ends earlier is not proved.
- Each link: the issuer's name is the subject above; the signature over the to-be-signed bytes holds under the key above,
  with RSA PKCS#1 v1.5 or ECDSA and SHA-256, -384 or -512; the time is inside of the validity; issuers are authorities
  (basic constraints, path length, key usage); no critical extension that is not understood; no RSA key under 2048 bits.
- A revocation list counts where its issuer's name, key and time hold. A list that was given is used or is an
  error; where none was given for an issuer, the link says ``not checked``.
- **Platform certificate documents** (certificates of Hyper Protect images, and host key documents): their issuer may be
  an end-entity certificate by X.509, and names may differ in the order of their parts. The documented check is: the
  signature, taken out of the document, holds over its to-be-signed body under the issuer's key; the names match part by
  part; validity; revocation list. It is applied to the first certificate only, and only under an issuer that the
  caller gave by itself: anyone with any certificate of the same public root could sign such a document.
- What can be wrong with a chain is collected in the result; only what can't be read at all raises.

Inputs are PEM or DER. Works with ``cryptography`` 38 and later.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casemate.certificates.errors import CertificateError

if TYPE_CHECKING:
    from cryptography import x509

DEVELOPMENT_OID = "1.3.6.1.4.1.55555.3.1"
"""Marks a certificate of a development root of trust (private arc; value: UTF-8 text)."""

LARGEST_CERTIFICATE, LARGEST_BUNDLE, LARGEST_CRL = 64 << 10, 512 << 10, 8 << 20
MOST_CERTIFICATES, MOST_CRLS, DEEPEST = 32, 16, 8
SMALLEST_RSA = 2048

NOT_REVOKED, REVOKED, NOT_CHECKED, ANCHOR = "not revoked", "revoked", "not checked", "trusted: it was given as root"
REGULAR, PLATFORM, GIVEN = "issuer", "platform document", "given"

_ALGORITHMS = {
    **{f"1.2.840.113549.1.1.{arc}": ("RSA", bits) for arc, bits in ((11, 256), (12, 384), (13, 512))},
    **{f"1.2.840.10045.4.3.{arc}": ("EC", bits) for arc, bits in ((2, 256), (3, 384), (4, 512))},
}
_UNDERSTOOD = frozenset(
    # basic constraints, key usage, extended key usage, subject and authority key, names, distribution points, policies
    (
        "2.5.29.19",
        "2.5.29.15",
        "2.5.29.37",
        "2.5.29.14",
        "2.5.29.35",
        "2.5.29.17",
        "2.5.29.31",
        "2.5.29.32",
        DEVELOPMENT_OID,
    )
)
_PEM = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----\s.*?-----END (?:X509 |TRUSTED )?CERTIFICATE-----", re.S
)


@dataclass(frozen=True, slots=True)
class Link:
    """One certificate of a chain, and what is known of it. ``problems`` is empty where all of it holds.

    ``signed_by`` is the subject whose key the signature holds under, ``signing_key`` the SHA-256 of that key
    (SubjectPublicKeyInfo, hex); both empty where there is none. ``how`` is ``issuer``, ``platform document`` or ``given``.
    """

    subject: str
    issuer: str
    serial: str
    fingerprint: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    development: bool
    signed_by: str
    signing_key: str
    how: str
    revocation: str
    problems: tuple[CertificateError, ...]

    @property
    def name(self) -> str:
        """The common name of the subject, or the whole subject where it has none."""
        found = re.search(r"(?:^|[,+])CN=((?:\\.|[^,+\\])+)", self.subject)
        return re.sub(r"\\(.)", r"\1", found[1]) if found else self.subject


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain from the certificate in question (first) to the root (last), as far as it could be built."""

    links: tuple[Link, ...]
    problems: tuple[CertificateError, ...]
    time: datetime.datetime

    @property
    def proved(self) -> bool:
        """Whether everything holds, up to a root that was given."""
        return not self.problems

    @property
    def development(self) -> bool:
        """Whether any certificate of it is one of a development root of trust."""
        return any(link.development for link in self.links)

    @property
    def revocation_checked(self) -> bool:
        """Whether a revocation list of its issuer was there for the first certificate."""
        return self.links[0].revocation in (NOT_REVOKED, REVOKED)

    def as_dict(self) -> dict[str, Any]:
        """The chain as plain values, for JSON (``casemate-chain/1``)."""
        return {
            **{"format": "casemate-chain/1", "proved": self.proved, "development": self.development},
            **{"time": self.time.isoformat(), "problems": [_problem(problem) for problem in self.problems]},
            "links": [
                {
                    **{"subject": link.subject, "issuer": link.issuer, "serial": link.serial},
                    **{"fingerprint": link.fingerprint, "development": link.development},
                    **{"not_before": link.not_before.isoformat(), "not_after": link.not_after.isoformat()},
                    **{"signed_by": link.signed_by, "signing_key": link.signing_key, "how": link.how},
                    **{"revocation": link.revocation, "problems": [_problem(problem) for problem in link.problems]},
                }
                for link in self.links
            ],
        }


@dataclass(frozen=True, slots=True)
class _Certificate:
    """What is needed of a certificate, read at once, so that nothing fails later."""

    subject: x509.Name
    issuer: x509.Name
    serial: int
    der: bytes
    body: bytes
    signature: bytes
    algorithm: str
    key: Any
    key_hash: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    authority: bool
    path_length: int | None
    signs_certificates: bool
    signs_lists: bool
    signs_data: bool
    development: bool
    odd: tuple[str, ...]
    points: frozenset[str]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.der).hexdigest()


@dataclass(frozen=True, slots=True)
class _List:
    """What is needed of a revocation list."""

    issuer: x509.Name
    body: bytes
    signature: bytes
    algorithm: str
    last_update: datetime.datetime
    next_update: datetime.datetime | None
    odd: tuple[str, ...]
    points: frozenset[str] | None
    serials: Any

    def lists(self, serial: int) -> bool:
        try:
            return self.serials.get_revoked_certificate_by_serial_number(serial) is not None
        except Exception:  # its entries are read only now
            raise _error("CRL", "an entry of the revocation list can't be read") from None


def certificates_of(data: bytes) -> list[bytes]:
    """Return the certificates of a PEM file (one or several) or a DER file, each as it stands there.

    Raises :class:`CertificateError`: none, too many, too large.
    """
    if len(data) > LARGEST_BUNDLE:
        raise CertificateError(f"{len(data)} bytes are too many for certificates", f"at most {LARGEST_BUNDLE} bytes")
    found = _PEM.findall(data) if b"-----BEGIN " in data else [data]
    if not found:
        raise CertificateError("there is no certificate in it", "give the text from -----BEGIN CERTIFICATE----- on")
    if len(found) > MOST_CERTIFICATES:
        raise CertificateError(f"{len(found)} certificates in one file", f"at most {MOST_CERTIFICATES}")
    return found


def require_readable(data: bytes) -> None:
    """Return if a file holds certificates that can be read. Raises :class:`CertificateError`."""
    for certificate in certificates_of(data):
        _load(certificate)


def has_development_mark(certificate: bytes) -> bool:
    """Whether a certificate, PEM or DER, belongs to a development root of trust. Raises :class:`CertificateError`."""
    return _load(certificate).development


def verify_chain(
    certificate: bytes,
    issuers: Sequence[bytes],
    crls: Sequence[bytes] = (),
    *,
    time: datetime.datetime,
    untrusted: Sequence[bytes] = (),
) -> Chain:
    """Verify a certificate. ``issuers`` are trusted where they are self-signed; a file may hold several.

    ``time`` has a time zone. Raises :class:`CertificateError` where an input can't be read or is too large; whatever
    does not hold is in the result.
    """
    first, *more = certificates_of(certificate)
    if more:
        raise CertificateError(
            "more than one certificate", "give the one in question alone, its issuers as authorities (--ca)"
        )
    leaf = _load(first)
    given = [_load(one) for bundle in issuers for one in certificates_of(bundle)]
    between = [_load(one) for bundle in untrusted for one in certificates_of(bundle)]
    if len(given) + len(between) > MOST_CERTIFICATES or len(crls) > MOST_CRLS:
        raise CertificateError("too many issuers or revocation lists", f"{MOST_CERTIFICATES} and {MOST_CRLS} at most")
    return _Builder(given, between, [_load_list(crl) for crl in crls], time).build(leaf)


def signer_problems(certificate: bytes) -> list[CertificateError]:
    """Return what keeps a certificate, PEM or DER, from being one that data is signed with, whatever its time and issuer.

    Its key usage, where it has one, is for signatures (digital signature or content commitment); it was itself signed in an
    accepted way, never with SHA-1; no RSA key under 2048 bits; a self-issued one holds under its own key.
    Raises :class:`CertificateError` where it can't be read.
    """
    one = _load(certificate)
    builder = _Builder([one], [], [], one.not_after)
    problems = builder.check(one, 0, platform=False)
    name = _name(one.subject)
    if one.algorithm not in _ALGORITHMS:
        problems.append(_error("ALGORITHM", f"{name}: signed in a way that is not accepted"))
    elif one.subject == one.issuer and not _signed(one, one.key):
        problems.append(_error("SIGNATURE", f"{name}: was not signed with its own key, and names no other issuer"))
    if not one.signs_data:
        problems.append(_error("EXTENSION", f"{name}: its key usage has no digital signature"))
    return problems


def require(chain: Chain) -> None:
    """Raise the first problem of a chain that is not proved."""
    if chain.problems:
        raise chain.problems[0]


class _Builder:
    """Builds one chain and collects what does not hold."""

    def __init__(
        self, given: list[_Certificate], between: list[_Certificate], lists: list[_List], time: datetime.datetime
    ) -> None:
        self._given, self._between, self._lists, self._time = given, between, lists, time
        self._trusted = {certificate.der for certificate in given}
        self._used: set[int] = set()

    def build(self, leaf: _Certificate) -> Chain:
        links: list[Link] = []
        current, how, platform = leaf, REGULAR, False
        while True:
            depth = len(links)
            problems = self.check(current, depth, platform=platform)
            given = current.der in self._trusted
            if current.subject == current.issuer and (given or _signed(current, current.key)):
                if not given:
                    problems.append(_error("ISSUER", f"{_name(current.subject)}: this root is not one that was given"))
                links.append(_link(current, current, GIVEN, ANCHOR, problems))
                break
            issuer, how, problem = self._issuer_of(current, depth, platform)
            if issuer is None or depth + 1 >= DEEPEST:
                problems.append(problem or _error("ISSUER", f"the chain has more than {DEEPEST} links"))
                links.append(_link(current, None, "", NOT_CHECKED, problems))
                break
            revocation, listed = self._revocation(current, issuer, how)
            links.append(_link(current, issuer, how, revocation, [*problems, *listed]))
            current, platform = issuer, platform or how == PLATFORM
        found = [problem for link in links for problem in link.problems]
        for index, crl in enumerate(self._lists):
            if index not in self._used and links[-1].how == GIVEN:
                found.append(_error("CRL", f"the revocation list of {_name(crl.issuer)} belongs to no issuer here"))
        return Chain(tuple(links), tuple(found), self._time)

    def check(self, one: _Certificate, depth: int, platform: bool) -> list[CertificateError]:
        """What can be said of a certificate by itself, at this place in a chain that begins with a platform document or not.

        The issuer of a platform document is the end of the chain by X.509: it is no authority, and doesn't count as one.
        """
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

        name, problems = _name(one.subject), []
        if self._time < one.not_before:
            problems.append(_error("TIME", f"{name}: not valid before {one.not_before:%Y-%m-%d %H:%M} UTC"))
        if self._time > one.not_after:
            problems.append(_error("TIME", f"{name}: expired on {one.not_after:%Y-%m-%d %H:%M} UTC"))
        if isinstance(one.key, RSAPublicKey) and one.key.key_size < SMALLEST_RSA:
            problems.append(_error("ALGORITHM", f"{name}: an RSA key of {one.key.key_size} bits"))
        if one.odd:
            problems.append(_error("EXTENSION", f"{name}: critical extensions not understood: {', '.join(one.odd)}"))
        if depth > platform:
            if not (one.authority and one.signs_certificates):
                problems.append(_error("AUTHORITY", f"{name}: is not a certificate authority"))
            if one.path_length is not None and depth - 1 - platform > one.path_length:
                problems.append(_error("AUTHORITY", f"{name}: more authorities below it than it allows"))
        return problems

    def _issuer_of(
        self, one: _Certificate, depth: int, platform: bool
    ) -> tuple[_Certificate, str, None] | tuple[None, str, CertificateError]:
        """Find who signed a certificate: a regular authority first; for the first certificate, a platform issuer."""
        named = False
        found: list[tuple[bool, _Certificate, str]] = []
        if one.algorithm not in _ALGORITHMS:
            return None, "", _error("ALGORITHM", f"{_name(one.subject)}: signed in a way that is not accepted")
        for candidate in (*self._given, *self._between):
            explicit = candidate.der in self._trusted
            if one.issuer == candidate.subject and (candidate.authority or depth or not explicit):
                how = REGULAR
            elif depth == 0 and explicit and _same_name(one.issuer, candidate.subject):
                how = PLATFORM
            else:
                continue
            named = True
            if candidate.der != one.der and _signed(one, candidate.key):
                sound = not self.check(candidate, depth + 1, platform=platform or how == PLATFORM)
                found.append((not sound, candidate, how))
        if found:
            _, issuer, how = min(found, key=lambda item: (item[0], item[2] == PLATFORM))
            return issuer, how, None
        name = _name(one.issuer)
        if named:
            return None, "", _error("SIGNATURE", f"{_name(one.subject)}: was not signed with the key of {name}")
        return (
            None,
            "",
            _error("ISSUER", f"{_name(one.subject)}: its issuer {name} was not given", "give it too (--ca)"),
        )

    def _revocation(self, one: _Certificate, issuer: _Certificate, how: str) -> tuple[str, list[CertificateError]]:
        problems: list[CertificateError] = []
        result = NOT_CHECKED
        for index, crl in enumerate(self._lists):
            name = _name(crl.issuer)
            if not (_same_name(crl.issuer, issuer.subject) if how == PLATFORM else crl.issuer == issuer.subject):
                continue
            self._used.add(index)
            if not (issuer.signs_lists or how == PLATFORM) or not _signed(crl, issuer.key):
                problems.append(_error("CRL", f"the revocation list of {name} was not signed with that issuer's key"))
            elif self._time < crl.last_update or crl.next_update is None or self._time > crl.next_update:
                problems.append(
                    _error("CRL", f"the revocation list of {name} is not valid at this time", "get a new one")
                )
            elif crl.odd or (crl.points is not None and not crl.points & one.points):
                problems.append(_error("CRL", f"the revocation list of {name} does not cover this certificate"))
            elif crl.lists(one.serial):
                problems.append(
                    _error("REVOKED", f"{_name(one.subject)}: revoked by {name}", "don't trust it any more")
                )
                return REVOKED, problems
            else:
                result = NOT_REVOKED
        return (NOT_CHECKED if problems else result), problems


def _link(
    one: _Certificate, issuer: _Certificate | None, how: str, revocation: str, problems: list[CertificateError]
) -> Link:
    return Link(
        subject=_name(one.subject),
        issuer=_name(one.issuer),
        serial=f"{one.serial:x}",
        fingerprint=one.fingerprint,
        not_before=one.not_before,
        not_after=one.not_after,
        development=one.development,
        signed_by=_name(issuer.subject) if issuer else "",
        signing_key=issuer.key_hash if issuer else "",
        how=how,
        revocation=revocation,
        problems=tuple(problems),
    )


def _problem(problem: CertificateError) -> dict[str, str]:
    return {"id": problem.id, "cause": problem.cause, "cure": problem.cure}


def _error(kind: str, cause: str, cure: str = "") -> CertificateError:
    return CertificateError(cause, cure, id=f"CERTIFICATE-{kind}")


def _name(name: x509.Name) -> str:
    """A name for people: its parts in the order of RFC 4514, nothing in it that a terminal would obey."""
    text = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name.rfc4514_string()
    )
    return text if len(text) <= 300 else text[:299] + "…"


def _same_name(one: x509.Name, other: x509.Name) -> bool:
    """Whether two names have the same parts, in whatever order.

    The host-key signing keys of IBM moved from Poughkeepsie to Armonk, the names in documents and lists at other times.
    """

    def parts(name: x509.Name) -> list[tuple[str, str]]:
        found = sorted((part.oid.dotted_string, str(part.value)) for part in name)
        if ("2.5.4.10", "International Business Machines Corporation") in found:
            found = [("2.5.4.7", "Poughkeepsie") if part == ("2.5.4.7", "Armonk") else part for part in found]
        return sorted(found)

    return parts(one) == parts(other)


def _signed(signed: _Certificate | _List, key: Any) -> bool:
    """Whether a signature holds over its to-be-signed bytes under a key."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    kind, bits = _ALGORITHMS.get(signed.algorithm, ("", 0))
    if not kind:
        return False
    digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 512: hashes.SHA512()}[bits]
    try:
        if kind == "RSA" and isinstance(key, RSAPublicKey):
            key.verify(signed.signature, signed.body, PKCS1v15(), digest)
        elif kind == "EC" and isinstance(key, EllipticCurvePublicKey):
            key.verify(signed.signature, signed.body, ECDSA(digest))
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def moment_of(thing: Any, name: str) -> Any:
    """A time of a certificate or list, with its zone, or ``None``; ``cryptography`` has it under two names."""
    if hasattr(type(thing), f"{name}_utc"):
        return getattr(thing, f"{name}_utc")
    moment = getattr(thing, name)
    return None if moment is None else moment.replace(tzinfo=datetime.UTC)


def _load(data: bytes) -> _Certificate:
    import warnings

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if len(data) > LARGEST_CERTIFICATE:
        raise CertificateError(f"{len(data)} bytes are too many for a certificate")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pem = b"-----BEGIN " in data
            certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
            extensions = {extension.oid.dotted_string: extension for extension in certificate.extensions}
            basic: Any = extensions["2.5.29.19"].value if "2.5.29.19" in extensions else None
            usage: Any = extensions["2.5.29.15"].value if "2.5.29.15" in extensions else None
            points: Any = extensions["2.5.29.31"].value if "2.5.29.31" in extensions else ()
            key = certificate.public_key()
            spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return _Certificate(
                subject=certificate.subject,
                issuer=certificate.issuer,
                serial=certificate.serial_number,
                der=certificate.public_bytes(Encoding.DER),
                body=certificate.tbs_certificate_bytes,
                signature=certificate.signature,
                algorithm=certificate.signature_algorithm_oid.dotted_string,
                key=key,
                key_hash=hashlib.sha256(spki).hexdigest(),
                not_before=moment_of(certificate, "not_valid_before"),
                not_after=moment_of(certificate, "not_valid_after"),
                authority=basic is not None and basic.ca,
                path_length=basic.path_length if basic is not None else None,
                signs_certificates=usage is None or usage.key_cert_sign,
                signs_lists=usage is None or usage.crl_sign,
                signs_data=usage is None or usage.digital_signature or usage.content_commitment,
                development=DEVELOPMENT_OID in extensions,
                odd=tuple(
                    oid for oid, extension in extensions.items() if extension.critical and oid not in _UNDERSTOOD
                ),
                points=frozenset(str(name.value) for point in points for name in point.full_name or ()),
            )
    except Exception:  # whatever hostile bytes bring a parser to
        raise CertificateError(
            "can't be read as a certificate", "is it whole, and a certificate in PEM or DER form?"
        ) from None


def _load_list(data: bytes) -> _List:
    from cryptography import x509

    if len(data) > LARGEST_CRL:
        raise CertificateError(f"{len(data)} bytes are too many for a revocation list", id="CERTIFICATE-CRL")
    try:
        crl = x509.load_pem_x509_crl(data) if b"-----BEGIN " in data else x509.load_der_x509_crl(data)
        extensions = {extension.oid.dotted_string: extension for extension in crl.extensions}
        scope: Any = extensions["2.5.29.28"].value if "2.5.29.28" in extensions else None
        odd = [oid for oid, one in extensions.items() if one.critical and oid not in ("2.5.29.28", "2.5.29.35")]
        if scope is not None and (
            scope.only_contains_ca_certs
            or scope.only_contains_user_certs
            or scope.only_contains_attribute_certs
            or scope.indirect_crl
            or scope.only_some_reasons
            or not scope.full_name
        ):
            odd.append("2.5.29.28")
        return _List(
            issuer=crl.issuer,
            body=crl.tbs_certlist_bytes,
            signature=crl.signature,
            algorithm=crl.signature_algorithm_oid.dotted_string,
            last_update=moment_of(crl, "last_update"),
            next_update=moment_of(crl, "next_update"),
            odd=tuple(odd),
            points=None if scope is None else frozenset(str(name.value) for name in scope.full_name or ()),
            serials=crl,
        )
    except Exception:  # whatever hostile bytes bring a parser to
        raise CertificateError(
            "can't be read as a revocation list", "is it whole, and in PEM or DER form?", id="CERTIFICATE-CRL"
        ) from None
