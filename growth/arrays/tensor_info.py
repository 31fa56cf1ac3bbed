"""Where a stored tensor is and how its bytes are to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# bytes of one value; safetensors lays out the tensors of a file in this order of types
ITEM_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32", "F64")
DTYPES = {  # the types that can grow, by the names that users give
    "float16": "F16", "fp16": "F16", "bfloat16": "BF16", "bf16": "BF16",
    "float32": "F32", "fp32": "F32", "float64": "F64", "fp64": "F64",
}  # fmt: skip
NO_SOURCE = ""  # the name of a tensor that a source does not hold


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a header describes it.

    Attributes:
        name: of the tensor.
        dtype: as safetensors names it.
        shape: of the tensor; its values are stored row-major.
        path: the file; None for a tensor that is not stored.
        begin: the offset of the first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path | None = None
    begin: int = 0

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row (one index of the first dimension)."""
        return ITEM_SIZE[self.dtype] * math.prod(self.shape[1:])

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return ITEM_SIZE[self.dtype] * math.prod(self.shape)
