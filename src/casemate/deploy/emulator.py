"""The program that libvirt starts in QEMU's place for ``tee: software``: the software ultravisor, then QEMU.

    python -m casemate.deploy.emulator amd64 -name guest=db … -kernel /…/casemate.img …

libvirt hands an encrypted image to QEMU as a kernel, as it does on IBM Z, where firmware opens it. Here this program opens and
verifies it, gives QEMU kernel and initrd in sealed memory, as ``casemate machine up`` does, and becomes QEMU. Nothing of them is
written to a disk. What libvirt starts to ask QEMU for its abilities has no kernel, and passes as it is.

**It protects from nobody who owns the host.**
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from casemate.deploy.errors import DeployError
from casemate.errors import CasemateError
from casemate.machine.qemu import ARCHITECTURES

INSIDE = ("-initrd", "-append")
"""Options that nobody may give beside an image: what they name is inside it."""


def replaced(arguments: Sequence[str], kernel: int, initrd: int, cmdline: str) -> list[str]:
    """Return QEMU's arguments with the image's parts in place of the image. Raises :class:`DeployError`."""
    if given := [option for option in INSIDE if option in arguments]:
        cause = f"an image has its own initrd and command line; {given[0]} would replace what is measured"
        raise DeployError(cause, "take it out of the domain", id="DEPLOY-EMULATOR")
    if arguments.count("-kernel") != 1 or arguments[-1] == "-kernel":
        raise DeployError("-kernel must stand once, with an image", id="DEPLOY-EMULATOR")
    at = arguments.index("-kernel")
    parts = ["-kernel", f"/proc/self/fd/{kernel}", "-initrd", f"/proc/self/fd/{initrd}", "-append", cmdline]
    return [*arguments[:at], *parts, *arguments[at + 2 :]]


def become(arch: str, arguments: Sequence[str]) -> NoReturn:
    """Open the image that the arguments name, if they name one, and become QEMU."""
    from casemate.machine.ultravisor import SoftwareUltravisor

    program = ARCHITECTURES[arch].program
    if "-kernel" not in arguments:
        os.execvp(program, [program, *arguments])  # noqa: S606
    replaced(arguments, 0, 0, "")  # what can be refused is refused before anything is opened
    image = Path(arguments[arguments.index("-kernel") + 1])
    with SoftwareUltravisor.load_or_create().open(image) as opened:
        for descriptor in (opened.kernel, opened.initrd):
            os.set_inheritable(descriptor, True)
        os.execvp(program, [program, *replaced(arguments, opened.kernel, opened.initrd, opened.cmdline)])  # noqa: S606


def main() -> int:
    """Become QEMU, or say why not, where libvirt's log of the domain has it."""
    if len(sys.argv) < 2 or sys.argv[1] not in ARCHITECTURES:
        print("usage: python -m casemate.deploy.emulator amd64|s390x QEMU-ARGUMENTS", file=sys.stderr)
        return 2
    try:
        become(sys.argv[1], sys.argv[2:])
    except CasemateError as error:
        print(error.diagnostics(), file=sys.stderr)
    except OSError as error:
        print(f"DEPLOY-EMULATOR: {error.filename}: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
