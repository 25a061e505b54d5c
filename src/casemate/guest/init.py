"""What process 1 of the initrd begins and ends with: drivers load while Python loads the bootloader; a failure stops all."""

from __future__ import annotations

import sys
import time
from typing import NoReturn

from casemate.guest import kernel
from casemate.guest.report import Stop

ROOT = "/sysroot"


def main() -> NoReturn:
    """Either become the root's systemd, or say why not and switch the machine off."""
    try:
        drivers = kernel.load_drivers()
        from casemate.guest import bootloader  # meanwhile

        kernel.finish(drivers, "modprobe")
        bootloader.boot(ROOT)
        bootloader.become_root(ROOT)
    except Stop as stop:
        announce(f"# {stop.id}: {stop.detail}")
    except BaseException as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        place = f"{frame.tb_frame.f_code.co_name}:{frame.tb_lineno}" if frame else "?"
        announce(f"# HPL11000E: unexpected {type(error).__name__} at {place}")
    announce("# the machine stops")
    time.sleep(0.2)
    kernel.power_off()
    sys.exit(1)


def announce(line: str) -> None:
    """Write a line to the console."""
    print(line, flush=True)
