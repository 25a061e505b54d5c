"""The quick answer of ``contract.schema`` and the library's are the same, whatever a section holds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.contract.check import faults
from casemate.contract.schema import fulfils, schema

WHOLE = schema()
SEED = "abcdefghijklmno1"
GOOD: dict[str, dict[str, Any]] = {
    "workload": {
        "type": "workload",
        "compose": {"archive": "QUJD"},
        "auths": {"r.example.com": {"username": "u", "password": "p"}},
        "images": {"dct": {"a/b": {"notary": "https://n.example.com", "publicKey": "QUJD"}}, "rhs": {}},
        "volumes": {"data": {"mount": "/mnt/data", "filesystem": "xfs", "seed": SEED, "previousSeed": SEED}},
        "env": {"A": "1"},
    },
    "env": {
        "type": "env",
        "logging": {"syslog": {"hostname": "log.example.com", "server": "s", "cert": "c", "key": "k", "port": 6514}},
        "volumes": {"data": {"seed": SEED}},
        "env": {"B": "2"},
        "cacerts": [{"ca": "QUJD"}],
        "signingKey": "s",
    },
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 70000)
    | st.floats(0, 9)
    | st.sampled_from(["", "a", "a\n", SEED, "443"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "A b", "seed"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_section_fulfils_the_schema_without_the_library(name: str) -> None:
    assert fulfils(GOOD[name], WHOLE["$defs"][name], WHOLE["$defs"])


@settings(max_examples=600)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_the_quick_answer_is_the_librarys(name: str, data: st.DataObject) -> None:
    section = copy.deepcopy(GOOD[name])
    place = data.draw(st.sampled_from([path for path in places(section) if path]))
    inside: Any = section
    for step in place[:-1]:
        inside = inside[step]
    how = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "replace":
        inside[place[-1]] = data.draw(VALUES)
    elif how == "remove" or isinstance(inside, list):
        del inside[place[-1]]
    else:
        inside[data.draw(st.sampled_from(["a", "0", "Seed", "x-more", "a b"]))] = data.draw(VALUES)
    assert fulfils(section, WHOLE["$defs"][name], WHOLE["$defs"]) == (not list(faults(name, section, WHOLE)))


def test_a_keyword_that_is_not_known_leaves_the_answer_to_the_library() -> None:
    assert not fulfils("x", {"format": "email"}, {})
