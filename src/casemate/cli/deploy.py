"""``casemate deploy``: machines through libvirt, from one file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from casemate.deploy.model import Deployment
    from casemate.deploy.plan import Change, Plan, Step
    from casemate.machine.machines import Machine

_FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_YES = click.option("--yes", is_flag=True, help="Agree to stop running machines, and to remove machines.")
_PATIENCE = click.option(
    "--patience", type=click.IntRange(0), default=60, show_default=True, help="Seconds until a stop is a power cut."
)


@click.group()
def deploy() -> None:
    """Define, start and change machines through libvirt, on IBM Z or here, as one file says."""


@deploy.command()
@click.argument("file", type=click.Path(dir_okay=False))
def init(file: str) -> None:
    """Write a commented deployment FILE to start from. An existing one is kept.

    \b
    casemate deploy init deployment.yaml
    """
    from casemate.cli.ui import write_output
    from casemate.errors import CasemateError

    if Path(file).exists():
        raise CasemateError("is there already", "name another", file, id="CLI-FILE")
    write_output(file, Path(__file__).with_name("starter").joinpath("deployment.yaml").read_bytes())
    click.echo(file)


@deploy.command()
def schema() -> None:
    """Print the JSON Schema of deployment files, for editors.

    \b
    casemate deploy schema > deployment.schema.json
    """
    from casemate.deploy.model import schema as load

    click.echo(json.dumps(load(), indent=1))


@deploy.command()
@_FILE
@click.option(
    "--detailed-exitcode", is_flag=True, help="End with 2 where something would change, 0 where nothing would."
)
@_JSON
def plan(file: Path, detailed_exitcode: bool, as_json: bool) -> int:
    """Tell what `apply` would change, and what others changed since. Changes nothing.

    \b
    casemate deploy plan deployment.yaml
    casemate deploy plan deployment.yaml --detailed-exitcode
    """
    from casemate.deploy.apply import look_and_plan
    from casemate.deploy.libvirt import Virsh
    from casemate.deploy.model import load

    deployment = load(file)
    made = look_and_plan(deployment, Virsh(deployment.connection))
    _print(made, as_json, "would be done")
    return 2 if detailed_exitcode and made.steps else 0


@deploy.command()
@_FILE
@_YES
@_PATIENCE
@_JSON
def apply(file: Path, yes: bool, patience: int, as_json: bool) -> None:
    """Make it as FILE says. Done twice, the second time changes nothing; interrupted, the same command goes on.

    What stops a running machine or removes one is done only with `--yes`, or after a question on a terminal. Data volumes
    are never removed and never made smaller. What was done is kept in FILE.state.json.

    \b
    casemate deploy apply deployment.yaml
    casemate deploy apply deployment.yaml --yes
    """
    from casemate.deploy.model import load

    _apply(load(file), yes, patience, as_json)


@deploy.command()
@_FILE
@_YES
@_PATIENCE
@_JSON
def destroy(file: Path, yes: bool, patience: int, as_json: bool) -> None:
    """Stop and remove the machines that FILE's deployment made. Data volumes stay, and are named.

    \b
    casemate deploy destroy deployment.yaml --yes
    """
    from casemate.deploy.model import load

    _apply(load(file, machines=False), yes, patience, as_json)


@deploy.command()
@_FILE
@click.option("--xml", "name", metavar="MACHINE", help="Print this machine's domain XML and nothing else.")
@_JSON
def show(file: Path, name: str | None, as_json: bool) -> None:
    """Show the machines of FILE, and what libvirt says of them.

    \b
    casemate deploy show deployment.yaml
    casemate deploy show deployment.yaml --xml db
    """
    from casemate.deploy import domain, state
    from casemate.deploy.libvirt import Virsh
    from casemate.deploy.model import load
    from casemate.errors import CasemateError
    from casemate.machine.qemu import kvm_works

    deployment = load(file)
    known = state.load(state.place(deployment.path))
    if name is not None:
        if name not in deployment.machines:
            raise CasemateError("the file has no such machine", "", name, id="DEPLOY-FILE")
        machine = deployment.machines[name]
        click.echo(domain.domain(machine, deployment, known.id if known else "", kvm=kvm_works()), nl=False)
        return
    libvirt = Virsh(deployment.connection)
    names = libvirt.names()
    rows: list[dict[str, Any]] = []
    for each, machine in deployment.machines.items():
        unique = domain.identity(known.id, each) if known else ""
        found = libvirt.domain(unique) if unique and names.get(each) == unique else None
        rows.append(
            {
                **{"name": each, "uuid": unique or None, "tee": machine.tee, "arch": machine.arch},
                "state": "absent" if found is None else "running" if found.running else "stopped",
                "autostart": None if found is None else found.autostart,
                "directory": str(deployment.files(each)),
                "volumes": [volume.place() for volume in machine.volumes],
            }
        )
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        protection = "" if row["tee"] == "s390-pv" else "  DEVELOPMENT TEE: no protection from whoever owns this host"
        click.echo(f"{row['name']}  {row['state']}  {row['arch']}  {row['tee']}{protection}")
        for place in row["volumes"]:
            click.echo(f"  {place}")


@deploy.command()
@_FILE
@click.argument("name", metavar="MACHINE")
def logs(file: Path, name: str) -> None:
    """Show the console of MACHINE. The logs themselves go to the backend that the contract names.

    \b
    casemate deploy logs deployment.yaml db
    """
    text = _made(file, name).console()
    click.echo(text, nl=bool(text))


@deploy.command()
@_FILE
@click.argument("name", metavar="MACHINE")
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory for its files."
)
@_JSON
def record(file: Path, name: str, output: Path, as_json: bool) -> None:
    """Write the attestation record of MACHINE into a directory. It is verified by `casemate attestation verify`.

    \b
    casemate deploy record deployment.yaml db -o record
    """
    from casemate.cli.machine import write_record

    write_record(_made(file, name), output, as_json)


def _made(file: Path, name: str) -> Machine:
    """Return what reads console and record of a machine of a deployment: they lie where those of others do."""
    from casemate.deploy.model import load
    from casemate.errors import CasemateError
    from casemate.machine.machines import Machine

    deployment = load(file)
    if name not in deployment.machines:
        raise CasemateError("the file has no such machine", "", name, id="DEPLOY-FILE")
    return Machine(name, deployment.files(name))


def _apply(deployment: Deployment, yes: bool, patience: int, as_json: bool) -> None:
    from casemate.cli.ui import steps
    from casemate.deploy.apply import apply, look_and_plan
    from casemate.deploy.libvirt import Virsh

    libvirt = Virsh(deployment.connection)
    if not yes and not as_json and sys.stdin.isatty():
        made = look_and_plan(deployment, libvirt)
        if made.disruptive:
            _print(made, False, "would be done")
            yes = click.confirm("Machines are stopped or removed. Go on?")
    with steps(f"Applying {deployment.path.name}", quiet=as_json) as progress:
        done = apply(deployment, libvirt, agreed=yes, patience=float(patience), progress=progress)
    _print(done, as_json, "done")


def _print(made: Plan, as_json: bool, verb: str) -> None:
    if as_json:
        steps = [
            {
                **{"machine": step.machine, "act": step.act, "target": step.target, "disruptive": step.disruptive},
                "changes": [_change(change) for change in step.changes],
            }
            for step in made.steps
        ]
        drift = {name: [_change(change) for change in changes] for name, changes in made.drift.items()}
        click.echo(json.dumps({"changes": bool(steps), "steps": steps, "drift": drift, "kept": list(made.kept)}))
        return
    for name, changes in made.drift.items():
        click.echo(f"{name}: changed since by others")
        _print_changes(changes)
    for step in made.steps:
        _print_step(step)
    for place in made.kept:
        click.echo(f"  {place} stays as it is")
    number = len(made.steps)
    click.echo(f"{number} step{'s' if number != 1 else ''} {verb}" if number else "nothing differs")


def _print_step(step: Step) -> None:
    from casemate.deploy.apply import sentence

    click.echo(f"{'!' if step.disruptive else '+'} {sentence(step)}")
    if step.act != "define" or any(change.old for change in step.changes):  # all of a new domain would be no news
        _print_changes(step.changes)


def _print_changes(changes: tuple[Change, ...]) -> None:
    for change in changes:
        click.echo(f"    {change.what}: {change.old or 'none'} -> {change.new or 'none'}")


def _change(change: Change) -> dict[str, str]:
    return {"what": change.what, "old": change.old, "new": change.new}
