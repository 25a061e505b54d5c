"""A real volume, made once by cryptsetup."""

from __future__ import annotations

from pathlib import Path

import pytest
from luksvolumes import luks_format


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume as the guest makes it. Not to be written to."""
    return luks_format(tmp_path_factory.mktemp("luks") / "volume")


@pytest.fixture(scope="session")
def area(volume: Path) -> bytes:
    """What lies before the data of that volume."""
    return volume.read_bytes()[: 1 << 20]
