"""Optimizer states in files, of which only headers and small values are read.

The state is that of the source's optimizer: a file of torch.save (the Trainer's optimizer.pt, accelerate's
optimizer.bin), or a folder of torch.distributed.checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from growth.arrays.casting import NUMPY_DTYPES, bytes_view
from growth.arrays.tensor_info import TensorInfo
from growth.arrays.torch_interop import TORCH_DTYPES, as_array, as_tensor
from growth.checkpoints.chunks import ComposedInfo, Reader
from growth.checkpoints.expert_stacks import unstacked
from growth.checkpoints.formats.dcp import METADATA, entries
from growth.checkpoints.torch_archive import read_saved
from growth.checkpoints.untrusted import LARGEST_JSON
from growth.errors import CheckpointError, OptimizerError
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap
from growth.training.moments import Fresh, moment_maps, with_sums
from growth.training.optimizer_kinds import Entry, Kind
from growth.training.optimizer_state import check_keys, grown_groups, kinds_of
from growth.training.parameter_names import StoredParameter
from growth.training.run_states import OPTIMIZER
from growth.training.trainer_checkpoint import check_state_dict, named_state_dict


@dataclass(frozen=True)
class GrownState:
    """The grown state of an optimizer, of which no moment has been computed.

    Attributes:
        maps: how each moment is grown, by the names of the grown tensors in files and of the moments.
        scalars: by the names of the grown tensors, the numbers that the optimizer keeps of each (step counts).
        groups: options, with the names of the grown model's parameters as `params`.
        unsigned: the moments that are never negative.
    """

    maps: Mapping[str, Mapping[str, TensorMap]]
    scalars: Mapping[str, Mapping[str, Any]]
    groups: tuple[Mapping[str, Any], ...]
    unsigned: frozenset[str]


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
    stored = _read(path)
    is_numbered = any(isinstance(param, int) for group in stored["param_groups"] for param in group["params"])
    named, before, after = named_state_dict(stored, plan)
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
        if not isinstance(info, TensorInfo) or info.shape != shape:
            has = f"has shape {list(info.shape)}" if isinstance(info, TensorInfo) else f"is a {type(info).__name__}"
            raise OptimizerError(
                f"{path}: '{key}' of '{name}' {has}, and the parameter has shape {list(shape)}: the optimizer's state "
                "is of another model, or numbers its parameters in another order. Start a new optimizer over the grown "
                "model."
            )
    return found


def _apart(path: Path, stored: StoredParameter, moments: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """The moments of the tensors that files hold of a parameter: of experts, parts of a stack."""
    if list(stored.files.values()) == [()]:
        return {file: dict(moments) for file in stored.files}
    found: dict[str, dict[str, TensorInfo]] = {file: {} for file in stored.files}
    for key, stack in moments.items():
        parts = {}
        for file, index in stored.files.items():
            if not (len(index) == len(stored.shape) and isinstance(index[0], int)):
                raise OptimizerError(
                    f"{path}: '{key}' of '{file}' is not a part of a stack of experts. Grow the state in memory "
                    "(growth.grow_optimizer) or in files (growth grow --training)."
                )
            begin = tuple(part.start if isinstance(part, slice) else part for part in index)
            parts[begin] = TensorInfo(file, stack.dtype, stored.shape_of(file))
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


# ------------------------------------------------- files


def _read(path: Path) -> dict[str, Any]:
    """A stored state dict with a `TensorInfo` in place of each moment; parameters have numbers or the model's names."""
    if (path / METADATA).is_file():
        return _from_entries(path)
    file = path / OPTIMIZER if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"No optimizer state at {path}: it is neither a file of torch.save nor a folder of "
            "torch.distributed.checkpoint, and holds no optimizer.pt. Name the file or folder of the state."
        )
    found = read_saved(file, LARGEST_JSON)
    check_state_dict(file, found)
    return {
        **found,
        "state": {name: _with_values(entry) for name, entry in found["state"].items()},
        "param_groups": [_with_values(group) for group in found["param_groups"]],
    }


ENTRY = re.compile(r"(?:.*?\.)?state\.(?P<name>.+)\.(?P<key>\w+)")
OPTION = re.compile(r"(?:.*?\.)?param_groups\.(?P<name>.+)\.(?P<key>\w+)")


def _from_entries(folder: Path) -> dict[str, Any]:
    """The state dict in a folder of torch.distributed.checkpoint, which may hold a model too, by the model's names.

    Groups are stored by number, or option by option for each parameter (`flatten_optimizer_state_dict`).
    """
    state: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    for entry, value in entries(folder, lambda name: bool(ENTRY.fullmatch(name) or OPTION.fullmatch(name))).items():
        if found := ENTRY.fullmatch(entry):
            state.setdefault(found["name"], {})[found["key"]] = value
        elif found := OPTION.fullmatch(entry):
            options.setdefault(found["name"], {})[found["key"]] = value
    if not options:
        raise CheckpointError(
            f"{folder} holds no optimizer state: none of its entries is named state.PARAMETER.MOMENT or "
            "param_groups.N.OPTION. Save get_optimizer_state_dict(model, optimizer) of "
            "torch.distributed.checkpoint.state_dict."
        )
    if all(name.isdecimal() for name in options):
        groups = [_with_values(options[name]) for name in sorted(options, key=int)]
    else:
        groups = []
        for name, own in options.items():
            same = next((group for group in groups if {**group, "params": ()} == {**own, "params": ()}), None)
            if same is None:
                groups.append(same := {**own, "params": []})
            same["params"].append(name)
    return {"state": {name: _with_values(entry) for name, entry in state.items()}, "param_groups": groups}


def _with_values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the values of scalars."""
    scalar = {key: value for key, value in entry.items() if isinstance(value, TensorInfo) and not value.shape}
    return {**entry, **{key: _scalar(info) for key, info in scalar.items()}}


def _scalar(info: TensorInfo) -> Tensor:
    assert info.path is not None
    with info.path.open("rb") as file:
        file.seek(info.begin)
        found = np.frombuffer(file.read(info.bytes), NUMPY_DTYPES[info.dtype]).copy()
    return as_tensor(found, info.dtype).reshape(())
