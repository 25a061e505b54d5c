"""``casemate doctor``: what is missing on this machine, and the one command that installs it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from casemate.doctor import Finding


@click.command()
@click.option("--install", is_flag=True, help="Install what is missing (Debian packages, by root or with sudo).")
@click.option(
    "--for",
    "groups",
    multiple=True,
    type=click.Choice(["image", "machine", "demo", "tests", "s390x"]),
    help="Look only at what this needs; the demo, for one, needs image and machine too. Default: all but s390x.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(install: bool, groups: tuple[str, ...], as_json: bool) -> int:
    """Tell what is missing on this machine, and the one command that installs it.

    \b
    casemate doctor
    casemate doctor --for image --for machine
    sudo casemate doctor --install

    Exit code: 0 nothing that is needed is missing, 1 something is.
    """
    from casemate import doctor as rules

    chosen = list(dict.fromkeys([*groups, *(("image", "machine") if {"demo", "tests", "s390x"} & set(groups) else ())]))
    chosen = [group for group in rules.GROUPS if group in chosen] or list(rules.USUAL)
    findings = rules.examine(chosen)
    packages = rules.missing(findings)
    if install and packages:
        from casemate.cli.ui import steps

        with steps("Installing what is missing", quiet=as_json) as progress:
            rules.install(packages, progress)
        findings = rules.examine(chosen)
        packages = rules.missing(findings)
    healthy = rules.healthy(findings)
    command = shlex.join(rules.command(packages)) if packages else ""
    if as_json:
        fields = ("name", "group", "ok", "found", "package", "cure")
        rows = [{name: getattr(finding, name) for name in fields} for finding in findings]
        click.echo(json.dumps({"ok": healthy, "missing": packages, "command": command, "findings": rows}))
    else:
        _show(findings, healthy, command)
    return 0 if healthy else 1


def _show(findings: list[Finding], healthy: bool, command: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from casemate.doctor import GROUPS

    console = Console(highlight=False)
    signs = {True: "[green]✓[/]", False: "[bold red]✗[/]", None: "[yellow]○[/]"}
    for group, title in {"": "this machine", **{name: f"to {text}" for name, text in GROUPS.items()}}.items():
        rows = [finding for finding in findings if finding.group == group]
        if not rows:
            continue
        console.print(f"[bold]{title}[/]")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True, min_width=22)
        table.add_column(overflow="fold")
        for row in rows:
            told = row.found if row.ok is not False or not row.package else f"missing: package {row.package}"
            cure = f"  [yellow]{escape(row.cure)}[/]" if row.cure else ""
            table.add_row(f"  {signs[row.ok]} {escape(row.name)}", f"{escape(told)}{cure}")
        console.print(table)
    if command:
        console.print("\nThis installs what is missing (or run `casemate doctor --install`):")
        click.echo(f"  {command}")
    console.print("\n[green]Nothing is missing.[/]" if healthy else "\n[bold red]Something is missing.[/]")
