"""What each party of a contract writes and keeps: the demo and the tests of machines start from here.

    provider = workload_section(compose, registry=registry, seed=…)
    env = env_section(logs, registry=registry, seed=…, signing_key=…)
    contract = contract_of(seal(provider, certificate), seal(env, certificate), signing_key=key)

Sections are mappings, so that a test can change any value before it is sealed.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from casemate.contract.archive import write_archive
from casemate.contract.document import Contract, rewrite, write_contract
from casemate.contract.signature import sign
from casemate.contract.token import seal as seal_token
from casemate.demo.services import GATEWAY, LogServer, Registry

Section = dict[str, Any]


def new_seed() -> str:
    """Return a seed of 192 random bits in the characters that seeds may have."""
    return secrets.token_urlsafe(24)


def new_key(size: int = 4096) -> rsa.RSAPrivateKey:
    """Make a key to sign contracts, or to open records."""
    return rsa.generate_private_key(public_exponent=65537, key_size=size)


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    """Return the public half, PEM."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def workload_section(
    compose: str,
    *,
    registry: Registry,
    seed: str | None = None,
    volume: str = "data",
    mount: str = "/mnt/data",
    files: Mapping[str, bytes] | None = None,
) -> Section:
    """Return a workload section: a compose archive, the login of its registry, one volume where there is a seed."""
    section: Section = {
        "type": "workload",
        "compose": {"archive": write_archive({"docker-compose.yaml": compose.encode(), **(files or {})})},
        "auths": {registry.host: {"username": registry.user, "password": registry.password}},
    }
    if seed is not None:
        section["volumes"] = {volume: {"mount": mount, "filesystem": "ext4", "seed": seed}}
    return section


def env_section(
    logs: LogServer,
    *,
    registry: Registry,
    seed: str | None = None,
    volume: str = "data",
    signing_key: bytes | None = None,
    variables: Mapping[str, str] | None = None,
) -> Section:
    """Return an env section: log backend with mutual TLS, who signs, the registry's authority, one volume's seed."""
    section: Section = {
        "type": "env",
        "logging": {
            "syslog": {
                "hostname": GATEWAY,
                "port": logs.port,
                "server": logs.authority.certificate.decode(),
                "cert": logs.client.certificate.decode(),
                "key": logs.client.key.decode(),
            }
        },
        "cacerts": [{"registry": base64.b64encode(registry.authority).decode()}],
    }
    if seed is not None:
        section["volumes"] = {volume: {"seed": seed}}
    if signing_key is not None:
        section["signingKey"] = signing_key.decode()
    if variables:
        section["env"] = dict(variables)
    return section


def text_of(section: Section) -> str:
    """Return a section as its party would write it."""
    return rewrite(section)


def seal(section: Section, certificate: bytes) -> str:
    """Seal a section for an image's encryption certificate."""
    return seal_token(text_of(section).encode(), certificate)


def contract_of(
    workload: str, env: str, *, signing_key: rsa.RSAPrivateKey | None = None, auditor: bytes | None = None
) -> bytes:
    """Assemble a contract of two sections, sign it where a key is given, name the auditor's public key."""
    signature = sign(workload, env, signing_key) if signing_key is not None else None
    return write_contract(Contract(workload, env, auditor.decode() if auditor else None, signature))
