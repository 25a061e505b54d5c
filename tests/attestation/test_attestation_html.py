"""The page of a verdict: it loads nothing, runs nothing, and nothing in a record or certificate becomes a part of it."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pki
import pytest
from attestation_kit import CONTRACT, MARK, PUBLISHED, Case, crl, intermediate, reference, root, sha256, sign
from hypothesis import given
from hypothesis import strategies as st

from casemate.attestation.html import page
from casemate.attestation.verify import Outcome, Row, Verdict

HOSTILE = '"><img src=x onerror=alert(1)></title></svg><script>alert(2)</script><a href="http://evil.example/">&amp;'
VOID = {"meta", "path", "rect", "circle", "use"}
ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "svg", "defs", "symbol", "circle", "path", "main", "p", "span"),
    *(
        "section",
        "use",
        "h1",
        "h2",
        "div",
        "b",
        "ul",
        "li",
        "g",
        "rect",
        "text",
        "desc",
        "table",
        "thead",
        "tbody",
        "tr",
    ),
    *("th", "td", "dl", "dt", "dd", "footer"),
}


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def development() -> Verdict:
    issuers = [pki.certificate("root", "root", ca=True, extensions=[MARK]), intermediate()]
    return Case().verify(issuers=issuers, reference=reference(), contract=CONTRACT)


def hostile() -> Verdict:
    """Markup wherever a record or a certificate has room for text."""
    key = pki.key("hostile")
    parts = [pki.name(HOSTILE[:40] + str(number), HOSTILE[40:100]) for number in range(3)]
    issuers = [
        pki.certificate(parts[0], parts[0], public=key.public_key(), signer=key, ca=True),
        pki.certificate(parts[1], parts[0], public=key.public_key(), signer=key, ca=True),
    ]
    leaf = pki.certificate(parts[2], parts[1], public=key.public_key(), signer=key)
    text = PUBLISHED.replace(b"9175/02/C25B8", HOSTILE.encode()).replace(
        b"\nImage", f"\nTEE: {HOSTILE}\nImage".encode()
    )
    text += f"\n{HOSTILE}\n{sha256(b'')} {HOSTILE}\nX: {HOSTILE}".encode()
    return Case(text, sign(text, "hostile"), leaf).verify(issuers=issuers[::-1])


VERDICTS = {
    "hardware": lambda: Case().whole(),
    "development": development,
    "refuted": lambda: Case().whole(reference=reference(baseimage=sha256(b"other")), crls=[crl(4711)]),
    "unsigned": lambda: Case(signature=b"x").whole(),
    "bare": lambda: Case().verify(),
    "broken chain": lambda: Case().whole(issuers=[root()]),
    "hostile": hostile,
}


@pytest.fixture(scope="module", params=VERDICTS)
def verdict(request: pytest.FixtureRequest) -> Verdict:
    return VERDICTS[request.param]()


def test_a_page_holds_only_what_shows_text_and_pictures(verdict: Verdict) -> None:
    read = Reader(page(verdict))
    assert set(read.names) <= ELEMENTS
    for element, name, value in read.attributes:
        assert not name.startswith("on") and name not in ("style", "src", "srcset", "action", "data", "formaction")
        if name == "href":
            assert (element, value[:3]) == ("use", "#i-")
        if name == "id":
            assert re.fullmatch(r"i-[a-z]+|p[td]", value)


def test_a_page_names_no_place_outside_of_itself(verdict: Verdict) -> None:
    text = page(verdict).replace("http://evil.example/", "")
    assert "url(" not in text and "@import" not in text and "://" not in text


def test_its_policy_allows_its_own_style_and_nothing_else(verdict: Verdict) -> None:
    text = page(verdict)
    (style,) = re.findall("<style>(.*?)</style>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', text)
    said = {part.split()[0]: part.split()[1:] for part in policy.replace("&#x27;", "'").split(";")}
    assert said == {
        **{"default-src": ["'none'"], "style-src": [f"'sha256-{digest}'"]},
        **{"base-uri": ["'none'"], "form-action": ["'none'"]},
    }


def test_every_row_stands_on_the_page_with_its_outcome(verdict: Verdict) -> None:
    text = Reader(page(verdict)).text
    for row in verdict.rows:
        for part in (row.name, row.value, row.meaning, row.why, row.outcome.value):
            assert part in text


def test_the_first_words_are_the_verdict() -> None:
    proved, not_proved = "Everything that was asked for is proved", "This record does not prove what was asked for"
    for name, (title, heading) in {
        "hardware": ("Attestation: proved", proved),
        "development": ("Attestation: proved (DEVELOPMENT TEE)", f"{proved}, for a DEVELOPMENT TEE"),
        "refuted": ("Attestation: not proved", not_proved),
        "unsigned": ("Attestation: not proved", not_proved),
    }.items():
        text = page(VERDICTS[name]())
        assert f"<title>{title}</title>" in text and f"<h1>{heading}</h1>" in text
        assert ("no protection from whoever owns the host" in text.replace("gives no", "no")) is (name == "development")


@given(
    st.lists(st.text(max_size=60), min_size=4, max_size=4),
    st.sampled_from(Outcome),
    st.sampled_from(["other", "image"]),
)
def test_any_text_stays_text(words: list[str], outcome: Outcome, group: str) -> None:
    name, meaning, value, why = (HOSTILE + word for word in words)
    signature = Row("signature", "", "", Outcome.PROVED, "", True, "trust")
    row = Row(name, meaning, value, outcome, why, True, group)
    verdict = Verdict("<b>", "<i>", (signature, row), None, pki.NOW)
    assert set(Reader(page(verdict)).names) <= ELEMENTS


@pytest.mark.components
def test_a_real_browser_shows_it_and_runs_nothing(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    (tmp_path / "page.html").write_text(page(hostile()))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
    command = [browser, *flags, f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/page.html"]
    done = subprocess.run(
        command, capture_output=True, timeout=120, check=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    )
    dom = done.stdout.decode()
    assert "<main>" in dom and "not proved" in dom
    assert not re.search(r"<(script|img|a|iframe|link)[ >]", dom)
