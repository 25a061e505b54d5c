"""The state of a build server: its signing keys and what it has built, encrypted under the secrets of both parties.

    state = create()
    file = seal(state, secrets)                       # as it lies on the volume, and as it is exported: one format
    state = open_state(file, secrets, known=state)    # refuses what is changed, of another server, or not newer

No party alone opens it, as with a volume's two seeds; and on the volume it is encrypted once more. The private keys leave the
server in this form only. Each change makes a new generation, so that an older file can't take the place of a newer one on a
server that has seen it. A new server has seen nothing: who imports there says which generation is expected (``least``).

The file; numbers big-endian:

    0   16  "casemate-build-1"
    16   8  generation, from 1 on
    24  16  identity of the server, random
    40  32  salt
    72  12  nonce
    84      AES-256-GCM of the state (JSON), with the 84 bytes before it as associated data

The key is HKDF-SHA256 of both secrets, each with its length (4 bytes) before it, workload's first; salt as above; info
``casemate secure build state``.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from casemate import strictjson
from casemate.hpsb.errors import refused

MAGIC: Final = b"casemate-build-1"
_HEAD: Final = struct.Struct(">16s Q 16s 32s 12s")
LARGEST, MOST_BUILDS, SHORTEST_SECRET = 16 << 20, 20_000, 15


@dataclass(frozen=True, slots=True)
class Secrets:
    """What each party has put into its section: at least 15 characters, as a volume's seed."""

    workload: str = field(repr=False)
    env: str = field(repr=False)

    def check(self) -> Secrets:
        """Return the secrets. Raises :class:`BuildError` where one is missing or short, or both are the same."""
        if min(len(self.workload), len(self.env)) < SHORTEST_SECRET or self.workload == self.env:
            raise refused(
                "SECRETS",
                f"each party gives a secret of at least {SHORTEST_SECRET} characters, and not the other's",
                "set HPSB_SECRET_WORKLOAD under env of the workload section, HPSB_SECRET_ENV under that of the env section",
            )
        return self


@dataclass(frozen=True, slots=True)
class Built:
    """One image that was signed: by which inputs (SHA-256, hex), its name, tag and digest, the job, and when."""

    inputs: str
    name: str
    tag: str
    digest: str
    job: str
    time: str


@dataclass(frozen=True, slots=True)
class State:
    """``gpg`` is an armored private key, ``cosign`` and ``manifest`` PEM (PKCS#8) of P-256 keys."""

    server: str
    generation: int
    gpg: str = field(repr=False)
    cosign: str = field(repr=False)
    manifest: str = field(repr=False)
    builds: tuple[Built, ...] = ()

    def with_build(self, built: Built) -> State:
        """Return the next generation, with one build more; the oldest is forgotten where there are too many."""
        return replace(self, generation=self.generation + 1, builds=(*self.builds, built)[-MOST_BUILDS:])

    def digests(self, inputs: str) -> list[str]:
        """Return the digests that these inputs have given before, oldest first, each once."""
        return list(dict.fromkeys(built.digest for built in self.builds if built.inputs == inputs))

    def tags(self, name: str, digest: str) -> list[str]:
        """Return the tags under which an image was signed."""
        return list(dict.fromkeys(built.tag for built in self.builds if (built.name, built.digest) == (name, digest)))


def create(gpg: str) -> State:
    """Return the state of a new server: its P-256 keys are made here, its GPG key is given."""
    return State(os.urandom(16).hex(), 1, gpg, _new_key(), _new_key())


def seal(state: State, secrets: Secrets) -> bytes:
    """Return the state as a file."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce = os.urandom(32), os.urandom(12)
    head = _HEAD.pack(MAGIC, state.generation, bytes.fromhex(state.server), salt, nonce)
    builds = [[b.inputs, b.name, b.tag, b.digest, b.job, b.time] for b in state.builds]
    document = {"gpg": state.gpg, "cosign": state.cosign, "manifest": state.manifest, "builds": builds}
    return head + AESGCM(_key(secrets, salt)).encrypt(nonce, json.dumps(document).encode(), head)


def open_state(data: bytes, secrets: Secrets, *, known: State | None = None, least: int = 0) -> State:
    """Return the state of a file. Raises :class:`BuildError`.

    With ``known``, the server's own state, the file must be of the same server and newer; ``least``: of this generation at least.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    head = data[: _HEAD.size]
    if not _HEAD.size < len(data) <= LARGEST or not head.startswith(MAGIC):
        raise refused(
            "STATE", "the file is no state of a build server", "give what `casemate build state export` wrote"
        )
    _, generation, server, salt, nonce = _HEAD.unpack(head)
    try:
        plain = AESGCM(_key(secrets, salt)).decrypt(nonce, data[_HEAD.size :], head)
    except InvalidTag:
        raise refused(
            "STATE",
            "the state does not open: it was changed, or is encrypted under other secrets",
            "both parties' secrets are needed",
        ) from None
    state = _read(plain, server.hex(), generation)
    if known is not None and state.server != known.server:
        raise refused("STATE-OTHER", "this is the state of another server", "import into a new server")
    if generation < least or (known is not None and generation <= known.generation):
        newest = max(least, known.generation + 1 if known else 0)
        raise refused(
            "STATE-OLD", f"the state is of generation {generation}, at least {newest} is expected", "give the newest"
        )
    return state


def generation_of(data: bytes) -> int:
    """Return the generation that a file says it is; it counts only once the file has been opened."""
    return int(_HEAD.unpack(data[: _HEAD.size])[1]) if len(data) > _HEAD.size and data.startswith(MAGIC) else 0


def _read(plain: bytes, server: str, generation: int) -> State:
    document = strictjson.loads(plain)  # authenticated: only a server of ours has written it
    return State(
        server, generation, document["gpg"], document["cosign"], document["manifest"],
        tuple(Built(*row) for row in document["builds"]),
    )  # fmt: skip


def _key(secrets: Secrets, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    parts: Sequence[bytes] = (secrets.workload.encode(), secrets.env.encode())
    material = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return HKDF(SHA256(), 32, salt, b"casemate secure build state").derive(material)


def _new_key() -> str:
    from cryptography.hazmat.primitives import serialization as to
    from cryptography.hazmat.primitives.asymmetric import ec

    key: Any = ec.generate_private_key(ec.SECP256R1())
    return str(key.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, to.NoEncryption()).decode())
