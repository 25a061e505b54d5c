"""``casemate image``: build and show images."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def image() -> None:
    """Build images and show what is in them."""


@image.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--arch", type=click.Choice(["amd64", "s390x"]), default="amd64", show_default=True)
@click.option(
    "--host-key",
    "host_keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Host key document of a machine that may open the image; several are possible. "
    "Without any it is built for this user's software ultravisor.",
)
@click.option("--ca", type=click.Path(path_type=Path, file_okay=False), help="The certificate authority's directory.")
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def build(directory: Path, arch: str, host_keys: tuple[Path, ...], ca: Path | None, as_json: bool) -> None:
    """Build an image into DIRECTORY, with fresh keys; the root file system comes from the cache where it is there.

    \b
    casemate image build my-image
    casemate image build my-image --host-key HKD-9175-02C25B8.crt
    """
    from casemate.cli.ui import steps
    from casemate.image.build import build_image

    with steps("Building the image", quiet=as_json) as progress:
        built = build_image(directory, arch=arch, host_keys=host_keys, ca=ca, progress=progress)
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
