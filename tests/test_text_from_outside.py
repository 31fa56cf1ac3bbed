"""Text from outside is printable where it leaves: Markdown, HTML and the terminal."""

import os
import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import growth
from growth.errors import printable
from growth.printing import html_text, markdown, one_line
from growth.recipe import recipe_of

ESC, BELL, CSI, RIGHT_TO_LEFT, ZERO_WIDTH = "\x1b", "\x07", "\x9b", "\u202e", "\u200b"
HOSTILE = (
    f"{ESC}[2J{ESC}[31mred",
    f"{ESC}]8;;http://evil.example{ESC}\\click{ESC}]8;;{BELL}",
    f"{CSI}2Jname",
    f"gpj.{RIGHT_TO_LEFT}exe{ZERO_WIDTH}\u2066\u00ad\u3164\ufe0f\U000e0041",
    "[bold]rich[/bold] [link=http://evil.example]x[/link] [@click=app.bell]y[/]",
    "safe\rerror\x08\x08\x00\x7f\u2028\u0085",
    "`a|b`\n---\n# head\n<img src=x onerror=alert(1)> [t](http://evil.example) ![i](x) **b** https://evil.example",
    "www.evil.example me@evil.example :smile: $x$ &copy; ~~no~~ ===\n===\n\n    code",
    "\ud800half",
)
texts = st.text(max_size=40) | st.sampled_from(HOSTILE)
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def shown(text):
    """Whether every character of a text shows where it stands, and steers nothing."""
    return all(c == "\n" or unicodedata.category(c) not in INVISIBLE for c in text)


@given(texts)
@settings(max_examples=200, deadline=None)
def test_what_is_printable_shows_all_that_it_is(text):
    assert shown(printable(text))
    assert printable(printable(text)) == printable(text)
    assert "\n" not in one_line(text)


def rendered(content):
    """The inline tokens that a cell of a table, a heading, and a paragraph hold when a text is set into them."""
    page = f"# {content}, grown\n\nmade from {content}: {content}.\n\n| a | b |\n|---|---|\n| {content} | 1 |\n\n- {content}\n"
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    return [token.type for token in tokens], [token.children for token in tokens if token.type == "inline"]


@given(texts.filter(str.strip))
@settings(max_examples=150, deadline=None)
@example("1. one")
@example("- - -")
@example("    code")
def test_markdown_shows_a_text_as_it_is(text):
    structure, inline = rendered(markdown(text))
    assert structure == rendered("plain")[0]
    kinds = {child.type for children in inline for child in children}
    assert kinds <= {"text"}
    heading = "".join(child.content for child in inline[0])
    assert heading.removesuffix(", grown").strip() == one_line(text).strip()
    assert not re.search(r"(?<!\\)[@:]|www\.", markdown(text)), "links that GitHub finds by itself"


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(texts)
@settings(max_examples=100, deadline=None)
def test_html_shows_a_text_as_it_is(text):
    page = _Page()
    page.feed(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    page.close()
    assert page.tags == [("p", {"title": printable(text)})]
    assert page.text == printable(text)


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud800" not in text])
def test_the_model_card_holds_no_markup_from_outside(tmp_path, phi_mini, text):
    recipe = recipe_of({"description": text, "steps": [{"op": "deepen", "factor": 2}]}, "r")
    folder = tmp_path / text.replace("/", "_").replace("\0", "")
    folder.mkdir()
    for path in phi_mini.iterdir():
        os.link(path, folder / path.name)
    growth.grow(recipe, folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert shown(card)
    body = card.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert not kinds & {"link_open", "image", "html_inline", "s_open", "em_open"}
    assert {t.type for t in tokens} & {"html_block", "hr", "fence", "code_block", "blockquote_open"} == set()
    assert [t.type for t in tokens].count("heading_open") == 1
