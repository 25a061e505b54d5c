"""An image build from nothing against bare ``mmdebstrap`` of the same packages; a build where only the keys are new; a rebuild.

python bench/bench_image.py          # a line a ratio; the exit code is 1 where a target is missed
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from casemate.image.build import build_image
from casemate.image.rebuild import verify_build
from casemate.image.root import RELEASE, packages_of

TARGET, KEYS_TARGET, SIZE_TARGET = 1.5, 15.0, 350_000_000


def main() -> int:
    """Measure and print; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        began = time.monotonic()
        bare = [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=essential",
            f"--include={','.join(packages_of('amd64'))}",
        ]
        bare += ["--aptopt=Apt::Install-Recommends false", RELEASE, str(directory / "bare")]
        subprocess.run(bare, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        plain = time.monotonic() - began
        cache = directory / "cache"
        began = time.monotonic()
        built = build_image(directory / "image", cache=cache, ca=directory / "ca")
        whole = time.monotonic() - began
        began = time.monotonic()
        build_image(directory / "image", cache=cache, ca=directory / "ca")
        keys = time.monotonic() - began
        began = time.monotonic()
        compared = verify_build(built.path, cache=cache)
        rebuild = time.monotonic() - began
        sizes = {path.name: path.stat().st_size for path in built.path.iterdir()}
        size = sum(sizes.values())
    print(f"# mmdebstrap {plain:.1f} s, image {whole:.1f} s, keys only {keys:.1f} s, {size / 1e6:.0f} MB")
    print(f"image/mmdebstrap: ratio {whole / plain:.2f} (target ≤ {TARGET})")
    print(f"keys only: {keys:.1f} s (target ≤ {KEYS_TARGET:.0f} s)")
    print(f"size: {size / 1e6:.0f} MB (target ≤ {SIZE_TARGET / 1e6:.0f} MB)")
    own = ", ".join(
        f"{name} {sizes[name] / 1e6:.1f} MB" for name in ("casemate.img", "root.squashfs", "sbom.spdx.json")
    )
    print(f"# {own}")
    print(f"rebuild/mmdebstrap: ratio {rebuild / plain:.2f} (target ≤ {TARGET}), {rebuild:.1f} s")
    print(
        f"rebuild: {'the same' if compared.same else 'differs: ' + '; '.join(compared.differences)} (target: the same)"
    )
    if not compared.same or rebuild / plain > TARGET:
        return 1
    return int(whole / plain > TARGET or keys > KEYS_TARGET or size > SIZE_TARGET)


if __name__ == "__main__":
    sys.exit(main())
