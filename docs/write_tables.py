"""Write the tables in README.md and docs/ that follow from the code, each between two comments: `make tables`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from docs import json_schema
from docs.pairs import pair_tables
from growth.architectures import FAMILIES
from growth.operators.registry import OPERATORS, RegisteredOperator
from growth.training.schedule import load_schedule, shipped_schedules
from growth.verification import metrics

DOCS = Path(__file__).parent
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): ")  # one or several, as a docstring describes them


def operator_summaries() -> str:
    """Return the table of operators in docs/operators.md."""
    rows = [row for operator in OPERATORS.values() for row in operator.summaries]
    lines = [f"| {row.use} | {row.effect} | {row.preserves} |" for row in rows]
    return "\n".join(["| operator | what it does | preserves the function |", "|---|---|---|", *lines])


def operator_sections() -> str:
    """Return a section on each operator: what its docstring says, and a table of the keys of a recipe's step."""
    return "\n\n".join(_section(name, operator) for name, operator in OPERATORS.items())


def family_list() -> str:
    """Return the README's list of families."""
    names = ", ".join(sorted(FAMILIES))
    listed = textwrap.fill(f"{names}.", 120, break_on_hyphens=False)
    return f"<details>\n<summary>{len(FAMILIES)} model families</summary>\n\n{listed}\n\n</details>"


def schedules_table() -> str:
    """Return the table of shipped schedules in docs/schedules.md."""
    found = [(path.stem, load_schedule(path)) for path in shipped_schedules()]
    rows = [f"| [{name}](../schedules/{name}.yaml) | {one.description} | {one.reference} |" for name, one in found]
    return "\n".join(["| schedule | what it does | follows |", "|---|---|---|", *rows])


def metrics_table() -> str:
    """Return the table of all metrics in docs/trust.md."""
    rows = [f"| `{name}` | {found.label} | {found.meaning} |" for name, found in metrics.METRICS.items()]
    return "\n".join(["| metric | in tables | meaning |", "|---|---|---|", *rows])


def _section(name: str, operator: RegisteredOperator) -> str:
    paragraphs, described = [], {}
    for paragraph in inspect.getdoc(operator.function).split("\n\n"):
        if ARGUMENT.match(paragraph):
            items = re.split(r"\n(?! )", paragraph)
            described = dict(re.sub(r"\s+", " ", item).split(": ", 1) for item in items)
        elif not paragraph.startswith(("Raises", ">>> ")):  # Markdown would quote an example
            paragraphs.append(paragraph)
    fields = operator.schema.model_fields.keys() - {"op"}
    keys = {key for names in described for key in names.split(", ")}
    assert fields == keys, f"the docstring of {name} leaves out {sorted(fields - keys)}, adds {sorted(keys - fields)}"
    rows = [
        f"| {_keys(names)} | {_default(operator, names)} | {text.rstrip('.')} |" for names, text in described.items()
    ]
    heading = f"## `op: {name}`{' (lossy)' if operator.lossy else ''}"
    table = ["\n".join(["| key | default | |", "|---|---|---|", *rows])] if rows else []
    example = f"Example: `{_flow({'op': name, **operator.example})}`"
    return "\n\n".join([heading, *paragraphs, *table, example])


def _flow(value: object) -> str:
    """Return a value as a YAML flow, as a recipe has it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    return str(value)


def _keys(names: str) -> str:
    first, *others = (f"`{name}`" for name in names.split(", "))
    return f"{', '.join([first, *others[:-1]])} or {others[-1]}" if others else first


def _default(operator: RegisteredOperator, names: str) -> str:
    """Return a key's default in words; of several keys one is needed."""
    if ", " in names:
        return "one of them"
    field = operator.schema.model_fields[names]
    if names == "seed":
        return "the recipe's"
    if field.is_required():
        return "required"
    return "–" if field.default is None else f"`{str(field.default).lower()}`"


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("../README.md", "families"): family_list,
    ("operators.md", "operators"): operator_summaries,
    ("json.md", "outputs"): json_schema.tables,
    ("pairs.md", "pairs"): pair_tables,
    ("recipes.md", "operators"): operator_sections,
    ("schedules.md", "schedules"): schedules_table,
    ("trust.md", "metrics"): metrics_table,
}


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
    json_schema.PATH.write_text(json_schema.schema())
