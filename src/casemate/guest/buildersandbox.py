"""Runs a program where it can reach nothing but its own directory: for code that a bundle brings into a builder machine.

    run_in_sandbox(directory, ["/usr/bin/python3", "-m", "casemate.image.inside"], timeout=3600)

It has namespaces of its own for users, mounts, processes, network, IPC, host name and cgroups. It is root there and
nobody outside: its 65536 users are none that own anything (:data:`OUTSIDE`). Of files it sees ``/usr`` and a few of
``/etc``, read-only, five harmless devices, a fresh ``/proc`` of its own processes, and ``/work``, which is the
directory. There is no ``/run``, no ``/sys``, no block device and no way to make a node for one. No program gains
privileges (``no_new_privs``). Environment and open files are its own.

The builder starts a helper by ``exec``, so that no key is in the memory of what makes the sandbox. When the first process of the
sandbox ends, or the helper, the kernel ends all others. What is left in the directory is as hostile as what came: links
and odd files in it are not followed (:func:`take`).

What is not done: system calls are not filtered, since the tools of a build need most of them. A hole in the kernel leads out.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from casemate.guest import kernel
from casemate.guest.report import Stop

OUTSIDE, USERS = 0x40000000, 65536
"""The sandbox's users are these outside of it, above all that Debian gives out."""
NEW = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
"""``CLONE_NEW…``: user, mounts, processes, network, IPC, host name, cgroups (``linux/sched.h``)."""
MS_REMOUNT, MS_REC, MS_PRIVATE = 32, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, MNT_DETACH = 1, 4, 38, 2
PIVOT_ROOT = {"x86_64": 155, "s390x": 217, "aarch64": 41}
ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "dpkg", "apt", "nsswitch.conf")
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "dev/fd": "/proc/self/fd"}
ROOT = Path("/tmp")  # noqa: S108
"""Where the sandbox's root is mounted, in a mount namespace of its own: a directory that everybody may reach."""
LINES = 40

_libc = ctypes.CDLL(None, use_errno=True)


def run_in_sandbox(
    directory: Path, program: Sequence[str], *, timeout: float, environment: Mapping[str, str] = {}
) -> None:
    """Run a program in a sandbox over ``directory``, which is made its own. Raises :class:`Stop` where it fails.

    What it says is shown only where it failed, the last lines: a job must not fill the console.
    """
    give(directory)
    ready, go = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    words = [sys.executable, "-IB", "-m", "casemate.guest.buildersandbox", str(directory)]
    if not sys.flags.isolated:  # started from a source tree, as tests do
        words = [sys.executable, "-B", *words[2:]]
    inherited = (
        {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ and not sys.flags.isolated else {}
    )
    with (directory.parent / f"{directory.name}.log").open("w+b") as log:
        process = subprocess.Popen(
            [*words, str(ready[1]), str(go[0]), *program],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(ready[1], go[0]),
            start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C.UTF-8", "HOME": "/work", **inherited, **environment},
        )
        os.close(ready[1])
        os.close(go[0])
        try:
            if select.select([ready[0]], [], [], 60)[0] and os.read(ready[0], 1):
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{process.pid}/{name}").write_text(f"0 {OUTSIDE} {USERS}\n")
                os.write(go[1], b"x")
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Stop("HPL17012E", f"the job in the sandbox was not done after {timeout:.0f} seconds") from None
        finally:
            process.kill()  # the kernel ends all that the sandbox has started
            process.wait()
            for descriptor in (ready[0], go[1]):
                os.close(descriptor)
        log.seek(max(0, log.seek(0, os.SEEK_END) - 8000))
        said = log.read().decode("utf-8", "replace").strip().splitlines()[-LINES:]
    if code:
        for line in said:
            print("".join(c for c in line if c.isprintable())[:300], file=sys.stderr, flush=True)
        raise Stop("HPL17012E", f"the job in the sandbox has ended with {code}")


def give(directory: Path) -> None:
    """Make a directory and all in it the sandbox's; links are not followed."""
    for parent, directories, names in os.walk(directory):
        for name in (".", *directories, *names):
            path = Path(parent) / name
            if path.lstat().st_uid < OUTSIDE:
                os.chown(path, OUTSIDE, OUTSIDE, follow_symlinks=False)


def take(directory: Path, name: str, limit: int, target: Path) -> int:
    """Copy a file that a sandbox has left, when all in it has ended; return its size. No link is followed.

    Raises :class:`Stop`: there is none, it is no regular file, or larger than ``limit``.
    """
    try:
        above = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        finally:
            os.close(above)
    except OSError:
        raise Stop("HPL17012E", f"the job has left no file {name}") from None
    done, about = 0, os.fstat(source)
    if not stat.S_ISREG(about.st_mode) or about.st_size > limit:
        os.close(source)
        raise Stop("HPL17012E", f"what the job has left as {name} is too large, or no file")
    with os.fdopen(source, "rb") as file, target.open("xb") as out:
        while piece := file.read(min(1 << 20, limit + 1 - done)):
            out.write(piece)
            done += len(piece)
    return done


# --- the helper -------------------------------------------------------------------------------------------------


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _bind(source: str, target: Path, read_only: bool) -> None:
    kernel.mount(source, str(target), "", kernel.MS_BIND | MS_REC)
    if read_only:
        flags = os.statvfs(target).f_flag & (kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        kernel.mount("", str(target), "", kernel.MS_BIND | MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID | flags)


def _build_root(root: Path, work: str) -> None:
    """Mount all that the sandbox sees below ``root``."""
    kernel.mount("", "/", "", MS_REC | MS_PRIVATE)
    kernel.mount("tmpfs", str(root), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=64m")
    for name in ("usr", "etc", "dev", "proc", "sys", "tmp", "run", "work", "old", "root", "var/lib/dpkg", "dev/shm"):
        (root / name).mkdir(parents=True)
    for name, target in LINKS.items():
        if name.startswith("dev/") or Path("/", target).exists():
            (root / name).symlink_to(target)
    _bind("/usr", root / "usr", read_only=True)
    for name in ETC:
        source = Path("/etc") / name
        if source.is_dir():
            (root / "etc" / name).mkdir()
        elif source.exists():
            (root / "etc" / name).touch()
        else:
            continue
        _bind(str(source), root / "etc" / name, read_only=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/work:/bin/sh\n_apt:x:42:65534::/nonexistent:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "var/lib/dpkg/status").touch()
    for name in DEVICES:
        (root / "dev" / name).touch()
        kernel.mount(f"/dev/{name}", str(root / "dev" / name), "", kernel.MS_BIND)
    for name, size in (("tmp", "1g"), ("dev/shm", "64m")):
        kernel.mount("tmpfs", str(root / name), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"mode=1777,size={size}")
    _bind(work, root / "work", read_only=False)
    kernel.mount("proc", str(root / "proc"), "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)


def _enter(root: Path, work: str) -> None:
    """Make the sandbox's files the only ones that there are."""
    _build_root(root, work)
    os.chdir(root)
    if _libc.syscall(PIVOT_ROOT[platform.machine()], b".", b"old") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    os.chdir("/")
    _call("umount2", b"/old", MNT_DETACH)
    Path("/old").rmdir()
    kernel.mount("", "/", "", kernel.MS_BIND | MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)


def _start(program: Sequence[str]) -> NoReturn:
    """The first process of the sandbox."""
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    os.chdir("/work")
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.execve(program[0], list(program), dict(os.environ))  # noqa: S606


def _child(act: Callable[[], None]) -> int:
    """Run something in a process of its own, which ends with this one; return its process id."""
    child = os.fork()
    if child == 0:
        try:
            _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            act()
            os._exit(0)
        except BaseException as error:
            print(f"the sandbox can't be made: {error}", file=sys.stderr, flush=True)
            os._exit(125)
    return child


def _code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


def main(arguments: Sequence[str]) -> int:
    """Make the namespaces, have the builder map the users, start the program; return its exit code.

    Twice, one inside of the other: in the first the mounts are made, and who is in the second can't take from them what they were
    made with (``mount_namespaces(7)``: they are locked).
    """
    directory, ready, go, *program = arguments
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("unshare", NEW)
    # While this is still root for files: only it may walk down to the directory.
    work = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.write(int(ready), b"x")
    os.close(int(ready))
    if os.read(int(go), 1) != b"x":
        return 1
    os.close(int(go))
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # forgotten where users change
    _call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # there is nothing in this memory; else the map below can't be written
    (heard, told), (waits, goes) = os.pipe(), os.pipe()

    def outer() -> None:
        os.close(heard)
        os.close(goes)
        _enter(ROOT, f"/proc/self/fd/{work}")
        _call("unshare", NEW)
        os.write(told, b"x")
        if os.read(waits, 1) != b"x":
            raise OSError("the users were not mapped")
        os.close(told)
        os.close(waits)
        os._exit(_code(_child(lambda: _start(program))))

    child = _child(outer)
    os.close(told)
    os.close(waits)
    if os.read(heard, 1) == b"x":
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/1/{name}").write_text(f"0 0 {USERS}\n")  # both see the new root, and its /proc
        os.write(goes, b"x")
    return _code(child)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
