"""Tensors grown again from the source, beside those that a grown folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import local

import xxhash

from growth.arrays.buffers import Workspace
from growth.arrays.casting import half_products_exact
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.tensor_reader import Files, scan
from growth.engine.grow_tensor import FileSource, Grower, blocks_of, ignore_overflow, measure
from growth.output.shards import sources_of
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap
from growth.runtime.workers import Progress, ProgressCounter, WorkerPool


@dataclass(frozen=True)
class GrownAgain:
    """What growing tensors again showed.

    read, digests: the hash of the bytes of each source tensor, and of each stored tensor as it should be.
    problems: where a stored tensor first differs from that, by its name.
    """

    read: Mapping[str, str]
    digests: Mapping[str, str]
    problems: Mapping[str, str]


def grow_again(
    plan: Plan,
    rows: Sequence[TensorMap],
    places: Mapping[str, TensorInfo],
    progress: Progress | None = None,
    *,
    forks: bool = False,
) -> GrownAgain:
    """Reads the sources of some of a plan's tensors, and computes and compares those that are stored.

    places: where the stored ones are. A tensor without a place costs nothing, however large it would be.

    Raises:
        CheckpointError: the source cannot be read, or is not finite; a file is changed while it is read.
    """
    tensors = sources_of(rows)
    stored = [row for row in rows if row.target in places]
    for dtype in {row.dtype for row in stored}:
        half_products_exact(dtype)  # is tried here, and not by each process that is forked
    pool, files = WorkerPool(forks=forks), Files(tensors)
    contents = scan(pool, files, tensors, progress)
    meter = ProgressCounter("compare", sum(row.bytes for row in stored), progress)
    again = _Again(plan.seed, files, places, meter)
    found = pool.run([partial(again.grow, row) for row in stored], meter)
    files.check_unchanged()
    again.stored.check_unchanged()
    names = [row.target for row in stored]
    return GrownAgain(
        {name: content.xxh3_128 for name, content in contents.items()},
        {name: digest for name, (digest, _) in zip(names, found, strict=True)},
        {name: problem for name, (_, problem) in zip(names, found, strict=True) if problem is not None},
    )


class _Again:
    """Grows tensors again, beside those that are stored."""

    def __init__(
        self,
        seed: int,
        source: Files,
        places: Mapping[str, TensorInfo],
        meter: ProgressCounter,
    ):
        self._seed, self._source, self._places = seed, source, places
        self.stored = Files(places)
        self._thread = local()
        self.meter = meter

    @ignore_overflow()
    def grow(self, row: TensorMap) -> tuple[str, str | None]:
        """The hash of a tensor's bytes, and where what is stored first differs from them."""
        workspace = self._thread.__dict__.setdefault("workspace", Workspace())
        disk = FileSource(self._source)
        grower = Grower(row, disk, self._seed, measure(row, disk, workspace), workspace)
        fill = self.stored.filling(self._places[row.target])
        whole, problem = xxhash.xxh3_128(), None
        for start, stop in blocks_of(row):
            expected = grower.bytes(start, stop)
            whole.update(expected)
            if problem is None:
                actual = memoryview(bytearray(len(expected)))
                fill(start, stop, actual)
                problem = _first_difference(expected, actual, start, row.row_bytes)
            self.meter.add(len(expected))
        return whole.hexdigest(), problem


def _first_difference(expected: memoryview, actual: memoryview, start: int, row_bytes: int) -> str | None:
    """The first row that differs, of rows that begin with `start`."""
    if actual == expected:
        return None
    rows = range(0, len(expected), row_bytes)
    first = next(at for at in rows if actual[at : at + row_bytes] != expected[at : at + row_bytes])
    return f"its bytes differ in row {start + first // row_bytes}"
