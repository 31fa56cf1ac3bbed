"""The doors of the library: plan, grow, grow_model. Everything else stands behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from growth.errors import ConfigError
from growth.output.in_memory import plan_in_memory
from growth.output.shards import shard_size
from growth.planning.plan import Plan
from growth.planning.prepare import RecipeLike, planned

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FORMATS = ("safetensors", "dcp")


def plan(
    recipe: RecipeLike,
    source: str | Path | PreTrainedModel | None = None,
    *,
    dtype: str | None = None,
    seed: int | None = None,
) -> Plan:
    """Works out what a recipe does to a checkpoint; reads headers and config only, in well under a second.

    recipe: a `Recipe`, a recipe file, the name of a shipped recipe, or an operator.
    source: a checkpoint folder or hub id, the recipe's own by default; or a transformers model in memory.
    dtype: float16, bfloat16, float32 or float64; the source's by default, and always for a model in memory.
    seed: of everything random; the recipe's by default.

    Raises:
        GrowthError: anything that would keep the growth from succeeding, but for what only the tensors'
            values show (NaN, Inf).

    >>> import growth
    >>> plan = growth.plan("phi-mini", "examples/phi-mini")
    >>> plan.preserving, plan.config["hidden_size"], len(plan.tensors)
    (True, 160, 117)
    """
    if source is None or isinstance(source, str | Path):
        return planned(recipe, source, dtype, seed, headers_only=True)[0]
    if dtype is not None:
        raise ConfigError(
            f"A model in memory grows in its own dtype, {source.dtype}: leave out dtype, or cast it first."
        )
    return plan_in_memory(recipe, source, seed)


def grow(
    recipe: RecipeLike,
    source: str | Path | None,
    output: str | Path,
    *,
    dtype: str | None = None,
    format: Literal["safetensors", "dcp"] = "safetensors",
    max_shard_size: int | str | None = None,
    seed: int | None = None,
    part: tuple[int, int] | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    forks: bool = False,
) -> Plan:
    """Grows a checkpoint folder into a new one, which appears whole or not at all; returns the plan.

    recipe, source, dtype, seed: as for `plan`.
    output: a folder that does not exist yet.
    format: safetensors as transformers saves them, or a folder of torch.distributed.checkpoint, which cannot be
        resumed or shared.
    max_shard_size: bytes, or "5GB", "200MB"; by default a sixteenth of the model, 1 GB at least and 5 GB at most.
    part: (i, n): this process writes the i-th of n shares of the output's files, i from 1. The output appears when
        the last of the n has finished, whichever that is; one that dies is run again and goes on.
    resume: go on where a growth that was interrupted left off, after checking what is there; if this one is
        interrupted too, by an error as well, what is done stays.
    progress: called with (phase, bytes done, bytes in all).
    forks: work in processes forked from this one, which do not wait for one another as threads do (on Linux, and
        where this process has no other threads). For scripts that do nothing else; the command does so.

    Raises:
        GrowthError: the recipe, the source or the place of the output is not as it must be; nothing is
            left behind.

    >>> import growth, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "grown"
    >>> plan = growth.grow("phi-mini", "examples/phi-mini", folder)
    >>> (folder / "model.safetensors").stat().st_size > plan.bytes
    True
    """
    from growth.output.checkpoint_writer import write_checkpoint
    from growth.output.writer_rank import WriterRank

    largest = shard_size(max_shard_size)
    rank = WriterRank(*part or ())
    if format not in FORMATS:
        raise ConfigError(f"Unknown format '{format}': use one of {', '.join(FORMATS)}.")
    if format == "dcp" and (max_shard_size is not None or resume or not rank.alone):
        raise ConfigError(
            "A dcp folder cannot be resumed or shared, and has one file: leave out resume, part and max_shard_size."
        )
    result, checkpoint, content = planned(recipe, source, dtype, seed)
    if format == "dcp":
        from growth.distributed.dcp_writer import write_dcp

        write_dcp(result, checkpoint, content, Path(output), progress=progress)
        return result
    write_checkpoint(
        result,
        checkpoint,
        content,
        Path(output),
        max_shard_size=largest,
        rank=rank,
        resume=resume,
        progress=progress,
        forks=forks,
    )
    return result
