"""Where Casemate keeps what it keeps on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def directory() -> Path:
    """Return ``$CASEMATE_HOME``, else ``$XDG_DATA_HOME/casemate``, else ``~/.local/share/casemate``."""
    if chosen := os.environ.get("CASEMATE_HOME"):
        return Path(chosen)
    if data := os.environ.get("XDG_DATA_HOME"):
        return Path(data) / "casemate"
    return Path.home() / ".local/share/casemate"
