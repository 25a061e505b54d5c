"""Writes ``docs/command-line.md`` from the program's own help; with ``--check`` says whether it is up to date.

tools/command_line.py [--check]

What the help can't say, exit codes and the form of ``--json``, stands here. A command that has ``--json`` and no form here,
or the other way round, is an error.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from casemate.cli import GROUPS, casemate

PAGE = Path(__file__).resolve().parent.parent / "docs/command-line.md"

HEAD = """\
# The command line

One program, `casemate`. Results go to standard output; progress, warnings and errors to standard error. `-` as a file is
standard input or output. This page is written by `tools/command_line.py` from the program's own help; each command has
`--help`, with the same words.

## Exit codes

| code | |
| --- | --- |
| 0 | done, and everything that was asked for holds |
| 1 | refused, failed, or not proved |
| 2 | the command line is wrong |
| 130 | ended by Ctrl-C |

## Errors

An error has a stable identifier, a place, a cause and a cure:

    CONTRACT-CHECK: the contract has errors, and is not written
      they stand above

With `--json` standard output has it too, as one object:

    {"error": {"id": "CONTRACT-CHECK", "where": "", "cause": "…", "cure": "…"}}

Programs may rely on identifiers, keys and exit codes; sentences change. The messages of a machine's console have
identifiers of their own: [messages](messages.md).

## Environment

| variable | |
| --- | --- |
| `CASEMATE_HOME` | where all state is kept; else `$XDG_DATA_HOME/casemate`, `~/.local/share/casemate` |

Secrets are never taken from the environment, and never from an argument where a file will do: other users of a machine can
see arguments.

"""

PROBLEM = '{"place", "text", "severity": "error"|"warning"|"note", "id"}'
MACHINE = (
    '{"name", "state": "starting"|"running"|"stopped", "image", "arch", "acceleration": "kvm"|"tcg", "memory_mib", \
"cpus", "ports": [[host, guest]], "data": [path], "created": seconds, "reason", "directory"}'
)
IMAGE = '"format": "casemate-image/1", "version", "arch", "created", "kernel", "command_line", "tag", "hosts": [name]'
CHAIN = '{"format": "casemate-chain/1", "proved": bool, "development": bool, "time", "problems": [error], "links": \
[{"subject", "issuer", "serial", "fingerprint", "development", "not_before", "not_after", "signed_by", "signing_key", "how", \
"revocation", "problems": [error]}]}'
BUILD_KEYS = '{"format": "casemate-build-keys/1", "server", "gpg", "cosign", "manifest"}'
PLAN = (
    '{"changes": bool, "steps": [{"machine", "act": "stop"|"make"|"grow"|"write"|"define"|"autostart"|"start"|"remove", \
"target", "disruptive": bool, "changes": [{"what", "old", "new"}]}], "drift": {machine: [{"what", "old", "new"}]}, \
"kept": [place]}'
)
JOB = (
    '{"job", "state": "waiting"|"running"|"done"|"failed", "phase", "started", "ended", "repository", "revision", "image", \
"digest", "error": null or error}'
)
FORMS = {
    "doctor": '{"ok": bool, "missing": [package], "command", "findings": [{"name", "group", "ok": true|false|null, "found", \
"package", "cure"}]}',
    "contract init": '{"written": [path], "kept": [path]}',
    "contract seal": '{"sealed": [{"file", "output"}]}; without -o, one FILE: {"file", "token"}',
    "contract sign": '{"envWorkloadSignature"}',
    "contract assemble": f'{{"output" or "contract", "problems": [{PROBLEM}]}}',
    "contract check": f'{{"ok": bool, "problems": [{{"file", ...}}]}}; a problem is {PROBLEM}',
    "contract open": '{"output" or "plain", "short_password": [section]}',
    "image build": f'{{"path", {IMAGE}}}',
    "image show": f'{{{IMAGE}, "reference_values": {{line: sha256}}, "sizes": {{file: bytes}}}}',
    "image verify-build": '{"format": "casemate-rebuild/1", "same": bool, "source": sha256, "rebuilt": {line: sha256}, \
"published": {line: sha256}, "differences": [text], "files": [text], "packages": [text]}',
    "image verify-provenance": '{"verified": true, "development": bool, "statement": in-toto statement}',
    "image snapshot": '{"packages": number, "differences": [text], "updated": bool}',
    "se pack": '{"path", "size", "tag", "hosts": [fingerprint], "host_keys_verified": bool, "loaders": bool}',
    "se open": '{"path", "tag", "sizes": {part: bytes}}',
    "se show": '{"path", "size", "tag", "hosts", "pages", "flags", "allows": [name], "header_size", "clear_size", "pld", \
"ald", "tld", "components": [{"name", "address", "size"}]}',
    "se host-key": '{"verified": bool, "hosts": [{"fingerprint", "valid_until"}]}',
    "se attest verify": '{"tag", "cuid", "user_data", "image_host_key", "attestation_host_key", "secret_store", "firmware": hex, \
"development": bool, "record": bool}',
    "machine up": MACHINE,
    "machine list": f"[{MACHINE}]",
    "machine define": '{"machines": {name: [path]}}',
    "deploy plan": PLAN,
    "deploy apply": PLAN,
    "deploy destroy": PLAN,
    "deploy record": '{"path", "files": [name]}',
    "deploy show": '[{"name", "uuid", "tee", "arch", "state": "absent"|"stopped"|"running", "autostart", "directory", \
"volumes": [place]}]',
    "machine record": '{"path", "files": [name]}',
    "attestation verify": f'{{"format": "casemate-verdict/1", "holds": bool, "summary", "version", "tee", "development": bool, \
"time", "rows": [{{"name", "group", "meaning", "value", "verdict": "proved"|"refuted"|"not proved"|"missing"|"unknown line", \
"why", "asked": bool}}], "chain": null or {CHAIN}}}',
    "attestation show": '{"verified": false, "version", "facts": {name: value}, "hashes": {name: sha256}, "unknown": [line]}',
    "certificate verify": CHAIN,
    "volume passphrase": '{"output" or "passphrase"}',
    "build init": BUILD_KEYS,
    "build start": f'{{"job"}}; with --wait {JOB}',
    "build status": f'{{"version", "keys": null or {BUILD_KEYS}, "generation", "images": [name], "jobs": [{JOB}]}}; \
of a JOB {JOB}',
    "build manifest": '{"format": "casemate-secure-build/1", ...}, the statement of the manifest',
    "build image": '{"image", "images": the part of a workload section}',
    "build clean": '{"forgotten"}',
    "build state export": '{"path", "generation"}',
    "build state import": f'{{"generation", "builds", "keys": {BUILD_KEYS}}}',
    "approval sign": '{"signed": [name], "threshold", "missing"}',
    "approval verify": '{"subject", "revision", "sha256", "names": [name], "threshold"}',
    "ca init": '{"path", "log_head": sha256}',
    "ca request": '{"path", "request": path}',
    "ca accept": '{"issuer", "state"}',
    "ca certify": '{"path", "subject", "serial", "until"}',
    "ca rotate": '{"issuer", "state": "current"|"requested"}',
    "ca revoke": '[{"certificate": path, "issuer", "new": bool, "list": path}]',
    "ca crl": '[{"issuer", "number", "list": path}]',
    "ca list": '[{"kind": "authority"|"issuer"|"list"|"image", "name", "subject", "serial", "until", "state", \
"warnings": [text]}]',
    "ca publish": '{"path", "files": [name]}',
    "ca log": '[{"n", "time", "action", "facts": {name: value}, "digest": sha256}]',
    "buildvm bundle": '{"path", "signature", "sha256", "number"}',
    "buildvm create": '{"path", "name", "generation", "after"}',
    "buildvm job": '{"path", "subject", "sha256"}',
    "ceremony plan": '{"output", "plan": sha256, "ends"}',
    "ceremony pack": '{"directory", "plan": sha256, "header": sha256}',
    "ceremony status": "as `ceremony verify`",
    "ceremony join": '{"line", "digest", "action"}',
    "ceremony verify": '{"format": "casemate-ceremony-report/1", "holds": bool, "summary", "development": bool, "ceremony", '
    '"plan", "head", "checks": [{"name", "verdict", "why"}], "keys": [key], '
    '"steps": [step], "missing": [{"role", "count", "names"}]}',
    "ceremony rehearse": "as `ceremony verify`",
    "buildvm run": '{"path", "format": "casemate-build-result/1", "builder", "generation", "mode", "revision", "approved_by", \
"job", "approval", "record", "after", "counter", "files", "head", "finished"}',
    "buildvm show": '{"name", "generation", "after", "threshold", "reviewers": [name]}',
    "buildvm unpack": "as buildvm run",
    "buildvm verify": "as buildvm run",
    "keyset create": '{"path", "name", "hosts": [name]}',
    "keyset show": '{"format": "casemate-keyset/1", "name", "made", "verified": bool, "revocation": bool, "holds": bool, \
"hosts": [{"name", "key": sha256, "valid_until", "problem"}]}',
}


def commands(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command under this one, groups before what is in them."""
    context = click.Context(command, info_name=name or None)
    if name:
        yield name, command
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None and not found.hidden:
                yield from commands(found, f"{name} {each}".strip())


def has_json(command: click.Command) -> bool:
    """Whether a command can print JSON."""
    return any("--json" in parameter.opts for parameter in command.params)


def page() -> str:
    """Return the page."""
    found = list(commands(casemate))
    without = {name for name, command in found if has_json(command)} ^ FORMS.keys()
    if without:
        raise SystemExit(f"tools/command_line.py: --json without a form, or a form without --json: {sorted(without)}")
    parts = [HEAD, "## Commands\n"]
    for name in GROUPS:
        parts.append(f"\n- [`casemate {name}`](#casemate-{name}): {GROUPS[name]}")
    parts.append("\n")
    for name, command in found:
        level = "##" if " " not in name else "###"
        parts.append(f"\n{level} casemate {name}\n\n{_help(command)}\n")
        if not isinstance(command, click.Group):
            words = [f"casemate {name}", *command.collect_usage_pieces(click.Context(command))]
            parts.append(f"\nUsage: `{' '.join(words)}`\n")
            parts.append(_options(command))
        if name in FORMS:
            parts.append(f"\nJSON: `{FORMS[name]}`\n")
    return "".join(parts)


def _help(command: click.Command) -> str:
    """Return a command's help: paragraphs as text, blocks that click must not wrap as code."""
    paragraphs = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = paragraph.splitlines()
        if lines[0].strip() == "\b":
            paragraphs.append("\n".join(f"    {line}" for line in lines[1:]))
        else:
            paragraphs.append(_escaped(" ".join(lines)))
    return "\n\n".join(paragraphs)


def _options(command: click.Command) -> str:
    rows = []
    context = click.Context(command)
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            name, text = (part.replace("|", r"\|") for part in (record[0], _escaped(record[1])))
            rows.append(f"| `{name}` | {text} |\n")
    return "\n| option | |\n| --- | --- |\n" + "".join(rows) if rows else ""


def _escaped(text: str) -> str:
    """Text as it is, where Markdown would take it for markup; code stays code."""
    parts = re.split("(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<>*_\[\]])", r"\\\1", part) for part in parts)


def main() -> int:
    """Write, or check."""
    if "--check" in sys.argv:
        if PAGE.is_file() and PAGE.read_text("utf-8") == page():
            return 0
        print(f"{PAGE} is not what the program says: run tools/command_line.py", file=sys.stderr)
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
