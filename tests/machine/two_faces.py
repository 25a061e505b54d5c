"""A disk that answers differently when it is read again: a small NBD server that QEMU attaches as a raw disk.

Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, fixed newstyle, reads only.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

_OPTION_MAGIC, _REPLY_MAGIC = 0x49484156454F5054, 0x3E889045565A9
_REQUEST, _ANSWER = 0x25609513, 0x67446698


class _Closed(Exception):
    pass


def _exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (part := peer.recv(size - len(data))):
            raise _Closed
        data += part
    return data


def _negotiate(peer: socket.socket, size: int) -> None:
    peer.sendall(b"NBDMAGIC" + struct.pack(">QH", _OPTION_MAGIC, 1))
    _exactly(peer, 4)
    while True:
        _, option, length = struct.unpack(">QII", _exactly(peer, 16))
        _exactly(peer, length)

        def reply(kind: int, data: bytes = b"", option: int = option) -> None:
            peer.sendall(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data)

        if option in (6, 7):  # INFO, GO
            reply(3, struct.pack(">HQH", 0, size, 3))  # flags: there are some, read-only
            reply(1)
            if option == 7:
                return
        else:
            reply(0x80000001)


def _serve(server: socket.socket, first: bytes, later: bytes, last: int) -> None:
    """Give ``first`` until the byte at ``last`` has been read once, then ``later``."""
    seen = False
    with contextlib.suppress(OSError, _Closed):
        peer, _ = server.accept()
        with peer:
            _negotiate(peer, len(first))
            while True:
                magic, _, kind, handle, offset, length = struct.unpack(">IHHQQI", _exactly(peer, 28))
                if magic != _REQUEST or kind == 2:
                    return
                content = later if seen else first
                data = content[offset : offset + length] if kind == 0 else b""
                peer.sendall(struct.pack(">IIQ", _ANSWER, 0 if kind == 0 else 1, handle) + data)
                seen = seen or offset <= last < offset + length


@contextlib.contextmanager
def disk(path: Path, first: bytes, later: bytes) -> Iterator[None]:
    """Serve at a socket until the context ends. The change lies in the last byte that differs."""
    last = max(index for index, (one, other) in enumerate(zip(first, later, strict=True)) if one != other)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen(1)
        thread = threading.Thread(target=_serve, args=(server, first, later, last), daemon=True)
        thread.start()
        yield
