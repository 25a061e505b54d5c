"""``casemate completion``: prints what a shell needs to complete our commands."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    casemate completion bash > /etc/bash_completion.d/casemate
    """
    from click.shell_completion import get_completion_class

    from casemate.cli import casemate

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(casemate, {}, "casemate", "_CASEMATE_COMPLETE").source())
