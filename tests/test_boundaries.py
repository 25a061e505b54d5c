"""The boundaries of the source hold, and the check that says so finds what crosses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import casemate
from boundaries import BUILDERS, GUEST, IN_THE_GUEST, OUTSIDE, PURE, WORKLOADS, violations
from casemate.image.root import GUEST_PACKAGES, GUEST_PARTS, PACKAGES

SOURCE = Path(casemate.__file__).parent


def test_nothing_crosses_a_boundary() -> None:
    assert violations(SOURCE) == []


def test_the_image_holds_what_the_guest_may_import_and_no_more() -> None:
    parts = {part.removesuffix(".py") for part in GUEST_PARTS} - {"__init__"}
    assert parts | set(GUEST_PACKAGES) == set(GUEST)
    assert {f"python3-{name}" for name in IN_THE_GUEST} <= set(PACKAGES)


def test_every_part_of_the_source_is_known_to_the_check() -> None:
    parts = {
        path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.name[0] != "_" and path.suffix in ("", ".py")
    }
    assert {*PURE, *GUEST} <= parts <= {*PURE, *GUEST, *WORKLOADS, *OUTSIDE}


def test_the_guest_starts_without_any_host_code() -> None:
    """The same, asked of a running interpreter: each service is imported, and what came with it is looked at."""
    services = [path.stem for path in (SOURCE / "guest").glob("*.py") if path.stem != "__init__"]
    services = [name for name in services if not f"guest/{name}".startswith(BUILDERS)]
    script = f"import sys; from casemate.guest import {', '.join(services)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not [name for name in loaded if name.startswith("casemate.") and name.split(".")[1] not in GUEST]
    assert not loaded & {"click", "rich", "pycdlib", "hypothesis"}


@pytest.mark.parametrize(
    ("name", "line", "what"),
    [
        ("guest/a.py", "from casemate.machine import home", "not in the guest"),
        ("guest/a.py", "from casemate import cli", "not in the guest"),
        ("guest/a.py", "import casemate.image.build", "not in the guest"),
        ("guest/a.py", "from casemate.deploy import domain", "not in the guest"),
        ("guest/a.py", "from ..image import build", "not in the guest"),
        ("guest/a.py", "from .. import machine", "not in the guest"),
        ("guest/a.py", "def f():\n    if True:\n        from casemate import demo", "not in the guest"),
        ("guest/sub/a.py", "from ...cli import ui", "not in the guest"),
        ("guest/a.py", "import requests", "Debian does not install"),
        ("guest/a.py", "import rich.console", "Debian does not install"),
        ("guest/a.py", "import importlib\nimportlib.import_module('casemate.' + 'cli')", "computed name"),
        ("guest/a.py", "__import__('casemate.cli')", "computed name"),
        ("hpsb/a.py", "from casemate.guest import state", "its container does not have"),
        ("hpsb/a.py", "from casemate.cli import ui", "its container does not have"),
        ("hpsb/a.py", "import requests", "Debian does not install"),
        ("contract/a.py", "from casemate.guest import state", "not pure"),
        ("contract/a.py", "from casemate.cli.ui import read_input", "not pure"),
        ("contract/a.py", "import os", "no input or output"),
        ("contract/a.py", "import pathlib", "no input or output"),
        ("contract/a.py", "import os.path", "no input or output"),
        ("contract/a.py", "import pycdlib", "Debian does not install"),
        ("contract/a.py", "from subprocess import run", "no input or output"),
        ("contract/schema.py", "from pathlib import Path\nPath('x').read_bytes()", "no input or output"),
        ("contract/check.py", "import socket", "no input or output"),
        ("attestation/a.py", "open('x')", "no input or output"),
        ("attestation/a.py", "def f(p): p.write_text('x')", "no input or output"),
        ("secureexec/a.py", "import urllib.request", "no input or output"),
        ("luks/a.py", "print('x')", "no input or output"),
        ("cidata.py", "import tempfile", "no input or output"),
        ("secret.py", "from casemate.machine import home", "not pure"),
        ("cli/a.py", "import pickle", "imports pickle"),
        ("cli/a.py", "from pickle import loads", "imports pickle"),
        ("cli/a.py", "import yaml\nyaml.load('x')", "calls yaml.load"),
        ("cli/a.py", "import yaml\nyaml.parse('x', Loader=yaml.UnsafeLoader)", "names UnsafeLoader"),
        ("cli/a.py", "import subprocess\nsubprocess.run('x', shell=True)", "shell=True"),
        ("cli/a.py", "import os\nos.system('x')", "calls os.system"),
        ("cli/a.py", "import tarfile\ntarfile.open('x').extractall()", "extractall"),
        ("cli/a.py", "import requests\nrequests.get('x', verify=False)", "verify=False"),
        ("cli/a.py", "import ssl\nc = ssl.create_default_context()\nc.check_hostname = False", "check_hostname"),
        ("cli/a.py", "import ssl\nx = ssl.CERT_NONE", "CERT_NONE"),
        ("cli/a.py", "from ssl import CERT_NONE", "CERT_NONE"),
        ("cli/a.py", "eval('1')", "calls eval"),
    ],
)
def test_the_check_finds(tmp_path: Path, name: str, line: str, what: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"from __future__ import annotations\n{line}\n")
    found = violations(tmp_path)
    assert found and any(what in violation for violation in found)
    assert all(violation.startswith(f"{name}:") for violation in found)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("guest/a.py", "import os, socket, subprocess, ssl, ctypes\nfrom casemate.contract import token\nopen('x')"),
        ("guest/a.py", "from casemate import cidata\nfrom . import state\nfrom cryptography import x509"),
        ("contract/a.py", "import re, json, hashlib\nfrom casemate.errors import CasemateError\nimport yaml"),
        ("contract/schema.py", "from pathlib import Path\nPath(__file__).with_name('schema.json').read_bytes()"),
        (
            "secureexec/a.py",
            "from concurrent.futures import ThreadPoolExecutor\nfrom casemate.secureexec import header",
        ),
        ("cli/a.py", "import os, rich, click\nfrom casemate.machine import home\nfrom casemate.guest import state"),
        ("hpsb/a.py", "import os, ssl\nfrom casemate.contract import images\nfrom . import vault\nopen('x')"),
        ("luks/a.py", "file.read(4)\nre.compile('x')\nout.write(b'')"),
    ],
)
def test_the_check_lets_pass(tmp_path: Path, name: str, line: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{line}\n")
    assert violations(tmp_path) == []
