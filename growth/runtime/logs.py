"""What growth says beside its results: log records, hints and progress bars, by the level of one standard logger.

`logging.getLogger("growth").setLevel(logging.WARNING)` turns hints and progress bars off.
"""

from __future__ import annotations

import logging
import sys

from growth.runtime.printable import say

LOGGER = logging.getLogger("growth")


def talkative() -> bool:
    """Whether hints and progress bars are shown: unless the level of growth's own logger is set above INFO."""
    return LOGGER.level <= logging.INFO


def hint(*lines: str, err: bool = False) -> None:
    """Print lines that are no result, where hints are shown."""
    if talkative():
        say(*lines, err=err)


def set_loudness(*, quiet: bool, verbose: bool) -> None:
    """Print no hints and progress bars, or log records on stderr too; the command line's --quiet and --verbose."""
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.NOTSET)
    if verbose:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        LOGGER.addHandler(handler)
