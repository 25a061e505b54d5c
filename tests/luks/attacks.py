"""Headers that an infrastructure could write: each takes the bytes before the data of a volume and gives them changed.

    attacked = ATTACKS["a null cipher in the segment"](area)

The checksums of what is written are right, except where the wrong one is the attack: a checksum keeps nobody out. It
shares no code with what is tested. Usable on real disks: read as much as lies before the data, write it back.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

Attack = Callable[[bytes], bytes]

NULL = "cipher_null-ecb"
SEQUENCE_AT = 16


def size_of(area: bytes) -> int:
    return int(struct.unpack_from(">Q", area, 8)[0])


def text_of(area: bytes) -> bytes:
    return area[4096 : size_of(area)].rstrip(b"\0")


def with_checksum(one_copy: bytes) -> bytes:
    zeroed = one_copy[:448] + bytes(64) + one_copy[512:]
    return zeroed[:448] + hashlib.sha256(zeroed).digest() + zeroed[480:]


def with_copy(area: bytes, offset: int, one_copy: bytes) -> bytes:
    """Put a copy of the header at this place."""
    return area[:offset] + one_copy + area[offset + len(one_copy) :]


def with_json(area: bytes, text: bytes, copies: tuple[int, ...] = (0, 1)) -> bytes:
    """Put a JSON text (or any bytes) into these copies of the header."""
    size = size_of(area)
    for index in copies:
        binary = area[index * size :][:4096]
        area = with_copy(area, index * size, with_checksum(binary + text.ljust(size - 4096, b"\0")))
    return area


def with_binary(area: bytes, offset: int, value: bytes, copies: tuple[int, ...] = (0, 1)) -> bytes:
    """Put bytes at a place of the binary part of these copies."""
    size = size_of(area)
    for index in copies:
        one = area[index * size :][:size]
        area = with_copy(area, index * size, with_checksum(one[:offset] + value + one[offset + len(value) :]))
    return area


def edited(change: Callable[[dict[str, Any]], object], copies: tuple[int, ...] = (0, 1)) -> Attack:
    """Make an attack of a change of the JSON object."""

    def attack(area: bytes) -> bytes:
        metadata = json.loads(text_of(area))
        change(metadata)
        return with_json(area, json.dumps(metadata, separators=(",", ":")).encode(), copies)

    return attack


def put(path: str, value: Any) -> Attack:
    """Make an attack that puts a value at a place of the JSON object, as ``segments.0.size``."""

    def change(metadata: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for name in way:
            metadata = metadata[name]
        metadata[last] = value

    return edited(change)


def rewritten(old: bytes, new: bytes) -> Attack:
    """Make an attack that replaces a piece of the JSON text."""

    def attack(area: bytes) -> bytes:
        text = text_of(area)
        assert text.count(old) >= 1
        return with_json(area, text.replace(old, new, 1))

    return attack


def _second_slot(metadata: dict[str, Any], offset: str | None = None, *, bound: bool = True) -> dict[str, Any]:
    slot: dict[str, Any] = copy.deepcopy(metadata["keyslots"]["0"])
    slot["area"]["offset"] = offset or str(int(slot["area"]["offset"]) + int(slot["area"]["size"]))
    metadata["keyslots"]["1"] = slot
    if bound:
        metadata["digests"]["0"]["keyslots"].append("1")
    return slot


def _two_more_slots(metadata: dict[str, Any]) -> None:
    _second_slot(metadata)
    metadata["keyslots"]["2"] = metadata["keyslots"]["1"]
    metadata["digests"]["0"]["keyslots"].append("2")


def _null_slot_beside(metadata: dict[str, Any]) -> None:
    _second_slot(metadata)["area"]["encryption"] = NULL


def _split(key: bytes, stripes: int) -> bytes:
    """Spread a key over stripes as LUKS does, here all of them zeros but the last."""
    state = bytes(len(key))
    for _ in range(stripes - 1):
        blocks = (state[at : at + 32] for at in range(0, len(state), 32))
        state = b"".join(hashlib.sha256(struct.pack(">I", n) + block).digest() for n, block in enumerate(blocks))
    return bytes(len(key) * (stripes - 1)) + bytes(a ^ b for a, b in zip(state, key, strict=True))


def _own_key(area: bytes) -> bytes:
    """Make a volume with a key of the attacker's choice, which every passphrase opens (CVE-2025-58356).

    cryptsetup before 2.8.1 takes it where the kernel has the null cipher.
    """
    key = b"known to the attacker".ljust(64, b".")

    def change(metadata: dict[str, Any]) -> None:
        metadata["keyslots"]["0"]["area"]["encryption"] = NULL
        digest = metadata["digests"]["0"]
        mark = hashlib.pbkdf2_hmac("sha256", key, base64.b64decode(digest["salt"]), digest["iterations"])
        digest["digest"] = base64.b64encode(mark).decode()

    slot = json.loads(text_of(area))["keyslots"]["0"]
    begin, material = int(slot["area"]["offset"]), _split(key, slot["af"]["stripes"])
    return edited(change)(area[:begin] + material + area[begin + len(material) :])


def _foreign_digest(metadata: dict[str, Any]) -> None:
    _second_slot(metadata, bound=False)
    metadata["digests"]["1"] = {**metadata["digests"]["0"], "keyslots": ["1"]}


def _backup_segment(metadata: dict[str, Any]) -> None:
    metadata["segments"]["1"] = {**metadata["segments"]["0"], "flags": ["backup-previous"]}


def _reencryption(metadata: dict[str, Any]) -> None:
    metadata["config"]["requirements"] = {"mandatory": ["online-reencrypt-v2"]}
    slot = metadata["keyslots"]["0"]
    metadata["keyslots"]["1"] = {
        "type": "reencrypt",
        "key_size": 1,
        "mode": "decrypt",
        "direction": "forward",
        "area": {**slot["area"], "type": "checksum", "hash": "sha256", "sector_size": 512},
    }


def _linear(metadata: dict[str, Any]) -> None:
    segment = metadata["segments"]["0"]
    metadata["segments"]["0"] = {"type": "linear", "offset": segment["offset"], "size": "dynamic"}


def _two_ages(area: bytes) -> bytes:
    """Let only the second copy have the null cipher, and be newer."""
    attacked = edited(lambda metadata: metadata["segments"]["0"].update(encryption=NULL), (1,))(area)
    sequence = struct.unpack_from(">Q", area, SEQUENCE_AT)[0]
    return with_binary(attacked, SEQUENCE_AT, struct.pack(">Q", sequence + 1), (1,))


def _checksum_wrong(area: bytes) -> bytes:
    for at in (448, size_of(area) + 448):
        area = area[:at] + bytes([area[at] ^ 1]) + area[at + 1 :]
    return area


def _size(value: int) -> Attack:
    return lambda area: with_binary(area, 8, struct.pack(">Q", value))


ATTACKS: dict[str, Attack] = {
    "a null cipher in the segment": put("segments.0.encryption", NULL),
    "a null cipher in the key slot": put("keyslots.0.area.encryption", NULL),
    "a key of the attacker's choice": _own_key,
    "a null cipher in a second key slot": edited(_null_slot_beside),
    "another cipher in the segment": put("segments.0.encryption", "aes-cbc-plain64"),
    "a cipher from outside": put("segments.0.encryption", "capi:xts(aes)-plain64"),
    "a segment that is not encrypted": edited(_linear),
    "a second segment": edited(lambda m: m["segments"].update({"1": m["segments"]["0"]})),
    "a backup segment": edited(_backup_segment),
    "a segment of another name": edited(lambda m: m["segments"].update({"1": m["segments"].pop("0")})),
    "flags of the segment": put("segments.0.flags", ["in-reencryption"]),
    "integrity": put(
        "segments.0.integrity", {"type": "aead", "journal_encryption": "none", "journal_integrity": "none"}
    ),
    "a moved offset": put("segments.0.offset", "2097152"),
    "an offset within the headers": put("segments.0.offset", "0"),
    "a fixed size": put("segments.0.size", "4096"),
    "another start of the numbering": put("segments.0.iv_tweak", "1"),
    "another sector size": put("segments.0.sector_size", 1024),
    "a foreign key slot": edited(_two_more_slots),
    "a key slot for no segment": edited(lambda m: _second_slot(m, bound=False)),
    "key slots that overlap": edited(lambda m: _second_slot(m, m["keyslots"]["0"]["area"]["offset"])),
    "key slots that overlap a little": edited(
        lambda m: _second_slot(m, str(int(m["keyslots"]["0"]["area"]["offset"]) + 4096))
    ),
    "a key slot within the headers": put("keyslots.0.area.offset", "4096"),
    "a key slot within the data": put("keyslots.0.area.offset", "1048576"),
    "a key slot of odd place": put("keyslots.0.area.offset", "32769"),
    "a key slot with a short area": put("keyslots.0.area.size", "4096"),
    "a key slot of another type": put("keyslots.0.type", "reencrypt"),
    "a key slot of priority": put("keyslots.0.priority", 2),
    "a short key": put("keyslots.0.key_size", 1),
    "a short key of the key slot": put("keyslots.0.area.key_size", 16),
    "an area that is not raw": put("keyslots.0.area.type", "none"),
    "one stripe": put("keyslots.0.af.stripes", 1),
    "a weak hash of the stripes": put("keyslots.0.af.hash", "sha1"),
    "no key slot": put("keyslots", {}),
    "a key slot of no number": edited(lambda m: m["keyslots"].update({"\u001b[2J": m["keyslots"].pop("0")})),
    "huge memory": put("keyslots.0.kdf.memory", 4 << 20),
    "huge time": put("keyslots.0.kdf.time", 1 << 30),
    "huge work": edited(lambda m: m["keyslots"]["0"]["kdf"].update(time=1024, memory=1 << 20)),
    "many threads": put("keyslots.0.kdf.cpus", 64),
    "little memory": put("keyslots.0.kdf.memory", 32),
    "little time": put("keyslots.0.kdf.time", 1),
    "a weak key derivation": put(
        "keyslots.0.kdf",
        {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": "A" * 43 + "="},
    ),
    "true for one": put("keyslots.0.kdf.cpus", True),
    "a salt that is none": put("keyslots.0.kdf.salt", "AAAA"),
    "a foreign digest": edited(_foreign_digest),
    "a digest for another segment": put("digests.0.segments", ["1"]),
    "a digest of no key slot": put("digests.0.keyslots", []),
    "a digest of lists": put("digests.0.keyslots", [["0"]]),
    "a weak digest": put("digests.0.hash", "sha1"),
    "a digest of little work": put("digests.0.iterations", 1),
    "a digest of other length": put("digests.0.digest", "AAAA"),
    "a token": put("tokens.0", {"type": "systemd-tpm2", "keyslots": ["0"]}),
    "a re-encryption under way": edited(_reencryption),
    "a requirement": put("config.requirements", {"mandatory": ["inline-hw-opal"]}),
    "flags of the volume": put("config.flags", ["allow-discards"]),
    "another size of the JSON": put("config.json_size", "16384"),
    "key slots beyond the data": put("config.keyslots_size", "134217728"),
    "an unknown entry": put("surprise", {}),
    "an entry missing": edited(lambda m: m.pop("tokens")),
    "a list for an object": put("segments", []),
    "a key twice": rewritten(b'"encryption":', b'"encryption":"cipher_null-ecb","encryption":'),
    "a key twice by escapes": rewritten(b'"encryption":', b'"\\u0065ncryption":"cipher_null-ecb","encryption":'),
    "a fraction": rewritten(b'"stripes":4000', b'"stripes":4000.0'),
    "no number": rewritten(b'"stripes":4000', b'"stripes":NaN'),
    "a long number": rewritten(b'"stripes":4000', b'"stripes":' + b"4" * 5000),
    "a comment": rewritten(b'"tokens"', b'/* */"tokens"'),
    "bytes beyond the JSON": lambda area: with_json(area, text_of(area) + b"\0\0x"),
    "a second object": lambda area: with_json(area, text_of(area) + b"{}"),
    "not JSON": lambda area: with_json(area, b"\xff\xfe{"),
    "not an object": lambda area: with_json(area, b"[]"),
    "deep JSON": lambda area: with_json(area, b'{"a":' * 2000 + b"1" + b"}" * 2000),
    "JSON without an end": lambda area: with_json(area, b" " * (size_of(area) - 4096)),
    "nothing before the data": lambda area: bytes(len(area)),
    "wrong checksums": _checksum_wrong,
    "a checksum of another kind": lambda area: with_binary(area, 72, b"sha1\0\0"),
    "a wrong signature": lambda area: with_binary(area, 0, b"LUKX\xba\xbe"),
    "version 1": lambda area: with_binary(area, 6, struct.pack(">H", 1)),
    "version 3": lambda area: with_binary(area, 6, struct.pack(">H", 3)),
    "an oversized header": _size(8 << 20),
    "a header as large as can be": _size((1 << 64) - 1),
    "a header of no size": _size(0),
    "a header of odd size": _size((16 << 10) + 512),
    "a UUID that is a path": lambda area: with_binary(area, 168, b"../../dev/sda\0".ljust(40, b"\0")),
    "a label that moves the cursor": lambda area: with_binary(area, 24, b"\x1b[2J\0"),
    "bytes in the padding": lambda area: with_binary(area, 2000, b"x"),
    "copies of one age that differ": edited(lambda m: m["segments"]["0"].update(encryption=NULL), (1,)),
    "a newer second copy": _two_ages,
    "a second copy alone": lambda area: bytes(4096) + _two_ages(area)[4096:],
    "cut off": lambda area: area[: size_of(area) - 1],
}
