"""Makes real volumes with the real cryptsetup, in files."""

from __future__ import annotations

import subprocess
from pathlib import Path

from casemate.luks.policy import format_arguments

SIZE = 32 << 20
KEY = b"0f" * 32


def cryptsetup(*arguments: str | Path, key: bytes = KEY) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["cryptsetup", *map(str, arguments), "--key-file=-"], input=key, capture_output=True, timeout=120
    )


def luks_format(path: Path, *options: str) -> Path:
    """Make a volume of 32 MiB with these options; without any, as the guest does."""
    with path.open("wb") as file:
        file.truncate(SIZE)
    done = cryptsetup("luksFormat", *(options or format_arguments()), path)
    assert done.returncode == 0, done.stderr.decode()
    return path
