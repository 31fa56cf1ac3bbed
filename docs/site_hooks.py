"""What the site makes of pages that are also read in the repository.

Links out of docs/ become text, and links whose text is the name of a page have its title. Code in tables breaks
between words and in long names, and nowhere else. A page with a wide table gives it the place of the table of
contents, and the first page has no list of pages.
"""

import re
from os.path import dirname, join, normpath

NAMED = re.compile(r"\[(?:docs/)?[\w/-]+\.md\]\(([\w./-]+\.md)((?:#[\w-]+)?)\)")
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!study)[^)]*\)")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
INTERVAL = re.compile(r"\(([^ )]+) … ([^ )]+)\)")
CODE = re.compile(r"(<code>)([^<]*)(</code>)")
WIDE = 8  # columns
LONG = 24  # characters of a name that may break at its underscores


def on_page_markdown(markdown, page, config, **_):
    """Call pages by their titles, and keep only the text of links to files outside of docs/."""
    titles = dict(_titles(config.nav))
    markdown = NAMED.sub(
        lambda link: f"[{titles.get(_from_docs(link[1], page), link[1])}]({link[1]}{link[2]})", markdown
    )
    if any(line.count("|") > WIDE for line in re.findall(r"^\|[-:|\s]+\|$", markdown, re.MULTILINE)):
        page.meta["hide"] = ["toc"]
    if page.parent is None:  # the first page has no others beside it
        page.meta["hide"] = ["navigation"]
    return OUTSIDE.sub(r"\1", markdown) if "/" not in page.file.src_uri else markdown.replace("](../../", "](../")


def _titles(nav):
    """Yield each page of the navigation and its title there."""
    for entry in nav:
        for title, inside in entry.items():
            yield from _titles(inside) if isinstance(inside, list) else [(inside, title)]


def _from_docs(link, page):
    """The path from docs/ of what a page links to."""
    return normpath(join(dirname(page.file.src_uri), link))


def on_page_content(html, **_):
    """State where code and intervals in tables may break, and which tables are wide."""
    return TABLE.sub(lambda table: _wide(CODE.sub(_code, INTERVAL.sub(r"(\1&nbsp;…&nbsp;\2)", table[0]))), html)


def _wide(table):
    columns = table.partition("</thead>")[0].count("<th")
    return table.replace("<table>", "<table data-wide>", 1) if columns > WIDE else table


def _code(code):
    return code[1] + " ".join(map(_word, code[2].replace(r"\|", "|").split(" "))) + code[3]


def _word(word):
    """A word as parts that stay whole."""
    parts = re.split(r"(?<=[/_])" if len(word) > LONG else r"(?<=/)", word)
    return "<wbr>".join(f"<span>{part}</span>" for part in parts if part)
