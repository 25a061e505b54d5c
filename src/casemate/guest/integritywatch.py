"""``hpl-integrity``: stops the machine when a sector of an authenticated volume was read that is not as it was written.

By then the reader has got an error, no data: the kernel gives none that doesn't fit its tag. A workload may make little of an
error; whoever changed the disk would try again elsewhere. So the machine ends, and its message says which volume it was.

Reads the kernel's log from its beginning (``/dev/kmsg``), and goes by what was said after a volume was made or opened: file
systems are made by programs that look for others before, in sectors that nobody has written. Runs only where a contract asks
for ``integrity``.

Source: Linux ``Documentation/ABI/testing/dev-kmsg``; ``drivers/md/dm-crypt.c`` for the message, which names the device below.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping

from casemate.guest import state
from casemate.guest.report import Stop

UNFORESEEN = "HPL07021E"
KMSG = "/dev/kmsg"
LARGEST = 8192
_RECORD = re.compile(rb"\d+,\d+,(\d+),[^;]*;[^\n]*device-mapper: crypt: (dm-\d+): INTEGRITY AEAD ERROR, sector (\d+)")


def records(descriptor: int) -> Iterator[bytes]:
    """Yield the records of the kernel's log, and wait for more."""
    while True:
        try:
            yield os.read(descriptor, LARGEST)
        except OSError as error:
            if error.errno != errno.EPIPE:  # some were overwritten before they were read
                raise


def look(found: Iterable[bytes], watched: Mapping[str, tuple[str, float]]) -> None:
    """Stop at the first record that tells of a sector of a watched volume."""
    for record in found:
        match = _RECORD.match(record)
        if match is None:
            continue
        name, since = watched.get(match[2].decode(), ("", 0.0))
        if name and int(match[1]) / 1e6 >= since:
            raise Stop("HPL07021E", f"{name}: sector {int(match[3])} is not as it was written")


def service() -> None:
    """Watch as long as the machine runs."""
    watched = state.read_json(state.INTEGRITY)
    descriptor = os.open(KMSG, os.O_RDONLY | os.O_CLOEXEC)
    try:
        look(records(descriptor), watched)
    finally:
        os.close(descriptor)
