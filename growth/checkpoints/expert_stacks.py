"""Stacks: one parameter of a stock class holds what published files keep in several tensors of one shape.

Experts follow one another along the stack's first dimension. Where an expert has several tensors in one stack (gate
and up projection), these follow one another along the second. Where tensors have as many dimensions as their stack
(kernels of queries, keys and values), they follow one another along the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.chunks import Chunk, chunks, joined

Shape = tuple[int, ...]


def offsets(count: int, shape: Shape, stack: Shape) -> list[Shape]:
    """The index in a parameter of shape `stack` at which each of `count` tensors of one shape begins, in order.

    >>> offsets(4, (3, 5), (2, 6, 5))
    [(0, 0, 0), (0, 3, 0), (1, 0, 0), (1, 3, 0)]
    >>> offsets(2, (3, 5), (6, 5))
    [(0, 0), (3, 0)]
    """
    if len(stack) == len(shape):
        return [tuple(n * length if dim == 0 else 0 for dim, length in enumerate(shape)) for n in range(count)]
    height, *others = shape
    per_expert = stack[1] // height
    return [(n // per_expert, n % per_expert * height, *(0 for _ in others)) for n in range(count)]


def count_pieces(stack: TensorInfo, shape: Shape) -> int:
    """The number of pieces into which a stack's chunks cut its tensors of a shape."""
    boxes = [_of_experts(chunk.box, len(shape)) for chunk in chunks(stack)]
    return sum((experts.stop - experts.start) * len(_first_rows(rows, shape[0])) for experts, rows, *_ in boxes)


def unstacked(stack: TensorInfo, parts: Mapping[Shape, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors of one shape that a stack holds, by name.

    Args:
        stack: the stored parameter.
        parts: their names and shape, by the index in the stack at which each begins.
    """
    shape = next(iter(parts.values())).shape
    lacking = len(stack.shape) - len(shape)  # 1 for experts
    names = {(0, *offsets)[lacking : lacking + 2]: part.name for offsets, part in parts.items()}
    found: dict[str, list[Chunk]] = {name: [] for name in names.values()}
    for chunk in chunks(stack):
        experts, rows, *_ = _of_experts(chunk.box, len(shape))
        for expert in range(experts.start, experts.stop):
            for low in _first_rows(rows, shape[0]):
                start, stop = max(low, rows.start), min(low + shape[0], rows.stop)
                name = names[expert, low]
                piece = TensorInfo(name, stack.dtype, (stop - start, *chunk.info.shape[lacking + 1 :]), chunk.info.path)
                rows_before = (expert - experts.start) * (rows.stop - rows.start) + start - rows.start
                piece = replace(piece, begin=chunk.info.begin + rows_before * piece.row_bytes)
                found[name].append(Chunk((start - low, *chunk.offsets[lacking + 1 :]), piece))
    return {name: joined(name, stack.dtype, shape, pieces) for name, pieces in found.items()}


def _of_experts(box: tuple[slice, ...], dimensions: int) -> tuple[slice, ...]:
    """The slices of a stack, as those of one expert if its tensors have as many dimensions as it."""
    return box if len(box) > dimensions else (slice(0, 1), *box)


def _first_rows(rows: slice, height: int) -> range:
    """The first row of each tensor of `height` rows that has any of these rows."""
    return range(rows.start // height * height, rows.stop, height)
