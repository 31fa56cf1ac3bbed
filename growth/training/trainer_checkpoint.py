"""Grow a checkpoint folder of transformers' Trainer: weights, optimizer, scheduler and the state of the run.

`Trainer.train(resume_from_checkpoint=...)` resumes from the result as from the source (`growth.grow_training`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import torch

from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.untrusted import LARGEST_COMPANION, LARGEST_JSON, read_file
from growth.errors import CheckpointError, OptimizerError
from growth.planning.plan import Plan
from growth.runtime.limits import shortage
from growth.training.moments import Fresh
from growth.training.optimizer import grow_named_state_dict
from growth.training.optimizer_state import check_groups, numbered
from growth.training.parameter_names import Names, parameter_names
from growth.training.run_states import FULL_OPTIMIZER, OPTIMIZER, state_file
from growth.training.trainer_history import growths, history_entry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HISTORY = "trainer_state.json"
COMPILED = "_orig_mod."  # what torch.compile adds to the names of parameters
COPIED = ("scheduler.pt", "scaler.pt", "training_args.bin", "rng_state*.pth")  # byte for byte


def training_files(
    plan: Plan, checkpoint: Checkpoint, fresh: Fresh
) -> tuple[dict[str, Callable[[BinaryIO], Any]], int]:
    """The writers of the files of a grown run beside its weights, and the approximate size of these files in bytes.

    The optimizer's state is written as it was read: optimizer.pt numbers parameters, optimizer.bin names them.

    Raises:
        GrowthError: the source's state is missing, or cannot grow.
    """
    name = state_file(checkpoint.folder)
    state = grown_state_dict(read_state_dict(checkpoint.folder / name), plan, fresh, named=name == FULL_OPTIMIZER)
    files, size = as_writers(run_files(plan, checkpoint))
    files[name] = partial(torch.save, state)
    values = (value for entry in state["state"].values() for value in entry.values())
    moments = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    return files, moments + size


def as_writers(files: Mapping[str, bytes]) -> tuple[dict[str, Callable[[BinaryIO], Any]], int]:
    """What writes each of some files, and their size together."""
    return {name: methodcaller("write", text) for name, text in files.items()}, sum(map(len, files.values()))


def run_files(plan: Plan, checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a grown run beside its weights and its optimizer's state, by name.

    Raises:
        CheckpointError: a file of the source cannot be read.
    """
    paths = [path for pattern in COPIED for path in sorted(checkpoint.folder.glob(pattern))]
    found = {path.name: read_file(path, LARGEST_COMPANION) for path in paths}
    history = _grown_history(checkpoint.folder / HISTORY, plan)
    return found if history is None else {**found, HISTORY: history.encode()}


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read an optimizer's state dict.

    Raises:
        CheckpointError: it is not tensors and numbers alone.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle raises almost anything
        if shortage(error):
            raise
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} contains more than tensors and numbers, or is damaged: {reason} Restore it from the run, or grow "
            "the weights alone."
        ) from None
    check_state_dict(path, state)
    return cast("dict[str, Any]", state)


def check_state_dict(path: Path, state: Any) -> None:
    """Refuse the content of a file that is not an optimizer's state dict.

    Raises:
        CheckpointError: it lacks state or groups.
    """
    entries, groups = (state.get("state"), state.get("param_groups")) if isinstance(state, dict) else (None, None)
    has_entries = isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())
    if not (has_entries and isinstance(groups, list)):
        raise CheckpointError(
            f"{path} is not an optimizer's state_dict: it lacks state or param_groups. Restore it from the run."
        )
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        raise CheckpointError(f"{path}: a group of parameters lists no params. Restore it from the run.")


def grown_state_dict(old: Mapping[str, Any], plan: Plan, fresh: Fresh, *, named: bool = False) -> dict[str, Any]:
    """Grow an optimizer's state dict, numbered as a new Trainer numbers the grown model's parameters, or by name.

    Raises:
        OptimizerError: the numbers are not those of Trainer's groups, or the state cannot grow.
    """
    by_name, before, after = named_state_dict(
        old, plan, known=fresh != "all", file=FULL_OPTIMIZER if named else OPTIMIZER
    )
    grown = grow_named_state_dict(by_name, plan, before, after, fresh=fresh)
    if named:
        return grown
    if not any("param_names" in group for group in old["param_groups"]):  # Trainer's, by the names in its own model
        members = trainer_groups(meta_model(plan.config), after)
        groups = [{**group, "params": own} for group, own in zip(grown["param_groups"], members, strict=True)]
        grown = {**grown, "param_groups": groups}
    return numbered(grown)


def named_state_dict(
    old: Mapping[str, Any], plan: Plan, *, known: bool = True, file: str | Path = OPTIMIZER
) -> tuple[dict[str, Any], Names, Names]:
    """Give an optimizer's state dict the model's names for parameters.

    old: parameters have numbers, or these names.
    known: as for `check_groups`.
    file: that holds the state, for messages.

    Returns:
        The state dict, and the parameters of the source and of the grown model, as `parameter_names` returns them.

    Raises:
        OptimizerError: the numbers are not those of Trainer's groups, or the state cannot grow.
    """
    small = meta_model(plan.stored.whole_config)
    before = parameter_names(small, plan.sources)
    after = parameter_names(meta_model(plan.config), {tensor_map.target for tensor_map in plan.tensors})
    groups = old["param_groups"]
    check_groups(groups, old["state"], known=known)
    members = _names_in_groups(groups, small, before, file)
    listed = (param for group in groups for param in group["params"])
    names = dict(zip(listed, chain(*members), strict=True))
    named = {
        **old,
        "state": {names[param]: entry for param, entry in old["state"].items()},
        "param_groups": [{**group, "params": own} for group, own in zip(groups, members, strict=True)],
    }
    return named, before, after


def _names_in_groups(
    groups: Sequence[Mapping[str, Any]], model: PreTrainedModel, before: Names, file: str | Path
) -> list[list[str]]:
    """The names of the parameters of each group: those that the groups state, else Trainer's."""
    if all(isinstance(param, str) for group in groups for param in group["params"]):
        groups = [{"params": group["params"], "param_names": group["params"]} for group in groups]
    if all("param_names" in group for group in groups):
        return [_stated(group, before, file) for group in groups]
    members = trainer_groups(model, before)
    found, expected = [len(group["params"]) for group in groups], [len(group) for group in members]
    if found != expected:
        raise OptimizerError(
            f"{file} has groups of {found} parameters, and Trainer makes {expected} of this model: some are "
            "frozen, or the groups are not Trainer's, and their parameters are unknown. Grow it in memory: "
            "growth.grow_optimizer."
        )
    return members


def _stated(group: Mapping[str, Any], before: Names, file: str | Path) -> list[str]:
    stated = group["param_names"]
    if not isinstance(stated, list) or len(stated) != len(group["params"]):
        raise OptimizerError(f"{file}: a group of {len(group['params'])} parameters does not name each of them.")
    unknown = [own for own in stated if not isinstance(own, str) or own not in before]
    if unknown:
        remedy = (
            f"'{COMPILED}' is of torch.compile: save the state of the model that it compiled (model.{COMPILED[:-1]})."
            if COMPILED in str(unknown[0])
            else "Name parameters as model.named_parameters() does, or start a new optimizer over the grown model."
        )
        raise OptimizerError(f"{file} names the parameter {unknown[0]!r}, which the model does not have. {remedy}")
    return stated


def _grown_history(path: Path, plan: Plan) -> str | None:
    """The text of trainer_state.json after a growth; None if the source has no such file."""
    state = _read_history(path)
    if state is None:
        return None
    state["log_history"].append({"step": state.get("global_step"), **history_entry(plan)})
    best = dict.fromkeys(("best_global_step", "best_metric", "best_model_checkpoint"))
    state.update({key: value for key, value in best.items() if key in state})
    return json.dumps(state, indent=2, sort_keys=True) + "\n"


def rates_that_end(folder: Path) -> tuple[str, ...]:
    """Say which learning rates of a schedule's stage are in force in a run, and end where it grows outside of it.

    Raises:
        CheckpointError: its trainer_state.json cannot be read.
    """
    state = _read_history(folder / HISTORY) or {"log_history": []}
    entries = growths(entry for entry in state["log_history"] if isinstance(entry, dict))
    entry = entries[-1] if entries else {}
    rates, rewarm = (entry[key] if isinstance(entry.get(key), dict) else {} for key in ("rates", "rewarm"))
    numbers = state.get("global_step"), entry.get("step"), rewarm.get("steps")
    step, began, length = (number if type(number) is int else 0 for number in numbers)
    found = [f"learning rates ({', '.join(f'{kind} × {rate}' for kind, rate in rates.items())})"] * bool(rates)
    found += [f"second warm-up over {length} steps"] * (step - began < length)
    if not found or "moment" not in entry:
        return ()
    return (
        f"The run is in the stage of its schedule that began {entry['moment']}. The {' and the '.join(found)} of that "
        "stage end with this growth: training resumes at the learning rate of the scheduler. To keep them, let the run "
        "grow by a further stage of its schedule.",
    )


def _read_history(path: Path) -> dict[str, Any] | None:
    """The content of a trainer_state.json, which has a log history; None if there is no such file."""
    if not path.exists():
        return None
    try:
        state = json.loads(read_file(path, LARGEST_JSON))  # NaN is accepted: a Trainer writes it for a loss
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Restore it from the run.") from None
    log = state.setdefault("log_history", []) if isinstance(state, dict) else None
    if not isinstance(log, list):
        raise CheckpointError(
            f"{path} is not the state of a Trainer: its log_history is not a list. Restore it from the run."
        )
    return cast("dict[str, Any]", state)


def meta_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """Build the transformers model of a config on the meta device."""
    from growth.checkpoints.stock_parameters import auto_class, class_config

    built = class_config(config)
    with torch.device("meta"):
        model = auto_class(built).from_config(built, trust_remote_code=False)
    return cast("PreTrainedModel", model)


def trainer_groups(model: PreTrainedModel, names: Names) -> list[list[str]]:
    """The names of a model's parameters in Trainer's groups: with weight decay, then without.

    names: as `parameter_names` returns them.
    """
    from transformers import Trainer

    decaying = set(Trainer.get_decay_parameter_names(cast("Trainer", None), model))  # reads the model only
    groups: list[list[str]] = [[], []]
    for name in names:
        groups[name not in decaying].append(name)
    return groups
