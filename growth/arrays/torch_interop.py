"""Arrays as torch tensors and back, in the same memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from growth.arrays.casting import Array
from growth.errors import CheckpointError

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
SAFETENSORS_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def as_tensor(values: Array, dtype: str) -> Tensor:
    """A tensor of the type that safetensors calls `dtype`, in the array's memory."""
    return torch.from_numpy(values).view(TORCH_DTYPES[dtype])


def as_array(tensor: Tensor) -> Array:
    """An array in the memory of a tensor of the CPU; of a bfloat16's bits."""
    values = tensor.detach()
    array: Array = (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
    return array


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a float type.

    Raises:
        CheckpointError: a type that cannot grow.
    """
    if dtype not in SAFETENSORS_NAMES:
        raise CheckpointError(f"{dtype} cannot grow: only {', '.join(map(str, SAFETENSORS_NAMES))} can.")
    return SAFETENSORS_NAMES[dtype]
