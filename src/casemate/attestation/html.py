"""A verdict as one self-contained page for people: nothing is loaded, nothing runs, everything is escaped.

    Path("verdict.html").write_text(page(verdict))

The page's content security policy allows its own style sheet by its hash and nothing else. Light and dark follow the
reader's setting; it prints on white. The picture is inline SVG: the chain from the root to the record, and what the
record vouches for.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

from casemate.attestation.verify import GROUPS, TITLES, Outcome, Row, Verdict

if TYPE_CHECKING:
    from casemate.certificates.chain import Link

_CLASS = {
    **{Outcome.PROVED: "proved", Outcome.REFUTED: "refuted", Outcome.NOT_PROVED: "open"},
    **{Outcome.MISSING: "missing", Outcome.UNKNOWN: "unknown"},
}
_LEGEND = {
    Outcome.PROVED: "something independent that was given says the same",
    Outcome.REFUTED: "what was given says something else, or the line is missing",
    Outcome.NOT_PROVED: "the record says so; there was nothing to compare it with",
    Outcome.MISSING: "records may have this line; this one has not",
    Outcome.UNKNOWN: "signed, but of a kind that is not understood",
}
_SHAPES = {
    "proved": '<circle cx="8" cy="8" r="7.5" class="disc"/><path d="M4.6 8.3l2.3 2.3 4.5-4.9" class="mark"/>',
    "refuted": '<circle cx="8" cy="8" r="7.5" class="disc"/><path d="M5.3 5.3l5.4 5.4M10.7 5.3l-5.4 5.4" class="mark"/>',
    "open": '<circle cx="8" cy="8" r="6.6" class="ring"/>',
    "missing": '<circle cx="8" cy="8" r="6.6" class="ring dash"/><path d="M5.4 8h5.2" class="stroke"/>',
    "unknown": '<circle cx="8" cy="8" r="6.6" class="ring"/>'
    '<path d="M6.2 6.4a1.9 1.9 0 1 1 2.6 1.8c-.6.3-.8.6-.8 1.2M8 11.5v.1" class="stroke"/>',
}

_STYLE = """
:root{color-scheme:light dark;--bg:#f4f5f3;--card:#fff;--ink:#182028;--soft:#5b6670;--line:#dde1e0;--faint:#eef0ef;
--proved:#137a48;--proved-bg:#e5f4ec;--refuted:#bb2d24;--refuted-bg:#fdecea;--open:#8a5a00;--open-bg:#fdf3dc;
--missing:#68737d;--unknown:#5a4fb0;--on:#fff;--stripe:#f2c14e}
@media(prefers-color-scheme:dark){:root{--bg:#0f1317;--card:#171d23;--ink:#e8ecee;--soft:#9aa6af;--line:#2b343c;
--faint:#1e252c;--proved:#4cc38a;--proved-bg:#12291f;--refuted:#ff7b70;--refuted-bg:#34181a;--open:#e5b454;
--open-bg:#2d2413;--missing:#8b97a1;--unknown:#a79cf5;--on:#0f1317;--stripe:#8a6a1c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:0;letter-spacing:-.01em}
h2{font-size:19px;margin:40px 0 12px}
code,.mono{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
.brand{color:var(--soft);font-size:14px;margin:0 0 16px;display:flex;justify-content:space-between;gap:16px;flex-wrap:wrap}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px}
.verdict{display:grid;grid-template-columns:auto 1fr;gap:6px 20px;align-items:center;padding:26px 28px;border-left:8px solid}
.verdict p{margin:0;grid-column:2;color:var(--soft)}
.verdict .big{width:52px;height:52px;grid-row:1/3}
.verdict.proved{border-left-color:var(--proved)}.verdict.refuted{border-left-color:var(--refuted)}
.verdict.proved h1{color:var(--proved)}.verdict.refuted h1{color:var(--refuted)}
.verdict.development{border-left-color:var(--stripe)}.verdict.development h1{color:var(--open)}
.warning{margin:14px 0 0;border:2px solid var(--stripe);border-radius:14px;padding:14px 22px;background:var(--open-bg)}
.warning b{color:var(--open);letter-spacing:.04em}
.facts{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0 0;padding:0;list-style:none}
.facts li{border:1px solid var(--line);background:var(--card);border-radius:99px;padding:4px 14px;font-size:14px}
.facts span{color:var(--soft)}
.picture{padding:22px 22px 16px;overflow-x:auto}
.picture svg{display:block;width:100%;min-width:880px;height:auto;font:13px system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","DejaVu Sans",sans-serif}
.box{fill:var(--faint);stroke:var(--line);stroke-width:1.5}
.box.proved{stroke:var(--proved);fill:var(--proved-bg)}.box.refuted{stroke:var(--refuted);fill:var(--refuted-bg)}
.box.open{stroke:var(--open);fill:var(--open-bg)}
.box.plain{fill:none}
.wire{fill:none;stroke:var(--line);stroke-width:2}
.wire.proved{stroke:var(--proved)}.wire.refuted{stroke:var(--refuted);stroke-dasharray:5 5}
.wire.open{stroke:var(--open);stroke-dasharray:2 5}
.tip.proved{fill:var(--proved)}.tip.refuted{fill:var(--refuted)}.tip.open{fill:var(--open)}
svg text{fill:var(--ink)}svg .t{font-weight:650;font-size:14px}svg .s{fill:var(--soft);font-size:12px}
svg .k{fill:var(--soft);font-size:11px;letter-spacing:.07em;text-transform:uppercase}
svg .w{fill:var(--open);font-size:11px;font-weight:700;letter-spacing:.05em}
svg .e{font-size:11.5px;fill:var(--soft)}
.defs{position:absolute;width:0;height:0}
.i{width:16px;height:16px;flex:none}
.i.proved,.c.proved,.g.proved{color:var(--proved)}.i.refuted,.c.refuted,.g.refuted{color:var(--refuted)}.i.open,.c.open,.g.open{color:var(--open)}
.i.missing,.c.missing,.g.missing{color:var(--missing)}.i.unknown,.c.unknown,.g.unknown{color:var(--unknown)}
.disc{fill:currentColor}.mark{fill:none;stroke:var(--card);stroke-width:1.9;stroke-linecap:round;stroke-linejoin:round}
.ring{fill:none;stroke:currentColor;stroke-width:1.8}.dash{stroke-dasharray:2.4 2.4;stroke-width:1.3}
.stroke{fill:none;stroke:currentColor;stroke-width:1.6;stroke-linecap:round}
table{width:100%;border-collapse:collapse;table-layout:fixed}
.rows{padding:4px 22px}
th,td{text-align:left;vertical-align:top;padding:13px 14px 13px 0;border-bottom:1px solid var(--line);font-weight:400}
tr:last-child>*{border-bottom:0}
thead th{color:var(--soft);font-size:12.5px;padding:9px 14px 9px 0}
.c{display:inline-flex;gap:8px;align-items:center;font-weight:650;font-size:14.5px;white-space:nowrap}
.n{width:142px}.l{width:248px}
td.name .mono{font-weight:600;overflow-wrap:anywhere}.about{display:block;color:var(--soft);font-size:14px}
.value,.why,.verdict p{overflow-wrap:anywhere}.value,.why{display:block}.why{font-size:14.5px}
tr.refuted td,tr.refuted th{background:linear-gradient(var(--refuted-bg),var(--refuted-bg))}
dl{display:grid;grid-template-columns:130px 1fr;gap:3px 16px;margin:0;padding:18px 22px;font-size:14.5px}
dl+dl{border-top:1px solid var(--line)}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
dt.h,dd.h{font-weight:650;color:var(--ink);font-size:15.5px}dd.bad{color:var(--refuted);font-weight:600}
.legend{display:grid;gap:8px;padding:18px 22px;margin:0;list-style:none;font-size:14.5px}
.legend li{display:grid;grid-template-columns:130px 1fr;gap:16px}
footer{color:var(--soft);font-size:13.5px;margin-top:28px}
@media(max-width:760px){main{padding:20px 14px}.n{width:34px;font-size:0!important}.l{width:42%}
.c .word{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
dl{grid-template-columns:1fr}.verdict{padding:18px}h1{font-size:23px}}
@media print{:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--faint:#f6f6f6;
--proved:#0c6b3d;--proved-bg:#eef8f2;--refuted:#a01f17;--refuted-bg:#fdeeec;--open:#7a4f00;--open-bg:#fff8e8;
--missing:#555;--unknown:#4a3fa0;--stripe:#d9a520}
body{font-size:10.5pt}main{max-width:none;padding:0}.card,tr,dl{break-inside:avoid}h2{break-after:avoid}
.rows{break-inside:auto}.picture{overflow:visible}.picture svg{min-width:0}*{print-color-adjust:exact}}
"""


def page(verdict: Verdict) -> str:
    """Return the page, UTF-8 text of a whole HTML document."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = "Attestation: " + ("proved" if verdict.holds else "not proved")
    if verdict.development:
        title += " (DEVELOPMENT TEE)"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="referrer" content="no-referrer">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{_icons()}<main>",
        '<p class="brand"><span>Casemate · attestation record</span>'
        f"<span>verified {verdict.time:%Y-%m-%d %H:%M} UTC</span></p>",
        _headline(verdict),
        f'<h2>What vouches for what</h2><div class="card picture" tabindex="0">{_picture(verdict)}</div>',
        *(_section(verdict, group) for group in (*GROUPS, "other")),
        _certificates(verdict),
        _legend(),
        "<footer>This page holds no script and loads nothing. It says what one verification found, and is itself not "
        "signed: who needs to be sure verifies the record again.</footer></main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _icons() -> str:
    symbols = "".join(f'<symbol id="i-{name}" viewBox="0 0 16 16">{shape}</symbol>' for name, shape in _SHAPES.items())
    return f'<svg class="defs" aria-hidden="true" focusable="false"><defs>{symbols}</defs></svg>'


def _icon(outcome: Outcome, kind: str = "i") -> str:
    name = _CLASS[outcome]
    return f'<svg class="{kind} {name}" aria-hidden="true"><use href="#i-{name}"/></svg>'


def _headline(verdict: Verdict) -> str:
    outcome = Outcome.PROVED if verdict.holds else Outcome.REFUTED
    color = "development" if verdict.holds and verdict.development else _CLASS[outcome]
    failed = [row.name for row in verdict.rows if row.asked and row.outcome is not Outcome.PROVED]
    asked = sum(row.asked for row in verdict.rows)
    if verdict.holds:
        sentence = "Everything that was asked for is proved"
        if verdict.development:
            sentence += ", for a DEVELOPMENT TEE"
        detail = f"{asked} of {asked} checks hold."
    else:
        sentence = "This record does not prove what was asked for"
        detail = f"{len(failed)} of {asked} checks do not hold: {', '.join(failed)}."
    development = (
        '<div class="warning" role="note"><b>DEVELOPMENT TEE</b> — a software ultravisor made this record, or its keys '
        "come from a development authority. It shows that the parts fit. It gives no protection from whoever owns the "
        "host, and is never a hardware record.</div>"
    )
    facts = {"image version": verdict.version or "not read", "TEE": verdict.tee}
    facts |= {outcome.value: str(verdict.count(outcome)) for outcome in Outcome if verdict.count(outcome)}
    items = "".join(f"<li><span>{escape(name)}</span> {escape(value)}</li>" for name, value in facts.items())
    return (
        f'<section class="card verdict {color}">{_icon(outcome, "i big")}<h1>{sentence}</h1>'
        f"<p>{escape(detail)}</p></section>{development if verdict.development else ''}"
        f'<ul class="facts">{items}</ul>'
    )


def _section(verdict: Verdict, group: str) -> str:
    rows = [row for row in verdict.rows if row.group == group]
    if not rows:
        return ""
    body = "".join(map(_row, rows))
    return (
        f'<h2>{TITLES[group]}</h2><div class="card rows"><table><thead><tr><th scope="col" class="n">Verdict</th>'
        f'<th scope="col" class="l">Line</th><th scope="col">What it says, and why</th></tr></thead><tbody>{body}'
        "</tbody></table></div>"
    )


def _row(row: Row) -> str:
    about = f'<span class="about">{escape(row.meaning)}</span>' if row.meaning else ""
    value = f'<span class="value mono">{escape(row.value)}</span>' if row.value else ""
    return (
        f'<tr class="{_CLASS[row.outcome]}"><td><span class="c {_CLASS[row.outcome]}">{_icon(row.outcome)}'
        f'<span class="word">{row.outcome.value}</span></span></td><td class="name"><span class="mono">{escape(row.name)}'
        f'</span>{about}</td><td>{value}<span class="why">{escape(row.why)}</span></td></tr>'
    )


def _certificates(verdict: Verdict) -> str:
    if verdict.chain is None:
        return ""
    blocks = []
    for link in verdict.chain.links:
        facts = {
            "subject": link.subject,
            "SHA-256": link.fingerprint,
            "serial": link.serial,
            "valid": f"{link.not_before:%Y-%m-%d %H:%M} to {link.not_after:%Y-%m-%d %H:%M} UTC",
            "signed by": f"{link.signed_by} ({link.how})" if link.signed_by else "not found",
            "with the key": link.signing_key,
            "revocation": link.revocation,
            "mark": "DEVELOPMENT" if link.development else "",
        }
        rows = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)
        rows += "".join(f'<dt>problem</dt><dd class="bad">{escape(problem.cause)}</dd>' for problem in link.problems)
        blocks.append(f'<dl><dt class="h">certificate</dt><dd class="h">{escape(link.name)}</dd>{rows}</dl>')
    return f'<h2>Certificates</h2><div class="card">{"".join(blocks)}</div>'


def _legend() -> str:
    items = "".join(
        f'<li><span class="c {_CLASS[outcome]}">{_icon(outcome)}{outcome.value}</span><span>{text}</span></li>'
        for outcome, text in _LEGEND.items()
    )
    return f'<h2>How to read it</h2><ul class="card legend">{items}</ul>'


# ------------------------------------------------------------------------------------------------- the picture

_WIDTH, _TOP, _HEIGHT, _GAP = 1040, 6, 112, 56
_MOST_NODES, _MOST_LINES = 5, 8


def _picture(verdict: Verdict) -> str:
    """The chain from left to right, the record last, and under it what the record's lines vouch for."""
    nodes = _nodes(verdict)
    width = (_WIDTH - _GAP * (len(nodes) - 1)) / len(nodes)
    parts = []
    for index, (kind, title, note, state, warning, tip) in enumerate(nodes):
        left = index * (width + _GAP)
        if index:
            parts.append(_arrow(left - _GAP + 4, left - 4, _TOP + _HEIGHT / 2, _weaker(state, nodes[index - 1][3])))
        inside, room = left + 14, width - 28
        first, second = _two_lines(title, int(room / 8.8))
        texts = [("k", 23, kind, 7.8), ("t", 45, first, 8.8), ("t", 62, second, 8.8), ("w", _HEIGHT - 12, warning, 8.6)]
        texts.append(("s", 81 if second else 64, note, 6.5))
        parts.append(
            f'<g><title>{escape(tip)}</title><rect class="box {state}" x="{left:.1f}" y="{_TOP}" width="{width:.1f}" '
            f'height="{_HEIGHT}" rx="11"/>'
            + "".join(_text(style, inside, _TOP + y, text, room, each) for style, y, text, each in texts)
            + "</g>"
        )
    lines, height = _groups(verdict, _WIDTH - width / 2, nodes[-1][3])
    holds = "is proved" if verdict.holds else "is not proved"
    described = f"{len(nodes) - 1} signing steps from {nodes[0][1]} to the record; what was asked for {holds}."
    return (
        f'<svg viewBox="-2 0 {_WIDTH + 4} {height:.0f}" role="img" aria-labelledby="pt pd"><title id="pt">The chain of '
        f'the record</title><desc id="pd">{escape(described)} Every line is in the tables below.</desc>'
        f"{''.join(parts)}{lines}</svg>"
    )


def _nodes(verdict: Verdict) -> list[tuple[str, str, str, str, str, str]]:
    """Return kind, title, note, state, warning and full text of each box, the root first."""
    nodes = []
    links = list(verdict.chain.links) if verdict.chain else []
    for depth, link in enumerate(links):
        kind = "root, which you gave" if link.how == "given" else "intermediate"
        nodes.append(_node("attestation certificate" if depth == 0 else kind, link))
    if links and links[-1].how != "given":
        nodes.append(("issuer", "not found", "the chain ends here", "refuted", "", links[-1].issuer))
    nodes.reverse()
    if not nodes:
        nodes = [("attestation key", "given, not checked", "no authority was given", "open", "", "no chain")]
    if len(nodes) >= _MOST_NODES:
        hidden = nodes[1 : len(nodes) - _MOST_NODES + 3]
        if len(hidden) > 1:
            state = "refuted" if any(node[3] == "refuted" for node in hidden) else "proved"
            nodes[1 : len(nodes) - _MOST_NODES + 3] = [("between", f"{len(hidden)} certificates", "", state, "", "")]
    signature = next(row for row in verdict.rows if row.name == "signature")
    signed = signature.outcome is Outcome.PROVED
    note = f"image {verdict.version}" if signed else "not signed by this key"
    warning = "DEVELOPMENT TEE" if verdict.development else ""
    state = ("proved" if nodes[-1][3] != "open" else "open") if signed else "refuted"
    nodes.append(("record", "Attestation record", note, state, warning, signature.why))
    return nodes


def _node(kind: str, link: Link) -> tuple[str, str, str, str, str, str]:
    note = f"until {link.not_after:%Y-%m-%d}"
    if link.revocation in ("not revoked", "revoked"):
        note += f", {link.revocation}"
    state = "refuted" if link.problems else "proved"
    return kind, link.name, note, state, "DEVELOPMENT" if link.development else "", link.subject


def _groups(verdict: Verdict, start: float, state: str) -> tuple[str, float]:
    """Draw the boxes of lines and the wires to them from the record; return them and the height of the picture."""
    shown = [
        group for group in (*GROUPS, "other") if group != "trust" and any(row.group == group for row in verdict.rows)
    ]
    rows = {group: [row for row in verdict.rows if row.group == group] for group in shown}
    width = (_WIDTH - 18 * (len(shown) - 1)) / len(shown)
    bus, top = _TOP + _HEIGHT + 28, _TOP + _HEIGHT + 56
    tall = 50 + 23 * max(min(len(found), _MOST_LINES + 1) for found in rows.values())
    centers = [index * (width + 18) + width / 2 for index in range(len(shown))]
    reach = f"M{start:.1f} {_TOP + _HEIGHT}V{bus}M{min(centers[0], start):.1f} {bus}H{max(centers[-1], start):.1f}"
    parts = [f'<path class="wire {state}" d="{reach}"/>']
    for group, center in zip(shown, centers, strict=True):
        left = center - width / 2
        parts.append(
            f'<path class="wire {state}" d="M{center:.1f} {bus}V{top - 9}"/><path class="tip {state}" '
            f'd="M{center - 5:.1f} {top - 10}h10l-5 8z"/><rect class="box plain" x="{left:.1f}" y="{top}" '
            f'width="{width:.1f}" height="{tall}" rx="11"/>{_text("t", left + 15, top + 27, TITLES[group], width - 26, 8.8)}'
        )
        for index, row in enumerate(rows[group][:_MOST_LINES]):
            y, name = top + 38 + 23 * index, _CLASS[row.outcome]
            parts.append(
                f'<g><title>{escape(row.name)}: {row.outcome.value}</title><use href="#i-{name}" class="g {name}" '
                f'x="{left + 15:.1f}" y="{y + 2}" width="15" height="15"/>'
                f"{_text('e', left + 38, y + 14, row.name.removeprefix('contract:'), width - 46, 6.6)}</g>"
            )
        if (more := len(rows[group]) - _MOST_LINES) > 0:
            parts.append(_text("s", left + 38, top + 52 + 23 * _MOST_LINES, f"and {more} more", width - 46, 6.3))
    return "".join(parts), top + tall + 6


def _weaker(one: str, other: str) -> str:
    return next((state for state in ("refuted", "open") if state in (one, other)), "proved")


def _arrow(left: float, right: float, y: float, state: str) -> str:
    return (
        f'<path class="wire {state}" d="M{left:.1f} {y}H{right - 8:.1f}"/>'
        f'<path class="tip {state}" d="M{right - 9:.1f} {y - 5}v10l9 -5z"/>'
        f'<text class="s" x="{(left + right) / 2 - 3:.1f}" y="{y - 9}" text-anchor="middle">signs</text>'
    )


def _two_lines(text: str, most: int) -> tuple[str, str]:
    """Break a name into at most two lines of about so many letters."""
    import textwrap

    first, *more = textwrap.wrap(text, max(most, 8)) or [""]
    return first, " ".join(more)


def _text(kind: str, x: float, y: float, text: str, width: float, each: float) -> str:
    """One line of text, cut to fit where its letters are ``each`` wide on average."""
    most = max(4, int(width / each))
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(cut)}</text>' if cut else ""
