"""The Secure Execution image format a second time, written from the format page alone: nothing of the package is used.

``read`` opens what our packer wrote; AES-XTS is built here from single AES blocks, so that the page and tweak order is proved
too. ``craft`` is a packer like the older tools' (components right after the header) whose every field may be made
to lie before the header is sealed: it writes hostile images whose tag and digests hold.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

PAGE = 4096
IPIB, HEADER = 0x13000, 0x14000
Key = ec.EllipticCurvePrivateKey


def xts_page(key: bytes, tweak: bytes, page: bytes, *, encrypt: bool) -> bytes:
    """IEEE 1619 over one page: C_j = E(P_j ^ T·a^j) ^ T·a^j, T = E_2(tweak), little-endian numbers of GF(2^128)."""
    mask = Cipher(AES(key[32:]), ECB()).encryptor().update(tweak)
    number, masks = int.from_bytes(mask, "little"), []
    for _ in range(len(page) // 16):
        masks.append(number.to_bytes(16, "little"))
        number = (number << 1) ^ (0x87 if number >> 127 else 0)
        number &= (1 << 128) - 1
    whitening = int.from_bytes(b"".join(masks), "big")
    cipher = Cipher(AES(key[:32]), ECB())
    context = cipher.encryptor() if encrypt else cipher.decryptor()
    inner = context.update((int.from_bytes(page, "big") ^ whitening).to_bytes(len(page), "big"))
    return (int.from_bytes(inner, "big") ^ whitening).to_bytes(len(page), "big")


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    return b"".join(number.to_bytes(80, "big") for number in (numbers.x, numbers.y))


def wrapping(private: Key, public: ec.EllipticCurvePublicKey) -> AESGCM:
    return AESGCM(hashlib.sha256(private.exchange(ec.ECDH(), public) + bytes.fromhex("00000001")).digest())


@dataclass
class Read:
    kernel: bytes
    cmdline: bytes
    initrd: bytes | None
    tag: bytes
    digests: tuple[bytes, bytes, bytes]
    hosts: list[bytes]
    psw: tuple[int, int]
    tweak_prefixes: list[int]


def read(image: bytes, host: Key) -> Read:
    """Open an image; every rule of the format page is an assertion."""
    assert image[:8] == bytes.fromhex("0008000080011000")
    assert struct.unpack_from(">8sQIQ", image, 0xC000) == (b"SeImgLnx", HEADER, 1, IPIB)
    length, flags, version, inner, kind, pv_version, count, header_at, header_size = struct.unpack_from(
        ">IB2xBIB3x8x84x3xB4xIQQ", image, IPIB
    )
    assert (flags, version, kind, pv_version, inner) == (0, 1, 5, 1, length - 8)
    places = [struct.unpack_from(">QQQ", image, IPIB + 136 + 24 * i) for i in range(count)]
    assert 136 + 24 * count == length

    header = image[header_at : header_at + header_size]
    assert header[:8] == b"IBMSecEx"
    assert struct.unpack_from(">II", header, 8) == (0x100, header_size)
    iv = header[16:28]
    slots, area, pages, clear_flags = struct.unpack_from(">QQQQ", header, 32)
    assert clear_flags == 0xE0
    assert 416 + 80 * slots + area + 16 == header_size <= 8192
    x, y = (int.from_bytes(header[at : at + 80], "big") for at in (64, 144))
    customer = ec.EllipticCurvePublicNumbers(x, y, ec.SECP521R1()).public_key()
    all_slots = [header[416 + 80 * i :][:80] for i in range(slots)]
    mine = hashlib.sha256(point(host.public_key())).digest()
    (slot,) = (slot for slot in all_slots if slot[:32] == mine)
    header_key = wrapping(host, customer).decrypt(bytes(12), slot[32:], None)
    start = header_size - 16 - area
    secret = AESGCM(header_key).decrypt(iv, header[start:], header[:start])
    component_key, (mask, entry, secret_flags, items, _) = secret[32:96], struct.unpack_from(">QQQII", secret, 96)
    assert (secret_flags, items, len(secret)) == (0, 0, 128)

    pld, ald, tld = hashlib.sha512(), hashlib.sha512(), hashlib.sha512()
    parts, end, total = [], header_at + header_size, 0
    for prefix, address, size in places:
        assert address % PAGE == 0 and size % PAGE == 0 and size and address >= end and address + size <= len(image)
        end = address + size
        plain = b""
        for offset in range(0, size, PAGE):
            page, tweak = image[address + offset :][:PAGE], struct.pack(">QQ", prefix, offset)
            pld.update(page)
            ald.update(struct.pack(">Q", address + offset))
            tld.update(tweak)
            plain += xts_page(component_key, tweak, page, encrypt=False)
            total += 1
        parts.append(plain)
    assert end == len(image)
    assert total == pages
    digests = (pld.digest(), ald.digest(), tld.digest())
    assert b"".join(digests) == header[224:416]
    assert entry == places[-1][1]

    arguments = parts[-1][: parts[-1].rindex(struct.pack(">QQ", 0x180000000, 0x10000))][-48:]
    blobs = [struct.unpack_from(">QQ", arguments, 16 * i) for i in range(3)]
    if count == 3:
        assert blobs.pop() == (0, 0)
    assert [address for address, _ in blobs] == [address for _, address, _ in places[:-1]]
    exact = []
    for part, (_, size) in zip(parts, blobs, strict=False):
        assert len(part) - size < PAGE and not any(part[size:])
        exact.append(part[:size])
    return Read(
        kernel=exact[0],
        cmdline=exact[1].removesuffix(b"\0"),
        initrd=exact[2] if count == 4 else None,
        tag=header[-16:],
        digests=digests,
        hosts=[slot[:32] for slot in all_slots],
        psw=(mask, entry),
        tweak_prefixes=[prefix for prefix, _, _ in places],
    )


def craft_newer(
    parts: dict[str, bytes], hosts: Sequence[Key], *, flags: int = 0xE0, kinds: dict[str, int] | None = None
) -> bytes:
    """Return an image as the newer tool (`pvimg`) lays it out: kernel, initrd, command line, then the parameter block.

    ``parts``: in the order in which they shall stand; what `pvimg` numbers 40, 50, 60, 70 may be numbered otherwise.
    Where ``flags`` say so (bit 35 from the left), components are not encrypted.
    """
    numbers = {"kernel": 40, "initrd": 50, "cmdline": 60, "stage3b": 70, **(kinds or {})}
    customer, header_key, component_key = ec.generate_private_key(ec.SECP521R1()), os.urandom(32), os.urandom(64)
    header_size = 416 + 80 * len(hosts) + 128 + 16
    address = -(-(HEADER + header_size) // PAGE) * PAGE
    image, ipib, blobs = bytearray(address), b"", {}
    pld, ald, tld, pages = hashlib.sha512(), hashlib.sha512(), hashlib.sha512(), 0

    def put(name: str, content: bytes) -> None:
        nonlocal image, ipib, address, pages
        prefix = numbers[name] << 48 | int.from_bytes(os.urandom(6), "big")
        padded = content.ljust(-(-len(content) // PAGE) * PAGE, b"\0")
        blobs[name] = (address, len(content))
        ipib += struct.pack(">QQQ", prefix, address, len(padded))
        for offset in range(0, len(padded), PAGE):
            page, tweak = padded[offset : offset + PAGE], struct.pack(">QQ", prefix, offset)
            if not flags >> 28 & 1:
                page = xts_page(component_key, tweak, page, encrypt=True)
            image += page
            pld.update(page)
            ald.update(struct.pack(">Q", address + offset))
            tld.update(tweak)
            pages += 1
        address += len(padded)

    for name, content in parts.items():
        put(name, content)
    entry = address
    arguments = (number for name in ("kernel", "cmdline", "initrd") for number in blobs.get(name, (0, 0)))
    put("stage3b", b"\x07\xfe" * 1000 + struct.pack(">8Q", *arguments, 0x180000000, 0x10000))
    header = struct.pack(">8sII12s4x", b"IBMSecEx", 0x100, header_size, iv := os.urandom(12))
    header += struct.pack(">QQQQ", len(hosts), 128, pages, flags) + point(customer.public_key())
    header += pld.digest() + ald.digest() + tld.digest()
    for host in hosts:
        wrapped = wrapping(customer, host.public_key()).encrypt(bytes(12), header_key, None)
        header += hashlib.sha256(point(host.public_key())).digest() + wrapped
    secret = os.urandom(32) + component_key + struct.pack(">QQQII", 0x180000000, entry, 0, 0, 0)
    header += AESGCM(header_key).encrypt(iv, secret, header)
    count = len(ipib) // 24
    fixed = struct.pack(
        ">IB2xBIB3x8x84x3xB4xIQQ", 136 + len(ipib), 0, 1, 128 + len(ipib), 5, 1, count, HEADER, header_size
    )
    image[:8] = bytes.fromhex("0008000080011000")
    image[0xC000:0xC01C] = struct.pack(">8sQIQ", b"SeImgLnx", HEADER, 1, address)
    image[HEADER : HEADER + header_size] = header
    return bytes(image) + fixed + ipib


@dataclass
class Draft:
    """An image about to be sealed. What is ``None`` is filled in with the truth."""

    places: list[list[int]]
    """Of each component: tweak prefix, address, size."""
    component_key: bytes = field(default_factory=lambda: os.urandom(64))
    header_at: int = HEADER
    ipib_at: int = IPIB
    told_header_at: int | None = None
    told_header_size: int | None = None
    count: int | None = None
    ipib_length: int | None = None
    ipib_inner: int | None = None
    ipib_version: int = 1
    ipib_kind: int = 5
    pv_version: int = 1
    magic: bytes = b"IBMSecEx"
    version: int = 0x100
    size: int | None = None
    slots: list[bytes] | None = None
    slot_count: int | None = None
    area_size: int | None = None
    pages: int | None = None
    flags: int = 0xE0
    customer: bytes | None = None
    digests: list[bytes | None] = field(default_factory=lambda: [None, None, None])
    items: bytes = b""
    item_count: int = 0
    secret: bytes | None = None
    after: bytes = b""


def craft(
    parts: Sequence[bytes], hosts: Sequence[Key], change: Callable[[Draft], object] = lambda draft: None
) -> bytes:
    """Return an image of kernel, command line, (initrd,) and a loader; ``change`` may make any field lie.

    The component's digests are those of the pages that the fields name, and the tag is that of the header as it then is.
    """
    address, places = HEADER + PAGE, []
    sizes = [len(part) for part in parts]
    arguments = b""
    for number, size in enumerate(sizes):
        places.append([number << 48 | 0xABCDEF + number, address, -(-size // PAGE) * PAGE])
        arguments += struct.pack(">QQ", address, size)
        address += places[-1][2]
    arguments += bytes(16) * (3 - len(parts)) + struct.pack(">QQ", 0x180000000, 0x10000)
    loader = b"\x07\xfe" * 100 + arguments
    places.append([3 << 48 | 0x123456, address, PAGE])
    honest = [list(place) for place in places]
    draft = Draft(places)
    change(draft)

    image = bytearray(address + PAGE)
    for part, (prefix, at, size) in zip([*parts, loader], honest, strict=True):
        padded = part.ljust(size, b"\0")
        for offset in range(0, size, PAGE):
            tweak = struct.pack(">QQ", prefix, offset)
            page = padded[offset : offset + PAGE]
            if draft.component_key[:32] != draft.component_key[32:]:
                page = xts_page(draft.component_key, tweak, page, encrypt=True)
            image[at + offset : at + offset + PAGE] = page

    pld, ald, tld = hashlib.sha512(), hashlib.sha512(), hashlib.sha512()
    pages = 0
    for prefix, at, size in draft.places:
        for offset in range(0, min(size, 1 << 20), PAGE):
            pld.update(image[at + offset : at + offset + PAGE])
            ald.update(struct.pack(">Q", (at + offset) % (1 << 64)))
            tld.update(struct.pack(">QQ", prefix, offset))
        pages += -(-size // PAGE)
    truth = (pld.digest(), ald.digest(), tld.digest())
    digests = [lie if lie is not None else digest for lie, digest in zip(draft.digests, truth, strict=True)]

    def told(lie: int | None, fact: int) -> int:
        return fact if lie is None else lie

    customer, header_key, iv = ec.generate_private_key(ec.SECP521R1()), os.urandom(32), os.urandom(12)
    slots = draft.slots
    if slots is None:
        slots = [
            hashlib.sha256(point(host.public_key())).digest()
            + wrapping(customer, host.public_key()).encrypt(bytes(12), header_key, None)
            for host in hosts
        ]
    secret = os.urandom(32) + draft.component_key
    secret += struct.pack(">QQQII", 0x180000000, address, 0, draft.item_count, 0) + draft.items
    secret = secret if draft.secret is None else draft.secret
    size = 416 + sum(map(len, slots)) + len(secret) + 16
    header = struct.pack(">8sII12s4x", draft.magic, draft.version, told(draft.size, size), iv)
    header += struct.pack(">QQ", told(draft.slot_count, len(slots)), told(draft.area_size, len(secret)))
    header += struct.pack(">QQ", told(draft.pages, pages) % (1 << 64), draft.flags)
    header += (point(customer.public_key()) if draft.customer is None else draft.customer) + b"".join(digests)
    header += b"".join(slots)
    header += AESGCM(header_key).encrypt(iv, secret, header)

    inner = 128 + 24 * len(draft.places)
    ipib = struct.pack(
        *(">IB2xBIB3x8x84x3xB4xIQQ", told(draft.ipib_length, inner + 8), 0, draft.ipib_version),
        *(told(draft.ipib_inner, inner), draft.ipib_kind, draft.pv_version, told(draft.count, len(draft.places))),
        *(told(draft.told_header_at, draft.header_at), told(draft.told_header_size, len(header))),
    )
    ipib += b"".join(struct.pack(">QQQ", *(number % (1 << 64) for number in place)) for place in draft.places)
    image[draft.ipib_at : draft.ipib_at + len(ipib)] = ipib
    image[draft.header_at : draft.header_at + len(header)] = header
    return bytes(image) + draft.after
