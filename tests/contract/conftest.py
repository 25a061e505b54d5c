"""Keys and certificates, made once a session."""

from __future__ import annotations

import pytest
from contract_kit import Pair, make_pair


@pytest.fixture(scope="session")
def image() -> Pair:
    """The image's encryption key: RSA 4096, as the format says."""
    return make_pair(4096)


@pytest.fixture(scope="session")
def small() -> Pair:
    """A key of 2048 bits, for what is done often."""
    return make_pair(2048)


@pytest.fixture(scope="session")
def other() -> Pair:
    """Somebody else's key of the same size as ``small``."""
    return make_pair(2048)
