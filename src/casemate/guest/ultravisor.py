"""Asks the ultravisor to measure this machine (``docs/formats/ultravisor-attestation.md``).

On IBM Z that is the firmware, asked through ``/dev/uv`` (Linux: ``arch/s390/include/uapi/asm/uvdevice.h``). A guest of the
software ultravisor has a port in its place, ``casemate.ultravisor``, which takes a file with request and user data and gives one
with the answer. Which of both it is, the kernel knows: where the firmware protects the machine, no port is ever asked.

No answer is verified here: the machine has not the header that a measurement covers. Whoever made the request verifies it.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

from casemate.secureexec import attestation
from casemate.secureexec.attestation import Answer, AttestationError, Attested
from casemate.secureexec.hostkey import HostKey

PORT = "casemate.ultravisor"
DEVICE = Path("/dev/uv")
FIRMWARE = Path("/sys/firmware/uv")
PATIENCE = 20.0
"""Seconds that a software ultravisor has for its answer."""

_ATTEST = struct.Struct(">QQQ256s16sIIIHH")
"""``struct uvio_attest``: addresses of request, measurement and additional data, user data, CUID, their sizes."""
_CUID_AT = 0x118
_CONTROL = struct.Struct(">IHHQI44x")
"""``struct uvio_ioctl_cb``: flags, the ultravisor's return code and its reason, address and size of the block above."""
_ATT = 0xC0407501
"""``UVIO_IOCTL_ATT``: ``_IOWR('u', 1, struct uvio_ioctl_cb)``."""
_DONE = 1


class NoUltravisor(Exception):
    """There is nobody to ask, or no usable answer; the text says which."""


def protected() -> bool:
    """Whether the firmware of IBM Z protects this machine, as the kernel says."""
    try:
        return (FIRMWARE / "prot_virt_guest").read_text().strip() == "1"
    except OSError:
        return False


def port(name: str, ports: Path = Path("/sys/class/virtio-ports")) -> str | None:
    """Return the device of the virtio port with this name, which the infrastructure chose; ``None`` without one."""
    for entry in sorted(ports.glob("*")):
        if (entry / "name").is_file() and (entry / "name").read_text().strip() == name:
            return f"/dev/{entry.name}"
    return None


def attest(request: bytes, user_data: bytes) -> Answer:
    """Have the ultravisor answer a request. Raises :class:`AttestationError`, :class:`NoUltravisor`, :class:`OSError`."""
    size = attestation.parse_request(request).additional_size
    if protected():
        return _ask_firmware(request, user_data, size)
    device = port(PORT)
    if device is None:
        raise NoUltravisor("the machine has no port of an ultravisor")
    descriptor = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        send(descriptor, attestation.pack_request(request, user_data), PATIENCE)
        answer = attestation.unpack(receive(descriptor, PATIENCE))
    finally:
        os.close(descriptor)
    if not attestation.is_answered(answer) or (answer.request, answer.user_data) != (request, user_data):
        raise NoUltravisor("the software ultravisor does not answer this request")
    if len(answer.additional) != size:
        raise NoUltravisor("the software ultravisor answers something else")
    return answer


def _ask_firmware(request: bytes, user_data: bytes, size: int) -> Answer:
    asked, said = array("B", request), array("B", bytes(attestation.MEASUREMENT))
    more = array("B", bytes(max(size, 1)))
    parts = (each.buffer_info()[0] for each in (asked, said, more))
    sizes = (len(asked), len(said), size, len(user_data), 0)
    block = array("B", _ATTEST.pack(*parts, user_data, bytes(attestation.CUID), *sizes))
    control = bytearray(_CONTROL.pack(0, 0, 0, block.buffer_info()[0], len(block)))
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _ATT, control, True)
    finally:
        os.close(descriptor)
    _, code, reason, _, _ = _CONTROL.unpack(control)
    if code != _DONE:
        raise NoUltravisor(f"the ultravisor refuses: {code:#06x}, {reason:#06x}")
    cuid = block[_CUID_AT : _CUID_AT + attestation.CUID].tobytes()
    return Answer(request, said.tobytes(), more.tobytes()[:size], user_data, cuid)


def identify(hosts: Sequence[HostKey]) -> Attested:
    """Ask with requests of our own, for the hosts of the image, what the ultravisor tells of this machine.

    ``tag`` is empty. Raises as :func:`attest` does, where no host of the image answers.
    """
    wanted = attestation.IMAGE_HOST_KEY | attestation.FIRMWARE
    if protected():  # older firmware knows less
        wanted &= int((FIRMWARE / "query/supp_att_pflags").read_text().strip(), 16)
    problem: Exception = NoUltravisor("the image names no host key")
    for first in range(0, len(hosts), attestation.MOST_HOSTS):
        request, _ = attestation.create(hosts[first : first + attestation.MOST_HOSTS], wanted)
        try:
            answer = attest(request, b"")
        except (NoUltravisor, AttestationError) as error:
            problem = error
            continue
        parts = attestation.split(attestation.parse_request(request), answer.additional)
        return Attested(b"", answer.cuid, b"", *parts)
    raise problem


# ---------------------------------------------------------------------------- files of an attestation through a port


def receive(descriptor: int, seconds: float) -> bytes:
    """Read one file from a port (opened without waiting), as long as its start says and no longer.

    Raises :class:`AttestationError`, :class:`TimeoutError`, and :class:`EOFError` where nobody is at the other end.
    """
    data, size, end = bytearray(), attestation.START, time.monotonic() + seconds
    while len(data) < size:
        _wait(descriptor, select.POLLIN, end)
        try:
            part = os.read(descriptor, size - len(data))
        except BlockingIOError:
            continue
        if not part:
            raise EOFError
        data += part
        if len(data) == size == attestation.START:
            size = attestation.file_size(bytes(data))
    return bytes(data)


def send(descriptor: int, data: bytes, seconds: float) -> None:
    """Write a file to a port. Raises :class:`TimeoutError`, :class:`OSError`."""
    end = time.monotonic() + seconds
    while data:
        _wait(descriptor, select.POLLOUT, end)
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            continue


def _wait(descriptor: int, event: int, end: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise TimeoutError
