"""A checkpoint folder of transformers' Trainer grows whole: weights, optimizer, scheduler and the state of the run.

`Trainer.train(resume_from_checkpoint=...)` goes on from the result as it would have from the source.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import torch

from growth.api import How, planned, shard_size
from growth.errors import CheckpointError, OptimizerError
from growth.optimizer import Fresh, grow_state, grown_groups, parameters_by_file_name
from growth.planning import Plan
from growth.publishing import Part
from growth.writing import write_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPTIMIZER = "optimizer.pt"
KEPT = ("scheduler.pt", "scaler.pt", "trainer_state.json", "training_args.bin", "rng_state*.pth")  # byte for byte
SIGNS = ({"betas", "amsgrad"}, {"momentum", "dampening"})  # options of Adam's groups, and of SGD's


def grow_training(
    recipe: How,
    source: str | Path | None,
    output: str | Path,
    *,
    fresh: Fresh = "seed",
    max_shard_size: int | str | None = None,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Grows a checkpoint folder of transformers' Trainer into one from which training goes on; returns the plan.

    The optimizer's state grows as in `growth.grow_optimizer`; scheduler, trainer_state.json, the state of random
    generators and training_args.bin are copied byte for byte. The state is read without running code from it.

    recipe, max_shard_size, seed, progress: as for `growth.grow`.
    source: a folder `checkpoint-N` with config.json, safetensors and optimizer.pt; the recipe's own by default.
    output: a folder that does not exist yet.
    fresh: as for `growth.grow_optimizer`.

    Raises:
        GrowthError: as for `growth.grow`; or the state is missing, is not Adam's or SGD's, is not in the order of
            Trainer's groups, or needs more than tensors and numbers to be read. Nothing is left behind.

    >>> import growth, pathlib, shutil, tempfile, torch, transformers
    >>> run = pathlib.Path(tempfile.mkdtemp())
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("examples/phi-mini")
    >>> trainer = transformers.Trainer(model, transformers.TrainingArguments(str(run), report_to=[]))
    >>> source = shutil.copytree("examples/phi-mini", run / "checkpoint-1")
    >>> torch.save(trainer.create_optimizer().state_dict(), source / "optimizer.pt")
    >>> plan = growth.grow_training("phi-mini", source, run / "larger")
    >>> [len(group["params"]) for group in torch.load(run / "larger" / "optimizer.pt")["param_groups"]]
    [50, 67]
    """
    largest = shard_size(max_shard_size)
    plan, checkpoint, content = planned(recipe, source, None, seed)
    state = grown_state_dict(read_state_dict(checkpoint.folder), plan, fresh)
    kept = [path for pattern in KEPT for path in sorted(checkpoint.folder.glob(pattern))]

    write_checkpoint(
        plan,
        checkpoint,
        content,
        Path(output),
        max_shard_size=largest,
        part=Part(),
        resume=False,
        progress=progress,
        companions={OPTIMIZER: partial(torch.save, state), **{path.name: partial(_copy, path) for path in kept}},
        companion_bytes=_state_bytes(state) + sum(path.stat().st_size for path in kept),
    )
    return plan


def _copy(path: Path, file: BinaryIO) -> None:
    with path.open("rb") as source:
        shutil.copyfileobj(source, file)


def _state_bytes(state: Mapping[str, Any]) -> int:
    values = (value for remembered in state["state"].values() for value in remembered.values())
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def read_state_dict(folder: Path) -> dict[str, Any]:
    """The optimizer's state dict of a Trainer's folder.

    Raises:
        CheckpointError: there is none, or it cannot be read as tensors and numbers alone.
    """
    path = folder / OPTIMIZER
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {OPTIMIZER}: it is no checkpoint of a Trainer in one process (FSDP and DeepSpeed store "
            "theirs in parts). Grow the weights alone, without the training state."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle raises almost anything
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is not tensors and numbers alone, or is damaged: {reason}") from None
    if not (isinstance(state, dict) and isinstance(state.get("param_groups"), list) and _of_dicts(state.get("state"))):
        raise CheckpointError(f"{path} holds no optimizer's state_dict (state and param_groups).")
    groups = state["param_groups"]
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise CheckpointError(f"{path}: a group of parameters lists no params.")
        if not any(sign <= group.keys() for sign in SIGNS):
            raise OptimizerError(
                f"{path} is of an optimizer whose groups have the options {', '.join(sorted(map(str, group)))}: only "
                "the state of torch's Adam, AdamW and SGD can grow."
            )
    return state


def _of_dicts(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(value, dict) for value in found.values())


def grown_state_dict(old: Mapping[str, Any], plan: Plan, fresh: Fresh) -> dict[str, Any]:
    """The state dict of the grown model's optimizer, as Trainer numbers its parameters.

    Raises:
        OptimizerError: the numbers are not those of Trainer's groups, or the state cannot grow.
    """
    names = trainer_groups(meta_model(plan.source.config))
    groups = old["param_groups"]
    _check_sizes([len(group["params"]) for group in groups], [len(group) for group in names])
    by_number = dict(zip(_members(group["params"] for group in groups), _members(names), strict=True))
    unknown = sorted(old["state"].keys() - by_number.keys(), key=str)
    if unknown:
        raise OptimizerError(f"{OPTIMIZER} remembers parameter {unknown[0]}, which is in none of its groups.")
    state = grow_state({by_number[number]: values for number, values in old["state"].items()}, plan, fresh=fresh)
    grown = grown_groups(names, plan, parameters_by_file_name(meta_model(plan.config)))
    numbers = {name: number for number, name in enumerate(_members(grown))}
    return {
        **old,
        "state": {numbers[name]: state[name] for name in numbers if name in state},
        "param_groups": [
            {**group, "params": [numbers[name] for name in members]}
            for group, members in zip(groups, grown, strict=True)
        ],
    }


def meta_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """The stock model of a config, without values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    stated = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **stated), trust_remote_code=False
        )
    return cast("PreTrainedModel", model)


def trainer_groups(model: PreTrainedModel) -> list[list[str]]:
    """The names of a model's parameters as Trainer groups them: those that decay, then the others."""
    from transformers import Trainer

    named = reversed(parameters_by_file_name(model).items())  # a tied head comes last, and files do not have it
    ours = {id(parameter): name for name, parameter in named}
    decaying = set(Trainer.get_decay_parameter_names(cast("Trainer", None), model))  # reads the model only
    groups: list[list[str]] = [[], []]
    for name, parameter in model.named_parameters():
        groups[name not in decaying].append(ours[id(parameter)])
    return groups


def _members(groups: Iterable[Iterable[Any]]) -> list[Any]:
    return [member for group in groups for member in group]


def _check_sizes(found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise OptimizerError(
            f"{OPTIMIZER} has groups of {found} parameters, and Trainer makes {expected} of this model: frozen "
            "parameters, or an optimizer of another make. Grow it in memory: growth.grow_optimizer."
        )
