"""A rich console for tables and progress bars that escapes untrusted text and reads no markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
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
