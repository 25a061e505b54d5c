"""``hpl-lukspassphrase``: makes each volume's passphrase of the parties' seeds, and forgets the seeds.

Where a key service has a third, the passphrase is made when that is known: then both seeds are left for ``hpl-volumes``.
"""

from __future__ import annotations

from typing import Any

from casemate.contract.errors import SeedError
from casemate.contract.passphrase import passphrase
from casemate.guest import state
from casemate.guest.report import Stop

UNFORESEEN = "HPL07001E"
PARTIES = ("workload", "env")


def pairs(seeds: dict[str, dict[str, Any]], name: str) -> list[tuple[str, str]]:
    """Return the seeds of a volume, workload's and env's: today's, then those from before ``previousSeed`` was given.

    Parties roll together or one after the other, and may leave ``previousSeed`` in the contract: so an earlier passphrase
    has the earlier seeds of both, or of one of them. A seed that is missing stops.
    """
    given = seeds.get(name, {}).get("seed", {})
    if missing := [party for party in PARTIES if party not in given]:
        raise Stop("HPL07001E", f"volume {name}: no seed from {' and '.join(missing)}")
    before = seeds[name].get("previousSeed", {})
    ways = [given, {**given, **before}, *({**given, party: seed} for party, seed in before.items())]
    return [(way["workload"], way["env"]) for way in ways]


def passphrases(seeds: dict[str, dict[str, Any]], volumes: list[str]) -> dict[str, list[str]]:
    """Return the passphrases of every volume, of the seeds of both parties: today's, then earlier ones."""
    made = {}
    for name in volumes:
        try:
            made[name] = list(dict.fromkeys(passphrase(*pair) for pair in pairs(seeds, name)))
        except SeedError as error:
            raise Stop("HPL07001E", f"volume {name}: {error.cause}") from None
    return made


def service() -> None:
    """Write one file a volume, and one with its earlier passphrases, one a line; remove the seeds.

    For a volume with a third seed: one file, ``NAME.seeds``, with the seeds that the third comes to.
    """
    seeds = state.read_json(state.SEEDS)
    volumes = list(state.section("workload").get("volumes", {}))
    third = state.read_json(state.KEY_SERVICES) if state.KEY_SERVICES.exists() else {}
    for name, (today, *earlier) in passphrases(seeds, volumes).items():
        if name in third:
            state.write_json(state.PASSPHRASES / f"{name}.seeds", pairs(seeds, name))
            continue
        state.write(state.PASSPHRASES / name, today)
        if earlier:
            state.write(state.PASSPHRASES / f"{name}.previous", "\n".join(earlier))
    state.SEEDS.unlink()
