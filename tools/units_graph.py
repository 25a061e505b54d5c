"""Draws ``docs/images/layer.svg``, the order of the services, from the unit files; ``--check`` says whether it is up to date.

tools/units_graph.py [--check]

An arrow is a ``Requires`` with its ``After`` (or a ``Wants`` beside an assertion): what it points to starts when the other
has succeeded. An arrow that follows from others is left out. Every service is a box, in the row after the last one that it
waits for.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNITS, PICTURE = ROOT / "src/casemate/guest/units", ROOT / "docs/images/layer.svg"
END = "hpl-catch-success"
FAILURE = "hpl-catch-failure"

WIDTH, HEIGHT, GAP, ROW, MARGIN = 226, 52, 24, 104, 24
KINDS = {
    "closed": "in a sandbox, without network",
    "open": "in a sandbox, on the network",
    "root": "root of the machine, no sandbox",
}
STYLE = """\
text { font: 13px system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; fill: #1c2733; }
.small { font-size: 11px; fill: #52606d; }
.page { fill: #ffffff; stroke: #d5dbe1; }
.closed { fill: #e3f1e4; stroke: #3d7a45; }
.open { fill: #e2edf9; stroke: #2f6299; }
.root { fill: #fbeedd; stroke: #9a6215; }
.end { fill: #ffffff; stroke: #1c2733; }
path { fill: none; stroke: #7b8794; stroke-width: 1.4; }
marker path { fill: #7b8794; stroke: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #a9b4c0; }
  .page { fill: #0f151c; stroke: #313b46; }
  .closed { fill: #15301a; stroke: #5fae6a; }
  .open { fill: #12283f; stroke: #5b9bdc; }
  .root { fill: #38260c; stroke: #d0954a; }
  .end { fill: #0f151c; stroke: #e6edf3; }
  path { stroke: #8b97a3; }
  marker path { fill: #8b97a3; }
}
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit file: its name without suffix, what it is, whom it waits for, and what it may do."""

    name: str
    description: str
    needs: frozenset[str]
    kind: str


def read(path: Path) -> Unit:
    """Read a unit file, as far as it is drawn."""
    values: dict[str, list[str]] = {}
    for line in path.read_text("utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            values.setdefault(key, []).append(value)
    words = {key: " ".join(lines).split() for key, lines in values.items()}
    after = {name for name in words.get("After", []) if name.startswith("hpl-")}
    named = {name for key in ("Requires", "Wants") for name in words.get(key, [])}
    needs = {name for name in named if name.startswith("hpl-")}
    if needs != after:
        raise SystemExit(f"{path.name}: Requires, Wants and After name different services of the layer")
    if set(words.get("Wants", [])) & needs and "AssertPathExists" not in words:
        raise SystemExit(f"{path.name}: it wants a service of the layer, and would start without it")
    if words.get("OnFailure") != [f"{FAILURE}.service"] and path.stem != FAILURE:
        raise SystemExit(f"{path.name}: its failure does not reach {FAILURE}")
    description = values["Description"][0].removeprefix("Hyper Protect Layer: ")
    kind = "root"
    if values.get("CapabilityBoundingSet") == [""]:
        kind = "closed" if values.get("PrivateNetwork") == ["yes"] else "open"
    return Unit(path.stem, description, frozenset(name.removesuffix(".service") for name in needs), kind)


def units() -> dict[str, Unit]:
    """Return the services of a start by name: without what a timer starts, and what comes where another fails."""
    found = [read(path) for path in sorted(UNITS.glob("hpl-*.service"))]
    return {unit.name: unit for unit in found if unit.name not in (FAILURE, *timers())}


def timers() -> list[str]:
    """Return the names of the services that timers start while the machine runs."""
    return sorted(path.stem for path in UNITS.glob("hpl-*.timer"))


def reduced(all_units: dict[str, Unit]) -> dict[str, set[str]]:
    """Return for each service those that it waits for, without what follows from others."""

    def before(name: str) -> set[str]:
        direct = all_units[name].needs
        return set(direct).union(*(before(other) for other in direct))

    return {
        name: {other for other in unit.needs if not any(other in before(more) for more in unit.needs - {other})}
        for name, unit in all_units.items()
    }


def rows(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return rows of names. A name that begins with ``-`` is where an arrow passes a row: ``-from-to``."""
    depth: dict[str, int] = {}

    def place(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(map(place, edges[name]), default=-1)
        return depth[name]

    for name in edges:
        place(name)
    # Where nothing precedes, stand close to what follows.
    for name in edges:
        if not edges[name]:
            depth[name] = max(0, min((depth[other] for other in edges if name in edges[other]), default=1) - 1)
    table: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in sorted(edges):
        table[depth[name]].append(name)
        for other in sorted(edges[name]):
            for row in range(depth[other] + 1, depth[name]):
                table[row].append(f"-{other}>{name}")
    return table


def links(table: list[list[str]], edges: dict[str, set[str]]) -> list[tuple[int, str, str]]:
    """Return every piece of an arrow: from a row, the name there, the name in the next row."""
    where = {name: number for number, row in enumerate(table) for name in row if not name.startswith("-")}
    found = []
    for name, others in edges.items():
        for other in others:
            stations = [other, *[f"-{other}>{name}"] * (where[name] - where[other] - 1), name]
            found += [(where[other] + step, stations[step], stations[step + 1]) for step in range(len(stations) - 1)]
    return found


def ordered(table: list[list[str]], edges: dict[str, set[str]]) -> list[list[str]]:
    """Order each row so that arrows cross little: a name stands near the middle of its neighbours."""
    pieces = links(table, edges)

    def middle(row: int, name: str, beside: int) -> float:
        if not 0 <= beside < len(table):
            return position[row][name]
        near = [b for at, a, b in pieces if (at, a) == (row, name) and beside == row + 1]
        near += [a for at, a, b in pieces if (at, b) == (beside, name) and beside == row - 1]
        return sum(position[beside][one] for one in near) / len(near) if near else position[row][name]

    def places(row: list[str]) -> dict[str, float]:
        return {name: (index + 0.5) / len(row) for index, name in enumerate(row)}

    position = [places(row) for row in table]
    for turn in range(12):
        step = 1 if turn % 2 else -1
        for row in range(len(table))[::-step]:
            table[row].sort(key=lambda name, row=row: (middle(row, name, row + step), name))  # type: ignore[misc]
            position[row] = places(table[row])
    return table


def picture() -> str:
    """Return the drawing."""
    all_units = units()
    edges = reduced(all_units)
    table = ordered(rows(edges), edges)
    widths = [sum(20 if name.startswith("-") else WIDTH for name in row) + GAP * (len(row) - 1) for row in table]
    total = max(*widths, 640) + 2 * MARGIN
    boxes: dict[tuple[int, str], tuple[float, float]] = {}
    for number, row in enumerate(table):
        x = (total - widths[number]) / 2
        for name in row:
            width = 20 if name.startswith("-") else WIDTH
            boxes[number, name] = (x + width / 2, MARGIN + number * ROW)
            x += width + GAP
    bottom = MARGIN + (len(table) - 1) * ROW + HEIGHT
    height = bottom + 118 + 18 * bool(timers())

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total:g} {height:g}" role="img">',
        "<title>The services of the Hyper Protect Layer and the order of their start</title>",
        f"<style>\n{STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="page" x="0.5" y="0.5" width="{total - 1:g}" height="{height - 1:g}" rx="10"/>',
    ]
    for number, start, end in sorted(links(table, edges)):
        (x1, y1), (x2, y2) = boxes[number, start], boxes[number + 1, end]
        y1 += HEIGHT
        if start.startswith("-"):
            out.append(f'<path d="M{x1:g} {y1 - HEIGHT:g}V{y1:g}"/>')
        arrow = "" if end.startswith("-") else ' marker-end="url(#arrow)"'
        half = (y1 + y2) / 2
        out.append(f'<path d="M{x1:g} {y1:g}C{x1:g} {half:g} {x2:g} {half:g} {x2:g} {y2:g}"{arrow}/>')
    for (_, name), (x, y) in sorted(boxes.items()):
        if name.startswith("-"):
            continue
        unit = all_units[name]
        kind = "end" if name == END else unit.kind
        out.append(f'<rect class="{kind}" x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        out.append(f'<text x="{x:g}" y="{y + 22:g}" text-anchor="middle">{escape(name)}</text>')
        short = unit.description.split(":")[0]
        out.append(f'<text class="small" x="{x:g}" y="{y + 39:g}" text-anchor="middle">{escape(_fit(short))}</text>')
    y = bottom + 30
    x = MARGIN
    for kind, text in KINDS.items():
        out.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="14" height="14" rx="3"/>')
        out.append(f'<text class="small" x="{x + 20:g}" y="{y + 11:g}">{escape(text)}</text>')
        x += 36 + 6.1 * len(text)
    for line, text in enumerate(
        (
            "An arrow: the lower one starts when the upper one has succeeded. What has no arrow between it may run at once.",
            f"Each of them has OnFailure={FAILURE}: it says what failed, waits five seconds for the logs, and switches off.",
            *([f"While the machine runs, timers start {', '.join(timers())}."] if timers() else []),
        )
    ):
        out.append(f'<text class="small" x="{MARGIN}" y="{y + 40 + 18 * line:g}">{escape(text)}</text>')
    return "\n".join([*out, "</svg>", ""])


def _fit(text: str) -> str:
    return text if len(text) <= 34 else text[:33].rstrip() + "…"


def main() -> int:
    """Write, or check."""
    if "--check" in sys.argv:
        if PICTURE.is_file() and PICTURE.read_text("utf-8") == picture():
            return 0
        print(f"{PICTURE} is not what the units say: run tools/units_graph.py", file=sys.stderr)
        return 1
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
