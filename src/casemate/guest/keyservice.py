"""Key services: what wraps the third seed of a volume, and says whether its root key may still be used.

A :class:`KeyService` is one root key at one service. The one kind of today, :class:`KeyProtect`, speaks the REST interface
of IBM Key Protect, which Hyper Protect Crypto Services has too, and ``casemate.demo.keyservice`` for one's own:

    GET  /api/v2/keys/KEY/metadata            state and version of the key
    POST /api/v2/keys/KEY/actions/wrap        {"plaintext": base64, "aad": [text]}      -> {"ciphertext"}
    POST /api/v2/keys/KEY/actions/unwrap      {"ciphertext", "aad"}                     -> {"plaintext", "keyVersion"}
    POST /api/v2/keys/KEY/actions/rewrap      {"ciphertext", "aad"}                     -> {"ciphertext"}

    GET  https://BROKER/crypto_v2/instances/INSTANCE                                    the address of the instance

each with ``Authorization: Bearer TOKEN``, all but the last with ``Bluemix-Instance: INSTANCE``. ``aad`` binds what is wrapped to
its volume: the service refuses to unwrap it for another. GREP11 would be a second kind; there is none yet.

Source: IBM Cloud documentation, API reference of Key Protect and of Hyper Protect Crypto Services; "Wrapping keys",
"Unwrapping keys", "Rewrapping keys", "Key states".

Three ways to fail, and they are told apart by who says no: a service that can't be reached, or is not the one that it should
be, is away (:class:`KeyAwayError`); one that was verified and says no refuses (:class:`KeyRefusedError`); one that says that
the key is disabled, deleted or gone has it revoked (:class:`KeyRevokedError`). None of their texts has a secret.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from casemate.contract.keyservices import KeyWay, read_address
from casemate.guest.conversation import Refused, ask, token

LARGEST_ANSWER = 64 << 10
ACTIVE, REVOKED = 1, (2, 3, 5)
"""States of a key: 0 not yet active, 1 active, 2 suspended, 3 deactivated, 5 destroyed."""
LONGEST_PAUSE = 15.0
_MEDIA = "application/vnd.ibm.kms.key_action+json"
_WRAPPED = re.compile(r"[!-~]{1,7168}")
_VERSION = re.compile(r"[!-~]{1,64}")

Answer = TypeVar("Answer")


class KeyAwayError(Exception):
    """The service did not give an answer that counts. Another attempt may."""


class KeyRefusedError(Exception):
    """The service answered, and refuses."""


class KeyRevokedError(Exception):
    """The service says that the key may not be used any more."""


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """A seed, and the version of the key that it was wrapped by; "" where the service does not say."""

    seed: bytes = field(repr=False)
    version: str


class KeyService(Protocol):
    """One root key at one service. ``bound`` is what the wrapped seed is bound to. All raise the three errors above."""

    @property
    def key(self) -> str:
        """The name of the key, as the contract has it."""

    @property
    def place(self) -> str:
        """Where the service is, for messages."""

    def version(self) -> str:
        """Return the version of the key, "" where the service has none; raise :class:`KeyRevokedError` where it is no more."""

    def wrap(self, seed: bytes, bound: str) -> str:
        """Wrap a seed by the key as it is today; what comes back is printable ASCII."""

    def unwrap(self, wrapped: str, bound: str) -> Unwrapped:
        """Unwrap what :meth:`wrap` gave."""

    def rewrap(self, wrapped: str, bound: str) -> str:
        """Wrap the same seed by the key as it is today."""


class KeyProtect:
    """A root key behind the interface of IBM Key Protect. ``tls`` verifies the service; its token lives with the object."""

    def __init__(self, way: KeyWay, tls: ssl.SSLContext) -> None:
        self._way, self._tls = way, tls
        self._token, self._until = "", 0.0
        self._host, self._port, self._sure = way.host, way.port, way.broker is None

    @property
    def key(self) -> str:
        """Its CRN."""
        return self._way.crn

    @property
    def place(self) -> str:
        """Host and port."""
        return f"{self._host}:{self._port}"

    def version(self) -> str:
        """Ask for the key's metadata."""
        try:
            values = self._ask("GET", "metadata")["resources"][0]
            state, deleted, found = values.get("state"), values.get("deleted"), values.get("id", self._way.key)
            version = (values.get("keyVersion") or {}).get("id", "")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise KeyAwayError(f"{self.place}: its answer about the key is none") from None
        if found != self._way.key or isinstance(state, bool) or not isinstance(state, int) or not _is_version(version):
            raise KeyAwayError(f"{self.place}: its answer about the key is none")
        if deleted is True or state in REVOKED:
            raise KeyRevokedError(f"{self.place} says that the key is {'deleted' if deleted is True else 'not active'}")
        if state != ACTIVE:
            raise KeyRefusedError(f"{self.place} says that the key is not active yet")
        return str(version)

    def wrap(self, seed: bytes, bound: str) -> str:
        """Have a seed wrapped."""
        answer = self._ask("POST", "actions/wrap", plaintext=base64.b64encode(seed).decode(), aad=[bound])
        return self._wrapped(answer)

    def unwrap(self, wrapped: str, bound: str) -> Unwrapped:
        """Have it unwrapped."""
        answer = self._ask("POST", "actions/unwrap", ciphertext=wrapped, aad=[bound])
        try:
            seed = base64.b64decode(answer["plaintext"], validate=True)
            version = (answer.get("keyVersion") or {}).get("id", "")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise KeyAwayError(f"{self.place}: its answer to unwrap is none") from None
        if not _is_version(version):
            raise KeyAwayError(f"{self.place}: its answer to unwrap is none")
        return Unwrapped(seed, str(version))

    def rewrap(self, wrapped: str, bound: str) -> str:
        """Have it wrapped anew."""
        return self._wrapped(self._ask("POST", "actions/rewrap", ciphertext=wrapped, aad=[bound]))

    def _wrapped(self, answer: dict[str, Any]) -> str:
        wrapped = answer.get("ciphertext")
        if not isinstance(wrapped, str) or not _WRAPPED.fullmatch(wrapped):
            raise KeyAwayError(f"{self.place}: it gives no wrapped seed")
        return wrapped

    def _access(self) -> str:
        if not self._token or time.monotonic() >= self._until:
            host, port = self._way.iam
            try:
                self._token, life = token(self._tls, host, port, self._way.api_key)
            except Refused as refused:
                text = f"no access token from {host}:{port}: {refused.reason}"
                raise (KeyRefusedError if refused.status in (400, 401, 403) else KeyAwayError)(text) from None
            self._until = time.monotonic() + life * 0.8
        return self._token

    def _locate(self) -> None:
        """Ask the broker where the instance is. Where it does not say, the address that follows from the name stays."""
        if self._sure or self._way.broker is None:
            return
        headers = {"Authorization": f"Bearer {self._access()}", "Accept": "application/json"}
        path = f"/crypto_v2/instances/{self._way.instance}"
        try:
            answer = ask(self._tls, "GET", *self._way.broker, path, headers, b"", LARGEST_ANSWER)
        except Refused:
            return
        if (found := read_address(answer, self._way.private)) is not None:
            self._host, self._port, self._sure = *found, True

    def _ask(self, method: str, what: str, **values: Any) -> dict[str, Any]:
        """Ask about the key; return the answer, a JSON object."""
        self._locate()
        headers = {
            "Authorization": f"Bearer {self._access()}",
            "Bluemix-Instance": self._way.instance,
            "Content-Type": _MEDIA,
            "Accept": _MEDIA if values else "application/vnd.ibm.kms.key+json",
        }
        path, body = f"/api/v2/keys/{self._way.key}/{what}", json.dumps(values).encode() if values else b""
        try:
            found = ask(self._tls, method, self._host, self._port, path, headers, body, LARGEST_ANSWER)
        except Refused as refused:
            text = f"{self.place}: {refused.reason}"
            if refused.status in (404, 410) and not self._sure:
                raise KeyAwayError(f"{text}, and the broker does not say whether it is the instance") from None
            if refused.status in (404, 410):
                raise KeyRevokedError(f"{text} (the key is gone)") from None
            if 400 <= refused.status < 500 and refused.status not in (408, 425, 429):
                self._token = ""
                raise KeyRefusedError(text) from None
            raise KeyAwayError(text) from None
        try:
            answer = json.loads(found)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise KeyAwayError(f"{self.place}: its answer is none")
        return answer


def _is_version(value: object) -> bool:
    return isinstance(value, str) and (not value or _VERSION.fullmatch(value) is not None)


def first_answer(
    services: Sequence[KeyService],
    question: Callable[[KeyService], Answer],
    end: float,
    pause: Callable[[float], None] = time.sleep,
) -> Answer:
    """Ask one service after the other until one answers, and all of them again until ``end`` (monotonic clock).

    A key that one calls revoked is revoked. What one refuses another may grant; where none is away, the refusal counts.
    """
    wait = 0.5
    while True:
        away: KeyAwayError | None = None
        refused: KeyRefusedError | None = None
        for service in services:
            try:
                return question(service)
            except KeyAwayError as error:
                away = error
            except KeyRefusedError as error:
                refused = error
        if refused is not None and away is None:
            raise refused
        if away is None or time.monotonic() + wait > end:
            raise away or KeyAwayError("there is no key service")
        pause(wait)
        wait = min(wait * 2, LONGEST_PAUSE)
