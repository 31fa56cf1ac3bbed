"""Write the tables in docs/ that follow from the code, each between two comments: `make tables`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from growth.verification.metrics import markdown_table

DOCS = Path(__file__).parent
TABLES: dict[tuple[str, str], Callable[[], str]] = {("trust.md", "metrics"): markdown_table}


def page(name: str) -> str:
    """Return a page of docs/ with the tables that it should have."""
    text = (DOCS / name).read_text()
    for (page_name, table), write in TABLES.items():
        if page_name == name:
            begin, end = f"<!-- table of {table}, made by `make tables` -->\n", "\n<!-- end of table -->"
            assert begin in text, f"docs/{name} has no line {begin.strip()}"
            body = f"{begin}{write()}{end}"
            text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _, body=body: body, text, flags=re.S)
    return text


if __name__ == "__main__":
    for name in {name for name, _ in TABLES}:
        (DOCS / name).write_text(page(name))
