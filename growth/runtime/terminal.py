"""A rich console for tables and progress bars that escapes untrusted text and reads no markup."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from growth.errors import printable
from growth.runtime.printable import stream_below


class PrintableConsole(Console):
    """A console on stdout or stderr that draws all text escaped, and none of it as markup.

    In a notebook too, it writes to its file alone: rich would also display what it prints below the cell.
    """

    def __init__(self, *, err: bool = False, file: TextIO | None = None, **keywords: Any):
        file = file or stream_below(err)
        super().__init__(file=file, markup=False, emoji=False, highlight=False, force_jupyter=False, **keywords)

    def render_str(self, text: str, **keywords: Any) -> Text:
        """The text, escaped before it is laid out."""
        return super().render_str(printable(text), **keywords)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable; only rich's own control codes and line ends stay as they are."""
        shown = self._shown(renderable) if isinstance(renderable, Text) else renderable
        for segment in super().render(shown, options):
            if segment.control:
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)

    def _shown(self, text: Text) -> Text:
        """The text, escaped before it is laid out, with its styles."""
        if printable(text.plain) == text.plain:
            return text
        shown = text.blank_copy()
        for part in text.render(self):
            shown.append(printable(part.text), part.style)
        return shown


def simple_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[RenderableType]] = (), *, numbers: Collection[str] = ()
) -> Table:
    """A table with a line below its head; the columns named in `numbers` are aligned to the right."""
    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def titled_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Group:
    """A table below a title of any length."""
    return Group(Text(title, "bold"), simple_table("", columns, rows))


def drawn_text(renderable: RenderableType, width: int) -> str:
    """A renderable as plain text in lines of at most `width` characters, without colours."""
    console = PrintableConsole(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").split("\n"))


def drawn_html(renderable: RenderableType, width: int, form: str) -> str:
    """A renderable as HTML with its styles inline, its text escaped; `form` has the place `{code}` for it."""
    console = PrintableConsole(file=io.StringIO(), width=width, record=True)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format=form)
