"""diagnose: what training made of a grown model, read from the weights alone (docs/diagnose.md).

Four questions about a checkpoint that was trained from a grown one, each answered by a measure that undoes the
coefficients of the growth:

- Did copies diverge? The signal of a copy is `write` times that of its unit, so the movement of what writes a copy is
  divided by `write`. Of what reads a copy only the sign is undone: the gradient of a reader does not depend on its
  share. `growth.training.divergence` has the measure.
- How much does each grown axis hold? The distance of the weights that write copies, and the effective rank of a matrix
  that writes the axis (`growth.training.effective_rank`), before and after training.
- How much do identity layers contribute? The Frobenius norm of the weights that end their residual branches, relative
  to the root mean square of the layers that were there before: it bounds what a branch adds to the stream, and starts
  at zero.
- How large are fresh units? The root mean square of their weights relative to the old units', for what writes them and
  for what reads them, before and after training. The ends of identity layers are left out: old units start at zero too.

Gains of norms are left out of all but the third: a gain scales a unit and does not make one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from growth.architectures import architecture
from growth.architectures.base import Architecture
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.hub import resolve
from growth.checkpoints.open import open_checkpoint
from growth.errors import CheckpointError
from growth.planning.check import match_tensors
from growth.planning.manifest import expansion_from, read_manifest, sizes
from growth.runtime.shown import Shown
from growth.training.axis_placement import QUERY_HEADS, Side
from growth.training.checkpoint_pair import CheckpointPair
from growth.training.divergence import (
    ROUNDING,
    DivergenceSums,
    State,
    UnitSums,
    copy_distances,
    identical_limit,
    identical_units,
    moved_units,
)
from growth.training.measurement import ByLayer, FreshSums, Measurement

ALIKE = 0.01  # distance below which copies hardly differ; independent ones measure 1.41

if TYPE_CHECKING:
    from rich.console import Group

Verdict = Literal["identical", "cannot tell", "not identical", "no copies"]


@dataclass(frozen=True)
class Copies:
    """How far the copies along an axis diverged, in what writes or in what reads them.

    state: identical, diverging or independent; or "cannot tell", for the reason `why`.
    apart: 0 where copies move as one, 1 where they move independently (`growth.training.divergence`).
    moved: the movement relative to the weights.
    grain: the rounding of the trained checkpoint's dtype, relative to the movement.
    floor: the largest `apart` that this rounding explains; 0 where copies started from equal values, which are rounded
        alike.
    layers: `apart` of each layer in which anything moved; None stands for what is outside of layers.
    groups: by layer, the number of groups of copies that moved; a group is all copies of one unit.
    identical_groups: by layer, the number of groups that moved as one, where there are any.
    """

    axis: str
    side: Side
    state: State
    why: str
    apart: float
    moved: float
    grain: float
    floor: float
    layers: ByLayer[float]
    groups: ByLayer[int]
    identical_groups: ByLayer[int]

    @property
    def identical(self) -> float:
        """The fraction of the groups of copies, layer by layer, that moved as one."""
        return sum(self.identical_groups.values()) / max(1, sum(self.groups.values()))

    @property
    def identical_layers(self) -> tuple[int | None, ...]:
        """The layers in which copies moved as one."""
        return tuple(self.identical_groups)

    @property
    def limit(self) -> float:
        """The largest `apart` that does not show that copies diverged."""
        return max(identical_limit(self.grain), ROUNDING * self.floor)


@dataclass(frozen=True)
class CopyDistance:
    """How different the weights are that write copies: 0 where they are equal, 1.41 where they are independent.

    before, after: the mean over units and layers, before and after training.
    layers: the mean over units of each layer after training.
    """

    axis: str
    before: float
    after: float
    layers: ByLayer[float]


@dataclass(frozen=True)
class AxisRank:
    """The effective rank of a matrix that writes a grown axis: `tensor`, seen as one row for each of the axis's units.

    before, after: the effective rank before and after training.
    units: the number of the axis's units.
    """

    axis: str
    tensor: str
    units: int
    before: float
    after: float


@dataclass(frozen=True)
class FreshUnits:
    """The size of fresh units' weights relative to the old units', in what writes or in what reads them.

    before, after: ratios of root mean squares before and after training.
    layers: the ratio of each layer after training.
    """

    axis: str
    side: Side
    before: float
    after: float
    layers: ByLayer[float]


@dataclass(frozen=True)
class NewLayer:
    """A new layer: `gained` is the norm of each branch's last weight relative to the old layers' mean.

    source: the layer that it copies; None if its values are random.
    """

    layer: int
    source: int | None
    gained: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The root mean square over the branches."""
        return math.sqrt(sum(value**2 for value in self.gained.values()) / len(self.gained))


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """The findings of `diagnose`; `unmeasured` names the axes whose copies it does not compare.

    >>> import growth, tempfile, pathlib
    >>> init = pathlib.Path(tempfile.mkdtemp()) / "init"
    >>> plan = growth.grow("double-depth", "examples/phi-mini", init)
    >>> found = growth.diagnose(init, init)  # not trained yet
    >>> found.verdict, [layer.layer for layer in found.new_layers]
    ('no copies', [1, 3, 5, 7, 9, 11])
    """

    init: str
    trained: str
    copies: tuple[Copies, ...]
    distances: tuple[CopyDistance, ...]
    ranks: tuple[AxisRank, ...]
    fresh: tuple[FreshUnits, ...]
    new_layers: tuple[NewLayer, ...]
    unmeasured: tuple[str, ...]

    @property
    def identical(self) -> dict[str, tuple[int | None, ...]]:
        """The axes with identical copies, and the layers in which the weights that write these copies moved alike."""
        return {copies.axis: copies.identical_layers for copies in self._written if copies.identical_layers}

    @property
    def alike(self) -> dict[str, float]:
        """The distance of copies after training, by axis, where it is below `ALIKE` but copies are not identical."""
        near = {found.axis: found.after for found in self.distances if found.after < ALIKE}
        return {axis: distance for axis, distance in near.items() if axis not in self.identical}

    @property
    def unclear(self) -> dict[str, str]:
        """The axes for which no verdict is possible, each with the reason."""
        return {copies.axis: copies.why for copies in self._written if copies.state == "cannot tell"}

    @property
    def verdict(self) -> Verdict:
        """Whether any copies are identical."""
        if self.identical:
            return "identical"
        if self.unclear:
            return "cannot tell"
        return "not identical" if self.copies else "no copies"

    @property
    def _written(self) -> list[Copies]:
        """How copies diverged in what writes them, which decides whether they compute the same."""
        return [copies for copies in self.copies if copies.side == "written"]

    def to_dict(self) -> dict[str, Any]:
        """The findings as values that `json.dumps` accepts."""
        return {
            "init": self.init,
            "trained": self.trained,
            "verdict": self.verdict,
            "cannot_tell": self.unclear,
            "identical": {axis: list(map(layer_name, layers)) for axis, layers in self.identical.items()},
            "copies": [
                {
                    **_by_layer_name(copies),
                    "identical": copies.identical,
                    "identical_layers": list(map(layer_name, copies.identical_layers)),
                }
                for copies in self.copies
            ],
            "alike": self.alike,
            "distances": list(map(_by_layer_name, self.distances)),
            "ranks": list(map(asdict, self.ranks)),
            "fresh": list(map(_by_layer_name, self.fresh)),
            "new_layers": [{**asdict(layer), "mean": layer.mean} for layer in self.new_layers],
            "unmeasured": list(self.unmeasured),
        }

    def table(self) -> Group:
        """The findings for a terminal."""
        from growth.training.diagnosis_tables import diagnosis_tables

        return diagnosis_tables(self)


def layer_name(layer: int | None) -> str:
    """The number of a layer as text, or what stands for everything outside of layers."""
    return "outside layers" if layer is None else str(layer)


def _by_layer_name(found: Copies | CopyDistance | FreshUnits) -> dict[str, Any]:
    return {
        key: {layer_name(layer): one for layer, one in value.items()} if isinstance(value, dict) else value
        for key, value in asdict(found).items()
    }


def diagnose(init: str | Path, trained: str | Path) -> Diagnosis:
    """Check whether copies diverged, new layers contribute and fresh units grew.

    init: what `grow` wrote, with its growth.json: a folder or a hub id.
    trained: a checkpoint that was trained from it: a folder or a hub id.

    Tensors are read in blocks. Memory holds sums for each copied unit, and one Gram matrix at a time.

    Raises:
        CheckpointError: init has no growth.json, or one of another geometry; the trained checkpoint has another
            geometry or other tensor names, or holds NaN or Inf.

    >>> import growth, tempfile, pathlib
    >>> init = pathlib.Path(tempfile.mkdtemp()) / "init"
    >>> recipe = growth.chain(growth.widen("ffn", factor=2, init="tile"), growth.deepen(to=8))
    >>> plan = growth.grow(recipe, "examples/phi-mini", init)
    >>> found = growth.diagnose(init, init)
    >>> found.verdict, found.copies[0].why, [layer.layer for layer in found.new_layers], found.new_layers[0].mean
    ('cannot tell', 'no weight of them has changed', [1, 5], 0.0)
    >>> found.distances[0].before, found.ranks[0].tensor, found.ranks[0].units
    (0.0, 'model.layers.4.mlp.fc1.weight', 1024)
    """
    manifest, before, after, table = _opened(resolve(init), resolve(trained))
    new_layers = {
        number: layer["source"]
        for number, layer in enumerate(manifest["layers"])
        if layer["silent"] or layer["source"] is None
    }
    expansions = {name: expansion_from(entry) for name, entry in manifest["axes"].items()}
    if manifest.get("query_heads"):
        expansions[QUERY_HEADS] = expansion_from(manifest["query_heads"])
    measured = Measurement(table, expansions, new_layers)
    measured.read(CheckpointPair(before.tensors, after.tensors))
    divergence = sorted(measured.divergence.items(), key=lambda item: _order(item[0]))
    return Diagnosis(
        str(init),
        str(trained),
        tuple(_copies(*key, layers) for key, layers in divergence),
        tuple(_distance(axis, layers) for (axis, side), layers in divergence if side == "written"),
        tuple(AxisRank(axis, *measured.ranks[axis]) for axis in sorted(measured.ranks)),
        tuple(_fresh(*key, measured.fresh[key]) for key in sorted(measured.fresh, key=_order)),
        _new_layers(measured.branch_ends, new_layers),
        tuple(
            name
            for name, axis in table.axes.items()
            if axis.external and name in expansions and expansions[name].copied.any()
        ),
    )


def _opened(init: Path, trained: Path) -> tuple[dict[str, Any], Checkpoint, Checkpoint, Architecture]:
    before, after = open_checkpoint(init), open_checkpoint(trained)
    manifest = read_manifest(init)
    if manifest is None:
        raise CheckpointError(
            f"{init} has no growth.json that this version reads, so nothing tells its copies from its fresh units. "
            "Name the folder that growth grow wrote, as it was before training."
        )
    table = architecture(before.config).named_as_in(before.tensors)
    match_tensors(table, before.tensors)
    if manifest["sizes"]["after"] != sizes(table):
        raise CheckpointError(
            f"{init / 'growth.json'} states the sizes {manifest['sizes']['after']}, and config.json beside it "
            f"{sizes(table)}: one of the two belongs to another checkpoint. Grow it again."
        )
    for name, shape in table.shapes().items():
        found = after.tensors.get(name)
        if found is None:
            raise CheckpointError(
                f"{trained} has no tensor '{name}', which {init} has: it was not trained from it, or was saved under "
                "other names. Name the checkpoint that was trained from this growth."
            )
        if found.shape != shape:
            raise CheckpointError(
                f"Tensor '{name}' has shape {list(found.shape)} in {trained} and {list(shape)} in {init}: they are of "
                "different geometry. Name the checkpoint that was trained from this growth."
            )
    if more := sorted(after.tensors.keys() - table.shapes().keys()):
        raise CheckpointError(
            f"{trained} has {len(more)} tensors that {init} lacks, such as '{more[0]}': it has grown since then, as by "
            "a GrowthCallback. Name a checkpoint from before that growth."
        )
    match_tensors(table, after.tensors)
    return manifest, before, after, table


# ------------------------------------------------- from measurements to findings


def _order(key: tuple[str, Side]) -> tuple[str, bool]:
    return key[0], key[1] == "read"


def _copies(axis: str, side: Side, layers: ByLayer[UnitSums]) -> Copies:
    sums = {layer: DivergenceSums.over(units) for layer, units in layers.items()}
    total = DivergenceSums.over(np.sum(list(layers.values()), axis=0))
    groups = {layer: moved_units(units) for layer, units in layers.items()}
    identical = {layer: _identical_groups(units, sums[layer], total) for layer, units in layers.items()}
    return Copies(
        axis,
        side,
        total.state,
        total.unclear,
        apart=total.apart,
        moved=math.sqrt(total.moved / total.weights) if total.weights else 0.0,
        grain=total.grain,
        floor=total.floor,
        layers={layer: found.apart for layer, found in sums.items() if found.moved},
        groups=groups,
        identical_groups={layer: count for layer, count in identical.items() if count},
    )


def _identical_groups(units: UnitSums, layer: DivergenceSums, total: DivergenceSums) -> int:
    """How many groups of copies moved as one in a layer; single groups show nothing where all together do not."""
    if _is_identical(layer, total):
        return moved_units(units)
    return 0 if total.unclear else identical_units(units)


def _is_identical(layer: DivergenceSums, total: DivergenceSums) -> bool:
    """Whether all copies moved as one in a layer, as shown by this layer alone or by all layers together."""
    return layer.state == "identical" or (total.state == "identical" and layer.moved > 0 and layer.moves_as_one)


def _distance(axis: str, layers: ByLayer[UnitSums]) -> CopyDistance:
    found = {layer: copy_distances(units) for layer, units in layers.items()}
    before, after = np.concatenate(list(found.values()), axis=1).mean(1).tolist()
    late = {layer: float(both[1].mean()) for layer, both in found.items() if both.size}
    return CopyDistance(axis, before, after, late)


def _fresh(axis: str, side: Side, layers: ByLayer[FreshSums]) -> FreshUnits:
    ratios = {layer: sums.ratios() for layer, sums in layers.items()}
    before, after = np.sqrt(np.mean(np.square(list(ratios.values())), axis=0))  # every layer counts the same
    return FreshUnits(axis, side, float(before), float(after), {layer: late for layer, (_, late) in ratios.items()})


def _new_layers(
    branch_ends: Mapping[str, Mapping[int, float]], new_layers: Mapping[int, int | None]
) -> tuple[NewLayer, ...]:
    gained: dict[int, dict[str, float]] = {layer: {} for layer in new_layers}
    for end, energy in branch_ends.items():
        old = [value for layer, value in energy.items() if layer not in new_layers]
        for layer in new_layers.keys() & energy.keys() if old else ():
            gained[layer][end] = math.sqrt(energy[layer] / np.mean(old))
    return tuple(NewLayer(layer, new_layers[layer], ends) for layer, ends in gained.items() if ends)
