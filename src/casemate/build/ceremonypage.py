"""A ceremony as one self-contained page for people: who did what, what is still missing, what each signature covers.

    Path("ceremony.html").write_text(page(report))

Nothing is loaded, nothing runs, everything is escaped; the style sheet is allowed by its hash and nothing else is. It is the
style of the page of a record (:mod:`casemate.attestation.html`), so that both read alike.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

from casemate.attestation import html as records
from casemate.attestation.verify import Outcome
from casemate.build.ceremony import COMPLETE, MACHINE
from casemate.build.ceremonyplan import ACTIONS
from casemate.build.ceremonyreport import COVERS, Check, Key, Report, Step

_OWN = """
.people{display:grid;grid-template-columns:repeat(auto-fill,minmax(196px,1fr));gap:12px}
.role{padding:16px 18px;border-top:5px solid var(--line)}.role.proved{border-top-color:var(--proved)}
.role.open{border-top-color:var(--open)}
.role h3{margin:0 0 2px;font-size:16px}.role .does{color:var(--soft);font-size:13.5px;margin:0 0 10px}
.role ul{list-style:none;margin:0;padding:0;display:grid;gap:5px;font-size:14.5px}
.role li{display:flex;gap:8px;align-items:center;overflow-wrap:anywhere}.role li.no{color:var(--soft)}
.time{width:112px}.who{width:136px}.did{width:118px}.num{width:38px}
td.num,td.time{color:var(--soft);font-size:13.5px}
tr.machine td.who{color:var(--soft)}
td .mono{display:block;color:var(--soft);overflow-wrap:anywhere;font-size:12.5px;margin-top:2px}
.kn{width:236px}.km{width:196px}
@media(max-width:760px){.km,.time{display:none}.who,.did{width:92px}.kn{width:38%}}
"""
_STYLE = records._STYLE + _OWN
_DOES = {
    "reviewers": "approve plan and source; approve builds later",
    "hosts": "say where the BuildVM may run",
    "custodians": "each give a secret that nobody else sees",
    "root": "certifies the intermediate key",
    "auditor": "compares what came out, signs the head",
}
_VERB = {
    **{"open": "opened", "approve": "approved", "hosts": "gave hosts", "contribute": "contributed", "request": "asked"},
    **{"certify": "certified", "built": "built the BuildVM", "witness": "witnessed", "end": "closed"},
}


def page(report: Report) -> str:
    """Return the page, UTF-8 text of a whole HTML document."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    plan = report.plan
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="referrer" content="no-referrer">',
        f"<title>Ceremony {escape(plan.name)}</title><style>{_STYLE}</style></head><body>{records._icons()}<main>",
        f'<p class="brand"><span>Casemate · bootstrap ceremony</span><span>{escape(plan.organization)}</span></p>',
        _headline(report),
        f'<h2>Who has a part</h2><div class="people">{"".join(_role(report, role) for role in ACTIONS)}</div>',
        _steps(report),
        _keys(report),
        _checks(report),
        _plan(report),
        "<footer>This page holds no script and loads nothing. It says what one verification found, and is itself "
        "not signed: who needs to be sure verifies plan, session and transcript again.</footer></main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _headline(report: Report) -> str:
    ceremony = report.ceremony
    running = ceremony is not None and not ceremony.ended and _sound(report)
    if report.holds:
        color, outcome = ("development" if report.development else "proved"), Outcome.PROVED
        sentence = f"The ceremony {report.plan.name} is complete, and every check holds"
        detail = f"{len(report.checks) + len(report.more)} checks hold; {len(report.steps)} lines."
    elif running:
        color, outcome, sentence = "development", Outcome.NOT_PROVED, f"The ceremony {report.plan.name} is not complete"
        waits = "; ".join(f"{one.count} of {one.role} ({', '.join(one.names)})" for one in report.missing)
        detail = f"Still missing: {waits}." if waits else "It has not ended yet."
    else:
        color, outcome, sentence = "refuted", Outcome.REFUTED, f"The ceremony {report.plan.name} is not proved"
        detail = report.summary()
    warning = (
        '<div class="warning" role="note"><b>DEVELOPMENT TEE</b> — a software ultravisor ran the BootstrapVM. It shows that the '
        "parts fit. It gives no protection from whoever owns the host.</div>"
    )
    facts = {"plan": report.plan.digest, "head": ceremony.head if ceremony else "none"}
    items = "".join(f"<li><span>{name}</span> <code>{escape(value)}</code></li>" for name, value in facts.items())
    return (
        f'<section class="card verdict {color}">{records._icon(outcome, "i big")}<h1>{escape(sentence)}</h1>'
        f'<p>{escape(detail)}</p></section>{warning if report.development else ""}<ul class="facts">{items}</ul>'
    )


def _sound(report: Report) -> bool:
    waits = {"quorum", "end", "witness", "intermediate", "BuildVM image", "keys"}
    return all(one.outcome is Outcome.PROVED or one.name in waits for one in (*report.checks, *report.more))


def _role(report: Report, role: str) -> str:
    wanted = report.plan.roles[role]
    done = {step.who: step for step in report.steps if step.action == ACTIONS[role]}
    enough = bool(done) and role not in {one.role for one in report.missing}
    entries = "".join(
        f'<li class="{"yes" if name in done else "no"}">'
        f"{records._icon(Outcome.PROVED if name in done else Outcome.MISSING)}<span>{escape(name)}</span></li>"
        for name in wanted.members
    )
    return (
        f'<section class="card role {"proved" if enough else "open"}"><h3>{role}: {len(done)} of {wanted.quorum}</h3>'
        f'<p class="does">{_DOES[role]}</p><ul>{entries}</ul></section>'
    )


def _steps(report: Report) -> str:
    if not report.steps:
        return ""
    return (
        '<h2>What was done, and what each signature covers</h2><div class="card rows"><table><thead><tr>'
        '<th scope="col" class="num">#</th><th scope="col" class="time">time, UTC</th><th scope="col" class="who">who</th>'
        '<th scope="col" class="did">did</th><th scope="col">signature covers</th></tr></thead><tbody>'
        f"{''.join(map(_step, report.steps))}</tbody></table></div>"
    )


def _step(step: Step) -> str:
    kind = "machine" if step.action in MACHINE else "person"
    role = f'<span class="about">{escape(step.role)}</span>' if step.role else ""
    detail = f'<span class="mono">{escape(step.detail)}</span>' if step.detail and step.detail != COMPLETE else ""
    did = escape(_VERB[step.action]) + (f" ({escape(step.detail)})" if step.action == "end" else "")
    return (
        f'<tr class="{kind}"><td class="num">{step.n}</td><td class="time">{escape(step.time[:10])}'
        f"<br>"
        f"{escape(step.time[11:19])}</td>"
        f'<td class="who">{escape(step.who)}{role}</td><td class="did">{did}</td>'
        f"<td>{escape(COVERS[step.action])}{detail}</td></tr>"
    )


def _keys(report: Report) -> str:
    if not report.keys:
        return ""
    return (
        '<h2>Every private key</h2><div class="card rows"><table><thead><tr><th scope="col" class="n">in TEE or HSM only</th>'
        '<th scope="col" class="kn">key</th><th scope="col" class="km">made in</th>'
        '<th scope="col">lives, and what shows it</th></tr>'
        f"</thead><tbody>{''.join(map(_key, report.keys))}</tbody></table></div>"
    )


def _key(key: Key) -> str:
    word = "shown" if key.outcome is Outcome.PROVED else "not shown"
    return (
        f'<tr><td>{_mark(key.outcome, word)}</td><td>{escape(key.name)}</td><td class="km">{escape(key.made)}</td>'
        f'<td>{escape(key.lives)}<span class="about">{escape(key.evidence)}</span></td></tr>'
    )


def _mark(outcome: Outcome, word: str) -> str:
    name = records._CLASS[outcome]
    return f'<span class="c {name}">{records._icon(outcome)}<span class="word">{escape(word)}</span></span>'


def _checks(report: Report) -> str:
    rows = "".join(_check(one) for one in (*report.checks, *report.more))
    return (
        '<h2>What was verified</h2><div class="card rows"><table><thead><tr><th scope="col" class="n">Verdict</th>'
        f'<th scope="col" class="l">Check</th><th scope="col">Why</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _check(one: Check) -> str:
    kind = records._CLASS[one.outcome]
    return (
        f'<tr class="{kind}"><td>{_mark(one.outcome, one.outcome.value)}</td><td class="name">{escape(one.name)}</td>'
        f'<td><span class="why">{escape(one.why)}</span></td></tr>'
    )


def _plan(report: Report) -> str:
    plan = report.plan
    facts = {
        "window": f"{plan.not_before:%Y-%m-%d %H:%M:%S} to {plan.not_after:%Y-%m-%d %H:%M:%S} UTC, "
        f"{plan.minutes} minutes at most",
        "source": f"{plan.revision}, {plan.source}",
        "builder": f"{plan.builder}, {plan.arch}, kernel {plan.release}",
        **{f"part {name}": part.sha256 for name, part in plan.parts.items()},
        "root archive": plan.root.sha256,
    }
    rows = "".join(f'<dt>{escape(name)}</dt><dd class="mono">{escape(value)}</dd>' for name, value in facts.items())
    return f'<h2>The plan</h2><div class="card"><dl>{rows}</dl></div>'
