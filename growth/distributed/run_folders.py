"""The files of a run that accelerate shards by FSDP, in either of its ways (`fsdp_state_dict_type`).

SHARDED_STATE_DICT: two folders of torch.distributed.checkpoint, {"model": …} and {"optimizer": …}, by the names of
parameters. FULL_STATE_DICT: files of torch.save for the same two, beside safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.formats.dcp import METADATA, PREFIX, RUN_MODEL, RUN_OPTIMIZER
from growth.checkpoints.tensor_reader import Files
from growth.distributed.dcp_writer import EngineFolder, grow_parameter, unwritten
from growth.distributed.optimizer_parameters import moment_parameters, steps
from growth.distributed.parameter_boxes import parameters
from growth.errors import CheckpointError
from growth.output.shards import sources_of
from growth.planning.plan import Plan
from growth.training.moments import Fresh
from growth.training.run_states import FULL_MODEL
from growth.training.stored_state import grown_state

OPTIMIZER = "optimizer."  # prefix of names in the folder of the optimizer's state


def is_sharded_run(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run whose weights are sharded files."""
    return (folder / RUN_MODEL / METADATA).is_file()


def run_folders(plan: Plan, checkpoint: Checkpoint, fresh: Fresh = "mean") -> list[EngineFolder]:
    """The folders of the grown run: its weights, and its optimizer's state.

    fresh: as for `growth.grow_optimizer`, but for "all".

    Raises:
        GrowthError: the source has no such state, or it cannot grow.
    """
    if not (checkpoint.folder / RUN_OPTIMIZER / METADATA).is_file():
        raise CheckpointError(
            f"{checkpoint.folder} has no {RUN_OPTIMIZER}/{METADATA}: the run did not save its optimizer's state. To "
            "grow the weights alone, leave out --training."
        )
    weights = parameters(plan)
    state = grown_state(checkpoint.folder / RUN_OPTIMIZER, plan, fresh)
    trained = {name: weights[name] for group in state.groups for name in group["params"]}
    moments = moment_parameters(trained, state)
    kept = _nested({**unwritten(moments), **dict(steps(trained, state))})
    groups = [dict(group) for group in state.groups]
    grown = {OPTIMIZER + name: moment for name, moment in moments.items()}
    unsigned = frozenset(name for name in grown if name.rpartition(".")[2] in state.unsigned)
    return [
        EngineFolder(
            {PREFIX[:-1]: unwritten(weights)}, {PREFIX + name: one for name, one in weights.items()}, home=RUN_MODEL
        ),
        EngineFolder({OPTIMIZER[:-1]: {"state": kept, "param_groups": groups}}, grown, unsigned, RUN_OPTIMIZER),
    ]


def full_model_file(plan: Plan) -> tuple[Callable[[BinaryIO], None], int]:
    """What writes pytorch_model_fsdp.bin, the state dict of the grown stock class, and its size in bytes."""
    found = parameters(plan)

    def write(stream: BinaryIO) -> None:
        files = Files(sources_of(plan.tensors))
        torch.save({name: grow_parameter(one, files, plan.seed)[0] for name, one in found.items()}, stream)

    return write, sum(one.bytes for one in found.values())


def has_full_model(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run that saves whole state dicts."""
    return (folder / FULL_MODEL).is_file()


def _nested(entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries `state.PARAMETER.KEY` as a dictionary of each parameter."""
    found: dict[str, dict[str, Any]] = {}
    for entry, value in entries.items():
        name, _, key = entry.removeprefix("state.").rpartition(".")
        found.setdefault(name, {})[key] = value
    return found
