"""Whether tests can have a sandbox here: the kernel makes no user namespaces for who lives in a chroot, and some systems for nobody."""

from __future__ import annotations

import subprocess

import pytest

_POSSIBLE = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0
needs_user_namespaces = pytest.mark.skipif(not _POSSIBLE, reason="no user namespaces here: a chroot, or forbidden")
