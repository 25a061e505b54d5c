"""The deployment file: what should be. Read strictly; every problem at once, each with its place.

    deployment = load(Path("deployment.yaml"))
    deployment.machines["db"].memory       # bytes

The file is YAML as contracts are (:mod:`casemate.contract.document`: no tags, no anchors, no key twice), its form is
``schema.json`` beside this module. Paths in it are relative to its directory. Rules that the schema can't say are here: what
an image is for, which file is used twice, what a network needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from casemate.contract import check, document
from casemate.contract.network import LARGEST as LARGEST_NETWORK
from casemate.contract.network import networkd_files
from casemate.contract.schema import fulfils
from casemate.deploy.errors import DeployError
from casemate.errors import CasemateError
from casemate.image.build import ImageDirectory

DIRECTORY = Path("/var/lib/libvirt/images/casemate")
CONNECTION = "qemu:///system"
LEAST_MEMORY, LEAST_ROOT, LEAST_VOLUME = 1 << 30, 2 << 30, 256 << 20
LARGEST_CONTRACT = 16 << 20
DEVELOPMENT = "development.crt"
"""The host key document of an image that only the software ultravisor opens."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

Tee = Literal["s390-pv", "software"]


@dataclass(frozen=True, slots=True)
class Volume:
    """A data volume of ``size`` bytes: a raw file, or a volume of a pool of libvirt. Never removed, never made smaller."""

    name: str
    size: int
    path: Path | None = None
    pool: str = ""
    volume: str = ""

    def place(self) -> str:
        """Say where it is."""
        return str(self.path) if self.path else f"{self.volume} of the pool {self.pool}"


@dataclass(frozen=True, slots=True)
class Network:
    """One interface: a network of libvirt, a bridge, or (neither) user networking with forwarded ports of 127.0.0.1."""

    network: str = ""
    bridge: str = ""
    ports: tuple[tuple[int, int], ...] = ()
    mac: str = ""
    config: bytes | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that should be. ``contract`` may hold plain secrets, so it is never shown."""

    name: str
    arch: str
    tee: Tee
    image: Path
    tag: str
    contract: bytes = field(repr=False)
    memory: int = 2 << 30
    cpus: int = 2
    autostart: bool = False
    running: bool = True
    network: Network = Network()
    root_size: int = 8 << 30
    volumes: tuple[Volume, ...] = ()

    @property
    def kernel(self) -> Path:
        """The encrypted image, which is started as a kernel."""
        return self.image / "casemate.img"

    @property
    def archive(self) -> Path:
        """The root archive."""
        return self.image / "root.squashfs"

    def cidata(self) -> dict[str, bytes]:
        """Return the files of its ``cidata`` volume."""
        files = {
            "user-data": self.contract,
            "meta-data": f"instance-id: {self.name}\nlocal-hostname: {self.name}\n".encode(),
            "vendor-data": b"#cloud-config\nusers: []\n",
        }
        return files if self.network.config is None else {**files, "network-config": self.network.config}

    def cidata_digest(self) -> str:
        """Return a SHA-256, hex, over names, sizes and contents of these files."""
        digest = hashlib.sha256()
        for name, content in self.cidata().items():
            digest.update(f"{name} {len(content)}\n".encode() + content)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Deployment:
    """A whole file."""

    path: Path
    connection: str
    directory: Path
    machines: Mapping[str, Machine]

    def files(self, name: str) -> Path:
        """Return the directory of the disks that Casemate makes for a machine."""
        return self.directory / name


def schema() -> dict[str, Any]:
    """Return the shipped JSON Schema (draft 2020-12). Its patterns fit the whole text."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_bytes())
    return loaded


def load(path: Path, *, machines: bool = True) -> Deployment:
    """Read a deployment and what it names. Raises :class:`DeployError` with every problem, a line each.

    Without ``machines`` it has none, and what they name need not be there: to apply that is to destroy.
    """
    path = path.absolute()
    try:
        with path.open("rb") as file:
            data = file.read(document.LARGEST + 1)
    except OSError as error:
        cure = "casemate deploy init FILE writes a commented start"
        raise DeployError(f"can't be read: {error.strerror}", cure, str(path), id="DEPLOY-FILE") from None
    try:
        said = document.parse_section(data)
    except CasemateError as error:
        place = f"{path}, {error.where}" if error.where else str(path)
        raise DeployError(error.cause, error.cure, place, id="DEPLOY-FILE") from None
    problems = list(_form(said))
    if not problems:
        reader = _Reader(path)
        deployment = reader.deployment(said if machines else {**said, "machines": {}})
        problems = reader.problems or list(_twice(deployment))
        if not problems:
            return deployment
    raise DeployError("\n  ".join(problems), "docs/libvirt.md has each key", str(path), id="DEPLOY-FILE")


def _form(said: dict[str, Any]) -> Iterator[str]:
    whole = schema()
    if not fulfils(said, whole["$defs"]["deployment"], whole["$defs"]):
        for problem in check.faults("deployment", said, whole):
            yield f"{problem.place.removeprefix('deployment.')}: {problem.text}"


class _Reader:
    """Builds values out of what has the right form, and collects what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self._base = path.parent
        self._file = path
        self.problems: list[str] = []

    def deployment(self, said: dict[str, Any]) -> Deployment:
        connection = said.get("connection", CONNECTION)
        directory = self._path("directory", said.get("directory", str(DIRECTORY)))
        machines = {name: self._machine(name, each, connection) for name, each in said["machines"].items()}
        return Deployment(self._file, connection, directory, machines)

    def _machine(self, name: str, said: dict[str, Any], connection: str) -> Machine:
        place = f"machines.{name}"
        image = ImageDirectory(self._path(f"{place}.image", said["image"]))
        described: dict[str, Any] = {}
        try:
            described = image.describe()
        except CasemateError as error:
            self.problems.append(f"{place}.image: {error.cause}")
        arch, tag = str(described.get("arch", "s390x")), str(described.get("tag", ""))
        tee: Tee = said.get("tee", "s390-pv" if arch == "s390x" else "software")
        if described:
            self._fits(place, tee, arch, described.get("hosts"), connection)
        machine = Machine(
            name=name,
            arch=arch,
            tee=tee,
            image=image.path,
            tag=tag,
            contract=self._contract(f"{place}.contract", said["contract"]),
            memory=self._size(f"{place}.memory", said.get("memory", "2G"), LEAST_MEMORY),
            cpus=int(said.get("cpus", 2)),
            autostart=said.get("autostart", False),
            running=said.get("running", True),
            network=self._network(f"{place}.network", said.get("network", {}), connection),
            root_size=self._size(f"{place}.root.size", said.get("root", {}).get("size", "8G"), LEAST_ROOT),
            volumes=tuple(
                self._volume(f"{place}.volumes.{each}", name, each, volume)
                for each, volume in said.get("volumes", {}).items()
            ),
        )
        if machine.memory % (1 << 20):
            self.problems.append(f"{place}.memory: must be whole MiB")
        return machine

    def _fits(self, place: str, tee: Tee, arch: str, hosts: Any, connection: str) -> None:
        if tee == "s390-pv" and arch != "s390x":
            self.problems.append(f"{place}.tee: s390-pv is for s390x images; this one is for {arch}")
        if tee == "s390-pv" and hosts == [DEVELOPMENT]:
            cure = "build it with --host-key of the machine that it is for"
            self.problems.append(f"{place}.image: only the software ultravisor opens this image; {cure}")
        if tee == "software" and "/session" not in connection:
            # the host key is readable by its owner only, and libvirt's own user runs the machines of qemu:///system
            self.problems.append(
                f"{place}.tee: software needs `connection: qemu:///session`: the host key is the user's"
            )

    def _contract(self, place: str, said: str) -> bytes:
        content = self._read(place, said, LARGEST_CONTRACT)
        try:
            if content:
                document.parse_contract(content)
        except CasemateError as error:
            self.problems.append(f"{place}: {error.where + ': ' if error.where else ''}{error.cause}")
        return content

    def _network(self, place: str, said: dict[str, Any], connection: str) -> Network:
        chosen = [key for key in ("network", "bridge", "ports") if key in said]
        if len(chosen) > 1:
            self.problems.append(f"{place}: {' and '.join(chosen)} exclude each other")
        ports = tuple((int(out), int(inside)) for out, inside in (port.split(":") for port in said.get("ports", ())))
        if not all(0 < number < 65536 for pair in ports for number in pair):
            self.problems.append(f"{place}.ports: ports are from 1 to 65535")
        if len({out for out, _ in ports}) < len(ports):
            self.problems.append(f"{place}.ports: a port of the host stands twice")
        config = None
        if "config" in said:
            config = self._read(f"{place}.config", said["config"], LARGEST_NETWORK)
            try:
                networkd_files(config)  # what the machine would refuse is said at once
            except CasemateError as error:
                self.problems.append(f"{place}.config: {error.where + ': ' if error.where else ''}{error.cause}")
        user = "ports" in said or ("/session" in connection and not chosen)
        network = "" if user or "bridge" in said else said.get("network", "default")
        return Network(network, said.get("bridge", ""), ports, said.get("mac", ""), config)

    def _volume(self, place: str, machine: str, name: str, said: dict[str, Any]) -> Volume:
        if ("path" in said) == ("pool" in said):
            self.problems.append(f"{place}: needs either path or pool")
        size = self._size(f"{place}.size", said["size"], LEAST_VOLUME)
        if "pool" in said:
            return Volume(name, size, pool=said["pool"], volume=f"{machine}-{name}.img")
        return Volume(name, size, path=self._path(f"{place}.path", said.get("path", ".")))

    def _size(self, place: str, said: int | str, least: int) -> int:
        text = str(said)
        unit = text[-1] if text[-1] in _UNITS else ""
        size = int(text.removesuffix(unit)) * _UNITS[unit]
        if not least <= size <= 1 << 50 or size % 512:
            self.problems.append(f"{place}: must be {least >> 20}M or more, in whole sectors of 512 bytes")
        return size

    def _path(self, place: str, said: str) -> Path:
        if not said.isprintable():
            self.problems.append(f"{place}: a character that a path may not have")
        # `..` is resolved by its letters: libvirt gets one spelling of each path, and each is compared with the others
        parts: list[str] = []
        for part in (self._base / said).parts[1:]:
            if part == "..":
                del parts[-1:]
            else:
                parts.append(part)
        return Path("/", *parts)

    def _read(self, place: str, said: str, limit: int) -> bytes:
        path = self._path(place, said)
        try:
            with path.open("rb") as file:
                content = file.read(limit + 1)
        except (OSError, ValueError) as error:
            self.problems.append(f"{place}: can't be read: {getattr(error, 'strerror', 'no path')}")
            return b""
        if len(content) > limit or not content:
            self.problems.append(f"{place}: is empty, or has more than {limit} bytes")
            return b""
        return content


def _twice(deployment: Deployment) -> Iterator[str]:
    """No file serves two purposes, none of a user's lies where Casemate makes and removes its own."""
    used: dict[object, str] = {}
    ports: dict[int, str] = {}
    for machine in deployment.machines.values():
        for volume in machine.volumes:
            place = f"machines.{machine.name}.volumes.{volume.name}"
            key: object = volume.path or (volume.pool, volume.volume)
            if key in used:
                yield f"{place}: is {used[key]} already"
            used.setdefault(key, place)
            if volume.path in (machine.kernel, machine.archive, deployment.path):
                yield f"{place}.path: is a file of another purpose"
            if volume.path and volume.path.parent == deployment.files(machine.name):
                yield f"{place}.path: lies among the disks that are removed with the machine; choose another directory"
        for outside, _ in machine.network.ports:
            if outside in ports:
                yield f"machines.{machine.name}.network.ports: {outside} is a port of {ports[outside]} already"
            ports.setdefault(outside, machine.name)
