"""``hpl-container``: starts the containers of a workload, and stays with them until it ends.

The rules are those of :mod:`casemate.guest.supervisor`; what becomes of a compose file or of pods is said by
:mod:`casemate.contract.workload`. When the machine is told to stop, containers get ten seconds to end.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from casemate.contract.archive import Archive, read_archive
from casemate.contract.errors import ContractError
from casemate.contract.workload import Health, Network, Places, Probe, Problems, Service, Workload
from casemate.guest import kernel, state
from casemate.guest.report import Stop, say
from casemate.guest.supervisor import Question, Supervisor

UNFORESEEN = "HPL08004E"
PODMAN = "/usr/bin/podman"
ARCHIVE = Path("/var/lib/casemate/workload")
SCRATCH = Path("/var/lib/casemate/scratch")
PAUSE = "/usr/bin/catatonit"
HOLDERS = Path("/var/lib/casemate/holders")
FIREWALL = "/usr/sbin/iptables"
TOOLS = Path("/var/hyperprotect/tools")
GRACE, STOP_PATIENCE = 5.0, 10
LONGEST_LINE = 32_768
"""Bytes of a variable that a file of variables can hold on its line; the engine reads no line above 64 KiB."""
LONGEST_STATUS = 4096
"""Bytes of an HTTP answer that are read for its status."""


def unpack(archive: Archive, directory: Path) -> None:
    """Write checked files under a new directory."""
    directory.mkdir(parents=True)
    for name in archive.directories:
        (directory / name).mkdir(parents=True, exist_ok=True)
    for name, content in archive.files.items():
        path = directory / name
        path.write_bytes(content)
        path.chmod(0o755 if name in archive.executable else 0o644)


def prepare(service: Service) -> dict[str, str]:
    """Hold fast what a service mounts, each at a place of ours; return these places by path.

    Containers write to volumes, also while the next one starts: a link that one left there must not give another a
    directory of the guest. So each mount is opened through no link, and what was opened is what is mounted.
    """
    places = {}
    for number, path in enumerate(dict.fromkeys(service.mounts)):
        descriptor = open_beneath(path, make=path in service.directories)
        try:
            place = state.RUN / "mounts" / service.container / str(number)
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.mkdir() if stat.S_ISDIR(os.fstat(descriptor).st_mode) else place.touch()
            kernel.mount(f"/proc/self/fd/{descriptor}", str(place), flags=kernel.MS_BIND)
            if service.group is not None and path in service.grouped:
                give(descriptor, service.group, whole=service.regroup)
        except OSError as error:
            raise Stop("HPL08002E", f"service {service.name}: a mount can't be made: {error.strerror}") from None
        finally:
            os.close(descriptor)
        places[path] = str(place)
    return places


def give(descriptor: int, group: int, *, whole: bool) -> None:
    """Give a directory and all in it to a group, which may then write there; new files are the group's too.

    As Kubernetes does for ``fsGroup``: not ``whole`` where the top is the group's already. Through no link, and of the
    rights only what a group has is added.
    """
    top = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = os.fstat(top)
        if whole or before.st_gid != group or before.st_mode & 0o2070 != 0o2070:
            for _, directories, files, here in os.fwalk(".", dir_fd=top, follow_symlinks=False):
                for name in (*directories, *files):
                    _give(name, group, here)
        _give(".", group, top)
    finally:
        os.close(top)


def _give(name: str, group: int, directory: int) -> None:
    one = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        mode = os.fstat(one).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            os.chown(f"/proc/self/fd/{one}", -1, group)
            Path(f"/proc/self/fd/{one}").chmod(stat.S_IMODE(mode) | (0o2770 if stat.S_ISDIR(mode) else 0o660))
    finally:
        os.close(one)


def open_beneath(path: str, *, make: bool) -> int:
    """Open a file or directory step by step, through no link; ``make`` the directories that are missing."""
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    parts = path.strip("/").split("/")
    for number, part in enumerate(parts):
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_DIRECTORY if number + 1 < len(parts) else 0)
        try:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
            there = os.open(part, flags, dir_fd=here)
        except OSError:
            raise Stop("HPL08002E", "a directory that is mounted is missing, or a link lies on the way to it") from None
        finally:
            os.close(here)
        here = there
    if stat.S_ISLNK(os.fstat(here).st_mode):
        os.close(here)
        raise Stop("HPL08002E", "what is mounted is a link")
    return here


def understood(section: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[Archive, Workload]:
    """Return the archive of a workload section, and the containers that the section asks for."""
    problems = Problems()
    mounts = mount_points(section.get("volumes", {}))
    try:
        if "compose" in section:
            from casemate.contract import compose
            from casemate.contract.images import read_compose, with_defaults

            archive = read_archive(section["compose"]["archive"])
            _, text = archive.compose()
            places = Places(str(ARCHIVE), str(SCRATCH), mounts, archive.files)
            environment = with_defaults(archive, environment)
            workload = compose.translate(read_compose(text), environment, places, problems)
        else:
            from casemate.contract import play

            packed = section["play"].get("archive")
            archive = read_archive(packed) if packed is not None else Archive({})
            places = Places(str(ARCHIVE), str(SCRATCH), mounts, archive.files)
            manifests, problems = play.read_play(section["play"], environment)
            workload = play.translate(manifests, environment, places, problems)
    except ContractError as error:
        raise Stop("HPL08002E", str(error)) from None
    for note in problems.notes:
        say("HPL08013W", str(note))
    for problem in problems:
        raise Stop("HPL08002E", str(problem)) if "compose" in section else Stop("HPL15000E", str(problem))
    for service in workload.services:
        if not service.image and not service.holds_pod:
            raise Stop("HPL08002E", f"service {service.name}: has no image")
    return archive, workload


_EXITS = {125: "its options are not possible", 126: "its command can't be run", 127: "its command is not there"}


class Podman:
    """The container engine. What it says of a failure is not told: it may quote a command, and with it a secret."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}

    def start(self, service: Service) -> int | None:
        """Make and start a container; see :class:`casemate.guest.supervisor.Engine`.

        Its variables go by a file, and those that a line can't hold as secrets of the engine, kept in memory.
        """
        options = [with_own_address(option) for option in service.options]
        for path, place in prepare(service).items():
            options = [option.replace(f"--volume={path}:", f"--volume={place}:") for option in options]
        long = {name: text for name, text in service.environment.items() if not fits_a_line(text)}
        lines = [f"{name}={text}\n" for name, text in service.environment.items() if name not in long]
        variables = state.RUN / "environment" / service.container
        state.write(variables, "".join(lines))
        for number, (name, text) in enumerate(long.items()):
            secret = f"{service.container}-{number}"
            store = f"--driver-opts=path={state.RUN / 'secrets'}"
            try:
                podman("secret", "create", store, secret, "-", stdin=text.encode())
            except OSError:
                raise Stop("HPL08004E", f"service {service.name}: the variable {name} can't be handed over") from None
            options.append(f"--secret={secret},type=env,target={name}")
        options += [f"--name={service.container}", f"--env-file={variables}"]
        options += [f"--network={name}:{','.join(more)}" for name, more in service.networks.items()]
        if service.not_root:
            self._require_user(service)
        if service.health is not None and service.health.probe is None and not has_check(options):
            self._require_check(service)
        what = self._holder(service) if service.holds_pod else ("--pull=never", service.image)
        try:
            podman(
                *("run", "--detach", "--log-driver=journald", "--log-opt=tag={{.ImageName}}"),
                *(f"--conmon-pidfile={self._pidfile(service)}", *options),
                *(*what, *service.command),
            )
        except OSError as error:
            found = re.search(r"ended with (\d+)", str(error))
            code = int(found[1]) if found else 0
            text = _EXITS.get(code, f"the engine ended with {code}")
            raise Stop("HPL08004E", f"service {service.name} does not start: {text}") from None
        finally:
            variables.unlink(missing_ok=True)
        return self._watcher(service)

    def _require_user(self, service: Service) -> None:
        """Refuse an image that would run as root, as clusters do: a name could be root's, so it has to be a number."""
        user = podman("image", "inspect", "--format={{.Config.User}}", service.image).strip().partition(":")[0]
        if not re.fullmatch("[0-9]{1,10}", user) or int(user) == 0:
            raise Stop(
                "HPL08004E", f"service {service.name} must not run as root, and its image names no other user by number"
            )

    def _require_check(self, service: Service) -> None:
        """Refuse to ask an image's own health check where it has none: the container would never be healthy."""
        if not podman("image", "inspect", "--format={{if .HealthCheck}}yes{{end}}", service.image).strip():
            raise Stop(
                "HPL08004E", f"service {service.name} is to be healthy, and neither it nor its image says how to ask"
            )

    def start_again(self, service: Service) -> int | None:
        """Start a container that has ended, as it was made."""
        try:
            podman("start", service.container)
        except OSError:
            raise Stop("HPL08004E", f"service {service.name} does not start again") from None
        return self._watcher(service)

    def code(self, service: Service) -> int:
        """Return the exit status of a container whose watcher has ended."""
        for _ in range(50):
            try:
                status, code = podman(
                    "inspect", "--format={{.State.Status}} {{.State.ExitCode}}", service.container
                ).split()
            except (OSError, ValueError):
                break
            if status in ("exited", "stopped"):
                return int(code)
            time.sleep(0.1)
        raise Stop("HPL08004E", f"service {service.name} is no longer watched by the engine")

    def ask(self, service: Service, health: Health) -> Question:
        """Run a health check: the engine's own, a command in the container, or a request to a port of its pod."""
        probe = health.probe
        if probe is not None and not probe.command:
            return Asking(lambda: self._address(service), probe, health.timeout)
        what = (
            ["healthcheck", "run", service.container] if probe is None else ["exec", service.container, *probe.command]
        )
        return subprocess.Popen(
            [PODMAN, *what],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**state.ENVIRON, **_ENGINE},
        )

    def _address(self, service: Service) -> str:
        """Return the address of a container's pod; the engine is asked once."""
        pod = service.pod or service.name
        if pod not in self._addresses:
            networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
            form = f'--format={{{{if eq .HostConfig.NetworkMode "host"}}}}127.0.0.1 {{{{end}}}}{networks}'
            self._addresses[pod] = podman("inspect", form, f"{pod}-infra", timeout=60).split()[0]
        return self._addresses[pod]

    def kill(self, service: Service) -> None:
        """End a container at once; it may have ended meanwhile."""
        with suppress(OSError):
            podman("kill", service.container)

    def stop(self) -> None:
        """Have all containers end, within the time that the unit grants."""
        try:
            podman("stop", "--all", f"--time={STOP_PATIENCE}", timeout=STOP_PATIENCE + 25)
        except OSError:
            with suppress(OSError):
                podman("kill", "--all", timeout=10)

    def _holder(self, service: Service) -> tuple[str, ...]:
        """Make the root of a container that only holds what its pod shares: one program, which sleeps."""
        import shutil  # late: it loads three ways to compress

        root = HOLDERS / service.name
        root.mkdir(parents=True)
        shutil.copy(PAUSE, root / "pause")
        return ("--read-only", "--cap-drop=all", "--rootfs", str(root), "/pause", "-P")

    def _pidfile(self, service: Service) -> Path:
        return state.RUN / "watchers" / service.container

    def _watcher(self, service: Service) -> int | None:
        try:
            pid = int(self._pidfile(service).read_text())
            watcher = os.pidfd_open(pid)
            if Path(f"/proc/{pid}/comm").read_text().strip() == "conmon":
                return watcher
            os.close(watcher)
        except (OSError, ValueError):
            pass
        return None


class Asking:
    """A request to a port, under way: a thread, since servers may be slow; see :class:`casemate.guest.supervisor.Question`.

    Of the answer only the status is read, and nothing of it is told.
    """

    def __init__(self, address: Callable[[], str], probe: Probe, timeout: float) -> None:
        self._address, self._probe, self._timeout = address, probe, timeout
        self._socket: socket.socket | None = None
        self._code = 1
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        """Return 0 where the port is well, 1 where not, ``None`` while it is asked."""
        return None if self._thread.is_alive() else self._code

    def kill(self) -> None:
        """End the connection, and with it the thread."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self) -> int:
        """Wait for the thread, which ends within the time limit of a step."""
        self._thread.join(self._timeout)
        return self._code

    def _run(self) -> None:
        probe = self._probe
        with (
            suppress(OSError, ValueError, IndexError),
            socket.create_connection((self._address(), probe.port), self._timeout) as connection,
        ):
            self._socket = connection
            self._code = 0 if probe.path is None or 200 <= self._status(connection) < 400 else 1

    def _status(self, connection: socket.socket) -> int:
        probe = self._probe
        headers = dict(probe.headers)
        known = {name.lower() for name in headers}
        more = {"Host": f"{self._address()}:{probe.port}", "User-Agent": "casemate-probe", "Accept": "*/*"}
        headers |= {name: text for name, text in more.items() if name.lower() not in known}
        lines = [f"GET {probe.path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        answer = b""
        while b"\n" not in answer and len(answer) < LONGEST_STATUS and (part := connection.recv(LONGEST_STATUS)):
            answer += part
        found = re.match(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]", answer)
        return int(found[1]) if found else 0


# Health checks are ours to run: without this the engine wants systemd's timers.
_ENGINE = {"DISABLE_HC_SYSTEMD": "true"}


def podman(*arguments: str, stdin: bytes = b"", timeout: float = 600) -> str:
    """Run the engine."""
    return state.call(PODMAN, *arguments, stdin=stdin, timeout=timeout, env=_ENGINE)


def has_check(options: Iterable[str]) -> bool:
    """Whether options say what a health check does."""
    return any(option.startswith("--health-cmd=") for option in options)


def with_own_address(option: str) -> str:
    """Replace ``host-gateway`` by the machine's address, as others see it; asking the kernel for the way out sends nothing."""
    if not (option.startswith("--add-host=") and option.endswith(":host-gateway")):
        return option
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("192.0.2.1", 9))
        except OSError:
            raise Stop("HPL08004E", "the machine has no IPv4 address, which `host-gateway` asks for") from None
        return option.replace(":host-gateway", f":{way.getsockname()[0]}")


def make_networks(networks: Sequence[Network]) -> None:
    """Have the engine make networks that can't reach each other but by published ports; an internal one reaches nothing else.

    The rules are ours, in a table that is asked before the engine's: its option ``isolate`` closes published ports too.
    """
    for network in networks:
        podman("network", "create", *network.options, network.name)
    if len(networks) < 2 and not any(network.internal for network in networks):
        return
    form = "--format={{.NetworkInterface}}"
    bridges = {network: podman("network", "inspect", form, network.name).strip() for network in networks}
    rules = []
    for network, bridge in bridges.items():
        rules += [
            f"-i {bridge} -o {other} -m conntrack ! --ctstate DNAT" for other in bridges.values() if other != bridge
        ]
        rules += [f"-i {bridge} ! -o {bridge}", f"-o {bridge} ! -i {bridge}"] * network.internal
    lines = "".join(f"-A FORWARD {rule} -j DROP\n" for rule in rules)
    state.call(f"{FIREWALL}-restore", "--noflush", stdin=f"*mangle\n{lines}COMMIT\n".encode())


def open_ports() -> None:
    """Let every port of the machine be reached: a container has the machine's network, as its author wrote."""
    state.call(FIREWALL, "-P", "INPUT", "ACCEPT")


def fits_a_line(text: str) -> bool:
    """Whether a file of ``NAME=value`` lines can hold a value."""
    return "\n" not in text and "\r" not in text and len(text.encode()) <= LONGEST_LINE


def mount_points(volumes: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the directory of each volume by the mount point that the contract names."""
    return {volume.get("mount", "/mnt/data"): str(state.VOLUMES / name) for name, volume in volumes.items()}


def write_files(workload: Workload) -> None:
    """Write what pods have of their ConfigMaps."""
    for directory in workload.directories:
        Path(directory).mkdir(parents=True)
    for name, (mode, content) in workload.files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)


def offer_tools() -> None:
    """Show the guest's root, read-only, to the containers that mount it: squashfs of the public archive, without a secret."""
    TOOLS.mkdir(mode=0o755)
    kernel.mount("/", str(TOOLS), flags=kernel.MS_BIND)


def tell_ready(address: str | None) -> None:
    """Tell systemd that the unit is up, see ``sd_notify(3)``: what waits for it goes on."""
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            notify.sendall(b"READY=1")


def service() -> None:
    """Unpack, translate, start, stay; where the workload is complete, stop the machine."""
    for left in (state.CONTRACT, state.SEEDS, state.PASSPHRASES, state.VOLUME_KEYS, state.KEY_SERVICES):
        if left.exists():
            raise Stop("HPL08006E", "seeds, passphrases or sections are still there: no container starts")
    archive, workload = understood(state.section("workload"), state.read_json(state.ENVIRONMENT))
    unpack(archive, ARCHIVE)
    write_files(workload)
    if any(str(TOOLS) in each.mounts for each in workload.services):
        offer_tools()
    pods = [each for each in workload.services if each.holds_pod]
    make_networks(workload.networks)
    if any("--network=host" in each.options for each in workload.services):
        open_ports()
    for directory in ("watchers", "secrets"):
        (state.RUN / directory).mkdir(mode=0o700)
    state.forget(state.SECTIONS)  # from here on workloads run, and none should find what it doesn't need
    state.ENVIRONMENT.unlink()

    def ready() -> None:
        for pod in pods:
            say("HPL15004I", f"pod {pod.name} has been started")
        tell_ready(os.environ.pop("NOTIFY_SOCKET", None))

    engine = Podman()
    supervisor = Supervisor(workload.services, engine, ready)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
    if not supervisor.run():
        engine.stop()
        return
    say("HPL10002I", f"The workload is complete: the machine stops in {GRACE:.0f} seconds.")
    time.sleep(GRACE)
    subprocess.run(["/usr/bin/systemctl", "--no-block", "poweroff"], check=True)
