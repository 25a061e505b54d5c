"""The one error of this package."""

from __future__ import annotations

from casemate.errors import CasemateError


class LuksError(CasemateError):
    """The bytes are not a LUKS2 header, or one that we would not have written. No key may go near the volume."""

    id = "LUKS-HEADER"
