"""JSON of documents that are signed: what two readers could read as two things is refused."""

from __future__ import annotations

import pytest

from casemate import strictjson


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'["\\ud800x"]',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b"\xff\xfe{\x00}\x00",
        b'{"a":"\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
        b"",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        strictjson.loads(data)


def test_what_is_read_can_be_written_again() -> None:
    document = strictjson.loads('{"b":"\\ud83d\\ude00 é","a":[1.5,null]}'.encode())
    assert document == {"b": "\U0001f600 é", "a": [1.5, None]}
    assert strictjson.loads(strictjson.dumps(document)) == document
