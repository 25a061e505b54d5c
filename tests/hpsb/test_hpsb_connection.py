"""The connection of client and build server, by real TLS; what the server does is played."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from casemate.demo.pki import Authority, Identity
from casemate.hpsb import manifest, server, vault
from casemate.hpsb.client import Client, settings
from casemate.hpsb.errors import BuildError
from program import Result

Run = Callable[..., Result]
CLIENTS, SERVERS = Authority.create("Clients"), Authority.create("Servers")


class Service:
    """Answers whatever it is asked with what it was given."""

    def __init__(self, answer: Any) -> None:
        self.answer = self.manifest = self.log = answer

    def status(self) -> Any:
        return self.answer

    def document(self) -> Any:
        return self.answer

    def told(self, name: str) -> Any:
        return self

    def init(self) -> Any:
        return self.answer

    def start(self, document: Any) -> Any:
        return self.answer

    def bring(self, data: bytes, least: int) -> Any:
        return self.answer

    done, clean = told, status


@contextmanager
def running(authority: bytes, answer: Any) -> Iterator[int]:
    own = SERVERS.server(("localhost",))
    service: Any = Service(answer)
    one = server.Server(("127.0.0.1", 0), service, server.context(authority, own.certificate, own.key))
    threading.Thread(target=one.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield one.server_address[1]
    finally:
        one.shutdown()
        one.server_close()


def client(directory: Path, port: int, identity: Identity) -> Client:
    return Client(settings(written(directory, port, identity), directory))


def written(directory: Path, port: int, identity: Identity) -> bytes:
    """The settings, and the files that they name."""
    (directory / "ca.crt").write_bytes(SERVERS.certificate)
    (directory / "client.crt").write_bytes(identity.certificate)
    (directory / "client.key").write_bytes(identity.key)
    text = f"{{server: 'https://localhost:{port}', ca: ca.crt, certificate: client.crt, key: client.key, keys: keys}}"
    (directory / "build.yaml").write_text(text)
    return text.encode()


def revocation_list(revoked: Identity, days: int = 9) -> bytes:
    issuer, now = x509.load_pem_x509_certificate(CLIENTS.certificate), datetime.datetime.now(datetime.UTC)
    serial = x509.load_pem_x509_certificate(revoked.certificate).serial_number
    entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
    builder = builder.last_update(now - datetime.timedelta(10)).next_update(now + datetime.timedelta(days))
    return builder.add_revoked_certificate(entry).sign(CLIENTS._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def refusal(one: Client) -> str:
    with pytest.raises(BuildError) as error:
        one.ask("GET", "/v1/status")
    return error.value.id


def test_a_revoked_client_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    revoked, good = CLIENTS.client("gone"), CLIENTS.client("here")
    with running(CLIENTS.certificate + revocation_list(revoked), {"hello": 1}) as port:
        assert refusal(client(tmp_path, port, revoked)) == "HPSB-CLIENT"
        assert client(tmp_path, port, good).ask("GET", "/v1/status") == {"hello": 1}
    with running(CLIENTS.certificate + revocation_list(revoked, days=-1), {}) as port:
        assert refusal(client(tmp_path, port, good)) == "HPSB-CLIENT"  # nobody knows who was revoked since


def test_a_list_alone_is_no_authority() -> None:
    own = SERVERS.server(("localhost",))
    with pytest.raises(ValueError, match="no authority"):
        server.context(revocation_list(own), own.certificate, own.key)


@pytest.mark.parametrize("command", ["manifest", "image"])
def test_the_manifest_of_another_job_is_refused(run: Run, tmp_path: Path, command: str) -> None:
    state = vault.create("gpg")
    keys = manifest.Keys(state.server, "gpg", manifest.public_of(state.cosign), manifest.public_of(state.manifest))
    (tmp_path / "keys").write_text(json.dumps(keys.document()))
    statement = {
        "job": "a" * 12,
        "server": {"id": keys.server, "version": "1"},
        "keys": {"gpg": keys.gpg, "cosign": keys.cosign},
        "source": {"repository": "r", "revision": "1", "containerfile": "C", "containerfile_sha256": "2"},
        **{"bases": [], "arguments": [], "network": [], "time": "now", "before": []},
        "image": {"name": "r.example.com/app", "tag": "1", "digest": f"sha256:{'1' * 64}"},
    }
    with running(CLIENTS.certificate, manifest.sign(statement, state.manifest)) as port:
        written(tmp_path, port, CLIENTS.client("me"))
        told = run("build", command, "b" * 12, "--json")
        assert told.code == 1 and json.loads(told.out)["error"]["id"] == "HPSB-MANIFEST"
        if command == "image":
            assert run("build", command, "a" * 12).code == 0
        else:
            told = run("build", command, "a" * 12, "-o", "-")  # the manifest alone goes to standard output
            assert json.loads(told.out)["payload"] and "digest" in told.err


@pytest.mark.parametrize("answer", [{}, {"jobs": [{}], "version": "1", "keys": None, "generation": 1}, {"job": 1}])
@pytest.mark.parametrize(
    "words", ["status", f"status {'a' * 12}", f"log {'a' * 12}", "clean", "start", "state import state", "init"]
)
def test_an_answer_of_another_form_is_refused(run: Run, tmp_path: Path, words: str, answer: Any) -> None:
    (tmp_path / "state").write_bytes(b"state")
    more = (
        ["--repository", "https://g.example.com/a", "--revision", "1", "--name", "a", "--wait"]
        if words == "start"
        else []
    )
    with running(CLIENTS.certificate, answer) as port:
        written(tmp_path, port, CLIENTS.client("me"))
        told = run("build", *words.split(), *more)
    expected = "HPSB-KEYS: " if words == "init" else "HPSB-SERVER: "
    assert told.code == 1 and told.err.startswith(expected), told


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    one = CLIENTS.client("me")
    key = load_pem_private_key(one.key, None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    with pytest.raises(BuildError) as error:
        client(tmp_path, 1, Identity(one.certificate, locked))
    assert error.value.id == "HPSB-SETTINGS" and "password" in error.value.cause
    told = {name: "x" * 20 for name in server.VARIABLES}
    told["CLIENT_CA"], told["SERVER_CRT"] = CLIENTS.certificate.decode(), one.certificate.decode()
    with pytest.raises(BuildError) as error:
        server.told_by({**told, "SERVER_KEY": locked.decode()})
    assert error.value.id == "HPSB-CONFIG"
