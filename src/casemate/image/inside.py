"""Builds the public parts of an image from packages that are there: the program that runs in a builder machine's sandbox.

    python3 -m casemate.image.inside ARCH KIND DIRECTORY

``DIRECTORY`` has ``cache/debs/SHA256.deb`` and ``packages.txt``; the parts are left in its ``out``. It knows no key, reaches no
network, and gives what ``casemate image build`` gives: the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from casemate.guest.kinds import KINDS
from casemate.image import initrd
from casemate.image.build import bill_of_materials
from casemate.image.root import build_root
from casemate.image.snapshot import Selection, parse_list

OUT = ("root.squashfs", "kernel", "initrd", "sbom.spdx.json", "parts.json")


def build_parts(arch: str, kind: str, directory: Path) -> None:
    """Build the parts into ``directory/out``. Raises :class:`~casemate.errors.CasemateError`."""
    text = (directory / "packages.txt").read_bytes()
    selection = Selection(parse_list(text), hashlib.sha256(text).hexdigest())
    root = build_root(arch, directory / "cache", print, selection, KINDS[kind].root)
    out = directory / "out"
    out.mkdir()
    shutil.copyfile(root.archive, out / "root.squashfs")
    shutil.copyfile(root.kernel, out / "kernel")
    (out / "initrd").write_bytes(initrd.base(root, arch, directory / "cache"))
    (out / "sbom.spdx.json").write_bytes(bill_of_materials(root, arch))
    (out / "parts.json").write_text(json.dumps({"release": root.release, "selection": selection.record()}))


if __name__ == "__main__":
    build_parts(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
