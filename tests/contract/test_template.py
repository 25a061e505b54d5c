"""Go templates: what is understood means what Go means by it; everything else is an error with its column."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.contract.images import Open
from casemate.contract.play import read_play
from casemate.contract.template import FUNCTIONS, LARGEST, TemplateError, render

ENV = {"NAME": "a b", "EMPTY": "", "N": "5", "dotted": "x"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain } text {", "plain } text {"),
        ("{{ .Env.NAME }}", "a b"),
        ("<{{.Env.NAME}}>", "<a b>"),
        ('{{ index .Env "NAME" }}', "a b"),
        ('{{ (index .Env "N") }}', "5"),
        ("{{ .Env.EMPTY }}", ""),
        ('{{ .Env.NONE | default "d" | upper | quote }}', '"D"'),
        ('{{ default "d" .Env.NAME }}', "a b"),
        ('{{ .Env.EMPTY | default "d" }}', "d"),
        ("{{ if .Env.NONE }}a{{ else if eq .Env.N `5` }}b{{ else }}c{{ end }}d", "bd"),
        ("{{ if .Env.NONE }}{{ .Env.NONE }}{{ end }}", ""),
        ("{{ if .Env.N }}{{ if .Env.NONE }}x{{ else }}y{{ end }}{{ end }}", "y"),
        ("{{ if and .Env.N (not .Env.EMPTY) }}yes{{ end }}", "yes"),
        ('{{ if or .Env.EMPTY (ne .Env.N "5") }}yes{{ else }}no{{ end }}', "no"),
        ("{{ if 0 }}a{{ else }}b{{ end }}{{ if true }}c{{ end }}", "bc"),
        ("x  {{- /* a }} comment */ -}}  y", "xy"),
        ('a {{- " b" }}', "a b"),
        ("{{ .Env.N -}}  \n z", "5z"),
        ('{{ "}}" }}', "}}"),
        ('{{ "a\\n\\"b\\"" }}', 'a\n"b"'),
        ('{{ printf "%s-%d-%q%%" .Env.N 3 "x" }}', '5-3-"x"%'),
        ("{{ print .Env.N | b64enc | b64dec }}", "5"),
        ('{{ .Env.NAME | replace " " "-" | trimPrefix "a" | trimSuffix "b" }}', "-"),
        ("{{ len .Env.NAME }}", "3"),
        ('{{ " x " | trim | squote }}{{ lower "ABC" }}', "'x'abc"),
        ("{{ $.Env.N }}{{ index $.Env `N` }}", "55"),
        ("{{ print 1 2 }}", "1 2"),
        ('{{ print 1 true "a" 2 3 "b" "c" }}', "1 truea2 3bc"),
        ('{{ printf "%q" "é" }}', '"é"'),
        ('{{ printf "%q %v %v" "\\u001f\\u00a0\\n" true 5 }}', '"\\x1f\\u00a0\\n" true 5'),
        ("{{ quote 5 }}{{ quote `\\` }}", '"5""\\\\"'),
        ("{{ eq 1 2 1 }}{{ ne .Env.N `5` }}{{ eq .Env.NONE `` }}", "truefalsetrue"),
        ("{{ len .Env.NONE }}{{ len `é` }}", "02"),
        ("{{ upper `straße` }}", "STRAßE"),
        ("{{ replace `` `-` `ab` }}", "-a-b-"),
        ("{{ .Env.N" + " | print" * 63 + " }}", "5"),
    ],
)
def test_what_is_understood(text: str, value: str) -> None:
    assert render(text, ENV) == value


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{{ .Env.NONE }}", "NONE is not set"),
        ('{{ index .Env "NONE" }}', "NONE is not set"),
        ("{{ .Values.x }}", "only object is .Env"),
        ("{{ . }}", "only object is .Env"),
        ("{{ .Env.A.B }}", "only object is .Env"),
        ("{{ .Env }}", "no text"),
        ("{{ range .Env }}{{ end }}", "`range` is not understood"),
        ('{{ env "PATH" }}', "`env` is not understood"),
        ('{{ template "x" }}', "`template` is not understood"),
        ("{{ $x := 1 }}", "not understood"),
        ("{{ }}", "stands alone"),
        ("{{ if }}x{{ end }}", "stands alone"),
        ("{{ .Env.N .Env.N }}", "stands alone"),
        ('{{ "a" | "b" }}', "stands alone"),
        ("{{ quote }}", "quote takes 1"),
        ("{{ (quote 1 }}", "without its `)`"),
        ("{{ quote 1) }}", "too many"),
        ("{{ if .Env.N }}", "without its `end`"),
        ("{{ if .Env.N }}{{ else }}", "without its `end`"),
        ("{{ if .Env.N }}{{ else }}{{ else }}{{ end }}", "without its `end`"),
        ("{{ end }}", "without its `if`"),
        ("{{ else }}", "without its `if`"),
        ("{{ .Env.N", "without its `}}`"),
        ('{{ "a }}', "without its `}}`"),
        ('{{ printf "%x" 1 }}', "printf"),
        ('{{ printf "%s" }}', "printf"),
        ('{{ printf "x" 1 }}', "printf"),
        ('{{ "%%" | b64dec }}', "b64dec"),
        ("{{ if .Env.NONE }}{{ nonsense }}{{ end }}", "`nonsense` is not understood"),
        ("{{ $ }}", "not understood"),
        ("{{ $.Values.x }}", "only object is .Env"),
        ("{{ 010 }}", "not understood"),
        ("{{ len 5 }}", "a text is wanted"),
        ("{{ upper true }}", "a text is wanted"),
        ('{{ eq 1 "1" }}', "texts are compared with texts"),
        ("{{ ne 1 true }}", "texts are compared with texts"),
        ("{{ eq .Env .Env }}", "texts are compared with texts"),
        ('{{ printf "%d" "5" }}', "printf"),
        ('{{ printf "%s" 5 }}', "printf"),
        ('{{ printf "%q" true }}', "printf"),
        ('{{ "\\ud800" | b64enc }}', "an escape"),
        ("{{ if 1 }}" * 30 + "{{ end }}" * 30, "nested deeper"),
        ("{{ " + "(" * 40 + "1" + ")" * 40 + " }}", "nested deeper"),
    ],
)
def test_anything_else_is_an_error_with_its_column(text: str, cause: str) -> None:
    with pytest.raises(TemplateError) as error:
        render(text, ENV)
    assert cause in error.value.cause and error.value.where.startswith("column ")


def test_an_error_has_its_column_and_no_value() -> None:
    with pytest.raises(TemplateError) as error:
        render("{{ .Env.S }} and {{ .Env.NONE }}", {"S": "geheim"})
    assert error.value.where == "column 18 of the template" and "geheim" not in str(error.value)


def test_where_variables_come_later_there_is_a_placeholder() -> None:
    assert "invalid" in render("{{ .Env.NONE }}", Open({}))


def test_a_template_can_not_grow_without_bound() -> None:
    text = '{{ print "' + "x" * 1000 + '" }}'
    with pytest.raises(TemplateError, match="too large"):
        render(text * 4500, {})


GROWN = '"aaaaaaaaaa"' + ' | replace "a" "aaaaaaaaaa"' * 5  # a million characters


@pytest.mark.parametrize(
    "text",
    [
        '{{ "a"' + f' | replace "a" "{"a" * 100}"' * 6 + " }}",
        '{{ "a"' + ' | replace "" "aaaaaaaaaa"' * 9 + " }}",
        f"{{{{ print ({GROWN}) ({GROWN}) }}}}",
        f'{{{{ printf "%s%s" ({GROWN}) ({GROWN}) }}}}',
        f'{{{{ printf "%s%q" ({GROWN}) ({GROWN}) }}}}',
        f"{{{{ {GROWN} | b64enc }}}}",
        '{{ "\\u0001"' + ' | quote | replace "1" "\\u0001\\u0001"' * 30 + " }}",
        '{{ "a"' + " | printf `%q%s%%` `b` | quote | quote" * 21 + " }}",
        f"{{{{ len ({GROWN}) }}}}" * 20,
    ],
)
def test_what_would_take_all_memory_is_refused_before(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError, match="too large"):
            render(text, {})
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_all_templates_of_a_contract_have_one_allowance() -> None:
    text = f"{{{{ len ({GROWN}) }}}}"
    assert render(text, {}) == "1000000"
    _, problems = read_play({"templates": [text] * 20}, {})
    assert any("together grow too large" in str(problem) for problem in problems)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_gives_more_than_the_largest_text(name: str) -> None:
    values = " ".join(["(print .Env.BIG)"] * FUNCTIONS[name][0])
    with suppress(TemplateError):
        assert len(render(f"{{{{ {name} {values} }}}}", {"BIG": "\x01" * (LARGEST - 1)})) <= LARGEST


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{{ .Env.N" + " | upper" * 64 + " }}", "64 commands"),
        ("{{ .Env.N" + " | upper" * 2000 + " }}", "64 commands"),
        ("{{ print" + " (print" * 2000 + " 1" + ")" * 2000 + " }}", "nested deeper"),
        ("{{ if not" + " (not" * 2000 + " 1" + ")" * 2000 + " }}{{ end }}", "nested deeper"),
        ("{{ if 1 }}" * 2000 + "{{ end }}" * 2000, "nested deeper"),
    ],
)
def test_what_would_recurse_is_refused(text: str, cause: str) -> None:
    with pytest.raises(TemplateError) as error:
        render(text, ENV)
    assert cause in error.value.cause


def test_the_deepest_and_longest_template_is_rendered() -> None:
    text = "1"
    for _ in range(16):
        text = f"({text}{' | print' * 63})"
    assert render(f"{{{{ print {text} }}}}", {}) == "1"
    assert render("{{ if 0 }}" + "{{ else if 0 }}" * 5000 + "{{ else }}x{{ end }}", {}) == "x"


PARTS = st.sampled_from(
    ["{{", "}}", " ", "-", "if ", "else ", "end", ".Env", ".Env.N", '"a"', "`b`", "(", ")", "|", "not ", "eq ", "/*", "*/", "x",
     "1"]
)  # fmt: skip


@given(st.lists(PARTS, max_size=25).map("".join) | st.text(max_size=60))
@settings(max_examples=600, deadline=None)
def test_any_text_is_rendered_or_refused(text: str) -> None:
    try:
        assert isinstance(render(text, ENV), str)
    except TemplateError as error:
        assert error.cause


@pytest.mark.parametrize(
    "text",
    [
        "{{/*" * 5000,
        "{{" + "/*/" * 5000,
        "{{ (" * 5000,
        '{{"' * 5000,
        "{{ - " * 5000,
        "{{" + " 1" * 200000 + "}}",
        "{{" + " (" * 200000 + "}}",
    ],
)
def test_no_text_takes_long(text: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TemplateError):
        render(text, {})
    assert time.monotonic() - begun < 5
