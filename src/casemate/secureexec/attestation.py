"""Ultravisor attestation: requests, their answers, the measurement that ties both, and the file that carries them.

    request, protection_key = create([hostkey.load(document)], ask=IMAGE_HOST_KEY)   # who wants to know
    answer = perform(request, host_private_key, configuration, user_data)            # the machine's ultravisor
    result = verify(answer, protection_key, header)                                  # who wants to know

A request is encrypted for host keys, as an image is. It holds a fresh key and nonce; the ultravisor of a machine that
can open it answers with an HMAC-SHA-512 under that key over the header of the image that it started, the identifier of the
started configuration, 16 bytes, up to 256 bytes that the guest chose (*user data*), the nonce, and what the request
asked for beyond (*additional data*). So whoever made the request, and keeps its protection key secret, learns: a machine
with one of these host keys runs that image, now, and the image's own software said so much.

The rules:

- An answer is verified against the request that is in it, which must open with the protection key of *this* request: another
  request's answer does not. Use a request once: its answer stays true for as long as the key exists.
- Nothing of an answer is given out before its measurement held.
- The header compared with is one that the verifier trusts: that of the image as its provider published it.
- Unknown versions, algorithms, flags and sizes are refused.

The software ultravisor measures too (:func:`perform`), and says so where it can: in the firmware state. **Its measurement
protects from nobody who owns the host**, who has the host key and can measure whatever he likes.

Formats, all numbers big-endian: ``docs/formats/ultravisor-attestation.md``.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import SECP521R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.hmac import HMAC

from casemate.errors import CasemateError
from casemate.secureexec import hostkey
from casemate.secureexec.errors import ImageError
from casemate.secureexec.header import Header
from casemate.secureexec.hostkey import SLOT_SIZE, HostKey

VERSION, HMAC_SHA512 = 0x100, 1
LARGEST_REQUEST, LARGEST_ADDITIONAL, LARGEST_USER_DATA = 1 << 20, 0x8000, 256
MOST_HOSTS = 255
MEASUREMENT, CUID = 64, 16

NONCE, IMAGE_HOST_KEY, ATTESTATION_HOST_KEY, SECRET_STORE, FIRMWARE = (1 << (63 - bit) for bit in range(1, 6))
"""What a request may ask for: bits of its flags, counted from the most significant, which means nothing."""
ADDITIONAL = {IMAGE_HOST_KEY: 32, ATTESTATION_HOST_KEY: 32, SECRET_STORE: 64, FIRMWARE: 320}
"""Sizes of the parts of additional data, in their order."""
SOFTWARE_STATE = b"Casemate software ultravisor: DEVELOPMENT, no protection from the owner of the host".ljust(
    320, b"\0"
)
"""What the software ultravisor gives as its firmware's state."""

_HEAD = struct.Struct(">8sII12s4x7xB4xIQI4x160s")
_SECRET, _TAG = 64 + 16, 16
_SIZES = struct.Struct(">16sHHI")
_FILE = struct.Struct(">8sIIQ10I")
_MAGIC = b"pvattest"
LARGEST_FILE = _FILE.size + LARGEST_REQUEST + MEASUREMENT + LARGEST_ADDITIONAL + LARGEST_USER_DATA + CUID


class AttestationError(CasemateError):
    """A request or an answer is none, or does not hold."""

    id = "SE-ATTESTATION"


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed request. Nothing is verified yet; ``raw`` are all its bytes."""

    flags: int
    iv: bytes
    customer_key: bytes
    slots: tuple[bytes, ...]
    raw: bytes = field(repr=False)

    @property
    def additional_size(self) -> int:
        """How many bytes of additional data it asks for."""
        return sum(size for flag, size in ADDITIONAL.items() if self.flags & flag)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A machine that an ultravisor started: the image's verified header, and what else an answer tells of it.

    ``cuid``: 16 bytes, chosen by the ultravisor at each start. ``image_host_key``: SHA-256 of the public key that the image was
    opened with. ``secret_store``: SHA-512 over the tags of all requests that added a secret, then a byte: 1 for locked.
    """

    header: Header
    cuid: bytes
    image_host_key: bytes
    secret_store: bytes = hashlib.sha512(b"\0").digest()
    firmware: bytes = SOFTWARE_STATE


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, as a machine gives it and a file carries it."""

    request: bytes
    measurement: bytes
    additional: bytes
    user_data: bytes
    cuid: bytes


@dataclass(frozen=True, slots=True)
class Attested:
    """What a verified answer says. Parts that were not asked for are empty."""

    tag: bytes
    cuid: bytes
    user_data: bytes
    image_host_key: bytes
    attestation_host_key: bytes
    secret_store: bytes
    firmware: bytes

    @property
    def development(self) -> bool:
        """Whether a software ultravisor says itself that it is one. That it says nothing proves nothing."""
        return self.firmware == SOFTWARE_STATE


# ---------------------------------------------------------------------------- requests


def create(hosts: Sequence[HostKey], ask: int = 0) -> tuple[bytes, bytes]:
    """Return a request for machines with these host keys, and its protection key: 32 bytes, secret.

    ``ask``: flags of what the answer should tell beyond; a nonce is always there. Raises :class:`AttestationError`.
    """
    if not 1 <= len(hosts) <= MOST_HOSTS:
        raise AttestationError(f"a request can be made for 1 to {MOST_HOSTS} hosts, not for {len(hosts)}")
    if ask & ~_known():
        raise AttestationError("the request asks for what is not known")
    customer, protection_key, iv = generate_private_key(SECP521R1()), secrets.token_bytes(32), secrets.token_bytes(12)
    slots = b"".join(hostkey.make_slot(host, customer, protection_key) for host in hosts)
    size = _HEAD.size + len(slots) + _SECRET + _TAG
    clear = _HEAD.pack(
        *(bytes(8), VERSION, size, iv, len(hosts), _SECRET, ask | NONCE, HMAC_SHA512),
        hostkey.coordinates(customer.public_key()),
    )
    clear += slots
    return clear + AESGCM(protection_key).encrypt(iv, secrets.token_bytes(_SECRET), clear), protection_key


def _known() -> int:
    return NONCE | sum(ADDITIONAL)


def parse_request(data: bytes) -> Request:
    """Read a request. Raises :class:`AttestationError`; nothing is verified by a key yet."""
    if not _HEAD.size <= len(data) <= LARGEST_REQUEST:
        raise AttestationError("the request is cut off, or too large")
    magic, version, size, iv, count, secret, flags, algorithm, customer = _HEAD.unpack_from(data)
    if magic != bytes(8):
        raise AttestationError("this is no attestation request")
    if version != VERSION:
        raise AttestationError(f"the request has version {version:#x}, known is {VERSION:#x}")
    if size != len(data) or not count or secret != _SECRET or size != _HEAD.size + count * SLOT_SIZE + secret + _TAG:
        raise AttestationError("the request's size disagrees with its parts")
    if algorithm != HMAC_SHA512:
        raise AttestationError(f"the request wants a measurement of kind {algorithm}, known is {HMAC_SHA512}")
    if not flags & NONCE or flags & ~_known():
        raise AttestationError("the request has no nonce, or asks for what is not known")
    slots = tuple(data[_HEAD.size + i * SLOT_SIZE :][:SLOT_SIZE] for i in range(count))
    return Request(flags, iv, customer, slots, bytes(data))


def _open(request: Request, protection_key: bytes) -> tuple[bytes, bytes]:
    """Return measurement key and nonce. Raises :class:`AttestationError` where the tag does not hold."""
    start = len(request.raw) - _SECRET - _TAG
    try:
        secret = AESGCM(protection_key).decrypt(request.iv, request.raw[start:], request.raw[:start])
    except (InvalidTag, ValueError):
        raise AttestationError(
            "the request does not open with this key: it was changed, or it is another one",
            "an answer is verified with the key that was made with its request",
        ) from None
    return secret[:64], secret[64:]


# ---------------------------------------------------------------------------- the machine's side


def measure(header: Header, cuid: bytes, user_data: bytes, nonce: bytes, additional: bytes, key: bytes) -> bytes:
    """Return the measurement: HMAC-SHA-512 over what is attested, 64 bytes."""
    sizes = _SIZES.pack(cuid, len(user_data), 0, len(additional))
    context = HMAC(key, SHA512())
    context.update(header.pld + header.ald + header.tld + header.tag + sizes + user_data + nonce + additional)
    return context.finalize()


def perform(data: bytes, host: EllipticCurvePrivateKey, configuration: Configuration, user_data: bytes = b"") -> Answer:
    """Answer a request as the ultravisor of a machine does that started ``configuration``. Raises :class:`AttestationError`.

    On IBM Z this is firmware, and a guest asks it through ``/dev/uv``. Here the software ultravisor calls it with its host key
    for its guest, which has a port in place of that device (:mod:`casemate.machine.ultravisor`).
    """
    request = parse_request(data)
    if len(user_data) > LARGEST_USER_DATA:
        raise AttestationError(f"{len(user_data)} bytes of user data, {LARGEST_USER_DATA} are possible")
    own = HostKey(host.public_key()).fingerprint
    slot = next((slot for slot in request.slots if slot[:32] == own), None)
    if slot is None:
        raise AttestationError("the request was not made for this host", "make it with this host's key document")
    try:
        protection_key = hostkey.open_slot(slot, host, hostkey.from_coordinates(request.customer_key))
    except ImageError:
        raise AttestationError("the key slot of this host, or the customer key of the request, was changed") from None
    key, nonce = _open(request, protection_key)
    parts = {
        **{IMAGE_HOST_KEY: configuration.image_host_key, ATTESTATION_HOST_KEY: own},
        **{SECRET_STORE: configuration.secret_store, FIRMWARE: configuration.firmware},
    }
    additional = b"".join(parts[flag] for flag in ADDITIONAL if request.flags & flag)
    if len(additional) != request.additional_size or len(configuration.cuid) != CUID:
        raise AttestationError("what is to be measured has a wrong size")
    measurement = measure(configuration.header, configuration.cuid, user_data, nonce, additional, key)
    return Answer(request.raw, measurement, additional, user_data, configuration.cuid)


# ---------------------------------------------------------------------------- the verifier's side


def verify(answer: Answer, protection_key: bytes, header: Header) -> Attested:
    """Return what an answer says, once its measurement held for this header. Raises :class:`AttestationError`."""
    request = parse_request(answer.request)
    key, nonce = _open(request, protection_key)
    if len(answer.cuid) != CUID or len(answer.user_data) > LARGEST_USER_DATA:
        raise AttestationError("the answer's parts have sizes that can't be")
    if len(answer.additional) != request.additional_size:
        raise AttestationError("the answer's additional data is not what was asked for")
    expected = measure(header, answer.cuid, answer.user_data, nonce, answer.additional, key)
    if not bytes_eq(expected, answer.measurement):
        raise AttestationError(
            "the measurement does not hold: another image, or the answer was changed",
            "is this the image that the machine was started with?",
        )
    return Attested(header.tag, answer.cuid, answer.user_data, *split(request, answer.additional))


def split(request: Request, additional: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the four parts of additional data, in their order; those that were not asked for are empty."""
    parts, at = [], 0
    for flag, size in ADDITIONAL.items():
        taken = size if request.flags & flag else 0
        parts.append(additional[at : at + taken])
        at += taken
    return parts[0], parts[1], parts[2], parts[3]


# ---------------------------------------------------------------------------- the file


def pack_request(data: bytes, user_data: bytes = b"") -> bytes:
    """Return the file that carries a request: with the sizes of what an answer will add.

    ``user_data``: what a guest has measured, in a request to its software ultravisor; pvattest's requests have none.
    """
    request = parse_request(data)
    said = (len(user_data), user_data or None)
    return _pack(data, (MEASUREMENT, None), (request.additional_size, None), said, (0, None))


def pack_answer(answer: Answer) -> bytes:
    """Return the file that carries an answer."""
    given = (answer.measurement, answer.additional, answer.user_data, answer.cuid)
    return _pack(answer.request, *((len(part), part or None) for part in given))


def _pack(request: bytes, *parts: tuple[int, bytes | None]) -> bytes:
    entries, body = [len(request), _FILE.size], request
    for size, part in parts:
        entries += [size, 0 if part is None else _FILE.size + len(body)]
        body += part or b""
    return _FILE.pack(_MAGIC, VERSION, _FILE.size + len(body), 0, *entries) + body


REFUSAL = _FILE.pack(_MAGIC, VERSION, _FILE.size, 0, *(0, 0) * 5)
"""A file with nothing in it: how a machine says that it does not answer."""
START = 16
"""So many bytes of a file tell its size."""


def file_size(start: bytes) -> int:
    """Return the size that a file's first :data:`START` bytes tell. Raises :class:`AttestationError`."""
    magic, version, size = struct.unpack(">8sII", start)
    if magic != _MAGIC or version != VERSION or not _FILE.size <= size <= LARGEST_FILE:
        raise AttestationError("this is no file of an attestation", "pvattest and casemate se attest write such")
    return int(size)


def unpack(data: bytes) -> Answer:
    """Read such a file. In one that carries a request, the other parts are empty. Raises :class:`AttestationError`.

    The parts may stand in any order, but not before the end of the fields, nor beyond the end.
    """
    if len(data) > LARGEST_FILE or len(data) < _FILE.size or not data.startswith(_MAGIC):
        raise AttestationError("this is no file of an attestation", "pvattest and casemate se attest write such")
    _, version, size, _, *entries = _FILE.unpack_from(data)
    if version != VERSION:
        raise AttestationError(f"the file has version {version:#x}, known is {VERSION:#x}")
    if size != len(data):
        raise AttestationError("the file is not as long as it says")
    limits = (LARGEST_REQUEST, MEASUREMENT, LARGEST_ADDITIONAL, LARGEST_USER_DATA, CUID)
    parts = []
    for number, limit in enumerate(limits):
        length, at = entries[2 * number : 2 * number + 2]
        if length > limit or (length and at and (at < _FILE.size or at + length > len(data))):
            raise AttestationError("a part of the file is too large, or not in it")
        parts.append(data[at : at + length] if at else b"")
    return Answer(*parts)


def is_answered(answer: Answer) -> bool:
    """Whether a file carries an answer, and not only a request."""
    return len(answer.measurement) == MEASUREMENT and len(answer.cuid) == CUID
