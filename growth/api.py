"""Plan a growth, and carry it out from folder to folder, for weights alone or for a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from growth.errors import ConfigError
from growth.output.in_memory import plan_in_memory
from growth.output.shards import shard_size
from growth.planning.plan import Plan
from growth.planning.prepare import planned
from growth.planning.recipe import RecipeLike
from growth.runtime.progress import draws_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from growth.training.moments import Fresh


FORMATS = ("safetensors", "dcp")


def plan(
    recipe: RecipeLike,
    source: str | Path | PreTrainedModel | None = None,
    *,
    dtype: str | None = None,
    seed: int | None = None,
    dequantize: bool = False,
) -> Plan:
    """Determine what a recipe does to a checkpoint, from its headers and config alone.

    Args:
        recipe: a recipe file, the name of a shipped recipe, YAML text, a mapping as in such a file, a list of steps,
            a `Recipe`, an operator or a list of operators.
        source: a checkpoint folder or hub id, by default the recipe's; or a transformers model in memory.
        dtype: float16, bfloat16, float32 or float64; by default the source's, which a model in memory always keeps.
        seed: the random seed; by default the recipe's.
        dequantize: the source is quantised in FP8 and is dequantised while it is read: the plan is that of its plain
            floats.

    Raises:
        GrowthError: the recipe cannot be applied. NaN and Inf in tensors are detected only by `grow`.

    >>> import growth
    >>> plan = growth.plan("phi-mini", "examples/phi-mini")
    >>> plan.preserving, plan.config["hidden_size"], len(plan.tensors)
    (True, 160, 117)
    """
    if source is None or isinstance(source, str | Path):
        return planned(recipe, source, dtype, seed, headers_only=True, dequantize=dequantize)[0]
    if dtype is not None:
        raise ConfigError(
            f"A model in memory grows in its own dtype, {source.dtype}, and not in {dtype}: leave out dtype, or cast "
            "the model first."
        )
    if dequantize:
        raise ConfigError(
            "A model in memory is not dequantised by growth: leave out dequantize, or dequantise it first."
        )
    return plan_in_memory(recipe, source, seed)


@draws_progress("bytes")
def grow(
    recipe: RecipeLike,
    source: str | Path | None,
    output: str | Path,
    *,
    dtype: str | None = None,
    format: Literal["safetensors", "dcp"] = "safetensors",
    max_shard_size: int | str | None = None,
    seed: int | None = None,
    dequantize: bool = False,
    part: tuple[int, int] | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    forks: bool = False,
) -> Plan:
    """Grow a checkpoint folder into a new one, which appears whole or not at all.

    Args:
        recipe, source, dtype, seed, dequantize: as for `plan`.
        output: a folder that does not exist yet, and not inside the source.
        format: safetensors as transformers saves them, or a folder of torch.distributed.checkpoint, which cannot be
            resumed or divided among processes.
        max_shard_size: maximum size of a file, in bytes or as "5GB", "200MB"; by default a sixteenth of the model, but
            at least 1 GB and at most 5 GB.
        part: (i, n) where n processes write the output together and this one is the i-th, counted from 1. The output
            appears when the last of them finishes. If a process dies, start it again with the same arguments: it
            resumes.
        resume: keep what an interrupted run wrote, after checking it; what this run writes is kept too if it is
            interrupted or fails. If the output is already complete, it is checked against the hashes in its growth.json
            and not written again.
        progress: called with (phase, bytes done, bytes in all); by default, bars are drawn on a terminal and in a
            notebook, unless the level of logging.getLogger("growth") is set above INFO.
        forks: use forked worker processes, which are faster than threads. Safe only on Linux, and in programs that have
            no other threads, such as the command line.

    Returns:
        The plan that was applied.

    Raises:
        GrowthError: the recipe, the source or the location of the output is refused; nothing is left behind.

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
            "A dcp folder cannot be resumed or divided among processes, and has one file: leave out resume, part and "
            "max_shard_size."
        )
    result, checkpoint, content = planned(recipe, source, dtype, seed, dequantize=dequantize)
    if format == "dcp":
        from growth.distributed.dcp_writer import write_dcp

        write_dcp(result, checkpoint, content, Path(output).expanduser(), progress=progress)
        return result
    write_checkpoint(
        result,
        checkpoint,
        content,
        Path(output).expanduser(),
        max_shard_size=largest,
        rank=rank,
        resume=resume,
        progress=progress,
        forks=forks,
    )
    return result


@draws_progress("bytes")
def grow_training(
    recipe: RecipeLike,
    source: str | Path | None,
    output: str | Path,
    *,
    fresh: Fresh = "mean",
    config: str | Path | None = None,
    max_shard_size: int | str | None = None,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Grow a checkpoint folder of transformers' Trainer into one from which training resumes; return the plan.

    The optimizer's state grows as in `growth.grow_optimizer`; the states of scheduler and random generators and
    training_args.bin are copied byte for byte. In trainer_state.json, an entry for the growth is added to the log
    history, and the record of the best checkpoint is removed, because that checkpoint holds a smaller model. Learning
    rates of a schedule's stage that are in force end with the growth, and a note of the plan says so. No code from the
    folder is run.

    recipe, max_shard_size, seed, progress: as for `growth.grow`.
    source: a folder `checkpoint-N` of a Trainer; the recipe's own by default. It holds config.json, safetensors and
        optimizer.pt; or under accelerate's FSDP, what SHARDED_STATE_DICT makes of a run (pytorch_model_fsdp_0 and
        optimizer_0), or FULL_STATE_DICT (pytorch_model_fsdp.bin and optimizer.bin). The result holds the same. Sharded
        state is written one tensor at a time.
    output: a folder that does not exist yet.
    config: the config.json of the model, or a folder that holds it, if the source has none (SHARDED_STATE_DICT). Files
        of a tokenizer beside it are copied.
    fresh: as for `growth.grow_optimizer`.

    Raises:
        GrowthError: as for `growth.grow`; or the state is missing, is not that of Adam or SGD, is not in the order of
            Trainer's groups, or contains more than tensors and numbers. Nothing is left behind.

    >>> import growth, pathlib, shutil, tempfile, torch, transformers
    >>> run = pathlib.Path(tempfile.mkdtemp())
    >>> small = growth.resolve("examples/phi-mini")
    >>> model = transformers.AutoModelForCausalLM.from_pretrained(small)
    >>> trainer = transformers.Trainer(model, transformers.TrainingArguments(str(run), report_to=[]))
    >>> source = shutil.copytree(small, run / "checkpoint-1")
    >>> torch.save(trainer.create_optimizer().state_dict(), source / "optimizer.pt")
    >>> plan = growth.grow_training("phi-mini", source, run / "larger")
    >>> [len(group["params"]) for group in torch.load(run / "larger" / "optimizer.pt")["param_groups"]]
    [50, 67]
    """
    from growth.checkpoints.companions import kept_files
    from growth.distributed.dcp_writer import write_dcp
    from growth.distributed.run_folders import full_model_file, has_full_model, is_sharded_run, run_folders
    from growth.output.checkpoint_writer import write_checkpoint
    from growth.training.run_states import FULL_MODEL
    from growth.training.trainer_checkpoint import as_writers, rates_that_end, run_files, training_files

    largest, home = shard_size(max_shard_size), None if config is None else Path(config).expanduser()
    file = home / "config.json" if home is not None and home.is_dir() else home
    result, checkpoint, content = planned(recipe, source, None, seed, config=file)
    kept = kept_files(home) if home is not None and home.is_dir() else {}
    files, size = as_writers({name: text for name, text in kept.items() if not (checkpoint.folder / name).exists()})
    output = Path(output).expanduser()
    noted = replace(result, notes=(*result.notes, *rates_that_end(checkpoint.folder)))
    if is_sharded_run(checkpoint.folder):
        if max_shard_size is not None:
            raise ConfigError("A run that is saved in shards has one file of weights: leave out max_shard_size.")
        own, more = as_writers(run_files(result, checkpoint))
        folders, files = run_folders(result, checkpoint, fresh), files | own
        further: dict[str, Any] = {"companions": files, "companion_bytes": size + more}
        write_dcp(result, checkpoint, content, output, folders=folders, progress=progress, **further)
        return noted
    own, more = training_files(result, checkpoint, fresh)
    if has_full_model(checkpoint.folder):
        own[FULL_MODEL], weights = full_model_file(result)
        more += weights
    further = {"companions": files | own, "companion_bytes": size + more}
    write_checkpoint(result, checkpoint, content, output, max_shard_size=largest, progress=progress, **further)
    return noted
