"""``casemate ca``: the authority that certifies images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from casemate.build.authority import Authority, Plan

_DIRECTORY = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_ALGORITHM = click.option(
    "--algorithm", type=click.Choice(["rsa-4096", "rsa-3072", "p-384"]), default="rsa-4096", show_default=True
)
_ADOPT = click.option("--existing-keys", "adopt", is_flag=True, help="Take keys that are there already.")
_LISTS_AT = click.option(
    "--lists-at", default="", help="URL below which NAME.crl is published; stands in certificates."
)
_LIST_DAYS = click.option("--list-days", default=30, show_default=True, help="Days that a revocation list is good for.")


@click.group()
def ca() -> None:
    """Keep the authority that certifies images: a root, intermediates, revocation lists, a log of each use of a key.

    \b
    A key is named by a URI:
      file:PATH[?pin-source=file:PASSWORD]         PEM; a relative path is below the authority's directory
      pkcs11:token=T;object=O?module-path=LIBRARY.so&pin-source=file:PIN     a token (RFC 7512)
    """


def _authority(directory: Path) -> Authority:
    from casemate.build.authority import Authority

    authority = Authority(directory)
    authority.describe()
    return authority


def _say(as_json: bool, facts: dict[str, object], *lines: str) -> None:
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for line in lines:
            click.echo(line)


@ca.command()
@_DIRECTORY
@click.option("--name", required=True, help="Whose authority it is; stands in every certificate.")
@click.option("--root", default="file:root.key", show_default=True, help="URI of the root's key.")
@click.option(
    "--intermediate", default="file:intermediate.key", show_default=True, help="URI of the intermediate's key."
)
@_ALGORITHM
@_ADOPT
@_LISTS_AT
@_LIST_DAYS
@click.option("--development", is_flag=True, help="Mark every certificate as one of a development root of trust.")
@_JSON
def init(
    directory: Path,
    name: str,
    root: str,
    intermediate: str,
    algorithm: str,
    adopt: bool,
    lists_at: str,
    list_days: int,
    development: bool,
    as_json: bool,
) -> None:
    """Make a root and an intermediate under it. Keys are made where they stay.

    \b
    casemate ca init ca --name "Example Bank" --lists-at http://crl.example.com \\
      --root         "pkcs11:token=root;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/root.pin" \\
      --intermediate "pkcs11:token=sign;object=one?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/sign.pin"
    """
    from casemate.build.authority import Authority, Plan

    plan = Plan(name, root, intermediate, algorithm, lists_at, list_days, development, adopt)
    made = Authority.create(directory, plan)
    _made(made, as_json)


def _made(made: Authority, as_json: bool) -> None:
    entries = made.log()
    facts: dict[str, object] = {"path": str(made.directory), "log_head": entries[-1].digest}
    mark = ", DEVELOPMENT" if made.describe().development else ""
    _say(as_json, facts, f"{made.directory}: {made.describe().name}{mark}", f"  head of the log {entries[-1].digest}")


@ca.command()
@_DIRECTORY
@click.option("--name", required=True, help="Whose authority it is; stands in the request.")
@click.option(
    "--intermediate", default="file:intermediate.key", show_default=True, help="URI of the intermediate's key."
)
@_ALGORITHM
@_ADOPT
@_LISTS_AT
@_LIST_DAYS
@_JSON
def request(
    directory: Path,
    name: str,
    intermediate: str,
    algorithm: str,
    adopt: bool,
    lists_at: str,
    list_days: int,
    as_json: bool,
) -> None:
    """Make an intermediate's key, and the request (intermediate.csr) that a public authority answers.

    \b
    casemate ca request ca --name "Example Bank"
    casemate ca accept ca answer.crt --ca public-root.crt
    """
    from casemate.build.authority import Authority, Plan

    plan: Plan = Plan(name, "", intermediate, algorithm, lists_at=lists_at, list_days=list_days, adopt=adopt)
    made = Authority.request(directory, plan)
    path = directory / "intermediate.csr"
    _say(as_json, {"path": str(made.directory), "request": str(path)}, f"{path}: give it to the public authority")


@ca.command()
@_DIRECTORY
@click.argument("answer", type=click.Path())
@click.option("--ca", "authorities", multiple=True, required=True, help="Issuers up to the root, which you trust.")
@click.option("--crl", "lists", multiple=True, help="Revocation list of an issuer, PEM or DER.")
@_JSON
def accept(directory: Path, answer: str, authorities: tuple[str, ...], lists: tuple[str, ...], as_json: bool) -> None:
    """Take the certificate that a public authority answered with: the requested key, an authority, a chain that holds.

    \b
    casemate ca accept ca answer.crt --ca public-issuing.crt --ca public-root.crt
    """
    from casemate.certificates.chain import LARGEST_CRL
    from casemate.cli.ui import read_certificates, read_input

    name = _authority(directory).accept(
        read_certificates(answer),
        [read_certificates(path) for path in authorities],
        [read_input(path, LARGEST_CRL) for path in lists],
    )
    _say(as_json, {"issuer": name, "state": "current"}, f"{name} certifies images from now on")


@ca.command()
@_DIRECTORY
@click.argument("request", type=click.Path(dir_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(), help="The certificate, PEM.")
@_JSON
def certify(directory: Path, request: str, output: str, as_json: bool) -> None:
    """Answer the REQUEST of a builder machine (its intermediate.csr): the root certifies its key as an intermediate's.

    The builder's next job brings the answer. What it makes is proved under this authority's root; its lists are its own to sign.

    \b
    casemate ca certify ca next-builder/intermediate.csr -o next-builder.crt
    casemate buildvm job crl --builder next-builder --intermediate next-builder.crt -o first.json
    """
    from cryptography import x509

    from casemate.certificates.chain import LARGEST_CERTIFICATE
    from casemate.cli.ui import read_input, write_output

    answer = _authority(directory).certify_builder(read_input(request, LARGEST_CERTIFICATE))
    write_output(output, answer)
    made = x509.load_pem_x509_certificate(answer)
    subject, serial, until = made.subject.rfc4514_string(), f"{made.serial_number:x}", made.not_valid_after_utc
    facts: dict[str, object] = {"subject": subject, "serial": serial, "until": until.isoformat()}
    if output != "-" or as_json:
        _say(as_json, {"path": output, **facts}, f"{output}: {subject}", f"    until {until:%Y-%m-%d}  {serial}")


@ca.command()
@_DIRECTORY
@click.option("--signer", default="", help="URI of the new intermediate's key; a file of its own otherwise.")
@_ALGORITHM
@_ADOPT
@_JSON
def rotate(directory: Path, signer: str, algorithm: str, adopt: bool, as_json: bool) -> None:
    """Begin a new intermediate. New images are certified by it; those of the old one stay valid (they overlap).

    Where a public authority is the root, this writes the request.

    \b
    casemate ca rotate ca
    casemate ca rotate ca --signer "pkcs11:token=sign;object=two?module-path=LIBRARY.so&pin-source=file:/run/sign.pin"
    """
    authority = _authority(directory)
    name = authority.rotate(signer, algorithm, adopt=adopt)
    (state,) = (one.state for one in authority.describe().intermediates if one.name == name)
    waits = f"{directory / name}.csr: give it to the public authority, then casemate ca accept"
    _say(
        as_json,
        {"issuer": name, "state": state},
        waits if state == "requested" else f"{name} certifies images from now on",
    )


@ca.command()
@_DIRECTORY
@click.argument("certificates", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--reason",
    type=click.Choice(["unspecified", "key-compromise", "ca-compromise", "superseded", "cessation"]),
    default="unspecified",
    show_default=True,
)
@_JSON
def revoke(directory: Path, certificates: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Revoke CERTIFICATES, an image's or an intermediate's, and sign their issuers' lists.

    \b
    casemate ca revoke ca my-image/encryption.crt my-image/attestation.crt --reason key-compromise
    """
    from casemate.cli.ui import read_certificates

    authority = _authority(directory)
    rows = []
    for path, data in [(path, read_certificates(path)) for path in certificates]:
        issuer, new = authority.revoke_certificate(data, reason)
        listed = str(directory / f"{issuer}.crl.pem")
        rows.append({"certificate": path, "issuer": issuer, "new": new, "list": listed})
        if not as_json:
            click.echo(f"{path}: revoked by {issuer}{'' if new else ' already'}; publish {listed}")
    if as_json:
        click.echo(json.dumps(rows))


@ca.command()
@_DIRECTORY
@click.option("--issuer", "names", multiple=True, help="Whose list; all of them otherwise.")
@_JSON
def crl(directory: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Sign the revocation lists anew, before they are out of date.

    \b
    casemate ca crl ca
    """
    issued = _authority(directory).issue_lists(names)
    rows: list[dict[str, object]] = [
        {"issuer": name, "number": number, "list": str(directory / f"{name}.crl.pem")} for name, number in issued
    ]
    if as_json:
        click.echo(json.dumps(rows))
    for row in () if as_json else rows:
        click.echo(f"{row['list']}: number {row['number']}")


@ca.command("list")
@_DIRECTORY
@_JSON
def list_(directory: Path, as_json: bool) -> int:
    """Show issuers, lists and images' certificates: when they end, and what should be done soon.

    Exit code: 0 nothing is to be done, 1 there is a warning.

    \b
    casemate ca list ca
    """
    found = _authority(directory).status()
    if as_json:
        click.echo(json.dumps([one.as_dict() for one in found]))
    for one in () if as_json else found:
        what = f"{one.kind} {one.name}" if one.kind != "image" else f"image under {one.name}"
        facts = (f"until {one.until:%Y-%m-%d}", one.state, one.serial, *one.warnings)
        click.echo(f"{'!' if one.warnings else ' '} {what}: {one.subject}")
        click.echo("    " + "  ".join(filter(None, facts)))
    return 1 if any(one.warnings for one in found) else 0


@ca.command()
@_DIRECTORY
@click.option("--head", default="", help="Digest of a line that you know to be in it (hex).")
@_JSON
def log(directory: Path, head: str, as_json: bool) -> None:
    """Verify and show the log: each use of a key.

    \b
    casemate ca log ca --head 1f0c…
    """
    from dataclasses import asdict

    entries = _authority(directory).log(head)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries]))
        return
    for entry in entries:
        facts = "  ".join(
            f"{name}={value}" for name, value in sorted(entry.facts.items()) if name not in ("key", "sha256")
        )
        click.echo(f"{entry.n:5} {entry.time} {entry.action:<11} {facts}")
    if entries:
        click.echo(f"head {entries[-1].digest}")


@ca.command()
@_DIRECTORY
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
@_JSON
def publish(directory: Path, target: Path, as_json: bool) -> None:
    """Write certificates and lists to TARGET, for any web server; nothing else of the authority is in it.

    \b
    casemate ca publish ca /srv/crl
    """
    from casemate.cli.ui import write_output

    published = _authority(directory).published()
    target.mkdir(parents=True, exist_ok=True)
    for name, data in published.items():
        write_output(str(target / name), data)
        if not as_json:
            click.echo(target / name)
    if as_json:
        click.echo(json.dumps({"path": str(target), "files": sorted(published)}))


@ca.command()
@_DIRECTORY
@click.option("--port", default=0, help="Port on loopback; any free one otherwise.")
def serve(directory: Path, port: int) -> None:
    """Serve certificates and lists by HTTP on 127.0.0.1 until Ctrl-C: for tests, or behind a web server.

    \b
    casemate ca serve ca --port 8080
    """
    from casemate.build.publish import server

    authority = _authority(directory)
    with server(authority, port) as running:
        click.echo(f"http://127.0.0.1:{running.server_address[1]}/")
        running.serve_forever()
