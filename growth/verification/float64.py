"""proof_grade: run stock model classes in float64 throughout (docs/design.md, section 2.4).

Stock classes compute norms, softmax and rotary angles in float32 whatever the dtype of the weights, so two float64
models that compute the same function still differ by about 1e-5. Here every float32 that such code asks for becomes
float64, and the difference falls to float64's own rounding, about 1e-14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# `view(dtype)` reinterprets bytes: with another width it would make another tensor.
_REINTERPRETS = (torch.Tensor.view,)


@contextmanager
def proof_grade() -> Iterator[None]:
    """Give float64 to all code in this context that asks torch for float32: dtype arguments, `.float()`, the default.

    A model must be constructed in this context as well as run in it, or its rotary frequencies stay float32. Read
    stored float32 tensors outside of it, or with torch functions disabled.

    >>> with proof_grade():
    ...     torch.ones(2).float().softmax(0, dtype=torch.float32).dtype
    torch.float64
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64ForFloat32():
            yield
    finally:
        torch.set_default_dtype(default)


class _Float64ForFloat32(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = dict(kwargs or {})
        if func is torch.Tensor.float:
            return torch.Tensor.double(*args, **keywords)
        if func in _REINTERPRETS:
            return func(*args, **keywords)
        return func(*map(_wider, args), **{name: _wider(value) for name, value in keywords.items()})


def _wider(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument
