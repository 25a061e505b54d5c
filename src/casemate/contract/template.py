"""Go templates, as far as contracts have use for them: text with ``{{ … }}``, and ``.Env`` as the only object.

    render("{{ .Env.REGISTRY }}/app", {"REGISTRY": "r.example.com"})      # "r.example.com/app"

Understood: ``{{ .Env.NAME }}`` (also ``$.Env.NAME``), ``{{ index .Env "NAME" }}``, pipelines
(``{{ .Env.A | default "b" | quote }}``), parentheses, texts in ``"…"`` and backquotes, whole numbers, ``true`` and ``false``,
``{{ if }} {{ else if }} {{ else }} {{ end }}``,
``{{/* comments */}}``, and the dashes that trim white space. Functions: :data:`FUNCTIONS`, with the meaning that Go's
``text/template`` and sprig give them. Anything else (``range``, ``with``, ``define``, variables, other functions) is an error
with its column.

A variable that is not set is nothing: false for ``if``, replaced by ``default``. Where it would be written, that is an error: a
text that lacks a part is not what its author meant. Likewise where Go would write ``%!d(string=…)``.

Templates come from strangers, so they are bounded: :data:`DEEPEST` levels, :data:`LONGEST` commands a pipeline,
:data:`LARGEST` characters what a function or an action gives (functions that multiply count before they write), and an
:class:`Allowance` for what all functions of all templates of a contract read and write.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from casemate.contract.errors import ContractError

LARGEST, DEEPEST, LONGEST = 1 << 20, 16, 64

_ACTION = re.compile(
    r"""\{\{(?P<left>-[ ])?
        (?P<body>\s*/\*(?:(?!\*/).)*\*/\s*?|(?:"(?:[^"\\\n]|\\.)*"|`[^`]*`|(?!\}\}|[ ]-\}\})[^"`])*)
        (?P<right>[ ]-)?\}\}""",
    re.VERBOSE | re.DOTALL,
)
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>-?(?:0|[1-9][0-9]{0,14})(?![\w.]))
        |(?P<field>\$?\.[\w.]*)|(?P<word>[A-Za-z_]\w*)|(?P<sign>[()|]))""",
    re.VERBOSE | re.ASCII,
)


class TemplateError(ContractError):
    """A template is not understood, or asks for what is not there. No value is quoted."""

    id = "CONTRACT-TEMPLATE"


@dataclass(frozen=True, slots=True)
class _Missing:
    """A variable that is not set."""

    name: str


@dataclass(slots=True)
class Allowance:
    """How many characters functions and actions may still read and write; one for all templates of a contract."""

    left: int = 16 * LARGEST

    def take(self, *values: Any) -> None:
        """Count what is text among values; raise :class:`TemplateError` where it is too much."""
        self.left -= sum(len(value) for value in values if isinstance(value, str))
        if self.left < 0:
            raise TemplateError("all templates together grow too large")


def render(text: str, env: Mapping[str, str], allowance: Allowance | None = None) -> str:
    """Return a text with its actions replaced. Raises :class:`TemplateError`."""
    return _Renderer(text, env, allowance or Allowance()).whole()


def _text(value: Any) -> str:
    """Return a value as it is written."""
    if isinstance(value, _Missing):
        raise TemplateError(f"the variable {value.name} is not set", "give it under env of either section")
    if isinstance(value, Mapping):
        raise TemplateError("the whole of .Env is no text; name one variable: .Env.NAME")
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _string(value: Any) -> str:
    """Return a value that has to be a text, which Go makes of nothing else."""
    if isinstance(value, int):
        raise TemplateError("a text is wanted here, not a number, true or false", "`print` makes a text of them")
    return _text(value)


def _fit(size: int) -> None:
    if size > LARGEST:
        raise TemplateError("grows too large")


def _truth(value: Any) -> bool:
    return not isinstance(value, _Missing) and bool(value)


def _index(table: Any, name: Any) -> Any:
    if not isinstance(table, Mapping) or not isinstance(name, str):
        raise TemplateError('index is for .Env: {{ index .Env "NAME" }}')
    value = table.get(name)
    return _Missing(name if re.fullmatch(r"\w{1,60}", name) else "…") if value is None else value


def _print(*values: Any) -> str:
    texts = [_text(value) for value in values]
    _fit(sum(map(len, texts)))
    said = ""
    for number, text in enumerate(texts):  # Go writes a space between two values of which neither is a text
        apart = number and not isinstance(values[number - 1], str) and not isinstance(values[number], str)
        said += f" {text}" if apart else text
    return said


def _printf(form: Any, *values: Any) -> str:
    given, size = list(values), len(_string(form))

    def next_one(match: re.Match[str]) -> str:
        nonlocal size
        if match[0] == "%%":
            return "%"
        if not given or match[1] not in ("s", "d", "v", "q"):
            raise TemplateError("printf: %s, %d, %v, %q and %% are understood, a value for each")
        value = given.pop(0)
        text = _text(value)
        if match[1] != "v" and type(value) is not (int if match[1] == "d" else str):
            raise TemplateError("printf: %s and %q are for texts, %d for numbers, %v for any value")
        text = _quoted(text) if match[1] == "q" else text
        size += len(text)
        _fit(size)
        return text

    said = re.sub("%(.?)", next_one, _string(form), flags=re.DOTALL)
    if given:
        raise TemplateError("printf: more values than %")
    return said


class _Quoting(dict[int, str]):
    """Characters as Go's ``strconv.Quote`` writes them."""

    def __missing__(self, code: int) -> str:
        if chr(code).isprintable():
            return chr(code)
        return f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
}


def _quoted(text: str) -> str:
    return f'"{text.translate(_Quoting({ord(one): said for one, said in _ESCAPES.items()}))}"'


def _replace(old: Any, new: Any, value: Any) -> str:
    old, new, text = _string(old), _string(new), _string(value)
    _fit(len(text) + text.count(old) * (len(new) - len(old)))
    return text.replace(old, new)


def _cased(text: str, change: Callable[[str], str]) -> str:
    """Change a text one character for one, as Go does: ``ß`` stays, where Python would write two."""
    return "".join(changed if len(changed := change(one)) == 1 else one for one in text)


def _equal(first: Any, other: Any) -> bool:
    one, two = _plain(first), _plain(other)
    if type(one) is not type(two) or isinstance(one, Mapping):
        raise TemplateError("texts are compared with texts, numbers with numbers", "`print` makes a text of a number")
    return bool(one == two)


def _decoded(value: Any) -> str:
    try:
        return base64.b64decode(_string(value), validate=True).decode()
    except (binascii.Error, ValueError):
        raise TemplateError("b64dec: not base64 of UTF-8") from None


def _or(*values: Any) -> Any:
    return next((value for value in values if _truth(value)), values[-1])


def _and(*values: Any) -> Any:
    return next((value for value in values if not _truth(value)), values[-1])


def _plain(value: Any) -> Any:
    return "" if isinstance(value, _Missing) else value


FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "index": (2, 2, _index),
    "and": (1, 20, _and),
    "or": (1, 20, _or),
    "not": (1, 1, lambda value: not _truth(value)),
    "eq": (2, 20, lambda first, *others: any(_equal(first, other) for other in others)),
    "ne": (2, 2, lambda one, other: not _equal(one, other)),
    "len": (1, 1, lambda value: len(_string(_plain(value)).encode())),
    "print": (1, 20, _print),
    "printf": (1, 20, _printf),
    "default": (2, 2, lambda other, value: value if _truth(value) else other),
    "quote": (1, 1, lambda value: _quoted(_text(value))),
    "squote": (1, 1, lambda value: f"'{_text(value)}'"),
    "lower": (1, 1, lambda value: _cased(_string(value), str.lower)),
    "upper": (1, 1, lambda value: _cased(_string(value), str.upper)),
    "trim": (1, 1, lambda value: _string(value).strip()),
    "trimPrefix": (2, 2, lambda prefix, value: _string(value).removeprefix(_string(prefix))),
    "trimSuffix": (2, 2, lambda suffix, value: _string(value).removesuffix(_string(suffix))),
    "replace": (3, 3, _replace),
    "b64enc": (1, 1, lambda value: base64.b64encode(_string(value).encode()).decode()),
    "b64dec": (1, 1, _decoded),
}
"""Name, least and most number of values (a pipeline's value is the last), and what it does."""


class _Renderer:
    """One text. It is read once from left to right; what stands in a branch that is not taken is parsed, not evaluated."""

    def __init__(self, text: str, env: Mapping[str, str], allowance: Allowance) -> None:
        self._env = env
        self._allowance = allowance
        self._pieces = list(_pieces(text))
        self._here = 0
        self._size = 0

    def whole(self) -> str:
        said = self._block(True, 0)
        if self._here < len(self._pieces):
            raise self._error("an `else` or `end` without its `if`")
        return said

    def _error(self, cause: str, cure: str = "") -> TemplateError:
        column = self._pieces[min(self._here, len(self._pieces) - 1)][1] if self._pieces else 1
        return TemplateError(cause, cure, where=f"column {column} of the template")

    def _block(self, taken: bool, depth: int) -> str:
        """Return the text up to an ``else`` or ``end``, or to the end of all."""
        if depth > DEEPEST:
            raise self._error(f"nested deeper than {DEEPEST} levels")
        parts = []
        while self._here < len(self._pieces):
            piece, _, action = self._pieces[self._here]
            word = piece.split(None, 1)[0] if action and piece.strip() else ""
            if word in ("else", "end"):
                break
            if not action:
                said = piece if taken else ""
            elif word == "if":
                said = self._branches(piece.split(None, 1)[1:], taken, depth)
            else:
                said = self._value(piece, taken, _text)
            self._size += len(said)
            if self._size > LARGEST * 4 or len(said) > LARGEST:
                raise self._error("grows too large")
            parts.append(said)
            self._here += 1
        return "".join(parts)

    def _branches(self, condition: list[str], taken: bool, depth: int) -> str:
        """Return the text of an ``if`` with all its branches; on return, ``end`` is the piece that stands next."""
        said, left = "", taken
        while True:
            true = bool(self._value("".join(condition), left, _truth))
            self._here += 1
            branch = self._block(true, depth + 1)
            if true:
                said, left = branch, False
            words = self._next().split(None, 2)
            if words == ["else"]:
                self._here += 1
                last = self._block(left, depth + 1)
                if self._next() != "end":
                    raise self._error("an `else` without its `end`")
                return last if left else said
            if words == ["end"]:
                return said
            if words[:2] != ["else", "if"]:
                raise self._error("after `else` stands nothing, or `if` and its condition")
            condition = words[2:]

    def _next(self) -> str:
        """Return the piece on which a block has ended."""
        if self._here >= len(self._pieces):
            raise self._error("an `if` without its `end`")
        return self._pieces[self._here][0]

    def _value(self, piece: str, taken: bool, use: Callable[[Any], Any]) -> Any:
        """Parse a pipeline; evaluate it where it is taken."""
        tokens: deque[tuple[str, str]] = deque()
        position = 0
        while position < len(piece):
            match = _TOKEN.match(piece, position)
            if not match:
                raise self._error(
                    "something here is not understood", 'values: .Env.NAME, "text", numbers; see the list of functions'
                )
            tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            position = match.end()
        try:
            value = self._pipeline(tokens, 0)
            if tokens:
                raise TemplateError("a `)` too many")
            if not taken:
                return ""
            result = use(value())
            self._allowance.take(result)
            return result
        except TemplateError as error:
            raise self._error(error.cause, error.cure) from None

    def _pipeline(self, tokens: deque[tuple[str, str]], depth: int) -> Callable[[], Any]:
        if depth > DEEPEST:
            raise TemplateError(f"nested deeper than {DEEPEST} levels")
        first = self._command(tokens, False, depth)
        others = []
        while tokens and tokens[0] == ("sign", "|"):
            tokens.popleft()
            others.append(self._command(tokens, True, depth))
            if len(others) == LONGEST:
                raise TemplateError(f"more than {LONGEST} commands in a pipeline")

        def value() -> Any:
            result = first()
            for command in others:
                result = command(result)
            return result

        return value

    def _command(self, tokens: deque[tuple[str, str]], piped: bool, depth: int) -> Callable[..., Any]:
        """Parse a function with its values, or a value; ``piped``: what is returned takes the last value."""
        name = ""
        if tokens and tokens[0][0] == "word" and tokens[0][1] not in ("true", "false"):
            name = tokens.popleft()[1]
        values: list[Callable[[], Any]] = []
        while tokens and tokens[0] not in (("sign", "|"), ("sign", ")")):
            values.append(self._operand(tokens, depth))
        if not name:
            if len(values) != 1 or piped:
                raise TemplateError("a value stands alone, or after the name of a function")
            return values[0]
        if name not in FUNCTIONS:
            raise TemplateError(
                f"`{name[:40]}` is not understood", f"functions: {', '.join(FUNCTIONS)}; and if, else, end"
            )
        least, most, function = FUNCTIONS[name]
        if not least <= len(values) + piped <= most:
            raise TemplateError(f"{name} takes {least}{f' to {most}' if most > least else ''} values")

        def called(*last: Any) -> Any:
            given = [*(value() for value in values), *last]
            result = function(*given)
            self._allowance.take(*given, result)
            if isinstance(result, str):
                _fit(len(result))
            return result

        return called

    def _operand(self, tokens: deque[tuple[str, str]], depth: int) -> Callable[[], Any]:
        kind, text = tokens.popleft()
        if kind == "text":
            value: Any = _literal(text)
            return lambda: value
        if kind == "number":
            return lambda: int(text)
        if kind == "word" and text in ("true", "false"):
            return lambda: text == "true"
        if kind == "field":
            parts = text.split(".")[1:]
            if parts == ["Env"]:
                return lambda: self._env
            if len(parts) != 2 or parts[0] != "Env" or not parts[1]:
                raise TemplateError("the only object is .Env: write .Env.NAME")
            return lambda: _index(self._env, parts[1])
        if (kind, text) == ("sign", "("):
            inner = self._pipeline(tokens, depth + 1)
            if not tokens or tokens.popleft() != ("sign", ")"):
                raise TemplateError("a `(` without its `)`")
            return inner
        raise TemplateError("a function inside others stands in parentheses")


def _pieces(text: str) -> list[tuple[str, int, bool]]:
    """Split into texts and actions, each with its column; white space beside dashes is gone."""
    pieces: list[tuple[str, int, bool]] = []
    position, trim = 0, False
    while (start := text.find("{{", position)) >= 0:
        match = _ACTION.match(text, start)
        if not match:
            raise TemplateError("a `{{` without its `}}`", where=f"column {start + 1} of the template")
        before = text[position:start]
        before = before.lstrip() if trim else before
        pieces.append((before.rstrip() if match["left"] else before, position + 1, False))
        body = match["body"].strip()
        if not re.fullmatch(r"/\*.*\*/", body, re.DOTALL):
            pieces.append((body, start + 1, True))
        position, trim = match.end(), bool(match["right"])
    rest = text[position:]
    return [*pieces, (rest.lstrip() if trim else rest, position + 1, False)]


def _literal(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    try:
        said = str(json.loads(text, strict=False))
        said.encode()  # half of a pair, \\ud800, is no character
    except ValueError:
        raise TemplateError("an escape in a text that is not understood") from None
    return said
