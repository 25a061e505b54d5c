"""Lines that a workload seals with openssl alone are opened on the host."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from contract_kit import Pair
from hypothesis import given
from hypothesis import strategies as st

from casemate.contract.token import open_in, seal
from program import Result

SCRIPT = Path(__file__).parents[2] / "docs/samples/seal-lines.sh"
Run = Callable[..., Result]


@pytest.fixture
def sealed(tmp_path: Path, small: Pair) -> list[str]:
    (tmp_path / "public.pem").write_bytes(small.public)
    (tmp_path / "private.pem").write_bytes(small.private)
    lines = "one line\n  'quoted' $(date) \\n \u00fc\n\nwithout an end"
    done = subprocess.run(
        ["sh", SCRIPT, tmp_path / "public.pem"], input=lines.encode(), capture_output=True, check=True
    )
    return done.stdout.decode().splitlines()


@pytest.mark.components
def test_the_sample_seals_line_by_line_and_the_command_opens(run: Run, tmp_path: Path, sealed: list[str]) -> None:
    assert len(sealed) == 4 and not any("line" in each for each in sealed)
    log = "".join(f"2026-11-25 vm container/app: {each}\n" for each in sealed) + "a plain line\n"
    (tmp_path / "log").write_text(log)
    result = run("contract", "open-log", tmp_path / "log", "--key", tmp_path / "private.pem")
    assert (result.code, result.err) == (0, "")
    texts = ["one line", "  'quoted' $(date) \\n \u00fc", "", "without an end"]
    assert result.out.decode() == "".join(f"2026-11-25 vm container/app: {text}\n" for text in texts) + "a plain line\n"


@pytest.mark.components
def test_what_is_sealed_for_another_key_stays_closed_and_is_told(run: Run, tmp_path: Path, sealed: list[str]) -> None:
    subprocess.run(["openssl", "genrsa", "-out", tmp_path / "other.pem", "2048"], check=True, capture_output=True)
    (tmp_path / "log").write_text(sealed[0] + "\n")
    result = run("contract", "open-log", tmp_path / "log", "--key", tmp_path / "other.pem")
    assert result.code == 1 and "1 tokens stay closed" in result.err
    assert result.out.decode() == sealed[0] + "\n"


def test_a_sealed_text_can_t_forge_another_line(small: Pair) -> None:
    text, closed = open_in(f"app: {seal(b'a' + bytes([10, 27]) + b'b', small.public)} end\n", small.key)
    assert (text, closed) == ("app: a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b end\n", 0)


@given(line=st.text() | st.from_regex(r"x hyper-protect-basic\.[A-Za-z0-9+/=]{0,40}\.[A-Za-z0-9+/=]{0,40} y"))
def test_whatever_a_line_is_it_stays_as_it_is_without_a_token(small: Pair, line: str) -> None:
    assert open_in(line, small.key)[0] == line
