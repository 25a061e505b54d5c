"""A holder for secret bytes that does not show them by accident."""

from __future__ import annotations


class Secret:
    """Secret bytes whose ``repr`` and ``str`` say only that they are secret.

    The bytes are kept in a mutable buffer, so that :meth:`wipe` overwrites them. Python may have made
    copies before; inside the guest ``init_on_free`` wipes those when the process ends.
    """

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes) -> None:
        self._bytes = bytearray(value)

    def reveal(self) -> bytes:
        """Return the bytes."""
        return bytes(self._bytes)

    def wipe(self) -> None:
        """Overwrite the bytes with zeros and forget their number."""
        self._bytes[:] = bytes(len(self._bytes))
        self._bytes.clear()

    def __repr__(self) -> str:
        return "Secret(…)"
