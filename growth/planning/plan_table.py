"""A plan as tables: sizes before and after, what each operator preserves, and the error that rounding will make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from growth.planning.manifest import labelled, sizes
from growth.planning.stored_error import better_init, cast_error, expected_error, stored_errors, warnings
from growth.runtime.terminal import simple_table

if TYPE_CHECKING:
    from growth.planning.plan import Plan

SHOWN = 4  # names of a longer list


def plan_tables(plan: Plan) -> Group:
    """The sizes, the steps, and what else is to know."""
    yes, no = Text("yes", "green"), Text("no", "bold red")
    steps = ((step.operator, yes if step.preserving else no, step.why) for step in plan.growth.steps)
    lines = [*_stored_error_lines(plan), *(f"Warning: {text}" for text in warnings(plan))]
    lines += note_lines(plan.notes, plan.dropped)
    lines += [f"{prefix}: {count:,} tensor{'s' * (count != 1)}, unchanged" for prefix, count in plan.passing.items()]
    if plan.kept:
        lines.append(f"Config keys that stay as they are: {', '.join(plan.kept)}")
    return Group(_size_table(plan), simple_table("", ("operator", "preserving", "why"), steps), *map(Text, lines))


def tensor_table(plan: Plan) -> Table:
    """Every output tensor and how it is made."""
    table = simple_table("", ("tensor", "shape", "dtype", "from layer", "how"))
    table.columns[0].no_wrap = True
    for tensor_map in plan.tensors:
        layer = next((part for part in tensor_map.source.name.split(".") if part.isdigit()), "")
        table.add_row(
            tensor_map.target, " × ".join(map(str, tensor_map.shape)), tensor_map.dtype, layer, tensor_map.what
        )
    return table


def _size_table(plan: Plan) -> Table:
    verdict = "computes the same function" if plan.preserving else "lossy: another function"
    if plan.keeps_logits and not plan.preserving:
        verdict = "lossy: the same logits, and tokens that take some of the probability"
    numbers = ("before", "after", "ratio")
    table = simple_table(f"{_named(plan)} · {verdict}", ("", *numbers), numbers=numbers)
    before = dict(labelled(sizes(plan.source)))
    for name, size in labelled(sizes(plan.target)):
        _add_sizes(table, name, before[name], size)
    table.add_section()
    counts = plan.stored.parameters(), plan.parameters
    active = plan.stored.parameters(active=True), plan.target.parameters(active=True)
    _add_sizes(table, "parameters", *counts)
    if active != counts:
        _add_sizes(table, "active parameters", *active)
    _add_sizes(table, "bytes", sum(info.bytes for info in plan.sources.values()), plan.bytes)
    for key, value in plan.target.config.items():
        old = plan.source.config.get(key)
        if isinstance(old, float) and isinstance(value, float) and old != value:
            table.add_row(key, f"{old:g}", f"{value:g}", f"{value / old:.3g}×")
    return table


def _named(plan: Plan) -> str:
    """The family, and what its model is inside of, if it is a part of a larger one."""
    text, outer = plan.source.model_type, plan.source.outer
    whole = outer.wrapper.model_type if outer else text
    return text if whole == text else f"{text} in {whole}"  # a text model without a type of its own has the whole's


def _add_sizes(table: Table, name: str, old: int, new: int) -> None:
    ratio, style = (f"{new / old:.4g}×", "bold") if old != new else ("", "dim")
    table.add_row(name, f"{old:,}", f"{new:,}", ratio, style=style)


def _stored_error_lines(plan: Plan) -> Iterator[str]:
    """The error that rounding to the stored type is expected to make, and how to make it smaller."""
    errors, cast = stored_errors(plan), cast_error(plan)
    if not (errors or cast) or not plan.keeps_logits:
        return
    from_type = "/".join(sorted({tensor.source.dtype for tensor in plan.tensors if tensor.source.shape}))
    parts = {f"cast from {from_type}": cast, **errors} if cast else errors
    each = ", ".join(f"{name} {_or_zero(error)}" for name, error in parts.items())
    whole = _or_zero(expected_error(plan))
    yield f"Expected relative error of the logits as stored in {stored_types(plan)}: {whole} ({each})"
    for axis in errors:
        if better := better_init(plan, axis):
            yield f"  To reduce it, widen {axis} with {better}"


def stored_types(plan: Plan) -> str:
    """Return the types that the grown tensors are stored in."""
    return "/".join(sorted({tensor.dtype for tensor in plan.tensors}))


def _or_zero(error: float) -> str:
    return f"{error:.1e}" if error else "0"


def note_lines(notes: Sequence[str], dropped: Sequence[str]) -> Iterator[str]:
    """How a source was read: what was chosen, renamed or left out."""
    yield from (f"Note: {note}" for note in notes)
    if dropped:
        more = f" and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
        yield f"Left out, because the model class computes them: {', '.join(dropped[:SHOWN])}{more}"
