"""``casemate ceremony``: the people who together make the first BuildVM, and what an auditor learns of it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.attestation import private_key, read_record, trust_of_image, with_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from casemate.build.ceremonyhost import Visit
    from casemate.build.ceremonyplan import Plan
    from casemate.build.ceremonyreport import Report
    from casemate.build.ceremonysession import Evidence

_JSON = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
_FILE = click.Path(exists=True, path_type=Path, dir_okay=False)
_DIRECTORY = click.Path(exists=True, path_type=Path, file_okay=False)
_PLAN = click.option("--plan", "plan_file", required=True, type=_FILE, help="The plan that everybody has.")
_KEYSET = click.option(
    "--keyset", type=_FILE, help="Verified hosts (casemate keyset), which the plan's must be of; not for development."
)
_SECRET = click.option(
    "--secret",
    type=_FILE,
    help="What the image is packed with, for the people of the plan only; beside the plan otherwise.",
)
_IMAGE = click.option(
    "--image",
    type=_DIRECTORY,
    help="The BootstrapVM's image as you have packed it; it is packed now where you have none.",
)


@click.group()
def ceremony() -> None:
    """Make the first BuildVM together: each person does their own part, and a transcript shows it to anybody.

    \b
    casemate ceremony rehearse my-rehearsal        all parts on this machine, once, with a real BootstrapVM
    """


@ceremony.command()
@click.argument("file", type=_FILE)
@click.option("-o", "--output", required=True, type=click.Path(), help="The plan, for all to keep.")
@_JSON
def plan(file: Path, output: str, as_json: bool) -> None:
    """Write the plan of a ceremony from FILE (YAML), with the hashes of all that the BuildVM is made of.

    \b
    casemate ceremony plan ceremony.yaml -o plan.json

    \b
    FILE:
      name: spring
      organization: Example Bank
      minutes: 120                                 how long the machine is open, within the window
      begins: 2026-11-25T09:00:00Z                 when the window begins; left out: now
      window_minutes: 480                          how long the window is; left out: as minutes
      root: root.crt                               the certificate of the root's key
      keyset: hosts.json                           which machines may run the BootstrapVM (casemate keyset create);
                                                   for development: hosts: [HKD.crt], or none: the software ultravisor
      pipeline: pipeline.pub                       who signs source bundles; left out: the BuildVM takes ready parts only
      roles:
        reviewers:  {quorum: 2, people: {alice: alice.pub, bob: bob.pub}}
        hosts:      {quorum: 1, people: {heidi: heidi.pub}}
        custodians: {quorum: 2, people: {dave: dave.pub, erin: erin.pub}}
        root:       {quorum: 1, people: {rita: rita.pub}}
        auditor:    {quorum: 1, people: {oscar: oscar.pub}}
    """
    import datetime

    from casemate.build import ceremonyhost as host
    from casemate.build import forms, keyset, signers
    from casemate.build.ceremonyplan import LONGEST_MINUTES, LONGEST_WINDOW, CeremonyError, Role, time_of
    from casemate.cli.ui import read_input, require_file_name, steps, write_output
    from casemate.contract.document import parse

    require_file_name(output)
    if output == "-" or Path(output).suffix == ".secret":
        raise click.UsageError("--output: the secret stands beside the plan, and would have the same name")
    secret_file = Path(output).with_suffix(".secret")
    if secret_file.exists():
        raise CeremonyError(
            *("a plan's secret is there", "name another output, or take it away"),
            str(secret_file),
            id="CEREMONY-IN-THE-WAY",
        )
    said: Any = parse(read_input(str(file), 256 << 10))
    try:
        _require_known(said)
        roles = {name: Role(tuple(one["people"]), one["quorum"]) for name, one in said["roles"].items()}
        people = {
            who: read_input(str(file.parent / path), 64 << 10).decode("ascii")
            for one in said["roles"].values()
            for who, path in one["people"].items()
        }
        root = read_input(str(file.parent / said["root"]), 64 << 10)
        hosts = [(Path(one).name, read_input(str(file.parent / one), 64 << 10)) for one in said.get("hosts", [])]
        pipeline = read_input(str(file.parent / said["pipeline"]), 64 << 10) if "pipeline" in said else b""
        kept = keyset.parse(read_input(str(file.parent / said["keyset"]), 4 << 20)) if "keyset" in said else None
        name, organization, minutes = said["name"], said["organization"], said.get("minutes", 120)
        long = said.get("window_minutes", minutes)
        begins = time_of(said["begins"]) if "begins" in said else forms.moment()
        if not isinstance(name, str) or not isinstance(organization, str) or {type(minutes), type(long)} != {int}:
            raise TypeError
        if not 1 <= minutes <= LONGEST_MINUTES or not minutes <= long <= LONGEST_WINDOW:
            raise ValueError
        window = datetime.timedelta(minutes=long)
        if begins + window <= forms.moment():
            raise CeremonyError("the window is over", "let it begin later", id="CEREMONY-PLAN")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        raise CeremonyError(
            "the file has not what a plan needs", "casemate ceremony plan --help shows one", id="CEREMONY-PLAN"
        ) from None
    secret = secrets.token_bytes(host.SECRET)
    with steps("Making the parts", quiet=as_json) as progress:
        parts = host.ready_parts(progress=progress)
        hosts = kept.require(forms.moment()) if kept else hosts
        verified = kept is not None and kept.proved
        made = host.make_plan(
            *(name, organization, people, roles, root, parts),
            hosts=hosts,
            verified=verified,
            pipeline=pipeline,
            secret=secret,
            begins=begins,
            minutes=minutes,
            window=window,
        )
    signers.write_private(secret_file, secret)
    write_output(output, made.as_bytes())
    if as_json:
        click.echo(json.dumps({"output": output, "plan": made.digest, "ends": str(made.not_after)}))
    else:
        click.echo(f"{output}: plan {made.digest}, until {made.not_after:%Y-%m-%d %H:%M} UTC")
        click.echo(f"{secret_file}: for the people of the plan; not for whoever runs the machine")


@ceremony.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@_PLAN
@_SECRET
@_JSON
def pack(directory: Path, plan_file: Path, secret: Path | None, as_json: bool) -> None:
    """Pack the BootstrapVM's image of a plan into DIRECTORY. It has no key inside, and comes out the same for everybody.

    Everybody who takes part packs it themselves, of a source that they have read: so they know what answers them.

    \b
    casemate ceremony pack bootstrap --plan plan.json
    """
    import hashlib

    from casemate.build import ceremonyhost as host
    from casemate.cli.ui import steps

    made = _plan(plan_file)
    with steps("Packing the BootstrapVM", quiet=as_json) as progress:
        header = host.pack(made, host.ready_parts(made.arch, progress=progress), directory, _secret(plan_file, secret))
    digest = hashlib.sha256(header).hexdigest()
    if as_json:
        click.echo(json.dumps({"directory": str(directory), "plan": made.digest, "header": digest}))
    else:
        click.echo(f"{directory}: the image of plan {made.digest}\n  its header, for all the same: {digest}")


@ceremony.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@_PLAN
@click.option(
    "--port", default=8722, show_default=True, type=click.IntRange(1, 65535), help="Where it is reached, on loopback."
)
@click.option("--name", default="bootstrap", show_default=True, help="The machine's name.")
@_SECRET
def start(directory: Path, plan_file: Path, port: int, name: str, secret: Path | None) -> None:
    """Pack the BootstrapVM of a plan into DIRECTORY and start its machine under the software ultravisor.

    \b
    casemate ceremony start my-ceremony --plan plan.json --port 8722
    """
    from casemate.build import ceremonyhost as host
    from casemate.cli.ui import steps

    made = _plan(plan_file)
    with steps("Starting the BootstrapVM") as progress:
        parts = host.ready_parts(made.arch, progress=progress)
        visit, _ = host.opened(
            *(made, parts, directory / "bootstrap", _secret(plan_file, secret)), port, name, progress
        )
    click.echo(f"{visit.address} is open until {made.not_after:%H:%M} UTC, for everybody who has the plan")
    click.echo(f"  next: casemate ceremony join {visit.address} --plan {plan_file} --as NAME --key URI")


@ceremony.command()
@click.argument("address")
@_PLAN
@_IMAGE
@_SECRET
@_KEYSET
@_JSON
def status(
    address: str, plan_file: Path, image: Path | None, secret: Path | None, keyset: Path | None, as_json: bool
) -> int:
    """Show who has acted and what is missing, all of it verified. Exit code 1: something that was done does not hold.

    \b
    casemate ceremony status 127.0.0.1:8722 --plan plan.json
    """
    from casemate.build import ceremonyreport as reports

    visit = _visit(address, plan_file, image, secret, keyset, quiet=as_json)
    seen = visit.look()
    report = reports.verify(visit.plan, visit.answer, seen.as_bytes(), evidence=visit.evidence, asked=True)
    _show(report, as_json, checks=False)
    refuted = [
        one for one in report.checks if one.outcome.value == "refuted" and one.name in ("BootstrapVM", "transcript")
    ]
    for one in refuted if not as_json else ():
        click.echo(f"  {one.outcome.value:<10} {one.name}: {one.why}")
    return 1 if refuted else 0


@ceremony.command()
@click.argument("address")
@_PLAN
@_IMAGE
@_SECRET
@_KEYSET
@click.option("--as", "name", required=True, help="Who you are in the plan.")
@click.option("--key", required=True, help="Your key: file:… or pkcs11:…, as casemate ca takes them.")
@click.option("--next-key", help="For reviewers: the key that will approve builds; another than --key.")
@click.option("--host-key", "host_keys", multiple=True, type=_FILE, help="For hosts: documents of the BuildVM's hosts.")
@click.option("--secret-file", type=_FILE, help="For custodians: the secret, 16 to 1024 bytes.")
@click.option("--root", help="For the root: the root's key.")
@click.option(
    "--root-crl", type=_FILE, help="For the root: its newest revocation list (PEM); the ceremony's follows it."
)
@click.option("--no-earlier-list", is_flag=True, help="For the root: it has never made a revocation list.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="For the auditor: where all of it goes."
)
@click.option("-y", "--yes", is_flag=True, help="Sign without being asked.")
@_JSON
def join(
    address: str,
    plan_file: Path,
    image: Path | None,
    secret: Path | None,
    keyset: Path | None,
    name: str,
    key: str,
    next_key: str | None,
    host_keys: tuple[Path, ...],
    secret_file: Path | None,
    root: str | None,
    root_crl: Path | None,
    no_earlier_list: bool,
    output: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Do your part. What you sign is shown first; what answers must be the plan's BootstrapVM: its ultravisor is asked.

    \b
    casemate ceremony join 127.0.0.1:8722 --plan plan.json --image bootstrap --as alice \\
        --key file:alice.key --next-key pkcs11:token=alice;object=builds?…
    casemate ceremony join … --as oscar --key file:oscar.key -o my-ceremony
    """
    from casemate.build import ceremonyhost as host
    from casemate.build import ceremonyplan as plans
    from casemate.build import ceremonyreport as reports
    from casemate.build import ceremonysession as sessions
    from casemate.build import signers
    from casemate.cli.ui import read_input

    if root_crl and no_earlier_list:
        raise click.UsageError("--root-crl and --no-earlier-list exclude each other")
    earlier = read_input(str(root_crl), 16 << 20) if root_crl else b"" if no_earlier_list else None
    visit = _visit(address, plan_file, image, secret, keyset, quiet=as_json)
    before, role = visit.look(), visit.plan.role_of(name)
    needs = {
        plans.REVIEWERS: ("--next-key", next_key),
        plans.HOSTS: ("--host-key", host_keys),
        plans.CUSTODIANS: ("--secret-file", secret_file),
        plans.ROOT: ("--root", root),
        plans.AUDITOR: ("--output", output),
    }
    option, given = needs[role]
    if not given:
        raise click.UsageError(f"{name} is of the role {role}, which needs {option}")
    if role == plans.ROOT:
        host.earlier_list(visit.plan, earlier)
    action = plans.ACTIONS[role]
    if not yes:
        click.echo(f"Ceremony {visit.plan.name}, plan {visit.plan.digest}, {len(before.lines)} lines so far.", err=True)
        for host_name, host_key in sessions.host_keys(visit.plan).items():
            click.echo(f"It may run on {host_name}, key {host_key.fingerprint.hex()}.", err=True)
        click.echo(f"You are {name} ({role}). You sign: {reports.COVERS[action]}.", err=True)
        click.confirm("Sign?", abort=True, err=True)
    here, custody = Path.cwd(), host.custody_of(key)
    with signers.find(key, here).open() as private:
        if role == plans.REVIEWERS:
            with signers.find(str(next_key), here).open() as following:
                line = visit.approve(name, private, following, custody, host.custody_of(str(next_key)))
        elif role == plans.HOSTS:
            documents = [(path.name, read_input(str(path), 64 << 10)) for path in host_keys]
            line = visit.give_hosts(name, private, documents, custody)
        elif role == plans.CUSTODIANS:
            least, most = sessions.SHARE
            share = read_input(str(secret_file), most)
            if len(share) < least:
                raise plans.CeremonyError(
                    f"a secret has {least} to {most} bytes", "give more", str(secret_file), id="CEREMONY-CONTENT"
                )
            line = visit.contribute(name, private, share, custody)
        elif role == plans.ROOT:
            with signers.find(str(root), here).open() as above:
                line = visit.certify(name, private, above, custody, host.custody_of(str(root)), earlier)
        else:
            assert output is not None
            line = visit.witness(name, private, output / host.BUILT, custody)
            visit.save(output)  # should the machine be gone before its last line is seen
            visit.wait("end")
            visit.save(output)
            assert visit.archive is not None
            if not host.finish(output / host.BUILT, visit.archive, visit.plan):
                click.echo(
                    f"{output / host.BUILT}: its root archive is not here; casemate ceremony pack makes it", err=True
                )
    if as_json:
        click.echo(json.dumps({"line": line.n, "digest": line.digest, "action": action}))
    else:
        click.echo(f"line {line.n}, {line.digest}: {name} did {action}")


@ceremony.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--plan", "plan_file", type=_FILE, help="The plan, as you have it from elsewhere: else it is not proved.")
@click.option("--root", type=_FILE, help="The root's certificate, as you have it from elsewhere.")
@_KEYSET
@click.option("--head", default="", help="The head that the auditor wrote down: a line that was cut off shows.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page: who did what, which key is where."
)
@click.option("--bootstrap", type=_DIRECTORY, help="The BootstrapVM's image, as you have packed it of the plan.")
@click.option("--image", "images", multiple=True, type=_DIRECTORY, help="An image that this BuildVM built later.")
@click.option("--record", type=click.Path(exists=True), help="The record of a machine that started from --image.")
@click.option(
    "--crl",
    "crls",
    multiple=True,
    type=_FILE,
    help="A newer revocation list of BuildVM or root, where theirs have ended.",
)
@with_key
@_JSON
def verify(
    directory: Path,
    plan_file: Path | None,
    root: Path | None,
    keyset: Path | None,
    head: str,
    html: Path | None,
    bootstrap: Path | None,
    images: tuple[Path, ...],
    record: str | None,
    crls: tuple[Path, ...],
    key: str | None,
    key_password_file: str | None,
    as_json: bool,
) -> int:
    """Verify the transcript of a ceremony and the BuildVM that came of it; also what that built later, and a machine's record.

    Exit code: 0 everything holds, 1 something doesn't or was not proved.

    \b
    casemate ceremony verify my-ceremony --plan plan.json --root root.crt --html ceremony.html
    casemate ceremony verify my-ceremony --plan plan.json --root root.crt --image my-image --record record
    """
    from casemate.build import ceremonyhost as host
    from casemate.certificates.chain import LARGEST_CRL
    from casemate.cli.ui import read_input

    if record is not None and len(images) != 1:
        raise click.UsageError("--record is of a machine that started from one image: give it as --image")
    report = _report(directory, plan_file, root, head, bootstrap)
    host.check_hosts(report.plan, _kept(keyset))
    lists = tuple(read_input(str(path), LARGEST_CRL) for path in crls)
    for image in images:
        report = _with_image(report, directory, image, lists)
    if record is not None:
        report = _with_record(report, images[0], record, lists, private_key(key, key_password_file))
    if html is not None:
        from casemate.build.ceremonypage import page

        html.write_text(page(report), "utf-8")
    _show(report, as_json)
    return 0 if report.holds else 1


@ceremony.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--root", "root_uri", help="Key of the root, file:… or pkcs11:…; made for the rehearsal otherwise.")
@click.option("--keys", help="Where all keys are made that are not there, {} for whose: 'pkcs11:token=…;object={}?…'.")
@_JSON
def rehearse(directory: Path, root_uri: str | None, keys: str | None, as_json: bool) -> int:
    """Hold a ceremony with all its people on this machine: a real BootstrapVM, and at the end a BuildVM and a transcript.

    The keys of all personas are files of this program, so this proves how it goes, not that nobody saw a key; with --keys
    they are made in a token. The reviewers' next keys are kept beside (alice.key), or are in the token (alice-next): with
    them jobs of the BuildVM are approved.

    \b
    casemate ceremony rehearse my-rehearsal
    casemate ceremony rehearse my-rehearsal --keys 'pkcs11:token=people;object={}?module-path=…&pin-source=file:…'
    casemate buildvm job image --builder my-rehearsal/buildvm -o job.json
    """
    from casemate.build import rehearsal
    from casemate.cli.ui import steps

    with steps("Rehearsing", quiet=as_json) as progress:
        rehearsal.hold(directory, root_uri=root_uri, keys=keys, progress=progress)
    report = _report(directory, directory / "plan.json", directory / "root.crt", "")
    from casemate.build.ceremonypage import page

    (directory / "ceremony.html").write_text(page(report), "utf-8")
    _show(report, as_json)
    if not as_json:
        click.echo(f"{directory / 'ceremony.html'}: the same as a page")
        click.echo(f"  next: casemate buildvm job image --builder {directory / 'buildvm'} -o job.json")
    return 0 if report.holds else 1


_KEYS = {
    *("name", "organization", "minutes", "begins", "window_minutes", "root", "keyset", "hosts", "pipeline", "roles"),
}


def _require_known(said: dict[str, Any]) -> None:
    """Refuse keys that a file for a plan does not have, by name: a misspelt one would count for nothing."""
    from casemate.build.ceremonyplan import CeremonyError

    strange = sorted(str(name) for name in set(said) - _KEYS)
    for role, one in said["roles"].items():
        strange += sorted(f"roles.{role}.{name}" for name in set(one) - {"quorum", "people"})
    if strange:
        raise CeremonyError(
            f"the file says what no plan has: {', '.join(strange)}"[:300],
            "casemate ceremony plan --help shows one",
            id="CEREMONY-PLAN",
        )
    if not isinstance(said.get("hosts", []), list):
        raise CeremonyError("hosts is a list of files", "hosts: [HKD.crt]", id="CEREMONY-PLAN")


def _plan(path: Path) -> Plan:
    from casemate.build import ceremonyplan as plans
    from casemate.cli.ui import read_input

    return plans.parse_plan(read_input(str(path), plans.LARGEST_PLAN))


def _kept(keyset: Path | None) -> list[tuple[str, bytes]] | None:
    from casemate.build import forms
    from casemate.build import keyset as keysets
    from casemate.build.ceremonyplan import CeremonyError
    from casemate.cli.ui import read_input

    if keyset is None:
        return None
    kept = keysets.parse(read_input(str(keyset), 4 << 20))
    if not kept.proved:
        raise CeremonyError(
            "the keyset's hosts were not verified, or not with revocation lists",
            "casemate keyset create, without an option that leaves it out",
            id="CEREMONY-HOSTS",
        )
    return kept.require(forms.moment())


def _secret(plan_file: Path, secret: Path | None) -> bytes:
    from casemate.cli.ui import read_input

    return read_input(str(secret or plan_file.with_suffix(".secret")), 1024)


def _visit(
    address: str, plan_file: Path, image: Path | None, secret: Path | None, keyset: Path | None, *, quiet: bool
) -> Visit:
    from tempfile import TemporaryDirectory

    from casemate.build import ceremonyhost as host
    from casemate.cli.ui import steps
    from casemate.image.assemble import ARCHIVE

    plan = _plan(plan_file)
    host.check_hosts(plan, _kept(keyset))
    if image is not None:
        return host.Visit(address, plan, host.header_of(image), image / ARCHIVE)
    with steps("Packing the BootstrapVM", quiet=quiet) as progress, TemporaryDirectory() as work:
        parts = host.ready_parts(plan.arch, progress=progress)
        header = host.pack(plan, parts, Path(work, "bootstrap"), _secret(plan_file, secret))
    return host.Visit(address, plan, header, parts.archive)


def _report(
    directory: Path, plan_file: Path | None, root: Path | None, head: str, bootstrap: Path | None = None
) -> Report:
    from casemate.build import ceremony as rules
    from casemate.build import ceremonyhost as host
    from casemate.build import ceremonyreport as reports
    from casemate.build import ceremonysession as sessions
    from casemate.build.buildvm import measure
    from casemate.cli.ui import read_input

    built = directory / host.BUILT
    files = {
        path.name: measure(path)
        for path in (sorted(built.iterdir()) if built.is_dir() else ())
        if path.is_file()
        and path.name != "root.squashfs"  # by its hash in the plan, and in the image's reference values
    }
    return reports.verify(
        _plan(directory / host.PLAN),
        read_input(str(directory / host.SESSION), sessions.LARGEST_ANSWER),
        read_input(str(directory / host.TRANSCRIPT), rules.LARGEST_TRANSCRIPT),
        known=_plan(plan_file).digest if plan_file else None,
        evidence=_evidence(directory),
        header=host.header_of(bootstrap) if bootstrap else None,
        root=read_input(str(root), 64 << 10) if root else None,
        files=files,
        head=head,
    )


def _evidence(directory: Path) -> Evidence | None:
    from casemate.build import ceremonyhost as host
    from casemate.build import ceremonysession as sessions
    from casemate.cli.ui import read_input

    paths = [directory / name for name in (host.HEADER, host.MEASUREMENT, host.PROTECTION_KEY)]
    if not all(path.is_file() for path in paths):
        return None
    return sessions.Evidence(*(read_input(str(path), sessions.LARGEST_ANSWER) for path in paths))


def _with_image(report: Report, directory: Path, image: Path, lists: tuple[bytes, ...]) -> Report:
    from casemate.attestation.verify import Outcome
    from casemate.build import ceremonyhost as host
    from casemate.build import ceremonyreport as reports
    from casemate.build.buildvm import BuilderDirectory, trace
    from casemate.errors import CasemateError

    try:
        built = trace(image, BuilderDirectory(directory / host.BUILT, lists))
    except CasemateError as error:
        return report.with_more((reports.Check(f"image {image.name}", Outcome.REFUTED, f"{error.id}: {error.cause}"),))
    return reports.with_image(report, image.name, built)


def _with_record(
    report: Report, image: Path, record: str, lists: tuple[bytes, ...], key: RSAPrivateKey | None
) -> Report:
    import datetime

    from casemate.attestation import verify as verifier
    from casemate.build import ceremonyreport as reports
    from casemate.build.buildvm import newest

    data, signature, files = read_record(record, None)
    trust = trust_of_image(image)
    verdict = verifier.verify(
        *(data, signature, trust.certificate),
        time=datetime.datetime.now(datetime.UTC),
        issuers=[report.plan.root_certificate.encode()],
        untrusted=trust.issuers[:1],
        crls=newest(trust.crls, lists) or lists,
        reference=trust.reference,
        files=files,
        key=key,
    )
    return reports.with_record(report, image.name, verdict)


def _show(report: Report, as_json: bool, *, checks: bool = True) -> None:
    if as_json:
        click.echo(json.dumps(report.as_dict()))
        return
    for step in report.steps:
        click.echo(f"{step.n:>3}  {step.time}  {step.who:<12} {step.action}")
    for one in report.missing:
        click.echo(f"     missing: {one.count} of {one.role} ({', '.join(one.names)})")
    if not checks:
        return
    for check in (*report.checks, *report.more):
        click.echo(f"  {check.outcome.value:<10} {check.name}: {check.why}")
    for key in report.keys:
        click.echo(f"  {key.outcome.value:<10} key of {key.name}: made {key.made}; lives {key.lives}")
    click.echo(f"plan {report.plan.digest}")
    click.echo(report.summary())
