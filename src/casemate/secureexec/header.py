"""The header of a Secure Execution image, version 0x100, and the parameter block (IPIB) that points to it.

    offset  size     field                               offset    size   field
    0       8        magic ``IBMSecEx``                   64        160    customer public key, P-521 x ‖ y
    8       4        version 0x100                        224       64     PLD: SHA-512 over all component pages
    12      4        phs: size of the header, ≤ 8192      288       64     ALD: over the u64 address of each page
    16      12       AES-GCM IV                           352       64     TLD: over the 16-byte tweak of each page
    32      8        nks: number of key slots             416       80·n   key slots
    40      8        sea: size of the encrypted area      …         sea    encrypted area
    48      8        nep: number of encrypted pages       …         16     GCM tag
    56      8        plaintext control flags

Everything before the encrypted area is authenticated with it. Numbers are big-endian; source: the format page in
``docs/formats/secure-execution-image.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from casemate.secureexec import hostkey
from casemate.secureexec.errors import ImageError, NoSlotError
from casemate.secureexec.hostkey import SLOT_SIZE

MAGIC, VERSION = b"IBMSecEx", 0x100
LARGEST_HEADER = 8192
PAGE = 4096
FLAGS = {
    **{"confidential-dump": 1 << 29, "no-component-encryption": 1 << 28},
    **{"pckmo-dea-tdea": 1 << 7, "pckmo-aes": 1 << 6, "pckmo-ecc": 1 << 5, "pckmo-hmac": 1 << 4},
    "backup-target-keys": 1 << 1,
}
"""Flags in the clear, by the names that the tools for IBM Z have for them: what the image lets its machine do."""
SECRET_FLAGS = {"cck-extension-secret-enforcement": 1 << 62, "cck-update": 1 << 61}
"""Flags in the encrypted area, about secrets that are added to the machine."""
DEFAULT_FLAGS = FLAGS["pckmo-dea-tdea"] | FLAGS["pckmo-aes"] | FLAGS["pckmo-ecc"]
COMMUNICATION_KEY = 32
PSW_MASK = 0x180000000
"""The mask of the PSW that the ultravisor starts with; its address is that of stage3b."""

_FIXED = struct.Struct(">8sII12s4xQQQQ160s64s64s64s")
_SECRETS = struct.Struct(">32s64sQQQII")
_TAG = 16
_IPIB = struct.Struct(">IB2xBIB3x8s84x3xB4xIQQ")
_COMPONENT = struct.Struct(">QQQ")
LARGEST_IPIB = PAGE


@dataclass(frozen=True, slots=True)
class Component:
    """Where a component lies: first half of its tweaks, address (= offset in the file), size in whole pages."""

    tweak_prefix: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Secrets:
    """The encrypted area. Optional items are kept as they are."""

    communication_key: bytes = field(repr=False)
    component_key: bytes = field(repr=False)
    psw_mask: int = PSW_MASK
    psw_address: int = 0
    flags: int = 0
    items: bytes = field(default=b"", repr=False)
    item_count: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed, not yet verified header. ``raw`` are all its bytes."""

    iv: bytes
    pages: int
    flags: int
    customer_key: bytes
    pld: bytes
    ald: bytes
    tld: bytes
    slots: tuple[bytes, ...]
    encrypted_size: int
    raw: bytes = field(repr=False)

    @property
    def tag(self) -> bytes:
        """The GCM tag: what names this image in an attestation."""
        return self.raw[-_TAG:]


def build(
    *,
    iv: bytes,
    pages: int,
    digests: tuple[bytes, bytes, bytes],
    slots: Sequence[bytes],
    customer_key: bytes,
    header_key: bytes,
    secrets: Secrets,
    flags: int = DEFAULT_FLAGS,
) -> bytes:
    """Return a whole header. Raises :class:`ImageError` where the slots don't fit into 8192 bytes."""
    area = _SECRETS.pack(
        *(secrets.communication_key, secrets.component_key, secrets.psw_mask, secrets.psw_address, secrets.flags),
        *(secrets.item_count, 0),
    )
    area += secrets.items
    size = header_size(len(slots), len(area))
    clear = _FIXED.pack(
        *(MAGIC, VERSION, size, iv, len(slots), len(area), pages, flags, customer_key), *digests
    ) + b"".join(slots)
    return clear + AESGCM(header_key).encrypt(iv, area, clear)


def flags_of(enable: Sequence[str] = (), disable: Sequence[str] = (), *, has_key: bool = False) -> tuple[int, int]:
    """Return both words of flags: the usual ones, with some switched on and off. Raises :class:`ImageError`.

    ``has_key``: whether there is a communication key of one's own. A dump is encrypted with it, and an extension secret made
    from it, so neither makes sense for a random key that nobody knows.
    """
    wanted = ({name for name, bit in FLAGS.items() if DEFAULT_FLAGS & bit} | set(enable)) - set(disable)
    dump, enforced, update = "confidential-dump" in wanted, *(name in wanted for name in SECRET_FLAGS)
    if (dump and not (has_key or update)) or (enforced and not has_key):
        raise ImageError(
            "a dump is encrypted with the communication key, and extension secrets are made from it: none is given",
            "give a key of 32 bytes that you keep",
        )
    if enforced and update:
        raise ImageError("cck-update and cck-extension-secret-enforcement exclude each other")
    if "no-component-encryption" in wanted:
        raise ImageError("components are always encrypted here")
    clear, secret = (sum(bit for name, bit in table.items() if name in wanted) for table in (FLAGS, SECRET_FLAGS))
    return clear, secret


def header_size(slots: int, area: int = _SECRETS.size) -> int:
    """Return the size of a header with this many key slots. Raises :class:`ImageError` where it would be too large."""
    size = _FIXED.size + slots * SLOT_SIZE + area + _TAG
    if not slots or size > LARGEST_HEADER:
        most = (LARGEST_HEADER - _FIXED.size - _SECRETS.size - _TAG) // SLOT_SIZE
        raise ImageError(f"an image can be built for 1 to {most} hosts, not for {slots}")
    return size


def parse(data: bytes) -> Header:
    """Read a header from the start of ``data``. Raises :class:`ImageError`; nothing is verified by a key yet."""
    if len(data) < _FIXED.size:
        raise ImageError("the header is cut off")
    magic, version, size, iv, slot_count, area, pages, flags, customer, pld, ald, tld = _FIXED.unpack_from(data)
    if magic != MAGIC:
        raise ImageError("no Secure Execution header is where it should be")
    if version != VERSION:
        raise ImageError(f"the header has version {version:#x}, known is {VERSION:#x}")
    if size > LARGEST_HEADER or size > len(data):
        raise ImageError("the header is longer than it may be")
    if not slot_count or slot_count > LARGEST_HEADER // SLOT_SIZE or area < _SECRETS.size or area > LARGEST_HEADER:
        raise ImageError("the header has no key slot, too many, or an encrypted area of a wrong size")
    if size != _FIXED.size + slot_count * SLOT_SIZE + area + _TAG:
        raise ImageError("the header's size disagrees with its parts")
    slots = tuple(data[_FIXED.size + i * SLOT_SIZE :][:SLOT_SIZE] for i in range(slot_count))
    return Header(iv, pages, flags, customer, pld, ald, tld, slots, area, bytes(data[:size]))


def open_secrets(header: Header, host: EllipticCurvePrivateKey) -> Secrets:
    """Verify the header with a host's key and return what it keeps. Raises :class:`NoSlotError`, :class:`ImageError`."""
    fingerprint = hostkey.HostKey(host.public_key()).fingerprint
    slot = next((slot for slot in header.slots if slot[:32] == fingerprint), None)
    if slot is None:
        raise NoSlotError("the image was not built for this host", "build it with this host's key document")
    header_key = hostkey.open_slot(slot, host, hostkey.from_coordinates(header.customer_key))
    start = len(header.raw) - header.encrypted_size - _TAG
    try:
        area = AESGCM(header_key).decrypt(header.iv, header.raw[start:], header.raw[:start])
    except InvalidTag:
        raise ImageError("the header was changed: its tag does not hold") from None
    communication, component, mask, address, flags, count, _ = _SECRETS.unpack_from(area)
    return Secrets(communication, component, mask, address, flags, area[_SECRETS.size :], count)


def build_ipib(components: Sequence[Component], header_address: int, header_length: int) -> bytes:
    """Return the parameter block, padded to a page."""
    parts = b"".join(_COMPONENT.pack(part.tweak_prefix, part.address, part.size) for part in components)
    inner = _IPIB.size - 8 + len(parts)
    fixed = _IPIB.pack(*(8 + inner, 0, 1, inner, 5, bytes(8), 1, len(components), header_address, header_length))
    return (fixed + parts).ljust(PAGE, b"\0")


def parse_ipib(data: bytes) -> tuple[list[Component], int, int]:
    """Return the components, and where the header is (0 where the tool left it open) and how long.

    Raises :class:`ImageError` on anything but a version 1 block of type 5 whose lengths agree.
    """
    if len(data) < _IPIB.size:
        raise ImageError("the parameter block is cut off")
    length, _, version, inner, kind, _, pv_version, count, address, size = _IPIB.unpack_from(data)
    if (version, kind, pv_version) != (1, 5, 1):
        raise ImageError("no parameter block for protected virtualization is where it should be")
    end = _IPIB.size + count * _COMPONENT.size
    if not 1 <= count <= 128 or end > len(data) or length < end or length > LARGEST_IPIB or inner > length - 8:
        raise ImageError("the parameter block's lengths don't agree")
    return [Component(*part) for part in _COMPONENT.iter_unpack(data[_IPIB.size : end])], address, size
