"""``casemate machine``: start, watch and stop machines."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from casemate.machine.machines import Machine

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMGT]?)(?:i?B)?", text.strip().upper().replace("IB", "B"))
    if not match or not int(match[1]):
        raise click.BadParameter(f"{text!r} is no size; write 512M, 10G or a number of bytes")
    return int(match[1]) * _UNITS[match[2]]


def _data(text: str) -> tuple[Path, int | None]:
    path, colon, size = text.rpartition(":")
    return (Path(path), _size(size)) if colon and re.match("[0-9]", size) else (Path(text), None)


def _port(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", text)
    if not match or not all(0 < int(part) < 65536 for part in match.groups()):
        raise click.BadParameter(f"{text!r} is not HOST:GUEST, two ports from 1 to 65535")
    return int(match[1]), int(match[2])


def _names(ctx: Any, param: Any, incomplete: str) -> list[str]:
    from casemate.machine.machines import all_machines

    return [each.name for each in all_machines() if each.name.startswith(incomplete)]


_NAME = click.argument("name", shell_complete=_names)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def machine() -> None:
    """Start, watch and stop machines under the software ultravisor: for development, without protection."""


@machine.command()
@click.option(
    "--image", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="An image directory."
)
@click.option("--contract", required=True, type=click.Path(dir_okay=False), help="The assembled contract.")
@click.option("--name", help="The machine's name and host name. Default: that of the contract's directory or file.")
@click.option(
    "--data", multiple=True, type=_data, metavar="FILE[:SIZE]", help="A data disk; made, empty, where it is missing."
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=_port,
    metavar="HOST:GUEST",
    help="Forward a port of 127.0.0.1 to one of the guest.",
)
@click.option(
    "--network-config",
    type=click.Path(dir_okay=False),
    help="Addresses, routes and name servers: netplan version 2. Default: DHCP.",
)
@click.option(
    "--memory", type=_size, metavar="SIZE", default="2G", show_default=True, help="The guest's memory; 1G is the least."
)
@click.option("--cpus", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option(
    "--root-size", type=_size, metavar="SIZE", default="8G", show_default=True, help="The root disk, made anew; sparse."
)
@click.option(
    "--timeout",
    type=click.IntRange(1),
    help="Seconds that a start may take. Default: 300; 600 where IBM Z is emulated.",
)
@_JSON
def up(
    image: Path,
    contract: str,
    name: str | None,
    data: tuple[tuple[Path, int | None], ...],
    ports: tuple[tuple[int, int], ...],
    network_config: str | None,
    memory: int,
    cpus: int,
    root_size: int,
    timeout: int | None,
    as_json: bool,
) -> None:
    """Start a machine, and wait until its services have succeeded.

    \b
    casemate machine up --image my-image --contract contract.yaml --name db \\
        --data db.img:10G --port 15432:5432

    Where the guest refuses, the command ends with 1 and shows what the machine said last; its console stays readable
    with `casemate machine logs`. Ctrl-C ends the start and leaves no machine.
    """
    from casemate.cli.ui import read_input, steps
    from casemate.contract.network import LARGEST, networkd_files
    from casemate.machine import machines

    content = read_input(contract, 16 << 20)
    network = None if network_config is None else read_input(network_config, LARGEST)
    if network is not None:
        networkd_files(network)  # what the machine would refuse is said at once
    chosen = name or _default_name(contract)
    specification = machines.Specification(
        name=chosen,
        image=image,
        contract=content,
        data=[machines.Data(path, size) for path, size in data],
        ports=[machines.Port(*pair) for pair in ports],
        memory_mib=memory >> 20,
        cpus=cpus,
        root_size=root_size,
        network_config=network,
    )
    with steps(f"Starting {chosen}", quiet=as_json) as progress:
        started = machines.up(specification, progress=progress, timeout=timeout)
    if as_json:
        click.echo(json.dumps(_facts(started)))
        return
    click.echo(f"{chosen} runs. DEVELOPMENT TEE: no protection from whoever owns this host.")
    for outside, inside in ports:
        click.echo(f"  127.0.0.1:{outside} leads to port {inside} of the guest")


def _default_name(contract: str) -> str:
    path = Path(contract).absolute()
    stem = path.stem if path.stem not in ("contract", "user-data") else path.parent.name
    return re.sub("[^a-z0-9]+", "-", stem.lower()).strip("-")[:32].strip("-") or "machine"


def _facts(each: Machine) -> dict[str, Any]:
    said = each.described()
    kept = ("image", "arch", "acceleration", "memory_mib", "cpus", "ports", "data", "created")
    state = each.state
    facts = {"name": each.name, "state": state, **{name: said.get(name) for name in kept}}
    return {**facts, "reason": each.reason if state == "stopped" else "", "directory": str(each.directory)}


@machine.command("list")
@_JSON
def list_(as_json: bool) -> None:
    """List all machines, running or stopped, and why they stopped.

    \b
    casemate machine list
    casemate machine list --json | jq '.[] | select(.state == "running") | .name'
    """
    from casemate.machine.machines import all_machines

    found = [_facts(each) for each in all_machines()]
    if as_json:
        click.echo(json.dumps(found))
        return
    if not found:
        click.echo("no machines; `casemate machine up` starts one")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "state", "since", "ports", ""):
        table.add_column(title, overflow="fold")
    colors = {"running": "green", "starting": "yellow", "stopped": "red"}
    for facts in found:
        ports = ", ".join(f"{outside}→{inside}" for outside, inside in facts["ports"] or [])
        state = f"[{colors[facts['state']]}]{facts['state']}[/]"
        table.add_row(facts["name"], state, _since(facts["created"]), ports, escape(facts["reason"]))
    Console(highlight=False).print(table)


def _since(created: int | None) -> str:
    if not created:
        return ""
    minutes = int(time.time() - created) // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} d"


@machine.command()
@_NAME
@click.option("-f", "--follow", is_flag=True, help="Go on until the machine stops.")
def logs(name: str, follow: bool) -> None:
    """Show the console of the machine NAME. The logs themselves go to the backend that the contract names.

    \b
    casemate machine logs db
    casemate machine logs db -f
    """
    from casemate.machine.machines import get

    each = get(name)
    shown = 0
    while True:
        running = each.running
        console = each.console()
        complete = console if not (follow and running) else console[: console.rfind("\n") + 1]
        sys.stdout.write(complete[shown:])
        sys.stdout.flush()
        shown = max(shown, len(complete))
        if not follow or not running:
            break
        time.sleep(0.2)
    if shown and not console.endswith("\n"):
        click.echo()


@machine.command()
@_NAME
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory for its files."
)
@_JSON
def record(name: str, output: Path, as_json: bool) -> None:
    """Write the attestation record of the machine NAME into a directory. It is verified by `casemate attestation verify`.

    \b
    casemate machine record db -o record
    casemate attestation verify --record record --image my-image --contract contract.yaml
    """
    from casemate.machine.machines import get

    write_record(get(name), output, as_json)


def write_record(each: Machine, output: Path, as_json: bool) -> None:
    """Write the record that a machine offered, and tell of it."""
    from casemate.cli.ui import write_output
    from casemate.errors import CasemateError

    files = each.record()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CasemateError(f"can't be made: {error.strerror}", "name another", str(output), id="CLI-FILE") from None
    for stale in ("se-checksums.txt", "se-checksums.txt.enc"):
        if stale not in files:
            (output / stale).unlink(missing_ok=True)
    for file, content in files.items():
        write_output(str(output / file), content)
    if as_json:
        click.echo(json.dumps({"path": str(output), "files": sorted(files)}))
    else:
        click.echo(f"{output}: {', '.join(sorted(files))}")


@machine.command()
@_NAME
@click.argument("request", type=click.Path(dir_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="Where the answer goes.")
def attest(name: str, request: str, output: str) -> None:
    """Have the machine NAME answer REQUEST by its ultravisor; the hash of its record is measured with it.

    Under the software ultravisor that is for development, and proof of nothing.

    \b
    casemate se attest create --host-key host.crt --no-verify --ask firmware --protection-key arpk -o request.bin
    casemate machine attest db request.bin -o answer.bin
    casemate attestation verify --record record --image my-image --measurement answer.bin --protection-key arpk
    """
    from casemate.cli.ui import read_input, tell, write_output
    from casemate.machine.machines import get
    from casemate.secureexec.attestation import LARGEST_FILE

    write_output(output, get(name).attest(read_input(request, LARGEST_FILE)))
    tell(
        output, f"{output}: answered by the software ultravisor: DEVELOPMENT, no protection from the owner of the host"
    )


@machine.command()
@click.argument("names", nargs=-1, shell_complete=_names)
@click.option("--all", "every", is_flag=True, help="All machines.")
@click.option("--keep", is_flag=True, help="Only stop: console and record stay readable.")
@click.option("--force", is_flag=True, help="At once, as by a power cut.")
def down(names: tuple[str, ...], every: bool, keep: bool, force: bool) -> None:
    """Stop the machines NAMES and remove them. Data disks stay.

    \b
    casemate machine down db
    casemate machine down --all
    """
    from casemate.cli.ui import steps
    from casemate.machine.machines import all_machines, get

    if bool(names) == every:
        raise click.UsageError("name machines, or give --all")
    chosen = list(all_machines()) if every else [get(name) for name in names]
    for each in chosen:
        with steps(f"Stopping {each.name}") as progress:
            progress("power off")
            each.stop(0.0 if force else 60.0)
            if not keep:
                each.remove()


@machine.command()
@click.option(
    "--libvirt", "file", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A deployment file."
)
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory for the XML."
)
@_JSON
def define(file: Path, output: Path, as_json: bool) -> None:
    """Write libvirt's domain XML and the disks of each machine of a deployment file, for who defines them by hand.

    Disks go where the file says (`directory`), the XML to the output directory; data volumes are not made. libvirt is not
    asked: `casemate deploy apply` does all of this, and keeps it so.

    \b
    casemate machine define --libvirt deployment.yaml -o xml
    virsh define --validate xml/db.xml
    """
    from casemate.cli.ui import write_output
    from casemate.deploy.apply import write_disks
    from casemate.deploy.domain import domain
    from casemate.deploy.model import load
    from casemate.errors import CasemateError
    from casemate.machine.qemu import kvm_works

    deployment = load(file)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CasemateError(f"can't be made: {error.strerror}", "name another", str(output), id="CLI-FILE") from None
    written: dict[str, list[str]] = {}
    for name, each in deployment.machines.items():
        disks = write_disks(deployment, each)
        kvm = each.tee == "software" and kvm_works()
        write_output(str(output / f"{name}.xml"), domain(each, deployment, kvm=kvm).encode())
        written[name] = [str(path) for path in (output / f"{name}.xml", *disks)]
    if as_json:
        click.echo(json.dumps({"machines": written}))
        return
    for name, paths in written.items():
        click.echo(f"{name}: {', '.join(paths)}")
