"""What we write into a LUKS2 header, and, beside it, what we accept in one. No key goes near any other volume.

    subprocess.run(["cryptsetup", "luksFormat", *format_arguments(), "--key-file=-", device], ...)

    area = read(device, luks_area_size(start))               # once, into memory
    write("/run/x", admitted(area, device_size, OURS))       # LuksError: stop
    subprocess.run(["cryptsetup", "open", "--header", "/run/x", "--key-file=-", device, name], ...)

The header is not authenticated and the disk belongs to the infrastructure. So the header isn't searched for what is
bad; it has to have, key by key, the one form that we write, and what is not named here is refused:

- one data segment, encrypted with aes-xts-plain64, from a fixed place to the end of the device; with tags of HMAC-SHA256 in
  volumes that are to be authenticated (:mod:`casemate.luks.integrity`), without any in all others;
- one or two key slots (two while a passphrase rolls), each encrypted with aes-xts-plain64 under a passphrase hashed
  at a bounded cost, each in its own place of the key slots area, each of them for this segment's key;
- one digest; no tokens, flags or requirements, so no re-encryption under way.

A cipher "null" in the segment makes the guest write plain text (CVE-2025-59054), in a key slot it lets any passphrase
open a key of the attacker's choice (CVE-2025-58356), a forged re-encryption decrypts data (CVE-2021-4122).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from casemate.luks.errors import LuksError
from casemate.luks.header import LARGEST_AREA, Header, read_header, rebuilt

CIPHER: Final = "aes-xts-plain64"
KEY_SIZE: Final = 64
"""Bytes of a volume key: two AES-256 keys."""
TAG_SIZE: Final = 32
"""Bytes that authenticate a sector, and of the key that makes them, which follows the other two: HMAC-SHA256."""
DATA_OFFSET: Final = 1 << 20
"""Where the data of a volume that we make begins, in bytes; 2 * 16 KiB of headers and 512 KiB of key slots fit."""
SECTOR_SIZE: Final = 4096

METADATA_START: Final = 1 << 20
METADATA_SIZE: Final = 100 << 20
DATA_START: Final = METADATA_START + METADATA_SIZE
"""Where, in bytes, the volume begins on a disk of ours, after the partition of metadata. Computed, never read."""
DISK_END: Final = 1 << 20
"""Bytes at the end of a disk of ours that belong to no partition: the second partition table stands there."""

_BLOCK: Final = 4096
_STRIPES: Final = 4000
_MOST_SLOTS: Final = 2

# Bounds of what a passphrase may cost. Lower: what cryptsetup takes at least, or half of what we write. Upper: what
# cryptsetup chooses on a large machine; more would let the infrastructure exhaust a guest. Memory is in KiB.
_MEMORY: Final = range(32 << 10, (1 << 20) + 1)
_PASSES: Final = range(4, 1025)
_THREADS: Final = range(1, 5)
_MOST_WORK: Final = 64 << 20  # passes times memory
_KEY_ITERATIONS: Final = range(100_000, 100_000_001)
_DIGEST_ITERATIONS: Final = range(1000, 10_000_001)


_TAGS: Final = {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"}
_CURE: Final = "somebody else wrote this header: restore the disk from a backup, or attach the right disk"


def format_arguments(integrity: bool = False) -> list[str]:
    """Return the options of ``cryptsetup luksFormat`` with which we make a volume; device and key are not in it.

    With ``integrity`` for an authenticated one; then cryptsetup also writes behind the headers: see
    :func:`casemate.guest.volumes.format_headers`.
    """
    return [
        *("--type", "luks2", "--batch-mode", "--use-urandom"),
        *("--cipher", CIPHER, "--key-size", str(KEY_SIZE * 8), "--hash", "sha256"),
        *("--sector-size", str(SECTOR_SIZE), "--offset", str(DATA_OFFSET // 512)),
        *("--luks2-metadata-size", "16k", "--luks2-keyslots-size", "768k" if integrity else "512k"),
        *(("--integrity", "hmac-sha256", "--integrity-no-wipe") if integrity else ()),
        *kdf_arguments(),
    ]


def kdf_arguments() -> list[str]:
    """Return the options for each cryptsetup command that makes a key slot (``luksAddKey``, ``luksChangeKey`` too)."""
    return ["--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"]


@dataclass(frozen=True, slots=True)
class Expected:
    """The kind of volume that a device should hold.

    ``offset`` is where its data begins, in bytes. ``sector_size`` is 512 or 4096, or ``None`` for either.
    ``pbkdf2_allowed`` also admits key slots whose passphrase is hashed by PBKDF2. ``older`` also admits what other
    Hyper Protect systems wrote: argon2i, and sha512 where we write sha256. ``integrity``: it is authenticated, by HMAC-SHA256;
    one that is and one that isn't are never taken for each other.
    """

    offset: int = DATA_OFFSET
    sector_size: int | None = SECTOR_SIZE
    pbkdf2_allowed: bool = False
    older: bool = False
    integrity: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.offset <= LARGEST_AREA or self.offset % _BLOCK or self.sector_size not in (None, 512, 4096):
            raise ValueError("no volume is of this kind")

    @property
    def key_size(self) -> int:
        """Bytes of the volume key."""
        return KEY_SIZE + TAG_SIZE if self.integrity else KEY_SIZE

    @property
    def material(self) -> int:
        """Bytes that a key slot takes."""
        return -(-self.key_size * _STRIPES // _BLOCK) * _BLOCK


OURS: Final = Expected()
"""A volume made with :func:`format_arguments`."""
AUTHENTICATED: Final = Expected(integrity=True)
"""A volume made with ``format_arguments(integrity=True)``."""
OLDER: Final = Expected(offset=16 << 20, sector_size=None, older=True)
"""A volume made by cryptsetup as it is, on a whole disk, by another Hyper Protect system."""


def admitted(area: bytes, device_size: int, expected: Expected = OURS) -> bytes:
    """Return the headers and key slots of an admissible volume, written anew: what cryptsetup may see of it.

    ``area`` are the first bytes of the device, as many as :func:`casemate.luks.header.luks_area_size` says, and
    ``device_size`` all that it has. Raises :class:`LuksError`.
    """
    header = read_header(area)
    check(header, device_size, expected)
    return rebuilt(header, area)


def check(header: Header, device_size: int, expected: Expected = OURS) -> None:
    """Return if a key may go near this volume. Raises :class:`LuksError` that names the place and what stands there.

    ``device_size`` is that of the whole device in bytes.
    """
    hashes = frozenset({"sha256", "sha512"} if expected.older else {"sha256"})
    whole = _object(
        header.metadata,
        "",
        {"keyslots": _ANYTHING, "tokens": {}, "segments": _ANYTHING, "digests": _ANYTHING, "config": _ANYTHING},
    )
    _check_segment(whole["segments"], device_size, expected)
    _object(
        whole["config"],
        "config",
        {"json_size": str(header.size - 4096), "keyslots_size": _DECIMAL},
    )
    end = 2 * header.size + int(whole["config"]["keyslots_size"])
    if end > expected.offset:
        raise _refused("config.keyslots_size", whole["config"]["keyslots_size"], "what fits before the data")
    slots = _check_slots(whole["keyslots"], range(2 * header.size, end), hashes, expected)
    _check_digest(whole["digests"], slots, hashes)


def _check_segment(segments: object, device_size: int, expected: Expected) -> None:
    sizes = frozenset({512, 4096} if expected.sector_size is None else {expected.sector_size})
    segment = _object(
        _object(segments, "segments", {"0": _ANYTHING})["0"],
        "segments.0",
        {
            "type": "crypt",
            "offset": str(expected.offset),
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": CIPHER,
            "sector_size": sizes,
            **({"integrity": _TAGS} if expected.integrity else {}),
        },
    )
    room = device_size - expected.offset
    if room < segment["sector_size"] or room % segment["sector_size"]:
        raise LuksError(f"the device has {device_size} bytes: no whole number of sectors of data", where="segments.0")


def _check_slots(slots: object, area: range, hashes: frozenset[str], expected: Expected) -> list[str]:
    """Check each key slot, and that none reaches into another; return their numbers."""
    if not isinstance(slots, dict) or not 1 <= len(slots) <= _MOST_SLOTS:
        raise _refused("keyslots", len(slots) if isinstance(slots, dict) else slots, "one or two key slots")
    taken: list[int] = []
    for number, slot in slots.items():
        where = f"keyslots.{ascii(number)[1:-1][:12]}"
        if not re.fullmatch(r"[0-9]|[12][0-9]|3[01]", number):
            raise _refused(where, number, "a number of a key slot")
        _object(
            slot,
            where,
            {"type": "luks2", "key_size": expected.key_size, "af": _ANYTHING, "area": _ANYTHING, "kdf": _ANYTHING},
        )
        _object(slot["af"], f"{where}.af", {"type": "luks1", "stripes": _STRIPES, "hash": hashes})
        _object(
            slot["area"],
            f"{where}.area",
            {
                "type": "raw",
                "offset": _DECIMAL,
                "size": str(expected.material),
                "encryption": CIPHER,
                "key_size": KEY_SIZE,
            },
        )
        _check_kdf(slot["kdf"], f"{where}.kdf", hashes, expected)
        begin = int(slot["area"]["offset"])
        if begin % _BLOCK or begin < area.start or begin + expected.material > area.stop:
            raise _refused(f"{where}.area.offset", slot["area"]["offset"], "a place in the key slots area")
        if any(abs(begin - other) < expected.material for other in taken):
            raise _refused(f"{where}.area.offset", slot["area"]["offset"], "a place of its own")
        taken.append(begin)
    return list(slots)


def _check_kdf(kdf: object, where: str, hashes: frozenset[str], expected: Expected) -> None:
    if expected.pbkdf2_allowed and isinstance(kdf, dict) and kdf.get("type") == "pbkdf2":
        _object(kdf, where, {"type": "pbkdf2", "hash": hashes, "iterations": _KEY_ITERATIONS, "salt": _SALT})
        return
    kinds = frozenset({"argon2id", "argon2i"} if expected.older else {"argon2id"})
    argon2 = _object(kdf, where, {"type": kinds, "time": _PASSES, "memory": _MEMORY, "cpus": _THREADS, "salt": _SALT})
    if argon2["time"] * argon2["memory"] > _MOST_WORK:
        raise _refused(f"{where}.time", argon2["time"], "one that this memory allows: 64 GiB in all passes")


def _check_digest(digests: object, slots: list[str], hashes: frozenset[str]) -> None:
    digest = _object(
        _object(digests, "digests", {"0": _ANYTHING})["0"],
        "digests.0",
        {
            "type": "pbkdf2",
            "keyslots": _ANYTHING,
            "segments": ["0"],
            "hash": hashes,
            "iterations": _DIGEST_ITERATIONS,
            "salt": _SALT,
            "digest": _DIGEST,
        },
    )
    bound = digest["keyslots"]
    if not isinstance(bound, list) or sorted(map(ascii, bound)) != sorted(map(ascii, slots)):
        raise _refused("digests.0.keyslots", bound, "a list of each key slot, once")


@dataclass(frozen=True, slots=True)
class _Such:
    """A rule that is a question: ``name`` completes the sentence "is X, not …"."""

    name: str
    holds: Callable[[object], bool]


_Rule = str | int | list[str] | dict[str, str] | frozenset[str] | frozenset[int] | range | _Such


def _object(value: object, where: str, rules: Mapping[str, _Rule]) -> dict[str, Any]:
    """Return ``value`` if it is an object with just these keys, each with a value that its rule admits."""
    if not isinstance(value, dict):
        raise _refused(where, value, "an object")
    if value.keys() != rules.keys():
        name = min(value.keys() ^ rules.keys())
        problem = "has an entry that we never write" if name in value else "lacks an entry that we always write"
        raise LuksError(f"{problem}: {_shown(name)}", _CURE, where or "header JSON")
    for name, rule in rules.items():
        if not _admits(rule, value[name]):
            raise _refused(f"{where}.{name}".lstrip("."), value[name], _wanted(rule))
    return value


def _admits(rule: _Rule, value: object) -> bool:
    if isinstance(rule, frozenset):
        return any(type(value) is type(one) and value == one for one in rule)
    if isinstance(rule, range):
        return type(value) is int and value in rule
    if isinstance(rule, _Such):
        return rule.holds(value)
    return type(value) is type(rule) and value == rule


def _wanted(rule: _Rule) -> str:
    if isinstance(rule, frozenset):
        return " or ".join(sorted(map(ascii, rule)))
    if isinstance(rule, range):
        return f"from {rule.start} to {rule.stop - 1}"
    if isinstance(rule, _Such):
        return rule.name
    return ascii(rule)


def _refused(where: str, value: object, wanted: str) -> LuksError:
    return LuksError(f"is {_shown(value)}, not {wanted}", _CURE, where)


def _shown(value: object) -> str:
    """Show what the infrastructure wrote, in few and harmless characters."""
    text = ascii(value) if isinstance(value, str | int | None) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}..."


def _decoded(value: object) -> int:
    """Return how many bytes a text in base64 stands for; 0: it is none."""
    try:
        return len(base64.b64decode(value, validate=True)) if isinstance(value, str) else 0
    except (ValueError, binascii.Error):
        return 0


_ANYTHING: Final = _Such("anything", lambda value: True)  # it is looked at on its own
_DECIMAL: Final = _Such(
    "a number of bytes", lambda value: isinstance(value, str) and bool(re.fullmatch(r"[1-9][0-9]{0,9}", value))
)
_SALT: Final = _Such("32 bytes in base64", lambda value: _decoded(value) == 32)
_DIGEST: Final = _Such("a digest in base64", lambda value: _decoded(value) in (32, 64))
