"""Launchers: which of several processes this one is."""

from __future__ import annotations

import os

_NAMES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))  # torchrun's, srun's


def rank_and_world_size() -> tuple[int, int] | None:
    """The number of this process, from 1, and of all that were launched together; None where it is alone."""
    for rank, count in _NAMES:
        found = os.environ.get(rank, ""), os.environ.get(count, "")
        if all(number.isdecimal() for number in found) and int(found[1]) > 1:
            return int(found[0]) + 1, int(found[1])
    return None
