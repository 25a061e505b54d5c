"""``bootstrap-ceremony``: the BootstrapVM (white paper, 5.2): each persona does their own part, the BuildVM results.

It makes keys for this session; the image has none, and no other secret either. Then it opens one port for plain HTTP, as long as
the plan's window and minutes last:

===========================  ==========================================================================
``GET /session``             record and session (:func:`casemate.build.ceremony.open_session`)
``POST /measure``            a request for the ultravisor, from anybody; answers with its measurement of this machine and session
``GET /transcript``          all lines so far
``GET /status``              what is missing, JSON
``PUT /parts/NAME``          a part of the BuildVM, which is taken by its hash in the plan, from anybody
``POST /entry``              a persona's statement with its content; answers with the line of the transcript
``GET /result/NAME``         a file of the BuildVM's image, when it is built
===========================  ==========================================================================

There is no shell, no login, and no TLS: a statement counts by its signature, a line by its seal, a part by its hash, and secrets
come sealed for the session. Who sits on the wire can keep things from arriving, and nothing else.

All that decides is in :mod:`casemate.build.ceremony`. Contributed secrets are opened, compared with what was committed to, and
mixed (HKDF, with randomness of this machine) into the kernel's pool and into the BuildVM's state key: none of them is a key of
anything, and nobody can compute what came of them. They, the session's keys and the BuildVM's keys end with this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import hashlib
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from casemate.build import ceremony as rules
from casemate.build import ceremonyplan as plans
from casemate.build import ceremonysession as sessions
from casemate.build.ceremony import Ceremony, Line
from casemate.build.ceremonyplan import Plan
from casemate.build.job import Part
from casemate.errors import CasemateError
from casemate.guest import ultravisor
from casemate.guest.report import Stop, say
from casemate.secret import Secret
from casemate.secureexec import attestation
from casemate.secureexec.attestation import Answer

UNFORESEEN = "HPL19000E"
PORT = 8722
PLAN = "plan.json"
LARGEST_BODY = 2 * rules.LARGEST_CONTENT
DEADLINE, PARTS_DEADLINE, MOST_CONNECTIONS = 30.0, 300.0, 24
"""Seconds that a connection may last, one with a part, and how many there are at once."""
ASKING = 20.0
"""Seconds that a request for the ultravisor waits for those before it."""
GRACE = 30.0
"""Seconds between the end and the power off, for the transcript to be fetched."""
PR_SET_DUMPABLE = 4


class Bootstrap:
    """A ceremony at work. ``clock`` gives seconds since 1970: the infrastructure's word, as every clock of a machine.

    ``attest``: asks the ultravisor, with a request and user data.
    """

    def __init__(
        self,
        plan: bytes,
        record: bytes,
        attest: Callable[[bytes, bytes], Answer],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.plan: Plan = plans.parse_plan(plan)
        if self.plan.as_bytes() != plan:
            raise Stop("HPL19001E", "the plan is written in another form")
        self._clock, self._lock = clock, threading.RLock()
        self._attest, self._asking = attest, threading.Lock()
        self._signing, self._sealing = ec.generate_private_key(ec.SECP384R1()), X25519PrivateKey.generate()
        self.answer = sessions.make_session(self.plan, record, self._signing, self._sealing)
        session = sessions.open_session(self.answer, self.plan)
        self.ceremony = Ceremony(self.plan, session)
        self.parts: dict[str, bytes] = {}
        self.result: dict[str, bytes] = {}
        self._shares: dict[str, Secret] = {}
        self._intermediate: ec.EllipticCurvePrivateKey | None = None
        self.changed = threading.Condition(self._lock)

    def now(self) -> datetime.datetime:
        """The time, in whole seconds, never before the last line's."""
        now = datetime.datetime.fromtimestamp(int(self._clock()), datetime.UTC)
        lines = self.ceremony.lines
        return max(now, plans.time_of(lines[-1].time)) if lines else now

    # --- what comes from outside ----------------------------------------------------------------------------------

    def enter(self, body: bytes) -> bytes:
        """Take a persona's entry; return the line. Raises :class:`CeremonyError`: nothing has happened."""
        payload, signature, by, content, sealed = rules.parse_entry(body)
        with self._lock:
            said = self.ceremony.check(payload, signature, by, content, self.now())
            if said.role == plans.CUSTODIANS:
                opened = sessions.open_share(self._sealing, self.ceremony.session, by, sealed, content)
                self._require_another(opened)
            elif sealed:
                raise plans.CeremonyError("nothing secret belongs to this part", id="CEREMONY-CONTENT")
            line = self._append(said.action, by=by, statement=payload, signature=signature, content=content)
            if said.role == plans.CUSTODIANS:
                self._shares[by] = Secret(opened)
                stir(opened)
            self.changed.notify_all()
        say("HPL19011I", f"{by} has done their part: {said.action}")
        return line.as_bytes()

    def _require_another(self, opened: bytes) -> None:
        """Refuse a secret that somebody has given before: what was committed to differs by its salt."""
        if any(one.reveal()[sessions.SALT :] == opened[sessions.SALT :] for one in self._shares.values()):
            raise plans.CeremonyError(
                "somebody has contributed the same", "each gives a secret of their own", id="CEREMONY-CONTENT"
            )

    def measure(self, request: bytes) -> bytes:
        """Have the ultravisor measure this machine with its session, and nothing else. Raises :class:`CeremonyError`."""
        problem = plans.CeremonyError("the ultravisor gives no answer", "try again", id="CEREMONY-MEASUREMENT")
        if not self._asking.acquire(timeout=ASKING):  # it answers one after the other
            raise problem
        try:
            asked = attestation.unpack(request)
            return attestation.pack_answer(self._attest(asked.request, self.ceremony.session.user_data))
        except (ultravisor.NoUltravisor, OSError, EOFError):
            raise problem from None
        finally:
            self._asking.release()

    def bring(self, name: str, content: bytes) -> None:
        """Take a part by its hash. Raises :class:`CeremonyError`."""
        wanted = self.plan.parts.get(name)
        if wanted is None or wanted != Part(hashlib.sha256(content).hexdigest(), len(content)):
            raise plans.CeremonyError("this is no part of the plan", "bring what it names", id="CEREMONY-CONTENT")
        with self._lock:
            self.parts[name] = content
            self.changed.notify_all()

    def status(self) -> dict[str, Any]:
        """What is missing."""
        with self._lock:
            return {
                "missing": [asdict(one) for one in self.ceremony.missing()],
                "parts": sorted(set(self.plan.parts) - set(self.parts)) if not self.result else [],
                **{"due": self.ceremony.due, "lines": len(self.ceremony.lines), "ended": self.ceremony.ended},
            }

    # --- what the machine does --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Write the first line."""
        with self._lock:
            facts = {"ceremony": self.plan.digest, "session": self.ceremony.session.digest}
            self._append("open", facts=facts)

    def step(self) -> bool:
        """Do what is due for the machine, if anything; return whether something was."""
        due = self.ceremony.due
        if due == "request":
            self._request()
        elif due == "built" and set(self.parts) == set(self.plan.parts):
            self._build()
        elif due == "end":
            self.end(rules.COMPLETE)
        else:
            return False
        return True

    def end(self, outcome: str) -> None:
        """Write the last line, and forget all secrets."""
        with self._lock:
            if not self.ceremony.ended:
                self._append("end", facts={"outcome": outcome})
            for share in self._shares.values():
                share.wipe()
            self._shares.clear()
            self._intermediate = None
            self.changed.notify_all()
        say("HPL19014I", f"the ceremony has ended: {outcome}; the head of the transcript is {self.ceremony.head}")

    def _append(self, action: str, **more: Any) -> Line:
        line = self.ceremony.line(action, self.now(), **more)
        sealed = replace(line, seal=plans.sign(self._signing, rules.LINE_TYPE, line.unsealed()))
        self.ceremony = self.ceremony.follow(sealed)  # by the rules that the auditor will go by
        return sealed

    def _names(self) -> Any:
        from casemate.guest.builderwork import Names

        return Names(self.plan.organization, self.plan.development, "", 30)

    def _request(self) -> None:
        from casemate.build import forms

        with self._lock:
            key = self._intermediate = ec.generate_private_key(ec.SECP384R1())
            form = forms.request(self._names(), f"Casemate builder {self.plan.builder} 1")
            self._append("request", content=forms.pem(form.sign(key, forms.algorithm_for(key.public_key()))))
            self.changed.notify_all()
        say("HPL19012I", "the BuildVM's intermediate key is made; its request waits for the root")

    def _build(self) -> None:
        """Make the BuildVM's image: its keys here, its intermediate's certificate from the root."""
        from casemate.build import forms
        from casemate.guest.builder import require_no_keys
        from casemate.guest.builderwork import (
            AUTHORITY,
            CERTIFICATE,
            PIPELINE,
            REVIEWERS,
            ROOT,
            ROOT_LIST,
            STATE,
            next_builder,
        )
        from casemate.guest.kinds import KINDS
        from casemate.image.assemble import IMAGE, Parts, assemble
        from casemate.secureexec import hostkey

        plan, names, intermediate = self.plan, self._names(), self._intermediate
        if intermediate is None:
            raise Stop("HPL19000E", "the intermediate key is gone")
        certificate, root_list = self.ceremony.certificate()
        reviewers, root = self.ceremony.reviewers(), plan.root_certificate.encode()
        above = forms.load_certificate(certificate)
        attestation = rsa.generate_private_key(public_exponent=65537, key_size=4096)
        form = forms.certificate(
            *(names, "Casemate builder attestation", attestation.public_key(), above), issuer=f"{plan.builder}-1"
        )
        algorithm = forms.algorithm_for(intermediate.public_key())
        listed = forms.revocation_list(above, 1, (), names.list_days).sign(intermediate, algorithm)
        described = {"name": names.name, "development": names.development, "lists_at": "", "list_days": names.list_days}
        public = {
            **{REVIEWERS: reviewers, ROOT: root, CERTIFICATE: certificate, ROOT_LIST: root_list},
            AUTHORITY: json.dumps(described, sort_keys=True).encode(),
            **({PIPELINE: plan.pipeline.encode()} if plan.pipeline else {}),
        }
        files = {
            **{"attestation.crt": forms.pem(forms.sign(form, intermediate)), "intermediate.crt": certificate},
            **{"root.crt": root, "crl.pem": forms.pem(listed), "root.crl.pem": root_list, REVIEWERS: reviewers},
        }
        identity = next_builder(
            *(names, plan.builder, 1, ""),
            attestation=attestation,
            intermediate=intermediate,
            public=public,
            files=files,
        )
        state = mix([share.reveal() for _, share in sorted(self._shares.items())], b"casemate-ceremony state key")
        identity = replace(identity, secrets={**identity.secrets, STATE: Secret(state)})
        kernel, initrd = (io.BytesIO(self.parts[name]) for name in ("kernel", "initrd"))
        parts = Parts(
            *(plan.arch, KINDS["builder"], plan.release, kernel, initrd, plan.root.sha256, plan.root.size),
            *(self.parts["sbom.spdx.json"], self.parts["packages.txt"], plan.selection),
        )
        hosts = [(name, hostkey.load(document, check_validity=False)) for name, document in self.ceremony.hosts()]
        out = io.BytesIO()
        made = assemble(out, parts, identity, hosts, created=self.now())
        if made.values != plan.values:
            raise Stop("HPL19000E", "the parts make another image than the plan says")
        result = {**made.files, IMAGE: out.getvalue()}
        require_no_keys(dict(result), list(identity.secrets.values()))
        for secret in identity.secrets.values():
            secret.wipe()
        measured = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in result.items()
        }
        with self._lock:
            self.result = result
            self.parts.clear()
            self._intermediate = None
            self._append("built", facts={"files": measured})
            self.changed.notify_all()
        say("HPL19013I", "the BuildVM's image is made, and waits to be taken and witnessed")

    # --- the port ---------------------------------------------------------------------------------------------------

    def hold(self, address: str, port: int, *, grace: float = GRACE) -> None:
        """Wait for the window, open the port, hold the ceremony, close. Raises :class:`Stop` where the window is over."""
        while (wait := self.plan.not_before.timestamp() - self._clock()) > 0:
            time.sleep(min(wait, 1.0))
        left = self.plan.not_after.timestamp() - self._clock()
        if left <= 0:
            raise Stop("HPL19002E", "the window of this ceremony is over")
        end = time.monotonic() + min(left, 60.0 * self.plan.minutes)
        self.open()
        with serving(self, address, port):
            say("HPL19010I", f"the ceremony {self.plan.name} is open for {int(end - time.monotonic()) // 60} minutes")
            while not self.ceremony.ended:
                try:
                    if self._over(end):
                        self.end(rules.EXPIRED)
                    elif not self.step():
                        with self._lock:
                            self.changed.wait(0.5)
                except plans.CeremonyError:
                    if not self._over(end):  # else: what was at work when the window ended is not to be told any more
                        raise
            time.sleep(grace)

    def _over(self, end: float) -> bool:
        return time.monotonic() >= end or self._clock() >= self.plan.not_after.timestamp()


def stir(secret: bytes) -> None:
    """Mix a contribution into the kernel's pool, from which all keys are made; it can't make the pool weaker."""
    with Path("/dev/urandom").open("wb", buffering=0) as pool:
        pool.write(hashlib.sha512(secret).digest())


def mix(contributions: list[bytes], purpose: bytes) -> bytes:
    """Return 32 bytes that depend on all contributions and on randomness of this machine: neither side alone knows them."""
    from cryptography.hazmat.primitives.hashes import SHA384
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    told = b"".join(len(one).to_bytes(4, "big") + one for one in contributions)
    return HKDF(SHA384(), 32, os.urandom(48), purpose).derive(os.urandom(48) + told)


class _Server(ThreadingHTTPServer):
    """So many connections at once, and no more: others are closed."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.slots = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Take the port, and ask no name server who we are."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection where there is room."""
        if not self.slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and give its room back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whatever a connection does to its handler ends the connection, not the ceremony, and is not shown."""


@contextlib.contextmanager
def serving(bootstrap: Bootstrap, address: str, port: int) -> Iterator[int]:
    """Listen; give the port."""
    uploads = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"
        timeout = 10

        def setup(self) -> None:
            """A connection has so many seconds in all, however slowly it speaks."""
            super().setup()
            self._alarm = threading.Timer(DEADLINE, self._cut)
            self._alarm.daemon = True
            self._alarm.start()

        def finish(self) -> None:
            self._alarm.cancel()
            with contextlib.suppress(OSError):
                super().finish()

        def _cut(self) -> None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def _longer(self) -> None:
            self._alarm.cancel()
            self.connection.settimeout(PARTS_DEADLINE)
            self._alarm = threading.Timer(PARTS_DEADLINE, self._cut)
            self._alarm.daemon = True
            self._alarm.start()

        def do_GET(self) -> None:
            name = self.path
            if name == "/session":
                self._say(200, bootstrap.answer)
            elif name == "/transcript":
                self._say(200, bootstrap.ceremony.as_bytes())
            elif name == "/status":
                self._say(200, json.dumps(bootstrap.status()).encode())
            elif (data := bootstrap.result.get(name.removeprefix("/result/"))) is not None and name.startswith(
                "/result/"
            ):
                self._longer()
                self._say(200, data)
            else:
                self._refuse(404, plans.CeremonyError("there is nothing of this name", id="CEREMONY-CONTENT"))

        def do_POST(self) -> None:
            act = {"/entry": bootstrap.enter, "/measure": bootstrap.measure}.get(self.path)
            if act is None:
                self._refuse(404, plans.CeremonyError("there is nothing of this name", id="CEREMONY-CONTENT"))
            elif (body := self._body(LARGEST_BODY)) is not None:
                try:
                    self._say(200, act(body))
                except CasemateError as error:
                    say("HPL19001W", f"an entry was refused: {error.id}")
                    self._refuse(409, error)

        def do_PUT(self) -> None:
            name = self.path.removeprefix("/parts/")
            wanted = bootstrap.plan.parts.get(name)
            if wanted is None or not self.path.startswith("/parts/"):
                self._refuse(404, plans.CeremonyError("this is no part of the plan", id="CEREMONY-CONTENT"))
            elif name in bootstrap.parts or bootstrap.result:
                self._say(200, b"{}")
            elif not uploads.acquire(blocking=False):
                self._refuse(503, plans.CeremonyError("another part comes in", "try again", id="CEREMONY-BUSY"))
            else:
                try:
                    self._longer()
                    if (body := self._body(wanted.size)) is not None:
                        bootstrap.bring(name, body)
                        self._say(200, b"{}")
                except CasemateError as error:
                    self._refuse(409, error)
                finally:
                    uploads.release()

        def _body(self, limit: int) -> bytes | None:
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit() and len(length) < 12 and 0 < int(length) <= limit):
                self._refuse(
                    413, plans.CeremonyError("there is no body, or one that is too large", id="CEREMONY-LARGE")
                )
                return None
            body = self.rfile.read(int(length))
            return body if len(body) == int(length) else None

        def _say(self, code: int, data: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _refuse(self, code: int, error: CasemateError) -> None:
            self._say(code, json.dumps({"id": error.id, "cause": error.cause, "cure": error.cure}).encode())

        def version_string(self) -> str:
            return "casemate"

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing: what the network sends is no message of ours."""

    server = _Server((address, port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def service() -> None:
    """Hold the ceremony that the image was made for."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.umask(0o077)
    given, public = Path("/run/casemate"), Path("/var/hyperprotect")
    try:
        bootstrap = Bootstrap(
            *((given / "public" / PLAN).read_bytes(), (public / "se-checksums.txt").read_bytes()), ultravisor.attest
        )
    except CasemateError as error:
        raise Stop("HPL19001E", f"{error.id}: {error.cause}") from None
    bootstrap.hold("0.0.0.0", PORT)  # noqa: S104  (the one port of this machine)
