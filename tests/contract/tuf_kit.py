"""A signer of trust data for attacks that no honest tool makes. Writes canonical JSON with ``json`` alone."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

NOW = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
GUN = "r.example.com/app"
ONE, TWO = "sha256:" + "11" * 32, "sha256:" + "22" * 32


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class Signer:
    key: Any
    kind: str = "ecdsa"
    certificate: bytes = b""

    @property
    def public(self) -> dict[str, Any]:
        if self.certificate:
            content = self.certificate
        elif self.kind == "ed25519":
            content = self.key.public_key().public_bytes_raw()
        else:
            content = self.key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        kind = f"{self.kind}-x509" if self.certificate else self.kind
        return {"keytype": kind, "keyval": {"private": None, "public": b64(content)}}

    @property
    def name(self) -> str:
        return hashlib.sha256(canonical(self.public)).hexdigest()

    def sign(self, message: bytes) -> dict[str, str]:
        if self.kind == "ed25519":
            method, signature = "eddsa", self.key.sign(message)
        elif self.kind == "rsa":
            method = "rsapss"
            signature = self.key.sign(message, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
        else:
            method = "ecdsa"
            r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return {"keyid": self.name, "method": method, "sig": b64(signature)}


def new(kind: str = "ecdsa") -> Signer:
    if kind == "ed25519":
        return Signer(ed25519.Ed25519PrivateKey.generate(), kind)
    if kind == "rsa":
        return Signer(rsa.generate_private_key(public_exponent=65537, key_size=2048), kind)
    return Signer(ec.generate_private_key(ec.SECP256R1()))


def certified(key: Any = None, name: str = GUN, start: datetime.datetime = NOW - DAY, days: int = 3650) -> Signer:
    """A root key: in a certificate with the image's name."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + days * DAY)
        .sign(key, hashes.SHA256())
    )
    return Signer(key, "ecdsa", made.public_bytes(serialization.Encoding.PEM))


Change = Callable[[dict[str, Any]], None]


@dataclass
class Repository:
    """All files of one image. ``changes`` are made to the signed part of a file, before it is signed."""

    roots: list[Signer] = field(default_factory=lambda: [certified()])
    signers: dict[str, list[Signer]] = field(
        default_factory=lambda: {name: [new()] for name in ("timestamp", "snapshot", "targets", "targets/releases")}
    )
    thresholds: dict[str, int] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=lambda: {"17": ONE})
    releases: dict[str, str] | None = None
    paths: list[str] = field(default_factory=lambda: [""])
    changes: dict[str, Change] = field(default_factory=dict)
    signed_by: dict[str, list[Signer]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def pin(self) -> bytes:
        return self.roots[0].certificate

    def publish(self) -> Repository:
        """Write all files anew; returns itself."""
        everyone = [*self.roots, *(each for name, group in self.signers.items() if "/" not in name for each in group)]
        roles = {"root": self._role("root", self.roots)}
        roles |= {name: self._role(name, group) for name, group in self.signers.items() if "/" not in name}
        keys = {each.name: each.public for each in everyone}
        root = self._file("root", "Root", {"keys": keys, "roles": roles, "consistent_snapshot": False})
        listed = {"root": root}
        delegations: dict[str, Any] = {"keys": {}, "roles": []}
        if self.releases is not None:
            group = self.signers["targets/releases"]
            delegations["keys"] = {each.name: each.public for each in group}
            role = {"name": "targets/releases", "paths": self.paths, **self._role("targets/releases", group)}
            delegations["roles"] = [role]
            tags = {"targets": self._tags(self.releases), "delegations": {"keys": {}, "roles": []}}
            listed["targets/releases"] = self._file("targets/releases", "Targets", tags)
        tags = {"targets": self._tags(self.targets), "delegations": delegations}
        listed["targets"] = self._file("targets", "Targets", tags)
        meta = {name: self._entry(data) for name, data in listed.items()}
        snapshot = self._file("snapshot", "Snapshot", {"meta": meta})
        self._file("timestamp", "Timestamp", {"meta": {"snapshot": self._entry(snapshot)}})
        return self

    def fetch(self, name: str, limit: int) -> bytes:
        """As a server: by role, or by role and hash."""
        self.asked.append(name)
        return self.files[name.partition(".")[0]][: limit + 1]

    def _role(self, name: str, group: list[Signer]) -> dict[str, Any]:
        return {"keyids": [each.name for each in group], "threshold": self.thresholds.get(name, 1)}

    @staticmethod
    def _tags(tags: dict[str, str]) -> dict[str, Any]:
        return {
            tag: {"hashes": {"sha256": b64(bytes.fromhex(digest[7:]))}, "length": 500} for tag, digest in tags.items()
        }

    @staticmethod
    def _entry(data: bytes) -> dict[str, Any]:
        hashed = {"sha256": b64(hashlib.sha256(data).digest()), "sha512": b64(hashlib.sha512(data).digest())}
        return {"hashes": hashed, "length": len(data)}

    def _file(self, name: str, kind: str, content: dict[str, Any]) -> bytes:
        signed = {"_type": kind, "version": 1, "expires": (NOW + 14 * DAY).isoformat(), **content}
        self.changes.get(name, lambda signed: None)(signed)
        group = self.signed_by.get(name, self.roots if name == "root" else self.signers.get(name, []))
        signatures = [each.sign(canonical(signed)) for each in group]
        self.files[name] = json.dumps({"signed": signed, "signatures": signatures}).encode()
        return self.files[name]
