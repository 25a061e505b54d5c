"""JSON of which two readers can't make two things: UTF-8, whole characters, no key twice, no NaN; and one form of it, to sign."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any


def loads(data: bytes) -> Any:
    """Read a document.

    Raises :class:`ValueError`: not UTF-8, not JSON (``NaN`` and ``Infinity`` are none), nested too deep, a key that stands
    twice, half of a character (``"\\ud800"``, which is no text and can't be written again).
    """
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=_no_number)
        if b"\\u" in data:
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs, as ``object_pairs_hook``. Raises :class:`ValueError` for a key that stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def dumps(document: Mapping[str, Any]) -> bytes:
    """Return a document in one form: sorted keys, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def unb64(text: object) -> bytes:
    """Return the bytes of a base64 text in a document. Raises :class:`ValueError`, whatever it is."""
    try:
        return base64.b64decode(text if isinstance(text, str) else "-", validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None


def b64(data: bytes) -> str:
    """Return bytes as base64, for a document."""
    return base64.b64encode(data).decode()
