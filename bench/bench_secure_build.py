"""A secure build against plain buildah: the same repository, base image, Containerfile and registry, on this machine, in turns.

    python bench/bench_secure_build.py          # a line a ratio; the exit code is 1 where a target is missed

Both fetch the source over HTTPS, pull the base image, build with chroot isolation and the vfs driver, and push. The secure build
does each in a sandbox, hashes all that passes from one to the next, signs twice, and reads back what the registry has.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests/hpsb")]
from build_lab import Lab, Running  # noqa: E402

TARGETS, ROUNDS = {"small": 4.0, "with work to do": 1.6}, 5
WORK = "RUN for n in 1 2 3 4 5 6; do head -c 40000000 /dev/zero | gzip -9 | sha256sum >> /work.txt; done\n"


def main() -> int:
    """Measure and print; return the exit code."""
    missed = False
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Lab.running(directory / "lab") as lab, lab.server() as server:
            server.init()
            for what, more in (("small", "RUN echo made > /made\n"), ("with work to do", WORK)):
                name, file = what.split()[0], f"FROM {lab.base}\nCOPY . /src\n{more}"
                revision = lab.git.commit(name, {"Containerfile": file, "file": os.urandom(4 << 20)})
                ratios = []
                for number in range(ROUNDS):
                    sides = [
                        ("secure", partial(secure, server, name, revision)),
                        ("plain", partial(plain, lab, name, revision, directory / "plain")),
                    ]
                    took = {}
                    for side, act in sides if number % 2 else sides[::-1]:  # each goes first in every second round
                        began = time.monotonic()
                        act()
                        took[side] = time.monotonic() - began
                    ratios.append(took["secure"] / took["plain"])
                ratio = statistics.median(ratios)
                missed = missed or ratio > TARGETS[what]
                print(f"secure build/plain buildah, {what}: ratio {ratio:.2f} (target ≤ {TARGETS[what]})", flush=True)
    return int(missed)


def secure(server: Running, repository: str, revision: str) -> None:
    """Build with the server, to its end."""
    job = server.build(repository, revision)
    assert job["state"] == "done", (job, server.log(job))


def plain(lab: Lab, repository: str, revision: str, work: Path) -> None:
    """Do the same by hand, in a new directory."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    git, door = lab.git, lab.door
    (work / "auth.json").write_text(json.dumps(door.auth))
    (work / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (work / "ca.pem").write_bytes(git.authority.certificate)
    url = f"https://127.0.0.1:{git.port}/{repository}.git"
    header = "Authorization: Basic " + base64.b64encode(f"{git.user}:{git.password}".encode()).decode()
    trusted = ("env", f"GIT_SSL_CAINFO={work}/ca.pem", "git", "-c", f"http.extraHeader={header}")
    run(*trusted, "clone", "--quiet", url, work / "source")
    run("git", "-C", work / "source", "checkout", "--quiet", revision)
    file = (work / "source/Containerfile").read_text().replace(lab.registry, door.here)
    (work / "source/Containerfile").write_text(file)
    buildah = ("buildah", "--root", work / "graph", "--runroot", work / "run", "--storage-driver", "vfs")
    trust = ("--cert-dir", door.directory / "trusted", "--signature-policy", work / "policy.json")
    login = ("--authfile", work / "auth.json", *trust)
    how = ("--isolation", "chroot", "--network", "host", "--layers=false", "--timestamp", "1700000000")
    run(*buildah, "build", *login, *how, "--tag", "localhost/built:1", work / "source")
    run(*buildah, "push", "--quiet", *login, "localhost/built:1", f"docker://{door.here}/team/plain:1")


def run(*command: object) -> None:
    """Run a tool."""
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


if __name__ == "__main__":
    sys.exit(main())
