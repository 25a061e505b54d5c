"""The program ``casemate``, as the tests run it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

PROGRAM = (sys.executable, "-c", "from casemate.cli import main; main()")


@dataclass(frozen=True)
class Result:
    """What a run of the program gave."""

    code: int
    out: bytes
    err: str
