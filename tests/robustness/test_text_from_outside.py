"""Text from outside is printable where it leaves: Markdown, HTML and the terminal."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
import unicodedata
from contextlib import suppress
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import growth
from growth.cli import app as cli
from growth.errors import GrowthError, printable
from growth.planning.recipe import recipe_of
from growth.runtime.printable import html_text, markdown

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
    return all(unicodedata.category(c) not in INVISIBLE for c in text)


@given(texts)
@settings(max_examples=200, deadline=None)
def test_what_is_printable_shows_all_that_it_is(text):
    assert shown(printable(text))
    assert printable(printable(text)) == printable(text)
    assert "\n" not in printable(text)
    assert str(GrowthError(text, "second line")) == f"{printable(text)}\nsecond line"


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
    assert heading.removesuffix(", grown").strip() == printable(text).strip()
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
    assert shown(card.replace("\n", ""))
    body = card.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert not kinds & {"link_open", "image", "html_inline", "s_open", "em_open"}
    assert {t.type for t in tokens} & {"html_block", "hr", "fence", "code_block", "blockquote_open"} == set()
    headings = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["How it was made", "How exact it is", "Continue training"]


# ------------------------------------------------- the terminal

OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\r")  # rich's styles, and how it draws bars again


@pytest.fixture(scope="module")
def terminal():
    """A function that runs a command in this process, its output a terminal, and returns what arrives there."""
    master, slave = pty.openpty()
    arrived = []

    def read():
        while content := os.read(master, 1 << 16):
            arrived.append(content)

    threading.Thread(target=read, daemon=True).start()

    def run(*arguments):
        begun = len(arrived)
        with open(slave, "w", closefd=False) as stream, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", stream)
            patch.setattr("sys.stderr", stream)
            patch.setattr("sys.argv", ["growth", *arguments])
            with suppress(SystemExit):
                cli.run()
            stream.write("THE END")
        while b"THE END" not in b"".join(arrived[begun:]):
            time.sleep(0.001)
        return b"".join(arrived[begun:]).decode().removesuffix("THE END")

    return run


def check(output, *hostile):
    """Nothing on the terminal steers it but what rich draws, and no hostile sequence is left."""
    assert output
    left = OWN.sub("", output.replace("\r\n", "\n"))
    assert shown(left.replace("\t", "").replace("\n", "")), repr(left)
    assert not re.search(f"^{FAKE}", left, re.MULTILINE), "a string from outside began a line"
    for text in hostile:
        for sequence in re.findall(r"\x1b(?:\[[0-9;?]+[a-zA-Z]|\].*?(?:\x07|\x1b\\))|[\x80-\x9f\u202e\u200b]", text):
            assert OWN.fullmatch(sequence) or sequence not in output


def source_of(folder, phi_mini, **config):
    """phi-mini with other values in its config."""
    folder.mkdir(parents=True)
    for path in phi_mini.iterdir():
        if path.name != "config.json":
            os.link(path, folder / path.name)
    stated = json.loads((phi_mini / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **config}))
    return folder


FAKE = "PASSED  x"
STEERING = (
    f"x{ESC}[2J{ESC}[35;7m{ESC}]8;;http://evil.example{ESC}\\y{CSI}3J{RIGHT_TO_LEFT}{ZERO_WIDTH}[bold]z[/bold]\r\x07"
    f"\n{FAKE}\r\n{FAKE}\r{FAKE}\x85{FAKE}\u2028{FAKE}{' ' * 60}{FAKE}"
)
RECIPE = {"description": STEERING, "steps": [{"op": "deepen", "factor": 2}]}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, phi_mini):
    """A folder with hostile sources and recipes."""
    place = tmp_path_factory.mktemp("hostile") / STEERING.replace("/", "_")
    source_of(place / "source", phi_mini, **{STEERING: STEERING, "_name_or_path": STEERING})
    source_of(place / "type", phi_mini, model_type=STEERING)
    rope = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_type": STEERING}
    source_of(place / "rope", phi_mini, rope_parameters=rope)
    source_of(place / "act", phi_mini, hidden_act=STEERING)
    (place / "recipe.json").write_text(json.dumps(RECIPE))
    (place / "step.json").write_text(json.dumps({**RECIPE, "steps": [{"op": STEERING}]}))
    (place / "axis.json").write_text(json.dumps({**RECIPE, "steps": [{"op": "widen", "axis": STEERING, "to": 9}]}))
    (place / "expect.json").write_text(json.dumps({**RECIPE, "expect": {STEERING: STEERING}}))
    (place / "expects.json").write_text(json.dumps({**RECIPE, "expect": {"model_type": STEERING}}))
    (place / "key.json").write_text(json.dumps({**RECIPE, STEERING: 1}))
    (place / "text.yaml").write_text(STEERING)
    return place


@pytest.mark.parametrize(
    "command",
    [
        "plan recipe.json -s source --tensors",
        "plan recipe.json -s source --json",
        *(f"plan {name}.json -s source" for name in ("step", "axis", "expect", "expects", "key")),
        "plan text.yaml -s source",
        "plan missing -s source",
        *(f"plan recipe.json -s {name}" for name in ("type", "rope", "act", "missing")),
        "grow recipe.json -s source -o grown",
        "grow recipe.json -s source -o source",
        "grow recipe.json -s source -o part --part 1/STEER",
        "inspect source",
        "inspect source --json",
        *(f"inspect {name}" for name in ("type", "rope", "missing")),
        "recipe source type/config.json",
        "recipe source act/config.json",
        "recipe source source/config.json",
        "recipe source source/config.json -o written.yaml",
        "recipes",
        "diagnose source type",
        "diagnose missing missing --plot plot.svg",
        "verify source type --weights",
        "verify source grown --weights",
        "advise --params STEER --tokens 1B --to 2B",
        "STEER",
        "plan --STEER",
    ],
)
def test_no_command_lets_text_steer_the_terminal(terminal, hostile, command):
    def place(word):
        inside = re.search(r"\.(json|yaml|svg)$|^(source|type|rope|act|missing|grown|part)$", word)
        return str(hostile / word) if inside else word.replace("STEER", STEERING)

    name, *words = command.split(" ")
    check(terminal(place(name) if name == "STEER" else name, *map(place, words)), STEERING)


@given(texts.filter(lambda text: "\0" not in text and "\ud800" not in text))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_argument_and_no_config_steers_the_terminal(terminal, tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps({"model_type": text, text: text, "architectures": [text]}))
    for arguments in (["inspect", str(folder)], ["plan", text, "-s", text], ["inspect", text]):
        check(terminal(*arguments), text)


def test_a_fault_of_the_program_prints_what_it_quotes_as_it_is(terminal, monkeypatch):
    def fault():
        raise KeyError(STEERING) from RuntimeError(STEERING)

    monkeypatch.setattr("growth.planning.recipe.shipped_recipes", fault)
    output = terminal("recipes")
    check(output, STEERING)
    assert "Traceback" in output


LIBRARIES = """
import json, logging, sys, warnings
from growth.cli.app import run
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["growth", *arguments]
    try:
        run()
    except SystemExit:
        pass
from growth.runtime.printable import printable_streams
from transformers.utils import logging as of_transformers
with printable_streams():
    text = json.loads(sys.stdin.read())
    warnings.warn(text)
    logging.warning(text)
    print(text, file=sys.stderr)
of_transformers.get_logger("transformers.any").warning(text)
"""


@pytest.mark.slow
def test_libraries_print_on_the_terminal_what_it_can_show(hostile, tmp_path):
    """Their loggers keep the stream that was there when they were imported, so this is a process of its own."""
    master, slave = pty.openpty()
    grown = tmp_path / "grown"
    commands = [
        ["grow", str(hostile / "recipe.json"), "-s", str(hostile / "source"), "-o", str(grown)],
        ["verify", str(hostile / "rope"), str(grown)],
        ["verify", str(hostile / "source"), str(grown), "--tokens", "8"],
        ["diagnose", str(grown), str(grown)],
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", LIBRARIES, json.dumps(commands)],
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "warning", "PYTHONWARNINGS": "default"},
    )
    os.close(slave)
    process.stdin.write(json.dumps(STEERING).encode())
    process.stdin.close()
    output = b""
    with suppress(OSError):  # the end of a terminal
        while content := os.read(master, 1 << 16):
            output += content
    assert process.wait() == 0, output
    check(output.decode(), STEERING)
    assert "PASSED" in output.decode()
    assert output.decode().count(printable(STEERING.partition("\n")[0])) >= 4
