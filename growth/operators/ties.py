"""Models whose head is the embedding matrix, and the same models with a head of its own.

A tied model is the untied one whose head holds the same values as its embedding. So a checkpoint of either can be read
as the other: untied, its head is read from the embedding; tied, its head is left out. The bias of the logits may have
another name in each of the two (BERT's): it is read from the one that takes part in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from growth.architectures.base import Architecture
from growth.arrays.tensor_info import TensorInfo


@dataclass(frozen=True)
class Head:
    """How the head of the source is read: as tied to the embedding, or as a matrix of its own."""

    tied: bool

    def __call__(
        self, table: Architecture, tensors: Mapping[str, TensorInfo]
    ) -> tuple[Architecture, dict[str, TensorInfo]]:
        """Return the table of the model with that head, and the stored tensors by its names."""
        read = table.with_head(tied=self.tied).named_as_in(tensors)
        embedding = tensors[read.embedding]
        bias = {read.head_bias: tensors[table.head_bias]} if table.head_bias else {}
        return read, {name: tensors.get(name, embedding) for name in read.shapes()} | bias
