"""Prints :mod:`casemate.secureexec.loader` with the loaders as they are built now."""

from __future__ import annotations

import textwrap

from casemate.image.loader import stage3a, stage3b

_TEMPLATE = '''"""The two loaders of Secure Execution images, built from ``casemate/image/loader`` (machine code for IBM Z).

Written by ``python -m casemate.image.loader``; a test builds them again and compares every byte. What they do, and the
arguments at their ends, is told in their sources and in ``docs/formats/secure-execution-image.md``.
"""

from __future__ import annotations

_ENTRY = bytes.fromhex("{entry}")
_MAIN = bytes.fromhex(
{main}
)
STAGE3A = _ENTRY.ljust(0x1000, b"\\0") + _MAIN
"""For the address 0x10000; the last 24 bytes are its arguments."""

STAGE3B = bytes.fromhex(
{stage3b}
)
"""For any address; the last 64 bytes are its arguments."""
'''


def _text(data: bytes) -> str:
    return "\n".join(f'    "{line}"' for line in textwrap.wrap(data.hex(), 96))


def main() -> None:
    """Build both and print the module."""
    first = stage3a()
    entry, padding = first[:6], first[6:0x1000]
    if any(padding):
        raise SystemExit("the first page of stage3a holds more than its jump")
    print(_TEMPLATE.format(entry=entry.hex(), main=_text(first[0x1000:]), stage3b=_text(stage3b())), end="")


if __name__ == "__main__":
    main()
