"""FP8 matrices with a scale per block, as DeepSeek-V3 and the FP8 checkpoints of Qwen3 store them, read as floats.

A value is its FP8 code (E4M3) times the scale of its block. The product is taken in float32 and rounded once to the
type of the checkpoint's other weights, as in `Fp8Dequantize` of transformers (integrations/finegrained_fp8.py). Blocks
are counted from the first row and column; those at the end may be cut off. (Transformers infers the block from the
number of scales instead, and refuses or misplaces blocks that are cut off.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from growth.arrays.casting import INFINITY, NUMPY_DTYPES, Array, bytes_view, cast
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.chunks import ComposedInfo, Reader

CODES = "F8_E4M3"
SCALES = ("F32", "BF16", "F16")


def _e4m3() -> Array:
    """The value of each FP8 code: a sign, 4 bits of exponent and 3 of fraction; 0x7f and 0xff are NaN."""
    codes = np.arange(1 << 8)
    exponent, fraction = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10.0))
    values[codes & 127 == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


E4M3 = _e4m3()


@dataclass(frozen=True)
class BlockScaledInfo(ComposedInfo):
    """A matrix that is stored as FP8 codes and a scale for each block; it reads as one of plain floats.

    Attributes:
        codes: the stored FP8 values.
        scales: the factor of each block, one row for each row of blocks; a single one has any shape.
        block: rows and columns of a block.
    """

    codes: TensorInfo = field(kw_only=True)
    scales: TensorInfo = field(kw_only=True)
    block: tuple[int, int] = field(kw_only=True)

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        """The stored codes and scales."""
        return self.codes, self.scales

    def fill(self, reader: Reader, start: int, stop: int, view: memoryview) -> None:
        """Fill memory with rows of dequantised values; what is not finite becomes NaN."""
        codes, (height, width) = np.empty((stop - start, self.shape[1]), np.uint8), self.block
        reader(self.codes)(start, stop, bytes_view(codes))
        first, last = start // height, (stop - 1) // height + 1
        scales = self._scales(reader, first, last)
        rows, columns = np.arange(start, stop) // height - first, np.arange(self.shape[1]) // width
        with np.errstate(over="ignore", invalid="ignore"):
            values = E4M3[codes]
            values *= scales[:, columns][rows]
        into = np.frombuffer(view, NUMPY_DTYPES[self.dtype]).reshape(values.shape)
        cast(values, into)
        unsigned, infinity = INFINITY[self.dtype]
        into.view(unsigned)[~np.isfinite(values)] = infinity + 1

    def _scales(self, reader: Reader, first: int, last: int) -> Array:
        """The scales of some rows of blocks, in float32."""
        stored = np.empty((last - first, *self.scales.shape[1:]), NUMPY_DTYPES[self.scales.dtype])
        reader(self.scales)(first, last, bytes_view(stored))
        return cast(stored, np.empty(stored.shape, np.float32)).reshape(last - first, -1)


def blocks(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The number of rows and columns of blocks in a matrix.

    >>> blocks((576, 7168), (128, 128))
    (5, 56)
    """
    return tuple(-(-length // size) for length, size in zip(shape, block, strict=True))
