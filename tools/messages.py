"""Writes ``docs/messages.md`` from ``docs/messages.tsv``; with ``--check`` says whether it is up to date.

tools/messages.py [--check]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLE, PAGE = DOCS / "messages.tsv", DOCS / "messages.md"
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

This page is written by `tools/messages.py` from `messages.tsv`.
"""


def rows() -> list[dict[str, str]]:
    """Return the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        found = list(reader)
    if reader.fieldnames != COLUMNS or any(None in row.values() or None in row for row in found):
        raise SystemExit(f"{TABLE}: a line does not have the columns {', '.join(COLUMNS)}")
    return found


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    component = ""
    for row in rows():
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
    return "".join(parts)


def main() -> int:
    """Write, or check."""
    if "--check" in sys.argv:
        if PAGE.is_file() and PAGE.read_text("utf-8") == page():
            return 0
        print(f"{PAGE} is not what {TABLE.name} makes: run tools/messages.py", file=sys.stderr)
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
