"""Reference values: what a record made by an image must say (``docs/formats/reference-values.md``).

reference = parse(data)
reference.values["root.tar.gz"]
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from casemate import strictjson
from casemate.errors import CasemateError

FORMAT = "casemate-reference-values/1"
LARGEST = 64 << 10
MOST_VALUES = 64


class ReferenceValuesError(CasemateError):
    """A file is not one of reference values."""

    id = "REFERENCE-VALUES"


@dataclass(frozen=True, slots=True)
class Reference:
    """``values``: line name → SHA-256 in hex. ``version`` and ``arch`` are those of the image, or empty."""

    version: str
    arch: str
    values: dict[str, str]


def parse(data: bytes) -> Reference:
    """Read reference values, at most 64 KiB of JSON. Raises :class:`ReferenceValuesError`."""
    cure = "give the reference-values.json of an image directory"
    if len(data) > LARGEST:
        raise ReferenceValuesError(f"{len(data)} bytes are too many for reference values", cure)
    try:
        document = strictjson.loads(data)
    except ValueError:
        raise ReferenceValuesError("the reference values are not JSON, or say something twice", cure) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ReferenceValuesError(f"not a file of the format {FORMAT}", cure)
    values, version, arch = document.get("values"), document.get("version", ""), document.get("arch", "")
    if not isinstance(values, dict) or not 1 <= len(values) <= MOST_VALUES:
        raise ReferenceValuesError("there are no values in it, or too many", cure)
    for name, value in values.items():
        if (
            not re.fullmatch(r"[!-~]{1,100}", name)
            or not isinstance(value, str)
            or not re.fullmatch("[0-9a-f]{64}", value)
        ):
            raise ReferenceValuesError("a value is not the SHA-256 of a line, in lower-case hex", cure)
    if not (isinstance(version, str) and isinstance(arch, str) and len(version) < 40 and len(arch) < 40):
        raise ReferenceValuesError("version or architecture is not a short text", cure)
    return Reference(version, arch, values)
