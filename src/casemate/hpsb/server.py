"""The build server: HTTPS with TLS 1.3 and certificates on both sides, one job at a time.

What it is told comes from the contract, as variables of its container:

    CLIENT_CA            PEM of the authority whose certificates clients have, and of its revocation list where it has one
    SERVER_CRT, SERVER_KEY   PEM of the server's certificate and key (each of these three also as base64 of PEM)
    HPSB_CONFIG          what it may do (casemate.hpsb.config)
    HPSB_SECRET_WORKLOAD, HPSB_SECRET_ENV    what its state is encrypted under, one from each party

It reads them once and starts itself again without them, so that no process of it has them in its environment.

    GET  /v1/status                          version, keys, the jobs
    POST /v1/init                            makes the keys, once; gives the public ones
    POST /v1/jobs            job             starts one (casemate.hpsb.config.parse_job); {"job": NAME}
    GET  /v1/jobs/NAME                       its state
    GET  /v1/jobs/NAME/log?from=N            what it has said, from byte N
    GET  /v1/jobs/NAME/manifest, /signature  of a job that is done: the signed manifest; the GPG signature
    POST /v1/state/export                    the state, encrypted under both parties' secrets
    POST /v1/state/import?least=N  state     the same, back
    POST /v1/clean                           forgets jobs that have ended; what was signed stays known

Errors are JSON: ``{"error": {"id", "cause", "cure", "where"}}`` with status 400, 404 or 409.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import shutil
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from casemate import __version__, strictjson
from casemate.contract.errors import ContractError
from casemate.contract.keys import pem_of
from casemate.hpsb import manifest, vault
from casemate.hpsb.config import Config, Job, parse_config, parse_job
from casemate.hpsb.errors import BuildError, refused
from casemate.hpsb.job import Builder
from casemate.hpsb.sandbox import LARGEST_LOG
from casemate.hpsb.signing import Gpg, stop_agent
from casemate.hpsb.vault import Built, Secrets, State

VARIABLES = ("CLIENT_CA", "SERVER_CRT", "SERVER_KEY", "HPSB_CONFIG", "HPSB_SECRET_WORKLOAD", "HPSB_SECRET_ENV")
LARGEST_REQUEST, MOST_WAITING, MOST_KEPT = vault.LARGEST, 16, 50
PORT, PATIENCE = 8443, 60.0
_JOB = r"/v1/jobs/(?P<job>[0-9a-f]{12})"


@dataclass(slots=True)
class Told:
    """A job as the server keeps it: ``state`` is waiting, running, done or failed; ``phase`` what it is doing."""

    name: str
    job: Job
    started: str
    state: str = "waiting"
    phase: str = ""
    error: dict[str, str] | None = None
    digest: str = ""
    ended: str = ""
    log: bytearray = field(default_factory=bytearray)
    manifest: bytes = b""
    signature: bytes = b""

    def document(self) -> dict[str, Any]:
        """Return what a client is told of it."""
        job = self.job
        return {
            **{
                "job": self.name,
                "state": self.state,
                "phase": self.phase,
                "started": self.started,
                "ended": self.ended,
            },
            **{"repository": job.repository, "revision": job.revision, "image": job.image, "digest": self.digest},
            "error": self.error,
        }


class Service:
    """What the server does, without the HTTP around it. Errors are :class:`BuildError`."""

    def __init__(self, config: Config, parties: Secrets, volume: Path, scratch: Path) -> None:
        self._config, self._parties, self._volume, self._scratch = config, parties.check(), volume, scratch
        self._lock, self._work = threading.RLock(), threading.Condition()
        self._jobs: dict[str, Told] = {}
        self._state: State | None = None
        self._gpg: Gpg | None = None
        self._public: manifest.Keys | None = None
        self._builder: Builder | None = None
        self._ended = False
        for path in (volume, scratch):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o711)
        shutil.rmtree(volume / "jobs", ignore_errors=True)  # what a power cut has left: no job goes on after one
        if self._file.is_file():
            self._load(vault.open_state(self._file.read_bytes(), self._parties))
        self._worker = threading.Thread(target=self._run, daemon=True)
        self._worker.start()

    @property
    def _file(self) -> Path:
        return self._volume / "state"

    def close(self) -> None:
        """End the job that runs, and GPG's agent."""
        with self._work:
            self._ended = True
            self._work.notify_all()
        if self._builder is not None and self._builder.watch is not None:
            self._builder.watch.stop.set()
        self._worker.join(30)  # its sandbox ends with it
        if self._gpg is not None:
            self._gpg.close()

    def init(self) -> dict[str, str]:
        """Make the keys, where there are none; return the public ones."""
        with self._lock:
            if self._state is not None:
                raise refused(
                    "INITIALISED",
                    "the server has its keys already",
                    "casemate build status shows them; a new server needs a new volume",
                )
            home = self._scratch / "new-key"
            shutil.rmtree(home, ignore_errors=True)
            try:
                state = vault.create(Gpg.create(home))
            finally:
                stop_agent(home)
                shutil.rmtree(home, ignore_errors=True)
            self._save(state)
            self._load(state)
            return self._keys().document()

    def status(self) -> dict[str, Any]:
        """Return what the server is, and all jobs."""
        with self._lock:
            keys = self._public.document() if self._public else None
            jobs = [told.document() for told in self._jobs.values()]
            generation = self._state.generation if self._state else 0
            names = list(self._config.images)
        return {"version": __version__, "keys": keys, "generation": generation, "images": names, "jobs": jobs}

    def start(self, document: Any) -> dict[str, str]:
        """Take a job."""
        self._keys()
        job = parse_job(document, self._config)
        with self._lock:
            ended = [name for name, told in self._jobs.items() if told.state in ("done", "failed")]
            if len(self._jobs) - len(ended) > MOST_WAITING:
                raise refused("BUSY", "too many jobs wait", "come back later")
            for name in ended[: max(0, len(ended) - MOST_KEPT)]:  # the oldest
                del self._jobs[name]
            told = Told(secrets.token_hex(6), job, _now())
            self._jobs[told.name] = told
        with self._work:
            self._work.notify_all()
        return {"job": told.name}

    def told(self, name: str) -> Told:
        """Return a job."""
        with self._lock:
            if name not in self._jobs:
                raise refused("NO-JOB", "the server knows no such job", "casemate build status lists them", name)
            return self._jobs[name]

    def done(self, name: str) -> Told:
        """Return a job that is done."""
        told = self.told(name)
        if told.state != "done":
            raise refused("NOT-DONE", f"the job is {told.state}", "casemate build status shows what it does", name)
        return told

    def export(self) -> bytes:
        """Return the state, encrypted."""
        self._keys()
        with self._lock:
            return self._file.read_bytes()

    def bring(self, data: bytes, least: int) -> dict[str, Any]:
        """Take a state that was exported."""
        with self._lock:
            if any(told.state in ("waiting", "running") for told in self._jobs.values()):
                raise refused("BUSY", "jobs are running", "wait for them")
            state = vault.open_state(data, self._parties, known=self._state, least=least)
            self._save(state)
            self._load(state)
            return {"generation": state.generation, "builds": len(state.builds), "keys": self._keys().document()}

    def clean(self) -> dict[str, int]:
        """Forget jobs that have ended."""
        with self._lock:
            ended = [name for name, told in self._jobs.items() if told.state in ("done", "failed")]
            for name in ended:
                del self._jobs[name]
        return {"forgotten": len(ended)}

    # ------------------------------------------------------------------------------------------------- inside

    def _keys(self) -> manifest.Keys:
        if self._public is None:
            raise refused(
                "NO-KEYS",
                "the server has no keys yet",
                "casemate build init makes them, casemate build state import brings them",
            )
        return self._public

    def _load(self, state: State) -> None:
        if self._gpg is None:
            home = self._scratch / "gpg"
            shutil.rmtree(home, ignore_errors=True)
            self._gpg = Gpg.load(home, state.gpg)
        public = self._gpg.public()
        self._public = manifest.Keys(
            state.server, public, manifest.public_of(state.cosign), manifest.public_of(state.manifest)
        )
        self._state = state
        shown = {"gpg": public, "cosign": self._public.cosign}
        self._builder = Builder(self._config, self._known, self._gpg, shown, self._scratch, __version__)

    def _known(self) -> State:
        with self._lock:
            assert self._state is not None
            return self._state

    def _save(self, state: State) -> None:
        new = self._file.with_name("state.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(vault.seal(state, self._parties))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._file)
        directory = os.open(self._volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(directory)
        os.close(directory)

    def _next(self) -> Told | None:
        with self._lock:
            return next((told for told in self._jobs.values() if told.state == "waiting"), None)

    def _run(self) -> None:
        while True:
            with self._work:
                while (told := self._next()) is None and not self._ended:
                    self._work.wait()
                if self._ended or told is None:
                    return
            told.state = "running"
            _say(f"job {told.name} begins: {told.job.revision} of {told.job.repository}, as {told.job.image}")
            try:
                self._do(told)
                _say(f"job {told.name} is done: {told.digest}")
            except BuildError as error:
                self._failed(told, error)
            except Exception as error:  # the server goes on, whatever a job has found
                self._failed(
                    told, refused("INTERNAL", f"the server made a mistake ({type(error).__name__})", "tell who runs it")
                )
            told.ended = _now()

    def _failed(self, told: Told, error: BuildError) -> None:
        told.error = _error(error)
        told.state = "failed"
        _say(f"job {told.name} has failed: {error.id}")

    def _do(self, told: Told) -> None:
        def log(part: bytes) -> None:
            told.log.extend(part[: max(0, LARGEST_LOG - len(told.log))])

        def phase(text: str) -> None:
            told.phase = text
            log(f"--- {text}\n".encode())

        builder = self._builder
        assert builder is not None
        made = builder.run(told.job, told.name, self._volume / "jobs" / told.name, log, phase)
        job, statement = told.job, made.statement
        built = Built(statement["inputs"], job.name, job.tag, made.digest, told.name, statement["time"])
        with self._lock:
            state = self._known().with_build(built)
            self._save(state)
            self._state = state
        told.manifest, told.signature = manifest.sign(statement, state.manifest), made.signature
        told.digest, told.phase, told.state = made.digest, "", "done"


def handler(service: Service) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers requests for a service."""
    actions: list[tuple[str, str, Callable[[re.Match[str], dict[str, str], bytes], Any]]] = [
        ("GET", "/v1/status", lambda _, query, body: service.status()),
        ("POST", "/v1/init", lambda _, query, body: service.init()),
        ("POST", "/v1/jobs", lambda _, query, body: service.start(_json(body))),
        ("GET", _JOB, lambda match, query, body: service.told(match["job"]).document()),
        (
            "GET",
            f"{_JOB}/log",
            lambda match, query, body: bytes(service.told(match["job"]).log[_number(query, "from") :]),
        ),
        ("GET", f"{_JOB}/manifest", lambda match, query, body: service.done(match["job"]).manifest),
        ("GET", f"{_JOB}/signature", lambda match, query, body: service.done(match["job"]).signature),
        ("POST", "/v1/state/export", lambda _, query, body: service.export()),
        ("POST", "/v1/state/import", lambda _, query, body: service.bring(body, _number(query, "least"))),
        ("POST", "/v1/clean", lambda _, query, body: service.clean()),
    ]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "casemate-build", ""
        timeout = PATIENCE

        def answer(self) -> None:
            url = urlsplit(self.path)
            length = self.headers.get("Content-Length", "0")
            if (
                not re.fullmatch("[0-9]{1,9}", length)
                or int(length) > LARGEST_REQUEST
                or "Transfer-Encoding" in self.headers
            ):
                self.close_connection = True
                self.give(413, _error(refused("REQUEST", "the request is too large, or of no length")))
                return
            body = self.rfile.read(int(length))
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            for method, path, act in actions:
                if method == self.command and (match := re.fullmatch(path, url.path)):
                    try:
                        self.give(200, act(match, query, body))
                    except BuildError as error:
                        status = {"HPSB-NO-JOB": 404, "HPSB-NOT-DONE": 409, "HPSB-BUSY": 409}.get(error.id, 400)
                        self.give(status, {"error": _error(error)})
                    except Exception as error:  # one mistake is no reason to leave all clients alone
                        mistake = refused(
                            "INTERNAL", f"the server made a mistake ({type(error).__name__})", "tell who runs it"
                        )
                        self.give(500, {"error": _error(mistake)})
                    return
            self.give(404, {"error": _error(refused("REQUEST", "the server knows no such request"))})

        do_GET = do_POST = answer

        def give(self, status: int, content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class Server(ThreadingHTTPServer):
    """HTTPS for clients with a certificate of one authority. The handshake is done in the request's thread, in its time."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], service: Service, tls: ssl.SSLContext) -> None:
        super().__init__(address, handler(service))
        self._tls = tls

    def get_request(self) -> tuple[Any, Any]:
        """Take a connection; nothing is said or read yet."""
        connection, address = super().get_request()
        connection.settimeout(PATIENCE)
        return self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what failed without a traceback: most often a client without a certificate that counts."""
        error = sys.exc_info()[1]
        what = getattr(error, "reason", None) or type(error).__name__
        _say(f"a connection has failed: {what}")


def context(authority: bytes, certificate: bytes, key: bytes) -> ssl.SSLContext:
    """Return what the server speaks: TLS 1.3, and a client's certificate of ``authority`` is needed. All PEM.

    Where ``authority`` holds revocation lists, a client needs one of its issuer that has not ended and does not name it.
    """
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.verify_mode = ssl.CERT_REQUIRED
    with _file(authority) as path:  # of text, Python takes the certificates and passes over the lists
        tls.load_verify_locations(path)
    held = tls.cert_store_stats()
    if not held["x509"]:
        raise ValueError("no authority")
    if held["crl"]:
        tls.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    with _file(certificate + b"\n" + key) as path:
        tls.load_cert_chain(path, password="")  # an encrypted key is refused: OpenSSL would ask at a terminal
    return tls


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[str]:
    """A file in memory: OpenSSL reads from files only."""
    memory = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(memory, data)
        yield f"/proc/self/fd/{memory}"
    finally:
        os.close(memory)


def told_by(environment: Mapping[str, str]) -> tuple[ssl.SSLContext, Config, Secrets]:
    """Return what the contract's variables say. Raises :class:`BuildError`."""
    if missing := [name for name in VARIABLES if not environment.get(name)]:
        raise refused("CONFIG", f"variables are missing: {', '.join(missing)}", "give them under env of the contract")
    try:
        authority, certificate, key = (pem_of(environment[name]) for name in VARIABLES[:3])
        tls = context(authority, certificate, key)
    except (ContractError, ssl.SSLError, ValueError):
        raise refused(
            "CONFIG",
            "CLIENT_CA, SERVER_CRT, SERVER_KEY are no certificates and key that belong together",
            "PEM, or base64 of PEM",
        ) from None
    parties = Secrets(environment["HPSB_SECRET_WORKLOAD"], environment["HPSB_SECRET_ENV"]).check()
    return tls, parse_config(environment["HPSB_CONFIG"]), parties


def main() -> int:
    """Serve until told to stop. ``HPSB_DATA`` and ``HPSB_RUN`` name the volume and a place for what is short-lived."""
    if "HPSB_TOLD" not in os.environ:
        memory = os.memfd_create("told", 0)
        os.write(memory, json.dumps({name: os.environ.get(name, "") for name in VARIABLES}).encode())
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**kept, "HPSB_TOLD": str(memory)})  # noqa: S606
    with os.fdopen(int(os.environ.pop("HPSB_TOLD")), "rb") as file:
        file.seek(0)
        environment = json.loads(file.read())
    try:
        tls, config, parties = told_by(environment)
        service = Service(
            config, parties, Path(os.environ.get("HPSB_DATA", "/data")), Path(os.environ.get("HPSB_RUN", "/run/hpsb"))
        )
    except BuildError as error:
        _say(error.diagnostics())
        return 1
    address = os.environ.get("HPSB_ADDRESS", "0.0.0.0")  # noqa: S104  (its container publishes one port of it)
    server = Server((address, int(os.environ.get("HPSB_PORT", str(PORT)))), service, tls)

    def stop(number: int, frame: object) -> None:
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    _say(f"casemate {__version__} builds; {'it has its keys' if service.status()['keys'] else 'it waits for init'}")
    with contextlib.closing(service):
        server.serve_forever(0.5)
    return 0


def _json(body: bytes) -> Any:
    try:
        return strictjson.loads(body)
    except ValueError:
        raise refused("REQUEST", "the request is no JSON") from None


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "0")
    if not re.fullmatch("[0-9]{1,18}", text):
        raise refused("REQUEST", f"{name} is no number")
    return int(text)


def _error(error: BuildError) -> dict[str, str]:
    return {"id": error.id, "cause": error.cause, "cure": error.cure, "where": error.where}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
