"""Go templates: what is understood means what Go means by it; everything else is an error with its column."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.contract.images import Open
from casemate.contract.template import TemplateError, render

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


@pytest.mark.parametrize("text", ["{{/*" * 5000, "{{" + "/*/" * 5000, "{{ (" * 5000, '{{"' * 5000, "{{ - " * 5000])
def test_no_text_takes_long(text: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TemplateError):
        render(text, {})
    assert time.monotonic() - begun < 5
