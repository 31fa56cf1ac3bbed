"""A plan carried out from folder to folder: checked whole, then streamed, published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from growth.checkpoint import INDEX, Checkpoint, TensorInfo, layout, published, refuse_output, shards
from growth.errors import CheckpointError
from growth.execution import BLOCK_BYTES, DTYPES, GRANULE, NAMES, grow_rows, measure
from growth.manifest import MANIFEST, dump, manifest, model_card
from growth.planning import Plan
from growth.row import Row

Progress = Callable[[str, int, int], None]  # phase, bytes done, bytes in all
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json",
    "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "spiece.model", "sentencepiece.bpe.model", "LICENSE", "LICENSE.md", "LICENSE.txt",
)  # fmt: skip


class Files:
    """A source of tensors in a checkpoint folder, read by `pread`: nothing is mapped, nothing is kept."""

    def __init__(self, tensors: Mapping[str, TensorInfo], stack: ExitStack):
        self._descriptors: dict[Path, int] = {}
        for path in {info.path for info in tensors.values() if info.path is not None}:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
            stack.callback(os.close, self._descriptors[path])

    def rows(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        """Rows start to stop of a tensor, in its stored dtype.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        assert info.path is not None
        buffer = torch.empty((stop - start) * info.row_bytes, dtype=torch.uint8)
        read_into(self._descriptors[info.path], buffer, info.begin + start * info.row_bytes, info.path)
        return buffer.view(DTYPES[info.dtype]).view(stop - start, *info.shape[1:])


def bytes_view(values: Tensor) -> memoryview:
    """The bytes of a tensor, in its own memory where it is contiguous."""
    array: Any = values.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def read_into(descriptor: int, buffer: Tensor, offset: int, path: Path) -> None:
    """Fills a byte tensor from a file."""
    view = bytes_view(buffer)
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
        if count == 0:
            raise CheckpointError(f"{path} ended at byte {offset + done:,} while it was read: it was changed underway.")
        done += count


def write_from(descriptor: int, values: Tensor, offset: int) -> None:
    """Writes a contiguous tensor's bytes to a file."""
    view = bytes_view(values)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


@dataclass
class Meter:
    """Counts bytes from several threads and tells a progress callback."""

    phase: str
    total: int
    progress: Progress | None
    done: int = 0

    def __post_init__(self) -> None:
        self._lock = Lock()
        self.add(0)

    def add(self, count: int) -> None:
        """Counts `count` more bytes."""
        with self._lock:
            self.done += count
            if self.progress is not None:
                self.progress(self.phase, self.done, self.total)


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """One thread a core, each with single-threaded tensor operations; the caller's setting comes back."""
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(cores, 16)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def run_all(pool: ThreadPoolExecutor, jobs: list[Callable[[], Any]]) -> list[Any]:
    """The results of all jobs, in order; the first failure cancels what has not begun."""
    futures = [pool.submit(job) for job in jobs]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


# ------------------------------------------------- the source, before anything is written


def scan(source: Files, tensors: Mapping[str, TensorInfo], progress: Progress | None) -> str:
    """Reads every tensor once: refuses NaN and Inf, and returns a SHA-256 over names, shapes and bytes.

    Raises:
        CheckpointError: a tensor that is not finite, or a file that ends early.
    """
    meter = Meter("check source", sum(info.bytes for info in tensors.values()), progress)
    names = sorted(tensors)
    with workers() as pool:
        digests = run_all(pool, [partial(_digest, source, tensors[name], meter) for name in names])
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(source: Files, info: TensorInfo, meter: Meter) -> str:
    digest = hashlib.sha256()
    for start, stop in blocks(info.shape[0], info.row_bytes):
        rows = source.rows(info, start, stop)
        if not is_finite(rows):
            count = int((~torch.isfinite(rows)).sum())
            raise CheckpointError(
                f"Tensor '{info.name}' in {info.path} holds NaN or Inf ({count} values in rows {start} to {stop - 1}). "
                "A model grown from it would be broken: repair the source, or take an earlier checkpoint."
            )
        digest.update(bytes_view(rows))
        meter.add(rows.nbytes)
    return f"{info.name} {info.dtype} {list(info.shape)} {digest.hexdigest()}"


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or Inf: both show in the extremes, which are found at the speed of memory."""
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def blocks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Row ranges of about `BLOCK_BYTES`, starting at multiples of `GRANULE`."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes) // GRANULE) * GRANULE
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


# ------------------------------------------------- the output


def write_checkpoint(
    plan: Plan,
    checkpoint: Checkpoint,
    recipe: dict[str, Any],
    output: Path,
    *,
    max_shard_size: int | None,
    progress: Progress | None,
    companions: Callable[[Path], None] | None = None,
    companion_bytes: int = 0,
) -> None:
    """Carries out a plan into a new folder.

    companions: writes further files, of `companion_bytes`, into the folder before it is published.

    Raises:
        CheckpointError: a source that is not finite, an existing output, too little disk.
    """
    with ExitStack() as stack:
        tensors = {row.source.name: row.source for row in plan.rows if row.drawn is None}
        source = Files(tensors, stack)
        needed = plan.bytes + companion_bytes + (16 << 20)
        refuse_output(output, needed)
        digest = scan(source, tensors, progress)
        with published(output, needed) as work:
            _write_tensors(plan, source, work, max_shard_size, progress)
            origin = {"name": checkpoint.folder.name, "sha256": digest, "config": dict(checkpoint.config)}
            _write_texts(plan, checkpoint, recipe, origin, work)
            if companions is not None:
                companions(work)


def _write_tensors(plan: Plan, source: Files, work: Path, largest: int | None, progress: Progress | None) -> None:
    entries = [(row.target, row.dtype, row.shape) for row in plan.rows]
    files = shards(entries, largest)
    meter = Meter("grow", plan.bytes, progress)
    jobs: list[Callable[[], None]] = []
    with ExitStack() as stack:
        for name, positions in files.items():
            descriptor, places = _allocate(work / name, [entries[position] for position in positions])
            stack.callback(os.close, descriptor)
            for position in positions:
                row = plan.rows[position]
                jobs.append(_job(row, source, plan.seed, descriptor, places[row.target], meter))
        with workers() as pool:
            run_all(pool, jobs)
    if len(files) > 1:
        weight_map = {entries[position][0]: name for name, positions in files.items() for position in positions}
        index = {"metadata": {"total_size": plan.bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (work / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _allocate(path: Path, entries: list[tuple[str, str, tuple[int, ...]]]) -> tuple[int, dict[str, TensorInfo]]:
    """A file with its header and all its space, so that a full disk is found before the first tensor."""
    header, places = layout(path, entries)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.posix_fallocate(descriptor, 0, len(header) + sum(place.bytes for place in places))
    except OSError as error:
        os.close(descriptor)
        raise CheckpointError(f"{path.parent} cannot hold the output: {error.strerror}. Free some space.") from None
    os.pwrite(descriptor, header, 0)
    return descriptor, {place.name: place for place in places}


def _job(row: Row, source: Files, seed: int, descriptor: int, place: TensorInfo, meter: Meter) -> Callable[[], None]:
    """Grows one tensor block by block to its place."""

    def job() -> None:
        if row.zero and not row.offset:  # allocated space reads as zero
            meter.add(row.bytes)
            return
        statistics = measure(row, source)
        whole = row.noise[0] is not None  # it cancels over rows
        for start, stop in [(0, row.shape[0])] if whole else blocks(row.shape[0], place.row_bytes):
            values = grow_rows(row, source, statistics, seed, start, stop)
            if not is_finite(values):
                raise CheckpointError(
                    f"Tensor '{row.target}' overflows {row.dtype} when it is grown. Choose --dtype bfloat16 or float32."
                )
            write_from(descriptor, values, place.begin + start * place.row_bytes)
            meter.add(values.nbytes)

    return job


def _write_texts(
    plan: Plan, checkpoint: Checkpoint, recipe: dict[str, Any], origin: dict[str, Any], work: Path
) -> None:
    config = with_dtype(plan.config, {row.dtype for row in plan.rows})
    (work / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in COMPANIONS:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, work / name)
    (work / MANIFEST).write_text(dump(manifest(plan, recipe, origin)))
    (work / "README.md").write_text(model_card(plan, recipe, checkpoint.folder.name))


def with_dtype(config: dict[str, Any], dtypes: set[str]) -> dict[str, Any]:
    """The config with the type that its tensors have, under the keys of the source's transformers version."""
    if len(dtypes) != 1:
        return config
    name = str(DTYPES[next(iter(dtypes))]).removeprefix("torch.")
    keys = [key for key in ("dtype", "torch_dtype") if config.get(key) is not None] or ["dtype"]
    return {**config, **dict.fromkeys(keys, name)}


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a float type.

    Raises:
        CheckpointError: a type that cannot grow.
    """
    if dtype not in NAMES:
        raise CheckpointError(f"{dtype} cannot grow: only {', '.join(map(str, NAMES))} can.")
    return NAMES[dtype]
