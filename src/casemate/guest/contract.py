"""``hpl-contract``: parses both sections, strictly and in a sandbox, and hands each service what it needs.

The seeds go to ``hpl-lukspassphrase`` alone; what workloads may read of the contract has neither seeds nor logins nor
private keys in it. The text of the sections is removed: from here on there are only checked values.
"""

from __future__ import annotations

import copy
from typing import Any

from casemate.guest import state
from casemate.guest.report import Stop, say

UNFORESEEN = "HPL05000E"
DECRYPTED = "/var/hyperprotect/user-data.decrypted"
MOST_SAID = 10


def read_sections() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the checked sections; every problem is said, the first stops."""
    from casemate.contract.check import check_sections, problems_stop
    from casemate.contract.document import parse_section
    from casemate.contract.errors import DocumentError

    opened = []
    for name in ("workload", "env"):
        try:
            opened.append(parse_section((state.CONTRACT / name).read_bytes()))
        except FileNotFoundError:
            raise Stop("HPL05002E", f"the contract has no {name}") from None
        except DocumentError as error:
            raise Stop("HPL05000E", f"{name}: {error}") from None
    workload, env = opened
    problems = check_sections(workload, env)
    errors = [problem for problem in problems if problem.severity == "error"]
    for problem in errors[1:MOST_SAID]:
        say(problem.id, str(problem))
    if problems_stop(problems):
        raise Stop(errors[0].id, str(errors[0]))
    if "compose" not in workload and "play" not in workload:
        raise Stop("HPL05003E", "workload: this version starts `compose` and `play` workloads only")
    return workload, env


def take_seeds(workload: dict[str, Any], env: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Remove the seeds from both sections and return them by volume."""
    seeds: dict[str, dict[str, Any]] = {}
    for party, section in (("workload", workload), ("env", env)):
        for name, volume in section.get("volumes", {}).items():
            for key in ("seed", "previousSeed"):
                if key in volume:
                    seeds.setdefault(name, {}).setdefault(key, {})[party] = volume.pop(key)
    return seeds


def take_key_services(env: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Remove from ``env`` how the key services of volumes are reached, API keys included, and return it by volume."""
    found = {}
    for name, volume in env.get("volumes", {}).items():
        asked = {key: volume.pop(key) for key in ("kms", "kmsTimeout") if key in volume}
        if "kms" in asked:
            found[name] = asked
    return found


def take_anchors(env: dict[str, Any]) -> dict[str, Any]:
    """Remove from ``env`` how the anchors of volumes are reached, client keys included, and return it by volume."""
    found = {name: volume.pop("anchor", None) for name, volume in env.get("volumes", {}).items()}
    return {name: anchor for name, anchor in found.items() if anchor is not None}


def shown(workload: dict[str, Any], env: dict[str, Any]) -> dict[str, Any]:
    """Return what a workload may see of the contract: no seeds, no passwords, no private keys."""
    both = copy.deepcopy({"workload": workload, "env": env})
    for section in both.values():
        for login in section.get("auths", {}).values():
            login.pop("password", None)
        for volume in section.get("volumes", {}).values():
            for name in ("apiKey", "kms", "grep11"):
                volume.pop(name, None)
    for target in both["env"].get("logging", {}).values():
        for name in ("key", "iamApiKey", "ingestionKey"):
            target.pop(name, None)
    return {name: _without_keys(section) for name, section in both.items()}


def _without_keys(value: Any) -> Any:
    """Leave out every text that holds a private key, wherever it stands: beside a certificate, or in a wrong place."""
    if isinstance(value, dict):
        return {key: _without_keys(item) for key, item in value.items() if not _is_private(item)}
    if isinstance(value, list):
        return [_without_keys(item) for item in value if not _is_private(item)]
    return value


def _is_private(value: Any) -> bool:
    from casemate.contract.errors import KeyFileError
    from casemate.contract.keys import pem_of

    if not isinstance(value, str):
        return False
    if "PRIVATE KEY-----" in value:
        return True
    try:
        return b"PRIVATE KEY-----" in pem_of(value)
    except KeyFileError:
        return False


def service() -> None:
    """Check the contract, split it, remove its text."""
    import json

    workload, env = read_sections()
    seeds = take_seeds(workload, env)
    if services := take_key_services(env):
        state.write_json(state.KEY_SERVICES, services)
    if anchors := take_anchors(env):
        state.write_json(state.ANCHORS, anchors)
    state.write_json(state.SEEDS, seeds)
    state.write_json(state.SECTIONS / "workload.json", workload)
    state.write_json(state.SECTIONS / "env.json", env)
    state.write_json(state.ENVIRONMENT, {**env.get("env", {}), **workload.get("env", {})})
    with open(DECRYPTED, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(shown(workload, env), file, indent=1)  # JSON is YAML, and quicker to write
    for name in ("workload", "env"):
        (state.CONTRACT / name).unlink()
