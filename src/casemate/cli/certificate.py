"""``casemate certificate``: verify certificates and revocation lists."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from casemate.certificates.chain import Chain


@click.group()
def certificate() -> None:
    """Verify certificates and revocation lists."""


@certificate.command()
@click.argument("crt", type=click.Path())
@click.option(
    "--ca", "authorities", multiple=True, required=True, help="Issuers up to the root; a file may hold several."
)
@click.option("--crl", "lists", multiple=True, help="Revocation list of an issuer, PEM or DER.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(crt: str, authorities: tuple[str, ...], lists: tuple[str, ...], as_json: bool) -> int:
    """Verify the certificate CRT up to a root among the --ca files, which is trusted because you give it.

    The signature of each link, names, validity, authority and, with --crl, revocation. Platform certificate documents,
    whose issuer is no authority by X.509, are checked the documented way under an issuer that you give.

    \b
    casemate certificate verify encryption.crt --ca intermediate.crt --ca root.crt --crl crl.pem

    Exit code: 0 all of it holds, 1 something does not.
    """
    import datetime

    from casemate.certificates.chain import LARGEST_CRL, verify_chain
    from casemate.cli.ui import read_certificates, read_input

    chain = verify_chain(
        read_certificates(crt),
        [read_certificates(name) for name in authorities],
        [read_input(name, LARGEST_CRL) for name in lists],
        time=datetime.datetime.now(datetime.UTC),
    )
    if as_json:
        click.echo(json.dumps(chain.as_dict()))
    else:
        show_chain(chain)
    return 0 if chain.proved else 1


def show_chain(chain: Chain) -> None:
    """Print a chain for people: one block a certificate, the root last, problems where they are."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for depth, link in enumerate(chain.links):
        sign = "[red]✗[/]" if link.problems else "[green]✓[/]"
        mark = " [yellow]DEVELOPMENT[/]" if link.development else ""
        console.print(f"{sign} [bold]{escape(link.subject)}[/]{mark}", soft_wrap=True)
        facts = {
            "valid": f"{link.not_before:%Y-%m-%d} to {link.not_after:%Y-%m-%d}",
            "SHA-256": link.fingerprint,
            "signed by": "" if depth == len(chain.links) - 1 else f"{link.signed_by} ({link.how})",
            "revocation": link.revocation,
        }
        for name, value in facts.items():
            if value:
                console.print(f"    [dim]{name:<11}[/]{escape(value)}", soft_wrap=True)
        for problem in link.problems:
            console.print(f"    [red]{escape(problem.diagnostics())}[/]", soft_wrap=True)
    shown = [problem for link in chain.links for problem in link.problems]
    for problem in chain.problems:
        if problem not in shown:
            console.print(f"[red]✗ {escape(problem.diagnostics())}[/]", soft_wrap=True)
    if not chain.proved:
        console.print("[bold red]NOT PROVED[/]")
    elif chain.development:
        console.print("[bold green]PROVED[/] up to the root that you gave: [yellow]a DEVELOPMENT root of trust[/]")
    else:
        console.print("[bold green]PROVED[/] up to the root that you gave")
