"""Errors of secure builds. ``id`` crosses the wire and is stable; no text quotes a secret."""

from __future__ import annotations

from casemate.errors import CasemateError


class BuildError(CasemateError):
    """A build, or what was asked of the server, is refused or has failed. docs/secure-build.md lists the identifiers."""

    id = "HPSB"


def refused(id: str, cause: str, cure: str = "", where: str = "") -> BuildError:
    """Return an error with the identifier ``HPSB-id``."""
    return BuildError(cause, cure, where, id=f"HPSB-{id}")
