"""A ceremony from outside: the plan, the BootstrapVM's image and machine, what each persona sends, what comes out.

    plan = make_plan(…)                                          # the people, the window, and by hash what is built
    header = pack(plan, parts, Path("bootstrap"), secret)        # the BootstrapVM's image: everybody packs the same
    visit = Visit("127.0.0.1:8722", plan, header)                # refuses what is not this BootstrapVM
    visit.approve("alice", key, next_key)                        # a persona's part: asks, looks, signs, sends, verifies the line

A visit has the machine's ultravisor measure image and session, and replays its transcript, before it signs, and again after: what
it has seen before must still be there. A secret is sealed for the session that was verified, so another machine can't open
it, whatever it answers.
"""

from __future__ import annotations

import datetime
import hashlib
import http.client
import json
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from casemate.build import ceremony as rules
from casemate.build import ceremonyplan as plans
from casemate.build import ceremonysession as sessions
from casemate.build.buildvm import measure
from casemate.build.ceremony import Ceremony, Line
from casemate.build.ceremonyplan import FILE, TOKEN, Plan, Role
from casemate.build.ceremonysession import Evidence, Session
from casemate.build.job import Part
from casemate.errors import CasemateError

PLAN, SESSION, TRANSCRIPT, BUILT = "plan.json", "session.json", "transcript.jsonl", "buildvm"
HEADER, MEASUREMENT, PROTECTION_KEY = "bootstrap.header", "measurement.bin", "measurement.key"
"""What the auditor's program has asked and verified: an :class:`~casemate.build.ceremonysession.Evidence`."""
SECRET = 32
"""Bytes of what a plan's image is packed with (:func:`~casemate.build.ceremonysession.image_seed`)."""
TIMEOUT, PARTS_TIMEOUT = 30.0, 300.0
LARGEST_FILE = 1 << 30


class VisitError(CasemateError):
    """The BootstrapVM can't be reached, or has refused. ``CEREMONY-UNREACHABLE``, or the identifier of its refusal."""

    id = "CEREMONY-UNREACHABLE"


def custody_of(uri: str) -> str:
    """Return where a signer's key is: ``token`` or ``file``."""
    return TOKEN if uri.startswith("pkcs11:") else FILE


@dataclass
class Visit:
    """The way of one persona to a BootstrapVM at ``HOST:PORT``. ``header``: of its image, as they have packed it.

    ``archive``: the root archive, where they have it.
    """

    address: str
    plan: Plan
    header: bytes
    archive: Path | None = None
    answer: bytes = field(default=b"", repr=False)
    evidence: Evidence | None = None
    seen: Ceremony | None = None

    def look(self) -> Ceremony:
        """Return the ceremony as it is now, all of it verified. Raises :class:`CasemateError`."""
        answer = self._ask("GET", "/session", sessions.LARGEST_ANSWER)
        session = sessions.open_session(answer, self.plan)
        if self.evidence is None:
            self.evidence = self.measure(session)
        else:
            sessions.measured(self.plan, session, self.evidence)
        if self.seen is not None and self.seen.session.digest != session.digest:
            raise plans.CeremonyError(
                "the machine has begun another session since the last look", "ask who runs it", id="CEREMONY-SESSION"
            )
        found = Ceremony.replay(self.plan, session, self._ask("GET", "/transcript", rules.LARGEST_TRANSCRIPT))
        if self.seen is not None and found.lines[: len(self.seen.lines)] != self.seen.lines:
            raise plans.CeremonyError(
                "lines that were there before are gone or changed",
                "the machine forks its transcript",
                id="CEREMONY-TRANSCRIPT",
            )
        self.answer, self.seen = answer, found
        return found

    def measure(self, session: Session) -> Evidence:
        """Have the machine's ultravisor measure it with this session, and return what came. Raises :class:`CasemateError`."""
        request, key = sessions.ask(self.plan)
        evidence = Evidence(self.header, self._ask("POST", "/measure", sessions.LARGEST_ANSWER, request), key)
        sessions.measured(self.plan, session, evidence)
        return evidence

    def status(self) -> dict[str, Any]:
        """What the machine says of itself; nothing of it is proved."""
        return dict(json.loads(self._ask("GET", "/status", 64 << 10)))

    def wait(self, action: str, patience: float = 600.0) -> Ceremony:
        """Wait until a line of this action is there."""
        end = time.monotonic() + patience
        while True:
            try:
                found = self.look()
                if found.of(action):
                    return found
                over = found.ended or time.monotonic() > end
            except VisitError as error:  # one answer that did not come
                if error.id != VisitError.id or time.monotonic() > end:
                    raise
                over = False
            if over:
                raise plans.CeremonyError(f"there is no line {action}", "casemate ceremony status", id="CEREMONY-ORDER")
            time.sleep(0.5)

    def act(self, persona: str, key: Any, custody: str, content: bytes, sealed: bytes = b"") -> Line:
        """Sign and send a persona's part; return the line, sealed by the machine. Raises :class:`CasemateError`."""
        before = self.seen or self.look()
        self.evidence = self.measure(before.session)  # each signs what they have asked for themselves, now
        names = self.evidence.names
        payload = rules.statement(self.plan, before.session, persona, content, before.head, custody, names)
        entry = rules.entry(payload, plans.sign(key, rules.STATEMENT_TYPE, payload), persona, content, sealed)
        line = rules.parse_line(self._ask("POST", "/entry", rules.LARGEST_LINE, entry))
        if line not in self.look().lines or line.statement != payload:
            raise plans.CeremonyError("the line that was answered is not in the transcript", id="CEREMONY-TRANSCRIPT")
        return line

    def approve(self, persona: str, key: Any, next_key: Any, custody: str = FILE, next_custody: str = FILE) -> Line:
        """Approve the plan, and name the key that will approve builds."""
        return self.act(persona, key, custody, rules.next_key(self.look().session, persona, next_key, next_custody))

    def give_hosts(self, persona: str, key: Any, hosts: Sequence[tuple[str, bytes]], custody: str = FILE) -> Line:
        """Give the hosts that the BuildVM is made for."""
        self.look()
        return self.act(persona, key, custody, rules.hosts_content(hosts))

    def contribute(self, persona: str, key: Any, share: bytes, custody: str = FILE) -> Line:
        """Give a secret, sealed for this session."""
        session, salt = self.look().session, secrets.token_bytes(sessions.SALT)
        return self.act(
            persona, key, custody, sessions.commitment(salt, share), sessions.seal_share(session, persona, salt, share)
        )

    def certify(
        self,
        persona: str,
        key: Any,
        root: Any,
        custody: str = FILE,
        root_custody: str = FILE,
        earlier: bytes | None = None,
    ) -> Line:
        """Answer the machine's request with the root's key. ``earlier``: :func:`earlier_list`."""
        earlier_list(self.plan, earlier)
        request = self.wait("request").request()
        return self.act(persona, key, custody, answer_request(self.plan, request, root, root_custody, earlier))

    def witness(self, persona: str, key: Any, directory: Path, custody: str = FILE) -> Line:
        """Fetch the BuildVM's image, compare each file with the transcript, sign the head."""
        built = self.wait("built").of("built")[0]
        directory.mkdir(parents=True, exist_ok=True)
        for name, part in rules.built_files(built).items():
            data = self._ask("GET", f"/result/{name}", min(part.size, LARGEST_FILE), timeout=PARTS_TIMEOUT)
            if measure(data) != part:
                raise plans.CeremonyError(
                    "what came out is not what the transcript says", "fetch it again", name, id="CEREMONY-CONTENT"
                )
            (directory / name).write_bytes(data)
        self.look()
        return self.act(persona, key, custody, b"")

    def bring(self, name: str, content: bytes) -> None:
        """Bring a part of the BuildVM; wait where another comes in, and try again where a busy host cuts it off."""
        end, tries = time.monotonic() + 2 * PARTS_TIMEOUT, 0
        while True:
            try:
                self._ask("PUT", f"/parts/{name}", 4096, content, timeout=PARTS_TIMEOUT)
                return
            except VisitError as error:
                tries += error.id != "CEREMONY-BUSY"
                if error.id not in ("CEREMONY-BUSY", VisitError.id) or tries == 3 or time.monotonic() > end:
                    raise
            time.sleep(2)

    def save(self, directory: Path) -> None:
        """Write plan, session, transcript and what the ultravisor said: all that an auditor needs. The ceremony is over."""
        found, evidence = self.look(), self.evidence
        assert evidence is not None
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in (
            *((PLAN, self.plan.as_bytes()), (SESSION, self.answer), (TRANSCRIPT, found.as_bytes())),
            *((HEADER, evidence.header), (MEASUREMENT, evidence.answer), (PROTECTION_KEY, evidence.key)),
        ):
            (directory / name).write_bytes(data)

    def _ask(self, method: str, path: str, limit: int, body: bytes | None = None, timeout: float = TIMEOUT) -> bytes:
        host, _, port = self.address.rpartition(":")
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise VisitError("an address is HOST:PORT", "give the one of the BootstrapVM", self.address)
        try:
            connection = http.client.HTTPConnection(host.strip("[]") or "127.0.0.1", int(port), timeout=timeout)
        except http.client.InvalidURL:
            raise VisitError("an address is HOST:PORT", "give the one of the BootstrapVM", self.address) from None
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            data = response.read(limit + 1)
            length = response.headers.get("Content-Length")
        except (OSError, http.client.HTTPException, UnicodeError):  # the last: a name that can't be one
            raise VisitError(
                "the BootstrapVM does not answer", "is it running, and its window open?", self.address
            ) from None
        finally:
            connection.close()
        if response.status != 200:
            raise _refusal(data)
        if len(data) > limit or (length is not None and str(len(data)) != length):
            raise VisitError("the answer is too large, or was cut off", "ask again", self.address)
        return data


def _refusal(data: bytes) -> VisitError:
    try:
        said = json.loads(data[:4096])
        texts = [str(said[name])[:300] for name in ("id", "cause", "cure")]
    except (ValueError, KeyError, TypeError, RecursionError):
        texts = ["CEREMONY-UNREACHABLE", "the machine refused", ""]
    clean = ["".join(c for c in text if c.isprintable()) for text in texts]
    known = clean[0] if clean[0].startswith("CEREMONY-") else "CEREMONY-UNREACHABLE"
    return VisitError(clean[1], clean[2], id=known)


def earlier_list(plan: Plan, earlier: bytes | None) -> tuple[int, list[Any]]:
    """Return number and entries of the root's newest list (PEM): the ceremony's comes after it, and keeps what it revokes.

    ``earlier``: empty where the root has made none; ``None`` where nobody said, which is for development only. Raises
    :class:`~casemate.build.ceremonyplan.CeremonyError`.
    """
    from cryptography import x509

    if not earlier:
        if earlier is None and not plan.development:
            raise plans.CeremonyError(
                "the root's newest revocation list was not given: what it has revoked would be valid again",
                "--root-crl FILE; --no-earlier-list where this root has never made one",
                id="CEREMONY-LIST",
            )
        return 0, []
    root = x509.load_pem_x509_certificate(plan.root_certificate.encode())
    public: Any = root.public_key()
    try:
        found = x509.load_pem_x509_crl(earlier)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        if found.issuer == root.subject and found.is_signature_valid(public):
            return number, list(found)
    except (ValueError, x509.ExtensionNotFound):
        pass
    raise plans.CeremonyError(
        "this is no revocation list of the plan's root, or has no number", "give its newest, as PEM", id="CEREMONY-LIST"
    )


def answer_request(plan: Plan, request: bytes, root: Any, custody: str, earlier: bytes | None = None) -> bytes:
    """Return the root's answer to a request: certificate and revocation list, made with the root's key.

    ``earlier``: :func:`earlier_list`.
    """
    from cryptography import x509

    from casemate.build import forms

    number, entries = earlier_list(plan, earlier)
    asked = x509.load_pem_x509_csr(request)
    above = forms.load_certificate(plan.root_certificate.encode())
    if plans.spki(above.public_key()) != plans.spki(root.public_key()):
        raise plans.CeremonyError(
            "this is not the key of the plan's root", "give the root's key", id="CEREMONY-PERSONA"
        )
    public: Any = rules.request_key(request)
    certificate = forms.sign(
        forms.certificate(_names(plan), asked.subject, public, above, forms.INTERMEDIATE_DAYS, path=0),
        root,
    )
    algorithm = forms.algorithm_for(root.public_key())
    revocation = forms.revocation_list(above, number + 1, entries, 30).sign(root, algorithm)
    content = rules.certificate_content(forms.pem(certificate), forms.pem(revocation), custody)
    rules.check_certificate(plan, request, content, datetime.datetime.now(datetime.UTC))
    return content


@dataclass(frozen=True, slots=True)
class _Names:
    """Whose certificates these are."""

    name: str
    development: bool
    lists_at: str = ""


def _names(plan: Plan) -> _Names:
    return _Names(plan.organization, plan.development)


def root_certificate(organization: str, root: Any, *, development: bool) -> bytes:
    """Return a certificate of a root's key, signed by itself, PEM."""
    from casemate.build import forms

    named = _Names(organization, development)
    form = forms.certificate(named, f"{organization} root"[:64], root.public_key(), None, forms.ROOT_DAYS, path=1)
    return forms.pem(forms.sign(form, root))


# --- plan and image ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The public parts that both machines are made of: files by name, the root archive, what a record says."""

    arch: str
    release: str
    files: dict[str, bytes]
    archive: Path
    values: dict[str, str]
    selection: dict[str, Any]


def ready_parts(
    arch: str = "amd64", cache: Path | None = None, progress: Callable[[str], None] = lambda step: None
) -> Ready:
    """Build the parts on this host. They are reproducible: everybody can build them and compare."""
    from casemate.build.buildvm import ready_parts as build
    from casemate.image.assemble import Parts
    from casemate.machine import home

    found = build(arch, "builder", cache or home.directory() / "cache", progress)
    files = {name: one if isinstance(one, bytes) else one.read_bytes() for name, one in found.files.items()}
    parts = _parts(arch, "builder", found.release, files, measure(found.archive), found.selection)
    assert isinstance(parts, Parts)
    return Ready(arch, found.release, files, found.archive, parts.values(), found.selection)


def _parts(arch: str, kind: str, release: str, files: dict[str, bytes], root: Part, selection: dict[str, Any]) -> Any:
    import io

    from casemate.guest.kinds import KINDS
    from casemate.image.assemble import Parts

    return Parts(
        *(arch, KINDS[kind], release, io.BytesIO(files["kernel"]), io.BytesIO(files["initrd"]), root.sha256, root.size),
        *(files["sbom.spdx.json"], files["packages.txt"], selection),
    )


def make_plan(
    name: str,
    organization: str,
    personas: dict[str, str],
    roles: dict[str, Role],
    root: bytes,
    parts: Ready,
    *,
    hosts: Sequence[tuple[str, bytes]] = (),
    verified: bool = False,
    pipeline: bytes = b"",
    secret: bytes,
    begins: datetime.datetime | None = None,
    minutes: int = 120,
    window: datetime.timedelta | None = None,
    revision: str = "",
    builder: str = "buildvm",
) -> Plan:
    """Return a plan: development where its root's certificate is. Raises :class:`~casemate.build.ceremony.CeremonyError`.

    ``hosts``: names and documents of the machines that may run the BootstrapVM, ``verified`` as a keyset does; for a
    development plan they need not be, and without any it is this user's software ultravisor.
    """
    from casemate import __version__
    from casemate.build import forms
    from casemate.certificates.chain import has_development_mark
    from casemate.image.build import source_hash
    from casemate.machine.ultravisor import SoftwareUltravisor

    if not verified and not has_development_mark(root):
        raise plans.CeremonyError(
            "the hosts that may run the BootstrapVM are not verified, or none is named",
            "give a keyset: casemate keyset create",
            id="CEREMONY-PLAN",
        )
    if not hosts:
        hosts = [("development.crt", SoftwareUltravisor.load_or_create().document)]
    try:
        root = forms.pem(forms.load_certificate(root))
    except ValueError:
        raise plans.CeremonyError(
            "the root's certificate can't be read", "give it as PEM", id="CEREMONY-PLAN"
        ) from None
    start = (begins or datetime.datetime.now(datetime.UTC)).replace(microsecond=0)
    plan = Plan(
        *(name, organization, builder, secrets.token_hex(16), has_development_mark(root)),
        start,
        start + (window or datetime.timedelta(minutes=minutes)),
        minutes,
        personas,
        roles,
        {each: document.decode("utf-8", "replace") for each, document in hosts},
        root.decode(),
        pipeline.decode("ascii", "replace"),
        *(revision or __version__, source_hash(), parts.arch, parts.release, measure(parts.archive)),
        {one: measure(data) for one, data in parts.files.items()},
        parts.values,
        hashlib.sha256(secret).hexdigest(),
        parts.selection,
    )
    return plans.parse_plan(plan.as_bytes())


def check_hosts(plan: Plan, kept: Sequence[tuple[str, bytes]] | None) -> None:
    """Refuse a plan whose hosts are not among verified ones (of a keyset). A development plan may do without.

    Raises :class:`~casemate.build.ceremonyplan.CeremonyError`: whoever has a host's key can say whatever they like in its name.
    """
    from casemate.secureexec import hostkey

    if kept is None:
        if plan.development:
            return
        raise plans.CeremonyError(
            "the plan's hosts were not verified", "give a keyset that has them: --keyset", id="CEREMONY-HOSTS"
        )
    known = {hostkey.load(document).fingerprint for _, document in kept}
    if strange := [name for name, key in sessions.host_keys(plan).items() if key.fingerprint not in known]:
        raise plans.CeremonyError(
            f"the keyset has no {', '.join(strange)}",
            "ask who made the plan, and whose machine it is",
            id="CEREMONY-HOSTS",
        )


def check_parts(plan: Plan, parts: Ready) -> None:
    """Refuse parts that are not the plan's. Raises :class:`~casemate.build.ceremony.CeremonyError`."""
    found = {one: measure(data) for one, data in parts.files.items()}
    if (found, measure(parts.archive), parts.values) != (plan.parts, plan.root, plan.values):
        raise plans.CeremonyError(
            "the parts that this source makes here are not those of the plan",
            f"take the source at {plan.revision}, or make the plan anew",
            id="CEREMONY-PARTS",
        )


def pack(plan: Plan, parts: Ready, directory: Path, secret: bytes) -> bytes:
    """Make the BootstrapVM's image directory, and return the image's header: the same bytes for everybody who has the plan."""
    from casemate.image import assemble as assembly
    from casemate.image.build import new_directory, place

    check_parts(plan, parts)
    with new_directory(directory) as new:
        with (new / assembly.IMAGE).open("w+b") as out:
            files = write_image(plan, parts.files, out, secret)
        for name, data in files.items():
            (new / name).write_bytes(data)
        place(parts.archive, new / assembly.ARCHIVE)
    return header_of(directory)


def write_image(plan: Plan, files: dict[str, bytes], out: BinaryIO, secret: bytes) -> dict[str, bytes]:
    """Write the BootstrapVM's image to ``out``; return the files that stand beside it. There is no key in it."""
    from casemate.image import assemble as assembly
    from casemate.secureexec import hostkey

    public = {PLAN: plan.as_bytes()}
    identity = assembly.Identity(secrets={}, files=public, public=public, facts={"ceremony": plan.digest})
    made_of = _parts(plan.arch, "bootstrap", plan.release, files, plan.root, plan.selection)
    hosts = [(name, hostkey.load(document.encode(), check_validity=False)) for name, document in plan.hosts.items()]
    seed = sessions.image_seed(plan, secret)
    return assembly.assemble(out, made_of, identity, hosts, created=plan.not_before, seed=seed).files


def header_of(directory: Path) -> bytes:
    """Return the header of the image in a directory. Raises :class:`CasemateError`."""
    from casemate.image.assemble import IMAGE
    from casemate.secureexec.image import read_clear

    try:
        with (directory / IMAGE).open("rb") as file:
            return read_clear(file).header.raw
    except OSError:
        raise VisitError(
            "there is no image of the BootstrapVM",
            "casemate ceremony pack makes it",
            str(directory),
            id="CEREMONY-IMAGE",
        ) from None


def start(directory: Path, port: int, name: str, progress: Callable[[str], None] = lambda step: None) -> Any:
    """Start the BootstrapVM of an image directory under the software ultravisor; return the machine, which is not ready yet."""
    from casemate.guest.bootstrap import PORT
    from casemate.machine import machines

    spec = machines.Specification(name, directory, b"", ports=[machines.Port(port, PORT)], memory_mib=2048)
    return machines.start(spec, progress=progress)


def opened(
    plan: Plan,
    parts: Ready,
    directory: Path,
    secret: bytes,
    port: int,
    name: str,
    progress: Callable[[str], None] = lambda step: None,
    patience: float = 600.0,
) -> tuple[Visit, Any]:
    """Pack a plan's BootstrapVM into ``directory``, start it, and bring its parts; return a visit, and the machine.

    Raises :class:`CasemateError`; the machine has ended then.
    """
    progress("packing the BootstrapVM")
    header = pack(plan, parts, directory, secret)
    progress("starting it")
    machine = start(directory, port, name)
    try:
        visit = Visit(f"127.0.0.1:{port}", plan, header)
        reach(visit, machine, patience)
        progress("bringing the parts")
        for part, data in parts.files.items():
            visit.bring(part, data)
    except BaseException:
        machine.down(0.0)
        raise
    return visit, machine


def reach(visit: Visit, machine: Any, patience: float = 600.0) -> Ceremony:
    """Wait until the BootstrapVM answers, and return the ceremony. Raises :class:`CasemateError` where it ends before."""
    end = time.monotonic() + patience
    while True:
        try:
            return visit.look()
        except VisitError as error:
            if error.id != VisitError.id or time.monotonic() > end:
                raise
            if not machine.running:
                raise VisitError(f"the BootstrapVM has ended: {machine.reason}", "its console says why") from None
        time.sleep(0.5)


def require_empty(directory: Path) -> None:
    """Refuse a directory that has something in it. Raises :class:`CasemateError`."""
    if directory.exists() and any(directory.iterdir()):
        raise CasemateError("the directory is not empty", "name another one", str(directory), id="CEREMONY-IN-THE-WAY")


def finish(directory: Path, archive: Path, plan: Plan) -> bool:
    """Put the root archive beside the files of the BuildVM's image that came out: then it is an image directory.

    Return whether ``archive`` is there, and the plan's.
    """
    from casemate.image.assemble import ARCHIVE
    from casemate.image.build import place

    if not archive.is_file() or measure(archive) != plan.root:
        return False
    (directory / ARCHIVE).unlink(missing_ok=True)
    place(archive, directory / ARCHIVE)
    return True
