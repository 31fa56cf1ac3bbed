"""diagnose: what training has made of a growth, read from the weights alone.

Three questions about a checkpoint that was trained from a grown one, each answered by a measure that undoes the
coefficients with which the growth was made (docs/diagnose.md):

- Have copies parted? A copy's signal is `write` times its unit's. Hence what writes a copy is divided by `write`,
  and of what reads it only the sign is undone: the gradient of a reader does not know its share. For the movements
  m_j = (trained - init) / coefficient of the k copies of each unit,

      apart^2 = sum ||m_j - mean(m)||^2 / ((k - 1) / k sum ||m_j||^2)

  is 0 where copies move as one, 1 where each goes its own way (independent movements have that expectation).
- How much function do identity layers carry? The Frobenius norm of the weights that end their residual branches,
  relative to the mean (root of mean squares) of the layers that were there before: what a branch adds to the stream
  is bounded by it, and grows with it from zero.
- How large are fresh units? The root of mean squares of their weights relative to the old units', among what writes
  them and among what reads them, before and after; without the ends of identity layers, where old units start at
  zero too.

A norm's gain is left out of the first and the last: it scales a unit and does not make one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from growth.algebra.expansion import Booleans, Expansion, Floats, Integers, counts
from growth.algebra.spaces import VIEWS
from growth.architectures import architecture
from growth.architectures.base import Architecture, Weight, WeightPart
from growth.arrays.tensor_info import TensorInfo
from growth.arrays.torch_interop import TORCH_DTYPES, as_tensor
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.hub import resolve
from growth.checkpoints.open import open_checkpoint
from growth.checkpoints.tensor_reader import Files
from growth.engine.grow_tensor import FileSource, read_rows
from growth.errors import CheckpointError
from growth.planning.check import match_tensors
from growth.planning.manifest import expansion_from, read_manifest, sizes

Side = Literal["written", "read"]
State = Literal["cannot tell", "locked", "loosening", "free"]
Verdict = Literal["locked", "cannot tell", "not locked", "no copies"]

# Of copies that are pushed alike, float32 arithmetic tells the gradients apart by about 1e-7 of their size and Adam
# keeps ratios: 1e-5 leaves two digits for what accumulates. Random shares measure 1e-3 after one step (tests).
LOCKED = 1e-5
DIVERGING = 1e-3  # the least `apart` that copies with unequal shares had after a step of Adam
ENOUGH = 10  # values that rounding must have made different, had copies diverged that far
ROUNDING = 2.0  # times the most that rounding to the trained checkpoint's type can have put between copies
UNIFORM = 0.9995  # (mean |movement|)^2 over its mean square, from which on all weights moved by one amount
FREE = 0.5  # a quarter of the movement's energy is the copies' own; independent movements measure 1
BLOCK = 1 << 22  # bytes of a tensor that are worked on at a time

# ------------------------------------------------- what diagnose returns


@dataclass(frozen=True)
class Copies:
    """How far the copies along an axis have parted, in what writes or what reads them.

    state: locked, loosening or free; or "cannot tell", for the reason `why`.
    apart: see the module; by layer too, where anything moved, None for what is no layer's.
    moved: their movement relative to their weights.
    grain: the rounding of the trained checkpoint's type, relative to the movement.
    floor: the largest `apart` that this rounding explains; 0 where copies started from equal values, which are rounded
        alike.
    locked: the part of the groups of copies, tensor by tensor, that moved as one.
    locked_layers: the layers in which copies moved as one.
    """

    axis: str
    side: Side
    state: State
    why: str
    apart: float
    moved: float
    grain: float
    floor: float
    locked: float
    layers: Mapping[int | None, float]
    locked_layers: tuple[int | None, ...]

    @property
    def limit(self) -> float:
        """The largest `apart` that does not show that copies diverged."""
        return max(_limit(self.grain), ROUNDING * self.floor)


@dataclass(frozen=True)
class FreshUnits:
    """The size of fresh units' weights relative to the old units', in what writes or what reads them.

    before, after: ratios of root mean squares, in init and in the trained checkpoint; by layer after training.
    """

    axis: str
    side: Side
    before: float
    after: float
    layers: Mapping[int | None, float]


@dataclass(frozen=True)
class NewLayer:
    """An identity layer: `gained` is the norm of each branch's last weight relative to the old layers' mean."""

    layer: int
    source: int
    gained: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over the branches, root of mean squares."""
        return math.sqrt(sum(value**2 for value in self.gained.values()) / len(self.gained))


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; `unmeasured` names axes whose copies it does not compare."""

    init: str
    trained: str
    copies: tuple[Copies, ...]
    fresh: tuple[FreshUnits, ...]
    new_layers: tuple[NewLayer, ...]
    unmeasured: tuple[str, ...]

    @property
    def locked(self) -> dict[str, tuple[int | None, ...]]:
        """The axes whose copies still are one unit somewhere, and in which layers: what writes them moved alike."""
        return {copies.axis: copies.locked_layers for copies in self._written if copies.locked_layers}

    @property
    def unclear(self) -> dict[str, str]:
        """The axes of whose copies nothing can be said, and why."""
        return {copies.axis: copies.why for copies in self._written if copies.state == "cannot tell"}

    @property
    def verdict(self) -> Verdict:
        """Whether copies are locked: somewhere, nowhere, or not to be told; or there are none."""
        if self.locked:
            return "locked"
        if self.unclear:
            return "cannot tell"
        return "not locked" if self.copies else "no copies"

    @property
    def _written(self) -> tuple[Copies, ...]:
        return tuple(copies for copies in self.copies if copies.side == "written")

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON-able values."""
        return {
            "init": self.init,
            "trained": self.trained,
            "verdict": self.verdict,
            "cannot_tell": self.unclear,
            "locked": {axis: [_place(layer) for layer in layers] for axis, layers in self.locked.items()},
            "copies": [_jsonable(copies) for copies in self.copies],
            "fresh": [_jsonable(fresh) for fresh in self.fresh],
            "new_layers": [{**asdict(layer), "mean": layer.mean} for layer in self.new_layers],
            "unmeasured": list(self.unmeasured),
        }

    def table(self) -> Group:
        """The findings for a terminal."""
        parts: list[Any] = [_verdict(self)]
        parts += [_copies_table(self.copies)] if self.copies else []
        parts += [_layers_table(self.new_layers)] if self.new_layers else []
        parts += [_fresh_table(self.fresh)] if self.fresh else []
        if self.unmeasured:
            parts.append(Text(f"Not compared, because copies share nothing: {', '.join(self.unmeasured)}.", "dim"))
        return Group(*parts)


def _jsonable(found: Copies | FreshUnits) -> dict[str, Any]:
    locked = {"locked_layers": [_place(layer) for layer in found.locked_layers]} if isinstance(found, Copies) else {}
    return {**asdict(found), "layers": {_place(layer): value for layer, value in found.layers.items()}, **locked}


def _place(layer: int | None) -> str:
    return "outside layers" if layer is None else str(layer)


# ------------------------------------------------- diagnose


def diagnose(init: str | Path, trained: str | Path) -> Diagnosis:
    """Reads what training has made of a growth: parted copies, working new layers, fresh units that grew.

    init: what `grow` wrote, with its growth.json: a folder or a hub id.
    trained: a checkpoint that was trained from it, likewise.

    Tensors are read by blocks, so that memory does not depend on the model.

    Raises:
        CheckpointError: no growth.json, a growth.json of another geometry, or a trained checkpoint of another
            geometry or with other names.

    >>> import growth, tempfile, pathlib
    >>> init = pathlib.Path(tempfile.mkdtemp()) / "init"
    >>> plan = growth.grow("phi-mini", "examples/phi-mini", init)
    >>> found = growth.diagnose(init, init)
    >>> found.verdict, found.copies[0].why, [layer.layer for layer in found.new_layers], found.new_layers[0].mean
    ('cannot tell', 'no weight of them has changed', [1, 5], 0.0)
    """
    manifest, before, after, table = _opened(resolve(init), resolve(trained))
    silent = {n: layer["source"] for n, layer in enumerate(manifest["layers"]) if layer["silent"]}
    expansions = {name: expansion_from(entry) for name, entry in manifest["axes"].items()}
    ledger = _Accumulator(table, expansions, silent, _Pair(before.tensors, after.tensors))
    with _single_threaded():  # blocks are small
        for weight in table.weights:
            for layer, unit in weight.places(table.depth, table.length(weight.units)):
                ledger.enter(weight, weight.at(layer, unit), layer if weight.per_layer else None)
    return Diagnosis(
        str(init),
        str(trained),
        ledger.copies(),
        ledger.fresh(),
        ledger.new_layers(),
        tuple(name for name, e in expansions.items() if table.axes[name].outer and _has_copies(e)),
    )


def _opened(init: Path, trained: Path) -> tuple[dict[str, Any], Checkpoint, Checkpoint, Architecture]:
    before, after = open_checkpoint(init), open_checkpoint(trained)
    manifest = read_manifest(init)
    if manifest is None:
        raise CheckpointError(
            f"Cannot tell: {init} has no growth.json that this version reads, so nothing tells its copies from its "
            "fresh units. "
            "Name the folder that growth grow wrote, as it was before training."
        )
    table = architecture(before.config).named_as_in(before.tensors)
    match_tensors(table, before.tensors)
    if manifest["sizes"]["after"] != sizes(table):
        raise CheckpointError(
            f"{init / 'growth.json'} tells of sizes {manifest['sizes']['after']}, and config.json beside it of "
            f"{sizes(table)}: one of the two belongs to another checkpoint."
        )
    for name, shape in table.shapes().items():
        found = after.tensors.get(name)
        if found is None:
            raise CheckpointError(
                f"{trained} has no tensor '{name}', which {init} has: it was not trained from it, or was saved under "
                "other names."
            )
        if found.shape != shape:
            raise CheckpointError(
                f"Tensor '{name}' has shape {list(found.shape)} in {trained} and {list(shape)} in {init}: they are of "
                "different geometry. Name the checkpoint that was trained from this growth."
            )
    match_tensors(table, after.tensors)
    return manifest, before, after, table


def _has_copies(expansion: Expansion) -> bool:
    return bool(counts(expansion.source, expansion.size).max(initial=0) > 1)


# ------------------------------------------------- where an axis lies in a tensor


@dataclass(frozen=True, eq=False)
class _AxisPlacement:
    """One axis in one dimension of a weight: indices[r, j] is where unit j stands, r counting all else there."""

    axis: str
    side: Side
    dimension: int
    expansion: Expansion
    indices: Integers
    copied_rests: Integers  # the rests in which no other axis is fresh

    @property
    def coefficient(self) -> Floats:
        """What is undone of each unit's movement."""
        written = self.expansion.write if self.side == "written" else np.sign(self.expansion.read)
        return np.where(written == 0, 1.0, written)


def _slots(table: Architecture, weight: Weight, expansions: Mapping[str, Expansion]) -> Iterator[_AxisPlacement]:
    """Every grown axis in every dimension of a weight."""
    for number in range(len(weight.parts[0].dimensions)):
        parts = weight.parts if number == weight.fused else weight.parts[:1]
        shared = len(weight.within) if number == weight.fused else 0
        lengths = [table.length(part.dimensions[number][shared:]) for part in parts]
        outer = math.prod(table.length((space,)) for space in parts[0].dimensions[number][:shared])
        for part, length, offset in zip(parts, lengths, np.cumsum([0, *lengths]), strict=False):
            indices = np.arange(outer)[:, None] * sum(lengths) + offset + np.arange(length)
            yield from _slots_of(table, part, number, indices, expansions)


def _slots_of(
    table: Architecture, part: WeightPart, number: int, indices: Integers, expansions: Mapping[str, Expansion]
) -> Iterator[_AxisPlacement]:
    spaces = part.dimensions[number]
    names = [table.axis(space) for space in spaces]
    lengths = [table.axes[name].size for name in names]
    fresh = [
        expansions[name].fresh if name in expansions else np.zeros(n, bool)
        for name, n in zip(names, lengths, strict=True)
    ]
    for place, space in enumerate(spaces):
        axis, *views = table.spaces.get(space, (space,))
        if axis in expansions:
            expansion = expansions[axis]
            for view in views:
                expansion = VIEWS[view](expansion)
            last = np.moveaxis(indices.reshape(lengths), place, -1).reshape(-1, len(expansion))
            others = reduce(np.logical_or.outer, fresh[:place] + fresh[place + 1 :], np.zeros((), bool)).ravel()
            side: Side = "read" if space in part.reads else "written"
            yield _AxisPlacement(axis, side, number, expansion, last, np.flatnonzero(~others))


# ------------------------------------------------- reading the two checkpoints by blocks


class _Pair:
    """The same tensor of both checkpoints, rows at a time, in float64."""

    def __init__(self, before: Mapping[str, TensorInfo], after: Mapping[str, TensorInfo]):
        self._sides = [(tensors, FileSource(Files(tensors))) for tensors in (before, after)]

    def info(self, name: str) -> TensorInfo:
        """The header of init's."""
        return self._sides[0][0][name]

    def roundoff(self, name: str) -> float:
        """The largest relative rounding error of the trained checkpoint's type."""
        return float(torch.finfo(self._types(name)[1]).eps) / 2

    def _types(self, name: str) -> tuple[torch.dtype, torch.dtype]:
        before, after = (TORCH_DTYPES[tensors[name].dtype] for tensors, _ in self._sides)
        return before, after

    def rows(self, name: str, rows: Integers) -> tuple[Tensor, Tensor]:
        """The given rows, which rise, of both; of init as training in the trained checkpoint's type begins from it."""
        runs = [(run[0], run[-1] + 1) for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)]
        before, after = (
            torch.cat([_read(disk, tensors[name], int(a), int(b)) for a, b in runs]) for tensors, disk in self._sides
        )
        stored, trained = self._types(name)
        if torch.finfo(trained).eps > torch.finfo(stored).eps:
            before = before.to(trained)
        if not bool(after.isfinite().all()):
            raise CheckpointError(
                f"Cannot tell: tensor '{name}' of {self._sides[1][0][name].path} holds NaN or Inf. Name a checkpoint "
                "from before training diverged."
            )
        return before.double(), after.double()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Tensor operations of one thread each; the caller's setting comes back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read(disk: FileSource, info: TensorInfo, start: int, stop: int) -> Tensor:
    return as_tensor(read_rows(disk, info, start, stop), info.dtype)


def _blocks(rows: int, row_bytes: int) -> Iterator[Integers]:
    step = max(1, BLOCK // max(1, row_bytes))
    return (np.arange(start, min(start + step, rows)) for start in range(0, rows, step))


def _whole_groups(group: Integers, row_bytes: int) -> Iterator[slice]:
    """Ranges of about a block that do not cut a group; `group` rises."""
    ends = np.flatnonzero(np.diff(group, append=-1)) + 1
    step = max(1, BLOCK // max(1, row_bytes))
    begin = 0
    while begin < len(group):
        fitting = int(np.searchsorted(ends, begin + step, side="right"))
        end = int(ends[max(fitting - 1, int(np.searchsorted(ends, begin, side="right")))])
        yield slice(begin, end)
        begin = end


# ------------------------------------------------- what is counted


@dataclass
class _DivergenceSums:
    """Sums over groups of copies.

    own: squares of what each copy moved by itself; independent: what that is expected to be for independent copies.
    rounding: squares of the trained type's rounding; parting: of that which copies do not share.
    moved, absolute, weights: squares and magnitudes of movements, squares of weights.
    """

    own: float = 0.0
    independent: float = 0.0
    rounding: float = 0.0
    parting: float = 0.0
    moved: float = 0.0
    absolute: float = 0.0
    weights: float = 0.0
    values: int = 0
    groups: int = 0
    locked: int = 0

    @property
    def apart(self) -> float:
        return math.sqrt(self.own / self.independent) if self.independent else 0.0

    @property
    def grain(self) -> float:
        return math.sqrt(self.rounding / self.independent) if self.independent else 0.0

    @property
    def floor(self) -> float:
        return math.sqrt(self.parting / self.independent) if self.independent else 0.0

    @property
    def moves_as_one(self) -> bool:
        return self.apart <= _limit(self.grain)

    @property
    def unclear(self) -> str:
        """Why nothing can be said of these copies; empty where something can."""
        if not self.moved:
            return "no weight of them has changed"
        if self.apart > max(_limit(self.grain), ROUNDING * self.floor):
            return ""
        if ROUNDING * self.floor > _limit(self.grain):
            return (
                "they started from different values, and rounding to the trained checkpoint's type can part them by "
                f"{self.floor:.1e} of their movement"
            )
        if self.values * DIVERGING < ENOUGH * self.grain:
            return f"they moved by so little that its type rounds away {min(self.grain, 1):.0%} of it: train longer"
        if self.absolute**2 > (UNIFORM - self.grain**2 / 3) * self.values * self.moved:  # less what rounding spreads
            return "all their weights moved by the same amount, as Adam's first step moves them: train longer"
        return ""

    @property
    def state(self) -> State:
        if self.unclear:
            return "cannot tell"
        if self.moves_as_one:
            return "locked"
        return "free" if self.apart >= FREE else "loosening"

    def __add__(self, other: _DivergenceSums) -> _DivergenceSums:
        return _DivergenceSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def _limit(grain: float) -> float:
    """The largest `apart` of copies that move as one.

    A difference of d times the movement makes every (grain / d)-th value round to another one, grain times the movement
    away: then `apart` is the root of d * grain.
    """
    return max(LOCKED, math.sqrt(LOCKED * grain))


@dataclass
class _Size:
    """Energies and numbers of values of fresh and of old units, before and after."""

    energy: Tensor = field(default_factory=lambda: torch.zeros(2, 2, dtype=torch.float64))  # before/after, fresh/old
    count: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))

    def ratios(self) -> tuple[float, float]:
        before, after = (self.energy / self.count).sqrt()
        return float(before[0] / before[1]), float(after[0] / after[1])


Key = tuple[str, Side, int | None]


class _Accumulator:
    """Goes through the tensors once and keeps sums by axis, side and layer."""

    def __init__(
        self, table: Architecture, expansions: Mapping[str, Expansion], silent: Mapping[int, int], pair: _Pair
    ):
        self._table, self._expansions, self._silent, self._pair = table, expansions, silent, pair
        self._parting: defaultdict[Key, _DivergenceSums] = defaultdict(_DivergenceSums)
        self._size: defaultdict[Key, _Size] = defaultdict(_Size)
        self._ends: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))

    def enter(self, weight: Weight, name: str, layer: int | None) -> None:
        """Counts one tensor."""
        if weight.branch_end and layer is not None and not name.endswith(".bias"):
            self._ends[weight.name.split("{layer}.")[-1]][layer].append(self._energy(name, weight.offset))
        if weight.undoes is not None:
            return
        for slot in _slots(self._table, weight, self._expansions):
            key = slot.axis, slot.side, layer
            axis = self._table.axes[slot.axis]
            drawn = axis.inner and layer in self._silent  # afresh: identity layers have no twins along such axes
            if _has_copies(slot.expansion) and not axis.outer and not drawn:
                self._parting[key] += self._part(name, slot)
            if slot.expansion.fresh.any() and not (weight.branch_end and layer in self._silent):
                self._measure(name, slot, self._size[key])

    def _energy(self, name: str, offset: float) -> float:
        info = self._pair.info(name)
        blocks = _blocks(info.shape[0], info.row_bytes)
        return sum(float((self._pair.rows(name, rows)[1] + offset).square().sum()) for rows in blocks)

    def _part(self, name: str, slot: _AxisPlacement) -> _DivergenceSums:
        """How the groups of copies of one tensor moved."""
        copied = counts(slot.expansion.source, slot.expansion.size)[slot.expansion.source] > 1
        copied &= ~slot.expansion.fresh
        rests = slot.copied_rests[:, None]
        group = (slot.expansion.source[copied] * len(slot.indices) + rests).ravel()
        order = np.argsort(group, kind="stable")
        index = slot.indices[slot.copied_rests][:, copied].ravel()[order]
        group = np.unique(group[order], return_inverse=True)[1]
        coefficient = np.tile(slot.coefficient[copied], len(rests))[order]
        size = np.bincount(group)
        sums = torch.zeros(len(SUMS), len(size), dtype=torch.float64)
        values = 0
        for part, before, after in self._groups(name, slot.dimension, index, group):
            scale = torch.from_numpy(coefficient[part])[:, None]
            _add_parting(sums, before / scale, after / scale, group[part], size, self._pair.roundoff(name))
            values += before.numel()
        return _summed(sums, size, values)

    def _groups(
        self, name: str, dimension: int, index: Integers, group: Integers
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Whole groups of copies (along dimension 0), or all of them in a block of rows, copies first."""
        info = self._pair.info(name)
        if dimension == 0:
            for part in _whole_groups(group, info.row_bytes):
                rows = np.sort(index[part])
                where = torch.from_numpy(np.searchsorted(rows, index[part]))
                before, after = self._pair.rows(name, rows)
                yield part, _as(before, where), _as(after, where)
        else:
            where = torch.from_numpy(index)
            for rows in _blocks(info.shape[0], info.row_bytes):
                before, after = (values.movedim(dimension, 0) for values in self._pair.rows(name, rows))
                yield slice(0, len(index)), _as(before, where), _as(after, where)

    def _measure(self, name: str, slot: _AxisPlacement, size: _Size) -> None:
        """The energy of fresh and old units of one tensor."""
        info = self._pair.info(name)
        energy = torch.zeros(2, info.shape[slot.dimension], dtype=torch.float64)
        for rows in _blocks(info.shape[0], info.row_bytes):
            for which, values in enumerate(self._pair.rows(name, rows)):
                along = values.square().movedim(slot.dimension, 0).reshape(values.shape[slot.dimension], -1).sum(1)
                energy[which, rows if slot.dimension == 0 else slice(None)] += along
        values_of_one = math.prod(info.shape) // info.shape[slot.dimension]
        fresh: Booleans = slot.expansion.fresh
        for column, units in enumerate((fresh, ~fresh)):
            where = torch.from_numpy(slot.indices[:, units].ravel())
            size.energy[:, column] += energy[:, where].sum(1)
            size.count[column] += len(where) * values_of_one

    # ------------------------------------------------- the findings

    def copies(self) -> tuple[Copies, ...]:
        """By axis and side."""
        found = []
        for (axis, side), layers in _by_layer(self._parting).items():
            total = sum(layers.values(), _DivergenceSums())
            found.append(
                Copies(
                    axis,
                    side,
                    total.state,
                    total.unclear,
                    apart=total.apart,
                    moved=math.sqrt(total.moved / total.weights) if total.weights else 0.0,
                    grain=total.grain,
                    floor=total.floor,
                    locked=total.locked / total.groups if total.groups else 0.0,
                    layers={layer: parting.apart for layer, parting in layers.items() if parting.moved},
                    locked_layers=_locked_layers(total, layers),
                )
            )
        return tuple(found)

    def fresh(self) -> tuple[FreshUnits, ...]:
        """By axis and side; layers count alike."""
        found = []
        for (axis, side), layers in _by_layer(self._size).items():
            ratios = {layer: size.ratios() for layer, size in layers.items()}
            before, after = np.sqrt(np.mean(np.square(list(ratios.values())), axis=0))
            late = {layer: ratio for layer, (_, ratio) in ratios.items()}
            found.append(FreshUnits(axis, side, float(before), float(after), late))
        return tuple(found)

    def new_layers(self) -> tuple[NewLayer, ...]:
        """The identity layers, by number."""
        gained: dict[int, dict[str, float]] = {layer: {} for layer in self._silent}
        for end, layers in self._ends.items():
            energy = {layer: float(np.mean(values)) for layer, values in layers.items()}
            old = [value for layer, value in energy.items() if layer not in self._silent]
            for layer in self._silent.keys() & energy.keys() if old else ():
                gained[layer][end] = math.sqrt(energy[layer] / np.mean(old))
        return tuple(NewLayer(layer, self._silent[layer], ends) for layer, ends in gained.items() if ends)


def _as(values: Tensor, where: Tensor) -> Tensor:
    """What stands at `where`, one row each."""
    return values[where].reshape(len(where), -1)


SUMS = ("own", "moved", "rounding", "parting", "absolute", "weights")  # kept of each group of copies


def _add_parting(sums: Tensor, before: Tensor, after: Tensor, group: Integers, size: Integers, roundoff: float) -> None:
    """Adds to the sums of each group."""
    moved = after - before
    first = int(group[0])
    local = torch.from_numpy(group - first)
    number = int(local[-1]) + 1
    mean = torch.zeros(number, moved.shape[1], dtype=torch.float64).index_add_(0, local, moved)
    mean /= torch.from_numpy(size[first : first + number])[:, None]
    rounding = roundoff**2 * (before.square() + after.square())
    one_of_each = before[np.searchsorted(group, np.arange(first, first + number))]
    others = torch.zeros(number, moved.shape[1], dtype=torch.float64)
    others.index_add_(0, local, (before != one_of_each[local]).double())
    parting = torch.where(others[local] == 0, 0.0, rounding)  # equal values are rounded alike
    values = (moved - mean[local]).square(), moved.square(), rounding, parting, moved.abs(), before.square()
    for line, each in zip(sums, values, strict=True):
        line[first : first + number].index_add_(0, local, each.sum(1))


def _summed(sums: Tensor, size: Integers, values: int) -> _DivergenceSums:
    own, moved, rounding, parting, absolute, weights = sums
    each = torch.from_numpy(1 - 1 / size)
    independent = each * moved
    grain = (each * rounding / independent.clamp(min=1e-300)).sqrt()
    stirred = moved > 0
    return _DivergenceSums(
        float(own.sum()),
        float(independent.sum()),
        float((each * rounding).sum()),
        float((each * parting).sum()),
        float(moved.sum()),
        float(absolute.sum()),
        float(weights.sum()),
        values,
        int(stirred.sum()),
        int((stirred & (own <= torch.clamp(LOCKED * grain, min=LOCKED**2) * independent)).sum()),
    )


def _locked_layers(total: _DivergenceSums, layers: Mapping[int | None, _DivergenceSums]) -> tuple[int | None, ...]:
    """The layers in which copies moved as one, as each shows by itself or all of them together."""
    together = total.state == "locked"
    return tuple(
        layer
        for layer, parting in layers.items()
        if parting.state == "locked" or (together and parting.moved and parting.moves_as_one)
    )


def _by_layer(found: Mapping[Key, Any]) -> dict[tuple[str, Side], dict[int | None, Any]]:
    result: defaultdict[tuple[str, Side], dict[int | None, Any]] = defaultdict(dict)
    for (axis, side, layer), value in found.items():
        result[axis, side][layer] = value
    return {key: result[key] for key in sorted(result, key=lambda key: (key[0], key[1] == "read"))}


# ------------------------------------------------- for a terminal

STYLES: Mapping[State, str] = {"cannot tell": "dim", "locked": "bold red", "loosening": "yellow", "free": "green"}


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
        where = "everywhere" if len(layers) == everywhere[axis] else f"in layer {', '.join(map(_place, layers))}"
        yield f"copies along {axis} moved as one {where}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("axis", "what", "state", "branch") else "right")
    return table


def _copies_table(copies: tuple[Copies, ...]) -> Table:
    table = _table("Copies", "axis", "what", "state", "apart", "rounding", "moved", "locked groups")
    for found in copies:
        numbers = f"{found.apart:.1e}", f"{found.grain:.1e}", f"{found.moved:.1e}", f"{found.locked:.0%}"
        table.add_row(found.axis, _what(found.side), Text(found.state, STYLES[found.state]), *numbers)
    return table


def _layers_table(layers: tuple[NewLayer, ...]) -> Table:
    branches = list(layers[0].gained)
    table = _table("New layers, relative to the old ones' mean", "layer", "copied from", *branches, "mean")
    for layer in layers:
        gained = (f"{layer.gained[end]:.1%}" if end in layer.gained else "" for end in branches)
        table.add_row(str(layer.layer), str(layer.source), *gained, f"{layer.mean:.1%}")
    return table


def _fresh_table(fresh: tuple[FreshUnits, ...]) -> Table:
    table = _table("Fresh units, relative to old ones", "axis", "what", "before", "after")
    for found in fresh:
        table.add_row(found.axis, _what(found.side), f"{found.before:.1%}", f"{found.after:.1%}")
    return table


def _what(side: Side) -> str:
    return "writes them" if side == "written" else "reads them"
