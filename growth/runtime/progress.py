"""Progress bars, on a terminal and in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from growth.runtime.logs import talkative
from growth.runtime.printable import html_text, printable_streams
from growth.runtime.workers import Progress

REDRAW_SECONDS = 0.1
BAR = 40  # characters

P = ParamSpec("P")
R = TypeVar("R")
Unit = Literal["bytes", "layers"]


def draws_progress(unit: Unit) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function with a keyword `progress` draw bars where it is given none."""

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def drawing(*arguments: P.args, **keywords: P.kwargs) -> R:
            if keywords.get("progress") is not None:
                return function(*arguments, **keywords)
            with progress_bars(unit) as progress:
                keywords["progress"] = progress
                return function(*arguments, **keywords)

        return drawing

    return decorated


@contextmanager
def progress_bars(unit: Unit) -> Iterator[Progress]:
    """Yield a function that draws one bar per phase: on stderr where that is a terminal, or below a notebook's cell."""
    if not talkative():
        yield ignore
    elif in_notebook():
        yield NotebookBars()
    elif not sys.stderr.isatty():
        yield ignore
    else:
        with _terminal_bars(unit) as progress:
            yield progress


def ignore(phase: str, done: int, total: int) -> None:
    """Draw nothing."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can draw HTML and replace it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


class NotebookBars:
    """Draws bars as HTML text in a notebook, each time in the place of those before."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[int, int]] = {}
        self._drawn = 0.0
        self._shown: Any = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Draw the progress of a phase."""
        self._phases[phase] = done, total
        if done < total and time.monotonic() - self._drawn < REDRAW_SECONDS:
            return
        from IPython.display import HTML, display

        self._drawn = time.monotonic()
        page = HTML(f'<pre style="line-height:1.25">{html_text_lines(self._phases)}</pre>')
        if self._shown is None:
            self._shown = display(page, display_id=True)
        else:
            self._shown.update(page)


def html_text_lines(phases: dict[str, tuple[int, int]]) -> str:
    r"""Bars as lines of escaped text.

    >>> print(html_text_lines({"grow": (1, 2)}))
    grow           ━━━━━━━━━━━━━━━━━━━━                      50 %
    """
    shares = {phase: done / total if total else 1.0 for phase, (done, total) in phases.items()}
    lines = (
        f"{html_text(phase):14} {'━' * round(BAR * share):{BAR}} {100 * share:3.0f} %"
        for phase, share in shares.items()
    )
    return "\n".join(lines)


@contextmanager
def _terminal_bars(unit: Unit) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from growth.runtime.terminal import PrintableConsole

    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description:14}", markup=False), BarColumn(), count, TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    refreshed = 0.0
    # without a thread that redraws: a process that has one cannot fork
    bars = rich_progress.Progress(*columns, console=PrintableConsole(err=True), transient=True, auto_refresh=False)
    with bars, printable_streams():

        def progress(phase: str, done: int, total: int) -> None:
            nonlocal refreshed
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)
            if done == total or time.monotonic() - refreshed > REDRAW_SECONDS:
                bars.refresh()
                refreshed = time.monotonic()

        yield progress
