"""What benches of machines have around one: registry, log backend, the demo's image, a shell in the guest."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from casemate.demo import images, parties
from casemate.demo.services import LogServer, Registry, free_port
from casemate.image.build import build_image, is_current
from casemate.machine import home
from casemate.machine.machines import Data, Port, Specification

SHELL = """\
  shell:
    image: IMAGE
    privileged: true
    pid: host
    command: [nc, -ll, -p, "7000", -e, /bin/sh]
    ports: ["7000:7000"]
"""


@dataclass
class Around:
    """The parties' services and seeds, and the port of the shell."""

    directory: Path
    image: Path
    registry: Registry
    logs: LogServer
    container: str
    port: int = field(default_factory=free_port)
    seeds: tuple[str, str] = field(default_factory=lambda: (parties.new_seed(), parties.new_seed()))

    def specification(self, name: str, services: str, data: Data, memory_mib: int = 1024) -> Specification:
        """A machine with some services of a compose file, and the shell."""
        certificate = (self.image / "encryption.crt").read_bytes()
        compose = "services:\n" + (SHELL + services).replace("IMAGE", self.container)
        key = parties.new_key(2048)
        workload = parties.workload_section(compose, registry=self.registry, seed=self.seeds[0])
        public = parties.public_pem(key)
        env = parties.env_section(self.logs, registry=self.registry, seed=self.seeds[1], signing_key=public)
        sealed = [parties.seal(section, certificate) for section in (workload, env)]
        contract = parties.contract_of(*sealed, signing_key=key)
        ports = (Port(self.port, 7000),)
        return Specification(
            name, self.image, contract, data=(data,), ports=ports, memory_mib=memory_mib, root_size=4 << 30
        )

    def ask(self, line: str) -> str:
        """Run a line of shell as root of the guest, among its own files."""
        with socket.create_connection(("127.0.0.1", self.port), 20) as peer:
            peer.settimeout(120)
            peer.sendall(f"( nsenter -t 1 -m -- /bin/sh -c {line!r} ) 2>&1; echo; echo ENDED; exit\n".encode())
            said = bytearray()
            while not said.endswith(b"ENDED\n") and (part := peer.recv(1 << 16)):
                said += part
        return said.decode(errors="replace").removesuffix("ENDED\n")


@contextmanager
def around() -> Iterator[Around]:
    """Start what a machine needs; end it with the context."""
    image = home.directory() / "demo-image"
    if not is_current(image):
        build_image(image)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Registry.running(directory / "registry") as registry, LogServer.running(directory / "logs") as logs:
            reference = f"{registry.host}/busybox@{registry.push(images.build(images.BUSYBOX), 'busybox')}"
            yield Around(directory, image, registry, logs, reference)


def wait_for(condition: object, seconds: float) -> bool:
    """Wait until a function says yes; say whether it did."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
