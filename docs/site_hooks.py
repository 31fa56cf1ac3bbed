"""What the site makes of pages that are also read in the repository.

Links out of docs/ become text. Code in tables breaks between words and in long names, and nowhere else. A page with a
wide table gives it the place of the table of contents.
"""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!study)[^)]*\)")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
INTERVAL = re.compile(r"\(([^ )]+) … ([^ )]+)\)")
CODE = re.compile(r"(<code>)([^<]*)(</code>)")
WIDE = 8  # columns
LONG = 24  # characters of a name that may break at its underscores


def on_page_markdown(markdown, page, **_):
    """Keep the text of links to files outside of docs/, such as ../examples/plain_loop.py."""
    if any(line.count("|") > WIDE for line in re.findall(r"^\|[-:|\s]+\|$", markdown, re.MULTILINE)):
        page.meta["hide"] = ["toc"]
    return OUTSIDE.sub(r"\1", markdown) if "/" not in page.file.src_uri else markdown.replace("](../../", "](../")


def on_page_content(html, **_):
    """State where code and intervals in tables may break, and which tables are wide."""
    return TABLE.sub(lambda table: _wide(CODE.sub(_code, INTERVAL.sub(r"(\1&nbsp;…&nbsp;\2)", table[0]))), html)


def _wide(table):
    columns = table.partition("</thead>")[0].count("<th")
    return table.replace("<table>", "<table data-wide>", 1) if columns > WIDE else table


def _code(code):
    return code[1] + " ".join(map(_word, code[2].split(" "))) + code[3]


def _word(word):
    """A word as parts that stay whole."""
    parts = re.split(r"(?<=[/_])" if len(word) > LONG else r"(?<=/)", word)
    return "<wbr>".join(f"<span>{part}</span>" for part in parts if part)
