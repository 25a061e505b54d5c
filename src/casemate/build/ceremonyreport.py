"""What an auditor learns of a ceremony: each check, each step, each private key. Pure.

    report = verify(plan, answer, transcript, evidence=evidence, root=root, files=measured)
    report.holds, report.checks, report.steps, report.keys, report.missing

It trusts the plan and the root's certificate because they are given; the rest is verified: what the ultravisor said of image and
session, the chain of lines, each seal and signature, roles, quorum, order, window, and the files that came out. Of the
ultravisor's answer only who asked for it is sure, since they made its key; so it must be one that somebody has signed, and
their word counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from casemate.attestation.verify import Outcome, Verdict
from casemate.build import ceremony as rules
from casemate.build import ceremonyplan as plans
from casemate.build import ceremonysession as sessions
from casemate.build.ceremony import Ceremony, Line, Missing
from casemate.build.ceremonyplan import ACTIONS, CeremonyError, Plan
from casemate.build.ceremonysession import Evidence, Session
from casemate.build.job import IMAGE, Part, Result
from casemate.errors import CasemateError

FORMAT = "casemate-ceremony-report/1"
COVERS = {
    "open": "the plan, and the session's keys; sealed by the session, which the ultravisor measures for each who acts",
    "approve": "the whole plan: people, window, source, each part by hash; and the key that will approve builds",
    "hosts": "the host keys that the BuildVM's image is encrypted for",
    "contribute": "a commitment (SHA-256 over a salt and the secret); the secret itself is nowhere in the transcript",
    "request": "the public half of the intermediate key, which has signed the request itself; made in this session",
    "certify": "the certificate of the requested key, signed with the key of the root; and the root's list",
    "built": "each file of the BuildVM's image, by SHA-256",
    "witness": "the head: every line before it",
    "end": "the outcome; no line comes after it",
}


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was verified, and what came of it."""

    name: str
    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True)
class Step:
    """A line for people: number, time, who, as what, what they did, what the signature covers, digest of the line."""

    n: int
    time: str
    who: str
    role: str
    action: str
    covers: str
    detail: str
    digest: str


@dataclass(frozen=True, slots=True)
class Key:
    """A private key: whose, where it was made, where it lives, what shows that."""

    name: str
    made: str
    lives: str
    evidence: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. ``ceremony`` is ``None`` where not even the session holds."""

    plan: Plan
    ceremony: Ceremony | None
    checks: tuple[Check, ...]
    keys: tuple[Key, ...]
    steps: tuple[Step, ...]
    missing: tuple[Missing, ...]
    development: bool
    more: tuple[Check, ...] = field(default=())

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(one.outcome is Outcome.PROVED for one in (*self.checks, *self.more))

    def summary(self) -> str:
        """The verdict in one sentence."""
        failed = [one.name for one in (*self.checks, *self.more) if one.outcome is not Outcome.PROVED]
        if failed:
            return f"NOT PROVED: {', '.join(failed)}"
        return "PROVED" + (
            ", for a DEVELOPMENT TEE: no protection from whoever owns the host" if self.development else ""
        )

    def with_more(self, more: tuple[Check, ...], keys: tuple[Key, ...] = ()) -> Report:
        """Return the report with checks of what was built later."""
        return replace(self, more=(*self.more, *more), keys=(*self.keys, *keys))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        checks = [
            {"name": one.name, "verdict": one.outcome.value, "why": one.why} for one in (*self.checks, *self.more)
        ]
        return {
            **{"format": FORMAT, "holds": self.holds, "summary": self.summary(), "development": self.development},
            **{"ceremony": self.plan.name, "plan": self.plan.digest, "checks": checks},
            "head": self.ceremony.head if self.ceremony else "",
            "keys": [
                {
                    **{"name": one.name, "made": one.made, "lives": one.lives, "evidence": one.evidence},
                    "verdict": one.outcome.value,
                }
                for one in self.keys
            ],
            "steps": [{name: getattr(one, name) for name in Step.__slots__} for one in self.steps],
            "missing": [{"role": one.role, "count": one.count, "names": list(one.names)} for one in self.missing],
        }


_NO_PLAN = "you gave none, and whoever has these files could have written it: compare its digest"


def verify(
    plan: Plan,
    answer: bytes,
    transcript: bytes,
    *,
    evidence: Evidence | None = None,
    asked: bool = False,
    known: str | None = None,
    header: bytes | None = None,
    root: bytes | None = None,
    files: Mapping[str, Part] | None = None,
    head: str = "",
) -> Report:
    """Verify a ceremony. ``root``: the root's certificate as the auditor has it; ``files``: those of the BuildVM's image.

    ``known``: the plan's digest, as the auditor has it from elsewhere: without, the whole may be somebody's own ceremony.
    ``evidence``: what the ultravisor said, ``asked``: to who calls this, just now. ``header``: of the image, where it was
    packed again. ``head``: of the transcript, where it was written down: then a line that was cut off shows.
    """
    checks: list[Check] = []

    def check(name: str, holds: bool | None, good: str, bad: str) -> bool:
        outcome = Outcome.NOT_PROVED if holds is None else Outcome.PROVED if holds else Outcome.REFUTED
        checks.append(Check(name, outcome, good if holds else bad))
        return bool(holds)

    if not asked:
        good, bad = "it is the one that you gave", "it is another than the one that you gave"
        check("plan", None if known is None else known == plan.digest, good, bad if known else _NO_PLAN)
    try:
        session: Session | None = sessions.open_session(answer, plan)
    except CeremonyError as error:
        session = None
        check("session", False, "", f"{error.id}: {error.cause}")
    except Exception as error:
        session = None
        check("session", False, "", f"record or session can't be read ({type(error).__name__})")
    if session is None:
        return Report(plan, None, tuple(checks), (), (), (), False)
    check("session", True, "its record says this plan and its parts, and its document this record", "")
    found, problem = _replay(plan, session, transcript)
    genuine = check(*_machine(found, evidence, asked=asked))
    if header is not None:
        same = evidence is not None and evidence.header == header
        check(
            "image of the BootstrapVM",
            same,
            "packed again of the plan, it is the one that was measured",
            "it is another",
        )
    count = len(found.lines)
    check(
        *("transcript", not problem, f"{count} lines: chain, seals, signatures, roles, order and window hold"),
        f"after {count} lines: {problem}",
    )
    if head:
        check("head", found.head == head, "the last line is the one that was written down", "it ends with another line")
    lacks = ", ".join(f"{one.count} of {one.role}" for one in found.missing())
    check(
        "quorum",
        not lacks,
        "in every role so many have acted as must, each with a key of their own",
        f"still missing: {lacks}",
    )
    ended = found.ended and found.lines[-1].facts.get("outcome") == rules.COMPLETE
    check("end", ended, "the ceremony is complete and closed", "the ceremony did not end, or not as complete")
    witnessed = bool(found.of("witness")) and found.enough(plans.AUDITOR)
    check(
        "witness", witnessed, "the auditor has signed the head over all that was done", "no auditor has signed the head"
    )
    certified = bool(found.of("certify"))
    check(
        *("intermediate", certified, "its key was made inside, and the root has certified just this key"),
        "the root has certified no key of this ceremony",
    )
    if root is not None:
        same = plans.spki(_certificate_key(root)) == plans.spki(_certificate_key(plan.root_certificate.encode()))
        check(
            "root",
            same,
            "the plan's root is the one that you gave",
            "the plan has another root than the one that you gave",
        )
    if files is not None:
        check(*_files(found, files))
    if not plan.development:
        check(*_lasting(found))
    return Report(
        *(plan, found, tuple(checks), tuple(keys_of(found, genuine)), tuple(map(_step_of(plan), found.lines))),
        *(tuple(found.missing()), session.development or plan.development),
    )


def with_image(report: Report, name: str, built: Result) -> Report:
    """Return the report with an image that the ceremony's BuildVM has built, as :func:`casemate.build.buildvm.trace` found it.

    The BuildVM's certificate is among the files that the transcript names, so the image is proved only where these were compared.
    """
    compared = any(one.name == "BuildVM image" and one.outcome is Outcome.PROVED for one in report.checks)
    outcome = Outcome.PROVED if compared else Outcome.NOT_PROVED
    who = f"generation {built.generation}, revision {built.revision}, approved by {', '.join(built.approved_by)}"
    inside, lives = "inside the BuildVM", f"the encrypted image {name} only"
    keys = tuple(
        Key(
            f"image {name}: {key}",
            inside,
            lives,
            f"its certificate came out, by hash, in a result that the BuildVM signed: {who}",
            outcome,
        )
        for key in ("encryption (opens contracts)", "attestation (signs records)")
        if built.mode == IMAGE
    )
    check = Check(
        f"image {name}", outcome, f"this ceremony's BuildVM put out each of its {len(built.files)} files: {who}"
    )
    return report.with_more((check,), keys)


def with_record(report: Report, name: str, verdict: Verdict) -> Report:
    """Return the report with the record of a machine that started from an image, verified up to the plan's root."""
    outcome = Outcome.PROVED if verdict.holds else Outcome.REFUTED
    links = len(verdict.chain.links) if verdict.chain else 0
    good = f"signed inside a machine of that image; {links} certificates lead to the plan's root"
    return report.with_more((Check(f"record of {name}", outcome, good if verdict.holds else verdict.summary()),))


def _replay(plan: Plan, session: Session, transcript: bytes) -> tuple[Ceremony, str]:
    """Return the ceremony as far as it holds, and what comes then."""
    found = Ceremony(plan, session)
    if len(transcript) > rules.LARGEST_TRANSCRIPT:
        return found, "it is too large for a transcript"
    *rows, torn = transcript.split(b"\n")
    for row in rows[: rules.MOST_LINES]:
        try:
            found = found.follow(rules.parse_line(row))
        except CasemateError as error:
            return found, f"{error.id}: {error.cause}"
        except Exception as error:
            return found, f"line {len(found.lines) + 1} can't be read ({type(error).__name__})"
    if torn or not rows or len(rows) > rules.MOST_LINES:
        return found, "its last line is not whole, or it has none, or too many"
    return found, ""


def _machine(found: Ceremony, evidence: Evidence | None, *, asked: bool) -> tuple[str, bool | None, str, str]:
    """Whether an ultravisor has measured image and session, and this is the image that enough reviewers have approved."""
    name = "BootstrapVM"
    if evidence is None:
        return name, None, "", "no measurement was given: nothing shows that its session is not an impostor's"
    try:
        host = sessions.measured(found.plan, found.session, evidence)
    except CeremonyError as error:
        return name, False, "", f"{error.id}: {error.cause}"
    header, answer = evidence.names
    said = {line.by: json.loads(line.statement) for line in found.lines if line.by}
    others = sorted(who for who, one in said.items() if one["header"] != header)
    aside = f"; {', '.join(others)} signed another image, and do not count" if others else ""
    if found.header and found.header != header:
        return name, False, "", f"{', '.join(others)} have signed another image than this"
    who = [one for one, statement in said.items() if statement["measurement"] == answer]
    if not who and not asked:
        return name, None, "", f"nobody has signed this measurement: whoever asked for it could have made it{aside}"
    good = f"the ultravisor of {host} measured its image and this session, asked by {', '.join(who) or 'you'}"
    return name, True, f"{good}; {len(said) - len(others)} have each signed this image{aside}", ""


def _files(found: Ceremony, files: Mapping[str, Part]) -> tuple[str, bool | None, str, str]:
    built = found.of("built")
    wanted = rules.built_files(built[0]) if built else {}
    wrong = sorted(name for name, part in wanted.items() if files.get(name) != part)
    if built:
        certificate, revocation = found.certificate()
        said = {"reviewers.json": found.reviewers(), "intermediate.crt": certificate, "root.crl.pem": revocation}
        said["root.crt"] = found.plan.root_certificate.encode()
        parts = {name: Part(hashlib.sha256(data).hexdigest(), len(data)) for name, data in said.items()}
        wrong += sorted(name for name, part in parts.items() if files.get(name) != part and name not in wrong)
    good = f"all {len(wanted)} files of the BuildVM's image are those of the transcript"
    bad = f"not as in the transcript: {', '.join(wrong)}" if wrong else "the transcript names no image"
    return "BuildVM image", bool(built) and not wrong, good, bad


def _lasting(found: Ceremony) -> tuple[str, bool | None, str, str]:
    """Whether the keys of people that are valid after the ceremony, the root's and those that approve builds, are in tokens."""
    said = {f"{line.by}'s next key": json.loads(line.content)["custody"] for line in found.counted(plans.REVIEWERS)}
    for line in found.of("certify"):
        said["the root's key"] = json.loads(line.content)["custody"]
    loose = [name for name, where in said.items() if where != plans.TOKEN]
    good = "the root's key, and those that approve builds, were shown to be in tokens"
    bad = f"in a file, or wherever that was copied to: {', '.join(loose)}" if loose else "the root has not answered yet"
    return "keys", True if not loose and found.of("certify") else None, good, bad


def _certificate_key(pem: bytes) -> Any:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem).public_key()
    except ValueError:
        raise CeremonyError("the root's certificate can't be read", "give it as PEM", id="CEREMONY-PLAN") from None


def _step_of(plan: Plan) -> Any:
    def step(line: Line) -> Step:
        role = next((name for name, action in ACTIONS.items() if action == line.action), "")
        return Step(
            *(line.n, line.time, line.by or "BootstrapVM", role, line.action, COVERS[line.action]),
            *(_detail(line), line.digest),
        )

    return step


def _detail(line: Line) -> str:
    if line.action == "hosts":
        return ", ".join(f"{name} {one.hex()}" for name, one in rules.host_fingerprints(line.content))
    if line.action == "contribute":
        return f"commitment {json.loads(line.content)['commitment']}"
    if line.action == "approve":
        key = plans.public_key(json.loads(line.content)["key"], "CONTENT", "the next key")
        return f"next key {_fingerprint(key)}"
    if line.action == "request":
        return f"key {_fingerprint(rules.request_key(line.content))}"
    if line.action == "built":
        files = rules.built_files(line)
        image = files.get("casemate.img")
        return f"{len(files)} files; casemate.img {image.sha256 if image else ''}"
    return str(line.facts.get("outcome", ""))


def _fingerprint(key: Any) -> str:
    return hashlib.sha256(plans.spki(key)).hexdigest()


def keys_of(found: Ceremony, genuine: bool) -> list[Key]:
    """Return every private key that a ceremony knows of, and what is shown of it. ``genuine``: the machine was measured."""
    plan, custody = found.plan, {line.by: json.loads(line.statement)["custody"] for line in found.lines if line.by}
    open_ = Outcome.PROVED if genuine else Outcome.NOT_PROVED
    inside = Outcome.PROVED if genuine and found.of("request") else Outcome.NOT_PROVED
    built = Outcome.PROVED if genuine and found.of("built") else Outcome.NOT_PROVED

    def held(name: str, where: str, ended: str) -> Key:
        if where == plans.TOKEN:
            said = (
                "a token (HSM)",
                f"in the token; {ended}",
                "its holder signed that; their program asked the token: made inside, never out",
            )
            return Key(name, *said, Outcome.PROVED)
        if where:
            said = "a file", f"in the file, and wherever that was copied to; {ended}", "its holder says so"
        else:
            said = "unknown", "unknown", "its holder has not acted"
        return Key(name, *said, Outcome.NOT_PROVED)

    answered = {line.by: json.loads(line.content)["custody"] for line in found.of("certify")}
    root, where = next(iter(answered.items()), ("", ""))
    keys = [held("root of the certificates", where, "in use")]
    if root:
        keys[0] = replace(keys[0], evidence=f"{root} answered the request with it; {keys[0].evidence}")
    keys += [
        Key(
            *("BootstrapVM: session (signing, sealing)", "inside the BootstrapVM", "its memory; ended with it"),
            *("its image has no key; the ultravisor measured image and session together", open_),
        ),
        Key(
            *(
                "intermediate: signs images' certificates",
                "inside the BootstrapVM",
                "the BuildVM's encrypted image only",
            ),
            *("its request, in the transcript, is sealed by the session", inside),
        ),
        Key(
            *("BuildVM: attestation, state", "inside the BootstrapVM", "the BuildVM's encrypted image only"),
            *("the image came out with its certificate, by hash; the state key is mixed of all contributions", built),
        ),
    ]
    keys += [
        held(f"{name}: {plan.role_of(name)}", custody.get(name, ""), "valid for this ceremony only")
        for name in plan.personas
    ]
    for line in found.counted(plans.REVIEWERS):
        keys.append(held(f"{line.by}: approves builds from now on", json.loads(line.content)["custody"], "in use"))
    return keys
