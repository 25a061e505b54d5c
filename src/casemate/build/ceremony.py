"""The bootstrap ceremony: plan, statements, transcript, and every rule of it. Pure: the machine and the auditor use the same.

    plan = parse_plan(data)
    session = open_session(answer, plan)                     # what speaks says it is the BootstrapVM of this plan
    measured(plan, session, evidence)                        # and it is: an ultravisor says so, or it is refused
    ceremony = Ceremony.replay(plan, session, transcript)    # each line by the rules that the machine went by
    ceremony.check(statement, content, now)                  # may this persona do this now? raises CeremonyError
    report = verify(plan, answer, transcript, evidence=evidence)

The plan is in :mod:`casemate.build.ceremonyplan`, what makes sure of the machine in :mod:`casemate.build.ceremonysession`.

**A statement** is what a persona signs: ceremony, session, name, role, action, SHA-256 of the content, the line of the transcript
that they saw last, where their key is, and SHA-256 of the image's header and of the ultravisor's answer that they have
verified. So it counts in this ceremony, for this part, once, and nowhere else.

**The transcript** has a line for each step, with the hash of the line before, sealed by the session's key. A line of a
persona has their statement. Contributed secrets are not in it: only SHA-256 over a salt and the secret, and neither.

============  ==============  ======================================================================================
action        by              when
============  ==============  ======================================================================================
open          the machine     first
approve       reviewers       before anything else; each names the key that will approve builds, another than the one here;
                              the image that enough of them have signed is then the ceremony's, and who signed another
                              does not count
hosts         hosts           when enough have approved; all of them give the same hosts
contribute    custodians      when enough have approved; sealed for the session, so that nobody else can read it
request       the machine     when all three have enough: makes the intermediate key inside, asks for its certificate
certify       root            answers the request, with the key of the root
built         the machine     made the BuildVM's image; SHA-256 of each file of it
witness       auditor         signs the head, having compared the files
end           the machine     last: ``complete``, or ``expired`` where the window ended before
============  ==============  ======================================================================================
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casemate import strictjson
from casemate.approval import key_identity
from casemate.build.ceremonyplan import (
    ACTIONS,
    AUDITOR,
    CUSTODIANS,
    FILE,
    HEX,
    HOSTS,
    REVIEWERS,
    ROOT,
    TIME,
    TOKEN,
    WORD,
    Plan,
    holds,
    lasting_keys,
    object_of,
    part_of,
    public_key,
    refusal,
    require_host,
    sign,
    spki,
    text_of,
    time_of,
    unb64,
)
from casemate.build.ceremonysession import Session, host_keys
from casemate.build.job import Part

STATEMENT_FORMAT = "casemate-ceremony-statement/2"
STATEMENT_TYPE = "application/vnd.casemate.ceremony-statement+json"
LINE_TYPE = "application/vnd.casemate.ceremony-line+json"
NEXT_KEY_TYPE = "application/vnd.casemate.ceremony-next-key+json"

LARGEST_CONTENT, LARGEST_LINE, MOST_LINES = 256 << 10, 1 << 20, 256
LARGEST_TRANSCRIPT = 32 << 20
START = "0" * 64
MACHINE = ("open", "request", "built", "end")
COMPLETE, EXPIRED = "complete", "expired"


# --- statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement:
    """What a persona has signed. ``custody`` is where they say that their key is: ``token`` or ``file``.

    ``header``, ``measurement``: what they have verified of the machine (:attr:`Evidence.names`).
    """

    persona: str
    role: str
    action: str
    content: str
    seen: str
    custody: str
    header: str
    measurement: str


def statement(
    plan: Plan, session: Session, persona: str, content: bytes, seen: str, custody: str, names: tuple[str, str]
) -> bytes:
    """Return what a persona signs. Raises :class:`CeremonyError` where the plan has no such persona."""
    role = plan.role_of(persona)
    return strictjson.dumps(
        {
            **{"format": STATEMENT_FORMAT, "ceremony": plan.digest, "session": session.digest, "persona": persona},
            **{"role": role, "action": ACTIONS[role], "content": hashlib.sha256(content).hexdigest()},
            **{"seen": seen, "custody": custody, "header": names[0], "measurement": names[1]},
        }
    )


def entry(payload: bytes, signature: bytes, by: str, content: bytes, sealed: bytes = b"") -> bytes:
    """Return what a client sends: statement, signature, content, and a sealed secret."""
    parts = {"statement": payload, "signature": signature, "content": content, "sealed": sealed}
    return strictjson.dumps({"by": by, **{name: strictjson.b64(one) for name, one in parts.items()}})


def parse_entry(data: bytes) -> tuple[bytes, bytes, str, bytes, bytes]:
    """Return statement, signature, name, content, sealed secret; nothing of it is verified. Raises :class:`CeremonyError`."""
    document = object_of(data, 2 * LARGEST_CONTENT, "STATEMENT", "entry")
    if set(document) != {"by", "statement", "signature", "content", "sealed"} or not isinstance(document["by"], str):
        raise refusal("STATEMENT", "this is no entry", "casemate ceremony join makes one")
    parts = [unb64(document[name], "STATEMENT") for name in ("statement", "signature", "content", "sealed")]
    return parts[0], parts[1], document["by"], parts[2], parts[3]


def next_key(session: Session, persona: str, private: Any, custody: str) -> bytes:
    """Return the content of an approval: the key that the reviewer will approve builds with, with its signature."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    proof = sign(private, NEXT_KEY_TYPE, f"{session.digest} {persona}".encode())
    return strictjson.dumps({"key": pem, "proof": strictjson.b64(proof), "custody": custody})


# --- the transcript ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A line: number, time, action; for a persona's the statement with its signature and the content; what else it says.

    ``digest`` is the SHA-256 of the line without its newline, hex.
    """

    n: int
    time: str
    previous: str
    action: str
    by: str
    statement: bytes
    signature: bytes
    content: bytes
    facts: dict[str, Any]
    seal: bytes = b""

    def unsealed(self) -> bytes:
        """What the session's key signs."""
        return strictjson.dumps(self._document())

    def as_bytes(self) -> bytes:
        """The line."""
        return strictjson.dumps({**self._document(), "seal": strictjson.b64(self.seal)})

    @property
    def digest(self) -> str:
        """What the next line names."""
        return hashlib.sha256(self.as_bytes()).hexdigest()

    def _document(self) -> dict[str, Any]:
        return {
            **{"n": self.n, "time": self.time, "previous": self.previous, "action": self.action, "by": self.by},
            **{
                "statement": strictjson.b64(self.statement),
                "signature": strictjson.b64(self.signature),
                "content": strictjson.b64(self.content),
            },
            "facts": self.facts,
        }


def parse_line(data: bytes) -> Line:
    """Read a line; that it belongs to others is seen by :meth:`Ceremony.replay`. Raises :class:`CeremonyError`."""
    document = object_of(data, LARGEST_LINE, "TRANSCRIPT", "line")
    keys = {"n", "time", "previous", "action", "by", "statement", "signature", "content", "facts", "seal"}
    if (
        set(document) != keys
        or type(document["n"]) is not int
        or not all(isinstance(document[name], str) for name in keys - {"n", "facts"})
        or not isinstance(document["facts"], dict)
        or not TIME.fullmatch(document["time"])
    ):
        raise refusal("TRANSCRIPT", "a line is none of a ceremony", "take the transcript from another copy")
    texts: dict[str, Any] = {name: document[name] for name in ("time", "previous", "action", "by")}
    parts: dict[str, Any] = {
        name: unb64(document[name], "TRANSCRIPT") for name in ("statement", "signature", "content", "seal")
    }
    line = Line(n=document["n"], facts=document["facts"], **texts, **parts)
    if line.as_bytes() != data:
        raise refusal("TRANSCRIPT", "a line is written in another form", "take the transcript from another copy")
    return line


@dataclass(frozen=True, slots=True)
class Missing:
    """What a role has still to do: how many more, who could, and whether it is their turn."""

    role: str
    count: int
    names: tuple[str, ...]
    now: bool


@dataclass(frozen=True, slots=True)
class Ceremony:
    """A ceremony so far."""

    plan: Plan
    session: Session
    lines: tuple[Line, ...] = ()

    @classmethod
    def replay(cls, plan: Plan, session: Session, transcript: bytes) -> Ceremony:
        """Read a transcript line by line, by the rules that the machine went by. Raises :class:`CeremonyError`."""
        if len(transcript) > LARGEST_TRANSCRIPT:
            raise refusal("TRANSCRIPT", "it is too large for a transcript", "is it the right file?")
        *rows, torn = transcript.split(b"\n")
        if torn or not rows or len(rows) > MOST_LINES:
            raise refusal("TRANSCRIPT", "its last line is not whole, or it has none", "take it from another copy")
        found = cls(plan, session)
        for row in rows:
            found = found.follow(parse_line(row))
        return found

    def as_bytes(self) -> bytes:
        """The transcript."""
        return b"".join(line.as_bytes() + b"\n" for line in self.lines)

    @property
    def head(self) -> str:
        """The digest of the last line."""
        return self.lines[-1].digest if self.lines else START

    @property
    def ended(self) -> bool:
        """Whether the last line is there."""
        return bool(self.lines) and self.lines[-1].action == "end"

    def of(self, action: str) -> list[Line]:
        """Return the lines of an action."""
        return [line for line in self.lines if line.action == action]

    def counted(self, role: str) -> list[Line]:
        """Return the lines that count for a role: all of its action; of reviewers, who may differ, the most with one header."""
        if role != REVIEWERS:
            return self.of(ACTIONS[role])
        groups: dict[str, list[Line]] = {}
        for line in self.of(ACTIONS[REVIEWERS]):
            groups.setdefault(header_of(line), []).append(line)
        return max(groups.values(), key=len, default=[])

    def enough(self, role: str) -> bool:
        """Whether so many have acted in a role as must."""
        return len(self.counted(role)) >= self.plan.roles[role].quorum

    @property
    def header(self) -> str:
        """The image's header that enough reviewers have signed, which is then everybody's; empty until they have."""
        return header_of(self.counted(REVIEWERS)[0]) if self.enough(REVIEWERS) else ""

    def missing(self) -> list[Missing]:
        """Return what roles have still to do, in the order of the ceremony."""
        found = []
        for role in ACTIONS:
            done = {line.by for line in self.of(ACTIONS[role])}
            count = self.plan.roles[role].quorum - len(self.counted(role))
            if count > 0:
                names = tuple(name for name in self.plan.roles[role].members if name not in done)
                found.append(Missing(role, count, names, not self._too_early(role)))
        return found

    @property
    def due(self) -> str:
        """Return what the machine has to do now: ``open``, ``request``, ``built``, ``end``; empty where people have."""
        done = {line.action for line in self.lines}
        if "open" not in done:
            return "open"
        if "request" not in done:
            return "request" if all(map(self.enough, (REVIEWERS, HOSTS, CUSTODIANS))) else ""
        if "built" not in done:
            return "built" if self.enough(ROOT) else ""
        return "end" if self.enough(AUDITOR) and not self.ended else ""

    @property
    def _open_until(self) -> datetime.datetime:
        """The plan's minutes after the first line, and one more: the machine counts them by another clock."""
        return time_of(self.lines[0].time) + datetime.timedelta(minutes=self.plan.minutes + 1)

    def _too_early(self, role: str) -> str:
        """Return what must be before a role's part; empty where nothing is in its way."""
        done = {line.action for line in self.lines}
        if "open" not in done or self.ended:
            return "the ceremony is not open"
        if role in (HOSTS, CUSTODIANS) and not self.enough(REVIEWERS):
            return "the reviewers have not approved yet"
        if role == ROOT and "request" not in done:
            return "there is no request yet"
        if role == AUDITOR and "built" not in done:
            return "the BuildVM is not built yet"
        return ""

    def check(self, payload: bytes, signature: bytes, by: str, content: bytes, now: datetime.datetime) -> Statement:
        """Return a persona's statement that counts now. Raises :class:`CeremonyError`; the signature first, then the rest."""
        pem = self.plan.personas.get(by)
        if pem is None:
            raise refusal("PERSONA", "nobody of this name has a part in the ceremony", "give a name of the plan")
        if not holds(public_key(pem, "PLAN", by), signature, STATEMENT_TYPE, payload):
            raise refusal(
                "PERSONA", "it is not signed with the key that the plan has for this name", "sign with your own key"
            )
        document = object_of(payload, 4096, "STATEMENT", "statement")
        keys = {"format", "ceremony", "session", *Statement.__slots__}
        if set(document) != keys or not all(isinstance(one, str) for one in document.values()):
            raise refusal("STATEMENT", "it is no statement of a ceremony", "casemate ceremony join makes one")
        if document["format"] != STATEMENT_FORMAT or document["custody"] not in (TOKEN, FILE):
            raise refusal("STATEMENT", "it is no statement of this form", "casemate ceremony join makes one")
        if not HEX.fullmatch(document["header"]) or not HEX.fullmatch(document["measurement"]):
            raise refusal("STATEMENT", "it names no image and no measurement", "casemate ceremony join makes one")
        if document["ceremony"] != self.plan.digest or document["session"] != self.session.digest:
            raise refusal(
                "OTHER", "the statement is of another ceremony, or of another session", "sign it anew, for this one"
            )
        role = self.plan.role_of(by)
        if document["persona"] != by or document["role"] != role or document["action"] != ACTIONS[role]:
            raise refusal("ROLE", "this is another's part", f"your part is: {ACTIONS[role]}")
        if not self.plan.not_before <= now <= self.plan.not_after or self.ended:
            raise refusal("TIME", "the ceremony is not open", "a ceremony takes place in its window only")
        if early := self._too_early(role):
            raise refusal("ORDER", early, "wait for it: casemate ceremony status")
        closed = {REVIEWERS: "request", HOSTS: "request", CUSTODIANS: "request", ROOT: "built", AUDITOR: "end"}[role]
        if any(line.action == ACTIONS[role] and line.by == by for line in self.lines):
            raise refusal("TWICE", f"{by} has done this already", "nobody acts twice")
        if self.of(closed) or (role == ROOT and self.enough(ROOT)):
            raise refusal("TIME", "it is too late: this part is over", "look at casemate ceremony status")
        if self.header and self.header != document["header"]:
            names = ", ".join(line.by for line in self.counted(REVIEWERS))
            raise refusal("IMAGE", f"{names} have approved another image than this", "compare: casemate ceremony pack")
        if document["seen"] not in ({self.head} if role == AUDITOR else {line.digest for line in self.lines}):
            raise refusal(
                "OTHER", "the line that was seen last is not in this transcript, or not its head", "look at it again"
            )
        if len(content) > LARGEST_CONTENT or document["content"] != hashlib.sha256(content).hexdigest():
            raise refusal("CONTENT", "the content is not what was signed", "send what was signed")
        self._check_content(role, by, content, now)
        return Statement(*(document[name] for name in Statement.__slots__))

    def _check_content(self, role: str, by: str, content: bytes, now: datetime.datetime) -> None:
        if role == REVIEWERS:
            self._check_next_key(by, content)
        elif role == HOSTS:
            given = self.of(ACTIONS[HOSTS])
            if given and given[0].content != content:
                raise refusal(
                    "CONTENT", "these are other hosts than were given before", "all who give hosts give the same"
                )
            known = {one.fingerprint for one in host_keys(self.plan).values()}
            if strange := [name for name, one in host_fingerprints(content) if one not in known]:
                cause = f"{', '.join(strange)}: the plan, which reviewers approve, has no such host"
                raise refusal("CONTENT", cause, "name the BuildVM's hosts in the plan")
        elif role == CUSTODIANS:
            said = object_of(content, 4096, "CONTENT", "commitment")
            if (
                set(said) != {"commitment"}
                or not isinstance(said["commitment"], str)
                or not HEX.fullmatch(said["commitment"])
            ):
                raise refusal("CONTENT", "a contribution is a commitment", "casemate ceremony join makes one")
            if any(line.content == content for line in self.of(ACTIONS[CUSTODIANS])):
                raise refusal("CONTENT", "somebody has contributed the same", "each gives a secret of their own")
        elif role == ROOT:
            check_certificate(self.plan, self.request(), content, now)
        elif content:
            raise refusal("CONTENT", "who witnesses adds nothing", "casemate ceremony join signs the head")

    def _check_next_key(self, by: str, content: bytes) -> None:
        said = object_of(content, LARGEST_CONTENT, "CONTENT", "approval")
        if set(said) != {"key", "proof", "custody"} or said["custody"] not in (TOKEN, FILE):
            raise refusal("CONTENT", "an approval names the reviewer's next key", "casemate ceremony join makes one")
        key = public_key(said["key"], "CONTENT", "the next key")
        if not holds(key, unb64(said["proof"], "CONTENT"), NEXT_KEY_TYPE, f"{self.session.digest} {by}".encode()):
            raise refusal("CONTENT", "the next key has not signed for this session", "sign with it")
        used = lasting_keys(self.plan.root_certificate, self.plan.pipeline)
        used |= {key_identity(public_key(pem, "PLAN", name)) for name, pem in self.plan.personas.items()}
        for line in self.of(ACTIONS[REVIEWERS]):
            used.add(key_identity(public_key(json.loads(line.content)["key"], "CONTENT", "a next key")))
        if key_identity(key) in used:
            raise refusal(
                "CONTENT",
                "the next key is one of this ceremony, another's, the root's or the pipeline's",
                "make one for this: no key of the ceremony is valid after it",
            )

    def request(self) -> bytes:
        """Return the request for the intermediate's certificate (PEM). Raises :class:`CeremonyError` where there is none."""
        lines = self.of("request")
        if not lines:
            raise refusal("ORDER", "there is no request yet", "wait for it: casemate ceremony status")
        return lines[0].content

    def certificate(self) -> tuple[bytes, bytes]:
        """Return what the root answered: the intermediate's certificate and the root's revocation list (PEM)."""
        said = json.loads(self.of(ACTIONS[ROOT])[0].content)
        return said["certificate"].encode(), said["list"].encode()

    def hosts(self) -> list[tuple[str, bytes]]:
        """Return names and host key documents."""
        return hosts_of(self.of(ACTIONS[HOSTS])[0].content)

    def reviewers(self) -> bytes:
        """Return the reviewers of the builder (``casemate-reviewers/1``): who approved the ceremony's image, with next keys."""
        keys = {line.by: json.loads(line.content)["key"] for line in self.counted(REVIEWERS)}
        document = {"format": "casemate-reviewers/1", "threshold": self.plan.roles[REVIEWERS].quorum, "reviewers": keys}
        return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"

    def line(
        self,
        action: str,
        now: datetime.datetime,
        *,
        by: str = "",
        statement: bytes = b"",
        signature: bytes = b"",
        content: bytes = b"",
        facts: Mapping[str, Any] | None = None,
    ) -> Line:
        """Return the next line, without its seal."""
        n = len(self.lines) + 1
        return Line(n, text_of(now), self.head, action, by, statement, signature, content, dict(facts or {}))

    def follow(self, line: Line) -> Ceremony:
        """Return the ceremony with one more line, which must be one that the rules allow. Raises :class:`CeremonyError`."""
        if line.n != len(self.lines) + 1 or line.previous != self.head or self.ended or line.n > MOST_LINES:
            raise refusal(
                "TRANSCRIPT",
                f"line {line.n} does not follow the one before: something was changed, taken out or put in",
            )
        if not holds(self.session.signing, line.seal, LINE_TYPE, line.unsealed()):
            raise refusal("TRANSCRIPT", f"line {line.n} was not sealed by the BootstrapVM of this session")
        now = time_of(line.time)
        if self.lines and now < time_of(self.lines[-1].time):
            raise refusal("TRANSCRIPT", f"line {line.n} is older than the one before")
        if self.lines and line.action != "end" and now > self._open_until:
            raise refusal(
                "TIME", f"line {line.n} came when the ceremony was over", "it was open for the plan's minutes"
            )
        if line.action in MACHINE:
            if line.by or line.statement or line.signature:
                raise refusal("TRANSCRIPT", f"line {line.n} is the machine's, and somebody's")
            self._machine(line, now)
        else:
            statement = self.check(line.statement, line.signature, line.by, line.content, now)
            if statement.action != line.action or line.facts:
                raise refusal("TRANSCRIPT", f"line {line.n} says something else than its statement")
        return Ceremony(self.plan, self.session, (*self.lines, line))

    def _machine(self, line: Line, now: datetime.datetime) -> None:
        expired = line.action == "end" and line.facts == {"outcome": EXPIRED} and self.due != "open"
        if line.action != self.due and not expired:
            raise refusal("TRANSCRIPT", f"line {line.n} ({line.action}) is not due")
        if line.action != "end" and not self.plan.not_before <= now <= self.plan.not_after:
            raise refusal("TRANSCRIPT", f"line {line.n} is outside of the window")
        facts = {
            "open": {"ceremony": self.plan.digest, "session": self.session.digest},
            "request": {},
            "built": None,
            "end": {"outcome": EXPIRED if expired else COMPLETE},
        }[line.action]
        if facts is not None and line.facts != facts:
            raise refusal("TRANSCRIPT", f"line {line.n} is of another ceremony or session")
        if line.action == "request":
            request_key(line.content)
        elif line.content:
            raise refusal("TRANSCRIPT", f"line {line.n} has a content that means nothing")
        if line.action == "built":
            built_files(line)


def header_of(line: Line) -> str:
    """Return the header (SHA-256, hex) that a persona's line is about."""
    return str(json.loads(line.statement)["header"])


def built_files(line: Line) -> dict[str, Part]:
    """Return the files of the BuildVM's image that the line ``built`` names. Raises :class:`CeremonyError`."""
    files = line.facts.get("files")
    if set(line.facts) != {"files"} or not isinstance(files, dict) or not 1 <= len(files) <= 64:
        raise refusal("TRANSCRIPT", f"line {line.n} names no files")
    if not all(WORD.fullmatch(name) for name in files):
        raise refusal("TRANSCRIPT", f"line {line.n} names a file that can't be")
    return {name: part_of(one) for name, one in files.items()}


def hosts_of(content: bytes) -> list[tuple[str, bytes]]:
    """Return names and host key documents of what was given. Raises :class:`CeremonyError`."""
    said = object_of(content, LARGEST_CONTENT, "CONTENT", "list of hosts")
    hosts = said.get("hosts")
    if set(said) != {"hosts"} or not isinstance(hosts, list) or not 1 <= len(hosts) <= 64:
        raise refusal(
            "CONTENT", "hosts are given as names and documents, 64 at most", "casemate ceremony join makes it"
        )
    found: list[tuple[str, bytes]] = []
    for one in hosts:
        name, document = (one.get("name"), one.get("document")) if isinstance(one, dict) else (None, None)
        require_host(name, document, "CONTENT")
        if len(one) != 2:
            raise refusal("CONTENT", "a host has a name and a document", "casemate ceremony join makes it")
        found.append((str(name), str(document).encode()))
    if len({name for name, _ in found}) != len(found):
        raise refusal("CONTENT", "a host stands twice", "give each once")
    return found


def host_fingerprints(content: bytes) -> list[tuple[str, bytes]]:
    """Return names and fingerprints (SHA-256 of the key) of hosts that were given. Raises :class:`CeremonyError`."""
    from casemate.secureexec import hostkey

    return [(name, hostkey.load(one, check_validity=False).fingerprint) for name, one in hosts_of(content)]


def hosts_content(hosts: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the content that gives hosts: names and documents (PEM). Raises :class:`CeremonyError`."""
    try:
        said = [{"name": name, "document": document.decode("ascii")} for name, document in hosts]
    except UnicodeDecodeError:
        raise refusal("CONTENT", "a host key document is none of text", "give it as PEM") from None
    return strictjson.dumps({"hosts": said})


def request_key(pem: bytes) -> Any:
    """Return the public key of a request whose own signature holds. Raises :class:`CeremonyError`."""
    from cryptography import x509

    try:
        request = x509.load_pem_x509_csr(pem)
        if request.is_signature_valid:
            return request.public_key()
    except ValueError:
        pass
    raise refusal("TRANSCRIPT", "the request for the intermediate's certificate is none")


def certificate_content(certificate: bytes, revocation: bytes, custody: str) -> bytes:
    """Return the content of the root's answer: certificate and revocation list (PEM), and where the root's key is."""
    return strictjson.dumps({"certificate": certificate.decode(), "list": revocation.decode(), "custody": custody})


def check_certificate(plan: Plan, request: bytes, content: bytes, now: datetime.datetime) -> None:
    """Refuse an answer that is not for the requested key, by the plan's root, for an authority over images only.

    Its list has a number, and holds ``now``.
    """
    from cryptography import x509

    from casemate.certificates.chain import moment_of, verify_chain

    said = object_of(content, LARGEST_CONTENT, "CONTENT", "answer of the root")
    texts = all(isinstance(one, str) and one.isascii() for one in said.values())
    if set(said) != {"certificate", "list", "custody"} or not texts or said["custody"] not in (TOKEN, FILE):
        raise refusal(
            "CONTENT", "the root answers with a certificate and a revocation list", "casemate ceremony join does"
        )
    try:
        certificate = x509.load_pem_x509_certificate(said["certificate"].encode())
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        revocation = x509.load_pem_x509_crl(said["list"].encode())
        revocation.extensions.get_extension_for_class(x509.CRLNumber)
        begins, ends = moment_of(revocation, "last_update"), moment_of(revocation, "next_update")
        root = x509.load_pem_x509_certificate(plan.root_certificate.encode())
        public: Any = root.public_key()
        listed = revocation.issuer == root.subject and revocation.is_signature_valid(public)
        taken_back = revocation.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    except (ValueError, x509.ExtensionNotFound):
        raise refusal(
            "CONTENT", "certificate or list can't be read, or are of another kind", "answer the request"
        ) from None
    if spki(certificate.public_key()) != spki(request_key(request)):
        raise refusal(
            "CONTENT", "the certificate is for another key than the one that was made inside", "answer the request"
        )
    if not basic.ca or basic.path_length != 0 or not (usage.key_cert_sign and usage.crl_sign):
        raise refusal(
            "CONTENT",
            "the certificate is none of an authority over images only",
            "path length 0, signs certificates and lists",
        )
    if not listed or taken_back:
        raise refusal(
            "CONTENT", "the list is not the root's, or has this certificate", "sign the list with the root's key"
        )
    if begins is None or ends is None or not begins <= now <= ends:
        raise refusal("CONTENT", "the root's list is not of this time", "sign a new one; are the clocks right?")
    # At the certificate's own begin: what is asked is whose signature it is. Today counts when it is used.
    moment = max(plan.not_before, moment_of(certificate, "not_valid_before"))
    chain = verify_chain(said["certificate"].encode(), [plan.root_certificate.encode()], time=moment)
    if not chain.proved:
        raise refusal(
            "CONTENT", f"the certificate is not the plan's root's: {chain.problems[0].cause}", "use the root's key"
        )
    if chain.development is not plan.development:
        raise refusal("CONTENT", "development and production don't mix in one chain", "use the root of the plan")
