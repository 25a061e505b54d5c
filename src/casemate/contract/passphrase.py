"""The LUKS passphrase of a data volume, from the seeds of the parties: nobody of them can compute it alone.

It is the lowercase hex SHA-256 of the seeds' UTF-8, one after the other: the workload's, the env's, and a third
from a key service where one is used (white paper, 4.4.4).
"""

from __future__ import annotations

import hashlib
import re

from casemate.contract.errors import SeedError

SEED = re.compile(r"[a-zA-Z0-9!@#$%^&*(),.?\":{}|<>_-]{15,}")


def passphrase(workload_seed: str, env_seed: str, *more: str) -> str:
    """Return the passphrase: 64 characters of lowercase hex, without a newline.

    Raises :class:`SeedError` where a seed is missing or shorter than 15 characters of those that seeds may have.
    """
    seeds = (workload_seed, env_seed, *more)
    if not all(SEED.fullmatch(seed) for seed in seeds):
        raise SeedError(
            "a seed is missing or is not one",
            'seeds have 15 or more characters out of letters, digits and !@#$%^&*(),.?":{}|<>_-',
        )
    return hashlib.sha256("".join(seeds).encode()).hexdigest()
