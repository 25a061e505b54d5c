"""The places of a guest under a temporary directory, and a whole contract as the bootloader leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest
from contract_kit import Pair, make_pair

from casemate.guest import contract, imagepolicy, lukspassphrase, registryauth, state


@pytest.fixture(scope="session")
def pair() -> Pair:
    return make_pair(2048)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything that services write lies here, not under ``/run``."""
    for name in (
        "RUN",
        "CONTRACT",
        "SECTIONS",
        "SEEDS",
        "KEY_SERVICES",
        "KEY_CHECK",
        "KEY_SAID",
        "ENVIRONMENT",
        "PASSPHRASES",
        "AUTH",
        "CERTIFICATES",
        "EXPIRY",
        "IMAGES",
        "PUBLIC",
    ):
        path = getattr(state, name)
        monkeypatch.setattr(state, name, tmp_path / path.relative_to("/"))
    monkeypatch.setattr(imagepolicy, "POLICY", state.PUBLIC / "policy.json")
    monkeypatch.setattr(imagepolicy, "LOOKUPS", state.PUBLIC / "registries.d/workload.yaml")
    monkeypatch.setattr(contract, "DECRYPTED", str(tmp_path / "user-data.decrypted"))
    assert lukspassphrase.state is registryauth.state is state
    state.CONTRACT.mkdir(parents=True)
    return tmp_path
