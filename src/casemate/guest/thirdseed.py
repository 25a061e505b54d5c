"""The third seed of volumes whose contract names key services (``docs/key-services.md``). Imported only where one does.

``hpl-contract`` leaves the entries in :data:`casemate.guest.state.KEY_SERVICES`, ``hpl-lukspassphrase`` the seeds of both
parties. ``hpl-volumes`` asks here, disk by disk: a new volume gets 32 random bytes, made inside; those of an existing one are
unwrapped. It writes to no disk: what is to stand in the metadata partition waits in memory for ``hpl-storage``.

- A wrapped seed on a disk is used where its volume's name and its key's name are those of this contract, and the service
  unwraps it for that volume. Whether it is the right one is seen when the volume opens, or doesn't.
- It is wrapped anew where the key has been rotated; the new one must unwrap to the same seed before it is written.
- Of several entries the first that answers wraps; from then on its key is the volume's, and those entries count that name it.
- A revoked key, a refusal, or no answer within ``kmsTimeout`` stops the machine, and no disk is touched.

Left behind for ``hpl-key-check``: the entries of the keys in use, with their API keys, in memory, for root only.
"""

from __future__ import annotations

import json
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from casemate.contract.errors import KeyServiceError
from casemate.contract.keyservices import KeyWay, patience, read_services
from casemate.contract.passphrase import passphrase
from casemate.guest import state
from casemate.guest.keyservice import (
    KeyAwayError,
    KeyProtect,
    KeyRefusedError,
    KeyRevokedError,
    KeyService,
    first_answer,
)
from casemate.guest.report import Stop, say
from casemate.luks.errors import LuksError
from casemate.luks.wrappedseed import FoundSeed, WrappedSeed, copy_of, read_wrapped

SIZE = 32
QUIET = 15.0
"""Seconds in which it is not told that a service does not answer: the network may just be coming up."""
Answer = TypeVar("Answer")


def bound_to(volume: str) -> str:
    """Return what a seed is bound to when it is wrapped: its purpose, and the volume's name in the contract."""
    return f"casemate-third-seed-1: {volume}"


@dataclass(frozen=True, slots=True)
class Third:
    """What came of a volume: its key, the version of it, and the copy to be written, if any, with the one that counts."""

    key: str
    version: str
    copy: bytes | None = None
    counts: int = 0


@dataclass(slots=True)
class ThirdSeeds:
    """The volumes of this contract that have a third seed. ``done``: those that were made or unwrapped."""

    ways: Mapping[str, list[KeyWay]]
    patience: Mapping[str, float]
    tls: ssl.SSLContext
    done: dict[str, Third] = field(default_factory=dict)
    began: float | None = None
    """When the first service was asked: all volumes wait from there, so that many of them don't wait one after the other."""

    @classmethod
    def load(cls) -> ThirdSeeds:
        """Read what ``hpl-contract`` left."""
        given = state.read_json(state.KEY_SERVICES)
        try:
            ways = {name: read_services(volume["kms"]) for name, volume in given.items()}
            waits = {name: patience(volume) for name, volume in given.items()}
        except KeyServiceError as error:
            raise Stop("HPL07001E", f"env.volumes: {error.cause}") from None
        return cls(ways, waits, tls(state.section("env")))

    def __contains__(self, name: str) -> bool:
        return name in self.ways

    def unwrap(self, name: str, area: bytes) -> bool:
        """Make the passphrases of a volume from the wrapped seed that a disk has; return whether it has one for it."""
        found = self._read(area)
        if found is None or found.seed.volume != name:
            return False
        ways = [way for way in self.ways[name] if way.crn == found.seed.key]
        if not ways:
            text = f"volume {name}: its seed is wrapped by a key that the contract does not name"
            raise Stop("HPL18006E", text)
        wrapped, bound = found.seed.wrapped, bound_to(name)
        service, version = self._first(name, ways, lambda service: service.version(), "HPL07012E")
        _, unwrapped = self._first(name, ways, lambda service: service.unwrap(wrapped, bound), "HPL07012E")
        if len(unwrapped.seed) != SIZE:
            raise Stop("HPL07012E", f"volume {name}: {service.place} unwraps something else than a third seed")
        keep(name, unwrapped.seed)
        copy = None if found.intact else copy_of(found.seed)
        if version and unwrapped.version and version != unwrapped.version:
            copy = self._rewrapped(name, ways, found.seed, unwrapped.seed)
        self.done[name] = Third(found.seed.key, version, copy, found.copy)
        return True

    def make(self, name: str) -> None:
        """Make the seed of a new volume, have it wrapped, and make the passphrase."""
        seed, bound, ways = secrets.token_bytes(SIZE), bound_to(name), self.ways[name]
        service, version = self._first(name, ways, lambda service: service.version(), "HPL07011E")
        ways = [way for way in ways if way.crn == service.key]
        _, wrapped = self._first(name, ways, lambda service: service.wrap(seed, bound), "HPL07011E")
        _, back = self._first(name, ways, lambda service: service.unwrap(wrapped, bound), "HPL07012E")
        if back.seed != seed:
            raise Stop("HPL07011E", f"volume {name}: {service.place} does not unwrap what it has wrapped")
        keep(name, seed)
        self.done[name] = Third(service.key, back.version or version, self._copy(name, service.key, wrapped, 1))

    def explain(self, disk: str, area: bytes) -> None:
        """Stop with the reason why a disk opened for no volume, where its wrapped seed has one."""
        try:
            found = read_wrapped(area)
        except LuksError as error:
            raise Stop("HPL18001E", f"disk {disk}: {error}") from None
        if found is None:
            raise Stop("HPL18001E", f"disk {disk} has no wrapped seed, and the volumes that are left need one")

    def finish(self) -> None:
        """Leave for ``hpl-key-check`` what it needs, and nothing of the rest."""
        given = state.read_json(state.KEY_SERVICES)
        volumes = {
            name: {
                "kms": [entry for entry in given[name]["kms"] if entry["crn"] == third.key],
                "version": third.version,
            }
            for name, third in self.done.items()
        }
        state.write_json(state.KEY_CHECK, {"volumes": volumes, "cacerts": state.section("env").get("cacerts", [])})
        state.KEY_SERVICES.unlink()

    def _read(self, area: bytes) -> FoundSeed | None:
        try:
            return read_wrapped(area)
        except LuksError:
            return None  # told of where the disk opens for nobody

    def _first(
        self, name: str, ways: list[KeyWay], question: Callable[[KeyService], Answer], missing: str
    ) -> tuple[KeyService, Answer]:
        """Ask the services of a volume as long as the contract says; every failure stops, with the message that it has."""
        services = [KeyProtect(way, self.tls) for way in ways]
        self.began = time.monotonic() if self.began is None else self.began
        end, told, begun = self.began + self.patience[name], False, time.monotonic()

        def pause(seconds: float) -> None:
            nonlocal told
            if not told and time.monotonic() - begun >= QUIET:
                told = True
                minutes = self.patience[name] / 60
                text = f"volume {name}: no key service answers yet; it is asked again for up to {minutes:.0f} minutes"
                say("HPL18001W", text)
            time.sleep(seconds)

        try:
            return first_answer(services, lambda service: (service, question(service)), end, pause)
        except KeyRevokedError as error:
            raise Stop("HPL18008E", f"volume {name}: {error}") from None
        except KeyRefusedError as error:
            raise Stop(missing, f"volume {name}: {error}") from None
        except KeyAwayError as error:
            raise Stop("HPL07010E", f"volume {name}: {error}") from None

    def _rewrapped(self, name: str, ways: list[KeyWay], old: WrappedSeed, seed: bytes) -> bytes:
        bound = bound_to(name)
        _, wrapped = self._first(name, ways, lambda service: service.rewrap(old.wrapped, bound), "HPL18002E")
        _, back = self._first(name, ways, lambda service: service.unwrap(wrapped, bound), "HPL18002E")
        if back.seed != seed:
            raise Stop("HPL18002E", f"volume {name}: what was wrapped anew unwraps to something else")
        say("HPL18001I", f"Volume {name}: the key has been rotated, and its seed is wrapped anew.")
        return self._copy(name, old.key, wrapped, old.generation + 1)

    def _copy(self, name: str, key: str, wrapped: str, generation: int) -> bytes:
        try:
            return copy_of(WrappedSeed(name, key, wrapped, generation))
        except LuksError as error:
            raise Stop("HPL18007E", f"volume {name}: {error}") from None


def tls(env: Mapping[str, Any]) -> ssl.SSLContext:
    """Return how key services are verified: by the authorities of the image, and ``cacerts`` of ``env``."""
    from casemate.guest.logging import ROOTS, trusted

    try:
        return ssl.create_default_context(cadata=trusted(env, ROOTS.read_bytes()).decode("ascii"))
    except (ssl.SSLError, OSError):
        raise Stop("HPL07010E", "a certificate in env.cacerts is damaged") from None


def keep(name: str, seed: bytes) -> None:
    """Write today's passphrase of a volume and its earlier ones, as ``hpl-lukspassphrase`` does for volumes without a third."""
    pairs = json.loads((state.PASSPHRASES / f"{name}.seeds").read_bytes())
    today, *earlier = list(dict.fromkeys(passphrase(*pair, seed.hex()) for pair in pairs))
    state.write(state.PASSPHRASES / name, today)
    if earlier:
        state.write(state.PASSPHRASES / f"{name}.previous", "\n".join(earlier))
