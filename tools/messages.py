"""Writes ``docs/messages.md`` from ``messages.tsv`` and ``messages-unused.tsv``; with ``--check`` says whether it is up to date.

tools/messages.py [--check]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLE, UNUSED, PAGE = DOCS / "messages.tsv", DOCS / "messages-unused.tsv", DOCS / "messages.md"
COLUMNS = ["id", "name", "origin", "cause", "cure"]
COMPONENTS = {
    **{"01": "Logging", "02": "Disks", "05": "Contract", "06": "Images", "07": "Volumes", "08": "Containers"},
    **{"09": "Registries", "10": "Catch", "11": "Bootloader", "12": "Signature"},
    **{"13": "Check of the disks", "14": "Network", "15": "Pods"},
    **{
        "16": "Image policy",
        "17": "Builder machines",
        "18": "Key services",
        "19": "Ceremony",
        "20": "Attestation by the ultravisor",
    },
}
HEAD = """\
# Messages of a machine

Each message on the console and in the log backend begins with an identifier: `HPL`, two digits for the component, three
for the message, and `E` (error), `W` (warning) or `I` (information). Identifiers are stable: programs may look for them.
Most are those of IBM Hyper Protect, so that what people and programs know goes on to hold; those marked *ours* are
additions of Casemate. An error stops the machine, except where it says otherwise; the first error on the console is the
reason. `casemate machine logs` shows the console. No message holds a secret.

Those that only IBM's documentation has stand [at the end](#of-the-original-never-said-here).

This page is written by `tools/messages.py` from `messages.tsv` and `messages-unused.tsv`.
"""
FOOT = """
## Of the original, never said here

IBM documents these identifiers too. A machine of Casemate never says them; what it does in their place:

| Identifier | Why |
| --- | --- |
"""


def rows(table: Path, columns: list[str]) -> list[dict[str, str]]:
    """Return a table."""
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        found = list(reader)
    if reader.fieldnames != columns or any(None in row.values() or None in row for row in found):
        raise SystemExit(f"{table}: a line does not have the columns {', '.join(columns)}")
    return found


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    component = ""
    for row in rows(TABLE, COLUMNS):
        if (digits := row["id"][3:5]) != component:
            component = digits
            parts.append(
                f"\n## {COMPONENTS[digits]}\n\n| Identifier | Name | What it means | What to do |\n| --- | --- | --- | --- |\n"
            )
        mark = " *(ours)*" if row["origin"] == "ours" else ""
        name = row["name"].replace("_", " ").lower()
        parts.append(
            f'| <a id="{row["id"].lower()}"></a>`{row["id"]}` | {name}{mark} | {row["cause"]}. | {row["cure"]}. |\n'
        )
    parts.append(FOOT)
    parts += [f"| `{row['id']}` | {row['reason']}. |\n" for row in rows(UNUSED, ["id", "reason"])]
    return "".join(parts)


def main() -> int:
    """Write, or check."""
    if "--check" in sys.argv:
        if PAGE.is_file() and PAGE.read_text("utf-8") == page():
            return 0
        print(f"{PAGE} is not what {TABLE.name} and {UNUSED.name} make: run tools/messages.py", file=sys.stderr)
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
