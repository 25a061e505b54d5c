"""Packs and opens Secure Execution images, streaming: memory stays flat whatever their size.

    packed = pack(out, kernel=file, cmdline=b"console=…", initrd=file, hosts=[hostkey.load(document)])
    opened = open_image(file, host_private_key, sink=lambda name, size: open_somewhere())

The file is what a machine loads at address 0:

    0x0       short PSW that starts stage3a          0x13000   IPIB
    0xc000    where IPIB and header are               0x14000   header, then the components on page boundaries:
    0x10000   stage3a, the loader in the clear                  kernel, command line, initrd, stage3b

Components are encrypted page by page with AES-256-XTS; the tweak of a page is its component's prefix (u64) and the offset
within the component (u64). Three digests in the header cover every page, every address and every tweak.

That is our layout, and the older tool's; the newer one has kernel, initrd, command line, and the IPIB at the very end.

``open_image`` reads every byte of the file once and in order (only a parameter block at the end is looked at before, and
compared when its turn comes), hashes and decrypts the same memory, and returns only when the header's tag, the three
digests and the page count have held; until then the caller must use nothing of what its sinks were given. stage3a and
stage3b are code for IBM Z (:mod:`casemate.secureexec.loader`): a kernel for IBM Z gets them by itself. Any other is
for the software ultravisor, which doesn't run them: then both places hold a PSW that waits, disabled.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP521R1,
    EllipticCurvePrivateKey,
    derive_private_key,
    generate_private_key,
)
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from casemate.secureexec import header as headers
from casemate.secureexec.errors import ImageError
from casemate.secureexec.header import PAGE, Component, Header, Secrets
from casemate.secureexec.hostkey import HostKey, coordinates, make_slot
from casemate.secureexec.loader import STAGE3A as OUR_STAGE3A
from casemate.secureexec.loader import STAGE3B as OUR_STAGE3B

STAGE3A, STAGE3A_ENTRY, IPIB, HEADER, COMPONENTS = 0x10000, 0x11000, 0x13000, 0x14000, 0x16000
METADATA = 0xC000
NAMES = ("kernel", "cmdline", "initrd", "stage3b")
WITHOUT_INITRD = ("kernel", "cmdline", "stage3b")
_KINDS = {40: "kernel", 50: "initrd", 60: "cmdline", 70: "stage3b"}
"""What the newer tool begins its tweaks with, in the order of its components; command line and initrd may be missing."""
_SMALL = ("cmdline", "stage3b")
LARGEST_CMDLINE = 4096
LARGEST_CLEAR = 1 << 20
LARGEST_IMAGE = 8 << 30
CHUNK = 1 << 20
DISABLED_WAIT = struct.pack(">QQ", 0x0002000180000000, 0x0000000000000CA5)
_TWEAK = struct.Struct(">QQ")
_ARGUMENTS = struct.Struct(">6QQQ")
_STAGE3A_ARGUMENTS = struct.Struct(">QQQ")
_METADATA_FORM = struct.Struct(">8sQIQ")
_METADATA = _METADATA_FORM.pack(b"SeImgLnx", HEADER, 1, IPIB)
"""Tells tools where the header and the parameter block are; firmware does not read it."""
_KERNEL_PSW = (0x180000000, 0x10000)
_S390_MAGIC, _S390_MAGIC_AT = b"S390EP", 0x10008
"""What a Linux kernel for IBM Z has beside its entry."""

Source = bytes | BinaryIO
Progress = Callable[[int], None]
Sink = Callable[[str, int], BinaryIO]


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written: its size, the three digests and the tag that an attestation names it by.

    ``loaders``: whether a machine can start it; else it is for the software ultravisor.
    """

    size: int
    pld: bytes
    ald: bytes
    tld: bytes
    tag: bytes
    components: tuple[Component, ...]
    loaders: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """A verified image: exact sizes by component name, the components' places, what the encrypted area held."""

    sizes: dict[str, int]
    components: tuple[Component, ...]
    header: Header
    secrets: Secrets = field(repr=False)


class _Draw:
    """What an image has at random; of a seed the same for everybody."""

    def __init__(self, seed: bytes | None) -> None:
        self._seed, self._drawn = seed, 0

    def __call__(self, size: int) -> bytes:
        """Return so many bytes."""
        if self._seed is None:
            return secrets.token_bytes(size)
        self._drawn += 1
        return hashlib.shake_256(b"casemate image\0" + self._drawn.to_bytes(4, "big") + self._seed).digest(size)

    def key(self) -> EllipticCurvePrivateKey:
        """Return a key on P-521."""
        if self._seed is None:
            return generate_private_key(SECP521R1())
        return derive_private_key(int.from_bytes(self(64), "big") + 1, SECP521R1())  # 512 bits are below the order


class _Line:
    """A line that every chunk goes through: cipher here, hashing and writing each on a thread of its own.

    OpenSSL and the system work without the interpreter's lock, so a line takes little longer than its SHA-512 alone.
    Three chunks at most are in the line. One cipher object does for all pages: each page's context takes the tweak as it
    stands at that moment.
    """

    def __init__(self, key: bytes, *, encrypt: bool, plain: bool = False) -> None:
        if key[:32] == key[32:]:
            raise ImageError("the component key is none for AES-XTS: its halves are equal")
        self._pld, self._ald, self._tld = hashlib.sha512(), hashlib.sha512(), hashlib.sha512()
        self.pages = 0
        self._tweak = bytearray(16)
        cipher = Cipher(AES(key), XTS(self._tweak))
        self._encrypt, self._context = encrypt, cipher.encryptor if encrypt else cipher.decryptor
        self._plain = plain
        self._hasher, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._ring: deque[tuple[bytearray, tuple[Future[object], ...]]] = deque(
            (bytearray(CHUNK + PAGE), ()) for _ in range(3)
        )

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._hasher, self._writer):
            pool.shutdown(cancel_futures=True)

    def put(self, component: Component, offset: int, data: bytes, out: BinaryIO) -> None:
        """Take whole pages, at most ``CHUNK``, that stand at ``offset`` of a component; write the result to ``out``."""
        buffer, pending = self._ring.popleft()
        for future in pending:
            future.result()
        source, target = memoryview(data), memoryview(buffer)
        tweaks = bytearray()
        for start in range(0, len(data), PAGE):
            _TWEAK.pack_into(self._tweak, 0, component.tweak_prefix, offset + start)
            tweaks += self._tweak
            if self._plain:
                target[start : start + PAGE] = source[start : start + PAGE]
            else:
                self._context().update_into(source[start : start + PAGE], target[start:])
        result = target[: len(data)]
        work: tuple[Future[object], ...] = (
            self._hasher.submit(self._pld.update, result if self._encrypt else data),
            self._writer.submit(out.write, result),
        )
        self._ring.append((buffer, work))
        self._tld.update(tweaks)
        first = component.address + offset
        addresses = range(first, first + len(data), PAGE)
        self._ald.update(struct.pack(f">{len(addresses)}Q", *addresses))
        self.pages += len(addresses)

    def finish(self) -> tuple[bytes, bytes, bytes]:
        """Wait until all was hashed and written; return PLD, ALD and TLD."""
        for _, pending in self._ring:
            for future in pending:
                future.result()
        return self._pld.digest(), self._ald.digest(), self._tld.digest()


def _pages(source: Source) -> Iterator[tuple[bytes, int]]:
    """Yield whole pages, the last filled with zeros, and how many bytes of each part were really there."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    while data := _read_up_to(file, CHUNK):
        yield data.ljust(-(-len(data) // PAGE) * PAGE, b"\0"), len(data)
        if len(data) < CHUNK:
            return


def _read_up_to(file: BinaryIO, size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end: pipes give less at a time."""
    parts, left = [], size
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def pack(
    out: BinaryIO,
    *,
    kernel: Source,
    cmdline: bytes,
    initrd: Source | None,
    hosts: Sequence[HostKey],
    stage3a: bytes | None = None,
    stage3b: bytes | None = None,
    flags: int = headers.DEFAULT_FLAGS,
    secret_flags: int = 0,
    communication_key: bytes | None = None,
    seed: bytes | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Write an image to ``out``, a file that can seek. ``progress`` is told how many bytes were packed so far.

    Where no loaders are given, a Linux kernel for IBM Z gets ours; any other kernel gets none.

    ``seed``: all that is random otherwise is drawn from it. Such an image hides nothing from who knows the seed, and
    everybody who packs the same gets the same bytes: for images that hold no secret, and that many want to have packed
    themselves.

    Raises :class:`ImageError`: no host or too many, a component of a size that can't be.
    """
    header_length = headers.header_size(len(hosts))
    if len(cmdline) >= LARGEST_CMDLINE or b"\0" in cmdline:
        raise ImageError(f"the command line must be shorter than {LARGEST_CMDLINE} bytes, without NUL")
    if stage3a is not None and not _STAGE3A_ARGUMENTS.size < len(stage3a) <= IPIB - STAGE3A:
        raise ImageError("stage3a is too small or too large to be that loader")
    if stage3b is not None and not _ARGUMENTS.size < len(stage3b) <= CHUNK:
        raise ImageError("stage3b is too small or too large to be that loader")
    for_z = False
    draw = _Draw(seed)
    customer = draw.key()
    header_key, component_key = draw(32), draw(64)
    placed: list[Component] = []
    blobs: list[tuple[int, int]] = []
    address = COMPONENTS

    def place(name: str, source: Source) -> None:
        nonlocal address, for_z
        prefix = len(placed).to_bytes(2, "big") + draw(6)
        component = Component(int.from_bytes(prefix, "big"), address, 0)
        size = 0
        for pages, length in _pages(source):
            if address + size + length > LARGEST_IMAGE:
                raise ImageError("the image would be larger than 8 GiB")
            if name == "kernel" and not size:
                for_z = pages.startswith(_S390_MAGIC, _S390_MAGIC_AT)
            line.put(component, size, pages, out)
            size += length
            if progress:
                progress(address + size - COMPONENTS)
        if not size:
            raise ImageError(f"the {name} is empty")
        padded = -(-size // PAGE) * PAGE
        placed.append(Component(component.tweak_prefix, address, padded))
        blobs.append((address, size))
        address += padded

    out.seek(address)
    with _Line(component_key, encrypt=True) as line:
        place("kernel", kernel)
        if for_z and stage3a is None and stage3b is None:
            stage3a, stage3b = OUR_STAGE3A, OUR_STAGE3B
        place("command line", cmdline + b"\0")
        if initrd is None:
            blobs.append((0, 0))
        else:
            place("initrd", initrd)
        entry = address
        arguments = _ARGUMENTS.pack(*(number for blob in blobs for number in blob), *_KERNEL_PSW)
        place("stage3b", (stage3b[: -_ARGUMENTS.size] if stage3b else DISABLED_WAIT) + arguments)
        digests = line.finish()

    header = headers.build(
        iv=draw(12),
        pages=line.pages,
        digests=digests,
        slots=[make_slot(host, customer, header_key) for host in hosts],
        customer_key=coordinates(customer.public_key()),
        header_key=header_key,
        secrets=Secrets(
            communication_key or draw(headers.COMMUNICATION_KEY),
            component_key,
            psw_address=entry,
            flags=secret_flags,
        ),
        flags=flags,
    )
    out.seek(0)
    out.write(_clear(stage3a, headers.build_ipib(placed, HEADER, header_length), header))
    out.seek(address)
    return Packed(address, *digests, header[-16:], tuple(placed), stage3a is not None and stage3b is not None)


def _clear(stage3a: bytes | None, ipib: bytes, header: bytes) -> bytes:
    """Return what stands before the components."""
    psw = struct.pack(">II", 0x00080000, 0x80000000 | STAGE3A_ENTRY)
    if stage3a:
        base = STAGE3A + len(stage3a) - _STAGE3A_ARGUMENTS.size
        arguments = _STAGE3A_ARGUMENTS.pack(HEADER - base, len(header), IPIB - base)
        loader = stage3a[: -_STAGE3A_ARGUMENTS.size] + arguments
    else:
        loader = bytes(STAGE3A_ENTRY - STAGE3A) + DISABLED_WAIT
    clear = (psw.ljust(METADATA, b"\0") + _METADATA).ljust(STAGE3A, b"\0") + loader.ljust(IPIB - STAGE3A, b"\0")
    return clear + ipib.ljust(HEADER - IPIB, b"\0") + header.ljust(COMPONENTS - HEADER, b"\0")


@dataclass(frozen=True, slots=True)
class Clear:
    """What stands in the clear: all bytes before the components, the header, the components' places and names.

    ``block``: the page with the parameter block, at ``block_at``.
    """

    data: bytes
    header: Header
    components: tuple[Component, ...]
    names: tuple[str, ...]
    block: bytes
    block_at: int


def read_clear(file: BinaryIO) -> Clear:
    """Read what stands in the clear. Nothing is verified by a key.

    Raises :class:`ImageError` where header or components can't be, or overlap. Where the parameter block is behind the
    components the file must be one that can seek; it then stands where the first component begins.
    """
    clear = _read_up_to(file, STAGE3A)
    at, block = _block_at_the_end(file, clear)
    while not block:  # the parameter block is on a page boundary after stage3a, before or after the header
        at, page = len(clear), _read_up_to(file, PAGE)
        clear += page
        if _is_block(page):
            block = page
        elif len(page) < PAGE or len(clear) > LARGEST_CLEAR:
            raise ImageError("no parameter block for protected virtualization is in the file")
    components, header_address, header_size = headers.parse_ipib(block)
    end = components[0].address
    if not len(clear) <= end <= LARGEST_CLEAR:
        raise ImageError("the components begin at an impossible place")
    clear += _read_up_to(file, end - len(clear))
    where = header_address or next((at for at in range(STAGE3A, end, PAGE) if clear.startswith(headers.MAGIC, at)), end)
    header = headers.parse(clear[where:])
    if header_size not in (0, len(header.raw)):
        raise ImageError("the parameter block's lengths don't agree")
    names = _names(components)
    _check_places(components, where + len(header.raw), header.pages)
    if STAGE3A <= at < end and clear[at : at + len(block)] != block[: end - at]:
        raise ImageError("the file changed while it was read")
    if end <= at < (last := components[-1]).address + last.size:
        raise ImageError("the parameter block is within a component")
    return Clear(clear, header, tuple(components), names, block, at)


def _block_at_the_end(file: BinaryIO, clear: bytes) -> tuple[int, bytes]:
    """Return place and bytes of the parameter block where the note for tools says so and one is there; else nothing."""
    if not clear.startswith(_METADATA[:8], METADATA) or not file.seekable():
        return 0, b""
    _, _, version, at = _METADATA_FORM.unpack_from(clear, METADATA)
    if version != 1 or at % PAGE or not len(clear) <= at < LARGEST_IMAGE:
        return 0, b""
    file.seek(at)
    block = _read_up_to(file, PAGE)
    file.seek(len(clear))
    return (at, block) if _is_block(block) else (0, b"")


def _is_block(data: bytes) -> bool:
    try:
        headers.parse_ipib(data)
    except ImageError:
        return False
    return True


def _names(components: Sequence[Component]) -> tuple[str, ...]:
    """Return the names of components: by the numbers that the newer tool gives them, or else by their order."""
    kinds = [component.tweak_prefix >> 48 for component in components]
    if all(kind in _KINDS for kind in kinds):
        names = tuple(_KINDS[kind] for kind in kinds)
        if kinds == sorted(set(kinds)) and {"kernel", "stage3b"} <= set(names):
            return names
    elif len(components) in (len(NAMES), len(WITHOUT_INITRD)):
        return NAMES if len(components) == len(NAMES) else WITHOUT_INITRD
    raise ImageError(f"the image has {len(components)} components that are not those of any known image")


def _check_places(components: list[Component], start: int, pages: int) -> None:
    for component in components:
        if component.address % PAGE or not component.size or component.address + component.size > LARGEST_IMAGE:
            raise ImageError("a component is empty, not on a page boundary, or too far away")
        if component.address < start:
            raise ImageError("components overlap each other or the header, or are out of order")
        start = component.address + -(-component.size // PAGE) * PAGE
    if sum(-(-component.size // PAGE) for component in components) != pages:
        raise ImageError("the header's number of pages is not that of the components")


def open_image(file: BinaryIO, host: EllipticCurvePrivateKey, sink: Sink, progress: Progress | None = None) -> Contents:
    """Decrypt the components into files that ``sink(name, padded size)`` gives; return when everything held.

    The sinks are truncated to the exact sizes. Raises :class:`ImageError` or :class:`NoSlotError`: then nothing of what was
    written may be used, by anyone.
    """
    clear = read_clear(file)
    header = clear.header
    secrets = headers.open_secrets(header, host)
    position = len(clear.data)
    sinks: dict[str, BinaryIO] = {}
    plain = bool(header.flags & headers.FLAGS["no-component-encryption"])
    with _Line(secrets.component_key, encrypt=False, plain=plain) as line:
        for name, component in zip(clear.names, clear.components, strict=True):
            _skip(file, component.address - position)
            padded = -(-component.size // PAGE) * PAGE
            if name in _SMALL and padded > CHUNK:
                raise ImageError(f"the {name} is too large")
            sinks[name] = io.BytesIO() if name in _SMALL else sink(name, padded)
            for offset in range(0, padded, CHUNK):
                data = _read_up_to(file, min(CHUNK, padded - offset))
                if len(data) < min(CHUNK, padded - offset):
                    raise ImageError("a component leaves the file")
                line.put(component, offset, data, sinks[name])
                if progress:
                    progress(component.address + offset + len(data))
            position = component.address + padded
        digests = line.finish()
    if digests != (header.pld, header.ald, header.tld) or line.pages != header.pages:
        raise ImageError("the components were changed: the header's digests do not hold")
    if clear.block_at >= position:
        _skip(file, clear.block_at - position)
        if _read_up_to(file, len(clear.block)) != clear.block:
            raise ImageError("the file changed while it was read")
    if file.read(1):
        raise ImageError("the file goes on after its last component")
    sizes = _exact_sizes(dict(zip(clear.names, clear.components, strict=True)), sinks)
    _check_clear(clear, sinks["stage3b"], sizes["stage3b"])
    for name in _SMALL:
        content = sinks[name]
        content.seek(0)
        sink(name, sizes[name]).write(content.read(sizes[name]))
    for name in ("kernel", "initrd"):
        if name in sinks:
            sinks[name].truncate(sizes[name])
            sinks[name].flush()
    return Contents(sizes, clear.components, header, secrets)


def _check_clear(clear: Clear, stage3b: BinaryIO, size: int) -> None:
    """Nothing authenticates the part in the clear. Where there are no loaders, or ours, all of it is known, and must be that.

    Which it is, is known from the component where the second one is. A tool may leave address and size of the header to
    be filled in later.
    """
    stage3b.seek(0)
    known = {DISABLED_WAIT: None, OUR_STAGE3B[: -_ARGUMENTS.size]: OUR_STAGE3A}
    loader = stage3b.read(size)[: -_ARGUMENTS.size]
    if loader not in known:
        return
    raw = clear.header.raw
    blocks = (headers.build_ipib(clear.components, *place) for place in ((HEADER, len(raw)), (0, 0), (0, len(raw))))
    if not any(clear.data == _clear(known[loader], block, raw) for block in blocks):
        raise ImageError("the part in the clear was changed: it is not what belongs to this image's loaders")


def _skip(file: BinaryIO, size: int) -> None:
    """Read past a gap between components, holding at most a chunk of it."""
    while size and (part := file.read(min(size, CHUNK))):
        size -= len(part)


def _exact_sizes(places: dict[str, Component], sinks: dict[str, BinaryIO]) -> dict[str, int]:
    """Return sizes without the filling: from the arguments of stage3b, which name each component's address and size."""
    loader = sinks["stage3b"]
    loader.seek(0)
    text = loader.read()
    sizes = {name: component.size for name, component in places.items()}
    sinks.setdefault("cmdline", io.BytesIO())
    sizes.setdefault("cmdline", 0)
    at = text.find(struct.pack(">Q", places["kernel"].address))
    while at >= 0 and at + _ARGUMENTS.size <= len(text):
        numbers = _ARGUMENTS.unpack_from(text, at)
        found = {name: (numbers[2 * i], numbers[2 * i + 1]) for i, name in enumerate(NAMES[:3]) if name in places}
        if all(address == places[name].address and 0 < size <= sizes[name] for name, (address, size) in found.items()):
            sizes |= {name: size for name, (_, size) in found.items()} | {"stage3b": at + _ARGUMENTS.size}
            break
        at = text.find(struct.pack(">Q", places["kernel"].address), at + 8)
    line = sinks["cmdline"]
    line.seek(0)
    text = line.read(sizes["cmdline"])
    sizes["cmdline"] = len(text.rstrip(b"\0"))
    return sizes
