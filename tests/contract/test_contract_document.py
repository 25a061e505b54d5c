"""The YAML of contracts: strict, bounded, the same with libyaml and without; and contracts written back."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.contract.document import (
    DEEPEST,
    LARGEST,
    MOST_NODES,
    Contract,
    exact,
    parse,
    parse_contract,
    parse_section,
    rewrite,
    write_contract,
)
from casemate.contract.errors import DocumentError
from casemate.errors import CasemateError

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name + 1, name + 1, b",".join([b"*%c" % name] * 9)) for name in range(ord("a"), ord("j"))
)


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader")
    return str(request.param)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"- a\n", "not a mapping"),
        (b"word\n", "not a mapping"),
        (b"a: 1\na: 2\n", "'a' stands here a second time"),
        (b"a: {b: 1, b: 2}\n", "'b' stands here a second time"),
        (b'a: 1\n"a": 2\n', "'a' stands here a second time"),
        (b"a: &x 1\n", "an anchor"),
        (b"a: 1\nb: *a\n", "an alias"),
        (b"<<: {a: 1}\n", "a merge key"),
        (b"a: !!python/object/apply:os.system [true]\n", "a tag"),
        (b"a: !!binary aGk=\n", "a tag"),
        (b"a: !secret x\n", "a tag"),
        (b"1: a\n", "a key that is not text"),
        (b"true: a\n", "a key that is not text"),
        (b"? [a]\n: b\n", "a key that is not text"),
        (b"~: a\n", "a key that is not text"),
        (b"a: 1\n---\nb: 2\n", "a second document"),
        (b"a: [1\n", "not YAML"),
        (b"a: 'x\n", "not YAML"),
        (b"a:\n\t- b\n", "not YAML"),
        (b"a: \x00\n", "a character that YAML text may not hold"),
        (b"a: \x1b[31m\n", "a character that YAML text may not hold"),
        (b"a: \xff\n", "not UTF-8 at byte 3"),
        ("a: 1\n".encode("utf-16"), "not UTF-8"),
        (b"a: " + b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested deeper"),
        (b"a: " + b"[" * 100_000, "nested deeper|not YAML"),
        (b"{" * 100_000, "nested deeper|not YAML"),
        (b"a: [" + b"1," * MOST_NODES + b"]", "values"),
        (b"a: '" + b"x" * LARGEST + b"'", "more than the"),
        (BOMB, "an anchor"),
    ],
)
def test_a_text_that_no_contract_is_written_in_is_refused(text: bytes, cause: str) -> None:
    with pytest.raises(DocumentError, match=cause):
        parse_section(text)


@pytest.mark.usefixtures("parser")
def test_a_yaml_bomb_stays_small_where_aliases_are_allowed() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DocumentError, match="values"):
            parse(BOMB, aliases=True)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("text", [b"a: &a\n  b: *a\n", b"a: &a [*a]\n", b"<<: &a {<<: *a}\n"])
def test_an_alias_within_its_own_anchor_is_refused(text: bytes) -> None:
    with pytest.raises(DocumentError, match="an alias without its anchor"):
        parse(text, aliases=True)


@pytest.mark.usefixtures("parser")
def test_anchors_and_merge_keys_are_understood_where_allowed() -> None:
    text = b"x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: {<<: [*x, {c: 4}]}\n"
    assert parse(text, aliases=True) == {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}, "z": {"a": 1, "b": 2, "c": 4}}
    assert parse(b'"<<": text\n') == {"<<": "text"}


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("NO", "NO"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("0o17", 15),
        ("0x1f", 31),
        ("017", 17),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-11-24", "2026-11-24"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        ("9" * 30, float("9" * 30)),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("! 12", "12"),
        ("|\n  x\n", "x\n"),
    ],
)
def test_plain_words_are_read_as_yaml_1_2_has_them(text: str, value: object) -> None:
    read = parse(f"a: {text}\n".encode())["a"]
    assert read == value and type(read) is type(value)


def test_a_byte_order_mark_is_left_out() -> None:
    assert parse(b"\xef\xbb\xbfa: 1\n") == {"a": 1}


def test_errors_say_where_and_never_what() -> None:
    for text in (b"a: 1\nseed: 'SECRET\n", b"a: &SECRET x\n", b"seed: !SECRET x\n", b"b: [SECRET\n", b"x: 1\nSECRET"):
        with pytest.raises(CasemateError) as error:
            parse_section(text)
        assert "SECRET" not in error.value.diagnostics()
    with pytest.raises(DocumentError) as second:
        parse_section(b"a: 1\nb: 2\na: 3\n")
    assert second.value.where.startswith("line 3")


@given(text=st.text(max_size=200))
@quick
def test_both_parsers_read_any_text_alike(text: str) -> None:
    results = []
    for loader in (yaml.CSafeLoader, yaml.SafeLoader):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(yaml, "CSafeLoader", loader)
            try:
                results.append(repr(parse(text.encode("utf-8", "surrogatepass"))))
            except DocumentError as error:
                results.append(type(error).__name__)
    if results[0] != results[1]:  # the two differ in what they refuse; never in what they read
        assert "DocumentError" in results


@given(data=st.binary(max_size=300))
@quick
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for read in (parse, parse_section, parse_contract):
        with contextlib.suppress(DocumentError):
            read(data)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)


@given(value=st.dictionaries(st.text(max_size=10), plain, max_size=5))
@quick
def test_what_is_written_anew_reads_as_the_same_values(value: dict[str, object]) -> None:
    text = rewrite(value)
    assert text.isascii() and "\n" not in text
    assert parse(text.encode()) == value


# ------------------------------------------------------------------------------------------------- contracts


def test_the_exact_string_of_a_block_has_its_last_newline() -> None:
    contract = parse_contract(b"workload: |\n  type: workload\nenv: |-\n  type: env\n")
    assert exact(contract) == ("type: workload\n", "type: env")


def test_a_section_that_is_a_mapping_is_written_anew_and_can_not_be_signed() -> None:
    contract = parse_contract(b"workload: {type: workload}\nenv: |\n  type: env\n")
    assert contract.workload == '{"type": "workload"}'
    assert contract.mappings == ("workload",)
    with pytest.raises(DocumentError, match="no exact string"):
        exact(contract)


@pytest.mark.parametrize(
    ("text", "cause", "where"),
    [
        (b"env: x\n", "has no workload", ""),
        (b"a: x\n", "has no workload and env", ""),
        (b"workload: []\nenv: x\n", "must be a token", "workload"),
        (b"workload: x\nenv: 12\n", "must be a token", "env"),
        (b"workload: x\nenv: ' '\n", "not empty", "env"),
        (b"workload: x\nenv: y\nattestationPublicKey: [x]\n", "must be text", "attestationPublicKey"),
        (b"workload: x\nenv: y\nenvWorkloadSignature:\n", "must be text", "envWorkloadSignature"),
    ],
)
def test_an_outer_contract_that_is_none_is_refused(text: bytes, cause: str, where: str) -> None:
    with pytest.raises(DocumentError, match=cause) as error:
        parse_contract(text)
    assert error.value.where == where


def test_unknown_keys_are_named() -> None:
    assert parse_contract(b"workload: x\nenv: y\nvolumes: {}\n").unknown == ("volumes",)


def test_secrets_do_not_show_in_a_repr() -> None:
    assert "SECRET" not in repr(parse_contract(b"workload: SECRET\nenv: SECRET\n"))


section = st.text(min_size=1, max_size=120).filter(str.strip) | st.text(
    " \n\tab:#'\"|-\r\x85\u2028", min_size=1
).filter(str.strip)


@given(workload=section, env=section, key=st.none() | section)
@quick
def test_a_contract_reads_back_as_written_here_and_by_others(workload: str, env: str, key: str | None) -> None:
    contract = Contract(workload, env, key, "c2ln" * 40)
    data = write_contract(contract)
    assert parse_contract(data) == contract
    others = yaml.safe_load(data)
    assert (others["workload"], others["env"], others.get("attestationPublicKey")) == (workload, env, key)


def test_people_can_read_what_is_written() -> None:
    written = write_contract(Contract("type: workload\nenv:\n  A: b\n", "hyper-protect-basic." + "A" * 200))
    assert written.startswith(b"workload: |\n  type: workload\n  env:\n    A: b\nenv: hyper-protect-basic.AAAA")


def test_a_contract_that_nobody_would_read_is_not_written() -> None:
    with pytest.raises(DocumentError, match="more than the"):
        write_contract(Contract("x" * LARGEST, "y"))
