"""A diagnosis as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from growth.training.axis_placement import Side
from growth.training.diagnosis import Copies, Diagnosis, FreshUnits, NewLayer, layer_name
from growth.training.divergence import State

STYLES: Mapping[State, str] = {"cannot tell": "dim", "locked": "bold red", "loosening": "yellow", "free": "green"}
SIDES: Mapping[Side, str] = {"written": "writes them", "read": "reads them"}
TEXTUAL = ("axis", "what", "state", "branch")  # columns


def diagnosis_tables(found: Diagnosis) -> Group:
    """The verdict, then a table for each question that has an answer."""
    parts: list[RenderableType] = [_verdict(found)]
    parts += [_copies(found.copies)] if found.copies else []
    parts += [_new_layers(found.new_layers)] if found.new_layers else []
    parts += [_fresh(found.fresh)] if found.fresh else []
    if found.unmeasured:
        parts.append(Text(f"Not compared, because copies share nothing: {', '.join(found.unmeasured)}.", "dim"))
    return Group(*parts)


def _verdict(found: Diagnosis) -> Text:
    if found.locked:
        return Text.assemble(("LOCKED", "bold red"), "  ", "; ".join(_locks(found)))
    if found.unclear:
        reasons = (f"copies along {axis}: {why}" for axis, why in found.unclear.items())
        return Text.assemble(("Cannot tell", "bold yellow"), "  ", "; ".join(reasons))
    return Text.assemble(("No symmetry lock", "bold green"), "" if found.copies else ": the growth made no copies.")


def _locks(found: Diagnosis) -> Iterator[str]:
    everywhere = {copies.axis: len(copies.layers) for copies in found.copies if copies.side == "written"}
    for axis, layers in found.locked.items():
        where = "everywhere" if len(layers) == everywhere[axis] else f"in layer {', '.join(map(layer_name, layers))}"
        yield f"copies along {axis} moved as one {where}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in TEXTUAL else "right")
    return table


def _copies(copies: tuple[Copies, ...]) -> Table:
    table = _table("Copies", "axis", "what", "state", "apart", "rounding", "moved", "locked groups")
    for found in copies:
        numbers = f"{found.apart:.1e}", f"{found.grain:.1e}", f"{found.moved:.1e}", f"{found.locked:.0%}"
        table.add_row(found.axis, SIDES[found.side], Text(found.state, STYLES[found.state]), *numbers)
    return table


def _new_layers(layers: tuple[NewLayer, ...]) -> Table:
    branches = list(layers[0].gained)
    table = _table("New layers, relative to the old ones' mean", "layer", "copied from", *branches, "mean")
    for layer in layers:
        gained = (f"{layer.gained[end]:.1%}" if end in layer.gained else "" for end in branches)
        table.add_row(str(layer.layer), str(layer.source), *gained, f"{layer.mean:.1%}")
    return table


def _fresh(fresh: tuple[FreshUnits, ...]) -> Table:
    table = _table("Fresh units, relative to old ones", "axis", "what", "before", "after")
    for found in fresh:
        table.add_row(found.axis, SIDES[found.side], f"{found.before:.1%}", f"{found.after:.1%}")
    return table
