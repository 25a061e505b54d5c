"""``contract seal`` against a bare script over ``cryptography`` and against the commands that people copy.

    python bench/bench_contract.py            # one JSON object a line; the exit code is 1 where a limit is missed

Everything runs side by side, in turns, on this machine; medians count. The ratios:

- ``seal_process``: the whole process ``casemate contract seal`` / a bare script that does the same (at most 1.5).
- ``seal_many``: tokens a second, many files in one call / a shell loop over ``openssl`` (at least 3).
- ``seal_many_limit``: the same rate / what PBKDF2 alone allows on all cores (near 1 is good).
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BARE = """
import base64, hashlib, secrets, sys
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.x509 import load_pem_x509_certificate

with open(sys.argv[1], "rb") as file:
    plain = file.read()
with open(sys.argv[2], "rb") as file:
    key = load_pem_x509_certificate(file.read()).public_key()
password, salt = secrets.token_hex(32).encode(), secrets.token_bytes(8)
secret = hashlib.pbkdf2_hmac("sha256", password, salt, 10_000, 48)
fill = 16 - len(plain) % 16
encryptor = Cipher(algorithms.AES(secret[:32]), modes.CBC(secret[32:])).encryptor()
body = b"Salted__" + salt + encryptor.update(plain + bytes([fill]) * fill) + encryptor.finalize()
wrapped = key.encrypt(password, PKCS1v15())
print("hyper-protect-basic", base64.b64encode(wrapped).decode(), base64.b64encode(body).decode(), sep=".")
"""

COPIED = """
for file in "$@"; do
  password=$(openssl rand 32 | base64 -w0)
  printf %s "$password" | openssl pkeyutl -encrypt -certin -inkey image.crt | base64 -w0 > wrapped
  printf %s "$password" | openssl enc -aes-256-cbc -pbkdf2 -pass stdin -in "$file" | base64 -w0 > body
  printf 'hyper-protect-basic.%s.%s\\n' "$(cat wrapped)" "$(cat body)" > "$file.openssl"
done
"""

FILES, PROCESSES, ROUNDS = 256, 25, 3


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def in_turns(rounds: int, *actions: Callable[[], object]) -> list[float]:
    """Run the actions one after the other, several times; return the median of each. The first round warms up."""
    times = [[seconds(action) for action in actions] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def report(name: str, value: float, limit: float, *, at_most: bool, **more: object) -> bool:
    good = value <= limit if at_most else value >= limit
    fields = {"bench": name, "ratio": round(value, 3), "at_most" if at_most else "at_least": limit, "ok": good, **more}
    print(json.dumps(fields), flush=True)
    return good


def main() -> int:
    """Measure and print; return the exit code."""
    casemate = str(Path(sys.executable).with_name("casemate"))
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "bare.py").write_text(BARE)
        request = [
            "req",
            "-x509",
            "-newkey",
            "rsa:4096",
            "-nodes",
            "-keyout",
            "image.key",
            "-out",
            "image.crt",
            "-subj",
            "/CN=bench",
        ]
        subprocess.run(["openssl", *request], cwd=directory, check=True, capture_output=True)
        sections = [f"section-{number}.yaml" for number in range(FILES)]
        for section in sections:
            (directory / section).write_text("type: env\n" + "# a line of a section\n" * 100)

        bare, ours = in_turns(
            PROCESSES,
            lambda: run(sys.executable, "bare.py", sections[0], "image.crt", cwd=directory),
            lambda: run(casemate, "contract", "seal", sections[0], "--cert", "image.crt", cwd=directory),
        )

        def derive(_: object) -> bytes:
            return hashlib.pbkdf2_hmac("sha256", b"x" * 43, b"12345678", 10_000, 48)

        def derive_all() -> None:
            with ThreadPoolExecutor(cores) as pool:
                list(pool.map(derive, sections))

        copied, many, limit = in_turns(
            ROUNDS,
            lambda: run("sh", "-c", COPIED, "sh", *sections, cwd=directory),
            lambda: run(casemate, "contract", "seal", *sections, "--cert", "image.crt", "-o", "out", cwd=directory),
            derive_all,
        )
    results = [
        report("seal_process", ours / bare, 1.5, at_most=True, ours_s=round(ours, 4), bare_s=round(bare, 4)),
        report(
            "seal_many",
            copied / many,
            3,
            at_most=False,
            tokens_per_s=round(FILES / many, 1),
            openssl_per_s=round(FILES / copied, 1),
        ),
        report("seal_many_limit", limit / many, 0.6, at_most=False, pbkdf2_per_s=round(FILES / limit, 1), cores=cores),
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
