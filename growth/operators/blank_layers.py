"""Models without layers (an embedding, a final norm and a head), read as models of layers that hold no values yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from growth.architectures.base import Architecture
from growth.arrays.tensor_info import NO_SOURCE, TensorInfo


@dataclass(frozen=True)
class BlankLayers:
    """How a source without layers is read: as a model of `count` layers, whose kinds its config implies."""

    count: int

    def __call__(
        self, table: Architecture, tensors: Mapping[str, TensorInfo]
    ) -> tuple[Architecture, dict[str, TensorInfo]]:
        """Return the table of the model with these layers, and its tensors by their names; layers have none yet."""
        read = table.with_depth(self.count).named_as_in(tensors)
        read.refuse_enormous()
        dtype = tensors[read.embedding].dtype
        return read, {
            name: tensors.get(name, TensorInfo(NO_SOURCE, dtype, shape)) for name, shape in read.shapes().items()
        }
