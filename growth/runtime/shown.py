"""Values that show themselves as a table: at a prompt, with `print`, and in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 110  # characters
PRE = '<pre style="line-height:1.25; white-space:pre; overflow-x:auto">{code}</pre>'


class Shown:
    """A value whose `table` is also its text and its HTML; rich is imported when it is shown."""

    def table(self) -> RenderableType:
        """What rich draws of it."""
        raise NotImplementedError

    def summary(self, width: int = WIDTH) -> str:
        """The table as plain text, in lines of at most `width` characters."""
        from growth.runtime.terminal import drawn_text

        return drawn_text(self.table(), width)

    def __repr__(self) -> str:
        return self.summary()

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from growth.runtime.terminal import drawn_html

        return drawn_html(self.table(), WIDTH, PRE)
