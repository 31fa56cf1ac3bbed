"""Rank and world size, as torchrun and srun state them in the environment."""

from __future__ import annotations

import os

VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))  # of torchrun, of srun


def rank_and_world_size() -> tuple[int, int] | None:
    """The rank of this process, counted from 1, and the number of processes; None where it was launched alone."""
    for rank, world_size in VARIABLES:
        found = os.environ.get(rank, ""), os.environ.get(world_size, "")
        if all(number.isdecimal() for number in found) and int(found[1]) > 1:
            return int(found[0]) + 1, int(found[1])
    return None
