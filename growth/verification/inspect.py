"""inspect: what a checkpoint holds, and whether all of its values are finite."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growth.architectures import architecture
from growth.arrays.tensor_info import FLOATS, TensorInfo
from growth.checkpoints.chunks import paths
from growth.checkpoints.hub import resolve
from growth.checkpoints.open import open_stored, with_published_names
from growth.checkpoints.published import check_repeated
from growth.checkpoints.quantised import as_floats
from growth.checkpoints.tensor_reader import Files, count_not_finite, pieces
from growth.errors import GrowthError
from growth.planning.check import match_tensors
from growth.planning.manifest import sizes


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        sizes: the sizes of axes and the number of layers; empty if the family is unknown.
        problem: why the checkpoint cannot grow, or None.
        not_finite: the number of NaN or Inf values of each tensor that has any.
        notes: how the folder was read: files and names that were chosen or left out.
        dropped: tensors that the model class computes itself.
    """

    folder: Path
    model_type: str | None
    sizes: dict[str, int]
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    files: int
    problem: str | None
    not_finite: dict[str, int]
    notes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return {**vars(self), "folder": str(self.folder)}


def inspect_checkpoint(source: str | Path) -> Inspection:
    """Read a checkpoint folder or hub id: headers, config, and every value once.

    Raises:
        CheckpointError: the headers cannot be read.
    """
    folder = resolve(source)
    checkpoint = open_stored(folder)
    found: dict[str, int] = {}
    problem = None
    try:
        checkpoint = with_published_names(as_floats(checkpoint))
        built = architecture(checkpoint.config).named_as_in(checkpoint.tensors)
        found = sizes(built)
        match_tensors(built, checkpoint.tensors)
        check_repeated(checkpoint)
    except GrowthError as error:
        problem = str(error)
    tensors, model_type = checkpoint.tensors, checkpoint.config.get("model_type")
    dtypes: Counter[str] = Counter()
    for info in tensors.values():
        dtypes[info.dtype] += math.prod(info.shape)
    return Inspection(
        folder=folder,
        model_type=model_type if isinstance(model_type, str) else None,
        sizes=found,
        parameters=sum(dtypes.values()),
        bytes=sum(info.bytes for info in tensors.values()),
        dtypes=dict(dtypes),
        files=len({path for info in tensors.values() for path in paths(info)}),
        problem=problem,
        not_finite=_not_finite({name: info for name, info in tensors.items() if info.dtype in FLOATS}),
        notes=checkpoint.notes,
        dropped=checkpoint.dropped,
    )


def _not_finite(tensors: dict[str, TensorInfo]) -> dict[str, int]:
    files = Files(tensors)
    counts = {
        name: sum(count_not_finite(part, info.dtype) for _, part in pieces(files, info))
        for name, info in tensors.items()
    }
    return {name: count for name, count in counts.items() if count}
