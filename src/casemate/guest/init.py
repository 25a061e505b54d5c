"""What process 1 of the initrd begins and ends with: drivers load while Python loads the bootloader; a failure stops all."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import NoReturn

from casemate.guest import kernel
from casemate.guest.kinds import KINDS
from casemate.guest.report import Stop, announce, unforeseen

IMAGE = Path("/casemate/image.json")


def main() -> NoReturn:
    """Either become the root's systemd, or say why not and switch the machine off."""
    try:
        image = json.loads(IMAGE.read_bytes())
        kind = KINDS[image["kind"]]
        drivers = kernel.load_drivers(network=kind.network)
        kernel.mend_clock()
        from casemate.guest import bootloader  # meanwhile

        kernel.finish(drivers, "modprobe")
        bootloader.boot(image, kind)
        bootloader.become_root(bootloader.ROOT, kind)
    except Stop as stop:
        announce(f"# {stop.id}: {stop.detail}")
    except BaseException as error:
        announce(f"# HPL11000E: {unforeseen(error)}")
    announce("# the machine stops")
    time.sleep(0.2)
    kernel.power_off()
    sys.exit(1)
