"""The base of every error that a user can meet: a stable identifier, a sentence of cause, a sentence of cure."""

from __future__ import annotations


class CasemateError(Exception):
    """What went wrong (``cause``), where (``where``), and what to do about it (``cure``).

    ``id`` is stable across releases and safe to match on; the sentences are not. Subclasses set ``id``,
    or an instance does where one class stands for a family. No field may ever hold a secret.
    """

    id = "CASEMATE"

    def __init__(self, cause: str, cure: str = "", where: str = "", *, id: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.cure = cure
        self.where = where
        if id is not None:
            self.id = id

    def diagnostics(self) -> str:
        """Return the whole message as a person should read it, one to three lines."""
        place = f"{self.where}: " if self.where else ""
        cure = f"\n  {self.cure}" if self.cure else ""
        return f"{self.id}: {place}{self.cause}{cure}"

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}" if self.where else self.cause
