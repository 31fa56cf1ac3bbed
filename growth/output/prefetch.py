"""Ahead: a source that is read while its growth is planned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.open import open_checkpoint
from growth.checkpoints.tensor_reader import SourceScan
from growth.runtime.workers import hands


@dataclass(frozen=True)
class Ahead:
    """An opened checkpoint, and what reads all of it."""

    checkpoint: Checkpoint
    reading: SourceScan


@contextmanager
def read_ahead(folder: Path) -> Iterator[Ahead]:
    """Opens a folder and has a process of its own read it, for as long as the context lasts.

    Raises:
        GrowthError: what is there is no checkpoint.
    """
    checkpoint = open_checkpoint(folder)
    with hands(forks=True) as many, SourceScan.begun(many, checkpoint.tensors) as reading:
        yield Ahead(checkpoint, reading)
