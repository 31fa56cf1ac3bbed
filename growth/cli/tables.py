"""Tables and texts that the commands print for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from growth.planning.manifest import labelled, sizes
from growth.planning.stored_error import better_init, is_rescaled, stored_errors, stream_factor
from growth.runtime.printable import say
from growth.runtime.terminal import PrintableConsole, simple_table

if TYPE_CHECKING:
    from growth.planning.plan import Plan
    from growth.verification.bitwise import WeightsReport
    from growth.verification.inspect import Inspection

SHOWN = 4  # names of a longer list


def show(renderable: RenderableType) -> None:
    """Print what rich can render; every line of a text stays one line."""
    PrintableConsole().print(renderable, soft_wrap=True)


def show_table(found: Any) -> None:
    """Print the table that findings have."""
    show(found.table())


def show_plan(plan: Plan, *, tensors: bool) -> None:
    """Print sizes before and after and what each operator preserves; tensors: list every tensor too."""
    show(_size_table(plan))
    yes, no = Text("yes", "green"), Text("no", "bold red")
    steps = ((step.operator, yes if step.preserving else no, step.why) for step in plan.growth.steps)
    show(simple_table("", ("operator", "preserving", "why"), steps))
    show_stored_errors(plan)
    show_notes(plan.notes, plan.dropped)
    if plan.kept:
        say(f"Config keys that growth does not use, copied unchanged: {', '.join(plan.kept)}")
    if tensors:
        show(_tensor_table(plan))


def show_stored_errors(plan: Plan) -> None:
    """Print the error that rounding to the stored type is expected to make, and how to make it smaller."""
    errors = stored_errors(plan)
    if not errors or not plan.keeps_logits:
        return
    dtypes = "/".join(sorted({tensor.dtype for tensor in plan.tensors}))
    each = ", ".join(f"{axis} {_or_zero(error)}" for axis, error in errors.items())
    whole = _or_zero(math.hypot(*errors.values()))
    say(f"Expected relative error of the logits as stored in {dtypes}: {whole} ({each})")
    for axis in errors:
        if better := better_init(plan, axis):
            say(f"  To reduce it, widen {axis} with {better}")
    if (factor := stream_factor(plan)) > 1:
        kept = "Use norm_eps: rescale, which leaves the stream as it is, or run the model in bf16."
        remedy = "Run the model in bf16." if is_rescaled(plan, "residual") else kept
        say(
            f"Warning: the residual stream grows by a factor of {factor:.3g}, and fp16 activations may overflow. "
            f"{remedy}"
        )


def _or_zero(error: float) -> str:
    return f"{error:.1e}" if error else "0"


def show_notes(notes: Sequence[str], dropped: Sequence[str]) -> None:
    """Print how a source was read: what was chosen, renamed or left out."""
    for note in notes:
        say(f"Note: {note}")
    if dropped:
        more = f" and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
        say(f"Left out, because the model class computes them: {', '.join(dropped[:SHOWN])}{more}")


def show_inspection(folder: str, found: Inspection) -> None:
    """Print what a checkpoint folder contains."""
    geometry = ((name, f"{size:,}") for name, size in labelled(found.sizes))
    table = simple_table(f"{folder} ({found.model_type})", ("", ""), geometry)
    table.add_section()
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("bytes", f"{found.bytes / 1e9:.3f} GB in {found.files} file{'s' * (found.files > 1)}")
    for dtype, count in found.dtypes.items():
        table.add_row(dtype, f"{count:,} values")
    table.add_row("NaN or Inf", ", ".join(f"{name}: {count:,}" for name, count in found.not_finite.items()) or "none")
    table.add_row("can grow", found.problem or "yes")
    show(table)
    show_notes(found.notes, found.dropped)


def show_weights(report: WeightsReport) -> None:
    """Print the verdict of a comparison of weights, then each difference and warning."""
    problems = (f"  {name}: {text}" for name, text in report.problems.items())
    warnings = (f"  warning: {name}: {text}" for name, text in report.warnings.items())
    color: Literal["green", "red"] = "green" if report.passed else "red"
    say(f"  {report.verdict()}", *problems, *warnings, mark="PASSED" if report.passed else "FAILED", color=color)


def show_recipes(descriptions: Mapping[str, str]) -> None:
    """Print the shipped recipes."""
    show(simple_table("Shipped recipes", ("name", "description"), descriptions.items()))


def _size_table(plan: Plan) -> Table:
    verdict = "computes the same function" if plan.preserving else "lossy: another function"
    if plan.keeps_logits and not plan.preserving:
        verdict = "lossy: the same logits, and tokens that take some of the probability"
    numbers = ("before", "after", "ratio")
    table = simple_table(f"{plan.source.model_type} · {verdict}", ("", *numbers), numbers=numbers)
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
    for key, value in plan.config.items():
        old = plan.source.config.get(key)
        if isinstance(old, float) and isinstance(value, float) and old != value:
            table.add_row(key, f"{old:g}", f"{value:g}", f"{value / old:.3g}×")
    return table


def _add_sizes(table: Table, name: str, old: int, new: int) -> None:
    ratio, style = (f"{new / old:.4g}×", "bold") if old != new else ("", "dim")
    table.add_row(name, f"{old:,}", f"{new:,}", ratio, style=style)


def _tensor_table(plan: Plan) -> Table:
    table = simple_table("", ("tensor", "shape", "dtype", "from layer", "how"))
    table.columns[0].no_wrap = True
    for tensor_map in plan.tensors:
        layer = next((part for part in tensor_map.source.name.split(".") if part.isdigit()), "")
        table.add_row(
            tensor_map.target, " × ".join(map(str, tensor_map.shape)), tensor_map.dtype, layer, tensor_map.what
        )
    return table
