"""The two loaders of Secure Execution images, in assembly for IBM Z, and how they become bytes.

``stage3a.S`` and ``stage3b.S`` are assembled and linked with Debian's ``binutils-s390x-linux-gnu``. What comes out stands in
:mod:`casemate.secureexec.loader`, so that who packs an image needs no tools for another processor, and so that every image
has the very same bytes; a test builds them again and compares. After a change of the sources:

    python -m casemate.image.loader > src/casemate/secureexec/loader.py
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
_TOOLS = "s390x-linux-gnu-"


def build(source: Path, base: int) -> bytes:
    """Assemble one source and link it for an address; return the bytes of its text section.

    Raises :class:`FileNotFoundError` without the tools, :class:`subprocess.CalledProcessError` where one refuses.
    """
    with tempfile.TemporaryDirectory() as work:
        compiled, linked, raw = (Path(work) / name for name in ("loader.o", "loader.elf", "loader.bin"))
        for command in (
            [f"{_TOOLS}as", "-march=z13", "-o", str(compiled), str(source)],
            [f"{_TOOLS}ld", "-N", f"-Ttext={base:#x}", "-o", str(linked), str(compiled)],
            [f"{_TOOLS}objcopy", "-O", "binary", "-j", ".text", str(linked), str(raw)],
        ):
            subprocess.run(command, check=True, capture_output=True)
        return raw.read_bytes()


def stage3a() -> bytes:
    """Build the loader in the clear."""
    return build(SOURCES / "stage3a.S", 0x10000)


def stage3b() -> bytes:
    """Build the loader behind the encryption. It runs at any address."""
    return build(SOURCES / "stage3b.S", 0)
