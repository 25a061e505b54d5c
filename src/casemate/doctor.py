"""What this machine needs for Casemate, what of it is there, and the one command that installs the rest.

A need is a program of a Debian package and what it is needed for. Whether it is met is asked of the machine, never of a
list of what somebody installed. Nothing here needs root but :func:`install`.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import CasemateError

GROUPS = {
    "image": "build images",
    "machine": "start machines",
    "demo": "see the demo",
    "tests": "run the tests",
    "s390x": "build images for IBM Z on another processor, and start machines of them",
}
USUAL = ("image", "machine", "demo", "tests")
"""The groups that are looked at where nobody names any."""
DISK, MEMORY = 4 << 30, 1536 << 20
"""Bytes: the cache of packages, an image and the disks of the demo; a machine of 1 GiB and what watches it."""
PYTHON = (3, 11)
_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True, slots=True)
class Need:
    """A program (or, where it has a slash, a pattern of files), the Debian package that brings it, and for what."""

    program: str
    package: str
    group: str


NEEDS = (
    Need("mmdebstrap", "mmdebstrap", "image"),
    Need("mksquashfs", "squashfs-tools", "image"),
    Need("depmod", "kmod", "image"),
    Need("qemu-system-x86_64", "qemu-system-x86", "machine"),
    Need("docker-registry", "docker-registry", "demo"),
    Need("htpasswd", "apache2-utils", "demo"),
    Need("skopeo", "skopeo", "demo"),
    Need("rsyslogd", "rsyslog", "demo"),
    Need("/usr/lib/*/rsyslog/lmnsd_gtls.so", "rsyslog-gnutls", "demo"),
    Need("psql", "postgresql-client", "demo"),
    Need("openssl", "openssl", "tests"),
    Need("cryptsetup", "cryptsetup-bin", "tests"),
    Need("sfdisk", "fdisk", "tests"),
    Need("mkfs.ext4", "e2fsprogs", "tests"),
    Need("mkfs.xfs", "xfsprogs", "tests"),
    Need("mkfs.btrfs", "btrfs-progs", "tests"),
    Need("/usr/lib/systemd/systemd-journald", "systemd", "tests"),
    Need("genisoimage", "genisoimage", "tests"),
    Need("xorriso", "xorriso", "tests"),
    Need("mkfs.vfat", "dosfstools", "tests"),
    Need("mcopy", "mtools", "tests"),
    Need("cpio", "cpio", "tests"),
    Need("zstd", "zstd", "tests"),
    Need("logger", "bsdutils", "tests"),
    Need("s390x-linux-gnu-as", "binutils-s390x-linux-gnu", "tests"),
    Need("qemu-system-s390x", "qemu-system-misc", "tests"),
    Need("qemu-system-s390x", "qemu-system-misc", "s390x"),
    Need("podman", "podman", "tests"),
    Need("crun", "crun", "tests"),
    Need("catatonit", "catatonit", "tests"),
    Need("gpg", "gnupg", "tests"),
    Need("buildah", "buildah", "tests"),
    Need("git", "git", "tests"),
    Need("notary", "notary", "tests"),
    Need("softhsm2-util", "softhsm2", "tests"),
    Need("pkcs11-tool", "opensc", "tests"),
    Need("xsltproc", "xsltproc", "tests"),
    Need("virsh", "libvirt-clients", "tests"),
    Need("libvirtd", "libvirt-daemon", "tests"),
    Need("/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so", "libvirt-daemon-driver-qemu", "tests"),
)
DAEMONS = {
    "docker-registry": "docker-registry.service",
    "rsyslog": "rsyslog.service syslog.socket",
    "podman": "podman.socket podman.service podman-restart.service podman-auto-update.timer",
}
"""Packages that bring a service of their own, which nobody asked for here: installed, but not started."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``ok`` is ``None`` for what only informs; ``package`` is what would bring it."""

    name: str
    group: str
    ok: bool | None
    found: str
    package: str = ""
    cure: str = ""


class DoctorError(CasemateError):
    """What is missing could not be installed."""

    id = "DOCTOR"


def examine(groups: Iterable[str] = USUAL) -> list[Finding]:
    """Look at this machine; return a finding for each need of the groups, in their order, and for the machine itself."""
    chosen = set(groups)
    needs = [need for need in NEEDS if need.group in chosen]
    versions = _versions({need.package for need in needs})
    findings = [_python(), _rights(chosen), _disk(), _memory()]
    findings += [_kvm()] if chosen & {"machine", "demo", "tests"} else []
    for need in needs:
        place = _find(need.program)
        found = versions.get(need.package, place) if place else "missing"
        findings.append(Finding(need.program.rpartition("/")[2], need.group, bool(place), found, need.package))
    return [*findings, *([programs_of_s390x()] if "s390x" in chosen else [])]


def missing(findings: Iterable[Finding]) -> list[str]:
    """Return the packages that are missing, sorted."""
    return sorted({finding.package for finding in findings if finding.ok is False and finding.package})


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing that is needed is missing."""
    return all(finding.ok is not False for finding in findings)


def command(packages: Sequence[str]) -> list[str]:
    """Return the command that installs packages: one that a person can paste."""
    words = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--no-install-recommends"]
    return [*([] if os.geteuid() == 0 else ["sudo"]), *words, *packages]


def install(packages: Sequence[str], progress: Callable[[str], None] = lambda step: None) -> None:
    """Install packages. Services that come with them are neither started nor enabled. Raises :class:`DoctorError`."""
    if os.geteuid() != 0 and shutil.which("sudo") is None:
        raise DoctorError("packages can be installed by root only, and there is no sudo", "do it as root")
    new = [name for name in packages if not _versions({name})]
    with _nothing_starts():
        progress("package lists")
        _apt([*([] if os.geteuid() == 0 else ["sudo"]), "apt-get", "update"], lambda step: None)
        progress(f"download of {', '.join(packages)}")
        _apt(command(packages), progress)
    units = [unit for name in new if name in DAEMONS for unit in DAEMONS[name].split()]
    if units and Path("/run/systemd/system").is_dir():
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        subprocess.run([*sudo, "systemctl", "--quiet", "disable", *units], capture_output=True, check=False)


def _apt(words: list[str], progress: Callable[[str], None]) -> None:
    """Run apt-get and tell its phases; raise :class:`DoctorError` with its last lines where it fails."""
    phases = {"Unpacking ": "unpacking", "Setting up ": "setting up"}
    lines: list[str] = []
    told = ""
    try:
        # standard error goes with the rest, and apt's own messages stay readable for phases: LC_ALL=C
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        ) as process:
            assert process.stdout is not None
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                lines = [*lines[-11:], line] if line else lines
                phase = next((name for start, name in phases.items() if line.startswith(start)), told)
                if phase != told:
                    told = phase
                    progress(phase)
    except FileNotFoundError:
        raise DoctorError(
            f"{words[0]} is not there: this is no Debian machine", "install the packages yourself"
        ) from None
    if process.returncode:
        tail = "\n  ".join(lines)
        raise DoctorError(f"apt-get ended with {process.returncode}:\n  {tail}", "run it yourself to see all it says")


@contextmanager
def _nothing_starts() -> Iterator[None]:
    """Have no service started, by the means that Debian has for it; as root only, and not over a policy that is there."""
    policy = Path("/usr/sbin/policy-rc.d")
    if os.geteuid() != 0 or policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def _find(program: str) -> str:
    """Return where a program (or a file that matches the pattern) is, or an empty text."""
    if "/" in program:
        return next((str(path) for path in sorted(Path("/").glob(program.lstrip("/")))), "")
    return shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), *_PATHS))) or ""


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    try:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status} ${Version}\n", *packages],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return {}
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    return {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == "installed"}


def _python() -> Finding:
    ok = sys.version_info >= PYTHON
    cure = f"use Python {PYTHON[0]}.{PYTHON[1]} or newer"
    return Finding("Python", "", ok, platform.python_version(), cure="" if ok else cure)


def _rights(groups: set[str]) -> Finding:
    if os.geteuid() == 0:
        return Finding("root", "", True, "yes")
    wanted = groups & {"image", "demo", "tests"}
    if shutil.which("sudo"):
        cure = "images are built as root: use sudo" if wanted else ""
        return Finding("root", "", None if wanted else True, "no, and sudo is there", cure=cure)
    return Finding("root", "", False if wanted else None, "no", cure="images are built as root")


def _disk() -> Finding:
    from casemate.machine import home

    place = home.directory().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    cure = f"free some at {place}, or set CASEMATE_HOME to another disk"
    return Finding("disk", "", free >= DISK, _size(free, DISK), cure="" if free >= DISK else cure)


def _memory() -> Finding:
    free = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    cure = "end something that uses much memory"
    return Finding("memory", "", free >= MEMORY, _size(free, MEMORY), cure="" if free >= MEMORY else cure)


def _size(free: int, wanted: int) -> str:
    return f"{free / (1 << 30):.1f} GiB free, {wanted / (1 << 30):.1f} needed"


def programs_of_s390x() -> Finding:
    """Say whether programs of IBM Z run here: packages' own scripts do while a root is built."""
    name = "programs of s390x"
    if platform.machine() == "s390x":
        return Finding(name, "s390x", True, "this machine's own")
    if not _find("qemu-s390x-static"):
        return Finding(name, "s390x", False, "missing", "qemu-user-static")
    if Path("/proc/sys/fs/binfmt_misc/qemu-s390x").exists():
        return Finding(name, "s390x", True, "run by emulation")
    where = "/proc/sys/fs/binfmt_misc"
    by_hand = f"mount -t binfmt_misc none {where}; cat /usr/lib/binfmt.d/qemu-s390x.conf > {where}/register"
    cure = f"systemctl restart systemd-binfmt, or where there is no systemd: {by_hand}"
    return Finding(name, "s390x", False, "the kernel does not know their emulator", cure=cure)


def _kvm() -> Finding:
    from casemate.machine.qemu import kvm_works

    if _find("qemu-system-x86_64") and kvm_works():
        return Finding("KVM", "", None, "works")
    return Finding("KVM", "", None, "not used: machines are emulated, which needs nothing and is slower")
