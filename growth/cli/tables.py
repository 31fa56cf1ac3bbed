"""Tables and texts that the commands print for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from rich.console import RenderableType

from growth.planning.manifest import labelled
from growth.planning.plan_table import note_lines, tensor_table
from growth.runtime.logs import talkative
from growth.runtime.printable import say
from growth.runtime.terminal import PrintableConsole, simple_table

if TYPE_CHECKING:
    from growth.planning.plan import Plan
    from growth.verification.bitwise import WeightsReport
    from growth.verification.inspect import Inspection


def show(renderable: RenderableType) -> None:
    """Print what rich can render; every line of a text stays one line."""
    PrintableConsole().print(renderable, soft_wrap=True)


def show_table(found: Any) -> None:
    """Print the table that findings have."""
    show(found.table())


def show_verdict(found: Any) -> None:
    """Print the table that findings have, or with --quiet their verdict alone."""
    show(found.table() if talkative() else found.headline())


def show_plan(plan: Plan, *, tensors: bool) -> None:
    """Print sizes before and after and what each operator preserves; tensors: list every tensor too."""
    show_table(plan)
    if tensors:
        show(tensor_table(plan))


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
    if lines := list(note_lines(found.notes, found.dropped)):
        say(*lines)


def show_weights(report: WeightsReport) -> None:
    """Print the verdict of a comparison of weights, then each difference and warning."""
    problems = (f"  {name}: {text}" for name, text in report.problems.items())
    warnings = (f"  warning: {name}: {text}" for name, text in report.warnings.items())
    color: Literal["green", "red"] = "green" if report.passed else "red"
    say(f"  {report.verdict()}", *problems, *warnings, mark="PASSED" if report.passed else "FAILED", color=color)


def show_shipped(kind: str, descriptions: Mapping[str, str]) -> None:
    """Print the shipped files of a kind: recipes or schedules."""
    show(simple_table(f"Shipped {kind}", ("name", "description"), descriptions.items()))
