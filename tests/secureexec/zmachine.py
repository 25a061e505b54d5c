"""An emulated IBM Z machine that a test drives instruction by instruction, and an ultravisor played by the test.

QEMU emulates the processor, not Secure Execution. So the test stops at each DIAGNOSE 308, looks at what was asked, and answers
as the machine would: what stands between the questions is the loaders' own code, executed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISABLED_WAIT = 0x0002000180000000
PSW_MASK, PSW_ADDRESS, R0 = 0, 1, 2
"""Numbers of registers in the protocol of gdb: the PSW's halves, then the general ones."""


class Machine:
    """A stopped machine, spoken to in the protocol of gdb (hexadecimal, checksums, one question at a time)."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._stream = connection.makefile("rb")
        self.ask("qXfer:features:read:target.xml:0,100")  # until asked, QEMU does not give single registers

    def ask(self, text: str) -> str:
        """Send a packet and return the answer."""
        data = text.encode()
        self._socket.sendall(b"$" + data + b"#%02x" % (sum(data) % 256))
        while (byte := self._stream.read(1)) != b"$":
            assert byte == b"+", byte
        answer = b""
        while (byte := self._stream.read(1)) != b"#":
            assert byte, "the machine is gone"
            answer += byte
        self._stream.read(2)
        self._socket.sendall(b"+")
        return answer.decode()

    def register(self, number: int) -> int:
        return int(self.ask(f"p{number:x}"), 16)

    def set_register(self, number: int, value: int) -> None:
        assert self.ask(f"P{number:x}={value:016x}") == "OK"

    def read(self, address: int, size: int) -> bytes:
        return b"".join(
            bytes.fromhex(self.ask(f"m{at:x},{min(1024, address + size - at):x}"))
            for at in range(address, address + size, 1024)
        )

    def write(self, address: int, data: bytes) -> None:
        for at in range(0, len(data), 1024):
            part = data[at : at + 1024]
            assert self.ask(f"M{address + at:x},{len(part):x}:{part.hex()}") == "OK"

    def run_to(self, *addresses: int) -> int:
        """Run until one of the instructions is next; return where the machine stands."""
        for address in addresses:
            assert self.ask(f"Z0,{address:x},2") == "OK"
        assert self.ask("c").startswith("T05")
        for address in addresses:
            assert self.ask(f"z0,{address:x},2") == "OK"
        return self.register(PSW_ADDRESS)

    def step(self) -> None:
        """Execute one instruction; a machine that then waits, disabled, stops for another reason."""
        assert self.ask("s").startswith("T")

    def answer(self, register: int, value: int) -> None:
        """Do what a DIAGNOSE does that succeeds or fails with an answer: set a register, go on with the next instruction."""
        self.set_register(R0 + register, value)
        self.set_register(PSW_ADDRESS, self.register(PSW_ADDRESS) + 4)

    def stop_code(self, waits: int) -> int:
        """Run to the LPSWE at an address, execute it, and return the address in the disabled wait it loads."""
        assert self.run_to(waits) == waits
        base = self.register(R0 + 4)
        mask, address = (int.from_bytes(self.read(base + at, 8), "big") for at in (0, 8))
        assert mask == DISABLED_WAIT
        return address


@contextmanager
def machine(image: bytes = b"", disk: bytes = b"") -> Iterator[Machine]:
    """Give a machine with an image at address 0, standing at the image's entry; or with a disk, standing before its firmware."""
    with tempfile.TemporaryDirectory() as work:
        path, server = Path(work) / "image", Path(work) / "gdb"
        path.write_bytes(image or disk)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(server))
            listener.listen(1)
            listener.settimeout(30)
            words = ["qemu-system-s390x", "-M", "s390-ccw-virtio", "-accel", "tcg", "-m", "128", "-nodefaults"]
            words += ["-display", "none", "-action", "panic=pause", "-S"]
            if disk:
                words += ["-drive", f"file={path},if=none,id=d,format=raw", "-device", "virtio-blk,drive=d,bootindex=1"]
            else:
                words += ["-kernel", str(path)]
            words += ["-chardev", f"socket,id=gdb,path={server}", "-gdb", "chardev:gdb"]
            environment = {"PATH": os.environ["PATH"]}
            with subprocess.Popen(words, stdin=subprocess.DEVNULL, env=environment) as process:
                try:
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(30)
                        yield Machine(connection)
                finally:
                    process.kill()
