"""Write docs/scale.md: how long growing would take on many nodes, computed from what bench.json measured on one.

make scale        (or: python benchmarks/scale.py --bench out/bench/bench.json --output docs/scale.md --storage 2)
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NODES = (1, 2, 4, 8, 16, 32, 64)
MODELS = {"8 B": 8e9, "70 B": 70e9, "405 B": 405e9, "mixture of 1 T": 1e12}
DENSE, MIXTURE = "llama of 405 B", "mixture of 1 T"  # their plans say what each part reads
ITEM = 2  # bytes of a bf16 value


@dataclass(frozen=True)
class Constants:
    """The measured speed and memory of a process on one node.

    start: seconds that do not depend on size.
    read: GB/s of the first pass over the source, which hashes it and checks for NaN.
    write: GB/s of output, including the second pass over the source.
    r2: R² of the line that start and write define.
    peak: largest measured peak memory, in GB.
    """

    start: float
    read: float
    write: float
    r2: float
    peak: float

    def predicted(self, source: float, output: float) -> float:
        """Return the seconds of one process for a source and an output, in GB."""
        return self.start + source / self.read + output / self.write


def fitted(figures: dict) -> Constants:
    """Fit the constants to the growths by size."""
    points = list(figures["sweep"]["points"].values())
    source, output = (np.array([point[key] for point in points]) / 1e9 for key in ("source_bytes", "bytes"))
    reading, seconds, peaks = (
        np.array([point[key]["median"] for point in points]) for key in ("read_seconds", "seconds", "peak_mb")
    )
    read = float((source @ source) / (source @ reading))  # least squares, through 0
    behind = seconds - source / read
    slope, start = np.polyfit(output, behind, 1)
    r2 = np.corrcoef(output, behind)[0, 1] ** 2
    return Constants(start, read, 1 / slope, r2, peaks.max() * 2**20 / 1e9)


def numbered(factors: dict[str, float]) -> dict[int, float]:
    """Return factors by number of processes, with the keys as integers again."""
    return {int(count): factor for count, factor in factors.items()}


def beyond(measured: dict[int, float], ranks: int) -> float:
    """Return the measured factor; beyond the measurements, add the last increase for each further doubling."""
    last, before = sorted(measured)[-1], sorted(measured)[-2]
    if ranks <= last:
        return measured[ranks]
    return measured[last] + (measured[last] - measured[before]) * math.log2(ranks / last)


def from_files(
    constants: Constants, storage: float, source: float, output: float, nodes: int, factor: dict[int, float]
) -> float:
    """Return the seconds of `growth grow --part i/n` with one part per node, for sizes in GB and storage in GB/s.

    Every part reads its source tensors twice, to hash and to grow them, and writes its own files.
    """
    reading, own = beyond(factor, nodes) * source / nodes, output / nodes
    checking = reading / min(constants.read, storage)
    writing = max(own / constants.write, (own + reading) / storage)
    return constants.start + checking + writing


def on_load(
    constants: Constants, storage: float, source: float, output: float, ranks: int, factor: dict[int, float]
) -> float:
    """Return the seconds of a load through GrowReader with one rank per node: no hash, nothing written."""
    read = beyond(factor, ranks) * source / ranks
    return constants.start + max(read / storage, output / ranks / constants.write)


def duration(seconds: float) -> str:
    """Format a duration: seconds up to two minutes, then minutes, then hours.

    >>> duration(90), duration(600), duration(9000)
    ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.{int(seconds < 600)}f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def volume(gigabytes: float) -> str:
    """Format a size in GB, or in TB from 1000 GB on, to three digits.

    >>> volume(16), volume(3240)
    ('16 GB', '3.24 TB')
    """
    return f"{gigabytes:.3g} GB" if gigabytes < 999.5 else f"{gigabytes / 1000:.3g} TB"


def markdown(*rows: tuple[object, ...]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def document(figures: dict, constants: Constants, storage: float) -> str:
    """Return the whole of docs/scale.md."""
    c, machine = constants, figures.get("machine", {})
    where = f"{machine.get('cores', '?')} cores ({machine.get('processor', 'unknown')})"
    sizes = {name: (ITEM * count / 1e9, 2 * ITEM * count / 1e9) for name, count in MODELS.items()}
    ways = {way: numbered(factors) for way, factors in figures["sharing"]["ranks"].items()}
    shared = {name: numbered(one["factors"]) for name, one in figures["sharing"]["parts"].items()}
    parted = {name: shared[MIXTURE if "mixture" in name else DENSE] for name in MODELS}
    files = [("model", "source", "output", *(f"{n} node{'s' * (n > 1)}" for n in NODES))]
    rows, columns = list(files), list(files)
    for name, (source, output) in sizes.items():
        about = (name, volume(source), volume(output))
        files.append((*about, *(duration(from_files(c, storage, source, output, n, parted[name])) for n in NODES)))
        rows.append((*about, *(duration(on_load(c, storage, source, output, n, ways["rows"])) for n in NODES)))
        columns.append((*about, *(duration(on_load(c, storage, source, output, n, ways["columns"])) for n in NODES)))
    traffic = [("model", "way", *(f"{n} node{'s' * (n > 1)}" for n in NODES))]
    held = [("model", *(f"{n} node{'s' * (n > 1)}" for n in NODES))]
    for name, (source, output) in sizes.items():
        read = ((n, 2 * beyond(parted[name], n) * source / n) for n in NODES)
        per_file = (f"{volume(twice)} + {volume(output / n)}" for n, twice in read)
        traffic.append((name, "files: read + written", *per_file))
        for way, factor in ways.items():
            traffic.append((name, f"on load, {way}: read", *(volume(beyond(factor, n) * source / n) for n in NODES)))
        held.append((name, *(volume(output / n + c.peak) for n in NODES)))
    factors = [("parameters sharded by", *(f"{n} rank{'s' * (n > 1)}" for n in NODES))]
    for way, factor in (
        ("rows (FSDP)", ways["rows"]),
        ("columns (as tensor parallelism shards about half of the matrices)", ways["columns"]),
    ):
        marked = (f"{beyond(factor, n):.2f}" if n in factor else f"*{beyond(factor, n):.2f}*" for n in NODES)
        factors.append((way, *marked))
    portions = [("plan", *(f"{n} part{'s' * (n > 1)}" for n in NODES))]
    portions += [(name, *(f"{beyond(factor, n):.2f}" for n in NODES)) for name, factor in shared.items()]
    return f"""\
# Scale, computed

This page states how long growing would take on 1 to 64 nodes, computed from measurements of one process on one machine.
`make scale` writes this page from the figures of `make bench`. **Every figure for several nodes is computed, not
measured.** [scale-training.md](scale-training.md) is about growing the optimizer too, in the middle of training.

## What was measured

These constants were measured on {where}, with sources in the page cache and
outputs on {figures["sweep"]["place"]}:

{_constants(c)}

The line was fitted to sources whose widths grow by 25 %. The table shows these points, and runs to which it was not
fitted:

{_points(figures, c)}

The source is read twice: once to hash it and to check for NaN, once to grow it. Each process works on one tensor, block
by block, so memory depends on the number of processes and on the plan, not on the size of the model or its tensors.

The overhead f of reading through `GrowReader` is the number of bytes that the busiest rank reads, times the number of
ranks, divided by what a single process reads, for a model whose widths grow by 25 %. It was measured by `bench.py
--only sharing`. Figures in *italics* are extrapolated: every further doubling adds the last measured increase.

{markdown(*factors)}

On gloo ranks, with small models of eight layers and a quarter wider (Phi tiled, Llama padded), the busiest rank read
these multiples of an equal share of what one process reads, as GrowReader counts them and `preadv` returns them
(`pytest -n0 -s -m "" -k its_share tests/distributed/test_distributed.py`, which allows 1.2 by rows and 1.5 by columns):

| model, shards | weights: 2, 4, 8 ranks | AdamW's state: 2, 4, 8 ranks |
|---|---|---|
| Phi, rows | 1.00, 1.00, 1.00 | 1.00, 1.00, 1.00 |
| Phi, columns | 1.17, 1.17, 1.17 | 1.19, 1.19, 1.19 |
| Llama, rows | 1.11, 1.12, 1.12 | 1.12, 1.12, 1.12 |
| Llama, columns | 1.13, 1.14, 1.14 | 1.14, 1.15, 1.15 |

A growth by more has a larger factor: where a matrix is padded to twice its rows, half of the ranks hold all old rows,
and the busiest reads twice its share.

The overhead g of `--part` is the number of bytes of source tensors that the busiest part needs, times the number of
parts, divided by the bytes of the source. It follows from the plans of models whose depth doubles, in files of 5 GB (a
copied layer may be in another part than its original):

{markdown(*portions)}

## What is assumed

- A model of P parameters in bf16 has S = 2 P bytes, and the recipe doubles its parameters: the output has
  T = 2 S bytes.
- Each node reads and writes its storage at B = {storage:g} GB/s (`benchmarks/scale.py --storage`), whatever the others
  do. A file server that all nodes share must provide N times that rate.
- Each node runs one command, which is assumed to be as fast as the one measured on {machine.get("cores", "?")}
  cores. The command uses up to 8 cores, so real nodes are faster, until storage limits them.
- Tensors are small compared with the data of one node, so the work is divided evenly although each part writes whole
  files (`--max-shard-size`) and no tensor spans two files.
- No part waits for another: parts share only the file system, and the last to finish publishes the output.

## Files, written by many processes

With `growth grow RECIPE --part i/N`, every part reads the source tensors that its own files need: once to hash them and
check for NaN, once to grow them. With g from above, the time is:

    seconds = start + g S / N / min(read, B) + max(T / N / write, (g S + T) / N / B)

{markdown(*files)}

The memory of each process is that of growing small models, {c.peak:.2f} GB, plus that of a larger plan:

{_plans(figures["startup"])}

## Grown on load

With `dcp.load(state, storage_reader=GrowReader(source, recipe))`, each rank reads what its own parameters are made
from; nothing is hashed and nothing is written. Growing is assumed to be as slow as writing, which overestimates the
time. With f from above, the time is:

    seconds = start + max(f S / N / B, T / N / write)

If parameters are sharded by rows:

{markdown(*rows)}

If parameters are sharded by columns:

{markdown(*columns)}

The memory of each rank is its part of the parameters plus that of a process:

{markdown(*held)}

## Bytes per node

{markdown(*traffic)}
"""


def _constants(c: Constants) -> str:
    return markdown(
        ("", "", "from"),
        ("start", f"{c.start:.2f} s", "intercept of (seconds − S / read) against the bytes of output, over all sizes"),
        ("read", f"{c.read:.2f} GB/s", "hashing the source and checking it for NaN; least squares through 0"),
        ("write", f"{c.write:.2f} GB/s", f"slope of the same line; R² = {c.r2:.4f}"),
        ("memory", f"{c.peak:.2f} GB", "largest peak over all sizes"),
    )


def _plans(startup: dict) -> str:
    plans = {name: one for name, one in startup.items() if "tensors" in one}
    rows = [(name, one["tensors"], one["files"], one["seconds"], one["peak_mb"]) for name, one in plans.items()]
    told = ((name, f"{n:,}", f"{files:,}", f"{s['median']:.2f}", f"{p['median']:.0f}") for name, n, files, s, p in rows)
    return markdown(("", "tensors of output", "files of source", "seconds", "MB of memory"), *told)


def _points(figures: dict, c: Constants) -> str:
    rows: list[tuple[object, ...]] = [("run", "GB in", "GB out", "seconds", "by the formula", "GB of memory")]
    points = {f"{name} (fitted)": point | {"growth": point} for name, point in figures["sweep"]["points"].items()}
    points |= {name: figures[name] for name in ("phi", "llama-depth", "llama-width") if name in figures}
    for name, point in points.items():
        source, output = point["source_bytes"] / 1e9, point["bytes"] / 1e9
        seconds, peak = (point["growth"][key]["median"] for key in ("seconds", "peak_mb"))
        predicted = f"{c.predicted(source, output):.1f}"
        rows.append((name, f"{source:.2f}", f"{output:.2f}", f"{seconds:.1f}", predicted, f"{peak * 2**20 / 1e9:.2f}"))
    return markdown(*rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bench", type=Path, default=Path("out/bench/bench.json"))
    parser.add_argument("--output", type=Path, default=Path("docs/scale.md"))
    parser.add_argument("--storage", type=float, default=2.0, help="GB/s that each node reads and writes")
    options = parser.parse_args()
    figures = json.loads(options.bench.read_text())
    missing = {"sweep", "startup", "sharing"} - figures.keys()
    if missing:
        parser.error(
            f"{options.bench} lacks {', '.join(sorted(missing))}: run bench.py --only {','.join(sorted(missing))}"
        )
    options.output.write_text(document(figures, fitted(figures), options.storage))


if __name__ == "__main__":
    main()
