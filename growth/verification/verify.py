"""verify: does a grown checkpoint compute what its source computes?

Both run as stock transformers models, straight from their folders, on the same tokens. Their logits are compared, and
so is the residual stream after every layer with the expansion of the source's, so that a failure names the first layer
that differs. What a few tokens cannot reach and costs little is checked in full (growth/verification/totals.py). Errors
are judged against what rounding alone does to a correctly grown model (growth/verification/rounding_floor.py).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from growth.checkpoints.hub import resolve
from growth.checkpoints.open import open_checkpoint
from growth.errors import VerificationError
from growth.planning.recipe import RecipeLike
from growth.planning.stored_error import stored_exactly
from growth.runtime.progress import draws_progress
from growth.runtime.workers import Progress
from growth.verification.compared_model import ComparedModel
from growth.verification.generation import GenerationCheck, check_generation
from growth.verification.images import repeated
from growth.verification.lineage import lineage
from growth.verification.metrics import EXTENSIONS, compare_logits
from growth.verification.report import Report
from growth.verification.residual import ResidualStreams
from growth.verification.rounding_floor import DRAWS, Floor, Steps, draws, measure
from growth.verification.routing import rounding_explains
from growth.verification.stability import measure_stability
from growth.verification.streaming import ignore
from growth.verification.tokens import choose_tokens
from growth.verification.totals import check_totals


@draws_progress("layers")
def verify(
    source: str | Path,
    grown: str | Path,
    recipe: RecipeLike | None = None,
    *,
    growth_seed: int | None = None,
    dtype: str = "float64",
    text: Path | None = None,
    tokens: int = 128,
    seed: int = 0,
    generation: bool = False,
    stability: bool = False,
    dequantize: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Run both checkpoints on the same tokens and measure every difference.

    Models that take images are shown a random image in the middle of each row.

    Args:
        source: the checkpoint that was grown: a folder or a hub id.
        grown: the checkpoint it became, by one growth or by several.
        recipe, growth_seed: as given to `grow`; by default those that growth.json states, and the report says so. They
            decide what the grown folder must hold, and which layers and channels correspond.
        dtype: the dtype of the arithmetic: "float64" ("fp64") shows exactness to 1e-12, "float32" ("fp32") is faster,
            "stored" uses the dtype in which each checkpoint is stored.
        text: a text file to run on; by default a paragraph of English and Python, or, if the source has no
            tokenizer.json, random token ids.
        tokens: how many tokens to run on, in two rows; fewer if the text or a model's context is shorter.
        seed: the random seed of the token ids and of the draws that measure what rounding does.
        generation: also compare greedy generation with and without a cache, padding on either side, both
            implementations of attention, and prompts longer than a sliding window. Loads both models whole, in float32.
        stability: also measure how a difference between copies grows through the network. Runs both models once more,
            on twice the tokens.
        dequantize: as given to `grow`: the source is quantised in FP8, and the grown model is compared with the
            dequantised source.
        progress: called with a stage ("source", "grown", "rounding", …), layers done, and layers in all; by default as
            for `grow`.

    Raises:
        CheckpointError: a folder is not a complete checkpoint of a stock model.
        ConfigError: transformers has no stock model for a folder.
        VerificationError: the two are one folder, are swapped or cannot be compared, `dtype` is unknown, there are too
            few tokens, the source's logits are not finite, or rounding alone moves the source so far that nothing can
            be concluded.
        RecipeError: the given recipe does not apply to the source.

    >>> import growth, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "grown"
    >>> plan = growth.grow("phi-mini", "examples/phi-mini", folder)
    >>> growth.verify("examples/phi-mini", folder, "phi-mini", tokens=16).status
    'PASSED'
    """
    start = time.perf_counter()
    EXTENSIONS.load_all()
    for given in (source, grown):
        if not isinstance(given, str | Path):
            raise VerificationError(
                f"verify compares two folders, and this is a {type(given).__name__} in memory: write it to a folder "
                "first with save_pretrained."
            )
    opened, grown = open_checkpoint(resolve(source), dequantize=dequantize), Path(grown).expanduser()
    before, after = ComparedModel.open(opened, dtype), ComparedModel.open(grown, dtype)
    line = lineage(opened, grown, recipe, growth_seed)
    streams = ResidualStreams(line.links, before, after) if line.links else None
    totals = check_totals(line, grown)
    longest = min(model.context or tokens for model in (before, after))
    chosen = choose_tokens(opened.folder, before.sizes["vocab_size"], text, min(tokens, 2 * longest), seed)
    batch, tell = chosen.ids, progress or (lambda stage, done, total: None)

    inputs = before.with_image(batch, seed)
    expected = before.run("source", inputs, tell, streams.observe_source if streams else ignore)
    _check_finite(expected, opened.folder, before.computed)
    actual = after.run("grown", inputs, tell, streams.observe_grown if streams else ignore)
    logits = compare_logits(expected, actual, inputs["input_ids"])
    means = before.means(streams.added_mean if streams else 0.0)
    exact = stored_exactly(line.plans)
    perturbs = draws(_steps(after.stored, before.computed, after.computed, exact=exact), seed, means)
    observe = streams.observe_draws if streams else ignore
    perturbed = before.run("rounding", repeated(inputs, DRAWS), tell, observe, perturbs)
    floor = measure(perturbed.chunk(DRAWS), expected)
    generated: tuple[GenerationCheck, ...] = ()
    if generation:
        generated = check_generation(
            before.checkpoint,
            after.checkpoint,
            batch,
            keeps_logits=line.keeps_logits is not False,
            storage=draws(_steps(after.stored, torch.float32, exact=exact), seed, means),
            arithmetic=draws(_steps(torch.float32, torch.float32), seed),
        )
    stable = measure_stability(line, before, after, batch, seed, tell) if stability else None
    report = Report(
        source=str(opened.folder),
        grown=str(grown),
        dtype=_name(max(before.computed, after.computed, key=_roundoff)),
        storage=(_name(before.stored), _name(after.stored)),
        shape=(batch.shape[0], batch.shape[1]),
        tokens_from=chosen.origin
        + (", with a random image in each row" if len(inputs) > 1 else "")
        + (", without audio" if "audio_config" in opened.config else ""),
        distinct_tokens=len(set(batch.flatten().tolist())),
        sizes=line.sizes or {"before": before.sizes, "after": after.sizes},
        parameters=(before.parameters, after.parameters),
        depth=(before.depth, after.depth),
        logits=logits,
        floor=floor.error,
        limit=floor.limit,
        layers=streams.layers() if streams else (),
        recipe_from="" if line.plan is None else "growth.json" if line.from_folder else "given",
        steps=tuple(step for plan in line.plans for step in plan.growth.steps),
        preserving=line.preserving,
        keeps_logits=line.keeps_logits,
        totals=totals,
        generation=generated,
        stability=stable,
    )
    if after.mixture and not report.agrees and rounding_explains(line, grown, batch):
        report = replace(report, routed=True)
    else:
        _check_decided(report, [(logits.relative_error, floor), *(streams.errors() if streams else ())])
    return replace(report, seconds=time.perf_counter() - start)


def _check_finite(logits: torch.Tensor, source: Path, computed: torch.dtype) -> None:
    """Raise VerificationError if there is nothing to compare a grown model with."""
    if not bool(logits.isfinite().all()):
        raise VerificationError(
            f"The logits of the source {source} are not finite (NaN or infinite), so there is nothing to compare with: "
            f"its weights are damaged, or its activations overflow in {_name(computed)}. Go back to a checkpoint from "
            "before they were, or compute in float64 (leave out --dtype)."
        )


def _check_decided(report: Report, errors: Iterable[tuple[float, Floor]]) -> None:
    """Raise VerificationError if a model fails only by errors that are too large to pass, yet rounding may make."""
    fails_otherwise = report.totals.problems or report.failed_generation or report.unstable
    if report.agrees or report.status != "FAILED" or fails_otherwise:
        return
    if all(error <= floor.reach for error, floor in errors):
        raise VerificationError(
            f"Cannot tell whether {report.grown} computes what {report.source} does: in {report.dtype}, rounding alone "
            f"moves the source's logits by about {report.floor:.0%}. Compute in float64 (leave out --dtype), or "
            "compare every bit by --weights."
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _roundoff(dtype: torch.dtype) -> float:
    """Half a unit in the last place, relative: 2^-11 for float16, 2^-8 for bfloat16, 2^-24 for float32."""
    return torch.finfo(dtype).eps / 2


def _steps(stored: torch.dtype, *computed: torch.dtype, exact: Collection[str] = ()) -> Steps:
    """The relative change of a weight that is as large as rounding.

    Writing the grown checkpoint rounds a weight by at most half a unit in the last place of its dtype, unless the plan
    says that nothing of it is rounded; the source is read as it is. Arithmetic rounds every product and sum, in an
    order that depends on the width: changing each weight by four units moves the logits by about 1.5 times as much
    (measured).
    """
    return Steps(_roundoff(stored), 8 * max(map(_roundoff, computed)), exact)
