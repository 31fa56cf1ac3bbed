"""Rank and world size, as torchrun and srun state them in the environment."""

from __future__ import annotations

import os

# rank, number of processes, and a variable that only the launcher itself sets
TORCHRUN = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID")


def launched_part() -> tuple[int, int] | None:
    """The rank of this process, counted from 1, and the number of processes; None where no launcher started several."""
    return next((part for *names, mark in (TORCHRUN, SRUN) if mark in os.environ and (part := _part(*names))), None)


def stated_part() -> tuple[tuple[int, int], str] | None:
    """Rank and number of processes as any variables state them, launcher or not, and these variables with values."""
    for rank, count, _ in (TORCHRUN, SRUN):
        if part := _part(rank, count):
            return part, f"{rank}={os.environ[rank]} and {count}={os.environ[count]}"
    return None


def _part(rank: str, count: str) -> tuple[int, int] | None:
    found = os.environ.get(rank, ""), os.environ.get(count, "")
    several = all(number.isdecimal() for number in found) and int(found[1]) > 1
    return (int(found[0]) + 1, int(found[1])) if several else None
