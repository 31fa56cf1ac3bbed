"""A diagnosis as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Group
from rich.table import Table
from rich.text import Text

from growth.runtime.terminal import simple_table
from growth.training.axis_placement import Side
from growth.training.diagnosis import Copies, Diagnosis, FreshUnits, NewLayer, layer_name
from growth.training.divergence import State

STYLES: Mapping[State, str] = {
    "cannot tell": "dim",
    "identical": "bold red",
    "diverging": "yellow",
    "independent": "green",
}
SIDES: Mapping[Side, str] = {"written": "weights that write them", "read": "weights that read them"}


def diagnosis_tables(found: Diagnosis) -> Group:
    """The verdict, then a table for each question that has an answer."""
    tables = [_copies(found.copies), _axes(found), _new_layers(found.new_layers), _fresh(found.fresh)]
    left = f"Not compared, because copies share nothing: {', '.join(found.unmeasured)}."
    notes = [Text(left, "dim")] if found.unmeasured else []
    return Group(_verdict(found), *(table for table in tables if table.row_count), *notes)


def _verdict(found: Diagnosis) -> Text:
    if found.identical:
        return Text.assemble(("IDENTICAL", "bold red"), "  ", "; ".join(_identical(found)))
    if found.unclear:
        reasons = (f"copies along {axis}: {why}" for axis, why in found.unclear.items())
        return Text.assemble(("Cannot tell", "bold yellow"), "  ", "; ".join(reasons))
    if found.alike:
        near = (f"copies along {axis} hardly differ (distance {value:.1e})" for axis, value in found.alike.items())
        return Text.assemble(("No identical copies", "bold yellow"), "  ", "; ".join(near))
    return Text.assemble(("No identical copies", "bold green"), "" if found.copies else ": the recipe made none.")


def _identical(found: Diagnosis) -> Iterator[str]:
    for copies in found.copies:
        if copies.axis in found.identical and copies.side == "written":
            yield f"copies along {copies.axis} moved as one {_where(copies)}"


def _where(copies: Copies) -> str:
    """The layers with identical copies, and of how many units the copies are identical there if not of all."""
    if copies.identical == 1:
        return "everywhere"
    counted = (
        f"{layer_name(layer)} ({_counted(count, copies.groups[layer])})"
        for layer, count in copies.identical_groups.items()
    )
    return f"in layer {', '.join(counted)}"


def _counted(count: int, units: int) -> str:
    return f"all {units} units" if count == units else f"{count} of {units} units"


def _copies(copies: tuple[Copies, ...]) -> Table:
    numbers = ("apart", "rounding", "moved", "identical groups")
    table = simple_table("Copies", ("axis", "what", "state", *numbers), numbers=numbers)
    for found in copies:
        values = f"{found.apart:.1e}", f"{found.grain:.1e}", f"{found.moved:.1e}", f"{found.identical:.0%}"
        table.add_row(found.axis, SIDES[found.side], Text(found.state, STYLES[found.state]), *values)
    return table


def _axes(found: Diagnosis) -> Table:
    distances = {entry.axis: f"{entry.before:.2f} → {entry.after:.2f}" for entry in found.distances}
    ranks = {entry.axis: entry for entry in found.ranks}
    numbers = ("distance of copies", "effective rank", "units")
    table = simple_table("Grown axes, before → after training", ("axis", *numbers), numbers=numbers)
    for axis in sorted({**distances, **ranks}):
        rank = ranks.get(axis)
        shown = (f"{rank.before:.1f} → {rank.after:.1f}", str(rank.units)) if rank else ("", "")
        table.add_row(axis, distances.get(axis, "no copies"), *shown)
    return table


def _new_layers(layers: tuple[NewLayer, ...]) -> Table:
    branches = list(layers[0].gained) if layers else []
    numbers = ("layer", "copied from", *branches, "mean")
    table = simple_table("New layers, relative to the old ones' mean", numbers, numbers=numbers)
    for layer in layers:
        gained = (f"{layer.gained[end]:.1%}" if end in layer.gained else "" for end in branches)
        source = "random" if layer.source is None else str(layer.source)
        table.add_row(str(layer.layer), source, *gained, f"{layer.mean:.1%}")
    return table


def _fresh(fresh: tuple[FreshUnits, ...]) -> Table:
    rows = [(found.axis, SIDES[found.side], f"{found.before:.1%}", f"{found.after:.1%}") for found in fresh]
    columns = ("axis", "what", "before", "after")
    return simple_table("Fresh units, relative to old ones", columns, rows, numbers=("before", "after"))
