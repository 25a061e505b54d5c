"""What the kernel lets tests have here: a root that is a mount, and user namespaces.

In a chroot, as a fresh machine may be one, ``/`` is a directory of another mount: then ``unshare --mount`` and the container
engine are refused. So the whole run goes into a mount namespace of its own, where the same directory is mounted and its root.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

_NEW_MOUNTS, _BIND_ALL, _PRIVATE_ALL = 0x00020000, 4096 | 16384, (1 << 18) | 16384


def root_is_a_mount() -> bool:
    """Whether the root of this process is the root of a mount."""
    return any(line.split()[4] == "/" for line in Path("/proc/self/mountinfo").read_text().splitlines())


def mount_root() -> None:
    """Make the root a mount of this process and its children, where it is none and they are root."""
    if os.geteuid() != 0 or root_is_a_mount():
        return
    libc, here = ctypes.CDLL(None, use_errno=True), Path.cwd()

    def call(function: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")

    call("unshare", _NEW_MOUNTS)
    place = tempfile.mkdtemp(prefix="casemate-root-")
    call("mount", b"/", place.encode(), None, ctypes.c_ulong(_BIND_ALL), None)
    os.chroot(place)
    os.chdir(here)
    call("mount", None, b"/", None, ctypes.c_ulong(_PRIVATE_ALL), None)


CHROOTED = not root_is_a_mount()
"""Whether the run began in a chroot: asked before :func:`mount_root`."""
USER_NAMESPACES = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0
NO_USER_NAMESPACES = "the kernel makes no user namespaces here, as for everybody in a chroot"
needs_user_namespaces = pytest.mark.skipif(not USER_NAMESPACES, reason=NO_USER_NAMESPACES)
