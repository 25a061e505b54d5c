"""Where tools run that see what others wrote: git on a source, skopeo on an image, buildah on a Containerfile with its RUN steps.

    code, _ = run(Sandbox("job-build", directory, ("buildah", …), work=…, shown={"/context": …}), watch, log)

A sandbox is a container of its own, made by crun (which podman uses too), in namespaces of its own:

- **user**: its root is user 100000 of the server, which owns nothing of the server. So are the files that it makes.
- **mount**: an empty root with the server's programs, read-only; ``/work``, the step's only place to write; and, read-only, what
  the step is shown. No key, no state, no other job, no file of the server's own is there to be found.
- **process**: it sees its own processes, and all of them end with it.
- **network**: nothing but its own loopback; where a step may reach hosts, a socket leads to :mod:`casemate.hpsb.proxy`.

The steps of a build run inside of that again, in buildah's chroot with fewer capabilities. So what gets out of a step is in a
place where only its own job can be damaged: a sandbox is used once, and nothing of it is seen by another job.

System calls that no build needs and that attacks on the kernel like are refused (``_REFUSED``). Disk and time are watched, since
a container lends no control groups: a job that takes too much ends. Memory is not bounded: the kernel ends the job before the
server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate.hpsb.errors import refused

FIRST_ID, IDS = 100_000, 65_536
FORWARD = "http://127.0.0.1:3128"
LARGEST_LOG, LARGEST_ANSWER = 4 << 20, 16 << 20
_ROOT = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP",
         "SETUID", "SYS_ADMIN", "SYS_CHROOT")  # fmt: skip
"""Capabilities inside, which count for what the sandbox owns and for nothing else."""
_REFUSED = ("acct", "add_key", "bpf", "delete_module", "finit_module", "init_module", "io_uring_enter", "io_uring_register",
            "io_uring_setup", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "open_by_handle_at",
            "perf_event_open", "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "reboot", "request_key",
            "settimeofday", "swapoff", "swapon", "syslog", "userfaultfd", "vhangup")  # fmt: skip
_SKELETON = ("etc/containers", "proc", "dev", "sys", "tmp", "var/tmp", "usr", "work", "run", "root")
_OF_STEPS = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
)
"""What buildah leaves of them to a RUN step: enough to install packages, and neither mount, chroot nor device."""
_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'  # digests are checked by us, outside


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One run. ``work`` appears as ``/work``, each of ``shown`` read-only at its path; ``proxy`` is the socket of the way out.

    ``name`` is unique among running ones. ``directory`` takes what crun reads, and is the server's.
    """

    name: str
    directory: Path
    command: Sequence[str]
    work: Path
    shown: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    proxy: Path | None = None


def bundle(sandbox: Sandbox, forward: Path) -> dict[str, Any]:
    """Return the ``config.json`` (OCI runtime specification 1.0) of a sandbox."""
    shown = {"/usr": Path("/usr"), **sandbox.shown}
    command = list(sandbox.command)
    if sandbox.proxy is not None:
        shown |= {"/run/proxy": sandbox.proxy, "/run/forward.py": forward}
        command = ["/usr/bin/python3", "-ISB", "/run/forward.py", *command]
    environment = {
        **{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/work", "LC_ALL": "C.UTF-8", "TMPDIR": "/var/tmp"},  # noqa: S108
        **{"XDG_RUNTIME_DIR": "/work", "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"},
        **sandbox.environment,
    }
    ids = [{"containerID": 0, "hostID": FIRST_ID, "size": IDS}]
    capabilities = [f"CAP_{name}" for name in _ROOT]
    sets = ("bounding", "effective", "permitted", "inheritable")
    return {
        "ociVersion": "1.0.2",
        "root": {"path": "root", "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "cwd": "/work",
            "args": command,
            "env": [f"{name}={value}" for name, value in environment.items()],
            "noNewPrivileges": True,
            "oomScoreAdj": 1000,
            "capabilities": {name: capabilities for name in sets},
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]},
            _memory("/dev", "755", "64k"),
            _memory("/sys", "555", "4k"),
            _bound("/work", sandbox.work, "rw"),
            _bound("/var/tmp", sandbox.work / "tmp", "rw"),  # noqa: S108
            _bound("/tmp", sandbox.work / "tmp", "rw"),  # noqa: S108
            *(_bound(place, source, "ro") for place, source in shown.items()),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("user", "mount", "pid", "network", "ipc", "uts", "cgroup")],
            "uidMappings": ids,
            "gidMappings": ids,
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": list(_REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
            },
        },
    }


def _memory(place: str, mode: str, size: str) -> dict[str, Any]:
    return {
        "destination": place,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", f"mode={mode}", f"size={size}"],
    }


def _bound(place: str, source: Path, how: str) -> dict[str, Any]:
    return {"destination": place, "type": "bind", "source": str(source), "options": ["rbind", "nosuid", "nodev", how]}


@dataclass(slots=True)
class Watch:
    """What bounds the steps of a job: the bytes that it may hold on disk, and when it must have ended (monotonic seconds)."""

    directory: Path
    bytes: int
    end: float
    stop: threading.Event = field(default_factory=threading.Event)

    def fault(self) -> str | None:
        """Return the identifier of what is wrong now."""
        if self.stop.is_set():
            return "STOPPED"
        if time.monotonic() > self.end:
            return "TIME"
        return "SIZE" if held(self.directory) > self.bytes else None


def held(directory: Path) -> int:
    """Return the bytes that a directory holds on disk, no link followed, whatever is made or removed meanwhile."""
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_blocks * 512  # noqa: PTH118  (a build has many)
    return total


def make_work(directory: Path) -> Path:
    """Make a new directory that a sandbox may write to."""
    (directory / "tmp").mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    for path in (directory, directory / "tmp"):
        os.chown(path, FIRST_ID, FIRST_ID)
    return directory


def run(sandbox: Sandbox, watch: Watch, log: Callable[[bytes], None], *, answer: bool = False) -> tuple[int, bytes]:
    """Run a sandbox to its end; return the exit code, and what it wrote to its standard output where ``answer`` is asked for.

    All else that it writes goes to ``log``. Raises :class:`BuildError` where ``watch`` or the answer's bound ends it.
    """
    directory = sandbox.directory / sandbox.name
    root = directory / "root"
    for name in _SKELETON:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/passwd").write_text("root:x:0:0:root:/work:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/containers/policy.json").write_text(_POLICY)
    capabilities = ", ".join(f'"CAP_{name}"' for name in _OF_STEPS)
    (root / "etc/containers/containers.conf").write_text(f"[containers]\ndefault_capabilities = [{capabilities}]\n")
    for place, source in sandbox.shown.items():
        inside = root / place.lstrip("/")
        inside.mkdir(parents=True, exist_ok=True) if source.is_dir() else _touch(inside)
    if sandbox.proxy is not None:
        _touch(root / "run/proxy")
        _touch(root / "run/forward.py")
    for path in (directory, *root.rglob("*"), root):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    (directory / "config.json").write_text(json.dumps(bundle(sandbox, Path(__file__).with_name("forward.py"))))
    crun = ["crun", f"--root={sandbox.directory / 'crun'}", "--cgroup-manager=disabled"]
    process = subprocess.Popen(
        [*crun, "run", f"--bundle={directory}", sandbox.name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", "/usr/bin"), "XDG_RUNTIME_DIR": str(sandbox.directory)},
        start_new_session=True,
    )
    said = bytearray()

    def keep(part: bytes) -> None:
        said.extend(part[: LARGEST_ANSWER + 1 - len(said)])

    pumps = [
        threading.Thread(target=_pump, args=(stream, sink), daemon=True)
        for stream, sink in ((process.stdout, keep if answer else log), (process.stderr, log))
    ]
    for pump in pumps:
        pump.start()
    try:
        fault = None
        while fault is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
                break
            fault = watch.fault()
    finally:
        subprocess.run([*crun, "delete", "--force", sandbox.name], capture_output=True, check=False)
        if process.poll() is None:
            process.kill()
        code = process.wait()
        for pump in pumps:
            pump.join(10)
        shutil.rmtree(directory, ignore_errors=True)
    fault = fault or watch.fault()
    if fault is not None:
        causes = {
            "STOPPED": ("the server stops", "start the job again"),
            "TIME": (
                "the job takes longer than the server's configuration allows",
                "build less, or raise limits.minutes",
            ),
            "SIZE": (
                "the job holds more on disk than the server's configuration allows",
                "build less, or raise limits.job_mib",
            ),
        }
        raise refused(fault, *causes[fault])
    if len(said) > LARGEST_ANSWER:
        raise refused("SIZE", "a step says more than it may", "is the repository that large?")
    return code, bytes(said)


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _pump(stream: Any, sink: Callable[[bytes], None]) -> None:
    with stream:
        while part := stream.read1(1 << 16):
            sink(part)
