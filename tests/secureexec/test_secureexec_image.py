"""Images: what an honest packer writes opens, to the byte; whatever else is refused by a sentence."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from se_format import HEADER, IPIB, PAGE, Draft, craft, craft_newer, point, read

from casemate.errors import CasemateError
from casemate.secureexec import header as headers
from casemate.secureexec import image
from casemate.secureexec.errors import ImageError, NoSlotError
from casemate.secureexec.hostkey import HostKey

Key = ec.EllipticCurvePrivateKey


def opened(data: bytes, host: Key) -> tuple[dict[str, bytes], image.Contents]:
    sinks: dict[str, io.BytesIO] = {}

    def sink(name: str, size: int) -> BinaryIO:
        return sinks.setdefault(name, io.BytesIO())

    contents = image.open_image(io.BytesIO(data), host, sink)
    return {name: file.getvalue() for name, file in sinks.items()}, contents


def packed(host: Key, kernel: bytes = b"K", cmdline: bytes = b"", initrd: bytes | None = b"I", **more: bytes) -> bytes:
    out = io.BytesIO()
    image.pack(
        out,
        kernel=kernel,
        cmdline=cmdline,
        initrd=None if initrd is None else io.BytesIO(initrd),
        hosts=[HostKey(host.public_key())],
        stage3a=more.get("stage3a"),
        stage3b=more.get("stage3b"),
    )
    return out.getvalue()


def test_an_independent_reader_opens_it_for_each_host(small: bytes, host: Key, other: Key, parts: list[bytes]) -> None:
    for key in (host, other):
        found = read(small, key)
        assert [found.kernel, found.cmdline, found.initrd] == parts
    assert found.hosts == [HostKey(key.public_key()).fingerprint for key in (other, host)]
    assert [prefix >> 48 for prefix in found.tweak_prefixes] == [0, 1, 2, 3]
    assert len({prefix & (1 << 48) - 1 for prefix in found.tweak_prefixes}) == 4


@pytest.mark.parametrize("size", [1, 15, 16, PAGE - 1, PAGE, PAGE + 1, image.CHUNK - 1, image.CHUNK, image.CHUNK + 1])
def test_every_size_at_the_edges_comes_back_to_the_byte(host: Key, size: int) -> None:
    kernel, initrd = os.urandom(max(1, size // 3)), os.urandom(size)
    data = packed(host, kernel, b"x" * 4095, initrd)
    found, (again, contents) = read(data, host), opened(data, host)
    assert (found.kernel, found.initrd) == (again["kernel"], again["initrd"]) == (kernel, initrd)
    assert (again["cmdline"], contents.sizes["cmdline"]) == (b"x" * 4095, 4095)
    assert contents.header.tag == found.tag


def test_many_chunks_keep_their_order(host: Key) -> None:
    initrd = random.Random(3).randbytes(9 * image.CHUNK + 5)
    assert opened(packed(host, initrd=initrd), host)[0]["initrd"] == initrd


def test_an_image_without_initrd(host: Key) -> None:
    data = packed(host, b"kernel", b"line", None)
    assert (read(data, host).initrd, read(data, host).kernel) == (None, b"kernel")
    parts, _ = opened(data, host)
    assert {name: parts[name] for name in ("kernel", "cmdline")} == {"kernel": b"kernel", "cmdline": b"line"}
    assert "initrd" not in parts


def test_the_loaders_get_their_arguments(host: Key) -> None:
    data = packed(host, stage3a=b"a" * 5000 + bytes(24), stage3b=b"b" * 3000 + bytes(64))
    found = read(data, host)
    header_size = int.from_bytes(data[HEADER + 12 : HEADER + 16], "big")
    arguments = [int.from_bytes(data[0x10000 + 5000 + at :][:8], "big") for at in (0, 8, 16)]
    assert data[0x10000:][:5000] == b"a" * 5000
    base = 0x10000 + 5000  # offsets count from the arguments themselves, as real loaders read them
    assert arguments == [HEADER - base, header_size, IPIB - base]
    assert found.psw[0] == 0x180000000
    assert opened(data, host)[0]["stage3b"][:3000] == b"b" * 3000


NEWER = {"kernel": b"K" * 5000, "initrd": b"I" * (image.CHUNK + 77), "cmdline": b"console=ttyS0\0"}


@pytest.mark.parametrize("missing", [(), ("cmdline",), ("initrd",), ("initrd", "cmdline")])
def test_images_of_the_newer_tool_open_whatever_is_missing(host: Key, missing: tuple[str, ...]) -> None:
    """Its initrd stands before the command line, and its parameter block behind all of it."""
    given = {name: part for name, part in NEWER.items() if name not in missing}
    parts, contents = opened(craft_newer(given, [host]), host)
    assert parts["kernel"] == NEWER["kernel"]
    assert parts.get("initrd") == given.get("initrd")
    assert parts["cmdline"] == (b"" if "cmdline" in missing else b"console=ttyS0")
    assert len(contents.components) == 4 - len(missing)


def test_an_image_that_says_that_it_is_not_encrypted_opens_as_it_stands(host: Key) -> None:
    data = craft_newer(NEWER, [host], flags=0xE0 | 1 << 28)
    assert b"K" * 5000 in data
    assert opened(data, host)[0]["kernel"] == NEWER["kernel"]
    with pytest.raises(ImageError):  # the flag is covered by the header's tag
        opened(data[: HEADER + 60] + b"\0\0\0\xe0" + data[HEADER + 64 :], host)


@pytest.mark.parametrize(
    ("parts", "kinds"),
    [
        ({"initrd": b"I", "kernel": b"K"}, {}),
        ({"kernel": b"K", "cmdline": b"c\0", "initrd": b"I"}, {}),
        ({"kernel": b"K", "initrd": b"I"}, {"initrd": 40}),
        ({"kernel": b"K", "initrd": b"I", "cmdline": b"c\0"}, {"stage3b": 60}),
        ({"kernel": b"K"}, {"kernel": 0, "stage3b": 1}),
    ],
)
def test_components_that_are_not_what_their_numbers_say_are_refused(
    host: Key, parts: dict[str, bytes], kinds: dict[str, int]
) -> None:
    """A command line may not pass for an initrd: what is which must be certain before anything is opened."""
    with pytest.raises(ImageError, match="not those of any known image"):
        opened(craft_newer(parts, [host], kinds=kinds), host)


def test_a_parameter_block_at_the_end_is_read_once_more_and_must_be_the_same(host: Key) -> None:
    data = craft_newer(NEWER, [host])

    class Changing(io.BytesIO):
        def seek(self, *where: int) -> int:
            if where[0] == 0x10000:  # the block was read; now the file changes
                self.getbuffer()[-1] ^= 1
            return super().seek(*where)

    with pytest.raises(ImageError, match="changed while it was read"):
        image.open_image(Changing(data), host, lambda name, size: io.BytesIO())


def test_nothing_may_follow_the_parameter_block_and_it_must_not_lie_in_a_component(host: Key) -> None:
    data = craft_newer(NEWER, [host])
    with pytest.raises(ImageError):
        opened(data.ljust(-(-len(data) // PAGE) * PAGE + 1, b"\0"), host)
    (at,) = (int.from_bytes(data[0xC014:0xC01C], "big"),)
    inside = HEADER + PAGE  # a copy of the block in place of the kernel's first page
    bad = bytearray(data)
    bad[0xC014:0xC01C] = inside.to_bytes(8, "big")
    bad[inside : inside + len(data) - at] = data[at:]
    with pytest.raises(ImageError, match="within a component"):
        opened(bytes(bad), host)


def test_a_file_that_cannot_seek_is_refused_where_its_parameter_block_is_at_the_end(host: Key) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(ImageError, match=r"no parameter block|impossible place"):
        image.open_image(Pipe(craft_newer(NEWER, [host])), host, lambda name, size: io.BytesIO())


def test_flags_and_communication_key_are_as_asked_for(host: Key) -> None:
    flags, secret_flags = headers.flags_of(
        ["confidential-dump", "cck-extension-secret-enforcement"], ["pckmo-aes"], has_key=True
    )
    assert (flags, secret_flags) == (0xA0 | 1 << 29, 1 << 62)
    out = io.BytesIO()
    image.pack(
        out,
        kernel=b"k",
        cmdline=b"",
        initrd=None,
        hosts=[HostKey(host.public_key())],
        flags=flags,
        secret_flags=secret_flags,
        communication_key=b"c" * 32,
    )
    contents = opened(out.getvalue(), host)[1]
    assert (contents.header.flags, contents.secrets.flags) == (flags, secret_flags)
    assert contents.secrets.communication_key == b"c" * 32
    assert headers.flags_of() == (headers.DEFAULT_FLAGS, 0)


@pytest.mark.parametrize(
    ("enable", "has_key"),
    [
        (["confidential-dump"], False),
        (["cck-extension-secret-enforcement"], False),
        (["cck-extension-secret-enforcement", "cck-update"], True),
        (["no-component-encryption"], True),
    ],
)
def test_flags_that_make_no_sense_are_refused(enable: list[str], has_key: bool) -> None:
    with pytest.raises(ImageError):
        headers.flags_of(enable, has_key=has_key)


def test_every_image_has_keys_of_its_own(host: Key) -> None:
    one, two = packed(host), packed(host)
    assert one[HEADER + 64 : HEADER + 224] != two[HEADER + 64 : HEADER + 224]
    assert one[HEADER + 16 : HEADER + 28] != two[HEADER + 16 : HEADER + 28]
    assert opened(one, host)[1].secrets.component_key != opened(two, host)[1].secrets.component_key


@pytest.mark.parametrize("hosts", [0, 96])
def test_more_hosts_than_fit_or_none_are_refused(host: Key, hosts: int) -> None:
    keys = [HostKey(host.public_key())] * hosts
    with pytest.raises(ImageError, match="1 to 95 hosts"):
        image.pack(io.BytesIO(), kernel=b"k", cmdline=b"", initrd=None, hosts=keys)


def test_as_many_hosts_as_fit(host: Key, other: Key) -> None:
    out = io.BytesIO()
    keys = [HostKey(other.public_key())] * 94 + [HostKey(host.public_key())]
    image.pack(out, kernel=b"k", cmdline=b"", initrd=None, hosts=keys)
    assert read(out.getvalue(), host).kernel == opened(out.getvalue(), host)[0]["kernel"] == b"k"


@pytest.mark.parametrize(
    "wrong",
    [
        {"kernel": b""},
        {"initrd": b""},
        {"cmdline": b"x" * 4096},
        {"cmdline": b"a\0b"},
        {"stage3a": b"short"},
        {"stage3a": bytes(0x3001)},
        {"stage3b": bytes(64)},
        {"stage3b": bytes(image.CHUNK + 1)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_cannot_be_packed_is_refused(host: Key, wrong: dict[str, bytes]) -> None:
    with pytest.raises(ImageError):
        packed(host, **wrong)


def test_a_full_disk_is_told(host: Key) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        image.pack(full, kernel=bytes(1 << 23), cmdline=b"", initrd=None, hosts=[HostKey(host.public_key())])


def test_another_host_opens_nothing(small: bytes) -> None:
    with pytest.raises(NoSlotError):
        opened(small, ec.generate_private_key(ec.SECP521R1()))


def test_every_flipped_byte_of_the_header_is_refused(small: bytes, host: Key) -> None:
    size = int.from_bytes(small[HEADER + 12 : HEADER + 16], "big")
    for at in range(HEADER, HEADER + size):
        refused(flip(small, at), host)


def test_flipped_bytes_of_the_components_are_refused(small: bytes, host: Key) -> None:
    for at in [*range(image.COMPONENTS, len(small), 31), len(small) - 1]:
        refused(flip(small, at), host)


def before_the_components(data: bytes) -> list[int]:
    header_end = HEADER + int.from_bytes(data[HEADER + 12 : HEADER + 16], "big")
    loader, filling = range(image.STAGE3A, IPIB, 509), range(header_end, image.COMPONENTS, 211)
    return [*range(64), *range(64, image.STAGE3A, 1009), *loader, 0x11000, 0x1100F, *range(IPIB, IPIB + 300), *filling]


def test_every_flipped_byte_of_an_image_without_loaders_is_refused(small: bytes, host: Key) -> None:
    """The tag doesn't cover what precedes the header, but all of it is known."""
    for at in before_the_components(small):
        refused(flip(small, at), host)


def test_a_flipped_byte_before_the_components_is_refused_or_changes_nothing(host: Key) -> None:
    """Loaders of others are not known, and not covered by the tag: then the same parts come out, from the same places."""
    data = packed(host, stage3a=b"a" * 5000 + bytes(24), stage3b=b"b" * 3000 + bytes(64))
    honest, contents = opened(data, host)
    for at in before_the_components(data):
        try:
            found, again = opened(flip(data, at), host)
        except CasemateError:
            continue
        assert (found, again) == (honest, contents), hex(at)


def test_an_address_of_the_header_that_is_filled_in_later_may_be_left_out(small: bytes, host: Key) -> None:
    for places in (16, 8):
        data = small[: IPIB + 120] + bytes(places) + small[IPIB + 120 + places :]
        assert opened(data, host) == opened(small, host)
    other_size = small[: IPIB + 128] + (5).to_bytes(8, "big") + small[IPIB + 136 :]
    refused(other_size, host)


def test_every_cut_is_refused_and_so_is_a_tail(small: bytes, host: Key) -> None:
    for size in [0, 1, PAGE, *range(IPIB - 1, len(small), 997), len(small) - PAGE, len(small) - 1]:
        refused(small[:size], host)
    for tail in (b"\0", b"x", bytes(PAGE)):
        refused(small + tail, host)


def test_swapped_pages_are_refused(small: bytes, host: Key) -> None:
    at = image.COMPONENTS
    refused(small[:at] + small[at + PAGE :][:PAGE] + small[at:][:PAGE] + small[at + 2 * PAGE :], host)


def test_nothing_small_reaches_a_sink_before_all_held(small: bytes, host: Key) -> None:
    asked = []

    def sink(name: str, size: int) -> BinaryIO:
        asked.append(name)
        return io.BytesIO()

    with pytest.raises(ImageError):
        image.open_image(io.BytesIO(flip(small, len(small) - 1)), host, sink)
    assert asked == ["kernel", "initrd"]


def test_images_in_the_manner_of_other_tools_open(host: Key, other: Key, parts: list[bytes]) -> None:
    def open_address(draft: Draft) -> None:
        draft.told_header_at = 0

    def header_first(draft: Draft) -> None:
        draft.header_at, draft.ipib_at = IPIB, HEADER

    def items(draft: Draft) -> None:
        draft.items, draft.item_count = os.urandom(48), 1

    for change in (lambda draft: None, open_address, header_first, items):
        found, contents = opened(craft(parts, [other, host], change), host)
        assert [found["kernel"], found["cmdline"], found["initrd"]] == parts
        assert contents.secrets.psw_mask == 0x180000000
    assert opened(craft(parts[:2], [host]), host)[0]["kernel"] == parts[0]


def test_what_lies_in_a_gap_between_components_is_not_used(host: Key, parts: list[bytes]) -> None:
    data = craft(parts, [host], place(0, 2, lambda draft: draft.places[0][2] - PAGE))
    gap = HEADER + PAGE + -(-len(parts[0]) // PAGE) * PAGE - 1
    found, _ = opened(data, host)
    assert found["initrd"] == parts[2]
    assert found["kernel"] == parts[0][: 2 * PAGE]
    assert opened(flip(data, gap), host)[0] == found


def place(component: int, field: int, value: int | Callable[[Draft], int]) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        draft.places[component][field] = value(draft) if callable(value) else value

    return change


def several(**values: object) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        for name, value in values.items():
            assert hasattr(draft, name)
            setattr(draft, name, value)

    return change


def digest(which: int) -> Callable[[Draft], None]:
    return lambda draft: draft.digests.__setitem__(which, os.urandom(64))


HOSTILE: dict[str, Callable[[Draft], object]] = {
    "two components at one address": place(1, 1, lambda draft: draft.places[0][1]),
    "a component that begins inside another": place(1, 1, lambda draft: draft.places[0][1] + PAGE),
    "a component that ends inside another": place(0, 2, lambda draft: draft.places[0][2] + PAGE),
    "components out of order": lambda draft: draft.places.reverse(),
    "a component over the header": place(0, 1, HEADER),
    "a component over the parameter block": place(0, 1, IPIB),
    "a component at zero": place(0, 1, 0),
    "a first component far away": place(0, 1, 1 << 21),
    "a last component outside the file": place(3, 2, 64 * PAGE),
    "a last component after the file": place(3, 1, lambda draft: draft.places[3][1] + 64 * PAGE),
    "a component larger than any image": place(3, 2, 1 << 40),
    "an address that wraps around": place(3, 1, (1 << 64) - PAGE),
    "an address and a size that wrap around": place(3, 2, (1 << 64) - PAGE),
    "an address inside a page": place(3, 1, lambda draft: draft.places[3][1] + 16),
    "an empty component": place(1, 2, 0),
    "another tweak": lambda draft: (place(0, 0, 7)(draft), draft.digests.__setitem__(2, b"\1" * 64)),
    "no component": several(count=0),
    "more components than there are": several(count=5),
    "2^32 - 1 components": several(count=0xFFFFFFFF),
    "two components": lambda draft: draft.places.__delitem__(slice(1, 3)),
    "a component twice": lambda draft: draft.places.append(draft.places[3]),
    "a fifth component": lambda draft: draft.places.append([9 << 48, draft.places[3][1] + PAGE, PAGE]),
    "a parameter block of another version": several(ipib_version=2),
    "a parameter block of another kind": several(ipib_kind=4),
    "another version inside the parameter block": several(pv_version=2),
    "a parameter block that is too short for itself": several(ipib_length=100),
    "a parameter block that is too long": several(ipib_length=1 << 31),
    "an inner length beyond the outer one": several(ipib_inner=1 << 31),
    "a header outside the file": several(told_header_at=1 << 50),
    "a header inside a component": several(told_header_at=HEADER + PAGE),
    "another magic": several(magic=b"IBMSecEy"),
    "another version": several(version=0x200),
    "a size that is too small": several(size=600),
    "a size that is too large": several(size=2000),
    "a size beyond 8192": several(size=8193),
    "a size of zero": several(size=0),
    "no key slot": several(slot_count=0),
    "no key slot at all": several(slots=[]),
    "a key slot too many": several(slot_count=2),
    "2^64 - 1 key slots": several(slot_count=(1 << 64) - 1),
    "key slots that wrap around to the right size": several(slot_count=(1 << 60) + 1),
    "an encrypted area that is too small": several(secret=b"x" * 64),
    "an empty encrypted area": several(secret=b""),
    "an encrypted area of another size": several(area_size=129),
    "an encrypted area of 2^64 - 1": several(area_size=(1 << 64) - 1),
    "too few pages": several(pages=6),
    "no pages": several(pages=0),
    "2^64 - 1 pages": several(pages=(1 << 64) - 1),
    "a customer key that is no point": several(customer=b"\0" * 79 + b"\1" + b"\0" * 79 + b"\1"),
    "a customer key at infinity": several(customer=bytes(160)),
    "a customer key beyond the field": several(customer=b"\xff" * 160),
    "a wrong digest of the pages": digest(0),
    "a wrong digest of the addresses": digest(1),
    "a wrong digest of the tweaks": digest(2),
    "a component key with two equal halves": several(component_key=b"k" * 64),
    "a tail": several(after=b"tail"),
}


REASONS = {
    "two components at one address": "overlap",
    "a component that begins inside another": "overlap",
    "a component that ends inside another": "overlap",
    "components out of order": "overlap",
    "a last component outside the file": "leaves the file",
    "a component larger than any image": "too far away",
    "an address that wraps around": "too far away",
    "an address and a size that wrap around": "too far away",
    "an address inside a page": "not on a page boundary",
    "an empty component": "is empty",
    "a fifth component": "5 components",
    "no key slot": "no key slot",
    "too few pages": "number of pages",
    "no pages": "number of pages",
    "2^64 - 1 pages": "number of pages",
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_image_whose_tag_holds_is_refused(host: Key, parts: list[bytes], hostile: str) -> None:
    refused(craft(parts, [host], HOSTILE[hostile]), host, REASONS.get(hostile, "."))


def test_a_slot_with_another_hosts_name_is_refused(host: Key, other: Key, parts: list[bytes]) -> None:
    """Somebody's slot under this host's name: its tag does not hold."""
    data = craft(parts, [other])
    mine, theirs = (HostKey(key.public_key()).fingerprint for key in (host, other))
    with pytest.raises(ImageError, match="slot"):
        opened(data.replace(theirs, mine), host)


def test_a_fingerprint_is_that_of_the_padded_point(host: Key) -> None:
    import hashlib

    assert HostKey(host.public_key()).fingerprint == hashlib.sha256(point(host.public_key())).digest()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_images_only_ever_give_our_errors(data: st.DataObject) -> None:
    image_bytes, host, honest = _fuzzed()
    broken = bytearray(image_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(IPIB, IPIB + 260), st.integers(HEADER, len(broken) - 1)))
        new = data.draw(st.one_of(st.binary(min_size=1, max_size=16), st.sampled_from([b"\0" * 8, b"\xff" * 8])))
        broken[at : at + len(new)] = new
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(broken))))
    try:
        found, _ = opened(bytes(broken[:cut]), host)
    except CasemateError:
        return
    assert found == honest


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=1200), st.booleans())
def test_headers_of_noise_only_ever_give_our_errors(noise: bytes, with_magic: bool) -> None:
    data = b"IBMSecEx\0\0\1\0" + noise if with_magic else noise
    for parse in (headers.parse, headers.parse_ipib):
        try:
            parse(data)
        except CasemateError:
            continue


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(*[st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 40).map(lambda n: n * PAGE))] * 3)),
    st.one_of(st.none(), st.integers(0, (1 << 64) - 1)),
    st.binary(max_size=200),
)
def test_sealed_headers_of_noise_only_ever_give_our_errors(
    places: list[tuple[int, int, int]], pages: int | None, secret: bytes
) -> None:
    _, host, _ = _fuzzed()

    def change(draft: Draft) -> None:
        for mine, noise in zip(draft.places, places, strict=False):
            mine[:] = noise
        draft.pages, draft.secret = pages, secret or None

    try:
        opened(craft([b"k", b"c", b"i"], [host], change), host)
    except CasemateError:
        return


_FUZZED: list[tuple[bytes, Key, dict[str, bytes]]] = []


def _fuzzed() -> tuple[bytes, Key, dict[str, bytes]]:
    if not _FUZZED:
        host = ec.generate_private_key(ec.SECP521R1())
        data = packed(host, b"kernel" * 2000, b"line", b"initrd" * 1000)
        _FUZZED.append((data, host, opened(data, host)[0]))
    return _FUZZED[0]


PEAK = """
    import os, re, sys
    from pathlib import Path
    from cryptography.hazmat.primitives.asymmetric import ec
    from casemate.secureexec import image
    from casemate.secureexec.hostkey import HostKey

    key = ec.generate_private_key(ec.SECP521R1())
    with open("initrd", "wb") as file:
        file.truncate(int(sys.argv[1]) << 20)
    with open("initrd", "rb") as initrd, open("image", "w+b") as out:
        image.pack(out, kernel=b"k", cmdline=b"", initrd=initrd, hosts=[HostKey(key.public_key())])
        out.seek(0)
        image.open_image(out, key, lambda name, size: open("part", "w+b"))
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_memory_stays_flat_whatever_the_size(tmp_path: Path) -> None:
    def peak(megabytes: int) -> int:
        command = [sys.executable, "-c", textwrap.dedent(PEAK), str(megabytes)]
        return int(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True).stdout)

    small, large = peak(20), peak(200)
    assert large - small < 8 << 10, f"{small} and {large} KiB"


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :]


def refused(data: bytes, host: Key, reason: str = ".") -> None:
    with pytest.raises(CasemateError, match=reason) as caught:
        opened(data, host)
    assert caught.value.id in ("SE-IMAGE", "SE-WRONG-HOST")
    assert caught.value.cause
