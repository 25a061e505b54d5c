"""What all tests share: the program, run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from namespaces import mount_root
from program import Result
from tokens import new_token, token  # noqa: F401

mount_root()

settings.register_profile("casemate", deadline=None)  # how fast a machine is says nothing about a rule
settings.load_profile("casemate")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Callable[..., Result]:
    """Run the program, in this process, from an empty directory, and return what it printed."""
    from casemate.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["casemate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        return Result(int(end.value.code or 0), out, err.decode())

    return run
