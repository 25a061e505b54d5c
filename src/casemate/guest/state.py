"""What one service of the layer leaves for the next, all in memory (tmpfs), readable by root only.

``/run/casemate/``: ``contract/`` (what the bootloader left; gone when ``hpl-signature`` is done), ``seeds.json`` (gone when
``hpl-lukspassphrase`` is done), ``passphrases/`` (gone when ``hpl-volumes`` is done), ``volumekeys/`` (of
authenticated volumes; gone when ``hpl-storage`` has opened them), ``headers/`` (of the volumes, stays; they stand on the disks as
well), ``auth.json``, ``certificates/`` and ``images.json``, which says what is pulled (gone when
``hpl-image`` has pulled), ``sections/workload.json`` and ``sections/env.json`` (without seeds) and ``environment.json`` (the
merged variables; all three gone before the first container starts). ``expiry.json`` stays: when the contract ends. Where volumes
have a third seed: ``keyservices.json``, how to reach the key services (gone when ``hpl-volumes`` is done), and ``keycheck.json``,
which stays: what of it ``hpl-key-check`` needs, API keys included, and ``keycheck.said``, what it has told of. Where volumes
have an anchor: ``anchors.json``, which stays: how to reach it, client keys included. Where volumes are authenticated:
``integrity.json``, what ``hpl-integrity`` watches.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

RUN = Path("/run/casemate")
CONTRACT = RUN / "contract"
SECTIONS = RUN / "sections"
SEEDS = RUN / "seeds.json"
KEY_SERVICES = RUN / "keyservices.json"
ANCHORS = RUN / "anchors.json"
INTEGRITY = RUN / "integrity.json"
KEY_CHECK = RUN / "keycheck.json"
KEY_SAID = RUN / "keycheck.said"
ENVIRONMENT = RUN / "environment.json"
PASSPHRASES = RUN / "passphrases"
VOLUME_KEYS = RUN / "volumekeys"
AUTH = RUN / "auth.json"
CERTIFICATES = RUN / "certificates"
EXPIRY = RUN / "expiry.json"
IMAGES = RUN / "images.json"
VOLUMES = Path("/var/volumes")
"""Where data volumes are mounted, each under its name."""
PUBLIC = Path("/run/casemate-public")
"""What every program of the guest may read: the resolver's configuration, the policy for images."""

ENVIRON = {"PATH": "/usr/sbin:/usr/bin", "HOME": "/run/casemate", "LC_ALL": "C.UTF-8"}
"""The whole environment of the programs that services run."""


def write(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Write a file that nobody else could read in between; its directory is made where it is missing."""
    path.parent.mkdir(mode=0o700 if mode == 0o600 else 0o755, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, for root only."""
    write(path, json.dumps(value))


def read_json(path: Path) -> Any:
    """Read what :func:`write_json` wrote."""
    return json.loads(path.read_bytes())


def forget(directory: Path) -> None:
    """Remove a directory of files."""
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def section(name: str) -> dict[str, Any]:
    """Return a validated section, without its seeds."""
    value: dict[str, Any] = read_json(SECTIONS / f"{name}.json")
    return value


def call(*command: str, stdin: bytes = b"", timeout: float = 600, env: dict[str, str] | None = None) -> str:
    """Run a program of the root and return what it printed. Secrets go by standard input or by file, never by argument.

    Raises :class:`OSError` with the last lines of what it said on standard error.
    """
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
            env={**ENVIRON, **(env or {})},
        )
    except subprocess.TimeoutExpired:
        raise too_slow(command[0], timeout) from None
    if done.returncode:
        raise failure(command[0], done.returncode, done.stderr)
    return done.stdout.decode(errors="replace")


def too_slow(program: str, seconds: float) -> OSError:
    """Return the error of a program that takes too long."""
    return OSError(f"{program} did not end within {seconds:.0f} seconds")


def failure(program: str, code: int, stderr: bytes) -> OSError:
    """Return the error of a program that failed, with the last lines of what it said."""
    said = " ".join(stderr.decode(errors="replace").split())[-600:]
    return OSError(f"{Path(program).name} ended with {code}: {said or 'no word'}")
