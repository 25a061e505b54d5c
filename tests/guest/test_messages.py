"""The identifiers that a machine can say: those in the code, in the table, and on the page are the same. Those of the original
that it can't say have a table of their own."""

from __future__ import annotations

import ast
import csv
import re
import subprocess
import sys
from pathlib import Path

import casemate

SOURCE = Path(casemate.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
IDENTIFIER = re.compile(r"HPL[0-9]{5}[EWI]")


def table() -> dict[str, dict[str, str]]:
    with (ROOT / "docs/messages.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["id"] for row in rows] == sorted({row["id"] for row in rows}, key=lambda id: (id[3:8], id[8]))
    return {row["id"]: row for row in rows}


def unused() -> dict[str, str]:
    lines = (ROOT / "docs/messages-unused.tsv").read_text("utf-8").splitlines()
    assert lines[0] == "id\treason"
    rows = [line.split("\t") for line in lines[1:]]
    assert [row[0] for row in rows] == sorted({row[0] for row in rows}, key=lambda id: (id[3:8], id[8]))
    return {id: reason for id, reason in rows}


def original() -> dict[str, str]:
    lines = (Path(__file__).parent / "original_messages.tsv").read_text().splitlines()[2:]
    return dict(line.split("\t") for line in lines)


def said() -> dict[str, set[str]]:
    """The identifiers in the source, and where."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*"):
        if path.suffix in (".py", ".json", ".service", ".target"):
            for id in IDENTIFIER.findall(path.read_text("utf-8")):
                found.setdefault(id, set()).add(str(path.relative_to(SOURCE)))
    return found


def test_code_and_table_have_the_same_identifiers() -> None:
    assert set(said()) == set(table())


def test_original_identifiers_keep_their_meaning_and_ours_take_none_of_theirs() -> None:
    theirs = original()
    assert len(theirs) > 100
    for id, row in table().items():
        assert row["origin"] == ("original" if id in theirs else "ours")
        if id in theirs:
            assert row["name"] == theirs[id]


def test_every_original_identifier_is_said_or_has_a_reason_why_not() -> None:
    theirs, never = original(), unused()
    assert never.keys() == theirs.keys() - table().keys()
    for reason in never.values():
        assert len(reason) > 20 and not reason.endswith(".") and "|" not in reason
        assert set(IDENTIFIER.findall(reason)) <= table().keys()


def test_every_message_has_a_cause_and_a_cure() -> None:
    for row in table().values():
        assert re.fullmatch("[A-Z][A-Z_]+", row["name"])
        assert len(row["cause"]) > 10 and len(row["cure"]) > 5
        assert (
            not row["cause"].endswith(".") and not row["cure"].endswith(".") and "|" not in row["cause"] + row["cure"]
        )


def test_the_page_is_made_of_the_table() -> None:
    subprocess.run([sys.executable, ROOT / "tools/messages.py", "--check"], check=True)
    page = (ROOT / "docs/messages.md").read_text("utf-8")
    assert set(IDENTIFIER.findall(page)) == {*table(), *unused()}


def test_no_identifier_is_put_together_where_it_would_not_be_found() -> None:
    """Identifiers stand whole in the source, so that the table can be checked."""
    for path in (SOURCE / "guest").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "UNFORESEEN":
                assert isinstance(node.value, ast.Constant) and IDENTIFIER.fullmatch(str(node.value.value))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Stop", "say", "run") and node.args:
                first = node.args[1] if getattr(node.func, "id", "") == "run" else node.args[0]
                if isinstance(first, ast.Constant):
                    assert IDENTIFIER.fullmatch(str(first.value)), f"{path}:{node.lineno}"
                else:
                    assert ast.unparse(first) in ("missing", "fallback", "stop.id", "problem.id", "errors[0].id"), (
                        f"{path}:{node.lineno}"
                    )


def test_an_error_stops_and_information_does_not() -> None:
    """What is raised ends in E; what is only said ends in I or W, but where the original has an E for what goes on."""
    goes_on = {"HPL12006E"}
    for path in (SOURCE / "guest").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                id, name = str(node.args[0].value), getattr(node.func, "id", "")
                if name == "Stop":
                    assert id.endswith("E")
                elif name == "say" and path.name != "catch.py":
                    assert id[-1] in "IW" or id in goes_on
