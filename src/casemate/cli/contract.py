"""``casemate contract``: write, seal, sign, assemble, check and open contracts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from casemate.cli.ui import read_input, write_output
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from casemate.contract.check import Problem
    from casemate.contract.document import Contract

LARGEST = 2 << 20

certificate_option = click.option("--cert", help="Encryption certificate of the image (or its public key), PEM.")
compose_option = click.option(
    "--compose", metavar="DIR", help="Pack DIR, which holds docker-compose.yaml, into the workload's compose.archive."
)
password_option = click.option(
    "--key-password-file", metavar="FILE", help="Holds the private key's password; without it a terminal is asked."
)
output_option = click.option("-o", "--output", metavar="OUT", help="Write here instead of to standard output.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def contract() -> None:
    """Write, seal, sign, check and open contracts.

    \b
    casemate contract init my-app                        a commented starting point
    casemate contract check workload.yaml                every problem at once, with its place
    casemate contract seal workload.yaml --cert encryption.crt -o workload.token
    """


@contract.command()
@click.argument("directory", default=".")
@json_option
def init(directory: str, as_json: bool) -> None:
    """Write a commented starting point into DIRECTORY: both sections, a compose file, what to type next.

    Seeds and passwords in it are fresh and random. Files that are there already stay as they are.

    \b
    casemate contract init my-app
    """
    import secrets
    from pathlib import Path

    starter = Path(__file__).with_name("starter")
    written, kept = [], []
    for name in ("README.md", "workload.yaml", "env.yaml", "compose/docker-compose.yaml"):
        path = Path(directory, name)
        text = (starter / name).read_text("utf-8")
        for secret in ("{seed}", "{password}"):
            text = text.replace(secret, secrets.token_urlsafe(24))
        try:
            _make_directory(path.parent)
            with path.open("x", encoding="utf-8") as file:
                path.chmod(0o600 if name.endswith(("workload.yaml", "env.yaml")) else 0o644)
                file.write(text)
            written.append(str(path))
        except FileExistsError:
            kept.append(str(path))
        except OSError as error:
            raise CasemateError(f"can't be written: {error.strerror}", where=str(path), id="CLI-FILE") from None
    if as_json:
        _print_json({"written": written, "kept": kept})
        return
    for path_name in written:
        click.echo(f"{path_name}")
    for path_name in kept:
        click.echo(f"{path_name}: is there already, left as it is", err=True)
    click.echo(f"Next: read {Path(directory, 'README.md')}", err=True)


@contract.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--cert", required=True, help="Encryption certificate of the image (or its public key), PEM.")
@click.option("-o", "--output", metavar="OUT", help="Where to: a file; for several FILEs a directory.")
@compose_option
@click.option(
    "--prefix",
    type=click.Choice(["hyper-protect-basic", "contract-basic"]),
    default="hyper-protect-basic",
    show_default=True,
    help="How the token begins; newer images use the second and know both.",
)
@json_option
def seal(
    files: tuple[str, ...], cert: str, output: str | None, compose: str | None, prefix: str, as_json: bool
) -> None:
    """Seal each FILE, a section or a public key, into a token that only the image can open.

    One FILE goes to standard output or to -o. Several are sealed in parallel, each into FILE.token beside it or in the
    directory -o. A section is sealed as it is: `casemate contract check` it first. What --compose packs is checked here.

    \b
    casemate contract seal env.yaml --cert encryption.crt -o env.token
    casemate contract seal workload.yaml --compose compose --cert encryption.crt -o workload.token
    casemate contract seal auditor.pub --cert encryption.crt
    casemate contract seal sections/*.yaml --cert encryption.crt -o tokens
    """
    from casemate.contract import token

    if compose is not None and len(files) > 1:
        raise click.UsageError("--compose goes with one FILE")
    with _about(cert):
        pem = read_input(cert, LARGEST)
        key = token.load_public_key(pem)
    _warn_of_dates(cert, pem)

    def seal_one(name: str) -> str:
        with _about(name):
            return token.seal(_to_seal(name, compose), key, prefix)

    if len(files) == 1:
        sealed = seal_one(files[0])
        if as_json:
            if output is not None:
                write_output(output, f"{sealed}\n".encode())
            where = {"token": sealed} if output is None else {"output": output}
            _print_json({"sealed": [{"file": files[0], **where}]})
        else:
            write_output(output, f"{sealed}\n".encode())
        return

    import os
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    targets = {name: (Path(output, Path(name).name) if output else Path(name)) for name in files}
    if len(set(targets.values())) < len(files) or "-" in files:
        raise click.UsageError("several FILEs need different names")

    def seal_into(name: str) -> str:
        target = f"{targets[name]}.token"
        write_output(target, f"{seal_one(name)}\n".encode())
        return target

    if output:
        _make_directory(Path(output))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # key derivation runs outside of the lock
        done = dict(zip(files, pool.map(seal_into, files), strict=True))
    if as_json:
        _print_json({"sealed": [{"file": name, "output": target} for name, target in done.items()]})
    else:
        click.echo("\n".join(done.values()))


@contract.command()
@click.argument("directory")
@output_option
def archive(directory: str, output: str | None) -> None:
    """Pack DIRECTORY into the base64 text that `compose.archive` (or `play.archive`) holds.

    The same files give the same text. Links, devices and the like are refused. `--compose DIRECTORY` of seal, assemble
    and check does this by itself.

    \b
    casemate contract archive compose
    """
    write_output(output, f"{_pack(directory)}\n".encode())


@contract.command()
@click.argument("file", metavar="CONTRACT")
@click.option("--key", required=True, help="The deployer's private signing key, PEM; its public half is signingKey.")
@password_option
@output_option
@json_option
def sign(file: str, key: str, key_password_file: str | None, output: str | None, as_json: bool) -> None:
    """Sign CONTRACT anew, and print it with the signature: over both sections, exactly as they stand in it.

    \b
    casemate contract sign contract.yaml --key signing.key -o signed.yaml
    """
    from dataclasses import replace

    from casemate.contract.document import exact, parse_contract, write_contract
    from casemate.contract.signature import sign as sign_sections

    private = _private_key(key, key_password_file)
    with _about(file):
        given = parse_contract(read_input(file, LARGEST))
        signature = sign_sections(*exact(given), private)
    if given.unknown:
        click.echo(f"left out, no key of a contract: {', '.join(given.unknown)}", err=True)
    signed = write_contract(replace(given, envworkload_signature=signature))
    if as_json:
        if output is not None:
            write_output(output, signed)
        _print_json({"envWorkloadSignature": signature})
    else:
        write_output(output, signed)


@contract.command()
@click.option("--workload", required=True, metavar="FILE", help="The workload section: a token, or plain YAML.")
@click.option("--env", required=True, metavar="FILE", help="The env section: a token, or plain YAML.")
@click.option("--attestation-key", metavar="FILE", help="The auditor's public key (or a token of it).")
@click.option("--sign-with", metavar="KEY", help="The deployer's private signing key, PEM.")
@password_option
@certificate_option
@compose_option
@click.option("--unchecked", is_flag=True, help="Write it even if the check finds errors.")
@output_option
@json_option
def assemble(
    workload: str,
    env: str,
    attestation_key: str | None,
    sign_with: str | None,
    key_password_file: str | None,
    cert: str | None,
    compose: str | None,
    unchecked: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Put a contract together: check what is plain, seal it (with --cert), sign (with --sign-with).

    Without --cert what is plain stays plain, for anyone who sees the contract to read.

    \b
    casemate contract assemble --workload workload.token --env env.yaml --cert encryption.crt \\
        --sign-with signing.key --attestation-key auditor.pub -o contract.yaml
    """
    from dataclasses import replace

    from casemate.contract.check import check_contract
    from casemate.contract.document import Contract, exact, write_contract
    from casemate.contract.signature import sign as sign_sections
    from casemate.contract.token import is_token, load_public_key
    from casemate.contract.token import seal as seal_text

    certificate = read_input(cert, LARGEST) if cert else None
    with _about(cert or ""):
        public = load_public_key(certificate) if certificate is not None else None
    private = _private_key(sign_with, key_password_file) if sign_with else None
    auditor = None if attestation_key is None else _text(attestation_key)
    plain = Contract(_text(workload, compose), _text(env), auditor)

    def signed(unsigned: Contract) -> Contract:
        return replace(
            unsigned, envworkload_signature=sign_sections(*exact(unsigned), private) if private is not None else None
        )

    def sealed(text: str) -> str:
        return text if public is None or is_token(text) else seal_text(text.encode(), public)

    problems = check_contract(write_contract(signed(plain)), certificate, now=_now())
    problems = [problem for problem in problems if problem.severity != "note"]
    _print_problems(problems, err=True)
    if any(problem.severity == "error" for problem in problems) and not unchecked:
        raise CasemateError("the contract has errors, and is not written", "they stand above", id="CONTRACT-CHECK")
    whole = Contract(sealed(plain.workload), sealed(plain.env), sealed(auditor) if auditor is not None else None)
    written = write_contract(signed(whole))
    if output is not None or not as_json:
        write_output(output, written, 0o644 if public is not None else 0o600)
    if as_json:
        where = {"contract": written.decode()} if output is None else {"output": output}
        _print_json({**where, "problems": _rows(problems)})


@contract.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@certificate_option
@click.option("--key", help="The private key that tokens were sealed for, PEM: what is sealed is checked too.")
@password_option
@compose_option
@json_option
def check(
    files: tuple[str, ...],
    cert: str | None,
    key: str | None,
    key_password_file: str | None,
    compose: str | None,
    as_json: bool,
) -> None:
    """Check a contract, or a section before it is sealed: every problem at once, with its place.

    Two FILEs, a workload and an env section, are checked against each other too. The exit code is 1 if there is an
    error; warnings and notes leave it 0. What is sealed can be checked by the holder of the key only.

    \b
    casemate contract check contract.yaml --cert encryption.crt
    casemate contract check contract.yaml --key encryption.key
    casemate contract check workload.yaml --compose compose
    casemate contract check workload.yaml env.yaml --json
    """
    from casemate.contract.check import check_any, check_sections, problems_stop
    from casemate.contract.document import parse_section
    from casemate.contract.token import load_public_key

    texts = {name: read_input(name, LARGEST) for name in files}
    certificate = read_input(cert, LARGEST) if cert else None
    if cert and certificate is not None:
        with _about(cert):
            load_public_key(certificate)
    private = _private_key(key, key_password_file) if key else None
    now = _now()
    if compose is not None:
        first = next((name for name in files if _is_section(texts[name], "workload")), None)
        if first is None:
            raise click.UsageError("--compose goes with a workload section")
        with _about(first):
            texts[first] = _with_archive(texts[first], compose)
    pair = [name for kind in ("workload", "env") for name in files if _is_section(texts[name], kind)]
    found: dict[str, list[Problem]] = {}
    if len(files) == len(pair) == 2 and _is_section(texts[pair[1]], "env"):
        found[" and ".join(pair)] = check_sections(*(parse_section(texts[name]) for name in pair), now=now)
    else:
        found = {name: check_any(text, certificate, key=private, now=now) for name, text in texts.items()}
    stop = any(problems_stop(problems) for problems in found.values())
    if as_json:
        rows = [{"file": name, **row} for name, problems in found.items() for row in _rows(problems)]
        _print_json({"ok": not stop, "problems": rows})
    else:
        for name, problems in found.items():
            counts = [
                f"{count} {kind}{'s' if count > 1 else ''}"
                for kind in ("error", "warning", "note")
                if (count := sum(problem.severity == kind for problem in problems))
            ]
            _print_problems(problems)
            click.echo(f"{name}: {', '.join(counts) if counts else 'no problem found'}")
    sys.exit(1 if stop else 0)


@contract.command("open")
@click.argument("file", metavar="TOKEN_OR_CONTRACT")
@click.option("--key", required=True, help="The private key that it was sealed for, PEM.")
@password_option
@output_option
@json_option
def open_(file: str, key: str, key_password_file: str | None, output: str | None, as_json: bool) -> None:
    """Open a token, an encrypted record or all tokens of a contract, for those who hold the key.

    A token that was sealed under a short password (a known slip of common tools) opens with a warning: who has it may
    guess the password, so its secrets should be replaced. -o writes a file that only its owner may read. --json names
    what was sealed under a short password, and holds the text unless -o says where it goes.

    \b
    casemate contract open workload.token --key encryption.key -o workload.yaml
    casemate contract open se-checksums.txt.enc --key auditor.key
    """
    from casemate.contract.token import is_token, open_token

    private = _private_key(key, key_password_file)
    short: list[str] = []

    def opened(text: str, name: str) -> bytes:
        if not is_token(text):
            return text.encode()
        with _about(name):
            result = open_token(text, private)
        if result.short_password:
            short.append(name)
            click.echo(
                f"warning: {name}: sealed under a short password, perhaps an empty one: anyone may be able to open it\n"
                "  replace the secrets in it, and seal them again with `casemate contract seal`",
                err=True,
            )
        return result.plain

    def give(plain: bytes) -> None:
        if output is not None or not as_json:
            write_output(output, plain, 0o600)
        if as_json:
            where = {"plain": _utf8(plain)} if output is None else {"output": output}
            _print_json({**where, "short_password": short})

    data = read_input(file, LARGEST)
    text = data.decode("utf-8", "replace").removeprefix("\ufeff").strip()
    if is_token(text):
        give(opened(text, file))
        return

    from casemate.contract.document import Contract, parse_contract, write_contract

    with _about(file):
        given = parse_contract(data)
        texts = [
            _utf8(opened(text, name)) if text is not None else None
            for text, name in (
                (given.workload, "workload"),
                (given.env, "env"),
                (given.attestation_public_key, "attestationPublicKey"),
            )
        ]
        plain = write_contract(Contract(texts[0] or "", texts[1] or "", texts[2]))
    if given.envworkload_signature is not None:
        click.echo("the signature is left out: it covers the sealed sections, not the opened ones", err=True)
    give(plain)


@contract.command("open-log")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--key", required=True, help="The private key that lines were sealed for, PEM.")
@password_option
def open_log(file: BinaryIO, key: str, key_password_file: str | None) -> None:
    """Print FILE (by default standard input), lines of a log, with the tokens in it opened.

    For workloads that seal what they log, so that nobody at the log backend reads it. A token that doesn't open stays as
    it is; the exit code is 1 then.

    \b
    casemate contract open-log lines.log --key log.key
    """
    from casemate.contract.token import open_in

    private = _private_key(key, key_password_file)
    closed = 0
    while line := file.readline(LARGEST):
        text, more = open_in(line.decode("utf-8", "replace"), private)
        closed += more
        click.echo(text, nl=False)
    if closed:
        click.echo(f"{closed} tokens stay closed: damaged, or sealed for another key", err=True)
        sys.exit(1)


@contract.command("schema")
@click.option("--of", type=click.Choice(["contract", "workload", "env"]), default="contract", show_default=True)
def schema_(of: str) -> None:
    """Print the JSON Schema (draft 2020-12) of contracts or of one section, for editors and other tools.

    \b
    casemate contract schema --of workload > workload.schema.json
    """
    from casemate.contract.schema import schema

    _print_json({**schema(), "$ref": f"#/$defs/{of}"})


# ------------------------------------------------------------------------------------------------- what they share


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Say in an error which file it is about."""
    try:
        yield
    except CasemateError as error:
        if not error.where.startswith(name):
            error.where = f"{name}, {error.where}" if error.where else name
        raise


def _print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_problems(problems: Iterable[Problem], *, err: bool = False) -> None:
    colours = {"error": "red", "warning": "yellow", "note": "blue"}
    for problem in problems:
        click.echo(f"{click.style(f'{problem.severity:<8}', fg=colours[problem.severity])}{problem}", err=err)


def _rows(problems: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"place": row.place, "text": row.text, "severity": row.severity, "id": row.id} for row in problems]


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def _warn_of_dates(name: str, pem: bytes) -> None:
    """Tell of an encryption certificate that is out of its time: a token of it opens, but the image may be old too."""
    from casemate.contract.keys import kinds, validity

    if kinds(pem)[0].endswith("CERTIFICATE"):
        begins, ends = validity(pem)
        if not begins <= _now() <= ends:
            dates = f"{begins:%Y-%m-%d} to {ends:%Y-%m-%d}"
            click.echo(
                f"warning: {name}: the certificate is not valid today ({dates}); is there a newer image?", err=True
            )


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CasemateError(f"can't be made: {error.strerror}", where=str(path), id="CLI-FILE") from None


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CasemateError(f"not UTF-8 at byte {error.start}", "sections are text", id="CONTRACT-DOCUMENT") from None


def _text(name: str, compose: str | None = None) -> str:
    """Return a section or key as it will stand in a contract: a token without its newline, a text as it is."""
    from casemate.contract.token import is_token

    with _about(name):
        data = read_input(name, LARGEST)
        text = _utf8(data if compose is None else _with_archive(data, compose)).removeprefix("\ufeff")
    return text.strip() if is_token(text.strip()) else text


def _to_seal(name: str, compose: str | None) -> bytes:
    """Read what is to be sealed; refuse what nobody means to seal."""
    data = read_input(name, LARGEST)
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"hyper-protect-basic.", b"contract-basic.")):
        raise CasemateError("is a token already", "seal the plain text", id="CONTRACT-TOKEN")
    if data.lstrip().startswith(b"-----BEGIN ") and b"PRIVATE KEY-----" in data:
        raise CasemateError("is a private key", "keep it to yourself; seal its public half", id="CONTRACT-KEY")
    if compose is None:
        return data
    data = _with_archive(data, compose)
    _refuse_what_would_not_run(data)
    return data


def _refuse_what_would_not_run(data: bytes) -> None:
    """Tell everything that a machine would refuse of the compose file: what is sealed can't be looked at any more."""
    from casemate.contract.check import check_workload, problems_stop
    from casemate.contract.document import parse_section

    problems = [
        each for each in check_workload(parse_section(data)) if each.place.startswith("workload.compose.archive")
    ]
    _print_problems(problems, err=True)
    if problems_stop(problems):
        raise CasemateError(
            "a machine would refuse the compose file", "correct what is told above", id="CONTRACT-WORKLOAD"
        )


def _with_archive(data: bytes, compose: str) -> bytes:
    """Return a workload section with the directory as its compose archive."""
    from casemate.contract.document import parse_section, rewrite
    from casemate.contract.errors import DocumentError

    section = parse_section(data)
    if section.get("type") != "workload" or "compose" in section:
        raise CasemateError(
            "--compose goes with a plain workload section that has no `compose` of its own", id="CONTRACT-DOCUMENT"
        )
    archived = {**section, "compose": {"archive": _pack(compose)}}
    text = data.rstrip(b"\n") + f"\ncompose:\n  archive: {archived['compose']['archive']}\n".encode()
    try:
        if parse_section(text) == archived:
            return text  # the author's own words and order
    except DocumentError:
        pass
    return rewrite(archived).encode() + b"\n"


def _pack(directory: str) -> str:
    """Pack the regular files under a directory. Nothing is followed, and nothing else is there."""
    import os
    import stat
    from pathlib import Path

    from casemate.contract.archive import LARGEST_UNPACKED, MOST_MEMBERS, write_archive
    from casemate.contract.errors import ArchiveError

    files: dict[str, bytes] = {}
    executable = set()
    left = LARGEST_UNPACKED

    def failed(error: OSError) -> None:
        raise CasemateError(f"can't be read: {error.strerror}", where=str(error.filename), id="CLI-FILE") from None

    for top, directories, names in os.walk(directory, onerror=failed):
        for path in (Path(top, name) for name in (*directories, *names)):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode):
                raise ArchiveError(
                    "is neither a regular file nor a directory", "archives hold nothing else", where=str(path)
                )
            relative = path.relative_to(directory).as_posix()
            files[relative] = read_input(str(path), left)
            left -= len(files[relative])
            if status.st_mode & stat.S_IXUSR:
                executable.add(relative)
            if len(files) > MOST_MEMBERS:
                raise ArchiveError(f"more than {MOST_MEMBERS} files", where=directory)
    with _about(directory):
        if not files:
            raise ArchiveError("holds no files", "name the directory that holds docker-compose.yaml")
        return write_archive(files, frozenset(executable))


def _is_section(data: bytes, kind: str) -> bool:
    from casemate.contract.document import parse_section
    from casemate.contract.errors import DocumentError

    try:
        return parse_section(data).get("type") == kind
    except DocumentError:
        return False


def _private_key(name: str, password_file: str | None) -> RSAPrivateKey:
    """Load a private key; its password is the first line of a file, or asked for on a terminal."""
    from casemate.contract.keys import load_private_key

    pem = read_input(name, LARGEST)
    password = None
    if password_file is not None:
        password = read_input(password_file, 4096).split(b"\n", 1)[0].removesuffix(b"\r")
    elif b"ENCRYPTED" in pem and name != "-" and sys.stdin.isatty():
        password = click.prompt(f"Password of {name}", hide_input=True, err=True).encode()
    elif b"ENCRYPTED" in pem:
        cause, cure = (
            "the private key is protected by a password",
            "give a file that holds it: --key-password-file FILE",
        )
        raise CasemateError(cause, cure, name, id="CONTRACT-KEY")
    with _about(name):
        return load_private_key(pem, password)
