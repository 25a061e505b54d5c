"""``casemate volume``: what belongs to data volumes."""

from __future__ import annotations

import click

from casemate.cli.ui import read_input, write_output


@click.group()
def volume() -> None:
    """What belongs to data volumes."""


@volume.command()
@click.option("--seed", "seeds", multiple=True, help="A seed: the workload's first, then the env's.")
@click.option(
    "--seed-file",
    "seed_files",
    multiple=True,
    metavar="FILE",
    help="A file that holds a seed, in the same order; - is standard input. Other users of this machine can see "
    "arguments, so this is the way for a seed that matters.",
)
@click.option("-o", "--output", metavar="OUT", help="Write here, without a newline, as cryptsetup's --key-file needs.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def passphrase(seeds: tuple[str, ...], seed_files: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Print the LUKS passphrase of a data volume, from the seeds of its parties: to rescue a disk, or to check.

    \b
    casemate volume passphrase --seed-file workload.seed --seed-file env.seed -o volume.key
    cryptsetup luksOpen --key-file volume.key disk.img data
    """
    from casemate.contract.errors import SeedError
    from casemate.contract.passphrase import passphrase as derive

    if bool(seeds) == bool(seed_files) or not 2 <= len(seeds or seed_files) <= 3:
        raise click.UsageError("give two seeds (three with a key service), all as --seed or all as --seed-file")
    try:
        given = seeds or tuple(read_input(name, 4096).decode().strip() for name in seed_files)
    except UnicodeDecodeError:
        raise SeedError("a seed is not text") from None
    text = derive(*given)
    if output is not None:
        write_output(output, text.encode(), 0o600)
    if as_json:
        import json

        click.echo(json.dumps({"passphrase": text} if output is None else {"output": output}))
    elif output is None:
        click.echo(text)
