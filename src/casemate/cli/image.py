"""``casemate image``: build and show images."""

from __future__ import annotations

import json
from pathlib import Path

import click

from casemate.cli.hostkeys import Documents, host_key_options


@click.group()
def image() -> None:
    """Build images and show what is in them."""


@image.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--arch", type=click.Choice(["amd64", "s390x"]), default="amd64", show_default=True)
@host_key_options(required=False, ca="--host-ca")
@click.option(
    "--keyset",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Hosts that may open the image, as casemate keyset keeps them; they are verified again.",
)
@click.option("--ca", type=click.Path(path_type=Path, file_okay=False), help="The certificate authority's directory.")
@click.option("--pinned", is_flag=True, help="Fail where a package of the source's list can't be had any more.")
@click.option("--newest", is_flag=True, help="Take the newest packages of the archive, whatever the list says.")
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def build(
    directory: Path,
    arch: str,
    documents: Documents,
    keyset: Path | None,
    ca: Path | None,
    pinned: bool,
    newest: bool,
    as_json: bool,
) -> None:
    """Build an image into DIRECTORY, with fresh keys; the root file system comes from the cache where it is there.

    \b
    casemate image build my-image
    casemate image build my-image --arch s390x --host-key HKD-9175-02C25B8.crt \\
        --host-ca host-key-signing.crt --host-ca DigiCertCA.crt --host-ca DigiCertRoot.crt \\
        --crl signing.crl --crl DigiCertCA.crl

    Host key documents are verified as by `casemate se pack`; certificates above them are given with --host-ca.
    Packages are those of the source's list. Where Debian's archive has dropped one of them, the newest of all are taken and
    the difference is recorded, unless --pinned forbids it.
    """
    from casemate.cli import hostkeys
    from casemate.cli.ui import steps
    from casemate.image.build import build_image
    from casemate.image.snapshot import Policy

    if documents.needless:
        raise click.UsageError("there is no --host-key that could be verified with what was given, or not")
    if keyset and documents.host_keys:
        raise click.UsageError("--keyset and --host-key exclude each other: put the host into the keyset")
    if pinned and newest:
        raise click.UsageError("--pinned and --newest exclude each other")
    hosts = hostkeys.read(documents) if documents.host_keys else []
    policy = Policy.PINNED if pinned else Policy.NEWEST if newest else Policy.LISTED
    with steps("Building the image", quiet=as_json) as progress:
        built = build_image(
            directory,
            arch=arch,
            host_keys=hosts,
            verified=bool(hosts) and not (documents.no_verify or documents.no_revocation_check),
            keyset=keyset,
            ca=ca,
            policy=policy,
            progress=progress,
            say=lambda warning: click.echo(f"warning: {warning}", err=True),
        )
    described = built.describe()
    if as_json:
        click.echo(json.dumps({"path": str(directory), **described}))
    else:
        click.echo(f"{directory}: image {described['version']} for {arch}, kernel {described['kernel']}")
        click.echo(f"  seal contracts for {built.encryption_certificate}")


@image.command()
@click.argument("directory", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(directory: Path, as_json: bool) -> None:
    """Show what the image in DIRECTORY is: version, kernel, reference values, sizes.

    \b
    casemate image show my-image
    """
    from casemate.image.build import ImageDirectory

    built = ImageDirectory(directory)
    described = built.describe()
    reference = json.loads((directory / "reference-values.json").read_text())
    sizes = {path.name: path.stat().st_size for path in (built.image, built.archive)}
    if as_json:
        click.echo(json.dumps({**described, "reference_values": reference["values"], "sizes": sizes}))
        return
    for name in ("version", "arch", "kernel", "created", "command_line"):
        click.echo(f"{name.replace('_', ' '):<14} {described[name]}")
    click.echo(f"{'opens on':<14} {', '.join(described['hosts'])}")
    for name, size in sizes.items():
        click.echo(f"{name:<14} {size / 1e6:.0f} MB")
    click.echo("a record must say")
    for name, value in reference["values"].items():
        click.echo(f"  {value} {name}")


@image.command("verify-build")
@click.argument("directory", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option("-o", "--output", type=click.Path(), help="Write the rebuilt reference values to a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify_build(directory: Path, output: str | None, as_json: bool) -> int:
    """Rebuild the image in DIRECTORY from this source and its list of packages, and name everything that differs.

    \b
    casemate image verify-build my-image
    casemate image verify-build my-image -o rebuilt.json
    casemate attestation verify --record record --image my-image --reference rebuilt.json

    Exit code: 0 the rebuild gave just this, 1 something differs.
    """
    from casemate.cli.ui import steps, write_output
    from casemate.image import rebuild
    from casemate.image.build import ImageDirectory

    with steps("Rebuilding the image", quiet=as_json) as progress:
        compared = rebuild.verify_build(directory, progress=progress)
    if output is not None:
        described = ImageDirectory(directory).describe()
        write_output(output, rebuild.values_document(described["arch"], described["version"], compared.rebuilt))
    if as_json:
        click.echo(json.dumps(compared.as_dict()))
        return 0 if compared.same else 1
    for name, value in compared.rebuilt.items():
        click.echo(f"{'same ' if compared.published.get(name) == value else 'OTHER'}  {value} {name}")
    for line in (*compared.differences, *compared.files):
        click.echo(f"  {line!r}" if not line.isprintable() else f"  {line}")
    if compared.packages:
        click.echo(f"its packages are not those of this source's list ({len(compared.packages)} differences):")
        for line in compared.packages:
            click.echo(f"  {line}")
    click.echo("the same source and packages give this image" if compared.same else "this image is another")
    return 0 if compared.same else 1


@image.command()
@click.option("--arch", type=click.Choice(["amd64", "s390x"]), default="amd64", show_default=True)
@click.option("--packages", type=click.Path(), help="A list of packages, in place of the source's.")
@click.option("-o", "--output", type=click.Path(), help="A file; standard output otherwise.")
def values(arch: str, packages: str | None, output: str | None) -> None:
    """Compute reference values from this source alone: nothing that an image provider says goes into them.

    \b
    casemate image values --packages my-image/packages.txt -o values.json
    casemate attestation verify --record record --image my-image --reference values.json
    """
    import tempfile

    from casemate.cli.ui import read_input, steps, write_output
    from casemate.image import rebuild
    from casemate.image.build import VERSION
    from casemate.image.snapshot import LARGEST_LIST, parse_list
    from casemate.machine import home

    wanted = parse_list(read_input(packages, LARGEST_LIST)) if packages else None
    cache = home.directory() / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with steps("Building from source") as progress, tempfile.TemporaryDirectory(prefix="rebuild-", dir=cache) as work:
        computed, _, _ = rebuild.build_values(arch, cache, Path(work), wanted, progress)
    write_output(output, rebuild.values_document(arch, VERSION, computed))


@image.command("verify-provenance")
@click.argument("directory", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option("--ca", "authorities", multiple=True, help="The root that you trust, in place of the image's own.")
@click.option("--crl", "lists", multiple=True, help="Revocation list of an issuer, PEM or DER.")
@click.option("--json", "as_json", is_flag=True, help="Print the statement as JSON.")
def verify_provenance(directory: Path, authorities: tuple[str, ...], lists: tuple[str, ...], as_json: bool) -> None:
    """Verify the signed statement of what the image in DIRECTORY was made from, and that it speaks of these files.

    \b
    casemate image verify-provenance my-image --ca root.crt
    """
    import datetime

    from casemate.certificates.chain import LARGEST_BUNDLE, LARGEST_CRL
    from casemate.cli.ui import read_input
    from casemate.image import provenance, rebuild

    issuers = [read_input(name, LARGEST_BUNDLE) for name in authorities]
    issuers = issuers or [read_input(str(directory / "root.crt"), LARGEST_BUNDLE)]
    more = directory / "root.crl.pem"  # there where the root is the image provider's own
    lists = lists or (str(directory / "crl.pem"), *([str(more)] if more.exists() else []))
    statement, chain = provenance.verify(
        read_input(str(directory / provenance.NAME), provenance.LARGEST),
        read_input(str(directory / provenance.CERTIFICATE), LARGEST_BUNDLE),
        rebuild.digests(directory, provenance.SUBJECTS),
        time=datetime.datetime.now(datetime.UTC),
        issuers=issuers,
        untrusted=[read_input(str(directory / "intermediate.crt"), LARGEST_BUNDLE)],
        crls=[read_input(name, LARGEST_CRL) for name in lists],
    )
    if as_json:
        click.echo(json.dumps({"verified": True, "development": chain.development, "statement": statement}))
        return
    definition = statement["predicate"]["buildDefinition"]
    click.echo(f"{directory}: {len(statement['subject'])} files are what was signed by {chain.links[0].subject}")
    click.echo(f"  made from {provenance.dependency(statement, 'source')} source")
    click.echo(f"       and  {provenance.dependency(statement, 'packages.txt')} packages.txt")
    if not definition["externalParameters"].get("exact", False):
        click.echo("  its packages are not those of the source's list")
    if chain.development:
        click.echo("  DEVELOPMENT: the authority is one that anyone can make")


@image.command()
@click.option("--arch", type=click.Choice(["amd64", "s390x"]), default="amd64", show_default=True)
@click.option(
    "--root",
    type=click.Choice(["layer", "builder"]),
    default="layer",
    show_default=True,
    help="Whose list: of which root.",
)
@click.option("--update", is_flag=True, help="Write the list in the source anew.")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def snapshot(arch: str, root: str, update: bool, as_json: bool) -> None:
    """Compare the source's list of packages with Debian's archive as it is now.

    \b
    casemate image snapshot
    casemate image snapshot --update
    """
    from casemate.image import snapshot as snapshots
    from casemate.image.root import packages_of
    from casemate.machine import home

    before, _ = snapshots.listed(arch, root)
    now = snapshots.Archive(arch, home.directory() / "cache").newest(packages_of(arch, root))
    changes = snapshots.differences(before, now)
    if update:
        snapshots.list_path(arch, root).write_text(snapshots.format_list(now))
    if as_json:
        click.echo(json.dumps({"packages": len(now), "differences": list(changes), "updated": update}))
        return
    for line in changes:
        click.echo(line)
    click.echo(f"{len(now)} packages, {len(changes)} differences{'; the list is written anew' if update else ''}")
