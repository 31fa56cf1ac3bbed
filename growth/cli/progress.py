"""Progress bars on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from growth.runtime.printable import printable_streams

REDRAW_SECONDS = 0.1


@contextmanager
def progress_bars(unit: Literal["bytes", "layers"]) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (phase, done, total) that draws one bar per phase on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from growth.runtime.terminal import PrintableConsole

    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description:14}", markup=False), BarColumn(), count, TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    refreshed = 0.0
    # without a thread that redraws: a process that has one cannot fork
    bars = Progress(*columns, console=PrintableConsole(err=True), transient=True, auto_refresh=False)
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
