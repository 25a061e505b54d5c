"""The bootstrap ceremony: plan, statements, transcript, and every rule of it. Pure: the machine and the auditor use the same.

    plan = parse_plan(data)
    session = open_session(answer, plan)                     # what speaks says it is the BootstrapVM of this plan
    measured(plan, session, evidence)                        # and it is: an ultravisor says so, or it is refused
    ceremony = Ceremony.replay(plan, session, transcript)    # each line by the rules that the machine went by
    ceremony.check(statement, content, now)                  # may this persona do this now? raises CeremonyError
    report = verify(plan, answer, transcript, evidence=evidence)

**The plan** (``casemate-ceremony/1``) names people, their public keys, one role for each, how many of a role must act, the
window, the root's certificate, and by hash all that the BuildVM is made of. It is baked into the BootstrapVM's image, so the
record has it.

**The session**: keys that the BootstrapVM makes at its start, one that signs (P-384) and one that secrets are sealed for
(X25519), in a document with plan and record. The image has no key and no secret: everybody packs it of the plan, with the
same bytes (:func:`image_seed`). That this image runs, on a host of the plan, and has made this session, its ultravisor tells to
each who asks (:func:`ask`, :func:`measured`).

**A statement** is what a persona signs: ceremony, session, name, role, action, SHA-256 of the content, the line of the transcript
that they saw last, where their key is, and SHA-256 of the image's header and of the ultravisor's answer that they have
verified. So it counts in this ceremony, for this part, once, and nowhere else.

**The transcript** has a line for each step, with the hash of the line before, sealed by the session's key. A line of a
persona has their statement. Contributed secrets are not in it: only SHA-256 over a salt and the secret, and neither.

============  ==============  ======================================================================================
action        by              when
============  ==============  ======================================================================================
open          the machine     first
approve       reviewers       before anything else; each names the key that will approve builds, another than the one here
hosts         hosts           when enough have approved; all of them give the same hosts
contribute    custodians      when enough have approved; sealed for the session, so that nobody else can read it
request       the machine     when all three have enough: makes the intermediate key inside, asks for its certificate
certify       root            answers the request, with the key of the root
built         the machine     made the BuildVM's image; SHA-256 of each file of it
witness       auditor         signs the head, having compared the files
end           the machine     last: ``complete``, or ``expired`` where the window ended before
============  ==============  ======================================================================================

All documents are JSON in one form (sorted keys, no spaces, ASCII); signatures are over DSSE's pre-authentication encoding, each
kind
with a payload type of its own.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casemate import strictjson
from casemate.approval import pae
from casemate.build.job import Part
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

FORMAT, SESSION_FORMAT = "casemate-ceremony/2", "casemate-ceremony-session/2"
STATEMENT_FORMAT = "casemate-ceremony-statement/2"
_USER_DATA = b"casemate-ceremony-session/2\0"
STATEMENT_TYPE = "application/vnd.casemate.ceremony-statement+json"
LINE_TYPE = "application/vnd.casemate.ceremony-line+json"
NEXT_KEY_TYPE = "application/vnd.casemate.ceremony-next-key+json"

LARGEST_PLAN, LARGEST_CONTENT, LARGEST_LINE, MOST_LINES = 256 << 10, 256 << 10, 1 << 20, 256
LARGEST_ANSWER, LARGEST_TRANSCRIPT = 256 << 10, 32 << 20
LONGEST_MINUTES, MOST_PERSONAS, MOST_HOSTS = 24 * 60, 64, 16
START = "0" * 64
REVIEWERS, HOSTS, CUSTODIANS, ROOT, AUDITOR = "reviewers", "hosts", "custodians", "root", "auditor"
ACTIONS = {REVIEWERS: "approve", HOSTS: "hosts", CUSTODIANS: "contribute", ROOT: "certify", AUDITOR: "witness"}
"""What each role does: one thing."""
LEAST = {REVIEWERS: 2, HOSTS: 1, CUSTODIANS: 2, ROOT: 1, AUDITOR: 1}
MACHINE = ("open", "request", "built", "end")
ROLE_OF = {action: role for role, action in ACTIONS.items()}
COMPLETE, EXPIRED = "complete", "expired"
TOKEN, FILE = "token", "file"
PARTS = ("kernel", "initrd", "sbom.spdx.json", "packages.txt")
SHARE, SALT = (16, 1024), 32
_NAME, _HEX = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}"), re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class CeremonyError(CasemateError):
    """Not what the plan says; identifiers are ``CEREMONY-`` and what it is about: ``PLAN``, ``SESSION``, ``ROLE``, ``TIME`` …."""

    id = "CEREMONY"


def _error(kind: str, cause: str, cure: str = "") -> CeremonyError:
    return CeremonyError(cause, cure, id=f"CEREMONY-{kind}")


# --- the plan ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Role:
    """Who may act in a role, and how many must."""

    members: tuple[str, ...]
    quorum: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan. ``nonce`` makes each ceremony another (32 hex digits); times are UTC, whole seconds.

    ``minutes``: how long the machine is open at most, within the window. ``personas``: public keys (PEM) by name.
    ``hosts``: host key documents (PEM) by name, of the machines that may run the BootstrapVM.
    ``revision``, ``source``: what reviewers have read, SHA-256 over our source. ``root``
    and ``parts``: the root archive and the files that the BuildVM is made of; ``values``: what a record of both machines says.
    """

    name: str
    organization: str
    builder: str
    nonce: str
    development: bool
    not_before: datetime.datetime
    not_after: datetime.datetime
    minutes: int
    personas: dict[str, str]
    roles: dict[str, Role]
    hosts: dict[str, str]
    root_certificate: str
    revision: str
    source: str
    arch: str
    release: str
    root: Part
    parts: dict[str, Part]
    values: dict[str, str]
    selection: dict[str, Any] = field(default_factory=dict)

    def as_bytes(self) -> bytes:
        """The file. Raises :class:`CeremonyError` where it would not read back."""
        document = {
            **{"format": FORMAT, "name": self.name, "organization": self.organization, "builder": self.builder},
            **{"nonce": self.nonce, "development": self.development, "minutes": self.minutes},
            **{"not_before": text_of(self.not_before), "not_after": text_of(self.not_after)},
            **{"personas": self.personas, "hosts": self.hosts, "root_certificate": self.root_certificate},
            "roles": {name: {"members": list(one.members), "quorum": one.quorum} for name, one in self.roles.items()},
            **{"revision": self.revision, "source": self.source, "arch": self.arch, "release": self.release},
            "root": {"sha256": self.root.sha256, "size": self.root.size},
            "parts": {name: {"sha256": one.sha256, "size": one.size} for name, one in self.parts.items()},
            **{"values": self.values, "selection": self.selection},
        }
        data = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n"
        if parse_plan(data) != self:
            raise _error("PLAN", "a value can't stand in a plan", "correct it")
        return data

    @property
    def digest(self) -> str:
        """SHA-256 of the file, hex: the name of the ceremony in all that is signed."""
        return hashlib.sha256(self.as_bytes()).hexdigest()

    def role_of(self, persona: str) -> str:
        """Return the role of a persona. Raises :class:`CeremonyError`."""
        for name, role in self.roles.items():
            if persona in role.members:
                return name
        raise _error("PERSONA", "nobody of this name has a part in the ceremony", "give a name of the plan")


def parse_plan(data: bytes) -> Plan:
    """Read a plan. Raises :class:`CeremonyError`: of another form; a key under two names; a person with two roles; too few."""
    document = _object(data, LARGEST_PLAN, "PLAN", "plan")
    names = set(Plan.__slots__) | {"format"}
    if document.get("format") != FORMAT or set(document) != names:
        raise _error("PLAN", f"it is none of the form {FORMAT}", "casemate ceremony plan writes one")
    texts = ("name", "organization", "builder", "nonce", "root_certificate", "revision", "source", "arch", "release")
    if not all(isinstance(document[name], str) and 0 < len(document[name]) <= 64 << 10 for name in texts):
        raise _error("PLAN", "a text is missing, or too long", "casemate ceremony plan writes one")
    sound = (
        all(_NAME.fullmatch(document[name]) for name in ("name", "builder"))
        and len(document["organization"]) <= 64
        and re.fullmatch("[0-9a-f]{32}", document["nonce"])
        and document["arch"] in ("amd64", "s390x")
        and _HEX.fullmatch(document["source"])
        and all(_WORD.fullmatch(document[name]) for name in ("revision", "release"))
        and type(document["development"]) is bool
        and type(document["minutes"]) is int
        and 1 <= document["minutes"] <= LONGEST_MINUTES
        and isinstance(document["selection"], dict)
    )
    values, parts = document["values"], document["parts"]
    sound = sound and isinstance(values, dict) and 1 <= len(values) <= 16
    sound = sound and all(isinstance(one, str) and _HEX.fullmatch(one) for one in values.values())
    sound = sound and isinstance(parts, dict) and set(parts) == set(PARTS)
    if not sound:
        raise _error("PLAN", "a value in it can't be", "casemate ceremony plan writes one")
    begins, ends = time_of(document["not_before"]), time_of(document["not_after"])
    if not begins < ends:
        raise _error("PLAN", "the window ends before it begins", "correct the window")
    personas, roles = _personas(document["personas"]), _roles(document["roles"])
    acting = [name for role in roles.values() for name in role.members]
    if len(set(acting)) != len(acting):
        raise _error("PLAN", "somebody has two roles, or stands twice in one", "one role for each person")
    if set(acting) != set(personas):
        raise _error("PLAN", "somebody has a role and no key, or a key and no role", "name each person in both places")
    return Plan(
        **{name: document[name] for name in texts},
        development=document["development"],
        not_before=begins,
        not_after=ends,
        minutes=document["minutes"],
        personas=personas,
        roles=roles,
        hosts=_plan_hosts(document["hosts"]),
        root=_part(document["root"]),
        parts={name: _part(one) for name, one in parts.items()},
        values=dict(values),
        selection=document["selection"],
    )


def _personas(said: object) -> dict[str, str]:
    if not isinstance(said, dict) or not 1 <= len(said) <= MOST_PERSONAS:
        raise _error("PLAN", f"there are up to {MOST_PERSONAS} personas", "name them")
    owners: dict[bytes, str] = {}
    for name, pem in said.items():
        if not _NAME.fullmatch(name):
            raise _error("PLAN", "a name has small letters, digits, dot, dash, underscore, 40 at most", "correct it")
        identity = spki(public_key(pem, "PLAN", f"the key of {name}"))
        if identity in owners:
            raise _error("PLAN", f"{owners[identity]} and {name} have the same key", "one name for each person")
        owners[identity] = name
    return dict(said)


def _roles(said: object) -> dict[str, Role]:
    if not isinstance(said, dict) or set(said) != set(ACTIONS):
        raise _error("PLAN", f"the roles are {', '.join(ACTIONS)}", "name who has each")
    roles: dict[str, Role] = {}
    for name, one in said.items():
        members = one.get("members") if isinstance(one, dict) and set(one) == {"members", "quorum"} else None
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise _error("PLAN", f"the role {name} has members and a quorum", "correct it")
        quorum = one["quorum"]
        if type(quorum) is not int or not LEAST[name] <= quorum <= len(members) or (name == ROOT and quorum != 1):
            cure = (
                "one person answers the request"
                if name == ROOT
                else f"at least {LEAST[name]}, and no more than there are"
            )
            raise _error("PLAN", f"so many of the role {name} can't be asked for", cure)
        roles[name] = Role(tuple(members), quorum)
    return roles


def _plan_hosts(said: object) -> dict[str, str]:
    if not isinstance(said, dict) or not 1 <= len(said) <= MOST_HOSTS:
        raise _error("PLAN", f"1 to {MOST_HOSTS} hosts may run the BootstrapVM", "give their host key documents")
    for name, document in said.items():
        _host(name, document, "PLAN")
    return dict(said)


def _host(name: object, document: object, kind: str) -> None:
    from casemate.secureexec import hostkey

    if not isinstance(name, str) or not _WORD.fullmatch(name) or not isinstance(document, str):
        raise _error(kind, "a host has a name and a document", "give the host key document")
    try:
        hostkey.load(document.encode(), check_validity=False)
    except CasemateError as error:
        raise _error(kind, f"{name}: {error.cause}", "give the host key document") from None


def _part(said: object) -> Part:
    if not isinstance(said, dict) or set(said) != {"sha256", "size"}:
        raise _error("PLAN", "a part has a SHA-256 and a size", "casemate ceremony plan writes one")
    if not isinstance(said["sha256"], str) or not _HEX.fullmatch(said["sha256"]):
        raise _error("PLAN", "the hash of a part is none", "casemate ceremony plan writes one")
    if type(said["size"]) is not int or not 0 < said["size"] <= 4 << 30:
        raise _error("PLAN", "the size of a part can't be", "casemate ceremony plan writes one")
    return Part(said["sha256"], said["size"])


# --- the session ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    """What a BootstrapVM says it is; that it is one, only its ultravisor shows (:func:`measured`).

    ``digest``: of the session's document, hex; ``signing`` is a key, ``sealing`` 32 bytes; ``user_data``: what the ultravisor
    has to measure.
    """

    digest: str
    signing: Any
    sealing: bytes
    record: bytes
    development: bool
    user_data: bytes


def make_session(plan: Plan, record: bytes, signing: EllipticCurvePrivateKey, sealing: X25519PrivateKey) -> bytes:
    """Return what the BootstrapVM answers to who asks what it is: its record, and the session; JSON."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    payload = canonical(
        {
            **{"format": SESSION_FORMAT, "ceremony": plan.digest, "record": hashlib.sha256(record).hexdigest()},
            "signing": _b64(spki(signing.public_key())),
            "sealing": _b64(sealing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),
        }
    )
    return canonical({"record": _b64(record), "session": _b64(payload)})


def open_session(answer: bytes, plan: Plan) -> Session:
    """Return the session of a machine that says it is the BootstrapVM of this plan. Raises :class:`CeremonyError`."""
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    from casemate.attestation import record as records

    document = _object(answer, LARGEST_ANSWER, "SESSION", "answer")
    if set(document) != {"record", "session"}:
        raise _error("SESSION", "this is no answer of a BootstrapVM", "is it the right address?")
    said = {name: _unb64(one, "SESSION") for name, one in document.items()}
    try:
        record = records.parse(said["record"])
    except CasemateError as error:
        raise _error("SESSION", f"the machine's record is none: {error.cause}", "is it the right address?") from None
    wanted = {**plan.values, "baked:plan.json": plan.digest}
    for name, value in wanted.items():
        if record.hashes.get(name) != value:
            what = "another plan" if name == "baked:plan.json" else "another image"
            raise _error(
                "SESSION", f"the machine runs {what}: its record says something else of {name}", "start the right one"
            )
    session = _object(said["session"], LARGEST_ANSWER, "SESSION", "session")
    expected = {
        **{"format": SESSION_FORMAT, "ceremony": plan.digest},
        "record": hashlib.sha256(said["record"]).hexdigest(),
    }
    if set(session) != {*expected, "signing", "sealing"} or any(session[name] != one for name, one in expected.items()):
        raise _error("SESSION", "the session is of another record, plan or machine", "this is not the BootstrapVM")
    signing, sealing = (_unb64(session[name], "SESSION") for name in ("signing", "sealing"))
    try:
        loaded = load_der_public_key(signing)
    except ValueError:
        loaded = None
    if getattr(getattr(loaded, "curve", None), "name", "") != "secp384r1" or len(sealing) != 32:
        raise _error("SESSION", "the session's keys are none", "this is not the BootstrapVM")
    marked = "DEVELOPMENT" in record.facts.get(records.TEE, "").upper()
    if marked and not plan.development:
        raise _error("SESSION", "a development machine holds no real ceremony", "start it on a host of the plan")
    digest, user_data = (
        hashlib.sha256(said["session"]).hexdigest(),
        _USER_DATA + hashlib.sha512(said["session"]).digest(),
    )
    return Session(digest, loaded, sealing, said["record"], marked, user_data)


# --- what the ultravisor says -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evidence:
    """That an ultravisor has measured the machine together with its session.

    ``header``: of the BootstrapVM's image, as who asked has packed it; ``answer``: the file of the attestation
    (:mod:`casemate.secureexec.attestation`); ``key``: the protection key of the request, 32 bytes. Who has the key can make
    answers of his own: so it proves something to who asked, and to others as far as they believe who asked, and signed
    ``names``.
    """

    header: bytes
    answer: bytes
    key: bytes = field(repr=False)

    @property
    def names(self) -> tuple[str, str]:
        """SHA-256 of header and answer, hex: what a statement says."""
        return hashlib.sha256(self.header).hexdigest(), hashlib.sha256(self.answer).hexdigest()


def image_seed(plan: Plan) -> bytes:
    """Return what the BootstrapVM's image is packed with: it has no secret, and everybody packs the same bytes of a plan."""
    return hashlib.sha512(f"casemate-ceremony image {plan.digest}".encode()).digest()


def host_keys(plan: Plan) -> list[Any]:
    """Return the keys of the hosts that may run the BootstrapVM."""
    from casemate.secureexec import hostkey

    return [hostkey.load(document.encode(), check_validity=False) for document in plan.hosts.values()]


def ask(plan: Plan) -> tuple[bytes, bytes]:
    """Return a request for the ultravisor of the BootstrapVM, as a file, and its protection key."""
    from casemate.secureexec import attestation

    flags = attestation.IMAGE_HOST_KEY | attestation.ATTESTATION_HOST_KEY
    request, key = attestation.create(host_keys(plan), flags)
    return attestation.pack_request(request), key


def measured(plan: Plan, session: Session, evidence: Evidence) -> str:
    """Return the host (its name in the plan) whose ultravisor has measured the plan's image, and this session in it.

    Raises :class:`CeremonyError` (``CEREMONY-MEASUREMENT``).
    """
    from casemate.secureexec import attestation, header

    try:
        image = header.parse(evidence.header)
        found = attestation.verify(attestation.unpack(evidence.answer), evidence.key, image)
    except CasemateError as error:
        raise _error("MEASUREMENT", error.cause, "this is not the BootstrapVM, or not of your plan") from None
    if found.user_data != session.user_data:
        raise _error("MEASUREMENT", "the ultravisor has measured another session", "this is not the BootstrapVM")
    for name, key in zip(plan.hosts, host_keys(plan), strict=True):
        if found.image_host_key == found.attestation_host_key == key.fingerprint:
            return name
    raise _error("MEASUREMENT", "the machine runs on a host that the plan does not name", "start it where it may run")


# --- statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement:
    """What a persona has signed. ``custody`` is where they say that their key is: ``token`` or ``file``.

    ``header``, ``measurement``: what they have verified of the machine (:attr:`Evidence.names`).
    """

    persona: str
    role: str
    action: str
    content: str
    seen: str
    custody: str
    header: str
    measurement: str


def statement(
    plan: Plan, session: Session, persona: str, content: bytes, seen: str, custody: str, names: tuple[str, str]
) -> bytes:
    """Return what a persona signs. Raises :class:`CeremonyError` where the plan has no such persona."""
    role = plan.role_of(persona)
    return canonical(
        {
            **{"format": STATEMENT_FORMAT, "ceremony": plan.digest, "session": session.digest, "persona": persona},
            **{"role": role, "action": ACTIONS[role], "content": hashlib.sha256(content).hexdigest()},
            **{"seen": seen, "custody": custody, "header": names[0], "measurement": names[1]},
        }
    )


def sign(private: Any, payload_type: str, payload: bytes) -> bytes:
    """Sign a document with a key of ``cryptography``: ECDSA with SHA-384, or RSA PKCS#1 v1.5 with SHA-512."""
    from cryptography.hazmat.primitives.asymmetric import ec, padding
    from cryptography.hazmat.primitives.hashes import SHA384, SHA512

    data = pae(payload_type, payload)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return private.sign(data, ec.ECDSA(SHA384()))
    return bytes(private.sign(data, padding.PKCS1v15(), SHA512()))


def holds(key: Any, signature: bytes, payload_type: str, payload: bytes) -> bool:
    """Whether a signature that :func:`sign` makes holds."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, padding
    from cryptography.hazmat.primitives.hashes import SHA384, SHA512

    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, pae(payload_type, payload), ec.ECDSA(SHA384()))
        else:
            key.verify(signature, pae(payload_type, payload), padding.PKCS1v15(), SHA512())
    except (InvalidSignature, ValueError):
        return False
    return True


def entry(payload: bytes, signature: bytes, by: str, content: bytes, sealed: bytes = b"") -> bytes:
    """Return what a client sends: statement, signature, content, and a sealed secret."""
    parts = {"statement": payload, "signature": signature, "content": content, "sealed": sealed}
    return canonical({"by": by, **{name: _b64(one) for name, one in parts.items()}})


def parse_entry(data: bytes) -> tuple[bytes, bytes, str, bytes, bytes]:
    """Return statement, signature, name, content, sealed secret; nothing of it is verified. Raises :class:`CeremonyError`."""
    document = _object(data, 2 * LARGEST_CONTENT, "STATEMENT", "entry")
    if set(document) != {"by", "statement", "signature", "content", "sealed"} or not isinstance(document["by"], str):
        raise _error("STATEMENT", "this is no entry", "casemate ceremony join makes one")
    parts = [_unb64(document[name], "STATEMENT") for name in ("statement", "signature", "content", "sealed")]
    return parts[0], parts[1], document["by"], parts[2], parts[3]


# --- contributed secrets ----------------------------------------------------------------------------------------


def commitment(salt: bytes, share: bytes) -> bytes:
    """Return the content of a contribution: SHA-256 over salt (32 bytes) and share, and neither of them."""
    return canonical({"commitment": hashlib.sha256(salt + share).hexdigest()})


def seal_share(session: Session, persona: str, salt: bytes, share: bytes) -> bytes:
    """Seal a share for the session, so that it opens there for this persona only: ephemeral X25519 key (32), AES-256-GCM."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    ephemeral = X25519PrivateKey.generate()
    public = ephemeral.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(session.sealing))
    bound = f"{session.digest} {persona}".encode()
    return bytes(public + _cipher(shared, public + session.sealing).encrypt(bytes(12), salt + share, bound))


def open_share(private: X25519PrivateKey, session: Session, persona: str, sealed: bytes, content: bytes) -> bytes:
    """Return salt and share of a contribution. Raises :class:`CeremonyError`: not for here, or not what was committed to."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(sealed[:32]))
        bound = f"{session.digest} {persona}".encode()
        opened: bytes = _cipher(shared, sealed[:32] + session.sealing).decrypt(bytes(12), sealed[32:], bound)
    except (InvalidTag, ValueError):
        raise _error(
            "CONTENT", "the contribution does not open here", "seal it for this session, under your name"
        ) from None
    if not SALT + SHARE[0] <= len(opened) <= SALT + SHARE[1] or commitment(opened[:SALT], opened[SALT:]) != content:
        raise _error(
            "CONTENT", "the contribution is not what was committed to", "send it as casemate ceremony join does"
        )
    return opened


def _cipher(shared: bytes, public: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), 32, hashlib.sha256(public).digest(), b"casemate-ceremony share").derive(shared))


def next_key(session: Session, persona: str, private: Any, custody: str) -> bytes:
    """Return the content of an approval: the key that the reviewer will approve builds with, with its signature."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    proof = sign(private, NEXT_KEY_TYPE, f"{session.digest} {persona}".encode())
    return canonical({"key": pem, "proof": _b64(proof), "custody": custody})


# --- the transcript ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A line: number, time, action; for a persona's the statement with its signature and the content; what else it says.

    ``digest`` is the SHA-256 of the line without its newline, hex.
    """

    n: int
    time: str
    previous: str
    action: str
    by: str
    statement: bytes
    signature: bytes
    content: bytes
    facts: dict[str, Any]
    seal: bytes = b""

    def unsealed(self) -> bytes:
        """What the session's key signs."""
        return canonical(self._document())

    def as_bytes(self) -> bytes:
        """The line."""
        return canonical({**self._document(), "seal": _b64(self.seal)})

    @property
    def digest(self) -> str:
        """What the next line names."""
        return hashlib.sha256(self.as_bytes()).hexdigest()

    def _document(self) -> dict[str, Any]:
        return {
            **{"n": self.n, "time": self.time, "previous": self.previous, "action": self.action, "by": self.by},
            **{"statement": _b64(self.statement), "signature": _b64(self.signature), "content": _b64(self.content)},
            "facts": self.facts,
        }


def parse_line(data: bytes) -> Line:
    """Read a line; that it belongs to others is seen by :meth:`Ceremony.replay`. Raises :class:`CeremonyError`."""
    document = _object(data, LARGEST_LINE, "TRANSCRIPT", "line")
    keys = {"n", "time", "previous", "action", "by", "statement", "signature", "content", "facts", "seal"}
    if (
        set(document) != keys
        or type(document["n"]) is not int
        or not all(isinstance(document[name], str) for name in keys - {"n", "facts"})
        or not isinstance(document["facts"], dict)
        or not _TIME.fullmatch(document["time"])
    ):
        raise _error("TRANSCRIPT", "a line is none of a ceremony", "take the transcript from another copy")
    texts: dict[str, Any] = {name: document[name] for name in ("time", "previous", "action", "by")}
    parts: dict[str, Any] = {
        name: _unb64(document[name], "TRANSCRIPT") for name in ("statement", "signature", "content", "seal")
    }
    line = Line(n=document["n"], facts=document["facts"], **texts, **parts)
    if line.as_bytes() != data:
        raise _error("TRANSCRIPT", "a line is written in another form", "take the transcript from another copy")
    return line


@dataclass(frozen=True, slots=True)
class Missing:
    """What a role has still to do: how many more, who could, and whether it is their turn."""

    role: str
    count: int
    names: tuple[str, ...]
    now: bool


@dataclass(frozen=True, slots=True)
class Ceremony:
    """A ceremony so far."""

    plan: Plan
    session: Session
    lines: tuple[Line, ...] = ()

    @classmethod
    def replay(cls, plan: Plan, session: Session, transcript: bytes) -> Ceremony:
        """Read a transcript line by line, by the rules that the machine went by. Raises :class:`CeremonyError`."""
        if len(transcript) > LARGEST_TRANSCRIPT:
            raise _error("TRANSCRIPT", "it is too large for a transcript", "is it the right file?")
        *rows, torn = transcript.split(b"\n")
        if torn or not rows or len(rows) > MOST_LINES:
            raise _error("TRANSCRIPT", "its last line is not whole, or it has none", "take it from another copy")
        found = cls(plan, session)
        for row in rows:
            found = found.follow(parse_line(row))
        return found

    def as_bytes(self) -> bytes:
        """The transcript."""
        return b"".join(line.as_bytes() + b"\n" for line in self.lines)

    @property
    def head(self) -> str:
        """The digest of the last line."""
        return self.lines[-1].digest if self.lines else START

    @property
    def ended(self) -> bool:
        """Whether the last line is there."""
        return bool(self.lines) and self.lines[-1].action == "end"

    def of(self, action: str) -> list[Line]:
        """Return the lines of an action."""
        return [line for line in self.lines if line.action == action]

    def enough(self, role: str) -> bool:
        """Whether so many have acted in a role as must."""
        return len(self.of(ACTIONS[role])) >= self.plan.roles[role].quorum

    def missing(self) -> list[Missing]:
        """Return what roles have still to do, in the order of the ceremony."""
        found = []
        for role in ACTIONS:
            done = {line.by for line in self.of(ACTIONS[role])}
            count = self.plan.roles[role].quorum - len(done)
            if count > 0:
                names = tuple(name for name in self.plan.roles[role].members if name not in done)
                found.append(Missing(role, count, names, not self._too_early(role)))
        return found

    @property
    def due(self) -> str:
        """Return what the machine has to do now: ``open``, ``request``, ``built``, ``end``; empty where people have."""
        done = {line.action for line in self.lines}
        if "open" not in done:
            return "open"
        if "request" not in done:
            return "request" if all(map(self.enough, (REVIEWERS, HOSTS, CUSTODIANS))) else ""
        if "built" not in done:
            return "built" if self.enough(ROOT) else ""
        return "end" if self.enough(AUDITOR) and not self.ended else ""

    def _too_early(self, role: str) -> str:
        """Return what must be before a role's part; empty where nothing is in its way."""
        done = {line.action for line in self.lines}
        if "open" not in done or self.ended:
            return "the ceremony is not open"
        if role in (HOSTS, CUSTODIANS) and not self.enough(REVIEWERS):
            return "the reviewers have not approved yet"
        if role == ROOT and "request" not in done:
            return "there is no request yet"
        if role == AUDITOR and "built" not in done:
            return "the BuildVM is not built yet"
        return ""

    def check(self, payload: bytes, signature: bytes, by: str, content: bytes, now: datetime.datetime) -> Statement:
        """Return a persona's statement that counts now. Raises :class:`CeremonyError`; the signature first, then the rest."""
        pem = self.plan.personas.get(by)
        if pem is None:
            raise _error("PERSONA", "nobody of this name has a part in the ceremony", "give a name of the plan")
        if not holds(public_key(pem, "PLAN", by), signature, STATEMENT_TYPE, payload):
            raise _error(
                "PERSONA", "it is not signed with the key that the plan has for this name", "sign with your own key"
            )
        document = _object(payload, 4096, "STATEMENT", "statement")
        keys = {"format", "ceremony", "session", *Statement.__slots__}
        if set(document) != keys or not all(isinstance(one, str) for one in document.values()):
            raise _error("STATEMENT", "it is no statement of a ceremony", "casemate ceremony join makes one")
        if document["format"] != STATEMENT_FORMAT or document["custody"] not in (TOKEN, FILE):
            raise _error("STATEMENT", "it is no statement of this form", "casemate ceremony join makes one")
        if not _HEX.fullmatch(document["header"]) or not _HEX.fullmatch(document["measurement"]):
            raise _error("STATEMENT", "it names no image and no measurement", "casemate ceremony join makes one")
        if document["ceremony"] != self.plan.digest or document["session"] != self.session.digest:
            raise _error(
                "OTHER", "the statement is of another ceremony, or of another session", "sign it anew, for this one"
            )
        role = self.plan.role_of(by)
        if document["persona"] != by or document["role"] != role or document["action"] != ACTIONS[role]:
            raise _error("ROLE", "this is another's part", f"your part is: {ACTIONS[role]}")
        if not self.plan.not_before <= now <= self.plan.not_after or self.ended:
            raise _error("TIME", "the ceremony is not open", "a ceremony takes place in its window only")
        if early := self._too_early(role):
            raise _error("ORDER", early, "wait for it: casemate ceremony status")
        closed = {REVIEWERS: "request", HOSTS: "request", CUSTODIANS: "request", ROOT: "built", AUDITOR: "end"}[role]
        if any(line.action == ACTIONS[role] and line.by == by for line in self.lines):
            raise _error("TWICE", f"{by} has done this already", "nobody acts twice")
        if self.of(closed) or (role == ROOT and self.enough(ROOT)):
            raise _error("TIME", "it is too late: this part is over", "look at casemate ceremony status")
        if document["seen"] not in ({self.head} if role == AUDITOR else {line.digest for line in self.lines}):
            raise _error(
                "OTHER", "the line that was seen last is not in this transcript, or not its head", "look at it again"
            )
        if len(content) > LARGEST_CONTENT or document["content"] != hashlib.sha256(content).hexdigest():
            raise _error("CONTENT", "the content is not what was signed", "send what was signed")
        self._check_content(role, by, content)
        return Statement(*(document[name] for name in Statement.__slots__))

    def _check_content(self, role: str, by: str, content: bytes) -> None:
        if role == REVIEWERS:
            self._check_next_key(by, content)
        elif role == HOSTS:
            given = self.of(ACTIONS[HOSTS])
            if given and given[0].content != content:
                raise _error(
                    "CONTENT", "these are other hosts than were given before", "all who give hosts give the same"
                )
            hosts_of(content)
        elif role == CUSTODIANS:
            said = _object(content, 4096, "CONTENT", "commitment")
            if (
                set(said) != {"commitment"}
                or not isinstance(said["commitment"], str)
                or not _HEX.fullmatch(said["commitment"])
            ):
                raise _error("CONTENT", "a contribution is a commitment", "casemate ceremony join makes one")
            if any(line.content == content for line in self.of(ACTIONS[CUSTODIANS])):
                raise _error("CONTENT", "somebody has contributed the same", "each gives a secret of their own")
        elif role == ROOT:
            check_certificate(self.plan, self.request(), content)
        elif content:
            raise _error("CONTENT", "who witnesses adds nothing", "casemate ceremony join signs the head")

    def _check_next_key(self, by: str, content: bytes) -> None:
        said = _object(content, LARGEST_CONTENT, "CONTENT", "approval")
        if set(said) != {"key", "proof", "custody"} or said["custody"] not in (TOKEN, FILE):
            raise _error("CONTENT", "an approval names the reviewer's next key", "casemate ceremony join makes one")
        key = public_key(said["key"], "CONTENT", "the next key")
        if not holds(key, _unb64(said["proof"], "CONTENT"), NEXT_KEY_TYPE, f"{self.session.digest} {by}".encode()):
            raise _error("CONTENT", "the next key has not signed for this session", "sign with it")
        used = {spki(public_key(pem, "PLAN", name)) for name, pem in self.plan.personas.items()}
        for line in self.of(ACTIONS[REVIEWERS]):
            used.add(spki(public_key(json.loads(line.content)["key"], "CONTENT", "a next key")))
        if spki(key) in used:
            raise _error(
                "CONTENT",
                "the next key is one of this ceremony, or another's",
                "no key of the ceremony is valid after it",
            )

    def request(self) -> bytes:
        """Return the request for the intermediate's certificate (PEM). Raises :class:`CeremonyError` where there is none."""
        lines = self.of("request")
        if not lines:
            raise _error("ORDER", "there is no request yet", "wait for it: casemate ceremony status")
        return lines[0].content

    def certificate(self) -> tuple[bytes, bytes]:
        """Return what the root answered: the intermediate's certificate and the root's revocation list (PEM)."""
        said = json.loads(self.of(ACTIONS[ROOT])[0].content)
        return said["certificate"].encode(), said["list"].encode()

    def hosts(self) -> list[tuple[str, bytes]]:
        """Return names and host key documents."""
        return hosts_of(self.of(ACTIONS[HOSTS])[0].content)

    def reviewers(self) -> bytes:
        """Return the reviewers of the builder (``casemate-reviewers/1``): those who approved, with their next keys."""
        keys = {line.by: json.loads(line.content)["key"] for line in self.of(ACTIONS[REVIEWERS])}
        document = {"format": "casemate-reviewers/1", "threshold": self.plan.roles[REVIEWERS].quorum, "reviewers": keys}
        return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"

    def line(
        self,
        action: str,
        now: datetime.datetime,
        *,
        by: str = "",
        statement: bytes = b"",
        signature: bytes = b"",
        content: bytes = b"",
        facts: Mapping[str, Any] | None = None,
    ) -> Line:
        """Return the next line, without its seal."""
        n = len(self.lines) + 1
        return Line(n, text_of(now), self.head, action, by, statement, signature, content, dict(facts or {}))

    def follow(self, line: Line) -> Ceremony:
        """Return the ceremony with one more line, which must be one that the rules allow. Raises :class:`CeremonyError`."""
        if line.n != len(self.lines) + 1 or line.previous != self.head or self.ended or line.n > MOST_LINES:
            raise _error(
                "TRANSCRIPT",
                f"line {line.n} does not follow the one before: something was changed, taken out or put in",
            )
        if not holds(self.session.signing, line.seal, LINE_TYPE, line.unsealed()):
            raise _error("TRANSCRIPT", f"line {line.n} was not sealed by the BootstrapVM of this session")
        now = time_of(line.time)
        if self.lines and now < time_of(self.lines[-1].time):
            raise _error("TRANSCRIPT", f"line {line.n} is older than the one before")
        if line.action in MACHINE:
            if line.by or line.statement or line.signature:
                raise _error("TRANSCRIPT", f"line {line.n} is the machine's, and somebody's")
            self._machine(line, now)
        else:
            statement = self.check(line.statement, line.signature, line.by, line.content, now)
            if statement.action != line.action or line.facts:
                raise _error("TRANSCRIPT", f"line {line.n} says something else than its statement")
        return Ceremony(self.plan, self.session, (*self.lines, line))

    def _machine(self, line: Line, now: datetime.datetime) -> None:
        expired = line.action == "end" and line.facts == {"outcome": EXPIRED} and self.due != "open"
        if line.action != self.due and not expired:
            raise _error("TRANSCRIPT", f"line {line.n} ({line.action}) is not due")
        if line.action != "end" and not self.plan.not_before <= now <= self.plan.not_after:
            raise _error("TRANSCRIPT", f"line {line.n} is outside of the window")
        facts = {
            "open": {"ceremony": self.plan.digest, "session": self.session.digest},
            "request": {},
            "built": None,
            "end": {"outcome": EXPIRED if expired else COMPLETE},
        }[line.action]
        if facts is not None and line.facts != facts:
            raise _error("TRANSCRIPT", f"line {line.n} is of another ceremony or session")
        if line.action == "request":
            request_key(line.content)
        elif line.content:
            raise _error("TRANSCRIPT", f"line {line.n} has a content that means nothing")
        if line.action == "built":
            built_files(line)


def built_files(line: Line) -> dict[str, Part]:
    """Return the files of the BuildVM's image that the line ``built`` names. Raises :class:`CeremonyError`."""
    files = line.facts.get("files")
    if set(line.facts) != {"files"} or not isinstance(files, dict) or not 1 <= len(files) <= 64:
        raise _error("TRANSCRIPT", f"line {line.n} names no files")
    if not all(_WORD.fullmatch(name) for name in files):
        raise _error("TRANSCRIPT", f"line {line.n} names a file that can't be")
    return {name: _part(one) for name, one in files.items()}


def hosts_of(content: bytes) -> list[tuple[str, bytes]]:
    """Return names and host key documents of what was given. Raises :class:`CeremonyError`."""
    said = _object(content, LARGEST_CONTENT, "CONTENT", "list of hosts")
    hosts = said.get("hosts")
    if set(said) != {"hosts"} or not isinstance(hosts, list) or not 1 <= len(hosts) <= 64:
        raise _error("CONTENT", "hosts are given as names and documents, 64 at most", "casemate ceremony join makes it")
    found: list[tuple[str, bytes]] = []
    for one in hosts:
        name, document = (one.get("name"), one.get("document")) if isinstance(one, dict) else (None, None)
        _host(name, document, "CONTENT")
        if len(one) != 2:
            raise _error("CONTENT", "a host has a name and a document", "casemate ceremony join makes it")
        found.append((str(name), str(document).encode()))
    if len({name for name, _ in found}) != len(found):
        raise _error("CONTENT", "a host stands twice", "give each once")
    return found


def hosts_content(hosts: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the content that gives hosts: names and documents (PEM)."""
    return canonical({"hosts": [{"name": name, "document": document.decode()} for name, document in hosts]})


def request_key(pem: bytes) -> Any:
    """Return the public key of a request whose own signature holds. Raises :class:`CeremonyError`."""
    from cryptography import x509

    try:
        request = x509.load_pem_x509_csr(pem)
        if request.is_signature_valid:
            return request.public_key()
    except ValueError:
        pass
    raise _error("TRANSCRIPT", "the request for the intermediate's certificate is none")


def certificate_content(certificate: bytes, revocation: bytes, custody: str) -> bytes:
    """Return the content of the root's answer: certificate and revocation list (PEM), and where the root's key is."""
    return canonical({"certificate": certificate.decode(), "list": revocation.decode(), "custody": custody})


def check_certificate(plan: Plan, request: bytes, content: bytes) -> None:
    """Refuse an answer that is not for the requested key, by the plan's root, for an authority over images only."""
    from cryptography import x509

    from casemate.certificates.chain import verify_chain

    said = _object(content, LARGEST_CONTENT, "CONTENT", "answer of the root")
    texts = all(isinstance(one, str) and one.isascii() for one in said.values())
    if set(said) != {"certificate", "list", "custody"} or not texts or said["custody"] not in (TOKEN, FILE):
        raise _error(
            "CONTENT", "the root answers with a certificate and a revocation list", "casemate ceremony join does"
        )
    try:
        certificate = x509.load_pem_x509_certificate(said["certificate"].encode())
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        revocation = x509.load_pem_x509_crl(said["list"].encode())
        root = x509.load_pem_x509_certificate(plan.root_certificate.encode())
        public: Any = root.public_key()
        listed = revocation.issuer == root.subject and revocation.is_signature_valid(public)
        taken_back = revocation.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    except (ValueError, x509.ExtensionNotFound):
        raise _error(
            "CONTENT", "certificate or list can't be read, or are of another kind", "answer the request"
        ) from None
    if spki(certificate.public_key()) != spki(request_key(request)):
        raise _error(
            "CONTENT", "the certificate is for another key than the one that was made inside", "answer the request"
        )
    if not basic.ca or basic.path_length != 0 or not (usage.key_cert_sign and usage.crl_sign):
        raise _error(
            "CONTENT",
            "the certificate is none of an authority over images only",
            "path length 0, signs certificates and lists",
        )
    if not listed or taken_back:
        raise _error(
            "CONTENT", "the list is not the root's, or has this certificate", "sign the list with the root's key"
        )
    # At the certificate's own begin: what is asked is whose signature it is. Today counts when it is used.
    moment = plan.not_before if plan.not_before > _begin(certificate) else _begin(certificate)
    chain = verify_chain(said["certificate"].encode(), [plan.root_certificate.encode()], time=moment)
    if not chain.proved:
        raise _error(
            "CONTENT", f"the certificate is not the plan's root's: {chain.problems[0].cause}", "use the root's key"
        )
    if chain.development is not plan.development:
        raise _error("CONTENT", "development and production don't mix in one chain", "use the root of the plan")


def _begin(certificate: Any) -> datetime.datetime:
    if hasattr(type(certificate), "not_valid_before_utc"):
        return certificate.not_valid_before_utc  # type: ignore[no-any-return]
    return certificate.not_valid_before.replace(tzinfo=datetime.UTC)  # type: ignore[no-any-return]


# --- pieces -----------------------------------------------------------------------------------------------------


def public_key(pem: object, kind: str, whose: str) -> Any:
    """Return a public key, P-384 or RSA of 3072 bits and more. Raises :class:`CeremonyError`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode("ascii") if isinstance(pem, str) else b"")
    except (ValueError, UnsupportedAlgorithm):
        key = None
    curve = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1"
    if not curve and not (isinstance(key, rsa.RSAPublicKey) and key.key_size >= 3072):
        raise _error(kind, f"{whose} is none that is used here", "P-384, or RSA of 3072 bits and more, PEM")
    return key


def spki(key: Any) -> bytes:
    """Return a public key as SubjectPublicKeyInfo, DER."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def canonical(document: Mapping[str, Any]) -> bytes:
    """Return JSON in one form: sorted keys, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def text_of(time: datetime.datetime) -> str:
    """Return a time as it stands in plans and lines: UTC, whole seconds."""
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_of(text: object) -> datetime.datetime:
    """Return a time of a plan or line. Raises :class:`CeremonyError`."""
    try:
        if not isinstance(text, str) or not _TIME.fullmatch(text):
            raise ValueError
        return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        raise _error("PLAN", "a time is none", "write it as 2026-11-25T09:00:00Z") from None


def _object(data: bytes, limit: int, kind: str, what: str) -> dict[str, Any]:
    try:
        document = strictjson.loads(data) if len(data) <= limit else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _error(kind, f"the {what} is too large, no JSON object, or says something twice", "is it the right file?")
    return document


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: object, kind: str) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "-", validate=True)
    except (binascii.Error, ValueError):
        raise _error(kind, "something in it is not base64", "take it as it was written") from None
