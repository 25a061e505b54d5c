"""Makes an image of ready parts: the encrypted boot image, and the files that are published beside it.

    parts = Parts("amd64", LAYER, release, kernel, initrd, root_sha256, root_size, bill, packages, selection)
    made = assemble(out, parts, identity, [("HKD.crt", host)], created=now)
    made.files["reference-values.json"], made.values["baseimage"]

The same for a build on the host (:mod:`casemate.image.build`) and inside of a builder machine: no program is started, no path
is known, kernel and initrd are read in pieces. Keys come in as secrets and go nowhere but into the encrypted image.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from casemate.guest.kinds import Kind
from casemate.image.cpio import own
from casemate.secret import Secret
from casemate.secureexec import image
from casemate.secureexec.hostkey import HostKey, coordinates

VERSION = "26.11.0"
FORMAT = "casemate-image/1"
IMAGE, ARCHIVE, BILL, PACKAGES = "casemate.img", "root.squashfs", "sbom.spdx.json", "packages.txt"
CONSOLES = {"amd64": "ttyS0", "s390x": "ttysclp0"}
HARDENING = (
    *("lockdown=confidentiality", "init_on_free=1", "init_on_alloc=1", "slab_nomerge", "page_alloc.shuffle=1"),
    *("vsyscall=none", "debugfs=off", "oops=panic", "panic=-1", "module.sig_enforce=1", "random.trust_bootloader=off"),
    # Nothing of the machine's firmware tables becomes a configuration of the system.
    *("systemd.import_credentials=no", "sysctl.kernel.sysrq=0", "sysctl.kernel.yama.ptrace_scope=3"),
)
QUIET = ("quiet", "loglevel=3", "systemd.show_status=no", "rd.udev.log_level=3", "plymouth.enable=0")
CLOCKS: dict[str, tuple[str, ...]] = {"amd64": ("tsc=reliable", "no_timer_check"), "s390x": ()}
"""Emulated processors seem to have unsynchronized counters, and each look at the clock would ask a device of the host instead;
and on a busy host their timers seem broken, where the kernel would stop."""
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Parts:
    """What an image is made of, all of it public and the same for everybody.

    ``kernel`` and ``initrd`` are files that can seek; of the root archive only hash (hex) and size are needed. ``release``: the
    kernel's; ``bill``, ``packages``: the files of these names; ``selection``: how the packages compare with the source's list.
    """

    arch: str
    kind: Kind
    release: str
    kernel: BinaryIO
    initrd: BinaryIO
    root_sha256: str
    root_size: int
    bill: bytes
    packages: bytes
    selection: Mapping[str, Any]

    def values(self) -> dict[str, str]:
        """Return what a record of an image of these parts says, whatever its keys are."""
        base = hashlib.sha256()
        for piece in _pieces(self.kernel):
            base.update(piece)
        base.update(command_line(self.arch).encode())
        for piece in _pieces(self.initrd):
            base.update(piece)
        return {
            **{"root.tar.gz": self.root_sha256, "baseimage": base.hexdigest()},
            "sbom": hashlib.sha256(self.bill).hexdigest(),
        }


@dataclass(frozen=True, slots=True)
class Identity:
    """What one image has and no other.

    ``secrets``: private keys by file name; the bootloader asks for ``attestation.pem`` where the kind signs records, for
    ``contract.pem`` where it opens contracts. ``files``: certificates and lists, published beside the image.
    ``contracts_until``: the end of the encryption certificate. ``public``: files that the image is to know, in
    ``/casemate/public`` of the bootloader; ``facts``: more for its ``image.json``, inside and beside it.
    """

    secrets: Mapping[str, Secret]
    files: Mapping[str, bytes]
    contracts_until: datetime.datetime | None = None
    public: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assembled:
    """What was made: the files beside image and root archive, what a record must say, the tag of the image."""

    files: dict[str, bytes]
    values: dict[str, str]
    tag: bytes


def command_line(arch: str) -> str:
    """Return the kernel's command line: one console, locked down, memory wiped."""
    return " ".join((f"console={CONSOLES[arch]}", *QUIET, *CLOCKS[arch], *HARDENING))


def assemble(
    out: BinaryIO,
    parts: Parts,
    identity: Identity,
    hosts: Sequence[tuple[str, HostKey]],
    *,
    created: datetime.datetime,
    seed: bytes | None = None,
) -> Assembled:
    """Write the encrypted image to ``out``, a file that can seek, for hosts by the names of their documents.

    ``seed``: see :func:`casemate.secureexec.image.pack`; an identity with secrets must have none.

    Raises :class:`~casemate.secureexec.errors.ImageError` where parts or hosts can't be.
    """
    if seed is not None and identity.secrets:
        raise ValueError("an image that everybody can open has no secrets")
    values, kind = parts.values(), parts.kind
    until = identity.contracts_until
    baked = {
        **{"version": VERSION, "arch": parts.arch, "kind": kind.name, "created": int(created.timestamp())},
        **{"root_sha256": parts.root_sha256, "root_size": parts.root_size},
        **{"baseimage": values["baseimage"], "sbom": values["sbom"]},
        **({"contracts_until": int(until.timestamp())} if until is not None else {}),
        "hosts": [
            {"document": name, "valid_until": host.valid_until, "key": coordinates(host.public).hex()}
            for name, host in hosts
        ],
        **identity.facts,
    }
    secrets = {name: secret.reveal() for name, secret in identity.secrets.items()}
    packed = image.pack(
        out,
        kernel=_rewound(parts.kernel),
        cmdline=command_line(parts.arch).encode(),
        initrd=_joined(_rewound(parts.initrd), own(json.dumps(baked).encode(), secrets, identity.public)),
        hosts=[host for _, host in hosts],
        seed=seed,
    )
    del secrets
    moment = created.isoformat()
    reference = {
        **{"format": "casemate-reference-values/1", "version": VERSION, "arch": parts.arch, "created": moment},
        **{"values": values, "packages": dict(parts.selection)},
    }
    described = {
        **{"format": FORMAT, "version": VERSION, "arch": parts.arch, "kind": kind.name, "created": moment},
        **{"kernel": parts.release, "command_line": command_line(parts.arch), "tag": packed.tag.hex()},
        **{"hosts": [name for name, _ in hosts], **identity.facts},
    }
    files = {
        **{"reference-values.json": _text(reference), "image.json": _text(described)},
        **{PACKAGES: parts.packages, BILL: parts.bill},
        **identity.files,
    }
    return Assembled(files, values, packed.tag)


def digests(out: BinaryIO, parts: Parts, files: Mapping[str, bytes], names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of those files of an image directory that are there, by name; ``out`` is the encrypted image."""
    packed = hashlib.sha256()
    for piece in _pieces(out):
        packed.update(piece)
    found = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    found |= {IMAGE: packed.hexdigest(), ARCHIVE: parts.root_sha256}
    return {name: found[name] for name in names if name in found}


class _Joined:
    """A file, and bytes after its end, as one: the kernel takes one initrd archive after the other."""

    def __init__(self, first: BinaryIO, then: bytes) -> None:
        self._parts = [first, cast(BinaryIO, io.BytesIO(then))]

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes."""
        while self._parts:
            if data := self._parts[0].read(size):
                return data
            self._parts.pop(0)
        return b""


def _joined(first: BinaryIO, then: bytes) -> BinaryIO:
    return cast(BinaryIO, _Joined(first, then))


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(_PIECE):
        yield piece


def _text(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()
