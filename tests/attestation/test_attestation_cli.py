"""``casemate attestation``, as an auditor types it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pki
import pytest
from attestation_kit import CONTRACT, MARK, META, PUBLISHED, VENDOR, now, reference, sha256, sign
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)

from casemate.contract.token import seal
from program import Result

Run = Callable[..., Result]
TIME = {"start": now() - pki.DAY, "end": now() + 30 * pki.DAY}
RECORD = ("--record", "se-checksums.txt", "--signature", "se-signature.bin")
CERT = ("--cert", "attestation.crt")
CHAIN = (*CERT, "--ca", "intermediate.crt", "--ca", "root.crt", "--crl", "crl.pem")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What an auditor has: a published record with its signature, its chain, the contract, reference values, keys."""
    auditor = pki.key("auditor")
    public = auditor.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    contents = {
        "se-checksums.txt": PUBLISHED,
        "se-checksums.txt.enc": seal(PUBLISHED, public).encode(),
        "se-signature.bin": sign(PUBLISHED),
        "root.crt": pki.certificate("root", "root", ca=True, **TIME),
        "intermediate.crt": pki.certificate("intermediate", "root", ca=True, **TIME),
        "attestation.crt": pki.certificate("attestation", "intermediate", serial=4711, **TIME),
        "crl.pem": pki.crl("intermediate", **TIME),
        "revoked.pem": pki.crl("intermediate", [4711], **TIME),
        "contract.yaml": CONTRACT,
        "reference-values.json": reference(),
        "auditor.key": pki.key_pem(auditor),
        "protected.key": auditor.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame")),
        "another.key": pki.key_pem(pki.key("another auditor")),
        "password": b"open sesame\n",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def image(files: Path) -> Path:
    """An image directory, as far as it is public, of a development authority."""
    directory = files / "image"
    directory.mkdir()
    marked = pki.certificate("root", "root", ca=True, extensions=[MARK], **TIME)
    (directory / "root.crt").write_bytes(marked)
    for name in ("intermediate.crt", "attestation.crt", "crl.pem", "reference-values.json"):
        (directory / name).write_bytes((files / name).read_bytes())
    return directory


def verify(run: Run, *arguments: object) -> Result:
    return run("attestation", "verify", *arguments)


def test_all_that_was_asked_for_is_proved(run: Run, files: Path) -> None:
    everything = (*RECORD, *CHAIN, "--reference", "reference-values.json", "--contract", "contract.yaml")
    result = verify(run, *everything)
    said = result.out.decode()
    assert result.code == 0 and result.err == ""
    assert "PROVED: everything that was asked for" in said and "NOT PROVED" not in said
    for title in ("Who says so", "The image", "The machine", "The delivered volume", "The contract"):
        assert title in said
    assert "✓ root.tar.gz" in said and "○ Image age" in said and "nothing was given to compare it with" in said
    assert verify(run, *everything, "--require-hardware").code == 0


@pytest.mark.parametrize(
    ("arguments", "failed"),
    [
        ((*CHAIN[:-1], "revoked.pem"), {"chain", "revocation"}),
        ((*CERT, "--ca", "root.crt"), {"chain"}),
        ((*CERT, "--require-hardware"), {"TEE"}),
        ((*CERT, "--contract", "other.yaml"), {"contract:workload"}),
        ((*CERT, "--reference", "other.json"), {"sbom"}),
        (("--cert", "root.crt"), {"signature"}),
    ],
)
def test_the_exit_code_is_1_where_anything_asked_for_is_not_proved(
    run: Run, files: Path, arguments: tuple[str, ...], failed: set[str]
) -> None:
    (files / "other.yaml").write_bytes(CONTRACT.replace(b"AAAA", b"EEEE"))
    (files / "other.json").write_bytes(reference(sbom=sha256(b"other")))
    told = json.loads(verify(run, *RECORD, *arguments, "--json").out)
    assert {row["name"] for row in told["rows"] if row["asked"] and row["verdict"] != "proved"} == failed
    assert told["holds"] is False
    result = verify(run, *RECORD, *arguments)
    assert result.code == 1
    assert (
        f"NOT PROVED: {', '.join(row['name'] for row in told['rows'] if row['name'] in failed)}" in result.out.decode()
    )


def test_a_changed_record_fails(run: Run, files: Path) -> None:
    (files / "se-checksums.txt").write_bytes(PUBLISHED.replace(b"3 days", b"4 days"))
    result = verify(run, *RECORD, *CHAIN)
    assert result.code == 1 and "✗ signature" in result.out.decode()
    assert "4 days" not in result.out.decode()


def test_an_image_directory_brings_chain_and_reference_values(run: Run, files: Path, image: Path) -> None:
    result = verify(run, *RECORD, "--image", "image", "--contract", "contract.yaml")
    assert result.code == 0 and "DEVELOPMENT TEE" in result.out.decode()
    told = json.loads(verify(run, *RECORD, "--image", "image", "--json").out)
    assert told["development"] is True and told["holds"] is True
    asked = {row["name"] for row in told["rows"] if row["asked"]}
    assert asked == {"signature", "chain", "revocation", "version", "root.tar.gz", "baseimage", "sbom"}
    assert verify(run, *RECORD, "--image", "image", "--require-hardware").code == 1


def test_with_ca_the_images_own_root_is_not_trusted(run: Run, files: Path, image: Path) -> None:
    other = pki.certificate("other root", "other root", ca=True, **TIME)
    (files / "other.crt").write_bytes(other)
    assert verify(run, *RECORD, "--image", "image", "--ca", "other.crt").code == 1
    assert verify(run, *RECORD, "--image", "image", "--ca", "root.crt").code == 0


def test_a_directory_that_is_no_image_is_an_error(run: Run, files: Path) -> None:
    (files / "nothing").mkdir()
    result = verify(run, *RECORD, "--image", "nothing", "--json")
    assert result.code == 1 and json.loads(result.out)["error"]["id"] == "CLI-FILE"


def test_the_directory_of_a_record_is_enough(run: Run, files: Path) -> None:
    directory = files / "record"
    (directory / "cidata").mkdir(parents=True)
    for name in ("se-checksums.txt", "se-signature.bin"):
        (directory / name).write_bytes((files / name).read_bytes())
    (directory / "cidata/meta-data").write_bytes(META)
    (directory / "cidata/vendor-data").write_bytes(VENDOR)
    told = json.loads(verify(run, "--record", "record", *CERT, "--json").out)
    assert {row["name"] for row in told["rows"] if row["asked"]} == {
        "signature",
        "cidata/meta-data",
        "cidata/vendor-data",
    }
    (directory / "cidata/meta-data").write_bytes(b"local-hostname: other\n")
    assert verify(run, "--record", "record", *CERT).code == 1
    (directory / "se-checksums.txt.enc").write_bytes(b"x")
    result = verify(run, "--record", "record", *CERT)
    assert result.code == 1 and "holds 2 records" in result.err
    (files / "empty").mkdir()
    assert "holds 0 records" in verify(run, "--record", "empty", *CERT).err


SEALED = ("--record", "se-checksums.txt.enc", "--signature", "se-signature.bin", *CERT)


@pytest.mark.parametrize(
    ("key", "code", "said"),
    [
        (("--key", "auditor.key"), 0, "it opened with the auditor's private key"),
        (("--key", "protected.key", "--key-password-file", "password"), 0, "it opened with the auditor's private key"),
        (("--key", "protected.key"), 1, "protected by a password"),
        (("--key", "protected.key", "--key-password-file", "contract.yaml"), 1, "does not open with this password"),
        (("--key", "another.key"), 1, "the token does not open"),
        (("--key", "root.crt"), 1, "not a private key"),
        (("--key", "nowhere.key"), 1, "can't be read"),
        ((), 1, "give the auditor's private key"),
        (("--key-password-file", "password"), 2, "without --key"),
    ],
)
def test_a_sealed_record_needs_its_auditors_key(
    run: Run, files: Path, key: tuple[str, ...], code: int, said: str
) -> None:
    result = verify(run, *SEALED, *key)
    assert result.code == code
    assert said in " ".join((result.out.decode() + result.err).split())
    assert "open sesame" not in result.out.decode() + result.err


@pytest.mark.parametrize(
    "arguments",
    [(), (*CERT, "--image", "."), ("--image", "nowhere"), ("--cert",), (*CERT, "--nonsense")],
)
def test_a_wrong_command_line_is_code_2(run: Run, files: Path, arguments: tuple[str, ...]) -> None:
    assert verify(run, *RECORD, *arguments).code == 2
    assert verify(run, "--record", "se-checksums.txt", *CERT).code == 2


def test_newer_lists_take_the_place_of_those_of_the_image(run: Run, image: Path, files: Path) -> None:
    old = pki.crl("intermediate", start=now() - 40 * pki.DAY, end=now() - 10 * pki.DAY)
    (image / "crl.pem").write_bytes(old)
    assert verify(run, *RECORD, "--image", "image").code == 1  # a list that is out of date proves nothing
    assert verify(run, *RECORD, "--image", "image", "--crl", "crl.pem").code == 0
    revoked = verify(run, *RECORD, "--image", "image", "--crl", "revoked.pem")
    assert revoked.code == 1 and "revoked" in revoked.out.decode()


def test_the_roots_list_of_an_image_is_looked_at_too(run: Run, image: Path, files: Path) -> None:
    (image / "root.crl.pem").write_bytes(pki.crl("root", **TIME))
    assert verify(run, *RECORD, "--image", "image").code == 0
    serial = x509.load_pem_x509_certificate((files / "intermediate.crt").read_bytes()).serial_number
    (image / "root.crl.pem").write_bytes(pki.crl("root", [serial], **TIME))
    revoked = verify(run, *RECORD, "--image", "image")
    assert revoked.code == 1 and "revoked" in revoked.out.decode()


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--record", "nowhere", "--signature", "se-signature.bin", *CERT), "can't be read"),
        (("--record", "se-checksums.txt", "--signature", "large", *CERT), "more than"),
        ((*RECORD, "--cert", "contract.yaml"), "neither a certificate"),
        ((*RECORD, *CERT, "--contract", "password"), "not a mapping"),
        ((*RECORD, *CERT, "--reference", "password"), "not JSON"),
        ((*RECORD, *CERT, "--cidata", "password"), ""),
        ((*RECORD, *CERT, "--crl", "crl.pem"), "no authority"),
    ],
)
def test_what_can_not_be_read_is_an_error_for_people_and_programs(
    run: Run, files: Path, arguments: tuple[str, ...], cause: str
) -> None:
    (files / "large").write_bytes(bytes(2 << 10))
    result = verify(run, *arguments)
    assert result.code == 1 and result.out == b"" and cause in result.err and "Traceback" not in result.err
    error = json.loads(verify(run, *arguments, "--json").out)["error"]
    assert set(error) == {"id", "where", "cause", "cure"} and cause in error["cause"]


def test_the_page_is_written_and_the_verdict_printed(run: Run, files: Path) -> None:
    result = verify(run, *RECORD, *CHAIN, "--html", "verdict.html")
    assert result.code == 0 and "PROVED" in result.out.decode()
    assert (files / "verdict.html").read_text().startswith("<!doctype html>")
    alone = verify(run, *RECORD, *CHAIN, "--html", "-")
    assert alone.out.startswith(b"<!doctype html>") and alone.out.endswith(b"</html>\n")
    failed = verify(run, *RECORD, *CHAIN[:-1], "revoked.pem", "--html", "failed.html")
    assert failed.code == 1 and "not proved" in (files / "failed.html").read_text()


def test_a_hostile_name_does_not_reach_the_terminal(run: Run, files: Path) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J[red]x[/] \u202e"
    made = pki.certificate(pki.name(hostile), "intermediate", public=pki.key("attestation").public_key(), **TIME)
    (files / "attestation.crt").write_bytes(made)
    for command in (
        ("attestation", "verify", *RECORD, *CHAIN),
        ("attestation", "verify", *RECORD, *CHAIN[:4]),
        ("certificate", "verify", "attestation.crt", *CHAIN[2:]),
        ("certificate", "verify", "attestation.crt", "--ca", "root.crt"),
    ):
        result = run(*command)
        text = result.out.decode() + result.err
        assert "[red]x" in text or command[0] == "attestation"
        assert all(character.isprintable() or character == "\n" for character in text)


def test_show_says_that_nothing_is_verified(run: Run, files: Path) -> None:
    said = run("attestation", "show", "--record", "se-checksums.txt").out.decode()
    assert said.startswith("Not verified") and "9175/02/C25B8" in said
    told = json.loads(
        run("attestation", "show", "--record", "se-checksums.txt.enc", "--key", "auditor.key", "--json").out
    )
    assert told["verified"] is False and told["version"] == "25.11.0" and told["unknown"] == []
    assert told["hashes"]["root.tar.gz"] == sha256(b"root")
    assert run("attestation", "show", "--record", "se-checksums.txt.enc").code == 1


def test_standard_input_is_a_record_too(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PUBLISHED)))
    assert verify(run, "--record", "-", *RECORD[2:], *CERT).code == 0


def test_a_base64_signature_is_not_taken_for_a_raw_one(run: Run, files: Path) -> None:
    (files / "se-signature.bin").write_bytes(base64.b64encode(sign(PUBLISHED)))
    assert verify(run, *RECORD, *CERT).code == 1
