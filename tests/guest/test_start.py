"""How services start: what Python would load for nothing is not loaded, and what somebody asks for is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import casemate
from casemate.guest import start

PROGRAM = Path(casemate.__file__).parent / "guest/start.py"
PACKAGE = """
import sys
sys.path.insert(0, {path!r})
from casemate.guest import start
"""


def run(code: str) -> str:
    """Run Python as units do, without ``site``."""
    text = PACKAGE.format(path=str(PROGRAM.parents[2])) + code
    return subprocess.run([sys.executable, "-ISBc", text], capture_output=True, text=True, check=True).stdout


def test_dataclasses_load_no_inspect_until_something_of_it_is_used() -> None:
    code = """
sys.modules["inspect"] = start.Later("inspect")
import dataclasses
@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    "It has a docstring."
    number: int
assert Told(1) == Told(1) and "ast" not in sys.modules
@dataclasses.dataclass
class Untold:
    number: int
print(Untold.__doc__, "ast" in sys.modules, dataclasses.inspect.isclass(Told), sys.modules["inspect"].isclass(1))
"""
    assert run(code) == "Untold(number: int) True True False\n"


def test_a_service_ends_with_its_code_and_what_nobody_foresaw_has_its_identifier() -> None:
    code = """
import types
for name, service in (("well", lambda: None), ("ill", lambda: 1 / 0)):
    module = types.ModuleType(name)
    module.service, module.UNFORESEEN = service, "HPL00000E"
    sys.modules["casemate.guest." + name] = module
    import casemate.guest
    setattr(casemate.guest, name, module)
    sys.stderr = sys.stdout
    print(start.start(name))
"""
    said = run(code).splitlines()
    assert said[0] == "0" and said[1].startswith("<3>HPL00000E: unexpected ZeroDivisionError") and said[2] == "1"


def test_the_program_looks_for_packages_where_debian_has_them_and_nowhere_else() -> None:
    done = subprocess.run(
        [sys.executable, "-ISB", str(PROGRAM), "no_such"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "No module named" in done.stderr
    assert start.PACKAGES == "/usr/lib/python3/dist-packages"
