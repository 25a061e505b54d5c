"""A real libvirt for tests: its daemon, for one user, in directories of its own, with QEMU's driver.

Where the tests are root's it is started in a user namespace, in which root is somebody else: so it is a session of one user, and
touches nothing of this host.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from namespaces import NO_USER_NAMESPACES, USER_NAMESPACES

PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"))


@contextmanager
def libvirtd() -> Iterator[Path]:
    """Start the daemon; give its socket; stop it. Where libvirt is not installed the test is skipped."""
    daemon = shutil.which("libvirtd", path=PATH)
    drivers = list(Path("/usr/lib").glob("*/libvirt/connection-driver/libvirt_driver_qemu.so"))
    if daemon is None or not drivers or shutil.which("virsh") is None:
        pytest.skip("libvirt is not installed: casemate doctor --for tests --install")
    directory = Path(tempfile.mkdtemp(prefix="cm-lv-"))
    words = [daemon]
    if os.geteuid() == 0:
        if not USER_NAMESPACES:
            pytest.skip(NO_USER_NAMESPACES)
        words = [str(shutil.which("unshare")), "--user", "--map-user=1000", "--map-group=1000", daemon]
    programs = (
        directory / "bin"
    )  # all that it finds: it asks every QEMU of its path what it can do, and there are dozens
    programs.mkdir()
    for name in ("qemu-system-x86_64", "qemu-system-s390x", "qemu-img", "env"):
        if found := shutil.which(name, path=PATH):
            (programs / name).symlink_to(found)
    environment = {"PATH": str(programs), "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory), "LC_ALL": "C"}
    said = directory.with_name(f"{directory.name}.log")
    with said.open("wb") as log:
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
    try:
        path = directory / "libvirt/libvirt-sock"
        end = time.monotonic() + 30
        while subprocess.run(
            ["virsh", "-c", f"test+unix:///default?socket={path}", "uri"], capture_output=True
        ).returncode:
            assert process.poll() is None and time.monotonic() < end, said.read_text(errors="replace")
            time.sleep(0.1)
        yield path
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)
        said.unlink(missing_ok=True)
