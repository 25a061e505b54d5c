"""JSON of which two readers can't make two things: UTF-8, and no object says a key twice."""

from __future__ import annotations

import json
from typing import Any


def loads(data: bytes) -> Any:
    """Read a document. Raises :class:`ValueError`: not UTF-8, not JSON, nested too deep, a key that stands twice."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise ValueError("nested too deep") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs, as ``object_pairs_hook``. Raises :class:`ValueError` for a key that stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found
