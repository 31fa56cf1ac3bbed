"""How much of a source each of several processes reads: those that share output files, and ranks that grow on load."""

from collections.abc import Iterator

from models import Bench
from scale import NODES

from growth.checkpoints.tensor_reader import Files
from growth.distributed.parameter_boxes import BoxSource as Source
from growth.distributed.parameter_boxes import grow_box, is_measured
from growth.engine.grow_tensor import Statistics, measure
from growth.output.shards import shards_of, share, sources_of
from growth.output.writer_rank import WriterRank
from growth.planning.prepare import planned
from growth.planning.tensor_map import TensorMap

RANKS = (1, 2, 4, 8)
FILE = 5_000_000_000  # bytes of an output file


def parts_of_files(bench: Bench) -> dict:
    """Of the plans of large models: what the part that reads most reads, times the parts, over the source's bytes."""
    found = {}
    for name, case in bench.planned.items():
        plan, checkpoint, _ = planned(bench.recipe(case), bench.source(case), None, None)
        source = sum(info.bytes for info in checkpoint.tensors.values())
        files = shards_of(plan, FILE)
        counts = [count for count in NODES if count <= len(files)]
        found[name] = {
            "files": len(files),
            "factors": {count: count * max(_reads(files, count)) / source for count in counts},
        }
    return found


def _reads(files: list, count: int) -> Iterator[int]:
    """Bytes of the source tensors that each part's files are made from."""
    for index in range(1, count + 1):
        own = share(files, WriterRank(index, count))
        yield sum(info.bytes for info in sources_of(row for file in own for row in file.tensors).values())


def ranks_on_load(bench: Bench) -> dict:
    """Of a model that grows a quarter wider on load: what the rank that reads most reads, times the ranks, over what
    one reads; every parameter cut by rows, as FSDP does, or its matrices by columns, as tensor parallelism does."""
    case = next(iter(bench.sweep.values()))
    plan, checkpoint, _ = planned(bench.recipe(case), bench.source(case), None, None)
    files = Files(checkpoint.tensors)
    measured = {row.target: measure(row, Source(files)) for row in plan.tensors}
    wide = sum(row.source.bytes for row in plan.tensors if is_measured(row))  # measured in equal shares

    def most(axis: int, count: int) -> float:
        """Bytes that the rank with the most reads."""
        own = [0] * count
        for row in plan.tensors:
            for index, box in enumerate(_boxes(row, axis, count)):
                own[index] += _read(row, files, measured[row.target], plan.seed, box)
        return max(own) + wide / count

    alone = most(0, 1)
    return {
        way: {count: count * most(axis, count) / alone for count in RANKS}
        for axis, way in enumerate(("rows", "columns"))
    }


def _boxes(row: TensorMap, axis: int, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """The box of each rank, offsets and sizes: equal ones, of which the last may be shorter."""
    axis = min(axis, len(row.shape) - 1)
    length = row.shape[axis]
    step = -(-length // count)
    for start in range(0, length, step):
        offsets, sizes = [0] * len(row.shape), list(row.shape)
        offsets[axis], sizes[axis] = start, min(step, length - start)
        yield offsets, sizes


def _read(row: TensorMap, files: Files, measured: Statistics, seed: int, box: tuple[list[int], list[int]]) -> int:
    source = Source(files, row, box)
    for _ in grow_box(row, source, measured, seed, box):
        pass
    return source.bytes_read
