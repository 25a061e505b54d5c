"""``casemate contract`` and ``casemate volume``, as a person or a program runs them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from contract_kit import Encoding, Pair, craft, pad
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from casemate.contract.archive import read_archive
from casemate.contract.check import check_any, problems_stop
from casemate.contract.document import parse_contract
from casemate.contract.signature import verify
from casemate.contract.token import open_token, seal
from program import Result

Run = Callable[..., Result]
DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture
def files(tmp_path: Path, small: Pair, other: Pair) -> Path:
    """A directory with both sections, a compose directory and the keys of everyone: the image's is ``small``."""
    key = base64.b64encode(small.private).decode()
    certificate = base64.b64encode(small.certificate).decode()
    signing = base64.b64encode(other.public).decode()
    (tmp_path / "compose").mkdir()
    (tmp_path / "compose/docker-compose.yaml").write_text(f"services: {{db: {{image: 'r.example.com/db@{DIGEST}'}}}}\n")
    (tmp_path / "workload.yaml").write_text(
        "# of the provider\ntype: workload\nvolumes:\n  data: {seed: aaaaaaaaaaaaaaaa}\n"
    )
    (tmp_path / "env.yaml").write_text(
        "type: env\nlogging:\n  syslog:\n    hostname: h.example.com\n"
        f"    server: {certificate}\n    cert: {certificate}\n    key: {key}\n"
        f"volumes:\n  data: {{seed: bbbbbbbbbbbbbbbb}}\nsigningKey: {signing}\n"
    )
    (tmp_path / "image.crt").write_bytes(small.certificate)
    (tmp_path / "image.key").write_bytes(small.private)
    (tmp_path / "auditor.pub").write_bytes(other.public)
    (tmp_path / "signing.key").write_bytes(other.protected(b"open sesame"))
    (tmp_path / "password").write_text("open sesame\n")
    return tmp_path


SIGN = ("--sign-with", "signing.key", "--key-password-file", "password")
COMPOSE = ("--compose", "compose")
CERT = ("--cert", "image.crt")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------------------------------------- init


def test_a_start_lacks_only_what_a_person_must_give(run: Run, tmp_path: Path) -> None:
    result = run("contract", "init", "app")
    assert result.code == 0 and "README.md" in result.err
    assert mode(tmp_path / "app/workload.yaml") == mode(tmp_path / "app/env.yaml") == 0o600
    checked = run("contract", "check", "app/workload.yaml", "--compose", "app/compose", "--json")
    errors = [row["place"] for row in json.loads(checked.out)["problems"] if row["severity"] == "error"]
    assert errors == ["workload.compose.archive, docker-compose.yaml, services.database.image"]
    checked = run("contract", "check", "app/env.yaml", "--json")
    assert [row["place"] for row in json.loads(checked.out)["problems"]] == [
        "env.logging.syslog.server",
        "env.logging.syslog.cert",
        "env.logging.syslog.key",
    ]


def test_a_start_has_fresh_secrets_and_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    run("contract", "init", "one")
    run("contract", "init", "two")
    assert (tmp_path / "one/env.yaml").read_text() != (tmp_path / "two/env.yaml").read_text()
    (tmp_path / "one/env.yaml").write_text("mine")
    (tmp_path / "one/README.md").unlink()
    result = json.loads(run("contract", "init", "one", "--json").out)
    assert result["written"] == ["one/README.md"]
    assert len(result["kept"]) == 3
    assert (tmp_path / "one/env.yaml").read_text() == "mine"


# ------------------------------------------------------------------------------------------------- seal


@pytest.mark.parametrize("prefix", ["hyper-protect-basic", "contract-basic"])
def test_a_sealed_file_opens_to_the_same_bytes(run: Run, files: Path, small: Pair, prefix: str) -> None:
    result = run("contract", "seal", "env.yaml", *CERT, "--prefix", prefix)
    assert result.code == 0 and result.err == ""
    assert result.out.startswith(prefix.encode())
    (files / "env.token").write_bytes(result.out)
    assert run("contract", "open", "env.token", "--key", "image.key").out == (files / "env.yaml").read_bytes()


def test_many_files_are_sealed_in_one_call(run: Run, files: Path, small: Pair) -> None:
    names = [f"s{number}.yaml" for number in range(20)]
    for name in names:
        (files / name).write_text(f"type: env # {name}\n")
    assert run("contract", "seal", *names, *CERT).out.decode().split() == [f"{name}.token" for name in names]
    result = json.loads(run("contract", "seal", *names, *CERT, "-o", "deep/out", "--json").out)
    assert result["sealed"][3] == {"file": "s3.yaml", "output": "deep/out/s3.yaml.token"}
    for name in names:
        for token in (files / f"{name}.token", files / "deep/out" / f"{name}.token"):
            assert open_token(token.read_text(), small.key).plain == (files / name).read_bytes()


def test_a_compose_directory_is_sealed_with_its_section(run: Run, files: Path, small: Pair) -> None:
    (files / "compose/run.sh").write_text("#!/bin/sh\n")
    (files / "compose/run.sh").chmod(0o755)
    assert run("contract", "seal", "workload.yaml", *COMPOSE, *CERT, "-o", "w.token").code == 0
    plain = open_token((files / "w.token").read_text(), small.key).plain
    assert plain.startswith(b"# of the provider\n")
    archive = read_archive(yaml.safe_load(plain)["compose"]["archive"])
    assert archive.compose()[0] == "docker-compose.yaml" and archive.executable == {"run.sh"}
    again = run("contract", "archive", "compose").out.decode().strip()
    assert again == yaml.safe_load(plain)["compose"]["archive"]


def test_a_compose_file_that_a_machine_would_refuse_is_not_sealed(run: Run, files: Path) -> None:
    image = f"a@sha256:{'0' * 64}"
    text = f"services: {{a: {{image: '{image}', volums: [], ports: [x]}}}}\n"
    (files / "compose/docker-compose.yaml").write_text(text)
    result = run("contract", "seal", "workload.yaml", *COMPOSE, *CERT, "-o", "w.token")
    said = result.err
    assert result.code == 1 and not (files / "w.token").exists()
    assert "services.a.volums: not supported; did you mean volumes?" in said and "services.a.ports[0]: " in said


def test_a_section_in_another_style_gets_its_archive_too(run: Run, files: Path, small: Pair) -> None:
    (files / "workload.yaml").write_text('{"type": "workload"}')
    assert run("contract", "check", "workload.yaml", *COMPOSE).code == 0
    token = run("contract", "seal", "workload.yaml", *COMPOSE, *CERT).out.decode()
    assert set(yaml.safe_load(open_token(token, small.key).plain)) == {"type", "compose"}


@pytest.mark.parametrize("kind", ["link", "pipe", "socket directory", "empty", "missing"])
def test_a_directory_that_can_not_be_an_archive_is_refused(run: Run, files: Path, kind: str) -> None:
    path = files / "compose/x"
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket directory":
        path.symlink_to("/etc", target_is_directory=True)
    elif kind == "empty":
        (files / "compose/docker-compose.yaml").unlink()
    directory = "nowhere" if kind == "missing" else "compose"
    result = run("contract", "archive", directory)
    assert result.code == 1 and result.out == b""
    assert directory in result.err and "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("env.yaml", "--cert", "image.key"), "this is a private key"),
        (("env.yaml", "--cert", "env.yaml"), "neither a certificate"),
        (("env.yaml", "--cert", "nothing.crt"), "can't be read"),
        (("nothing.yaml", *CERT), "can't be read"),
        (("image.key", *CERT), "is a private key"),
        (("token", *CERT), "is a token already"),
        (("env.yaml", *CERT, "--compose", "compose"), "goes with a plain workload section"),
        (("large", *CERT), "more than"),
        (("env.yaml", *CERT, "-o", "no/such/directory"), "can't be written"),
    ],
)
def test_what_should_not_be_sealed_is_not(run: Run, files: Path, small: Pair, arguments: list[str], cause: str) -> None:
    (files / "token").write_text(seal(b"x", small.public))
    (files / "large").write_bytes(bytes(3 << 20))
    result = run("contract", "seal", *arguments)
    assert result.code == 1 and result.out == b""
    assert cause in result.err
    told = json.loads(run("contract", "seal", *arguments, "--json").out)
    assert cause in told["error"]["cause"]


@pytest.mark.parametrize("arguments", [("a/x", "b/x", "-o", "d"), ("a", "-"), ("a", "a"), ("a", "b", *COMPOSE), ()])
def test_a_wrong_command_line_is_code_2(run: Run, files: Path, arguments: list[str]) -> None:
    assert run("contract", "seal", *arguments, *CERT).code == 2


def test_sealing_imports_nothing_that_it_does_not_use(files: Path) -> None:
    script = (
        "import sys; from casemate.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(*sorted(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "contract", "seal", "env.yaml", *CERT]
    ended = subprocess.run(command, cwd=files, capture_output=True, text=True, check=True)
    loaded = set(ended.stderr.split())
    assert "casemate.contract.token" in loaded
    heavy = {"yaml", "jsonschema", "rich", "json", "pathlib", "tarfile", "tempfile", "concurrent.futures", "subprocess"}
    assert not loaded & heavy
    ours = {name for name in loaded if name.startswith("casemate.")}
    assert ours <= {
        "casemate.cli", "casemate.cli.contract", "casemate.cli.ui", "casemate.contract", "casemate.contract.errors",
        "casemate.contract.keys", "casemate.contract.token", "casemate.errors",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- assemble, sign


def test_provider_and_deployer_make_a_contract_without_seeing_each_other(
    run: Run, files: Path, small: Pair, other: Pair
) -> None:
    run("contract", "seal", "workload.yaml", *COMPOSE, *CERT, "-o", "w.token")
    result = run(
        "contract", "assemble", "--workload", "w.token", "--env", "env.yaml", "--attestation-key", "auditor.pub",
        *SIGN, *CERT, "-o", "contract.yaml",
    )  # fmt: skip
    assert (result.code, result.err) == (0, "")
    contract = parse_contract((files / "contract.yaml").read_bytes())
    assert contract.workload == (files / "w.token").read_text().strip()
    assert open_token(contract.env, small.key).plain == (files / "env.yaml").read_bytes()
    assert contract.attestation_public_key is not None and contract.envworkload_signature is not None
    assert open_token(contract.attestation_public_key, small.key).plain == other.public
    verify(contract.workload, contract.env, contract.envworkload_signature, other.key.public_key())
    checked = run("contract", "check", "contract.yaml", *CERT)
    assert checked.code == 0 and b"4 notes" in checked.out
    opened = run("contract", "open", "contract.yaml", "--key", "image.key", "-o", "plain.yaml")
    assert opened.code == 0 and "signature is left out" in opened.err
    assert mode(files / "plain.yaml") == 0o600
    assert yaml.safe_load((files / "plain.yaml").read_bytes())["env"] == (files / "env.yaml").read_text()


def test_a_plain_contract_is_signed_and_checked(run: Run, files: Path) -> None:
    run("contract", "assemble", "--workload", "workload.yaml", *COMPOSE, "--env", "env.yaml", *SIGN, "-o", "c.yaml")
    assert run("contract", "check", "c.yaml").code == 0
    signed = yaml.safe_load((files / "c.yaml").read_bytes())["envWorkloadSignature"]
    (files / "c.yaml").write_text((files / "c.yaml").read_text().replace("aaaaaaaaaaaaaaaa", "cccccccccccccccc"))
    assert run("contract", "check", "c.yaml").code == 1
    result = run(
        "contract", "sign", "c.yaml", "--key", "signing.key", "--key-password-file", "password", "-o", "c.yaml"
    )
    assert result.code == 0
    assert run("contract", "check", "c.yaml").code == 0
    assert yaml.safe_load((files / "c.yaml").read_bytes())["envWorkloadSignature"] != signed
    told = run("contract", "sign", "c.yaml", "--key", "signing.key", "--key-password-file", "password", "--json")
    assert set(json.loads(told.out)) == {"envWorkloadSignature"}


def test_a_contract_with_errors_is_not_written(run: Run, files: Path) -> None:
    (files / "workload.yaml").write_text("type: workload\nvolumes: {data: {seed: short}}\n")
    command = ("contract", "assemble", "--workload", "workload.yaml", "--env", "env.yaml", *SIGN, *CERT, "-o", "c.yaml")
    result = run(*command)
    assert result.code == 1 and not (files / "c.yaml").exists()
    assert "workload.volumes.data.seed" in result.err and "exactly one of compose" in result.err
    assert run(*command, "--unchecked").code == 0
    assert (files / "c.yaml").exists()


def test_a_signing_key_that_env_does_not_name_is_told(run: Run, files: Path) -> None:
    command = ("contract", "assemble", "--workload", "workload.yaml", *COMPOSE, "--env", "env.yaml", *CERT)
    assert "envWorkloadSignature: is missing" in run(*command).err
    assert "does not hold" in run(*command, "--sign-with", "image.key").err


def test_a_section_given_as_a_mapping_is_not_signed(run: Run, files: Path) -> None:
    (files / "c.yaml").write_text("workload: {type: workload}\nenv: {type: env}\n")
    result = run("contract", "sign", "c.yaml", "--key", "image.key")
    assert result.code == 1 and "no exact string" in result.err


def test_a_password_is_asked_for_by_file_or_told_missing(run: Run, files: Path) -> None:
    (files / "c.yaml").write_text("workload: x\nenv: y\n")
    assert "protected by a password" in run("contract", "sign", "c.yaml", "--key", "signing.key").err
    (files / "password").write_text("wrong\n")
    result = run("contract", "sign", "c.yaml", "--key", "signing.key", "--key-password-file", "password")
    assert "does not open with this password" in result.err and "wrong" not in result.err


# ------------------------------------------------------------------------------------------------- check, open


def test_two_sections_are_checked_against_each_other(run: Run, files: Path) -> None:
    assert run("contract", "check", "workload.yaml", "env.yaml", *COMPOSE).code == 0
    (files / "env.yaml").write_text((files / "env.yaml").read_text().replace("data: {", "date: {"))
    result = run("contract", "check", "env.yaml", "workload.yaml", *COMPOSE)
    assert result.code == 1
    assert b"workload.volumes.data.seed: has no partner" in result.out and b"did you mean data?" in result.out


def test_a_check_tells_the_file_that_is_wrong(run: Run, files: Path) -> None:
    (files / "broken.yaml").write_text("type: env\na: [\n")
    result = run("contract", "check", "broken.yaml")
    assert result.code == 1 and b"line " in result.out
    assert "image.key: this is a private key" in run("contract", "check", "env.yaml", "--cert", "image.key").err
    assert run("contract", "check", "nothing.yaml").code == 1
    assert run("contract", "check", "env.yaml", *COMPOSE).code == 2


def test_a_token_under_a_short_password_opens_with_a_warning(run: Run, files: Path, small: Pair) -> None:
    public = small.key.public_key()
    (files / "short").write_text(craft(public, b"\nrest", b"", pad(b"type: env\n")) + "\n")
    result = run("contract", "open", "short", "--key", "image.key")
    assert result.code == 0 and result.out == b"type: env\n"
    assert "short password" in result.err and "replace the secrets" in result.err
    (files / "c.yaml").write_text(f"workload: {craft(public, b'ab', b'ab', pad(b'w'))}\nenv: {seal(b'e', public)}\n")
    result = run("contract", "open", "c.yaml", "--key", "image.key")
    assert result.err.count("short password") == 1 and "workload" in result.err


def test_what_does_not_open_says_so_in_one_sentence(run: Run, files: Path, small: Pair, image: Pair) -> None:
    (files / "foreign").write_text(seal(b"x", image.public))
    (files / "cut").write_text(seal(b"x", small.public)[:-4])
    (files / "nonsense").write_bytes(bytes(range(256)))
    said = [run("contract", "open", name, "--key", "image.key") for name in ("foreign", "cut", "nonsense")]
    assert [result.code for result in said] == [1, 1, 1]
    assert said[0].err.replace("foreign", "") == said[1].err.replace("cut", "")
    assert all(result.out == b"" and "Traceback" not in result.err for result in said)


def test_the_schema_is_printed_for_the_whole_or_a_section(run: Run) -> None:
    for of in ("contract", "workload", "env"):
        assert json.loads(run("contract", "schema", "--of", of).out)["$ref"] == f"#/$defs/{of}"


@pytest.mark.parametrize("command", ["init", "seal", "archive", "sign", "assemble", "check", "open", "schema"])
def test_every_command_explains_itself_with_an_example(run: Run, command: str) -> None:
    result = run("contract", command, "--help")
    assert result.code == 0
    assert f"casemate contract {command}" in result.out.decode().split("Options:")[0].split("\n", 1)[1]


def test_what_a_program_made_is_what_the_check_takes(files: Path) -> None:
    assert not problems_stop(check_any((files / "env.yaml").read_bytes()))


@pytest.mark.parametrize("around", ["{}", " {}", "{} ", "\n{}\n\n", "{}\r\n", "\ufeff{}"])
def test_white_space_around_a_token_does_not_matter(run: Run, files: Path, small: Pair, around: str) -> None:
    (files / "w.token").write_text(around.format(seal(b"type: env\n", small.public)))
    assert run("contract", "open", "w.token", "--key", "image.key").out == b"type: env\n"
    assert "is a token already" in run("contract", "seal", "w.token", *CERT).err
    command = ("contract", "assemble", "--workload", "w.token", "--env", "w.token")
    assert run(*command, "-o", "c.yaml").code == 0
    assert yaml.safe_load((files / "c.yaml").read_bytes())["env"] == (files / "w.token").read_text("utf-8-sig").strip()


def test_a_program_reads_what_opened_and_what_was_weak(run: Run, files: Path, small: Pair) -> None:
    public = small.key.public_key()
    (files / "good").write_text(seal(b"type: env\n", public))
    (files / "short").write_text(craft(public, b"\nrest", b"", pad(b"type: env\n")))
    told = run("contract", "open", "good", "--key", "image.key", "--json")
    assert json.loads(told.out) == {"plain": "type: env\n", "short_password": []} and told.err == ""
    told = run("contract", "open", "short", "--key", "image.key", "--json", "-o", "plain")
    assert json.loads(told.out) == {"output": "plain", "short_password": ["short"]}
    assert "short password" in told.err and mode(files / "plain") == 0o600
    (files / "c.yaml").write_text(f"workload: {(files / 'good').read_text()}\nenv: {(files / 'short').read_text()}\n")
    told = run("contract", "open", "c.yaml", "--key", "image.key", "--json")
    assert json.loads(told.out)["short_password"] == ["env"]


def test_who_holds_the_key_checks_what_is_sealed(run: Run, files: Path) -> None:
    command = ("contract", "assemble", "--workload", "workload.yaml", *COMPOSE, "--env", "env.yaml", *SIGN, *CERT)
    told = json.loads(run(*command, "-o", "c.yaml", "--json").out)
    assert told["output"] == "c.yaml" and all(row["severity"] == "warning" for row in told["problems"])
    assert run("contract", "check", "c.yaml", "--key", "image.key").code == 0
    (files / "workload.yaml").write_text((files / "workload.yaml").read_text().replace("aaaaaaaa", "a"))
    bad = json.loads(run(*command, "--unchecked", "--json").out)["contract"]
    (files / "c.yaml").write_text(bad)
    assert run("contract", "check", "c.yaml").code == 0
    result = run("contract", "check", "c.yaml", "--key", "image.key")
    assert result.code == 1 and b"workload.volumes.data.seed: must have 15" in result.out
    result = run("contract", "check", "c.yaml", "--key", "signing.key", "--key-password-file", "password")
    assert result.code == 1 and b"workload: the token does not open" in result.out


def test_a_password_that_is_missing_is_told_with_its_option(run: Run, files: Path) -> None:
    (files / "c.yaml").write_text("workload: x\nenv: y\n")
    assert "--key-password-file" in run("contract", "sign", "c.yaml", "--key", "signing.key").err


def test_an_expired_certificate_seals_with_a_warning(run: Run, files: Path, small: Pair) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    old = (
        x509.CertificateBuilder(name, name, small.key.public_key(), 1)
        .not_valid_before(datetime(2020, 1, 1))
        .not_valid_after(datetime(2021, 1, 1))
        .sign(small.key, SHA256())
    )
    (files / "old.crt").write_bytes(old.public_bytes(Encoding.PEM))
    result = run("contract", "seal", "env.yaml", "--cert", "old.crt")
    assert result.code == 0 and "2020-01-01 to 2021-01-01" in result.err
    assert open_token(result.out.decode(), small.key).plain == (files / "env.yaml").read_bytes()
    (files / "c.yaml").write_bytes(b"workload: " + result.out + b"env: " + result.out)
    assert (
        b"encryption certificate: the certificate expired"
        in run("contract", "check", "c.yaml", "--cert", "old.crt").out
    )


# ------------------------------------------------------------------------------------------------- where it is written


def test_an_output_that_is_no_file_is_written_to_and_stays(run: Run, files: Path) -> None:
    os.mkfifo(files / "pipe")
    reader = os.open(files / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("contract", "seal", "env.yaml", *CERT, "-o", "pipe").code == 0
        assert os.read(reader, 30).startswith(b"hyper-protect-basic.")
    finally:
        os.close(reader)
    assert stat.S_ISFIFO((files / "pipe").stat().st_mode)
    (files / "link").symlink_to("there")
    for _ in range(2):
        assert run("contract", "seal", "env.yaml", *CERT, "-o", "link").code == 0
    assert (files / "link").is_symlink() and (files / "there").read_bytes().startswith(b"hyper-protect-basic.")
    result = run("contract", "seal", "env.yaml", *CERT, "-o", "compose")
    assert result.code == 1 and "Is a directory" in result.err


def test_an_output_is_no_more_readable_than_the_user_wants(run: Run, files: Path) -> None:
    before = os.umask(0o077)
    try:
        run("contract", "seal", "env.yaml", *CERT, "-o", "token")
    finally:
        os.umask(before)
    assert mode(files / "token") == 0o600
    (files / "plain").write_text("")
    run("contract", "open", "token", "--key", "image.key", "-o", "plain")
    assert mode(files / "plain") == 0o600
    assert not [path for path in files.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("command", [("seal", "env.yaml", *CERT), ("check", "env.yaml"), ("schema",)])
def test_a_full_disk_behind_standard_output_is_a_sentence(files: Path, command: tuple[str, ...]) -> None:
    program = [sys.executable, "-c", "from casemate.cli import main; main()", "contract", *command]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(program, cwd=files, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("CLI-FILE: standard output: No space left on device\n")


# ------------------------------------------------------------------------------------------------- volume


def test_the_passphrase_comes_from_seeds_in_order(run: Run, tmp_path: Path) -> None:
    one, two = "a" * 16, "-b" * 16
    expected = hashlib.sha256((one + two).encode()).hexdigest()
    assert run("volume", "passphrase", "--seed", one, "--seed", two).out.decode() == f"{expected}\n"
    (tmp_path / "one").write_text(one)
    (tmp_path / "two").write_text(f"{two}\n")
    assert run("volume", "passphrase", "--seed-file", "one", "--seed-file", "two", "-o", "key").code == 0
    assert (tmp_path / "key").read_text() == expected
    assert mode(tmp_path / "key") == 0o600
    told = run("volume", "passphrase", "--seed", one, "--seed", two, "--json")
    assert json.loads(told.out) == {"passphrase": expected}


def test_seeds_that_are_none_are_refused(run: Run, tmp_path: Path) -> None:
    assert run("volume", "passphrase", "--seed", "a" * 16).code == 2
    assert run("volume", "passphrase", "--seed", "a" * 16, "--seed-file", "x").code == 2
    short = run("volume", "passphrase", "--seed", "SECRET", "--seed", "a" * 16)
    assert short.code == 1 and "SECRET" not in short.err
    (tmp_path / "x").write_bytes(b"\xff" * 20)
    assert run("volume", "passphrase", "--seed-file", "x", "--seed-file", "x").code == 1
