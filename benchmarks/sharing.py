"""Measure how much of a source each process reads: parts that share the files, and ranks that grow on load."""

from collections.abc import Iterator

from models import Bench
from scale import NODES

from growth.checkpoints.tensor_reader import Files
from growth.distributed.column_means import has_column_means, measure_rows
from growth.distributed.parameter_boxes import BoxSource as Source
from growth.distributed.parameter_boxes import grow_box, is_measured, reads_whole_rows
from growth.engine.grow_tensor import measure
from growth.output.shards import shards_of, share, sources_of
from growth.output.writer_rank import WriterRank
from growth.planning.prepare import planned
from growth.planning.tensor_map import TensorMap

RANKS = (1, 2, 4, 8)
FILE = 5_000_000_000  # bytes of an output file


def parts_of_files(bench: Bench) -> dict:
    """Return what the busiest part reads of large models, times the number of parts, over the source's bytes."""
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
    """Return the bytes of the source tensors that the files of each part are made from."""
    for index in range(1, count + 1):
        own = share(files, WriterRank(index, count))
        yield sum(info.bytes for info in sources_of(tensor_map for file in own for tensor_map in file.tensors).values())


def ranks_on_load(bench: Bench) -> dict:
    """Return what the busiest rank reads, times the number of ranks, over what a single rank reads.

    The model grows wider by a quarter on load. Parameters are cut by rows (FSDP), or matrices by columns (tensor
    parallelism).
    """
    case = next(iter(bench.sweep.values()))
    plan, checkpoint, _ = planned(bench.recipe(case), bench.source(case), None, None)
    files = Files(checkpoint.tensors)
    whole = Source(files)
    statistics = {tensor_map.target: measure(tensor_map, whole) for tensor_map in plan.tensors}
    means = {
        tensor_map.target: measure_rows(tensor_map, whole, 0, tensor_map.source.shape[0])
        for tensor_map in plan.tensors
        if has_column_means(tensor_map)
    }
    wide = sum(
        tensor_map.source.bytes for tensor_map in plan.tensors if is_measured(tensor_map)
    )  # measured in equal shares

    def read(tensor_map: TensorMap, box: tuple[list[int], list[int]], count: int) -> float:
        """Return the bytes that a rank reads for a box, and for its share of the means that the box needs."""
        cut = has_column_means(tensor_map) and not reads_whole_rows(tensor_map, box, means_given=True)
        given = means[tensor_map.target] if cut else None
        source = Source(files, tensor_map, box, means_given=cut)
        for _ in grow_box(tensor_map, source, statistics[tensor_map.target], plan.seed, box, given):
            pass
        return source.bytes_read + cut * tensor_map.source.bytes / count

    def most(axis: int, count: int) -> float:
        """Return the bytes that the busiest rank reads."""
        own = [0.0] * count
        for tensor_map in plan.tensors:
            for index, box in enumerate(_boxes(tensor_map, axis, count)):
                own[index] += read(tensor_map, box, count)
        return max(own) + wide / count

    alone = most(0, 1)
    return {
        way: {count: count * most(axis, count) / alone for count in RANKS}
        for axis, way in enumerate(("rows", "columns"))
    }


def _boxes(tensor_map: TensorMap, axis: int, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Return the box (offsets, sizes) of each rank; all are equal but the last, which may be smaller."""
    axis = min(axis, len(tensor_map.shape) - 1)
    length = tensor_map.shape[axis]
    step = -(-length // count)
    for start in range(0, length, step):
        offsets, sizes = [0] * len(tensor_map.shape), list(tensor_map.shape)
        offsets[axis], sizes[axis] = start, min(step, length - start)
        yield offsets, sizes
