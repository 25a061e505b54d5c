"""One question to one HTTPS server, and access tokens for it: bounded in bytes and time, no redirect, no proxy.

    ask(tls, "POST", "logs.example.com", 443, "/logs/v1/singles", headers, body)      # raises Refused
    token(tls, "iam.cloud.ibm.com", 443, api_key)                                     # an access token, and its life

An answer is hostile: of a good one at most ``want`` bytes are read, of another only its status and ``Retry-After`` count; a
conversation has :data:`CONVERSATION` seconds. Secrets go to a server whose certificate was verified, and are never said.

    POST https://IAM/identity/token          an access token for an API key, good for an hour at most

Source: IBM Cloud documentation, "Generating an IBM Cloud IAM token by using an API key".
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

LARGEST_ANSWER = 64 << 10
CONVERSATION = 60.0
LONGEST_PAUSE = 60.0


class Refused(Exception):
    """No good answer came. ``status``: 0 where none did; ``pause``: seconds that the server asks for."""

    def __init__(self, status: int, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.pause = pause


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Bound a whole conversation: a peer that sends a byte now and then would pass every timeout of a socket."""

    def over(_signal: int, _frame: object) -> None:
        raise TimeoutError("the conversation took too long")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ask(
    tls: ssl.SSLContext,
    method: str,
    host: str,
    port: int,
    path: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    want: int = 0,
) -> bytes:
    """Send one request; return at most ``want`` bytes of a good answer. Raises :class:`Refused` for all others."""
    try:
        connection = http.client.HTTPSConnection(host, port, timeout=CONVERSATION / 3, context=tls)
        with deadline(CONVERSATION):
            try:
                sent = {"User-Agent": "casemate", "Connection": "close", **headers}
                connection.request(method, path, body or None, sent)
                answer = connection.getresponse()
                if 200 <= answer.status < 300:
                    return answer.read(want) if want else b""
            finally:
                connection.close()
    except ssl.SSLCertVerificationError as error:
        raise Refused(0, f"it is not {host}: {error.verify_message}") from None
    except OSError as error:
        raise Refused(0, f"it can't be reached: {error.strerror or type(error).__name__}") from None
    except (http.client.HTTPException, ValueError) as error:
        raise Refused(0, f"its answer is none: {type(error).__name__}") from None
    pause = answer.headers.get("Retry-After", "")
    seconds = min(float(pause), 5 * LONGEST_PAUSE) if re.fullmatch("[0-9]{1,9}", pause) else 0.0
    raise Refused(answer.status, f"it answers {answer.status}", seconds)


def token(tls: ssl.SSLContext, host: str, port: int, key: str) -> tuple[str, float]:
    """Ask for an access token for an API key; return it and its life in seconds. Raises :class:`Refused`."""
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": key}
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    body = urllib.parse.urlencode(form).encode()
    return read_token(ask(tls, "POST", host, port, "/identity/token", headers, body, LARGEST_ANSWER))


def read_token(answer: bytes) -> tuple[str, float]:
    """Read the answer to a request for a token. Raises :class:`Refused`."""
    try:
        values = json.loads(answer)
        access, life = values["access_token"], values.get("expires_in", 3600)
        if isinstance(access, str) and re.fullmatch("[!-~]{1,16384}", access) and isinstance(life, int):
            return access, float(min(max(life, 60), 3600))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise Refused(0, "the answer to the request for an access token is none")
