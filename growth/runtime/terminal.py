"""A rich console for tables and progress bars that escapes untrusted text and reads no markup."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from growth.errors import printable
from growth.runtime.printable import stream_below


class PrintableConsole(Console):
    """A console on stdout or stderr that draws all text escaped, and none of it as markup."""

    def __init__(self, *, err: bool = False):
        super().__init__(file=stream_below(err), markup=False, emoji=False, highlight=False)

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
