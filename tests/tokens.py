"""SoftHSM tokens, each with a name and a PIN of its own, in a directory of this test run."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "731905"


@dataclass(frozen=True)
class Token:
    label: str
    pin: Path
    conf: Path

    def uri(self, name: str) -> str:
        return f"pkcs11:token={self.label};object={name}?module-path={MODULE}&pin-source=file:{self.pin}"


@pytest.fixture(scope="session")
def new_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Token]]:
    pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 is not there: make setup")
    if shutil.which("softhsm2-util") is None:
        pytest.skip("softhsm2 is not there: casemate doctor --install")
    place = tmp_path_factory.mktemp("softhsm")
    (place / "tokens").mkdir()
    conf = place / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {place}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(conf)
    numbers = itertools.count(1)

    def make() -> Token:
        label = f"token-{next(numbers)}"
        pin = place / f"{label}.pin"
        pin.touch(0o600)
        pin.write_text(f"{PIN}\n")
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "5550199"]
        subprocess.run(command, check=True, capture_output=True)
        pkcs11.unload(MODULE)  # it looks for tokens when it is loaded
        return Token(label, pin, conf)

    yield make
    pkcs11.unload(MODULE)
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


@pytest.fixture
def token(new_token: Callable[[], Token]) -> Token:
    return new_token()
