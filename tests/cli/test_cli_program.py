"""What all commands share: help with examples, suggestions, errors for people and programs, exit codes, completion, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from contract_kit import Pair, make_pair
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.cli import GROUPS, casemate
from program import PROGRAM, Result

Run = Callable[..., Result]


def commands() -> Iterator[tuple[str, ...]]:
    """The words of every command that does something."""

    def leaves(command: click.Command | None, *words: str) -> Iterator[tuple[str, ...]]:
        if isinstance(command, click.Group):
            for name, one in command.commands.items():
                yield from leaves(one, *words, name)
        else:
            yield words

    for name in GROUPS:
        yield from leaves(casemate.get_command(click.Context(casemate), name), name)


ALL = list(commands())


@pytest.fixture(scope="session")
def pair() -> Pair:
    return make_pair(2048)


def test_the_commands_that_are_promised_are_there() -> None:
    promised = """
    demo; doctor; contract init; contract seal; contract assemble; contract check; contract open; contract schema;
    image build; image show; se pack; se open; se show; se host-key; se disk; se attest create; se attest perform;
    se attest verify; machine up; machine list; machine logs; machine record; machine down; attestation verify;
    certificate verify; volume passphrase; completion
    """
    assert {tuple(words.split()) for words in promised.split(";")} <= set(ALL)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_explains_itself_with_an_example(run: Run, words: tuple[str, ...]) -> None:
    for help in ("--help", "-h"):
        result = run(*words, help)
        assert (result.code, result.err) == (0, "")
    usage, _, rest = result.out.decode().partition("\n")
    assert usage.startswith(f"Usage: casemate {' '.join(words)}")
    assert re.search(rf"^ +(casemate .*\| )?casemate {' '.join(words)}\b", rest, re.MULTILINE), "no example"


@pytest.mark.parametrize("name", [name for name, *more in ALL if more and name], ids=str)
def test_every_group_lists_its_commands(run: Run, name: str) -> None:
    said = run(name, "--help").out.decode()
    for group, *command in ALL:
        if group == name:
            assert re.search(rf"^  {command[0]} ", said, re.MULTILINE)


def test_the_program_lists_its_groups_and_knows_its_version(run: Run) -> None:
    said = run("--help").out.decode()
    assert all(f"  {name} " in said for name in GROUPS)
    assert run("--version").out.decode().startswith("casemate, version ")
    bare = run()
    assert bare.code in (0, 2) and "Commands" in bare.out.decode() + bare.err


@pytest.mark.parametrize(
    ("typed", "meant"), [("contrat", "contract"), ("atestation", "attestation"), ("Machine", "machine")]
)
def test_an_unknown_command_suggests_the_nearest(run: Run, typed: str, meant: str) -> None:
    result = run(typed)
    assert result.code == 2 and result.out == b"" and meant in result.err


def test_an_unknown_command_like_none_is_just_unknown(run: Run) -> None:
    result = run("xyzzy")
    assert result.code == 2 and "No such command 'xyzzy'" in result.err and "Did you mean" not in result.err


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_an_unknown_option_is_code_2_and_no_traceback(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words, "--no-such-option")
    assert result.code == 2 and "Traceback" not in result.err and "--no-such-option" in result.err


FAILURES = [
    ("contract", "check", "nowhere.yaml"),
    ("contract", "seal", "nowhere.yaml", "--cert", "nowhere.crt"),
    ("contract", "sign", "nowhere.yaml", "--key", "nowhere.key"),
    ("image", "show", "."),
    ("certificate", "verify", "nowhere.crt", "--ca", "nowhere.crt"),
    ("attestation", "verify", "--record", "nowhere", "--signature", "nowhere", "--cert", "nowhere.crt"),
    ("se", "show", "empty"),
    ("machine", "record", "nobody", "-o", "record"),
]


@pytest.mark.parametrize("words", FAILURES, ids=lambda words: " ".join(words[:2]))
def test_a_failure_is_a_sentence_for_people_and_json_for_programs(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "empty").touch()
    plain = run(*words)
    assert plain.code == 1 and plain.out == b"" and "Traceback" not in plain.err
    assert re.match(r"[A-Z][A-Z0-9-]+: \S", plain.err)
    if words[:2] != ("machine", "record"):
        told = run(*words, "--json")
        error = json.loads(told.out)["error"]
        assert told.code == 1 and set(error) == {"id", "where", "cause", "cure"}
        assert plain.err.startswith(f"{error['id']}: ") and error["cause"] in plain.err


def modules_of(*words: str, cwd: Path) -> set[str]:
    script = "import sys; from casemate.cli import main\ntry: main()\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


HEAVY = {
    "rich",
    "jsonschema",
    "yaml",
    "pycdlib",
    "subprocess",
    "asyncio",
    "casemate.image.root",
    "casemate.machine.machines",
}


def test_a_command_imports_what_it_uses_and_no_more(tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "image.crt").write_bytes(pair.certificate)
    (tmp_path / "image.key").write_bytes(pair.private)
    (tmp_path / "env.yaml").write_text("type: env\n")
    sealed = modules_of("contract", "seal", "env.yaml", "--cert", "image.crt", "-o", "env.token", cwd=tmp_path)
    opened = modules_of("contract", "open", "env.token", "--key", "image.key", "-o", "plain", cwd=tmp_path)
    for loaded in (sealed, opened, modules_of("--version", cwd=tmp_path), modules_of("--help", cwd=tmp_path)):
        assert not loaded & HEAVY
    assert (tmp_path / "plain").read_text() == "type: env\n"
    assert not modules_of("--help", cwd=tmp_path) & {"cryptography", "json", "casemate.cli.contract"}
    passphrase = modules_of("volume", "passphrase", "--seed", "a" * 15, "--seed", "b" * 15, cwd=tmp_path)
    assert not passphrase & (HEAVY | {"cryptography"})


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.code == 0 and "_CASEMATE_COMPLETE" in result.out.decode()
    assert run("completion", "tcsh").code == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("casemate con", {"contract"}),
        ("casemate contract s", {"seal", "sign", "schema"}),
        ("casemate attestation verify --re", {"--record", "--reference", "--require-hardware"}),
        ("casemate completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_completion_completes(tmp_path: Path, typed: str, offered: set[str]) -> None:
    words = typed.split()
    number = len(words) - (0 if typed.endswith(" ") else 1)
    env = {**os.environ, "_CASEMATE_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(number)}
    script = "import sys; sys.argv[0] = 'casemate'; from casemate.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered


def test_ctrl_c_while_a_large_file_is_packed_leaves_nothing_behind(tmp_path: Path) -> None:
    public = ec.generate_private_key(ec.SECP521R1()).public_key()
    (tmp_path / "host.pub").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "kernel").write_bytes(b"kernel")
    with (tmp_path / "initrd").open("wb") as file:
        file.truncate(4 << 30)
    before = sorted(os.listdir(tmp_path))
    options = (
        "--kernel",
        "kernel",
        "--cmdline",
        "quiet",
        "--initrd",
        "initrd",
        "--no-verify",
        "--host-key",
        "host.pub",
        "-o",
        "image.img",
    )
    program = subprocess.Popen(
        [*PROGRAM, "se", "pack", *options],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where this run is in the background
    )
    try:
        end = time.monotonic() + 30
        while not [path for path in tmp_path.glob(".pack-*/image") if path.stat().st_size > 32 << 20]:
            assert program.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=30)
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 130 and said.strip().endswith("interrupted") and "Traceback" not in said
    assert sorted(os.listdir(tmp_path)) == before


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    program = subprocess.Popen([*PROGRAM, "contract", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None and program.stderr is not None
    program.stdout.close()
    said = program.stderr.read()
    program.stderr.close()
    program.wait(timeout=30)
    assert b"Traceback" not in said


def test_the_schema_is_one_of_draft_2020_12_and_is_shipped(run: Run) -> None:
    import jsonschema

    for of in ("contract", "workload", "env"):
        schema = json.loads(run("contract", "schema", "--of", of).out)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        jsonschema.Draft202012Validator.check_schema(schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({}, schema, cls=jsonschema.Draft202012Validator)
    outer = json.loads(run("contract", "schema").out)
    jsonschema.validate({"workload": "token", "env": {"type": "env"}}, outer, cls=jsonschema.Draft202012Validator)


@pytest.mark.components
def test_a_wheel_has_everything_that_is_not_a_module(tmp_path: Path) -> None:
    import zipfile

    root = Path(__file__).resolve().parents[2]
    source = root / "src/casemate"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {
        f"casemate/{path.relative_to(source)}" for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    assert {
        "casemate/contract/schema.json",
        "casemate/guest/units/hpl-storage.service",
        "casemate/cli/starter/env.yaml",
    } <= wanted
    assert wanted <= held


def test_a_mistake_on_the_command_line_is_json_where_json_was_asked_for(run: Run) -> None:
    result = run("attestation", "verify", "--record", "x", "--json")
    assert result.code == 2
    assert json.loads(result.out)["error"]["id"] == "CLI-USAGE"


def test_an_authority_that_is_none_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "root.crt").write_text("no certificate")
    (tmp_path / "leaf.crt").write_text("no certificate")
    result = run("certificate", "verify", "leaf.crt", "--ca", "root.crt")
    assert result.code == 1 and "leaf.crt" in result.err


def test_a_program_that_is_ended_leaves_nothing_half_done(tmp_path: Path) -> None:
    """By SIGTERM, as a service manager does it."""
    code = (
        "import sys, casemate.cli, tempfile, click, time\n"
        "@click.command()\n"
        "def slow():\n"
        "    with tempfile.TemporaryDirectory(dir=sys.argv[1]):\n"
        "        print('working', flush=True)\n"
        "        time.sleep(60)\n"
        "casemate.cli.casemate = slow\n"
        "place = sys.argv[1]; sys.argv[1:] = [place]; slow.params = [click.Argument(['place'], expose_value=False)]\n"
        "casemate.cli.main()\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.Popen([sys.executable, "-c", code, str(work)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"working\n"
    process.terminate()
    assert process.wait(30) == 130
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("output", ["", ".", "..", "there/", "there/."])
def test_an_output_that_names_no_file_is_refused(run: Run, tmp_path: Path, pair: Pair, output: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "env.yaml").write_text("type: env\nlogging: {}\n")
    (tmp_path / "plan.yaml").write_text("{}")
    (tmp_path / "image.crt").write_bytes(pair.certificate)
    for words in ("ceremony plan plan.yaml", "contract seal env.yaml --cert image.crt"):
        told = run(*words.split(), "-o", output, "--json")
        assert told.code == 1 and json.loads(told.out)["error"]["id"] == "CLI-FILE", told
