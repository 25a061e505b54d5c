"""``hpl-registry-auth``: the logins and certificates for registries, for the container engine alone.

``auths`` of both sections, the workload's entry first; in memory, never in an argument. ``cacerts`` are trusted
for registries besides the public authorities.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from casemate.contract.errors import ContractError
from casemate.contract.keys import certificates_alone, pem_of
from casemate.guest import state
from casemate.guest.report import Stop

UNFORESEEN = "HPL09000E"
DEFAULT_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io")


def logins(workload: dict[str, Any], env: dict[str, Any]) -> dict[str, Any]:
    """Return a ``containers-auth.json(5)`` of both sections' ``auths``."""
    auths: dict[str, dict[str, str]] = {}
    for section in (env, workload):
        for host, login in section.get("auths", {}).items():
            pair = f"{login['username']}:{login['password']}".encode()
            auths[_key(host)] = {"auth": base64.b64encode(pair).decode("ascii")}
    return {"auths": auths}


def _key(host: str) -> str:
    """The engine's name of a registry: no scheme, no path; the default registry has one name."""
    if host in DEFAULT_KEYS:
        return "docker.io"
    return host.removeprefix("https://").rstrip("/")


def certificates(env: dict[str, Any]) -> dict[str, bytes]:
    """Return the contract's certificates of registry authorities by file name."""
    import ssl  # late: many contracts have none

    found = {}
    for entry in env.get("cacerts", []):
        for name, text in entry.items():
            try:
                pem = b"".join(certificates_alone(pem_of(text)))
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
            except ContractError as error:
                raise Stop("HPL09001E", f"env.cacerts.{name}: {error.cause}") from None
            except ssl.SSLError:  # the engine would pass over it
                raise Stop("HPL09001E", f"env.cacerts.{name}: a certificate is damaged") from None
            found[f"{name or 'ca'}.crt"] = pem
    return found


def service() -> None:
    """Write what the engine reads."""
    workload, env = state.section("workload"), state.section("env")
    state.write(state.AUTH, json.dumps(logins(workload, env)))
    state.CERTIFICATES.mkdir(mode=0o700, exist_ok=True)
    for name, pem in certificates(env).items():
        state.write(state.CERTIFICATES / name, pem)
