"""``casemate se attest``: ask a machine's ultravisor what it runs, and verify what it answers."""

from __future__ import annotations

import click

from casemate.cli.hostkeys import Documents, load, with_host_keys
from casemate.cli.ui import read_header, read_input, write_output

_FILE = click.Path(dir_okay=False)
_ASK = ("image-host-key", "attestation-host-key", "secret-store", "firmware")


@click.group()
def attest() -> None:
    """Attest a machine through its ultravisor: create a request, perform it, verify the answer."""


@attest.command()
@with_host_keys
@click.option("--ask", multiple=True, type=click.Choice(_ASK), help="What the answer should tell beyond; several.")
@click.option("--protection-key", "key", required=True, type=_FILE, help="Where the key that verifies goes: SECRET.")
@click.option("-o", "--output", required=True, type=_FILE, help="Where the request goes.")
def create(
    documents: Documents,
    ask: tuple[str, ...],
    key: str,
    output: str,
) -> None:
    """Make a request that only the named hosts can answer, and the key that verifies the answer.

    pvattest takes the request, and its answer is one for `verify`. Use a request once.

    \b
    casemate se attest create --host-key HKD.crt --ca host-key-signing.crt --ca DigiCertCA.crt \\
        --crl signing.crl --crl DigiCertCA.crl --ask firmware --protection-key arpk -o request.bin
    """
    from casemate.secureexec import attestation

    hosts = load(documents)
    flags = dict(zip(_ASK, attestation.ADDITIONAL, strict=True))
    request, protection_key = attestation.create(hosts, sum(flags[name] for name in set(ask)))
    write_output(key, protection_key, 0o600)
    write_output(output, attestation.pack_request(request))


@attest.command()
@click.argument("request", type=_FILE)
@click.option("--image", required=True, type=_FILE, help="The image that was started.")
@click.option("--key", required=True, type=_FILE, help="The software ultravisor's host key, PEM.")
@click.option("--cuid", help="Identifier of the started machine, 32 hex digits. Default: a random one.")
@click.option("--user-data", type=_FILE, help="Up to 256 bytes that are measured too.")
@click.option("--record", type=_FILE, help="Instead: the record of the machine, whose hash is measured.")
@click.option("-o", "--output", required=True, type=_FILE, help="Where the answer goes.")
def perform(
    request: str, image: str, key: str, cuid: str | None, user_data: str | None, record: str | None, output: str
) -> None:
    """Answer REQUEST as the SOFTWARE ultravisor: for development, and proof of nothing.

    Outside of any machine, for images without Casemate's layer. A running machine answers by itself: `casemate machine attest`.

    \b
    casemate se attest perform request.bin --image image.img --key host.key --record se-checksums.txt -o answer.bin
    """
    import secrets

    from casemate.attestation import machine
    from casemate.attestation import record as records
    from casemate.secureexec import attestation, hostkey
    from casemate.secureexec import header as headers

    if user_data and record:
        raise click.UsageError("give --user-data or --record")
    try:
        identifier = bytes.fromhex(cuid.removeprefix("0x")) if cuid else secrets.token_bytes(attestation.CUID)
    except ValueError:
        raise click.UsageError("--cuid is 32 hex digits") from None
    if len(identifier) != attestation.CUID:
        raise click.UsageError("--cuid is 32 hex digits")
    says = read_input(user_data, attestation.LARGEST_USER_DATA) if user_data else b""
    if record:
        says = machine.user_data(read_input(record, records.LARGEST))
    host = hostkey.load_private(read_input(key, hostkey.LARGEST_DOCUMENT))
    header = read_header(image)
    headers.open_secrets(header, host)  # an ultravisor measures only what it could open
    asked = attestation.unpack(read_input(request, attestation.LARGEST_FILE))
    configuration = attestation.Configuration(header, identifier, hostkey.HostKey(host.public_key()).fingerprint)
    answer = attestation.perform(asked.request, host, configuration, says)
    write_output(output, attestation.pack_answer(answer))
    click.echo("answered by the software ultravisor: DEVELOPMENT, no protection from the owner of the host", err=True)


@attest.command()
@click.argument("answer", type=_FILE)
@click.option("--protection-key", "key", required=True, type=_FILE, help="The key that was made with the request.")
@click.option("--image", required=True, type=_FILE, help="The image that should run, from whom you trust for it.")
@click.option("--record", type=_FILE, help="A record (its text, verified before) that must be this machine's.")
@click.option("--cuid", help="The identifier that the machine must have.")
@click.option("--image-host-key", help="SHA-256 of the host key that must have opened the image.")
@click.option("--json", "as_json", is_flag=True, help="Print what it says as JSON.")
def verify(
    answer: str,
    key: str,
    image: str,
    record: str | None,
    cuid: str | None,
    image_host_key: str | None,
    as_json: bool,
) -> None:
    """Verify ANSWER: a machine that the request was made for runs this image, now.

    With --record also: that machine is the one that signed this record. Verify the record by itself too
    (casemate attestation verify), with a reference value for the image.

    \b
    casemate se attest verify answer.bin --protection-key arpk --image image.img --record se-checksums.txt

    Exit code: 0 all of it holds, 1 something does not.
    """
    import json

    from casemate.attestation import machine
    from casemate.attestation import record as records
    from casemate.secureexec import attestation

    carried = attestation.unpack(read_input(answer, attestation.LARGEST_FILE))
    if not attestation.is_answered(carried):
        raise attestation.AttestationError("this is a request without an answer", where=answer)
    found = attestation.verify(carried, read_input(key, 64), read_header(image))
    for name, wanted, is_ in (("CUID", cuid, found.cuid), ("image host key", image_host_key, found.image_host_key)):
        if wanted is not None and wanted.lower().removeprefix("0x") != is_.hex():
            raise attestation.AttestationError(f"another {name} than was asked for, or none")
    if record:
        machine.require_same_machine(read_input(record, records.LARGEST), found)
    facts = {
        "tag": found.tag.hex(),
        "cuid": found.cuid.hex(),
        "user_data": found.user_data.hex(),
        "image_host_key": found.image_host_key.hex(),
        "attestation_host_key": found.attestation_host_key.hex(),
        "secret_store": found.secret_store.hex(),
        "firmware": found.firmware.hex(),
        "development": found.development,
        "record": bool(record),
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo("the measurement holds: a machine with a host key of the request runs this image")
    if record:
        click.echo("the record is that machine's")
    for name in list(facts)[:6]:
        if facts[name]:
            click.echo(f"  {name.replace('_', ' '):<21}{facts[name]}")
    if found.development:
        click.echo("  DEVELOPMENT: a software ultravisor measured, which protects from nobody who owns the host")
