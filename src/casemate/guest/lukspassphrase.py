"""``hpl-lukspassphrase``: makes each volume's passphrase of the parties' seeds, and forgets the seeds."""

from __future__ import annotations

from typing import Any

from casemate.contract.errors import SeedError
from casemate.contract.passphrase import passphrase
from casemate.guest import state
from casemate.guest.report import Stop, run


def passphrases(seeds: dict[str, dict[str, Any]], volumes: list[str]) -> dict[str, str]:
    """Return the passphrase of every volume; a seed that is missing stops."""
    made = {}
    for name in volumes:
        given = seeds.get(name, {}).get("seed", {})
        if missing := [party for party in ("workload", "env") if party not in given]:
            raise Stop("HPL07001E", f"volume {name}: no seed from {' and '.join(missing)}")
        try:
            made[name] = passphrase(given["workload"], given["env"])
        except SeedError as error:
            raise Stop("HPL07001E", f"volume {name}: {error.cause}") from None
    return made


def service() -> None:
    """Write one file a volume, remove the seeds."""
    seeds = state.read_json(state.SEEDS)
    volumes = list(state.section("workload").get("volumes", {}))
    for name, text in passphrases(seeds, volumes).items():
        state.write(state.PASSPHRASES / name, text)
    state.SEEDS.unlink()


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL07001E"))
