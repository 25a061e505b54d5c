"""The plan of a bootstrap ceremony, and what all of its documents share: keys, signatures, times, errors. Pure.

    plan = parse_plan(data)
    plan.digest, plan.role_of("alice")

**The plan** (``casemate-ceremony/2``) names people, their public keys, one role for each, how many of a role must act, the
window, the hosts that may run the BootstrapVM, the root's certificate, and by hash all that the BuildVM is made of. It is baked
into the BootstrapVM's image, so the record has it.

All documents are JSON in one form (:func:`casemate.strictjson.dumps`); signatures are over DSSE's pre-authentication encoding,
each kind with a payload type of its own.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from casemate import strictjson
from casemate.approval import is_used, key_identity, pae, signature_holds
from casemate.build.job import BUILDER_NAME, Part
from casemate.errors import CasemateError

FORMAT = "casemate-ceremony/2"
LARGEST_PLAN = 256 << 10
LONGEST_MINUTES, MOST_PERSONAS, MOST_HOSTS = 24 * 60, 64, 16
LONGEST_WINDOW = 366 * 24 * 60
"""Minutes between a window's begin and its end, where a plan is made."""
REVIEWERS, HOSTS, CUSTODIANS, ROOT, AUDITOR = "reviewers", "hosts", "custodians", "root", "auditor"
ACTIONS = {REVIEWERS: "approve", HOSTS: "hosts", CUSTODIANS: "contribute", ROOT: "certify", AUDITOR: "witness"}
"""What each role does: one thing."""
LEAST = {REVIEWERS: 2, HOSTS: 1, CUSTODIANS: 2, ROOT: 1, AUDITOR: 1}
TOKEN, FILE = "token", "file"
PARTS = ("kernel", "initrd", "sbom.spdx.json", "packages.txt")
NAME, HEX = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}"), re.compile(r"[0-9a-f]{64}")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class CeremonyError(CasemateError):
    """Not what the plan says; identifiers are ``CEREMONY-`` and what it is about: ``PLAN``, ``SESSION``, ``ROLE``, ``TIME`` …."""

    id = "CEREMONY"


def refusal(kind: str, cause: str, cure: str = "") -> CeremonyError:
    """Return the error of a kind."""
    return CeremonyError(cause, cure, id=f"CEREMONY-{kind}")


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
    ``image_secret``: SHA-256 (hex) of what the BootstrapVM's image is packed with
    (:func:`casemate.build.ceremonysession.image_seed`). ``pipeline``: the key that signs source bundles (PEM, P-384), or
    nothing: then the BuildVM takes ready parts only. ``revision``, ``source``: what reviewers have read, SHA-256 over our
    source. ``root`` and ``parts``: the root archive and the files that the BuildVM is made of; ``values``: what a record of
    both machines says.
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
    pipeline: str
    revision: str
    source: str
    arch: str
    release: str
    root: Part
    parts: dict[str, Part]
    values: dict[str, str]
    image_secret: str
    selection: dict[str, Any] = field(default_factory=dict)

    def as_bytes(self) -> bytes:
        """The file. Raises :class:`CeremonyError` where it would not read back."""
        document = {
            **{"format": FORMAT, "name": self.name, "organization": self.organization, "builder": self.builder},
            **{"nonce": self.nonce, "development": self.development, "minutes": self.minutes},
            **{"not_before": text_of(self.not_before), "not_after": text_of(self.not_after)},
            **{"personas": self.personas, "hosts": self.hosts, "root_certificate": self.root_certificate},
            "pipeline": self.pipeline,
            "roles": {name: {"members": list(one.members), "quorum": one.quorum} for name, one in self.roles.items()},
            **{"revision": self.revision, "source": self.source, "arch": self.arch, "release": self.release},
            "root": {"sha256": self.root.sha256, "size": self.root.size},
            "parts": {name: {"sha256": one.sha256, "size": one.size} for name, one in self.parts.items()},
            **{"values": self.values, "image_secret": self.image_secret, "selection": self.selection},
        }
        data = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n"
        if parse_plan(data) != self:
            raise refusal("PLAN", "a value can't stand in a plan", "correct it")
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
        raise refusal("PERSONA", "nobody of this name has a part in the ceremony", "give a name of the plan")


def parse_plan(data: bytes) -> Plan:
    """Read a plan. Raises :class:`CeremonyError`: of another form; a key under two names; a person with two roles; too few."""
    document = object_of(data, LARGEST_PLAN, "PLAN", "plan")
    names = set(Plan.__slots__) | {"format"}
    if document.get("format") != FORMAT or set(document) != names:
        raise refusal("PLAN", f"it is none of the form {FORMAT}", "casemate ceremony plan writes one")
    texts = ("name", "organization", "builder", "nonce", "root_certificate", "revision", "source", "arch", "release")
    if not all(isinstance(document[name], str) and 0 < len(document[name]) <= 64 << 10 for name in texts):
        raise refusal("PLAN", "a text is missing, or too long", "casemate ceremony plan writes one")
    sound = (
        NAME.fullmatch(document["name"])
        and BUILDER_NAME.fullmatch(document["builder"])
        and len(document["organization"]) <= 64
        and document["organization"].isprintable()
        and document["organization"].strip()
        and re.fullmatch("[0-9a-f]{32}", document["nonce"])
        and document["arch"] in ("amd64", "s390x")
        and HEX.fullmatch(document["source"])
        and isinstance(document["image_secret"], str)
        and HEX.fullmatch(document["image_secret"])
        and all(WORD.fullmatch(document[name]) for name in ("revision", "release"))
        and type(document["development"]) is bool
        and type(document["minutes"]) is int
        and 1 <= document["minutes"] <= LONGEST_MINUTES
        and isinstance(document["selection"], dict)
    )
    values, parts = document["values"], document["parts"]
    sound = sound and isinstance(values, dict) and 1 <= len(values) <= 16
    sound = sound and all(isinstance(one, str) and HEX.fullmatch(one) for one in values.values())
    sound = sound and isinstance(parts, dict) and set(parts) == set(PARTS)
    if not sound:
        raise refusal("PLAN", "a value in it can't be", "casemate ceremony plan writes one")
    begins, ends = time_of(document["not_before"]), time_of(document["not_after"])
    if not begins < ends:
        raise refusal("PLAN", "the window ends before it begins", "correct the window")
    _require_root(document["root_certificate"], development=document["development"])
    pipeline = _pipeline(document["pipeline"])
    personas, roles = _personas(document["personas"]), _roles(document["roles"])
    acting = [name for role in roles.values() for name in role.members]
    if len(set(acting)) != len(acting):
        raise refusal("PLAN", "somebody has two roles, or stands twice in one", "one role for each person")
    lasting = lasting_keys(document["root_certificate"], pipeline)
    if strange := [name for name, pem in personas.items() if key_identity(public_key(pem, "PLAN", name)) in lasting]:
        raise refusal(
            "PLAN",
            f"{strange[0]} has the key of the root or of the pipeline",
            "a key of their own: none that is used in the ceremony is valid after it",
        )
    if set(acting) != set(personas):
        raise refusal("PLAN", "somebody has a role and no key, or a key and no role", "name each person in both places")
    return Plan(
        **{name: document[name] for name in texts},
        development=document["development"],
        not_before=begins,
        not_after=ends,
        minutes=document["minutes"],
        personas=personas,
        roles=roles,
        hosts=_plan_hosts(document["hosts"]),
        pipeline=pipeline,
        root=part_of(document["root"]),
        parts={name: part_of(one) for name, one in parts.items()},
        values=dict(values),
        image_secret=document["image_secret"],
        selection=document["selection"],
    )


def _require_root(pem: str, *, development: bool) -> None:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    from casemate.certificates.chain import has_development_mark

    try:
        if pem.count("-----BEGIN ") != 1:
            raise ValueError("more than one")
        root = x509.load_pem_x509_certificate(pem.encode("ascii"))
        marked = has_development_mark(pem.encode("ascii"))
        key_identity(root.public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm, CasemateError):
        raise refusal("PLAN", "the root's certificate is none, or more than one", "give it as PEM") from None
    if marked is not development:
        raise refusal("PLAN", "the root is for development and the plan not, or the other way", "take another root")


def lasting_keys(root_certificate: str, pipeline: str) -> set[bytes]:
    """Return the identities of keys that a plan names and that are valid after it: the root's, the pipeline's."""
    from cryptography import x509

    root = key_identity(x509.load_pem_x509_certificate(root_certificate.encode("ascii")).public_key())
    return {root, key_identity(public_key(pipeline, "PLAN", "the pipeline's key"))} if pipeline else {root}


def _personas(said: object) -> dict[str, str]:
    if not isinstance(said, dict) or not 1 <= len(said) <= MOST_PERSONAS:
        raise refusal("PLAN", f"there are up to {MOST_PERSONAS} personas", "name them")
    owners: dict[bytes, str] = {}
    for name, pem in said.items():
        if not NAME.fullmatch(name):
            raise refusal("PLAN", "a name has small letters, digits, dot, dash, underscore, 40 at most", "correct it")
        identity = key_identity(public_key(pem, "PLAN", f"the key of {name}"))
        if identity in owners:
            raise refusal("PLAN", f"{owners[identity]} and {name} have the same key", "one name for each person")
        owners[identity] = name
    return dict(said)


def _roles(said: object) -> dict[str, Role]:
    if not isinstance(said, dict) or set(said) != set(ACTIONS):
        raise refusal("PLAN", f"the roles are {', '.join(ACTIONS)}", "name who has each")
    roles: dict[str, Role] = {}
    for name, one in said.items():
        members = one.get("members") if isinstance(one, dict) and set(one) == {"members", "quorum"} else None
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise refusal("PLAN", f"the role {name} has members and a quorum", "correct it")
        quorum = one["quorum"]
        if type(quorum) is not int or not LEAST[name] <= quorum <= len(members) or (name == ROOT and quorum != 1):
            cure = (
                "one person answers the request"
                if name == ROOT
                else f"at least {LEAST[name]}, and no more than there are"
            )
            raise refusal("PLAN", f"so many of the role {name} can't be asked for", cure)
        roles[name] = Role(tuple(members), quorum)
    return roles


def _plan_hosts(said: object) -> dict[str, str]:
    if not isinstance(said, dict) or not 1 <= len(said) <= MOST_HOSTS:
        raise refusal("PLAN", f"1 to {MOST_HOSTS} hosts may run the BootstrapVM", "give their host key documents")
    for name, document in said.items():
        require_host(name, document, "PLAN")
    return dict(sorted(said.items()))  # their order is in the image, and must not depend on how a file was written


def _pipeline(said: object) -> str:
    if said == "":
        return ""
    if not hasattr(public_key(said, "PLAN", "the pipeline's key"), "curve"):
        raise refusal("PLAN", "the pipeline's key is none on P-384", "make one: casemate buildvm bundle --help")
    return str(said)


def require_host(name: object, document: object, kind: str) -> None:
    """Refuse what is no name and host key document. Raises :class:`CeremonyError`."""
    from casemate.secureexec import hostkey

    if not isinstance(name, str) or not WORD.fullmatch(name) or not isinstance(document, str):
        raise refusal(kind, "a host has a name and a document", "give the host key document")
    try:
        hostkey.load(document.encode(), check_validity=False)
    except CasemateError as error:
        raise refusal(kind, f"{name}: {error.cause}", "give the host key document") from None


def part_of(said: object) -> Part:
    """Read hash and size of a file. Raises :class:`CeremonyError`."""
    if not isinstance(said, dict) or set(said) != {"sha256", "size"}:
        raise refusal("PLAN", "a part has a SHA-256 and a size", "casemate ceremony plan writes one")
    if not isinstance(said["sha256"], str) or not HEX.fullmatch(said["sha256"]):
        raise refusal("PLAN", "the hash of a part is none", "casemate ceremony plan writes one")
    if type(said["size"]) is not int or not 0 < said["size"] <= 4 << 30:
        raise refusal("PLAN", "the size of a part can't be", "casemate ceremony plan writes one")
    return Part(said["sha256"], said["size"])


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
    return signature_holds(key, signature, pae(payload_type, payload))


def public_key(pem: object, kind: str, whose: str) -> Any:
    """Return a public key, P-384 or RSA of 3072 bits and more. Raises :class:`CeremonyError`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode("ascii") if isinstance(pem, str) else b"")
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not is_used(key):
        raise refusal(kind, f"{whose} is none that is used here", "P-384, or RSA of 3072 bits and more, PEM")
    return key


def spki(key: Any) -> bytes:
    """Return a public key as SubjectPublicKeyInfo, DER."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def text_of(time: datetime.datetime) -> str:
    """Return a time as it stands in plans and lines: UTC, whole seconds."""
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_of(text: object) -> datetime.datetime:
    """Return a time of a plan or line. Raises :class:`CeremonyError`."""
    try:
        if not isinstance(text, str) or not TIME.fullmatch(text):
            raise ValueError
        return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        raise refusal("PLAN", "a time is none", "write it as 2026-11-25T09:00:00Z") from None


def object_of(data: bytes, limit: int, kind: str, what: str) -> dict[str, Any]:
    """Read an object of a document of bounded size. Raises :class:`CeremonyError`."""
    try:
        document = strictjson.loads(data) if len(data) <= limit else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise refusal(
            kind, f"the {what} is too large, no JSON object, or says something twice", "is it the right file?"
        )
    return document


def unb64(text: object, kind: str) -> bytes:
    """Return the bytes of a base64 text. Raises :class:`CeremonyError`."""
    try:
        return strictjson.unb64(text)
    except ValueError:
        raise refusal(kind, "something in it is not base64", "take it as it was written") from None
