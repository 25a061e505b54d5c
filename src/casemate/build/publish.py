"""Serves what an authority publishes, by HTTP on loopback: certificates and lists, by their names and no others.

What is served is signed, so plain HTTP is what RFC 5280 has for it. There are no paths: a name is looked up among those that the
authority publishes, read anew for each request, so a key is out of reach whatever is asked for.
"""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from casemate.errors import CasemateError

if TYPE_CHECKING:
    from casemate.build.authority import Authority

TYPES = {".crl": "application/pkix-crl", ".crt": "application/x-pem-file", ".pem": "application/x-pem-file"}


def server(authority: Authority, port: int = 0) -> ThreadingHTTPServer:
    """Return a server that listens on 127.0.0.1. Raises :class:`CasemateError` where the port can't be had."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            """Answer with one of the published files."""
            name = self.path.removeprefix("/")
            try:
                data = authority.published().get(name)
            except CasemateError:
                self.send_error(500)  # casemate ca list says what is wrong
                return
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", TYPES[name[name.rindex(".") :]])
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-cache")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing: what is asked for is not ours to keep."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError):
        raise CasemateError("this port can't be had", "name another, or none", str(port), id="AUTHORITY-PORT") from None
