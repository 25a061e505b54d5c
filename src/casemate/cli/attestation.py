"""``casemate attestation``: verify attestation records, and show what is in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from casemate.attestation.verify import Measurement, Verdict

RECORD, SEALED, SIGNATURE = "se-checksums.txt", "se-checksums.txt.enc", "se-signature.bin"
_KEY_OPTIONS = (
    click.option("--key", type=click.Path(), help="The auditor's private key, for a record that is sealed."),
    click.option("--key-password-file", type=click.Path(), help="The password of that key, in a file."),
)


@click.group()
def attestation() -> None:
    """Verify attestation records."""


def with_key(function: Any) -> Any:
    """Add the options of an auditor's key to a command."""
    for option in reversed(_KEY_OPTIONS):
        function = option(function)
    return function


@attestation.command()
@click.option(
    "--record", required=True, type=click.Path(), help="The record, plain or sealed, or the directory of one."
)
@click.option("--signature", type=click.Path(), help="Its signature; found by itself beside a record in a directory.")
@click.option("--image", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The image that made it.")
@click.option(
    "--cert", type=click.Path(), help="The attestation certificate (or public key), where there is no --image."
)
@click.option(
    "--ca", "authorities", multiple=True, help="Issuers up to the root that you trust; with --image in its place."
)
@click.option(
    "--crl", "lists", multiple=True, help="Revocation list of an issuer, PEM or DER; in place of those of the image."
)
@click.option("--contract", type=click.Path(), help="The contract as it was delivered, sealed as it is.")
@click.option("--reference", type=click.Path(), help="Reference values, in place of those of --image.")
@click.option("--cidata", type=click.Path(), help="The whole cidata volume that the machine was started with.")
@click.option(
    "--measurement", type=click.Path(), help="An ultravisor's answer, which must be of this record's machine."
)
@click.option("--protection-key", type=click.Path(), help="The key that was made with the request of --measurement.")
@click.option(
    "--boot-image", type=click.Path(), help="The encrypted image that was measured, where there is no --image."
)
@with_key
@click.option("--html", type=click.Path(dir_okay=False), help="Write the result as one self-contained page.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--require-hardware", is_flag=True, help="Fail unless this is the record of a hardware TEE.")
def verify(
    record: str,
    signature: str | None,
    image: Path | None,
    cert: str | None,
    authorities: tuple[str, ...],
    lists: tuple[str, ...],
    contract: str | None,
    reference: str | None,
    cidata: str | None,
    measurement: str | None,
    protection_key: str | None,
    boot_image: str | None,
    key: str | None,
    key_password_file: str | None,
    html: str | None,
    as_json: bool,
    require_hardware: bool,
) -> int:
    """Verify a record: its signature, the chain of the signing key, and every line that there is something to compare with.

    \b
    casemate machine record my-app -o record
    casemate attestation verify --record record --image my-image --contract contract.yaml
    casemate attestation verify --record se-checksums.txt --signature se-signature.bin \\
        --cert attestation.crt --ca intermediate.crt --ca root.crt --crl intermediate.crl
    casemate attestation verify --record record --image my-image --measurement answer.bin --protection-key arpk

    Exit code: 0 everything that was asked for is proved, 1 something is not. What you give is what you ask for.
    """
    import datetime

    from casemate.attestation import verify as verifier
    from casemate.certificates.chain import LARGEST_BUNDLE, LARGEST_CRL
    from casemate.cidata import LARGEST as LARGEST_VOLUME
    from casemate.cli.ui import read_certificates, read_input, write_output
    from casemate.contract.document import LARGEST as LARGEST_CONTRACT

    if (image is None) == (cert is None):
        raise click.UsageError("give either --image, or --cert with --ca: whose record should it be?")
    record_bytes, signature_bytes, files = read_record(record, signature)
    trust = trust_of_image(image) if image is not None else Trust(read_input(cert or "", LARGEST_BUNDLE))
    if authorities:
        trust.untrusted, trust.issuers = trust.issuers, [read_certificates(name) for name in authorities]
    if lists:  # those of the image may be old
        trust.crls = [read_input(name, LARGEST_CRL) for name in lists]
    verdict = verifier.verify(
        record_bytes,
        signature_bytes,
        trust.certificate,
        time=datetime.datetime.now(datetime.UTC),
        issuers=trust.issuers,
        untrusted=trust.untrusted,
        crls=trust.crls,
        reference=read_input(reference, LARGEST_BUNDLE) if reference else trust.reference,
        contract=read_input(contract, LARGEST_CONTRACT) if contract else None,
        volume=read_input(cidata, LARGEST_VOLUME) if cidata else None,
        files=files,
        key=private_key(key, key_password_file),
        measurement=_measurement(measurement, protection_key, boot_image, image),
        require_hardware=require_hardware,
    )
    if html:
        from casemate.attestation.html import page

        write_output(html, page(verdict).encode())
    if as_json:
        click.echo(json.dumps(verdict.as_dict()))
    elif html != "-":
        show_verdict(verdict)
    return 0 if verdict.holds else 1


@attestation.command()
@click.option(
    "--record", required=True, type=click.Path(), help="The record, plain or sealed, or the directory of one."
)
@with_key
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(record: str, key: str | None, key_password_file: str | None, as_json: bool) -> None:
    """Show what a record says. Nothing is verified: anyone could have written it.

    \b
    casemate attestation show --record se-checksums.txt
    casemate attestation show --record se-checksums.txt.enc --key auditor.key
    """
    from rich.console import Console
    from rich.markup import escape

    from casemate.attestation import record as records
    from casemate.attestation.verify import MEANINGS, open_record

    data, _, _ = read_record(record, None, needs_signature=False)
    text, _ = open_record(data, private_key(key, key_password_file))
    parsed = records.parse(text)
    if as_json:
        fields = {"version": parsed.version, "facts": parsed.facts, "hashes": parsed.hashes, "unknown": parsed.unknown}
        click.echo(json.dumps({"verified": False, **fields}))
        return
    console = Console(highlight=False)
    console.print("[yellow]Not verified[/]: `casemate attestation verify` tells what of this is proved.")
    for name, value in {"version": parsed.version, **parsed.facts, **parsed.hashes}.items():
        meaning = f"  [dim]{MEANINGS[name]}[/]" if name in MEANINGS else ""
        console.print(f"[bold]{escape(name)}[/]{meaning}\n    {escape(value)}", soft_wrap=True)
    for line in parsed.unknown:
        console.print(f"[yellow]unknown line[/]  {escape(line)}", soft_wrap=True)


@dataclass(slots=True)
class Trust:
    """What a record is verified with."""

    certificate: bytes
    issuers: list[bytes] = field(default_factory=list)
    untrusted: list[bytes] = field(default_factory=list)
    crls: list[bytes] = field(default_factory=list)
    reference: bytes | None = None


def trust_of_image(image: Path) -> Trust:
    """Read what lies beside an image and says whose records are its."""
    from casemate.certificates.chain import LARGEST_BUNDLE, LARGEST_CRL
    from casemate.cli.ui import read_input

    certificate, intermediate, root, reference = (
        read_input(str(image / name), LARGEST_BUNDLE)
        for name in ("attestation.crt", "intermediate.crt", "root.crt", "reference-values.json")
    )
    listed = [image / name for name in ("crl.pem", "root.crl.pem")]
    crls = [read_input(str(path), LARGEST_CRL) for path in listed if path.exists()]
    return Trust(certificate, [intermediate, root], crls=crls, reference=reference)


def read_record(
    record: str, signature: str | None, *, needs_signature: bool = True
) -> tuple[bytes, bytes, dict[str, bytes]]:
    """Return record, signature, and the cidata files beside them; ``record`` may be the directory of all."""
    from casemate.attestation.verify import LARGEST_SIGNATURE
    from casemate.cidata import LARGEST
    from casemate.cli.ui import read_input
    from casemate.contract.token import LARGEST_TOKEN
    from casemate.errors import CasemateError

    files: dict[str, bytes] = {}
    directory = Path(record)
    if directory.is_dir():
        found = [directory / name for name in (RECORD, SEALED) if (directory / name).is_file()]
        if len(found) != 1:
            cure = "name the file that you mean" if found else f"a record is a {RECORD} or {SEALED}"
            raise CasemateError(f"holds {len(found)} records", cure, record, id="RECORD")
        record = str(found[0])
        signature = signature or str(directory / SIGNATURE)
        for name in ("meta-data", "vendor-data"):
            if (directory / "cidata" / name).is_file():
                files[name] = read_input(str(directory / "cidata" / name), LARGEST)
    data = read_input(record, LARGEST_TOKEN)
    if not needs_signature:
        return data, b"", files
    if signature is None:
        raise click.UsageError("give --signature, or the directory that holds both as --record")
    return data, read_input(signature, LARGEST_SIGNATURE), files


def _measurement(answer: str | None, key: str | None, boot_image: str | None, image: Path | None) -> Measurement | None:
    if answer is None:
        if key is not None or boot_image is not None:
            raise click.UsageError("--protection-key and --boot-image belong to --measurement")
        return None
    if key is None:
        raise click.UsageError("--measurement without --protection-key: it can't be verified")
    if boot_image is None and image is None:
        raise click.UsageError("--measurement needs the image that should run: --image or --boot-image")
    from casemate.attestation.verify import Measurement
    from casemate.cli.ui import read_header, read_input
    from casemate.secureexec.attestation import LARGEST_FILE

    header = read_header(boot_image or str((image or Path()) / "casemate.img"))
    return Measurement(read_input(answer, LARGEST_FILE), read_input(key, 64), header)


def private_key(path: str | None, password_file: str | None) -> RSAPrivateKey | None:
    """Read an auditor's key, where one is given."""
    if path is None:
        if password_file is not None:
            raise click.UsageError("--key-password-file without --key")
        return None
    from casemate.cli.ui import read_input
    from casemate.contract.keys import LARGEST_FILE, load_private_key

    password = None
    if password_file is not None:
        password = read_input(password_file, 4096).split(b"\n", 1)[0]
    return load_private_key(read_input(path, LARGEST_FILE), password)


def show_verdict(verdict: Verdict) -> None:
    """Print a verdict for people: the sentence, then every line with what was and what was not proved."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from casemate.attestation.verify import GROUPS, TITLES, Outcome

    signs = {
        **{Outcome.PROVED: ("✓", "green"), Outcome.REFUTED: ("✗", "bold red"), Outcome.NOT_PROVED: ("○", "yellow")},
        **{Outcome.MISSING: ("–", "dim"), Outcome.UNKNOWN: ("?", "yellow")},
    }
    console = Console(highlight=False)
    for group in (*GROUPS, "other"):
        rows = [row for row in verdict.rows if row.group == group]
        if not rows:
            continue
        console.print(f"\n[bold]{TITLES[group]}[/]")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True, min_width=28)
        table.add_column(overflow="fold")
        for row in rows:
            sign, style = signs[row.outcome]
            value = f"{row.value[:16]}…" if len(row.value) == 64 else row.value
            said = f"{escape(value)}  " if value and row.group != "trust" else ""
            about = f"{escape(row.meaning)}\n" if row.meaning else ""
            table.add_row(f"[{style}]{sign}[/] {escape(row.name)}", f"{about}{said}[{style}]{escape(row.why)}[/]")
        console.print(table)
    color = "red" if not verdict.holds else "yellow" if verdict.development else "green"
    open_rows = verdict.count(Outcome.NOT_PROVED)
    console.print()
    console.print(f"[bold {color}]{escape(verdict.summary())}[/]", soft_wrap=True)
    if verdict.development and not verdict.holds:
        console.print("[yellow]This is a record of a DEVELOPMENT TEE.[/]")
    console.print(
        f"✓ {verdict.count(Outcome.PROVED)} proved   ✗ {verdict.count(Outcome.REFUTED)} refuted   ○ {open_rows} not proved   "
        f"– {verdict.count(Outcome.MISSING)} missing   ? {verdict.count(Outcome.UNKNOWN)} unknown"
    )
