"""The program ``casemate``: arguments in, tables and JSON out; no rule lives here.

Each group of commands is a module of this package, imported only when it is asked for: sealing a section must not pay
for the import of what starts machines.

Exit codes: 0 done and everything asked for holds; 1 refused, failed or not proved; 2 the command line is wrong;
130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from casemate import __version__

GROUPS = {
    "demo": "The whole story end to end, narrated, with a verified record at the end.",
    "doctor": "What is missing on this machine, and the one command that installs it.",
    "contract": "Write, seal, sign, check and open contracts.",
    "image": "Build images and show what is in them.",
    "se": "Pack, open and show Secure Execution images.",
    "machine": "Start, watch and stop machines.",
    "deploy": "Machines through libvirt, from one file: plan, apply, destroy.",
    "attestation": "Verify attestation records.",
    "certificate": "Verify certificates and revocation lists.",
    "ca": "Keep the authority that certifies images: keys in tokens, rotation, revocation.",
    "keyset": "Keep the hosts that images are built for.",
    "build": "Build container images inside the TEE, signed there.",
    "approval": "Sign what a build accepts, and verify that enough reviewers did.",
    "buildvm": "Build images inside of a machine, by a key that nobody holds.",
    "ceremony": "Make the first BuildVM together, with a transcript that anybody can verify.",
    "volume": "What belongs to data volumes.",
    "completion": "Shell completion.",
}


class Lazy(click.Group):
    """A group whose commands are modules of this package, imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which people meet them."""
        return list(GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in GROUPS:
            return None
        command = getattr(import_module(f"casemate.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(GROUPS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does, with the nearest known command where there is none of that name."""
        if args and args[0] not in GROUPS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], GROUPS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="casemate")
def casemate() -> None:
    """Casemate: sealed contracts, encrypted machines, records that an auditor can check.

    \b
    casemate demo                      see all of it, once, on this machine
    casemate contract init my-app      start a contract of your own
    casemate COMMAND --help            each command explains itself, with examples
    """


def main() -> NoReturn:
    """Run the program: errors as sentences (or JSON where ``--json`` was asked for), never as a traceback."""
    import signal

    from casemate.errors import CasemateError

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # what is half done is taken away, as after Ctrl-C
    try:
        code = casemate.main(prog_name="casemate", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except CasemateError as error:
        _as_json(error.id, error.where, error.cause, error.cure)
        print(error.diagnostics(), file=sys.stderr)
        sys.exit(1)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        _as_json("CLI-USAGE", "", error.format_message(), "--help explains the command")
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # most files have errors of their own: the rest, or a full disk behind standard output
        import os

        where, cause = str(error.filename or "standard output"), error.strerror or str(error)
        cure = "is it there, may you use it, has it room?"
        try:
            _as_json("CLI-FILE", where, cause, cure)
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer would fail again at the end
        print(CasemateError(cause, cure, where, id="CLI-FILE").diagnostics(), file=sys.stderr)
        sys.exit(1)


def _as_json(id: str, where: str, cause: str, cure: str) -> None:
    if "--json" in sys.argv:
        import json

        print(json.dumps({"error": {"id": id, "where": where, "cause": cause, "cure": cure}}))
