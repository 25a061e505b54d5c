"""How registries and notary servers are asked: a real TLS server that behaves well, badly, and too curiously."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from casemate.demo.pki import Authority
from casemate.guest import web
from casemate.guest.web import Server, WebError

Answer = tuple[int, dict[str, str], bytes]
LOGIN = base64.b64encode(b"user:geheim").decode()


class Site:
    """A server whose answers are a function of path and headers; it keeps what it was asked.

    ``drip``: so many seconds pass between two bytes that it sends.
    """

    def __init__(
        self, authority: Authority, directory: Path, answer: Callable[[str, dict[str, str]], Answer], drip: float = 0.0
    ) -> None:
        identity = authority.server(("127.0.0.1", "localhost"))
        pem = directory / f"site-{len(list(directory.iterdir()))}.pem"
        pem.write_bytes(identity.certificate + identity.key)
        self.asked: list[tuple[str, str]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                site.asked.append((self.path, headers.get("authorization", "")))
                status, more, content = answer(self.path, headers)
                lines = "".join(f"{name}: {value}\r\n" for name, value in more.items())
                sent = f"HTTP/1.1 {status} so\r\n{lines}\r\n".encode() + content
                with contextlib.suppress(OSError):
                    for start in range(0, len(sent), 1 if drip else len(sent)):
                        self.wfile.write(sent[start : start + (1 if drip else len(sent))])
                        time.sleep(drip)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture
def authority() -> Authority:
    return Authority.create("Sites")


@pytest.fixture
def site(tmp_path: Path, authority: Authority) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(answer: Callable[[str, dict[str, str]], Answer], drip: float = 0.0) -> Site:
        made.append(Site(authority, tmp_path, answer, drip))
        return made[-1]

    yield make
    for each in made:
        each.server.shutdown()
        each.server.server_close()


def server(authority: Authority, site: Site, registry: str = "r.example.com", **logins: str) -> Server:
    return Server(site.host, registry, logins, web.context([authority.certificate.decode()]))


def test_no_login_is_sent_before_it_is_asked_for(site: Callable[..., Site], authority: Authority) -> None:
    def answer(path: str, headers: dict[str, str]) -> Answer:
        if headers.get("authorization") == f"Basic {LOGIN}":
            return 200, {}, b"yes"
        return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""

    one = site(answer)
    assert server(authority, one, one.host, **{one.host: LOGIN}).get("/a", 10) == b"yes"
    assert [sent for _, sent in one.asked] == ["", f"Basic {LOGIN}"]
    with pytest.raises(WebError, match="the contract has none for it"):
        server(authority, one, "r.example.com", **{"r.example.com": LOGIN}).get("/a", 10)


def test_a_token_is_asked_for_as_the_challenge_says(site: Callable[..., Site], authority: Authority) -> None:
    def tokens(path: str, headers: dict[str, str]) -> Answer:
        assert path == "/token?service=notary&scope=repository%3Aapp%3Apull"
        return 200, {}, b'{"token": "abc.def"}'

    realm = site(tokens)

    def answer(path: str, headers: dict[str, str]) -> Answer:
        if headers.get("authorization") == "Bearer abc.def":
            return 200, {}, b"yes"
        given = f'Bearer realm="https://{realm.host}/token",service="notary",scope="repository:app:pull"'
        return 401, {"WWW-Authenticate": given}, b""

    one = site(answer)
    asking = server(authority, one, "r.example.com", **{"r.example.com": LOGIN})
    assert asking.get("/a", 10) == b"yes" and asking.get("/b", 10) == b"yes"
    assert [sent for _, sent in realm.asked] == [""]  # a stranger: it gets no login


@pytest.mark.parametrize(
    ("asking", "registry", "given"),
    [
        ("r.example.com", "r.example.com", True),
        ("notary.r.example.com", "r.example.com", True),
        ("r.example.com:4443", "r.example.com", True),
        ("auth.docker.io", "docker.io", True),
        ("evil-r.example.com", "r.example.com", False),
        ("r.example.com.evil.org", "r.example.com", False),
        ("example.com", "r.example.com", False),
        ("evil.org", "r.example.com", False),
        ("x.localhost", "localhost", False),
        ("r.example.com@evil.org", "r.example.com", False),
        ("", "r.example.com", False),
    ],
)
def test_a_login_goes_to_the_registrys_own_servers_only(asking: str, registry: str, given: bool) -> None:
    one = Server("notary.example.com", registry, {registry: LOGIN}, ssl.create_default_context())
    assert (one.login_for(asking) == LOGIN) == given
    named = Server("notary.example.com", registry, {"evil.org": "own"}, ssl.create_default_context())
    assert named.login_for("evil.org") == "own"


def test_who_is_sent_elsewhere_takes_no_login_along(site: Callable[..., Site], authority: Authority) -> None:
    store = site(lambda path, headers: (200, {}, b"blob"))

    def answer(path: str, headers: dict[str, str]) -> Answer:
        if "authorization" not in headers:
            return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
        return 307, {"Location": f"https://{store.host}/blob?signed=1"}, b""

    one = site(answer)
    assert server(authority, one, one.host, **{one.host: LOGIN}).get("/a", 10) == b"blob"
    assert store.asked == [("/blob?signed=1", "")]


@pytest.mark.parametrize("place", ["http://127.0.0.1/x", "file:///etc/passwd", "ftp://127.0.0.1/"])
def test_nobody_is_sent_to_a_place_without_tls(site: Callable[..., Site], authority: Authority, place: str) -> None:
    one = site(lambda path, headers: (302, {"Location": place}, b""))
    with pytest.raises(WebError, match="not HTTPS"):
        server(authority, one).get("/a", 10)
    challenge = site(lambda path, headers: (401, {"WWW-Authenticate": f'Bearer realm="{place}"'}, b""))
    with pytest.raises(WebError, match="not HTTPS"):
        server(authority, challenge).get("/a", 10)


def test_an_address_that_is_none_is_no_crash(
    site: Callable[..., Site], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    for place in ("https://[", "https://127.0.0.1:port/", "https://127.0.0.1:99999/"):
        one = site(lambda path, headers, place=place: (302, {"Location": place}, b""))
        with pytest.raises(WebError):
            server(authority, one).get("/a", 10)


def test_who_is_sent_in_a_circle_stops(site: Callable[..., Site], authority: Authority) -> None:
    one = site(lambda path, headers: (302, {"Location": "/again"}, b""))
    with pytest.raises(WebError, match="place to place"):
        server(authority, one).get("/a", 10)
    assert len(one.asked) == web.MOST_HOPS + 1


def test_no_more_is_read_than_the_limit(site: Callable[..., Site], authority: Authority) -> None:
    one = site(lambda path, headers: (200, {}, b"x" * int(path[1:])))
    assert server(authority, one).get("/10", 10) == b"x" * 10
    for size in (11, 1 << 22):
        with pytest.raises(WebError, match="more than the 10 bytes"):
            server(authority, one).get(f"/{size}", 10)


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    site: Callable[..., Site], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answers = [503, 429, 200]
    busy = site(lambda path, headers: (answers.pop(0), {}, b"yes"))
    assert server(authority, busy).get("/a", 10) == b"yes"
    refusing = site(lambda path, headers: (403, {}, b""))
    with pytest.raises(WebError, match="answers 403"):
        server(authority, refusing).get("/a", 10)
    assert len(refusing.asked) == 1
    assert server(authority, site(lambda path, headers: (404, {}, b""))).get("/a", 10) is None


def test_an_impostor_is_not_asked(site: Callable[..., Site], authority: Authority) -> None:
    one = site(lambda path, headers: (200, {}, b"yes"))
    with pytest.raises(WebError, match="SSLCertVerificationError"):
        server(Authority.create("Sites"), one).get("/a", 10)
    assert one.asked == []


def test_a_server_that_drips_is_given_up(
    site: Callable[..., Site], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "TOTAL", 2.0)
    begun = time.monotonic()
    for answer in ((200, {f"X-{number}": "x" for number in range(50)}, b"x"), (200, {}, b"x" * 50)):
        one = site(lambda path, headers, answer=answer: answer, drip=0.2)
        with pytest.raises(WebError, match="does not answer in time"):
            server(authority, one).get("/a", 100)
    assert time.monotonic() - begun < 12


def test_a_server_that_is_silent_is_given_up(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        one = Server(f"127.0.0.1:{mute.getsockname()[1]}", "r.example.com", {}, web.context([]))
        begun = time.monotonic()
        with pytest.raises(WebError, match="does not answer in time"):
            one.get("/a", 100)
    assert time.monotonic() - begun < 12


@pytest.mark.parametrize("token", [b"", b"{}", b"[]", b'{"token": 5}', b'{"token": "a\\r\\nHost: evil"}', b"[" * 60000])
def test_a_token_that_is_none_is_refused(site: Callable[..., Site], authority: Authority, token: bytes) -> None:
    realm = site(lambda path, headers: (200, {}, token))
    one = site(lambda path, headers: (401, {"WWW-Authenticate": f'Bearer realm="https://{realm.host}/"'}, b""))
    with pytest.raises(WebError, match="no token"):
        server(authority, one).get("/a", 10)
