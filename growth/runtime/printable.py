"""Untrusted text made harmless for the terminal, for Markdown and for HTML.

Names of folders, strings of configs and recipes, and messages of other libraries may contain anything. Each kind of
output has one function here that escapes them; JSON is escaped by its own writer, and text that rich draws by
`growth.runtime.terminal`.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

from growth.errors import printable

# a backslash escapes each of them (CommonMark 0.31, section 2.4); "-", "+" and "=" matter only at the start of a line
_SPECIAL = re.compile(r"""([\\`*_{}\[\]<>()#!|~&@:.$^"]|^[-+=])""")


def markdown(text: str) -> str:
    r"""Escape a text so that Markdown renders it as it is, without markup, links, HTML, table cells or line ends.

    >>> print(markdown("a|b <b>*c*</b>\n---"))
    a\|b \<b\>\*c\*\</b\>\\n---
    """
    return _SPECIAL.sub(r"\\\1", printable(text).strip(" "))


def html_text(text: str) -> str:
    """Escape a text for the content or a quoted attribute of an HTML element.

    >>> html_text("<b title='x'>")
    '&lt;b title=&#x27;x&#x27;&gt;'
    """
    import html  # slow: it has a table of all entities

    return html.escape(printable(text))


# ------------------------------------------------- the terminal

# what tqdm (the hub's downloads) writes to redraw the line of a progress bar
_REDRAWN = re.compile(r"(\r|\n*(?:\x1b\[A)*\Z)([^\r\n]*)")
INDENT = "    "  # before further lines that a library writes to stderr


class Printable(io.TextIOBase):
    """A stream that escapes all text; text that is printable already is written to `stream`.

    Further lines of a text are indented, so that no library's line can pass for one of this program.
    """

    def __init__(self, stream: TextIO, indent: str = ""):
        self.stream, self._indent = stream, indent

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As of the stream."""
        return self.stream.encoding

    def write(self, text: str, /) -> int:
        """Write a text; the only control characters that stay are those with which a progress bar redraws its line."""
        redrawn = _REDRAWN.fullmatch(text)
        start, rest = redrawn.groups() if redrawn else ("", text)
        first, *more = map(printable, rest.split("\n"))
        self.stream.write(start + "\n".join([first, *(self._indent + line if line else "" for line in more)]))
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """As of the stream."""
        return self.stream.fileno()


@contextmanager
def printable_streams() -> Iterator[None]:
    """Escape all text written to stdout and stderr: warnings, log records and errors of any library."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Printable(sys.stdout), Printable(sys.stderr, INDENT)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def stream_below(err: bool = False) -> TextIO:
    """Stdout or stderr without the escaping, for text that is printable already and styled."""
    stream = sys.stderr if err else sys.stdout
    return stream.stream if isinstance(stream, Printable) else stream


def say(*lines: str, mark: str = "", color: Literal["red", "green", ""] = "", err: bool = False) -> None:
    """Print lines, each escaped, after a coloured mark."""
    import typer  # not click: typer may carry its own copy

    styled = typer.style(mark, fg=color or None, bold=True) if mark and not os.environ.get("NO_COLOR") else mark
    typer.echo(styled + "\n".join(map(printable, lines)), file=stream_below(err))
