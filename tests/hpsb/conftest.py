"""One laboratory and one server for all tests that don't need their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from build_lab import Lab, Running


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "crun", "skopeo", "git", "gpg"))):
        pytest.skip("needs root, buildah, crun, skopeo, git, gpg")
    with Lab.running(tmp_path_factory.mktemp("build")) as lab:
        yield lab


@pytest.fixture(scope="session")
def server(lab: Lab) -> Iterator[Running]:
    with lab.server() as server:
        server.init()
        yield server
