"""``casemate build``: container images built by a server inside the TEE, and what a contract needs of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from casemate.hpsb.client import Client
    from casemate.hpsb.manifest import Keys

_CONFIG = click.option(
    "-c",
    "--config",
    default="build.yaml",
    show_default=True,
    type=click.Path(),
    help="Where the server is, and your certificate.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
_LARGEST_CONFIG = 64 << 10


@click.group()
def build() -> None:
    """Build container images in a machine that nobody can look into, by a server of secure builds.

    \b
    Your settings, build.yaml:
      server: https://build.example.com:8443
      ca: server-ca.crt              whose certificate the server has
      certificate: client.crt        yours, of the authority that the server's contract names
      key: client.key
      keys: build-keys.json          the server's public keys; init writes them

    \b
    casemate build init
    casemate build start --repository https://git.example.com/team/app.git --revision HASH \\
        --name registry.example.com/team/app --wait
    casemate build manifest JOB -o app.manifest
    casemate build image app.manifest --by gpg
    """


@build.command()
@_CONFIG
@_JSON
def init(config: str, as_json: bool) -> None:
    """Have the server make its keys, once, and keep the public ones: all that it signs is verified with them.

    Do it right after you have verified the record of the server's machine: who comes first decides whose keys these are.

    \b
    casemate build init
    """
    from casemate.cli.ui import write_output
    from casemate.hpsb.errors import refused
    from casemate.hpsb.manifest import parse_keys

    client, keys = _client(config)
    if keys.exists():
        raise refused(
            "KEYS", "there are keys of a server already", "remove the file, or name another in the settings", str(keys)
        )
    data = json.dumps(client.ask("POST", "/v1/init"), indent=1).encode() + b"\n"
    made = parse_keys(data)
    write_output(str(keys), data)
    click.echo(data.decode() if as_json else f"{keys}: the public keys of server {made.server}")


@build.command()
@_CONFIG
@click.option("--repository", required=True, help="URL of the repository, https.")
@click.option("--revision", required=True, help="The full hash of a commit: what `git rev-parse HEAD` prints.")
@click.option("--containerfile", default="Containerfile", show_default=True, help="Its path in the repository.")
@click.option("--name", required=True, help="Name of the image without tag, one that the server's configuration has.")
@click.option("--tag", default="", help="Its tag; the first twelve digits of the revision otherwise.")
@click.option(
    "--build-arg", "arguments", multiple=True, metavar="NAME=VALUE", help="A build argument. No place for secrets."
)
@click.option("--expect", default="", help="The digest that must come out: where another does, nothing is signed.")
@click.option("--wait", is_flag=True, help="Stay until the job has ended.")
@_JSON
def start(
    config: str, repository: str, revision: str, containerfile: str, name: str, tag: str, arguments: tuple[str, ...],
    expect: str, wait: bool, as_json: bool,
) -> int:  # fmt: skip
    """Start a job: one revision of a repository becomes one image, signed and pushed.

    Exit code with --wait: 0 it is done, 1 it has failed.

    \b
    casemate build start --repository https://git.example.com/team/app.git \\
        --revision 2b5e0d8f5a8e7c1c9f5a3ad3b19e6fa0c1d4b7e6 --name registry.example.com/team/app --wait
    casemate build start … --expect sha256:…      again, and it must be the same
    """
    from casemate.hpsb.errors import refused

    client, _ = _client(config)
    given = [argument.partition("=") for argument in arguments]
    if not all(equals for _, equals, _ in given):
        raise refused("JOB", "a build argument has no value", "write NAME=VALUE")
    job = {
        **{"repository": repository, "revision": revision, "containerfile": containerfile, "name": name, "tag": tag},
        **{"arguments": {key: value for key, _, value in given}, "expect": expect},
    }
    identity = client.ask("POST", "/v1/jobs", job, {"job": str})["job"]
    if not wait:
        click.echo(json.dumps({"job": identity}) if as_json else _printable(identity.encode()))
        return 0
    told = _wait(client, identity, as_json)
    return _tell([told], as_json)


@build.command()
@_CONFIG
@click.argument("job", required=False)
@_JSON
def status(config: str, job: str | None, as_json: bool) -> int:
    """Show what the server does, or one JOB.

    Exit code: 1 where the JOB named has failed.

    \b
    casemate build status
    casemate build status JOB
    """
    from casemate.hpsb.client import STATUS, TOLD

    client, _ = _client(config)
    if job is not None:
        return _tell([client.ask("GET", f"/v1/jobs/{_name(job)}", form=TOLD)], as_json)
    told = client.ask("GET", "/v1/status", form=STATUS)
    if as_json:
        click.echo(json.dumps(told))
        return 0
    keys = told["keys"]["server"] if told["keys"] else "none yet: casemate build init"
    click.echo(_printable(f"casemate {told['version']}, keys: {keys}, generation {told['generation']}".encode()))
    _tell(told["jobs"], False)
    return 0


@build.command()
@_CONFIG
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
def log(config: str, job: str, follow: bool) -> None:
    """Print what the steps of JOB have said.

    \b
    casemate build log JOB -f
    """
    from casemate.hpsb.client import TOLD

    client, _ = _client(config)
    at = 0
    while True:
        ended = client.ask("GET", f"/v1/jobs/{_name(job)}", form=TOLD)["state"] in ("done", "failed")
        part = client.fetch("GET", f"/v1/jobs/{_name(job)}/log?from={at}")
        at += len(part)
        click.echo(_printable(part), nl=False)
        if ended or not follow:
            return
        time.sleep(0.5)


@build.command()
@_CONFIG
@click.argument("job")
@click.option("-o", "--output", type=click.Path(), help="Keep the signed manifest here.")
@click.option(
    "--signature", type=click.Path(), help="Keep the image's GPG signature here, for a place where signatures lie."
)
@_JSON
def manifest(config: str, job: str, output: str | None, signature: str | None, as_json: bool) -> None:
    """Get the signed manifest of JOB, or read it from a file of that name, and verify it with the server's keys.

    \b
    casemate build manifest JOB -o app.manifest
    casemate build manifest app.manifest                verify it again, without the server
    """
    from casemate.cli.ui import tell, write_output

    data, statement = _manifest(config, job)
    if output is not None:
        write_output(output, data)
    if signature is not None:
        write_output(signature, _client(config)[0].fetch("GET", f"/v1/jobs/{_name(statement['job'])}/signature"))
    shown = "-" if "-" in (output, signature) else ""
    if as_json:
        tell(shown, json.dumps(statement))
        return
    source, made = statement["source"], statement["image"]
    rows = [
        ("image", f"{made['name']}:{made['tag']}"),
        ("digest", made["digest"]),
        ("source", f"{source['repository']} at {source['revision']}"),
        ("containerfile", f"{source['containerfile']}, SHA-256 {source['containerfile_sha256']}"),
        *(("base", base["name"]) for base in statement["bases"]),
        ("arguments", ", ".join(statement["arguments"]) or "none"),
        ("network", ", ".join(statement["network"]) or "none"),
        ("built", f"{statement['time']}, job {statement['job']} of server {statement['server']['id']}"),
        *(("before", f"{digest}: the same inputs gave another image") for digest in statement["before"]),
    ]
    for name, text in rows:
        tell(shown, f"{name:<14} {_printable(str(text).encode())}")


@build.command()
@_CONFIG
@click.argument("job")
@click.option(
    "--by",
    type=click.Choice(["digest", "gpg", "cosign"]),
    default="digest",
    show_default=True,
    help="What admits the image.",
)
@click.option("-o", "--output", type=click.Path(), help="Write to a file.")
@_JSON
def image(config: str, job: str, by: str, output: str | None, as_json: bool) -> None:
    """Write the part of a workload section that admits the image of JOB, or of a manifest's file, once its signature has held.

    \b
    casemate build image JOB --by gpg
    casemate build image app.manifest --by cosign -o images.yaml
    """
    import yaml

    from casemate.cli.ui import write_output
    from casemate.hpsb.manifest import images

    name, part = images(_manifest(config, job)[1], by)
    if as_json:
        click.echo(json.dumps({"image": name, "images": part}))
        return
    text = f"# in the compose file:   image: {name}\n"
    text += (
        yaml.safe_dump({"images": part}, width=1 << 20)
        if part
        else "# its digest admits it: no key is needed under images\n"
    )
    write_output(output, text.encode())


@build.command()
@_CONFIG
@_JSON
def clean(config: str, as_json: bool) -> None:
    """Have the server forget jobs that have ended, with their logs and manifests. It still knows what it has signed.

    \b
    casemate build clean
    """
    client, _ = _client(config)
    told = client.ask("POST", "/v1/clean", form={"forgotten": int})
    click.echo(json.dumps(told) if as_json else f"{told['forgotten']} jobs forgotten")


@build.group()
def state() -> None:
    """Take a server's keys and history to another server: a file that only both parties' secrets open."""


@state.command("export")
@_CONFIG
@click.option("-o", "--output", required=True, type=click.Path(), help="The file to write.")
@_JSON
def export_(config: str, output: str, as_json: bool) -> None:
    """Write the server's state, encrypted under the secrets of both parties. Note its generation.

    \b
    casemate build state export -o build.state
    """
    from casemate.cli.ui import tell, write_output
    from casemate.hpsb.vault import generation_of

    client, _ = _client(config)
    data = client.fetch("POST", "/v1/state/export")
    write_output(output, data, 0o600)
    generation = generation_of(data)
    told = json.dumps({"path": output, "generation": generation}) if as_json else f"{output}: generation {generation}"
    tell(output, told)


@state.command("import")
@_CONFIG
@click.argument("file", type=click.Path())
@click.option(
    "--least",
    type=click.IntRange(0),
    default=0,
    help="The generation that it must have at least: a new server can't know.",
)
@_JSON
def import_(config: str, file: str, least: int, as_json: bool) -> None:
    """Give a new server, whose contract has the same two secrets, the state in FILE.

    The keys must be those that the settings name, where these are there; else they are kept there.

    \b
    casemate build state import build.state --least 17
    """
    from casemate.cli.ui import read_input, write_output
    from casemate.hpsb.client import read
    from casemate.hpsb.errors import refused
    from casemate.hpsb.manifest import parse_keys
    from casemate.hpsb.vault import LARGEST

    client, keys = _client(config)
    told = client.fetch("POST", f"/v1/state/import?least={least}", read_input(file, LARGEST))
    answer = read(told, {"keys": dict, "generation": int, "builds": int})
    data = json.dumps(answer["keys"], indent=1).encode() + b"\n"
    brought = parse_keys(data)
    if not keys.exists():
        write_output(str(keys), data)
    elif _keys(keys) != brought:
        raise refused(
            "KEYS",
            "the state has other keys than those that you have kept",
            "is this the right file, the right server?",
            str(keys),
        )
    text = f"generation {answer['generation']}, {answer['builds']} builds, server {brought.server}"
    click.echo(json.dumps(answer) if as_json else text)


# ------------------------------------------------------------------------------------------------- shared


def _client(config: str) -> tuple[Client, Path]:
    """Return the client of the settings, and where the server's keys are kept."""
    from casemate.cli.ui import read_input
    from casemate.hpsb.client import Client, settings

    given = settings(read_input(config, _LARGEST_CONFIG), Path(config).parent)
    return Client(given), given.keys


def _keys(path: Path) -> Keys:
    from casemate.cli.ui import read_input
    from casemate.hpsb.manifest import LARGEST, parse_keys

    return parse_keys(read_input(str(path), LARGEST))


def _manifest(config: str, job: str) -> tuple[bytes, dict[str, Any]]:
    """Return a signed manifest, of a file or of a job, and what it says, verified: of this job and no other."""
    from casemate.cli.ui import read_input
    from casemate.hpsb.client import settings
    from casemate.hpsb.errors import refused
    from casemate.hpsb.manifest import LARGEST, verify

    keys = _keys(settings(read_input(config, _LARGEST_CONFIG), Path(config).parent).keys)
    if Path(job).is_file():
        data = read_input(job, LARGEST)
        return data, verify(data, keys)
    data = _client(config)[0].fetch("GET", f"/v1/jobs/{_name(job)}/manifest")
    statement = verify(data, keys)
    if statement["job"] != job:
        raise refused("MANIFEST", "the server gave the manifest of another job", "do not use it", job)
    return data, statement


def _name(job: str) -> str:
    import re

    from casemate.hpsb.errors import refused

    if not re.fullmatch("[0-9a-f]{12}", job):
        raise refused("NO-JOB", "neither a file nor the name of a job", "casemate build status lists the jobs", job)
    return job


def _wait(client: Client, job: str, quiet: bool) -> dict[str, Any]:
    from casemate.cli.ui import steps
    from casemate.hpsb.client import TOLD

    phase = None
    with steps(f"job {job}", quiet) as step:
        while True:
            told: dict[str, Any] = client.ask("GET", f"/v1/jobs/{_name(job)}", form=TOLD)
            if told["state"] in ("done", "failed"):
                return told
            if (now := told["phase"] or told["state"]) != phase:
                phase = now
                step(_printable(now.encode()))
            time.sleep(0.3)


def _tell(jobs: list[dict[str, Any]], as_json: bool) -> int:
    """Print jobs; return the exit code that one alone has."""
    from casemate.hpsb.errors import BuildError

    if as_json:
        click.echo(json.dumps(jobs[0]))
    for told in [] if as_json else jobs:
        what = told["digest"] if told["state"] == "done" else told["phase"]
        click.echo(_printable(f"{told['job']}  {told['state']:<8} {told['image']}  {what}".encode()))
        if told["error"]:
            error = told["error"]
            click.echo(
                _printable(
                    BuildError(error["cause"], error["cure"], error["where"], id=error["id"]).diagnostics().encode()
                )
            )
    return int(len(jobs) == 1 and jobs[0]["state"] == "failed")


def _printable(part: bytes) -> str:
    """Text as a terminal may have it: what a build prints must not steer it."""
    text = part.decode("utf-8", "replace")
    return "".join(each if each.isprintable() or each in "\n\t" else "?" for each in text)
