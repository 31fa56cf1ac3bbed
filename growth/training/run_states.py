"""The files of a Trainer's checkpoint that hold its optimizer's state; needs no torch."""

from pathlib import Path

from growth.checkpoints.formats.dcp import RUN_OPTIMIZER
from growth.errors import CheckpointError

OPTIMIZER = "optimizer.pt"
FULL_OPTIMIZER, FULL_MODEL = "optimizer.bin", "pytorch_model_fsdp.bin"  # of accelerate under FSDP, FULL_STATE_DICT
STATES = (OPTIMIZER, FULL_OPTIMIZER)  # files of torch.save


def state_names(folder: Path) -> set[str]:
    """The names of the files of a run's checkpoint that hold its optimizer's state, or its weights a second time."""
    sharded = {f"{RUN_OPTIMIZER}/{path.name}" for path in (folder / RUN_OPTIMIZER).glob("*")}
    return {name for name in (*STATES, FULL_MODEL) if (folder / name).is_file()} | sharded


def state_file(folder: Path) -> str:
    """The name of the file of the optimizer's state in a Trainer's folder.

    Raises:
        CheckpointError: there is none.
    """
    found = [name for name in STATES if (folder / name).is_file()]
    if not found:
        raise CheckpointError(
            f"{folder} has no {OPTIMIZER} (of a Trainer in one process or under DDP) and no {FULL_OPTIMIZER} or "
            f"{RUN_OPTIMIZER} (under FSDP). To grow the weights alone, leave out --training."
        )
    return found[0]
