"""The client of a build server, outside: what a person's settings say, and requests with certificates on both sides.

    client = Client(settings(text, directory))
    client.ask("POST", "/v1/jobs", {"repository": …})

The settings, YAML, beside the files that they name:

    server: https://build.example.com:8443
    ca: server-ca.crt             # whose certificate the server has
    certificate: client.crt       # yours, of the authority that the server's contract names
    key: client.key
    keys: build-keys.json         # the server's public keys: `init` writes them, all that is signed is verified with them
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import strictjson
from casemate.contract.document import parse
from casemate.contract.errors import ContractError
from casemate.hpsb import vault
from casemate.hpsb.errors import BuildError, refused

PATIENCE = 600.0
#: Forms of answers: a type, any of some, a list of one, keys that must be there.
TOLD = {"job": str, "state": str, "phase": str, "image": str, "digest": str,
        "error": (None, {"id": str, "cause": str, "cure": str, "where": str})}  # fmt: skip
STATUS = {"version": str, "keys": (None, {"server": str}), "generation": int, "jobs": [TOLD]}
_NAMES = ("server", "ca", "certificate", "key", "keys")
_SERVER = re.compile(r"https://([A-Za-z0-9.-]+)(?::([0-9]{1,5}))?/?")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server is, and the files of both sides' trust."""

    host: str
    port: int
    ca: Path
    certificate: Path
    key: Path
    keys: Path


def settings(text: bytes, directory: Path) -> Settings:
    """Read settings; files are named from ``directory``. Raises :class:`BuildError`."""
    try:
        document = parse(text)
    except ContractError as error:
        raise refused("SETTINGS", f"the settings can't be read: {error.cause}") from None
    if (
        not isinstance(document, dict)
        or set(document) != set(_NAMES)
        or not all(isinstance(v, str) and "\0" not in v for v in document.values())
    ):
        raise refused("SETTINGS", f"the settings have {', '.join(_NAMES)}", "casemate build --help shows them")
    try:
        match = _SERVER.fullmatch(document["server"])
        if match is None or not 0 < int(match[2] or 8443) < 1 << 16:
            raise ValueError
        match[1].encode("idna")  # as a connection does: no part of a name is empty or has more than 63 characters
    except ValueError:
        raise refused(
            "SETTINGS", "the server is named as https://host:port, the port at most 65535", "correct `server`"
        ) from None
    return Settings(match[1], int(match[2] or 8443), *(directory / document[name] for name in _NAMES[1:]))


class Client:
    """Asks a server. Each request is a connection of its own."""

    def __init__(self, given: Settings) -> None:
        self._given = given
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            self._tls.load_verify_locations(os.fspath(given.ca))
            self._tls.load_cert_chain(os.fspath(given.certificate), os.fspath(given.key), _no_password)
        except OSError as error:  # of ssl, too
            why = error.strerror if not isinstance(error, ssl.SSLError) else "no certificate, or a key of another"
            raise refused(
                "SETTINGS", f"a certificate or key can't be used: {why}", "correct ca, certificate, key in the settings"
            ) from None

    def ask(self, method: str, path: str, body: Any = None, form: Any = dict) -> Any:
        """Ask, and return what a JSON answer of this form holds.

        Raises :class:`BuildError`: what the server refuses has its identifier.
        """
        return read(self.fetch(method, path, json.dumps(body).encode() if body is not None else b""), form)

    def fetch(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Ask, and return the answer's bytes."""
        given = self._given
        connection = http.client.HTTPSConnection(given.host, given.port, timeout=PATIENCE, context=self._tls)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            data = answer.read(vault.LARGEST + 1)
        except ssl.SSLCertVerificationError as error:
            raise refused(
                "SERVER",
                f"the server's certificate does not count: {error.verify_message}",
                "is this the server? correct `ca`",
            ) from None
        except ssl.SSLError as error:
            raise refused(
                "CLIENT",
                f"the server refuses the connection ({error.reason})",
                "does its contract name the authority of your certificate?",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise refused(
                "SERVER",
                f"the server is not reached: {error or type(error).__name__}",
                "is it running? correct `server`",
            ) from None
        finally:
            connection.close()
        if len(data) > vault.LARGEST:
            raise refused("SERVER", "the server says more than it may")
        if answer.status != 200:
            told = read(data).get("error")
            told = told if isinstance(told, dict) else {}
            texts = [_plain(told.get(name)) for name in ("cause", "cure", "where", "id")]
            raise BuildError(
                texts[0] or f"the server answers {answer.status}", texts[1], texts[2], id=texts[3] or "HPSB-SERVER"
            )
        return data


def read(data: bytes, form: Any = dict) -> Any:
    """Return what an answer holds. Raises :class:`BuildError`: no JSON of this form."""
    try:
        document = strictjson.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise refused("SERVER", "the server's answer is no JSON", "is this a build server?")
    if not _has(form, document):
        raise refused(
            "SERVER", "the server's answer is none of a build server", "is it one, and of your casemate's version?"
        )
    return document


def _has(form: Any, value: Any) -> bool:
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in value and _has(one, value[key]) for key, one in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(_has(form[0], one) for one in value)
    if isinstance(form, tuple):
        return any(_has(one, value) for one in form)
    return value is None if form is None else isinstance(value, form)


def _no_password() -> str:  # OpenSSL would ask at the terminal
    raise refused(
        "SETTINGS",
        "the client's key is encrypted with a password",
        "write it without one: openssl pkey -in client.key -out plain.key",
    )


def _plain(text: Any) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)[:500] if isinstance(text, str) else ""
