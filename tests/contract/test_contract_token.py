"""Tokens: what is sealed opens; what is not exactly a token is refused with one sentence, whatever is wrong."""

from __future__ import annotations

import base64

import pytest
from contract_kit import Pair, craft, pad
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.contract.errors import KeyFileError, TokenError
from casemate.contract.token import LARGEST_PLAIN, LARGEST_TOKEN, PREFIXES, has_form, is_token, open_token, seal

slow = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PASSWORD = b"0123456789abcdef" * 2


@given(plain=st.text(max_size=400).map(str.encode))
@slow
def test_what_is_sealed_opens(small: Pair, plain: bytes) -> None:
    opened = open_token(seal(plain, small.key.public_key()), small.key)
    assert opened.plain == plain
    assert not opened.short_password


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("form", ["certificate", "public"])
def test_both_prefixes_and_both_forms_of_key_seal(image: Pair, prefix: str, form: str) -> None:
    token = seal(b"type: env\n", getattr(image, form), prefix)
    assert token.startswith(f"{prefix}.")
    assert token.count(".") == 2 and "\n" not in token
    assert is_token(token) and has_form(token, 4096) and not has_form(token, 2048)
    assert open_token(token, image.key).plain == b"type: env\n"
    assert open_token(f"{token}\n", image.key).plain == b"type: env\n"


def test_another_prefix_is_a_mistake_of_the_caller(small: Pair) -> None:
    with pytest.raises(ValueError, match="no such prefix"):
        seal(b"", small.public, "hyper-protect-advanced")


def test_what_we_seal_never_has_a_short_password(small: Pair) -> None:
    for _ in range(50):
        wrapped = seal(b"x", small.public).split(".")[1]
        password = small.key.decrypt(base64.b64decode(wrapped), PKCS1v15())
        assert len(password) >= 43  # 256 bits in base64
        assert password.isascii() and password.decode().isprintable()


def test_two_seals_of_one_text_have_nothing_in_common(small: Pair) -> None:
    one, two = seal(b"x" * 64, small.public).split("."), seal(b"x" * 64, small.public).split(".")
    assert one[1] != two[1]
    assert base64.b64decode(one[2])[8:] != base64.b64decode(two[2])[8:]


def test_the_largest_text_fits_and_one_more_byte_does_not(image: Pair) -> None:
    token = seal(bytes(LARGEST_PLAIN), image.public)
    assert len(token) <= LARGEST_TOKEN
    assert len(open_token(token, image.key).plain) == LARGEST_PLAIN
    with pytest.raises(TokenError, match="too many"):
        seal(bytes(LARGEST_PLAIN + 1), image.public)


@pytest.mark.parametrize(
    ("raw", "effective", "short"),
    [
        (PASSWORD, PASSWORD, False),
        (b"\n" + PASSWORD, b"", True),
        (b"\0" + PASSWORD, b"", True),
        (b"ab\ncd", b"ab", True),
        (b"ab\0c\nd", b"ab", True),
        (b"ab\nc\0d", b"ab", True),
        (PASSWORD[:31], PASSWORD[:31], True),
        (PASSWORD + b"\n", PASSWORD, False),
        (b"", b"", True),
        (bytes(range(128, 160)), bytes(range(128, 160)), False),
    ],
)
def test_a_password_is_cut_where_openssl_cuts_it(small: Pair, raw: bytes, effective: bytes, short: bool) -> None:
    opened = open_token(craft(small.key.public_key(), raw, effective, pad(b"hello")), small.key)
    assert opened.plain == b"hello"
    assert opened.short_password is short


def damaged(token: str) -> dict[str, str]:
    prefix, first, second = token.split(".")
    sealed = base64.b64decode(second)

    def body(data: bytes) -> str:
        return f"{prefix}.{first}.{base64.b64encode(data).decode()}"

    def wrapped(data: bytes) -> str:
        return f"{prefix}.{base64.b64encode(data).decode()}.{second}"

    raw = base64.b64decode(first)
    return {
        "empty": "",
        "a prefix only": f"{prefix}.",
        "no body": f"{prefix}.{first}",
        "an empty body": f"{prefix}.{first}.",
        "an empty password": f"{prefix}..{second}",
        "a fourth part": f"{token}.{second}",
        "another prefix": f"hyper-protect-advanced.{first}.{second}",
        "a prefix in capitals": f"{prefix.upper()}.{first}.{second}",
        "white space before": f" {token}",
        "white space after": f"{token} ",
        "two newlines after": f"{token}\n\n",
        "a line break inside": f"{prefix}.{first}.{second[:64]}\n{second[64:]}",
        "no padding of base64": f"{prefix}.{first.rstrip('=')}.{second.rstrip('=')}",
        "more padding of base64": f"{prefix}.{first}=.{second}",
        "the alphabet of URLs": f"{prefix}.{('-' + first[1:])}.{second}",
        "letters beyond ASCII": f"{prefix}.{first}.\u0410{second[1:]}",
        "bits after the end of base64": f"{prefix}.{first[:-3]}{chr(ord(first[-3]) + 1)}==.{second}",
        "truncated": token[: len(token) // 2],
        "its last block cut off": body(sealed[:-16]),
        "a part of a block": body(sealed[:-1]),
        "a byte more": body(sealed + b"\0"),
        "no block": body(sealed[:16]),
        "no salt": body(sealed[:8]),
        "another magic": body(b"Pepper__" + sealed[8:]),
        "a password of zeros": wrapped(bytes(len(raw))),
        "a password beyond the modulus": wrapped(b"\xff" * len(raw)),
        "a longer password": wrapped(b"\0" + raw),
        "a shorter password": wrapped(raw[1:]),
        "oversized": f"{prefix}.{first}.{second[:24] + 'A' * LARGEST_TOKEN}",
    }


WRONG = list(damaged("contract-basic.AAA=.U2FsdGVkX18BAgMEBQYHCA==" + "A" * 64))


@pytest.mark.parametrize("what", WRONG)
def test_a_damaged_token_is_refused_with_the_one_sentence(small: Pair, other: Pair, what: str) -> None:
    token = craft(small.key.public_key(), PASSWORD, PASSWORD, pad(b"a: 1\n" * 20))
    with pytest.raises(TokenError) as wrong_key:
        open_token(token, other.key)
    with pytest.raises(TokenError) as refused:
        open_token(damaged(token)[what], small.key)
    assert refused.value.diagnostics() == wrong_key.value.diagnostics()
    assert refused.value.__cause__ is refused.value.__context__ is None


@pytest.mark.parametrize(
    "padded",
    [
        b"x" * 15 + b"\0",
        b"x" * 15 + b"\x11",
        b"x" * 15 + b"\xff",
        b"x" * 13 + b"\x02\x03\x03",
        b"x" * 16 + b"\x0f" + b"\x10" * 15,
    ],
    ids=["zero", "more than a block", "255", "unequal", "a whole block but one byte"],
)
def test_a_wrong_padding_is_refused_with_the_same_sentence(small: Pair, padded: bytes) -> None:
    token = craft(small.key.public_key(), PASSWORD, PASSWORD, padded)
    with pytest.raises(TokenError) as refused:
        open_token(token, small.key)
    with pytest.raises(TokenError) as empty:
        open_token("", small.key)
    assert refused.value.diagnostics() == empty.value.diagnostics()


def test_what_is_no_text_is_neither_sealed_nor_opened(small: Pair) -> None:
    with pytest.raises(TokenError, match="not UTF-8 at byte 2"):
        seal(b"ab\xff", small.public)
    garbage = bytes(range(150, 181)) + b"\x01"  # what a wrong key makes of a token, once in 256 times
    with pytest.raises(TokenError, match="does not open"):
        open_token(craft(small.key.public_key(), PASSWORD, PASSWORD, garbage), small.key)


def test_a_text_that_is_not_accepted_gives_the_same_sentence_as_a_wrong_padding(small: Pair) -> None:
    def accept(plain: bytes) -> None:
        raise ValueError(f"this would tell: {plain!r}")

    with pytest.raises(TokenError) as refused:
        open_token(seal(b"not: [yaml", small.public), small.key, accept)
    with pytest.raises(TokenError) as empty:
        open_token("", small.key)
    assert refused.value.diagnostics() == empty.value.diagnostics()
    assert refused.value.__context__ is None


@given(text=st.text(max_size=200), prefix=st.sampled_from(["", *(f"{prefix}." for prefix in PREFIXES)]))
@slow
def test_no_text_raises_anything_else(small: Pair, text: str, prefix: str) -> None:
    assert has_form(prefix + text) in (True, False)
    with pytest.raises(TokenError):
        open_token(prefix + text, small.key)


@given(position=st.integers(min_value=0), character=st.characters(codec="utf-8"))
@settings(slow, max_examples=120)
def test_a_token_with_one_character_changed_opens_to_the_rest_or_not_at_all(
    small: Pair, position: int, character: str
) -> None:
    token = fixed_token(small)
    position %= len(token)
    try:
        opened = open_token(token[:position] + character + token[position + 1 :], small.key)
    except TokenError:
        return
    assert len(opened.plain) <= 160  # CBC has no integrity: the signature over the sections has


def fixed_token(pair: Pair) -> str:
    return craft(pair.key.public_key(), PASSWORD, PASSWORD, pad(b"seed: 0123\n" * 12))


def test_nothing_opened_shows_in_a_repr(small: Pair) -> None:
    assert "SECRET" not in repr(open_token(seal(b"SECRET", small.public), small.key))


def test_sealing_needs_a_public_key(small: Pair) -> None:
    with pytest.raises(KeyFileError, match="private key"):
        seal(b"x", small.private)
