"""Packing an image against hashing the same bytes: no packer can be faster than the SHA-512 that the header needs.

    python bench/bench_secureexec.py          # a line a ratio; the exit code is 1 where a target is missed

In turns, in one process; medians count. The hash has the bytes in memory, the packer reads them from a file and writes the
image to a new one. Opening has no target of its own.
"""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from casemate.secureexec import image
from casemate.secureexec.hostkey import HostKey

SIZE, ROUNDS, TARGET = 300_000_000, 7, 2.5


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> int:
    key = ec.generate_private_key(ec.SECP521R1())
    content = os.urandom(1 << 20) * (SIZE // (1 << 20) + 1)
    with tempfile.TemporaryDirectory() as work:
        initrd, packed = Path(work, "initrd"), Path(work, "image")
        initrd.write_bytes(content[:SIZE])
        del content
        data = initrd.read_bytes()

        def pack() -> None:
            with initrd.open("rb") as file, packed.open("wb") as out:
                image.pack(out, kernel=b"k", cmdline=b"", initrd=file, hosts=[HostKey(key.public_key())])

        def open_again() -> None:
            with packed.open("rb") as file, tempfile.TemporaryFile(dir=work) as part:
                image.open_image(file, key, lambda name, size: part if name == "initrd" else io.BytesIO())

        times: dict[str, list[float]] = {"sha512": [], "pack": [], "open": []}
        for _ in range(ROUNDS):
            packed.unlink(missing_ok=True)
            times["sha512"].append(seconds(lambda: hashlib.sha512(data).digest()))
            times["pack"].append(seconds(pack))
            times["open"].append(seconds(open_again))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["pack"] / medians["sha512"]
    print(f"# {SIZE // 1_000_000} MB, medians of {ROUNDS}: " + ", ".join(f"{n} {s:.3f} s" for n, s in medians.items()))
    print(f"se_pack/sha512: ratio {ratio:.2f} (target ≤ {TARGET})")
    print(f"se_open/sha512: ratio {medians['open'] / medians['sha512']:.2f}")
    return ratio > TARGET


if __name__ == "__main__":
    sys.exit(main())
