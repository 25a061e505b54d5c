"""The session of a BootstrapVM: what it says it is, what its ultravisor says of that, and secrets that are sealed for it. Pure.

    session = open_session(answer, plan)                     # what speaks says it is the BootstrapVM of this plan
    request, key = ask(plan)                                 # the machine has its ultravisor answer
    measured(plan, session, Evidence(header, answer, key))   # and it is: or it is refused

**The session**: keys that the BootstrapVM makes at its start, one that signs (P-384) and one that secrets are sealed for
(X25519), in a document with plan and record. The image has no key inside: everybody packs it of the plan, with the
same bytes (:func:`image_seed`). That this image runs, on a host of the plan, and has made this session, its ultravisor tells to
each who asks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casemate import strictjson
from casemate.build.ceremonyplan import Plan, object_of, refusal, spki, unb64
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from casemate.secureexec.hostkey import HostKey

FORMAT = "casemate-ceremony-session/2"
LARGEST_ANSWER = 256 << 10
SHARE, SALT = (16, 1024), 32
_USER_DATA = b"casemate-ceremony-session/2\0"


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

    payload = strictjson.dumps(
        {
            **{"format": FORMAT, "ceremony": plan.digest, "record": hashlib.sha256(record).hexdigest()},
            "signing": strictjson.b64(spki(signing.public_key())),
            "sealing": strictjson.b64(sealing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),
        }
    )
    return strictjson.dumps({"record": strictjson.b64(record), "session": strictjson.b64(payload)})


def open_session(answer: bytes, plan: Plan) -> Session:
    """Return the session of a machine that says it is the BootstrapVM of this plan. Raises :class:`CeremonyError`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    from casemate.attestation import record as records

    document = object_of(answer, LARGEST_ANSWER, "SESSION", "answer")
    if set(document) != {"record", "session"}:
        raise refusal("SESSION", "this is no answer of a BootstrapVM", "is it the right address?")
    said = {name: unb64(one, "SESSION") for name, one in document.items()}
    try:
        record = records.parse(said["record"])
    except CasemateError as error:
        raise refusal("SESSION", f"the machine's record is none: {error.cause}", "is it the right address?") from None
    wanted = {**plan.values, "baked:plan.json": plan.digest}
    for name, value in wanted.items():
        if record.hashes.get(name) != value:
            what = "another plan" if name == "baked:plan.json" else "another image"
            raise refusal(
                "SESSION", f"the machine runs {what}: its record says something else of {name}", "start the right one"
            )
    session = object_of(said["session"], LARGEST_ANSWER, "SESSION", "session")
    expected = {
        **{"format": FORMAT, "ceremony": plan.digest},
        "record": hashlib.sha256(said["record"]).hexdigest(),
    }
    if set(session) != {*expected, "signing", "sealing"} or any(session[name] != one for name, one in expected.items()):
        raise refusal("SESSION", "the session is of another record, plan or machine", "this is not the BootstrapVM")
    signing, sealing = (unb64(session[name], "SESSION") for name in ("signing", "sealing"))
    try:
        loaded = load_der_public_key(signing)
    except (ValueError, UnsupportedAlgorithm):
        loaded = None
    if getattr(getattr(loaded, "curve", None), "name", "") != "secp384r1" or len(sealing) != 32:
        raise refusal("SESSION", "the session's keys are none", "this is not the BootstrapVM")
    marked = "DEVELOPMENT" in record.facts.get(records.TEE, "").upper()
    if marked and not plan.development:
        raise refusal("SESSION", "a development machine holds no real ceremony", "start it on a host of the plan")
    digest = hashlib.sha256(said["session"]).hexdigest()
    user_data = _USER_DATA + hashlib.sha512(said["session"]).digest()
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


def image_seed(plan: Plan, secret: bytes) -> bytes:
    """Return what the BootstrapVM's image is packed with, so that everybody packs the same bytes of a plan.

    ``secret`` (32 bytes) is the personas': what is in the image is public, but not its header key. A measurement has the header's
    tag alone for flags, entry and key slots, and who knows the key makes other headers with that tag, one that allows dumps too.
    So whoever runs the machine must not have it. Raises :class:`CeremonyError`: it is another than the plan's.
    """
    if hashlib.sha256(secret).hexdigest() != plan.image_secret:
        raise refusal("SECRET", "this is not the secret that the plan's image is packed with", "ask who made the plan")
    return hashlib.sha512(f"casemate-ceremony image {plan.digest} ".encode() + secret).digest()


def host_keys(plan: Plan) -> dict[str, HostKey]:
    """Return the keys of the hosts that may run the BootstrapVM, by their names in the plan."""
    from casemate.secureexec import hostkey

    return {name: hostkey.load(document.encode(), check_validity=False) for name, document in plan.hosts.items()}


def ask(plan: Plan) -> tuple[bytes, bytes]:
    """Return a request for the ultravisor of the BootstrapVM, as a file, and its protection key."""
    from casemate.secureexec import attestation

    flags = attestation.IMAGE_HOST_KEY | attestation.ATTESTATION_HOST_KEY
    request, key = attestation.create(list(host_keys(plan).values()), flags)
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
        raise refusal("MEASUREMENT", error.cause, "this is not the BootstrapVM, or not of your plan") from None
    if found.user_data != session.user_data:
        raise refusal("MEASUREMENT", "the ultravisor has measured another session", "this is not the BootstrapVM")
    for name, key in host_keys(plan).items():
        if found.image_host_key == found.attestation_host_key == key.fingerprint:
            return name
    raise refusal("MEASUREMENT", "the machine runs on a host that the plan does not name", "start it where it may run")


# --- contributed secrets ----------------------------------------------------------------------------------------


def commitment(salt: bytes, share: bytes) -> bytes:
    """Return the content of a contribution: SHA-256 over salt (32 bytes) and share, and neither of them."""
    return strictjson.dumps({"commitment": hashlib.sha256(salt + share).hexdigest()})


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
        raise refusal(
            "CONTENT", "the contribution does not open here", "seal it for this session, under your name"
        ) from None
    if not SALT + SHARE[0] <= len(opened) <= SALT + SHARE[1] or commitment(opened[:SALT], opened[SALT:]) != content:
        raise refusal(
            "CONTENT", "the contribution is not what was committed to", "send it as casemate ceremony join does"
        )
    return opened


def _cipher(shared: bytes, public: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), 32, hashlib.sha256(public).digest(), b"casemate-ceremony share").derive(shared))
