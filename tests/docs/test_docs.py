"""The documents are true where a program can see it: links, commands, identifiers, paths, generated pages."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from casemate.cli import casemate

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
UNITS = ROOT / "src/casemate/guest/units"
TOOLS = sorted((ROOT / "tools").glob("*.py"))


def prose(text: str) -> str:
    """The text without code."""
    return "\n".join(re.sub(r"`[^`]*`", "", line) for line in text.splitlines() if not line.startswith("    "))


def code(text: str) -> Iterator[str]:
    """Lines of code blocks, continued ones as one, and what stands in backquotes."""
    block = "\n".join(line.strip() if re.match(" {4}", line) else "" for line in text.splitlines())
    yield from block.replace("\\\n", " ").splitlines()
    for line in re.sub(r"(?m)^ {4}.*$", "", text).split("\n\n"):
        yield from (" ".join(words.split()) for words in re.findall(r"`([^`]+)`", line))


def anchors(text: str) -> set[str]:
    """What a link may name after ``#``: headings as GitHub writes them, and explicit anchors."""
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", prose(text)) + re.findall(r'<img src="([^"]+)"', text)
    for link in links:
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in target.parents, link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.stem)
def test_generated_pages_are_current(tool: Path) -> None:
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------- commands


def wrong(line: str) -> str:
    """What is wrong with a command line of ours; empty where nothing is."""
    line = re.split(r"  +(?=[^-\s])|\s[|;&>#]|`", line.strip().removeprefix("sudo "))[0]
    try:
        words = shlex.split(line)
    except ValueError:
        return f"{line}: quotes don't match"
    command: click.Command = casemate
    context = click.Context(command, info_name="casemate")
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name in ("COMMAND", "--help"):
            return ""
        found = command.get_command(context, name)
        if found is None:
            return f"{line}: no command {name}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        option = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", option) and option not in {*known, "--help"}:
            return f"{line}: {' '.join(words[:3])} has no option {option}"
    return ""


def commands_of(page: Path) -> list[str]:
    return [line for line in code(page.read_text("utf-8")) if re.match(r"(sudo )?casemate( |$)", line)]


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_the_documents_exist(name: str) -> None:
    assert [problem for line in commands_of(ROOT / name) if (problem := wrong(line))] == []


def test_the_check_of_commands_sees_commands_and_finds_mistakes() -> None:
    assert len(commands_of(ROOT / "docs/tutorial.md")) > 15
    assert wrong("casemate contract seal x --cert y -o z") == ""
    assert wrong("casemate contract weld x") != ""
    assert wrong("casemate contract seal x --certificate y") != ""
    assert list(code("a\n\n    casemate machine up \\\n        --nothing\n"))[2] == "casemate machine up  --nothing"


@pytest.mark.parametrize("name", NAMES)
def test_targets_of_make_exist(name: str) -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text("utf-8")))
    named = {match[1] for line in code((ROOT / name).read_text("utf-8")) if (match := re.match(r"make ([a-z]+)", line))}
    assert named <= targets


# ------------------------------------------------------------------------------------------------- names of things


@pytest.mark.parametrize("name", NAMES)
def test_identifiers_of_messages_are_known(name: str) -> None:
    tables = (ROOT / "docs/messages.tsv", ROOT / "tests/guest/original_messages.tsv")
    table = {line.split("\t")[0] for path in tables for line in path.read_text("utf-8").splitlines()}
    assert set(re.findall(r"HPL\d{5}[EWI]", (ROOT / name).read_text("utf-8"))) <= table


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_are_there(name: str) -> None:
    named = re.findall(r"`((?:src|tests|docs|tools|bench)/[\w./-]+)`", (ROOT / name).read_text("utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_service_stands_on_the_page_of_the_layer() -> None:
    page = (ROOT / "docs/layer.md").read_text("utf-8")
    services = [unit.stem for unit in UNITS.glob("*.service")]
    assert len(services) > 10
    assert [service for service in services if f"`{service}`" not in page] == []


def test_what_real_machines_refuse_stands_in_the_threat_model() -> None:
    model = (ROOT / "docs/threat-model.md").read_text("utf-8")
    source = (ROOT / "tests/machine/refusals.py").read_text("utf-8")
    refused = set(re.findall(r'refusal\("(HPL\d{5}[EWI])"\)', source))
    assert len(refused) > 8
    performed = model.partition("In real machines;")[2].partition("Other attacks")[0]
    rows = set(re.findall(r"\| (HPL\w+) \|", performed))
    assert refused == rows


def test_every_page_is_found_from_the_index() -> None:
    seen: set[Path] = set()
    pending = [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in seen:
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)", prose(page.read_text("utf-8")))
        pending += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in seen] == []


@pytest.mark.parametrize("page", [*NAMES, "docs/images/trust.svg", "docs/images/layer.svg"])
def test_no_page_asks_the_network_for_anything(page: str) -> None:
    """Pictures are files of ours: who reads is not told to anyone."""
    text = (ROOT / page).read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r'(?:src|href)="https?:|!\[[^]]*\]\(https?:|url\(https?:', text)
