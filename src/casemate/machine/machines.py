"""Machines: a directory of state for each, several at once, started under the software ultravisor and stopped again.

    machine = up(Specification("db", image=Path("my-image"), contract=contract, ports=[Port(15432, 5432)]))
    machine.record()         # the attestation record, as the guest offered it
    machine.down()

A machine outlives the command that started it. There is no daemon: what a machine does is read from its process, its
console and the clock. A directory holds ``machine.json``, ``console.log``, ``record.json``, ``cidata.img``,
``root.img`` (encrypted, worthless after a stop) and the socket of QEMU's monitor; the user's data disks stay where
they are. Nothing in it is secret, and all of it is readable by its owner only.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.errors import CasemateError
from casemate.machine import cidata_disk, home, qemu
from casemate.machine.qemu import Disk

ARCHIVE_SERIAL, ROOT_SERIAL = "casemate-archive", "casemate-root"
"""Serial numbers by which the bootloader finds the disks that belong to the image."""

READY, COMPLETE, STOPPING = "HPL10001I", "HPL10002I", "# the machine stops"
LARGEST_CONSOLE, LARGEST_RECORD = 16 << 20, 1 << 20
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_NO_REASON = ("HPL10000E", "HPL12006E")
"""Errors that say that there was another one, or that a contract will expire: the machine goes on after that."""
_MESSAGE = re.compile(r"HPL[0-9]{5}[EWI]: .*")
_STEP = re.compile(r"(?:# |.*?\b)(HPL[0-9]{5}[EWI]: .*|[a-z][a-z -]{3,60}\.\.\.)")


class MachineError(CasemateError):
    """A machine could not be started, or did not stay. ``console`` has the last lines that it wrote."""

    id = "MACHINE"

    def __init__(
        self, cause: str, cure: str = "", where: str = "", *, id: str | None = None, console: str = ""
    ) -> None:
        super().__init__(cause, cure, where, id=id)
        self.console = console

    def diagnostics(self) -> str:
        """The message, and the console's last lines below it."""
        lines = "".join(f"\n  | {line}" for line in self.console.splitlines())
        return super().diagnostics() + (f"\n  the console's last lines:{lines}" if lines else "")


@dataclass(frozen=True, slots=True)
class Data:
    """A data disk: a raw file, made (sparse) with ``size`` bytes where it is missing."""

    path: Path
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the host's loopback address that leads to a port of the guest."""

    host: int
    guest: int


@dataclass(frozen=True, slots=True)
class Specification:
    """What to start. ``cidata``, ``archive`` and ``more`` are for tests, which attach what no operator would.

    ``disks``: what a machine is given that has no contract, in place of cidata volume and data disks; such a one has no network.
    """

    name: str
    image: Path
    contract: bytes
    data: Sequence[Data] = ()
    ports: Sequence[Port] = ()
    memory_mib: int = 2048
    cpus: int = 2
    root_size: int = 8 << 30
    network_config: bytes | None = None
    cidata: bytes | None = None
    archive: Path | None = None
    more: Sequence[str] = ()
    disks: Sequence[Disk] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that was started, running or not."""

    name: str
    directory: Path

    def described(self) -> dict[str, Any]:
        """Return what ``machine.json`` says."""
        try:
            return dict(json.loads((self.directory / "machine.json").read_text()))
        except (OSError, ValueError):
            return {}

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        said = self.described()
        return bool(said) and _started(said.get("pid", 0)) == said.get("started")

    @property
    def state(self) -> str:
        """``starting``, ``running`` or ``stopped``."""
        if not self.running:
            return "stopped"
        return "running" if READY in self.console() else "starting"

    @property
    def reason(self) -> str:
        """The message that says why it stopped: the first error on its console; empty where there is none."""
        messages = [found[0] for found in map(_MESSAGE.search, self.console().splitlines()) if found]
        errors = [message for message in messages if message[8] == "E"]
        first = [message for message in errors if not message.startswith(_NO_REASON)] or errors
        return first[0] if first else ""

    def console(self) -> str:
        """Return what it wrote to its console, without terminal controls: the guest's words are shown to people."""
        try:
            with (self.directory / "console.log").open("rb") as file:
                text = file.read(LARGEST_CONSOLE).decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join("".join(c for c in line if c.isprintable()) for line in text.splitlines())

    def last_lines(self, number: int = 12) -> str:
        """Return the end of the console."""
        return "\n".join([line for line in self.console().splitlines() if line.strip()][-number:])

    def record(self) -> dict[str, bytes]:
        """Return the files of the attestation record that the guest offered, by name. Nothing of it is verified here."""
        cure = "it is offered when the bootloader has ended; casemate machine logs shows how far it came"
        try:
            with (self.directory / "record.json").open("rb") as file:
                line = file.read(LARGEST_RECORD).splitlines()[0]
            files = {str(name): base64.b64decode(text, validate=True) for name, text in json.loads(line).items()}
        except (OSError, IndexError, ValueError, AttributeError, TypeError, binascii.Error):
            raise MachineError("the machine has offered no record", cure, self.name, id="MACHINE-NO-RECORD") from None
        if not all(re.fullmatch(r"se-[a-z.-]{1,40}", name) for name in files):
            raise MachineError("what the machine offered is not a record", cure, self.name, id="MACHINE-NO-RECORD")
        return files

    def stop(self, patience: float = 60.0) -> None:
        """End it: as by Ctrl-Alt-Del, or what a processor has for it, a wish to power off; after ``patience``, by force."""
        if not self.running:
            return
        with contextlib.suppress(OSError):
            self._control(qemu.ARCHITECTURES[self.described().get("arch", "amd64")].power_button)
            if self._ended(patience):
                return
        with contextlib.suppress(OSError, KeyError):
            os.kill(self.described()["pid"], signal.SIGKILL)
        self._ended(10.0)

    def remove(self) -> None:
        """Forget a machine that has stopped: its directory goes, data disks stay."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def down(self, patience: float = 60.0) -> None:
        """Stop and remove it."""
        self.stop(patience)
        self.remove()

    def _ended(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def attest(self, request: bytes, patience: float = 60.0) -> bytes:
        """Have the guest answer a file with a request for attestation; return the file with the answer, not verified.

        Raises :class:`MachineError` where it does not answer, :class:`OSError`.
        """
        from casemate.secureexec import attestation

        attestation.parse_request(attestation.unpack(request).request)
        try:
            with self._connected("attestation", patience) as line, line.makefile("rwb") as files:
                files.write(request)
                files.flush()
                start = files.read(attestation.START)
                size = attestation.file_size(start) if len(start) == attestation.START else 0
                data = start + files.read(size - len(start)) if size else b""
        except OSError as error:
            data, reason = b"", error.strerror or "it took too long"
        else:
            reason = "it refuses this request"
        if not data or not attestation.is_answered(attestation.unpack(data)):
            cure = "is it running, and was the request made for this host's key?"
            raise MachineError(f"the machine gives no answer: {reason}", cure, self.name, id="MACHINE-NO-ANSWER")
        return data

    @contextlib.contextmanager
    def _connected(self, name: str, patience: float) -> Iterator[socket.socket]:
        """Connect to a socket in the directory. Raises :class:`OSError`."""
        directory = os.open(self.directory, os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(patience)
                line.connect(f"/proc/self/fd/{directory}/{name}")  # a path may be longer than a socket's name
                yield line
        finally:
            os.close(directory)

    def _control(self, order: Mapping[str, Any]) -> None:
        """Give QEMU's monitor one order. Raises :class:`OSError`."""
        with self._connected("control", 5.0) as control, control.makefile("rwb", buffering=0) as lines:
            lines.readline()
            for each in ({"execute": "qmp_capabilities"}, order):
                lines.write(json.dumps(each).encode() + b"\n")
                while b'"return"' not in (answer := lines.readline()):
                    if not answer or b'"error"' in answer:
                        raise OSError(f"the monitor refuses {each['execute']}")


def _directory() -> Path:
    return home.directory() / "machines"


def _started(pid: int) -> int:
    """Return when a process was started, in ticks since boot; 0 where it is gone or only waits to be buried."""
    try:
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    if after[0] in "ZX":
        with contextlib.suppress(OSError):
            os.waitpid(pid, os.WNOHANG)
        return 0
    return int(after[19])


def get(name: str) -> Machine:
    """Return a machine by its name. Raises :class:`MachineError` where there is none."""
    machine = Machine(name, _directory() / name)
    if not _NAME.fullmatch(name) or not machine.directory.is_dir():
        raise MachineError("there is no such machine", "casemate machine list shows all", name, id="MACHINE-UNKNOWN")
    return machine


def all_machines() -> Iterator[Machine]:
    """Yield every machine, by name."""
    if _directory().is_dir():
        for directory in sorted(_directory().iterdir()):
            if _NAME.fullmatch(directory.name) and directory.is_dir():
                yield Machine(directory.name, directory)


def up(
    spec: Specification, *, progress: Callable[[str], None] = lambda step: None, timeout: float | None = None
) -> Machine:
    """Start a machine and return it once all services have succeeded.

    Raises :class:`MachineError` where it stops instead, or is not ready after ``timeout`` seconds, by default those of its
    architecture (then it is ended); the directory stays, so that its console can be read. An exception such as Ctrl-C ends
    and removes it.
    """
    machine = start(spec, progress=progress)
    try:
        patience = qemu.ARCHITECTURES[machine.described()["arch"]].patience
        wait(machine, progress=progress, timeout=patience if timeout is None else timeout)
    except MachineError:
        raise
    except BaseException:
        machine.down(0.0)
        raise
    return machine


def start(spec: Specification, *, progress: Callable[[str], None] = lambda step: None) -> Machine:
    """Start a machine and return at once; :func:`wait` tells how it goes on."""
    from casemate.image.build import ImageDirectory

    image = ImageDirectory(spec.image)
    arch = image.describe()["arch"]
    _check(spec, arch)
    for data in spec.data:
        _provide(data)
    machine = _claim(spec.name)
    try:
        progress("ultravisor: verifying the image")
        _launch(machine, spec, image.image, spec.archive or image.archive, arch)
    except BaseException:
        machine.down(0.0)
        raise
    return machine


def _check(spec: Specification, arch: str) -> None:
    if not _NAME.fullmatch(spec.name):
        raise MachineError(
            "not a name for a machine", "lower-case letters, digits and -, at most 32", spec.name, id="MACHINE-NAME"
        )
    program = qemu.ARCHITECTURES[arch].program
    if shutil.which(program) is None:
        cure = f"apt-get install {qemu.ARCHITECTURES[arch].package}; casemate doctor tells what else is missing"
        raise MachineError(f"{program} is not installed", cure, id="MACHINE-NO-QEMU")
    for port in spec.ports:
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port.host))
        except (OSError, OverflowError):
            raise MachineError(
                f"port {port.host} of this host is in use, or may not be used",
                "forward another: --port HOST:GUEST",
                id="MACHINE-PORT",
            ) from None


def _provide(data: Data) -> None:
    """Make a data disk where it is missing; an existing one is taken as it is."""
    place = str(data.path)
    try:
        if data.path.exists():
            size = data.path.stat().st_size
            if data.size is not None and size != data.size:
                raise MachineError(
                    f"the data disk has {size} bytes, not {data.size}",
                    "leave :SIZE out to use it as it is",
                    place,
                    id="MACHINE-DATA",
                )
            return
        if data.size is None:
            raise MachineError(
                "there is no such data disk", f"--data {place}:10G makes an empty one", place, id="MACHINE-DATA"
            )
        descriptor = os.open(data.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, data.size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MachineError(
            f"the data disk can't be made: {error.strerror}", "check the directory", place, id="MACHINE-DATA"
        ) from None


def _claim(name: str) -> Machine:
    """Return an empty directory for a machine of this name; one that has stopped gives its place."""
    _directory().mkdir(mode=0o700, parents=True, exist_ok=True)
    machine = Machine(name, _directory() / name)
    lock = os.open(_directory(), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if machine.directory.exists():
            claimed = machine.described().get("claimed", 0)
            if machine.running or (claimed and _started(claimed) == machine.described().get("claimed_started")):
                raise MachineError(
                    "a machine of this name runs",
                    f"casemate machine down {name}, or choose --name",
                    name,
                    id="MACHINE-RUNNING",
                )
            machine.remove()
        machine.directory.mkdir(mode=0o700)
        _describe(machine, {"claimed": os.getpid(), "claimed_started": _started(os.getpid())})
    finally:
        os.close(lock)
    return machine


def _describe(machine: Machine, said: dict[str, Any]) -> None:
    new = machine.directory / "machine.json.new"
    new.write_text(json.dumps(said, indent=1) + "\n")
    new.rename(machine.directory / "machine.json")


def _launch(machine: Machine, spec: Specification, image: Path, archive: Path, arch: str) -> None:
    from casemate.machine.ultravisor import SoftwareUltravisor

    directory = machine.directory
    with (directory / "root.img").open("wb") as root:
        root.truncate(spec.root_size)
    disks = [
        *(spec.disks or [Disk(_cidata(machine, spec), read_only=True)]),
        Disk(archive.absolute(), ARCHIVE_SERIAL, read_only=True),
        Disk(directory / "root.img", ROOT_SERIAL, passing=True),
        *(Disk(data.path.absolute()) for data in spec.data),
    ]
    kvm = arch == "amd64" and qemu.kvm_works()
    ultravisor = SoftwareUltravisor.load_or_create()
    with contextlib.ExitStack() as stack:
        control, attestation = (stack.enter_context(_listening(directory, name)) for name in ("control", "attestation"))
        opened = stack.enter_context(ultravisor.open(image))
        line = stack.enter_context(ultravisor.attach(opened.header))
        with (directory / "qemu.log").open("wb") as said:
            guest = qemu.Guest(
                name=spec.name,
                arch=arch,
                kernel=opened.kernel,
                initrd=opened.initrd,
                cmdline=opened.cmdline,
                disks=disks,
                ports=[(port.host, port.guest) for port in spec.ports],
                memory_mib=spec.memory_mib,
                cpus=spec.cpus,
                console=directory / "console.log",
                record=directory / "record.json",
                control=control.fileno(),
                attestation=attestation.fileno(),
                ultravisor=line.fileno(),
                network=not spec.disks,
                address=_address(spec.network_config),
            )
            process = subprocess.Popen(
                qemu.command(guest, kvm, spec.more),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=directory,
                start_new_session=True,
                pass_fds=(opened.kernel, opened.initrd, *(each.fileno() for each in (control, attestation, line))),
            )
    _describe(
        machine,
        {
            **{"name": spec.name, "pid": process.pid, "started": _started(process.pid), "created": int(time.time())},
            **{"image": str(spec.image.absolute()), "arch": arch, "acceleration": "kvm" if kvm else "tcg"},
            **{"memory_mib": spec.memory_mib, "cpus": spec.cpus},
            "ports": [[port.host, port.guest] for port in spec.ports],
            "data": [str(data.path.absolute()) for data in spec.data],
        },
    )


def _listening(directory: Path, name: str) -> socket.socket:
    """Return a socket of the machine's directory that QEMU will listen at."""
    place = os.open(directory, os.O_PATH)
    try:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(f"/proc/self/fd/{place}/{name}")
        listening.listen(1)
    finally:
        os.close(place)
    return listening


def _cidata(machine: Machine, spec: Specification) -> Path:
    """Write the volume with the contract."""
    volume, path = spec.cidata, machine.directory / "cidata.img"
    if volume is None:
        meta = f"instance-id: {spec.name}\nlocal-hostname: {spec.name}\n".encode()
        volume = cidata_disk.make(spec.contract, meta, b"#cloud-config\nusers: []\n", spec.network_config)
    path.write_bytes(volume)
    return path


def _address(network_config: bytes | None) -> str:
    """Return the static address that a guest takes in QEMU's network, or nothing: there are no ports elsewhere."""
    from casemate.contract.network import networkd_files

    try:
        files = networkd_files(network_config) if network_config is not None else {}
    except CasemateError:
        return ""  # the guest says what is wrong with it
    found = re.search(r"^Address=(10\.0\.2\.\d+)/", "\n".join(files.values()), re.MULTILINE)
    return found[1] if found else ""


def wait(
    machine: Machine,
    *,
    progress: Callable[[str], None] = lambda step: None,
    timeout: float = 300.0,
    until_it_ends: str | None = None,
) -> None:
    """Wait until a machine's services have succeeded; or until it has ended by itself, having said what ``until_it_ends`` names.

    A machine whose workload was complete before that has succeeded too.

    Raises :class:`MachineError` as :func:`up` does.
    """
    end = time.monotonic() + timeout
    told = ""
    while True:
        running = machine.running  # asked first: what it wrote before it ended is then all there
        console = machine.console()
        steps = [found[1] for found in map(_STEP.fullmatch, console.splitlines()) if found]
        if steps and steps[-1] != told:
            told = steps[-1]
            progress(told.split(" ->")[0])
        if until_it_ends is None and READY in console:
            return
        if not running:
            if (until_it_ends or COMPLETE) in console:  # a short workload may have ended before all services were up
                return
            said = (machine.directory / "qemu.log").read_text(errors="replace").strip().splitlines()
            reason = machine.reason or (said[-1] if said else "the machine ended without a word")
            raise MachineError(
                f"the machine stopped: {reason}",
                f"casemate machine logs {machine.name} shows all of its console",
                machine.name,
                id="MACHINE-STOPPED",
                console=machine.last_lines(),
            )
        if time.monotonic() > end:
            machine.stop(0.0)
            raise MachineError(
                f"the machine was not ready after {timeout:.0f} seconds, and was ended",
                "--timeout gives it longer",
                machine.name,
                id="MACHINE-HANGS",
                console=machine.last_lines(),
            )
        time.sleep(0.1)
