"""A verification report as a terminal shows it."""

import io
import re

from rich.console import Console


def shown(report, width=100):
    """The text of a report on a terminal of a width."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.table())
    return console.export_text()


def words(text):
    """A text with every run of white space as one space."""
    return re.sub(r"\s+", " ", text)
