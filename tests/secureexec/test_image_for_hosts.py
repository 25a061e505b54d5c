"""``casemate image build --host-key``: whoever can open the image reads its keys, so documents are verified before any work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from signed import ABOVE, LISTS

from casemate.cli import hostkeys
from casemate.errors import CasemateError

PROGRAM = (sys.executable, "-c", "from casemate.cli import main; main()", "image", "build", "new")
GOOD = (*(f"--host-ca={name}" for name in ABOVE), *(f"--crl={name}" for name in LISTS))


@pytest.fixture
def work(tmp_path: Path, signed: Callable[[Path], None]) -> Path:
    signed(tmp_path)
    return tmp_path


def build(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *words], cwd=work, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--host-key", "host.crt"), 2, "--host-ca and --crl"),
        (("--host-key", "host.crt", "--host-ca", "signing.crt", "--no-verify"), 2, "--no-verify checks nothing"),
        (("--crl", "root.crl"), 2, "no --host-key"),
        (("--no-verify",), 2, "no --host-key"),
        (("--host-key", "host.crt", *GOOD[:-1]), 1, "no revocation list"),
        (("--host-key", "host.crt", *GOOD[1:]), 1, "was not given"),
        (("--host-key", "revoked.crt", *GOOD), 1, "revoked"),
        (("--host-key", "stranger.crt", *GOOD), 1, "not signed by a host-key signing key"),
        (("--host-key", "forged.crt", *GOOD), 1, "CERTIFICATE-SIGNATURE"),
        (("--host-key", "expired.crt", *GOOD), 1, "not valid today"),
        (("--host-key", "expired.crt", "--no-verify"), 1, "not valid today"),
    ],
)
def test_no_image_is_built_for_a_host_whose_document_does_not_hold(
    work: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done = build(work, *words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not (work / "new").exists()


def test_what_was_verified_is_what_the_image_is_built_for(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bytes are read once: a document that is replaced after the check changes nothing."""
    paths = {name: tuple(str(work / one) for one in names) for name, names in (("above", ABOVE), ("lists", LISTS))}
    documents = hostkeys.Documents((str(work / "host.crt"),), paths["above"], paths["lists"], (), False, False)
    assert hostkeys.read(documents) == [("host.crt", (work / "host.crt").read_bytes())]
    assert capsys.readouterr().err == ""
    bad = hostkeys.Documents((str(work / "forged.crt"),), paths["above"], paths["lists"], (), False, False)
    with pytest.raises(CasemateError):
        hostkeys.read(bad)
    loud = hostkeys.Documents((str(work / "forged.crt"),), (), (), (), False, True)
    assert hostkeys.read(loud)[0][0] == "forged.crt"
    assert "NOT verified" in capsys.readouterr().err
    with pytest.raises(click.UsageError):
        hostkeys.read(hostkeys.Documents((str(work / "host.crt"),), (), (), (), False, False))
