"""Numpy arrays as torch tensors and back, without copies."""

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
    """A tensor in the memory of an array; `dtype` is a name of safetensors, such as BF16."""
    return torch.from_numpy(values).view(TORCH_DTYPES[dtype])


def as_array(tensor: Tensor) -> Array:
    """An array in the memory of a CPU tensor; a bfloat16 tensor gives its bits as uint16."""
    values = tensor.detach()
    array: Array = (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
    return array


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a float type in safetensors.

    Raises:
        CheckpointError: the type cannot grow.
    """
    if dtype not in SAFETENSORS_NAMES:
        raise CheckpointError(f"{dtype} cannot grow: only {', '.join(map(str, SAFETENSORS_NAMES))} can.")
    return SAFETENSORS_NAMES[dtype]
