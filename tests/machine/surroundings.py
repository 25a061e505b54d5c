"""What stands around the machines of the tests, and how a machine that must refuse is tried."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from casemate.demo import parties
from casemate.demo.services import LogServer, Registry
from casemate.machine.machines import Data, MachineError, Specification, start, wait

PATIENCE = 600.0
SHELL = """\
services:
  app:
    image: {image}
    privileged: true
    pid: host
    command: [nc, -ll, -p, "7000", -e, /bin/sh]
    volumes: ["/mnt/data:/data", "/var/hyperprotect:/record"]
    ports: ["7000:7000"]
"""
"""A workload that is root of the guest, and does what :func:`shell` asks of it."""


_MARKED = ("a variable of the workload", "a variable of env", "a login that nothing uses", "a file of the archive")


@dataclass(frozen=True)
class World:
    """What every machine of the tests has around it, and what must never be seen of it."""

    image: Path
    registry: Registry
    logs: LogServer
    container: str
    signing_key: RSAPrivateKey
    directory: Path
    seeds: tuple[str, str] = field(default_factory=lambda: (parties.new_seed(), parties.new_seed()))
    marks: dict[str, str] = field(default_factory=lambda: {name: parties.new_seed() for name in _MARKED})
    """What stands in the contract for workloads to see, and must be seen by nobody else."""

    @property
    def certificate(self) -> bytes:
        return (self.image / "encryption.crt").read_bytes()

    @property
    def secrets(self) -> dict[str, str]:
        key = self.logs.client.key.decode().splitlines()[1]
        return {
            **{"the provider's seed": self.seeds[0], "the deployer's seed": self.seeds[1]},
            **{"the registry's password": self.registry.password, "the client's key": key},
        }

    def workload(self, compose: str | None = None, seed: bool = True) -> parties.Section:
        text = compose or f"services:\n  app:\n    image: {self.container}\n    command: [sleep, '1000000']\n"
        files = {"marked": self.marks["a file of the archive"].encode()}
        seeded = self.seeds[0] if seed else None
        section = parties.workload_section(text, registry=self.registry, seed=seeded, files=files)
        return section | {"env": {"MARKED": self.marks["a variable of the workload"]}}

    def env(self, seed: bool = True) -> parties.Section:
        section = parties.env_section(
            self.logs,
            registry=self.registry,
            seed=self.seeds[1] if seed else None,
            signing_key=parties.public_pem(self.signing_key),
            variables={"ALSO_MARKED": self.marks["a variable of env"]},
        )
        login = {"username": "nobody", "password": self.marks["a login that nothing uses"]}
        return section | {"auths": {"registry.example.com": login}}

    def contract(self, workload: parties.Section | None = None, env: parties.Section | None = None) -> bytes:
        return parties.contract_of(
            parties.seal(workload or self.workload(), self.certificate),
            parties.seal(env or self.env(), self.certificate),
            signing_key=self.signing_key,
        )

    def specification(self, name: str, contract: bytes | None = None, **more: object) -> Specification:
        values: dict[str, object] = {"memory_mib": 1024, "root_size": 4 << 30, **more}
        return Specification(name, self.image, self.contract() if contract is None else contract, **values)  # type: ignore[arg-type]

    def data(self, name: str, content: Callable[[Path], None] | None = None) -> Data:
        path = self.directory / f"{name}.img"
        with path.open("wb") as file:
            file.truncate(512 << 20)
        if content is not None:
            content(path)
        return Data(path)


def shell(port: int, line: str, patience: float = 300.0) -> bytes:
    """Run one line of shell inside the container of :data:`SHELL` and return all that it printed."""
    end = time.monotonic() + 60
    while True:
        try:
            peer = socket.create_connection(("127.0.0.1", port), 10)
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
    with peer:
        peer.settimeout(patience)
        peer.sendall(f"( {line} ) 2>&1; echo; echo ENDED; exit\n".encode())
        parts = bytearray()
        while not parts.endswith(b"ENDED\n"):
            part = peer.recv(1 << 16)
            if not part:
                break
            parts += part
    assert parts.endswith(b"ENDED\n"), parts[-300:]
    return bytes(parts[:-7])


@dataclass(frozen=True)
class Outcome:
    """How a machine ended that was expected to refuse."""

    ready: bool
    reason: str
    console: str
    left_behind: str
    disks_untouched: bool


def attempt(specification: Specification) -> Outcome:
    """Start a machine, wait for its end, forget it; say what was seen."""
    before = [_digest(data.path) for data in specification.data]
    machine = start(specification)
    try:
        ready = True
        try:
            wait(machine, timeout=PATIENCE)
        except MachineError as error:
            assert error.id == "MACHINE-STOPPED", error.diagnostics()
            ready = False
        machine.stop(0.0)
        files = ("qemu.log", "machine.json", "record.json")
        left = "".join(
            (machine.directory / name).read_text(errors="replace")
            for name in files
            if (machine.directory / name).exists()
        )
        console = (machine.directory / "console.log").read_text(errors="replace")
        return Outcome(
            ready, machine.reason, console, left, before == [_digest(data.path) for data in specification.data]
        )
    finally:
        machine.down(0.0)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
