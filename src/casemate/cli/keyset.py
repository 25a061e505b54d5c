"""``casemate keyset``: the hosts that images are built for."""

from __future__ import annotations

import json
from pathlib import Path

import click

from casemate.cli.hostkeys import Documents, with_host_keys


@click.group()
def keyset() -> None:
    """Keep the hosts that images are built for, with what proves that their keys are theirs."""


@keyset.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--name", help="The keyset's name; the file's otherwise.")
@with_host_keys
@click.option("--replace", is_flag=True, help="Take the place of the keyset that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def create(
    file: Path,
    name: str | None,
    documents: Documents,
    replace: bool,
    as_json: bool,
) -> None:
    """Verify host key documents and keep them in FILE, together with issuers and revocation lists.

    \b
    casemate keyset create production.json --host-key HKD-1.crt --host-key HKD-2.crt \\
        --ca host-key-signing.crt --ca DigiCertCA.crt --crl signing.crl --crl DigiCertCA.crl
    casemate image build my-image --keyset production.json
    """
    import datetime

    from casemate.build import keyset as keysets
    from casemate.certificates.chain import LARGEST_BUNDLE, LARGEST_CRL
    from casemate.cli import hostkeys
    from casemate.cli.ui import read_input, write_output
    from casemate.secureexec import hostkey

    if file.exists() and not replace:
        raise keysets.KeysetError(
            "there is something already", "--replace takes its place", str(file), id="KEYSET-EXISTS"
        )
    # The rules about what goes with what, and the warnings, are those of every command that encrypts for hosts.
    hostkeys.load(documents)
    made = keysets.make(
        name or file.stem,
        [(Path(path).name, read_input(path, hostkey.LARGEST_DOCUMENT)) for path in documents.host_keys],
        [read_input(path, LARGEST_BUNDLE) for path in documents.authorities],
        [read_input(path, LARGEST_CRL) for path in documents.lists],
        time=datetime.datetime.now(datetime.UTC),
        signing=[read_input(path, LARGEST_BUNDLE) for path in documents.signing],
        verified=not documents.no_verify,
        revocation=not documents.no_revocation_check,
    )
    write_output(str(file), made.as_bytes())
    if as_json:
        click.echo(json.dumps({"path": str(file), "name": made.name, "hosts": [host for host, _ in made.hosts]}))
    else:
        click.echo(f"{file}: {len(made.hosts)} host{'s' if len(made.hosts) > 1 else ''}")


@keyset.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--crl", "lists", multiple=True, help="Newer revocation lists, in place of the file's.")
@click.option("--json", "as_json", is_flag=True, help="Print the hosts as JSON.")
def show(file: str, lists: tuple[str, ...], as_json: bool) -> int:
    """Verify the hosts of a keyset again, as of now.

    Exit code: 0 all of them hold, 1 one does not.

    \b
    casemate keyset show production.json
    """
    import datetime

    from casemate.build import keyset as keysets
    from casemate.certificates.chain import LARGEST_CRL
    from casemate.cli.ui import read_input

    found = keysets.parse(read_input(file, keysets.LARGEST))
    now = datetime.datetime.now(datetime.UTC)
    hosts = found.check(now, [read_input(path, LARGEST_CRL) for path in lists])
    holds = not any(host.problem for host in hosts)
    if as_json:
        rows = [
            {"name": one.name, "key": one.fingerprint, "valid_until": one.valid_until, "problem": one.problem}
            for one in hosts
        ]
        said = {"format": keysets.FORMAT, "name": found.name, "made": found.made, "verified": found.verified}
        click.echo(json.dumps({**said, "revocation": found.revocation, "holds": holds, "hosts": rows}))
        return 0 if holds else 1
    doubt = "" if found.proved else ": revocation NOT checked" if found.verified else ": documents were NOT verified"
    click.echo(f"{found.name}, made {found.made}{doubt}")
    for host in hosts:
        click.echo(f"  {'✗' if host.problem else '✓'} {host.name}  until {host.valid_until or 'ever: a bare key'}")
        click.echo(f"      key {host.fingerprint}" + (f"\n      {host.problem}" if host.problem else ""))
    return 0 if holds else 1
