"""Optimizer states in files, of which only headers and small values are read.

The state is that of the source's optimizer: a file of torch.save (the Trainer's optimizer.pt, accelerate's
optimizer.bin), or a folder of torch.distributed.checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from growth.arrays.casting import bytes_view
from growth.arrays.tensor_info import FLOATS, TensorInfo
from growth.arrays.torch_interop import TORCH_DTYPES, as_array
from growth.checkpoints.chunks import ComposedInfo, Reader
from growth.checkpoints.expert_stacks import unstacked
from growth.errors import OptimizerError
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap
from growth.training.moments import Fresh, moment_maps, with_sums
from growth.training.optimizer_kinds import Entry, Kind
from growth.training.optimizer_state import check_keys, grown_groups, kinds_of
from growth.training.parameter_names import StoredParameter
from growth.training.state_files import read_state
from growth.training.trainer_checkpoint import named_state_dict


@dataclass(frozen=True)
class GrownState:
    """The grown state of an optimizer, of which no moment has been computed.

    Attributes:
        maps: how each moment is grown, by the names of the grown tensors in files and of the moments.
        scalars: by the names of the grown tensors, the numbers that the optimizer keeps of each (step counts).
        groups: options, with the names of the grown model's parameters as `params`.
        flattened: whether the state is stored with options by parameter (`flatten_optimizer_state_dict`), so that which
            parameters with equal options are in one group is not known.
        unsigned: the moments that are never negative.
    """

    maps: Mapping[str, Mapping[str, TensorMap]]
    scalars: Mapping[str, Mapping[str, Any]]
    groups: tuple[Mapping[str, Any], ...]
    unsigned: frozenset[str]
    flattened: bool = False


def grown_state(path: Path, plan: Plan, fresh: Fresh = "mean") -> GrownState:
    """Plan the growth of a stored optimizer state.

    path: a file of torch.save, a folder of torch.distributed.checkpoint, or a Trainer's folder with optimizer.pt.
    fresh: as for `growth.grow_optimizer`, but for "all".

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than tensors and plain values.
        OptimizerError: the state is of another model, or cannot grow.
    """
    if fresh not in get_args(Fresh) or fresh == "all":
        known = ", ".join(name for name in get_args(Fresh) if name != "all")
        raise OptimizerError(f"fresh='{fresh}' grows no state: use one of {known}, or leave out the optimizer.")
    stored, is_flattened = read_state(path)
    is_numbered = any(isinstance(param, int) for group in stored["param_groups"] for param in group["params"])
    named, before, after = named_state_dict(stored, plan, file=path)
    groups = named["param_groups"]
    state = {name: entry for name, entry in named["state"].items() if entry}
    kinds = kinds_of(groups)
    kept: dict[str, Mapping[str, TensorInfo]] = {}
    scalars: dict[str, Mapping[str, Any]] = {}
    for group in groups:
        for name in (name for name in group["params"] if name in state):
            kind = check_keys(name, state[name], before[name].shape, group)
            infos = _checked(path, name, state[name], kind, before[name].shape)
            for file, found in _apart(path, before[name], infos).items():
                kept[file] = found
                scalars[file] = {key: value for key, value in state[name].items() if key in kind.scalars}
    file_kinds = {file: kinds[name] for name in state for file in before[name].files}
    maps = moment_maps(plan, with_sums(kept, plan, _sums), file_kinds, fresh)
    order = {name: place for place, name in enumerate(before)}
    members = [group["params"] if is_numbered else sorted(group["params"], key=order.__getitem__) for group in groups]
    placed = grown_groups(members, plan, before, after)
    grown = tuple({**group, "params": names} for group, names in zip(groups, placed, strict=True))
    averages = {key: what for kind in file_kinds.values() for key, what in kind.moments.items()}
    return GrownState(
        maps,
        {t.target: scalars.get(t.source.name, {}) for t in plan.tensors if t.target in maps},
        grown,
        frozenset(key for key, what in averages.items() if what in ("squares", "magnitudes")),
        is_flattened,
    )


def _checked(path: Path, name: str, entry: Entry, kind: Kind, shape: tuple[int, ...]) -> dict[str, TensorInfo]:
    """The moments in the stored state of a parameter; without SGD's momentum before the first step, which is None."""
    if kind.factored and not entry.keys().isdisjoint(kind.factors[:2]):
        raise OptimizerError(
            f"{path}: the state of '{name}' is factored (Adafactor), and grows only as a whole: grow it in memory "
            "(growth.grow_optimizer) or from a file of torch.save (growth grow --training)."
        )
    found = {key: value for key, value in entry.items() if key in kind.moments and value is not None}
    for key, info in found.items():
        if isinstance(info, TensorInfo) and info.dtype not in FLOATS:
            raise OptimizerError(
                f"{path}: '{key}' of '{name}' holds {info.dtype}, and only {', '.join(FLOATS)} can grow. Start a new "
                "optimizer over the grown model."
            )
        if not isinstance(info, TensorInfo) or info.shape != shape:
            has = f"has shape {list(info.shape)}" if isinstance(info, TensorInfo) else f"is a {type(info).__name__}"
            raise OptimizerError(
                f"{path}: '{key}' of '{name}' {has}, and the parameter has shape {list(shape)}: the optimizer's state "
                "is of another model, or numbers its parameters in another order. Start a new optimizer over the grown "
                "model."
            )
    return found


def _apart(path: Path, stored: StoredParameter, moments: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """The moments of the tensors that files hold of a parameter: parts of a stack."""
    if list(stored.files.values()) == [()]:
        return {file: dict(moments) for file in stored.files}
    found: dict[str, dict[str, TensorInfo]] = {file: {} for file in stored.files}
    first = next(iter(stored.files))
    for key, stack in moments.items():
        parts = {}
        for file, index in stored.files.items():
            shape = stored.shape_of(file)
            apart = isinstance(index[0], int) or shape[1:] == stored.shape[1:]
            if not (apart and len(index) == len(stored.shape) and shape == stored.shape_of(first)):
                raise OptimizerError(
                    f"{path}: '{key}' of '{file}' is not a part of a stack. Grow the state in memory "
                    "(growth.grow_optimizer) or in files (growth grow --training)."
                )
            begin = tuple(part.start if isinstance(part, slice) else part for part in index)
            parts[begin] = TensorInfo(file, stack.dtype, shape)
        for file, info in unstacked(stack, parts).items():
            found[file][key] = info
    return found


# ------------------------------------------------- the sum of two moments


@dataclass(frozen=True)
class SummedInfo(ComposedInfo):
    """The sum of two stored tensors, rounded once: the moment of a matrix that the source has twice."""

    terms: tuple[TensorInfo, ...] = ()

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        """The two tensors."""
        return self.terms

    def fill(self, reader: Reader, start: int, stop: int, view: memoryview) -> None:
        """Fill memory with the bytes of rows of the sum."""
        total = torch.frombuffer(view, dtype=TORCH_DTYPES[self.dtype])
        other = torch.empty_like(total)
        for term, into in zip(self.terms, (total, other), strict=True):
            reader(term)(start, stop, bytes_view(as_array(into)))
        total += other


def _sums(one: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """The moments of a parameter whose gradient is the sum of two, as `growth.grow_optimizer` adds them."""
    added = {
        key: SummedInfo(info.name, info.dtype, info.shape, info.path, 0, (info, one[key]))
        for key, info in other.items()
        if key in one
    }
    return {**other, **one, **added}
