"""Files and folders of optimizer states, of which only headers, options and scalars are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from growth.arrays.casting import NUMPY_DTYPES
from growth.arrays.tensor_info import FLOATS, TensorInfo
from growth.arrays.torch_interop import as_tensor
from growth.checkpoints.formats.dcp import METADATA, entries
from growth.checkpoints.torch_archive import read_saved
from growth.checkpoints.untrusted import LARGEST_JSON
from growth.errors import CheckpointError
from growth.training.optimizer_state import refuse_blockwise
from growth.training.run_states import OPTIMIZER
from growth.training.trainer_checkpoint import check_state_dict

ENTRY = re.compile(r"(?:(?P<prefix>.*?)\.)?(?P<kind>state|param_groups)\.(?P<name>.+)\.(?P<key>\w+)")


def read_state(path: Path) -> tuple[dict[str, Any], bool]:
    """Return a stored state dict, and whether its options are stored by parameter and not by group.

    It has a `TensorInfo` in place of each moment. Parameters have numbers or the model's names.

    path: a file of torch.save, a folder of torch.distributed.checkpoint, or a Trainer's folder with optimizer.pt.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than tensors and plain values, or the states
            of several optimizers.
    """
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
    state = {name: _with_values(entry) for name, entry in found["state"].items()}
    return {**found, "state": state, "param_groups": [_with_values(group) for group in found["param_groups"]]}, False


def _from_entries(folder: Path) -> tuple[dict[str, Any], bool]:
    """The state dict in a folder of torch.distributed.checkpoint, which may hold a model too, by the model's names.

    Groups are stored by number, or option by option for each parameter (`flatten_optimizer_state_dict`).
    """
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}  # by prefix, kind, name and key
    for entry, value in entries(folder, _is_of_optimizer).items():
        prefix, kind, name, key = _parts(entry)
        found.setdefault(prefix, {}).setdefault(kind, {}).setdefault(name, {})[key] = value
    state, options = _only(folder, found)
    entries_of = {name: _with_values(entry) for name, entry in state.items()}
    options = {name: _with_values(own) for name, own in options.items()}
    if all(name.isdecimal() for name in options):
        return {"state": entries_of, "param_groups": [options[name] for name in sorted(options, key=int)]}, False
    groups: list[dict[str, Any]] = []
    for name, own in options.items():
        same = next((group for group in groups if {**group, "params": ()} == {**own, "params": ()}), None)
        if same is None:
            groups.append(same := {**own, "params": []})
        same["params"].append(name)
    return {"state": entries_of, "param_groups": groups}, True


def _is_of_optimizer(entry: str) -> bool:
    """Whether an entry is of an optimizer's state.

    Raises:
        OptimizerError: it is one of an 8-bit state.
    """
    found = ENTRY.fullmatch(entry)
    if found is not None and found["kind"] == "state":
        refuse_blockwise(found["name"], found["key"])
    return found is not None


def _parts(entry: str) -> tuple[str, ...]:
    found = ENTRY.fullmatch(entry)
    assert found is not None
    return found["prefix"] or "", found["kind"], found["name"], found["key"]


def _only(
    folder: Path, found: Mapping[str, Mapping[str, dict[str, dict[str, Any]]]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The state and the options of the one optimizer in a folder: states without options are of something else.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    optimizers = {prefix: kinds for prefix, kinds in found.items() if "param_groups" in kinds}
    if not optimizers:
        raise CheckpointError(
            f"{folder} holds no optimizer state: none of its entries is named state.PARAMETER.MOMENT or "
            "param_groups.N.OPTION. Save get_optimizer_state_dict(model, optimizer) of "
            "torch.distributed.checkpoint.state_dict."
        )
    if len(optimizers) > 1:
        first, second, *_ = (f"'{prefix}.param_groups'" if prefix else "'param_groups'" for prefix in optimizers)
        raise CheckpointError(
            f"{folder} holds the states of several optimizers, in {first} and {second}. Save the one to grow in a "
            "folder of its own; get_optimizer_state_dict(model, [one, other]) makes one state of two that share a "
            "model's parameters."
        )
    (kinds,) = optimizers.values()
    return kinds.get("state", {}), kinds["param_groups"]


def _with_values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the values of scalars."""
    scalar = {key: value for key, value in entry.items() if _is_scalar(value)}
    return {**entry, **{key: _scalar(info) for key, info in scalar.items()}}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, TensorInfo) and not value.shape and value.dtype in FLOATS


def _scalar(info: TensorInfo) -> Tensor:
    assert info.path is not None
    with info.path.open("rb") as file:
        file.seek(info.begin)
        found = np.frombuffer(file.read(info.bytes), NUMPY_DTYPES[info.dtype]).copy()
    return as_tensor(found, info.dtype).reshape(())
