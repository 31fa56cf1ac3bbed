"""Text from outside as it leaves: to the terminal, in Markdown and in HTML.

Names of folders, strings of configs and recipes, and messages of other libraries may hold anything. Each place where
text leaves has one function here that makes it harmless; JSON has the escapes of its own writer. What rich draws is in
`growth.runtime.terminal`.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

from growth.errors import printable

# a backslash before any of them is the character itself (CommonMark 0.31, 2.4); "-", "+" and "=" matter only where
# a line begins
_SPECIAL = re.compile(r"""([\\`*_{}\[\]<>()#!|~&@:.$^"]|^[-+=])""")


def markdown(text: str) -> str:
    r"""A text that Markdown renders as it is: no markup, link, HTML, cell, indent or line end of it has any effect.

    >>> print(markdown("a|b <b>*c*</b>\n---"))
    a\|b \<b\>\*c\*\</b\>\\n---
    """
    return _SPECIAL.sub(r"\\\1", printable(text).strip(" "))


def html_text(text: str) -> str:
    """A text for the content or a quoted attribute of an HTML element.

    >>> html_text("<b title='x'>")
    '&lt;b title=&#x27;x&#x27;&gt;'
    """
    import html  # with a table of all entities

    return html.escape(printable(text))


# ------------------------------------------------- the terminal

# what a progress bar of tqdm (the hub's downloads) writes at a time to draw its line again
_REDRAWN = re.compile(r"(\r|\n*(?:\x1b\[A)*\Z)([^\r\n]*)")
INDENT = "    "  # of further lines that a library writes to stderr


class Printable(io.TextIOBase):
    """A stream that writes the printable form of all text; what its owner has made printable goes to `stream`.

    A text that a library writes may have several lines: those behind the first are indented, so that none of them
    passes for a line of ours.
    """

    def __init__(self, stream: TextIO, indent: str = ""):
        self.stream, self._indent = stream, indent

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's."""
        return self.stream.encoding

    def write(self, text: str, /) -> int:
        """Writes a text; of control characters only those stay with which a progress bar begins its line again."""
        redrawn = _REDRAWN.fullmatch(text)
        start, rest = redrawn.groups() if redrawn else ("", text)
        first, *more = map(printable, rest.split("\n"))
        self.stream.write(start + "\n".join([first, *(self._indent + line if line else "" for line in more)]))
        return len(text)

    def writable(self) -> bool:
        """It is."""
        return True

    def flush(self) -> None:
        """Flushes the stream."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """The stream's."""
        return self.stream.fileno()


@contextmanager
def printable_streams() -> Iterator[None]:
    """Makes all that is written to stdout and stderr printable: warnings, log records and errors of any library."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Printable(sys.stdout), Printable(sys.stderr, INDENT)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def stream_below(err: bool = False) -> TextIO:
    """Stdout or stderr as they are for text that is printable already, and styled."""
    stream = sys.stderr if err else sys.stdout
    return stream.stream if isinstance(stream, Printable) else stream


def say(*lines: str, mark: str = "", color: Literal["red", "green", ""] = "", err: bool = False) -> None:
    """Prints lines, each made printable, behind a coloured mark."""
    import typer  # not click, of which typer may have a copy of its own

    styled = typer.style(mark, fg=color or None, bold=True) if mark else ""
    typer.echo(styled + "\n".join(map(printable, lines)), file=stream_below(err))
