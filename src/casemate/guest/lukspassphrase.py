"""``hpl-lukspassphrase``: makes each volume's passphrase of the parties' seeds, and forgets the seeds."""

from __future__ import annotations

from typing import Any

from casemate.contract.errors import SeedError
from casemate.contract.passphrase import passphrase
from casemate.guest import state
from casemate.guest.report import Stop, run

PARTIES = ("workload", "env")


def passphrases(seeds: dict[str, dict[str, Any]], volumes: list[str]) -> dict[str, list[str]]:
    """Return the passphrases of every volume: today's, then those that it may have had before ``previousSeed`` was given.

    Parties roll together or one after the other, and may leave ``previousSeed`` in the contract: so an earlier passphrase
    has the earlier seeds of both, or of one of them. A seed that is missing stops.
    """
    made = {}
    for name in volumes:
        given = seeds.get(name, {}).get("seed", {})
        if missing := [party for party in PARTIES if party not in given]:
            raise Stop("HPL07001E", f"volume {name}: no seed from {' and '.join(missing)}")
        before = seeds[name].get("previousSeed", {})
        ways = [given, {**given, **before}, *({**given, party: seed} for party, seed in before.items())]
        try:
            found = (passphrase(*(way[party] for party in PARTIES)) for way in ways)
            made[name] = list(dict.fromkeys(found))
        except SeedError as error:
            raise Stop("HPL07001E", f"volume {name}: {error.cause}") from None
    return made


def service() -> None:
    """Write one file a volume, and one with its earlier passphrases, one a line; remove the seeds."""
    seeds = state.read_json(state.SEEDS)
    volumes = list(state.section("workload").get("volumes", {}))
    for name, (today, *earlier) in passphrases(seeds, volumes).items():
        state.write(state.PASSPHRASES / name, today)
        if earlier:
            state.write(state.PASSPHRASES / f"{name}.previous", "\n".join(earlier))
    state.SEEDS.unlink()


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL07001E"))
