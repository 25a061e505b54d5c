"""``casemate buildvm``: images built inside of a machine, by a key that nobody holds."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from casemate.build.buildvm import BuilderDirectory
    from casemate.build.job import Result

_BUILDER = click.argument("builder", type=click.Path(exists=True, path_type=Path, file_okay=False))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
_FILE = click.Path(exists=True, path_type=Path, dir_okay=False)
_CRLS = click.option(
    "--crl",
    "crls",
    multiple=True,
    type=_FILE,
    help="A newer revocation list of builder or root, where its own has ended.",
)


@click.group()
def buildvm() -> None:
    """Build images inside of a machine of this platform: reviewers approve a job, the machine does it and signs."""


@buildvm.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--reviewers", required=True, type=_FILE, help="Who approves its jobs, and how many must.")
@click.option("--name", default="buildvm", show_default=True, help="The builder's name; all generations have it.")
@click.option("--arch", type=click.Choice(["amd64", "s390x"]), default="amd64", show_default=True)
@click.option("--ca", type=click.Path(path_type=Path, file_okay=False), help="The development authority's directory.")
@click.option("--pipeline", type=_FILE, help="Public key (PEM, P-384) of who signs source bundles.")
@_JSON
def create(
    directory: Path, reviewers: Path, name: str, arch: str, ca: Path | None, pipeline: Path | None, as_json: bool
) -> None:
    """Make a development builder into DIRECTORY, for this user's software ultravisor.

    \b
    casemate buildvm create my-builder --reviewers reviewers.json

    Its keys are in the memory of this program for a moment. A builder whose keys nobody has seen comes of a ceremony, or of
    another builder (`casemate buildvm job builder`).
    """
    from casemate import approval
    from casemate.build import buildvm as builders
    from casemate.cli.ui import read_input, steps

    who = read_input(str(reviewers), approval.LARGEST)
    key = read_input(str(pipeline), 64 << 10) if pipeline else None
    with steps("Making the builder", quiet=as_json) as progress:
        made = builders.create(directory, who, name=name, arch=arch, ca=ca, pipeline=key, progress=progress)
    if as_json:
        click.echo(json.dumps({"path": str(directory), **made.describe()}))
    else:
        click.echo(f"{directory}: builder {name}, generation 1")
        click.echo(f"  next: casemate buildvm job image --builder {directory} -o job.json")


@buildvm.command()
@click.argument("mode", type=click.Choice(["image", "builder", "crl"]))
@click.option(
    "--builder", required=True, type=click.Path(exists=True, path_type=Path, file_okay=False), help="Whose job."
)
@click.option("--after", type=_FILE, help="The builder's job before this one; none for its first.")
@click.option("--arch", type=click.Choice(["amd64", "s390x"]), default="amd64", show_default=True)
@click.option("--host-key", "host_keys", multiple=True, type=_FILE, help="Document of a host that may open the image.")
@click.option("--keyset", type=_FILE, help="Hosts that may open it, as casemate keyset keeps them.")
@click.option("--revoke", multiple=True, metavar="SERIAL[:REASON]", help="For crl: a serial number, in hex.")
@click.option("--intermediate", type=_FILE, help="The root's answer for the builder's request, where it is new.")
@click.option("--root-list", type=_FILE, help="The root's newest revocation list, PEM.")
@click.option("--reviewers", type=_FILE, help="For builder: who approves jobs of the next generation.")
@click.option("--bundle", type=_FILE, help="Source bundle (its signature beside it): the root is built inside.")
@click.option("-o", "--output", required=True, type=click.Path(), help="The job, for reviewers to read and sign.")
@_JSON
def job(
    mode: str,
    builder: Path,
    after: Path | None,
    arch: str,
    host_keys: tuple[Path, ...],
    keyset: Path | None,
    revoke: tuple[str, ...],
    intermediate: Path | None,
    root_list: Path | None,
    reviewers: Path | None,
    bundle: Path | None,
    output: str,
    as_json: bool,
) -> None:
    """Write a job for a builder: an image, the next generation of the builder, or a revocation list.

    \b
    casemate buildvm job image --builder my-builder -o job.json
    casemate buildvm job crl --builder my-builder --after job.json --revoke 5af1:key-compromise -o list.json

    The parts of an image are built here (they are reproducible: each reviewer can do so too, and compare); the job names their
    hashes. Keys are made inside. Without --host-key and --keyset it is for this user's software ultravisor.
    """
    from casemate.build import buildvm as builders
    from casemate.build import job as jobs
    from casemate.cli.ui import read_input, steps, tell, write_output

    if mode == "crl" and (host_keys or keyset or reviewers):
        raise click.UsageError("a revocation list is for no host and has no reviewers")
    if bundle and mode == "crl":
        raise click.UsageError("a revocation list is not built")
    if (revoke and mode != "crl") or (reviewers and mode != "builder") or (host_keys and keyset):
        raise click.UsageError(
            "--revoke is for crl, --reviewers for builder; --host-key and --keyset exclude each other"
        )

    for one in revoke:  # int() takes more for a number
        if set(one.partition(":")[0]) - set(string.hexdigits):
            raise builders.BuildError(
                "a serial number is hexadecimal, digits only", "--revoke 5af1:key-compromise", one, id="BUILDVM-SERIAL"
            )

    def text(path: Path | None) -> bytes:
        return read_input(str(path), jobs.LARGEST) if path else b""

    with steps("Writing the job", quiet=as_json) as progress:
        made = builders.make_job(
            builders.BuilderDirectory(builder),
            mode,
            after=text(after),
            arch=arch,
            host_keys=[(path.name, text(path)) for path in host_keys],
            keyset=text(keyset),
            revoke=revoke,
            intermediate=text(intermediate),
            root_list=text(root_list),
            reviewers=text(reviewers),
            bundle=(bundle, text(bundle.with_name(f"{bundle.name}.sig"))) if bundle else None,
            progress=progress,
        )
    data = made.as_bytes()
    write_output(output, data)
    subject = jobs.subject(made.builder)
    if as_json:
        import hashlib

        said = {"path": output, "subject": subject, "sha256": hashlib.sha256(data).hexdigest()}
        tell(output, json.dumps(said))
    else:
        tell(output, f"{output}: {mode}, for {made.builder}, generation {made.generation}")
        tell(output, "  each reviewer reads it, then signs:")
        tell(
            output,
            f"  casemate approval sign {output} --reviewers {builder}/reviewers.json --subject {subject} "
            f"--revision N --as NAME --key URI -o {output}.approval",
        )


@buildvm.command()
@_BUILDER
@click.option("--job", "job_file", required=True, type=_FILE, help="The job.")
@click.option("--approval", "approval_file", required=True, type=_FILE, help="Its approval.")
@click.option(
    "--state", required=True, type=click.Path(path_type=Path), help="The builder's state disk; made if missing."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory for what comes out.")
@click.option("--bundle", type=_FILE, help="The source bundle, where the root is built inside.")
@click.option("--memory", default=2048, show_default=True, help="Memory of the machine, MiB.")
@click.option("--timeout", default=900.0, show_default=True, help="Seconds that the job may take.")
@_CRLS
@_JSON
def run(
    builder: Path,
    job_file: Path,
    approval_file: Path,
    state: Path,
    output: Path,
    bundle: Path | None,
    memory: int,
    timeout: float,
    crls: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Start BUILDER with an approved job; verify what it puts out, and unpack it.

    \b
    casemate buildvm run my-builder --job job.json --approval job.json.approval --state builder.state -o my-image

    The state disk is the builder's memory, sealed under a key of its image: keep it. Nothing is left of the machine. Where what
    came out does not verify, its disk is kept, for `casemate buildvm unpack`.
    """
    from casemate import approval
    from casemate.build import buildvm as builders
    from casemate.build import job as jobs
    from casemate.cli.ui import read_input, steps

    told, approved = read_input(str(job_file), jobs.LARGEST), read_input(str(approval_file), approval.LARGEST)
    known = _builder(builder, crls)
    builders.require_output(known, output, state)
    builders.require_valid(known, told)
    with steps("Building inside the machine", quiet=as_json) as progress:
        files, archive = builders.files_of(told, bundle, progress)
        result = builders.run(
            known,
            told,
            approved,
            files,
            state,
            output,
            archive=archive,
            memory_mib=memory,
            timeout=timeout,
            progress=progress,
        )
    _tell(result, output, as_json)


@buildvm.command()
@_BUILDER
@click.option("--result", "disk", required=True, type=_FILE, help="The result's disk, as run has kept it.")
@click.option("--job", "job_file", required=True, type=_FILE, help="The job.")
@click.option("--approval", "approval_file", required=True, type=_FILE, help="Its approval.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory for what came out.")
@click.option("--bundle", type=_FILE, help="The source bundle, where the root was built inside.")
@_CRLS
@_JSON
def unpack(
    builder: Path,
    disk: Path,
    job_file: Path,
    approval_file: Path,
    output: Path,
    bundle: Path | None,
    crls: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Verify and unpack what BUILDER put out, where `run` could not: a list had ended, say.

    \b
    casemate buildvm unpack my-builder --result builder.state.….result --job job.json --approval job.json.approval -o my-image
    """
    from casemate import approval
    from casemate.build import buildvm as builders
    from casemate.build import job as jobs
    from casemate.cli.ui import read_input, steps

    told, approved = read_input(str(job_file), jobs.LARGEST), read_input(str(approval_file), approval.LARGEST)
    known = _builder(builder, crls)
    builders.require_output(known, output)
    with steps("Verifying the result", quiet=as_json) as progress:
        _, archive = builders.files_of(told, bundle, progress)
        result = builders.unpack(disk, known, told, approved, output, archive=archive)
    _tell(result, output, as_json)


@buildvm.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--key", required=True, help="URI of the pipeline's key (P-384): file:PATH or pkcs11:…")
@click.option(
    "--number",
    type=click.IntRange(1, 2**63),
    help="Its number: a builder takes none that is older than one that it has built. The time in seconds otherwise.",
)
@_JSON
def bundle(file: Path, key: str, number: int | None, as_json: bool) -> None:
    """Pack this source into FILE, a Debian package, and sign it with its number as the build pipeline (FILE.sig).

    \b
    casemate buildvm bundle source.deb --key file:pipeline.key
    casemate buildvm job image --builder my-builder --bundle source.deb -o job.json
    """
    import time

    from casemate.build import buildvm as builders
    from casemate.build import signers
    from casemate.cli.ui import write_output

    number = number or int(time.time())
    with signers.find(key, Path.cwd()).open() as private:
        builders.source_bundle(file.absolute())
        signature = builders.sign_bundle(file, private, number)
    write_output(f"{file}.sig", signature)
    digest = builders.measure(file).sha256
    if as_json:
        click.echo(json.dumps({"path": str(file), "signature": f"{file}.sig", "sha256": digest, "number": number}))
    else:
        click.echo(f"{file}: {digest}, number {number}")


@buildvm.command()
@_BUILDER
@_JSON
def show(builder: Path, as_json: bool) -> None:
    """Show which builder is in BUILDER, and who approves its jobs.

    \b
    casemate buildvm show my-builder
    """
    from casemate import approval
    from casemate.build import buildvm as builders

    said = builders.BuilderDirectory(builder).describe()
    reviewers = approval.parse_reviewers((builder / "reviewers.json").read_bytes())
    if as_json:
        click.echo(json.dumps({**said, "threshold": reviewers.threshold, "reviewers": sorted(reviewers.keys)}))
        return
    click.echo(f"{builder}: builder {said['name']}, generation {said['generation']}")
    click.echo(f"  {reviewers.threshold} of {', '.join(sorted(reviewers.keys))} approve its jobs")


@buildvm.command()
@click.argument("directory", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option(
    "--builder", required=True, type=click.Path(exists=True, path_type=Path, file_okay=False), help="Who made it."
)
@_CRLS
@_JSON
def verify(directory: Path, builder: Path, crls: tuple[Path, ...], as_json: bool) -> None:
    """Verify that BUILDER made what is in DIRECTORY: its record, the result that it signed, every file.

    \b
    casemate buildvm verify my-image --builder my-builder
    """
    from casemate.build import buildvm as builders

    _tell(builders.trace(directory, _builder(builder, crls)), directory, as_json)


def _builder(builder: Path, crls: tuple[Path, ...]) -> BuilderDirectory:
    from casemate.build import buildvm as builders
    from casemate.certificates.chain import LARGEST_CRL
    from casemate.cli.ui import read_input

    return builders.BuilderDirectory(builder, tuple(read_input(str(path), LARGEST_CRL) for path in crls))


def _tell(result: Result, directory: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"path": str(directory), **json.loads(result.as_bytes())}))
        return
    click.echo(
        f"{directory}: {result.mode} by {result.builder}, generation {result.generation}, number {result.counter}"
    )
    click.echo(f"  job {result.job}")
    click.echo(f"  approved as revision {result.revision} by {', '.join(result.approved_by)}")
    click.echo(f"  record {result.record}, log of keys up to {result.head}")
