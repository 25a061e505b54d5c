"""The shipped JSON Schema of contracts, and a quick answer to the one question that most starts ask: does this fulfil it?

    fulfils(section, schema()["$defs"]["workload"], schema()["$defs"])

The library ``jsonschema`` explains what is wrong; importing it alone takes an emulated processor three seconds, and a
contract that starts has nothing wrong. So :func:`fulfils` knows the keywords that the schema uses (JSON Schema draft
2020-12), and answers no to any other: then the library decides. A test holds both against each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TYPES: dict[str, Any] = {"string": str, "object": dict, "array": list, "null": type(None), "boolean": bool}
_OF_OBJECTS = frozenset(
    (
        "required",
        "dependentRequired",
        "properties",
        "propertyNames",
        "additionalProperties",
        "minProperties",
        "maxProperties",
    )
)
_TELLING = frozenset({"title", "description", "default", "x-must", "x-id"})


def schema() -> dict[str, Any]:
    """Return the shipped JSON Schema (draft 2020-12); ``$defs`` has contract, workload and env."""
    document: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_bytes())
    return document


def fulfils(value: Any, rules: Mapping[str, Any], defs: Mapping[str, Any]) -> bool:
    """Whether a value of plain types fulfils every rule. ``defs``: what ``$ref`` names. Patterns fit the whole text."""
    return all(
        _fulfils(value, keyword, rule, rules, defs) for keyword, rule in rules.items() if keyword not in _TELLING
    )


def _fulfils(value: Any, keyword: str, rule: Any, rules: Mapping[str, Any], defs: Mapping[str, Any]) -> bool:
    match keyword:
        case "$ref":
            return fulfils(value, defs[rule.removeprefix("#/$defs/")], defs)
        case "type":
            return any(_is(value, kind) for kind in ([rule] if isinstance(rule, str) else rule))
        case "const" | "enum":
            known = [rule] if keyword == "const" else rule
            return any(type(value) is type(one) and value == one for one in known)
        case "anyOf" | "oneOf":
            number = sum(fulfils(value, each, defs) for each in rule)
            return number == 1 or (keyword == "anyOf" and number > 1)
        case "pattern":
            return not isinstance(value, str) or re.fullmatch(rule, value) is not None
        case "minLength":
            return not isinstance(value, str) or len(value) >= rule
        case "minimum" | "maximum":
            return not _is(value, "number") or (value >= rule if keyword == "minimum" else value <= rule)
        case "items":
            return not isinstance(value, list) or all(fulfils(each, rule, defs) for each in value)
        case "minItems" | "maxItems":
            return not isinstance(value, list) or (len(value) >= rule if keyword == "minItems" else len(value) <= rule)
    if keyword in _OF_OBJECTS:
        return not isinstance(value, dict) or _object_fulfils(value, keyword, rule, rules, defs)
    return False


def _object_fulfils(
    value: dict[str, Any], keyword: str, rule: Any, rules: Mapping[str, Any], defs: Mapping[str, Any]
) -> bool:
    match keyword:
        case "required":
            return all(key in value for key in rule)
        case "dependentRequired":
            return all(other in value for key, others in rule.items() if key in value for other in others)
        case "properties":
            return all(fulfils(value[key], each, defs) for key, each in rule.items() if key in value)
        case "propertyNames":
            return all(fulfils(key, rule, defs) for key in value)
        case "additionalProperties":
            others = [key for key in value if key not in rules.get("properties", {})]
            return (
                all(fulfils(value[key], rule, defs) for key in others) if isinstance(rule, dict) else rule or not others
            )
    return bool(len(value) >= rule if keyword == "minProperties" else len(value) <= rule)


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (isinstance(value, float) and (kind == "number" or value.is_integer()))
    return isinstance(value, _TYPES[kind])
