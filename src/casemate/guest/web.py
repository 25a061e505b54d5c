"""Asks registries and notary servers: HTTPS only, bounded in bytes and time, no proxies.

Nothing here trusts what arrives: who asks verifies it, by hash or signature. The login of a registry goes to its own servers
only: to the registry's name, names below it, and the server for which the contract has a login of its own. Where a server
sends elsewhere (registries keep blobs in stores of others), no login goes along.

Interface: bearer tokens and Basic as the registry's token specification (distribution, ``docs/spec/auth``) has them.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
from collections.abc import Iterable, Mapping
from urllib.parse import urlencode, urljoin, urlsplit

from casemate.guest.conversation import deadline

PATIENCE, TOTAL = 30.0, 120.0
"""Seconds: without a word of a server, and for all that is asked of it."""
ATTEMPTS, MOST_HOPS = 3, 3
LARGEST_TOKEN = 64 << 10
_CHALLENGE = re.compile(r'([a-z]+)="([^"]*)"')


class WebError(Exception):
    """A server can't be reached, or doesn't answer as it should; the text names the server and has no secret."""


class _Again(Exception):
    """A server that can't be reached now, or says that it is busy."""


def context(authorities: Iterable[str]) -> ssl.SSLContext:
    """Return how servers are verified: by the public authorities and those of the contract (PEM)."""
    made = ssl.create_default_context()
    for pem in authorities:
        made.load_verify_locations(cadata=pem)
    return made


class Server:
    """One server, asked about images of one registry. ``logins`` are base64 of ``user:password`` by registry."""

    def __init__(self, host: str, registry: str, logins: Mapping[str, str], tls: ssl.SSLContext) -> None:
        self._host, self._registry, self._logins, self._tls = host, registry, logins, tls
        self._authorization = ""
        self._end = time.monotonic() + TOTAL

    def get(self, path: str, limit: int, accept: str = "application/json") -> bytes | None:
        """Return what lies at a path, at most ``limit`` bytes; ``None`` where nothing does. Raises :class:`WebError`."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ask(f"https://{self._host}{path}", limit, accept)
            except (_Again, OSError, ValueError, http.client.HTTPException) as error:
                if attempt == ATTEMPTS or isinstance(error, ssl.SSLCertVerificationError):
                    raise self._error(str(error) if isinstance(error, _Again) else type(error).__name__) from None
                time.sleep(attempt)
        raise AssertionError

    def _ask(self, url: str, limit: int, accept: str) -> bytes | None:
        for _ in range(MOST_HOPS + 1):
            own = urlsplit(url).netloc == self._host
            headers = {
                "Accept": accept,
                **({"Authorization": self._authorization} if own and self._authorization else {}),
            }
            status, found, data = self._once(url, headers, limit)
            if status == 401 and own and not self._authorization:
                self._authorization = self._answer(found.get("WWW-Authenticate", ""))
            elif status in (301, 302, 303, 307, 308):
                url = urljoin(url, found.get("Location", ""))
            elif status in (429, 500, 502, 503, 504):
                raise _Again(f"it answers {status}")
            elif status in (200, 404):
                return data if status == 200 else None
            else:
                raise self._error(f"it answers {status}")
        raise self._error("it sends from place to place")

    def _answer(self, challenge: str) -> str:
        """Return the header that answers a server's challenge."""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic":
            if login := self.login_for(self._host):
                return f"Basic {login}"
            raise self._error("it wants a login, and the contract has none for it")
        values = dict(_CHALLENGE.findall(rest))
        realm = urlsplit(values.get("realm", ""))
        if kind.lower() != "bearer":
            raise self._error("it asks for something that is not understood")
        login = self.login_for(realm.netloc)
        query = urlencode({key: values[key] for key in ("service", "scope") if key in values})
        url = f"{realm.scheme}://{realm.netloc}{realm.path}?{query}"
        status, _, data = self._once(url, {"Authorization": f"Basic {login}"} if login else {}, LARGEST_TOKEN)
        try:
            answer = json.loads(data) if status == 200 else {}
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, RecursionError, AttributeError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,60000}", token):
            raise self._error("no token is given for it")
        return f"Bearer {token}"

    def login_for(self, asking: str) -> str | None:
        """Return the login that ``asking`` (host and port) may see, if any."""
        if asking in self._logins:
            return self._logins[asking]
        host, owner = urlsplit(f"//{asking}").hostname or "", urlsplit(f"//{self._registry}").hostname or ""
        if host == owner or ("." in owner and host.endswith(f".{owner}")):
            return self._logins.get(self._registry)
        return None

    def _once(self, url: str, headers: Mapping[str, str], limit: int) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Return status, headers and body of one answer; of the body no more than ``limit`` bytes are taken."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise self._error("it sends to a place that is not HTTPS")
        connection = http.client.HTTPSConnection(parts.netloc, timeout=PATIENCE, context=self._tls)
        try:
            with deadline(max(0.001, self._end - time.monotonic())):
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", path, headers=dict(headers))
                answer = connection.getresponse()
                body = answer.read(limit + 1) if answer.status == 200 else b""
        except TimeoutError:
            raise _Again("it does not answer in time") from None
        finally:
            connection.close()
        if len(body) > limit:
            raise self._error(f"it gives more than the {limit} bytes that are read")
        return answer.status, answer.headers, body

    def _error(self, why: str) -> WebError:
        return WebError(f"{self._host}, asked about an image of {self._registry}: {why}")
