"""``casemate demo``: the whole story end to end."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep contract, record, console, logs and the auditor's page in a new directory.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="The port of 127.0.0.1 that leads to the database. Default: a free one.",
)
@click.option(
    "--arch",
    type=click.Choice(["amd64", "s390x"]),
    default="amd64",
    show_default=True,
    help="The processor of the machines: s390x is emulated, and takes about five minutes.",
)
def demo(keep: Path | None, port: int | None, arch: str) -> None:
    """Tell the whole story, once, on this machine, with real parts: a contract of two parties, an encrypted machine, a record.

    \b
    casemate demo
    casemate demo --keep seen        then open seen/record.html in a browser
    casemate demo --arch s390x       the same platform for IBM Z, under QEMU's emulation of it

    It builds an image (a minute or two, the first time), starts a registry, a log backend and three machines, all on
    the loopback address, and stops everything at the end and on Ctrl-C.

    Exit code: 0 only if every step really held.
    """
    from rich.console import Console

    from casemate.demo.story import tell

    tell(Console(highlight=False), keep=keep, port=port, arch=arch)
