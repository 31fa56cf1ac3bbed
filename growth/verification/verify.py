"""verify: does a grown checkpoint compute what its source computes?

Both run as stock transformers models, straight from their folders, on the same tokens. Their logits are
compared, and so is the residual stream after every layer with the expansion of the source's, so that a
failure names the first layer that differs. What a few tokens cannot reach and costs little is checked in full
(growth/verification/totals.py). Errors are judged against what rounding
alone does to a right growth (growth/verification/rounding_floor.py).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, reduce
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from growth.algebra.expansion import FRESH, Expansion
from growth.architectures import FAMILIES, architecture
from growth.architectures.base import Architecture
from growth.arrays.torch_interop import DTYPES
from growth.checkpoints.hub import resolve
from growth.checkpoints.open import open_checkpoint
from growth.checkpoints.stock_parameters import stock_config
from growth.errors import CheckpointError, VerificationError, printable
from growth.operators.base import Layer, Step
from growth.planning.check import match_tensors
from growth.planning.manifest import MANIFEST, sizes
from growth.planning.prepare import RecipeLike
from growth.verification.generation import GenerationCheck, check_generation
from growth.verification.lineage import Lineage, Link, lineage
from growth.verification.metrics import LogitsError, compare_logits, relative_error
from growth.verification.rounding_floor import DRAWS, Floor, means, measure, signs
from growth.verification.routing import rounding_explains
from growth.verification.streaming import Observe, Perturb, Stock, ignore, unchanged
from growth.verification.tokens import choose_tokens
from growth.verification.totals import Totals, check_totals

Precision = Literal["float64", "float32", "stored"]
Status = Literal["PASSED", "LOSSY", "FAILED"]
Progress = Callable[[str, int, int], None]

EMBEDDING = -1
NAMED = 3  # problems that the verdict names; the others are listed below it
HARMLESS = 1e-9  # nats per token that added tokens may cost the others in a growth that keeps the function
ROUTED = (
    "Rounding alone explains it: every stored bit is what the recipe makes, and the same growth stored in "
    "float64 agrees with it. Where two experts are nearly alike to a router, rounding chooses the other."
)
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)

# ------------------------------------------------- what verify returns


@dataclass(frozen=True)
class LayerError:
    """The residual stream leaving one grown layer, against the expansion of the source's.

    Attributes:
        layer: position in the grown model; EMBEDDING (-1) is the stream entering layer 0.
        source: the source layer whose output is expected here; -1 is the source's embedding.
        silent: the layer is expected to be an identity.
        relative_error: ||grown - expected|| / ||expected||, over all rows, positions and channels.
        floor: the relative error that rounding is expected to make.
        limit: the largest relative error that rounding explains.
    """

    layer: int
    source: int
    silent: bool
    relative_error: float
    floor: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains the error."""
        return self.relative_error <= self.limit

    @property
    def name(self) -> str:
        """How the layer is called in reports."""
        return "the embedding" if self.layer == EMBEDDING else f"layer {self.layer}"


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        source, grown: the folders.
        dtype: what the models computed in: "float64" (proof-grade), or another torch dtype.
        storage: the dtypes that source and grown are stored in.
        shape: rows and positions of the token batch.
        tokens_from: where its tokens are from: a text, or random ids.
        distinct_tokens: how many different ones they are.
        sizes: {"before": {...}, "after": {...}}, axis sizes by the recipe, else from the two configs.
        parameters: numbers of stored parameters of source and grown.
        depth: numbers of layers of source and grown.
        logits: the comparison of the outputs.
        floor: the `logits.relative_error` that rounding is expected to make.
        limit: the largest one that rounding explains.
        layers: the residual stream layer by layer; empty where nothing says which layers correspond.
        recipe_from: "given", "growth.json" of the grown folder, or "" where no recipe is known.
        steps: the operators of the recipe, and what each promises; empty where no recipe is known.
        preserving, keeps_logits: whether source and recipe promise the source's function, or the logits of its
            tokens; None where no recipe is known.
        totals: what was checked in full, and what differed.
        generation: what was found when the models were used as people use them; empty where that was not asked for.
        routed: whether a mixture differs by more than a limit, and it is proved that rounding alone makes its routers
            choose other experts (growth/verification/routing.py).
        seconds: wall-clock time of the three runs.
    """

    source: str
    grown: str
    dtype: str
    storage: tuple[str, str]
    shape: tuple[int, int]
    tokens_from: str
    distinct_tokens: int
    sizes: Mapping[str, Mapping[str, int]]
    parameters: tuple[int, int]
    depth: tuple[int, int]
    logits: LogitsError
    floor: float
    limit: float
    layers: tuple[LayerError, ...]
    recipe_from: Literal["given", "growth.json", ""]
    steps: tuple[Step, ...]
    preserving: bool | None
    keeps_logits: bool | None
    totals: Totals
    generation: tuple[GenerationCheck, ...]
    routed: bool
    seconds: float

    @property
    def status(self) -> Status:
        """PASSED, FAILED, or LOSSY: the recipe says that the function changes, and nothing else is wrong."""
        if self.totals.problems or self.misused or not math.isfinite(self.logits.relative_error):
            return "FAILED"
        if not (self.agrees or self.routed):
            return "LOSSY" if self.keeps_logits is False else "FAILED"
        if self.preserving is False:
            return "LOSSY"
        return "PASSED" if self.logits.lost_to_added <= HARMLESS else "FAILED"

    @property
    def misused(self) -> list[str]:
        """The names of the ways to use the models that failed."""
        return [check.name for check in self.generation if not check.passed]

    @property
    def passed(self) -> bool:
        """Whether the status is PASSED."""
        return self.status == "PASSED"

    @property
    def unconfirmed(self) -> bool:
        """Whether the status is LOSSY, and only the grown folder's own growth.json says that the function changes.

        Damage cannot be told from that: whoever changes the weights can change growth.json too.
        """
        return self.status == "LOSSY" and self.recipe_from != "given"

    @property
    def agrees(self) -> bool:
        """Whether the logits of the source's tokens and every layer agree, as far as rounding lets one see.

        A layer counts even where the logits pass: damage to a few rows shows most where it is done.
        """
        return self.logits.relative_error <= self.limit and self.first_bad_layer is None

    @property
    def first_bad_layer(self) -> int | None:
        """The first grown layer whose output differs by more than rounding; -1 is the embedding."""
        return next((error.layer for error in self.layers if not error.passed), None)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; a number that is not finite becomes null."""
        verdict = {
            "status": self.status,
            "passed": self.passed,
            "unconfirmed": self.unconfirmed,
            "first_bad_layer": self.first_bad_layer,
        }
        result: dict[str, Any] = _finite({**verdict, **asdict(self)})
        return result

    def verdict(self) -> str:
        """What was found, on which tokens, by how much, and where it goes wrong."""
        said = (
            self._in_full(),
            self._of_the_runs(),
            self._of_generation(),
            self._of_added_tokens(),
            self._of_the_recipe(),
        )
        return " ".join(filter(None, said))

    def _in_full(self) -> str:
        problems = list(self.totals.problems)
        if not problems:
            return ""
        names = ", ".join(problems[:NAMED]) + (", …" if len(problems) > NAMED else "")
        return f"What source and recipe make differs from what is there: {names}."

    def _of_the_runs(self) -> str:
        on = f"on the {self.shape[0]} x {self.shape[1]} tokens that were run"
        measured = f"relative error of the logits {self.logits.relative_error:.1e}, limit {self.limit:.1e}"
        if self.agrees:
            return f"The grown model agrees with its source {on}: {measured}."
        if self.status == "LOSSY":
            return f"The recipe changes the function, so that a difference is expected; {on}: {measured}."
        failed = f"The grown model does not agree with its source {on}: {measured}. {self._where()}"
        return f"{failed} {ROUTED}" if self.routed else failed

    def _of_generation(self) -> str:
        return f"What differs when it is used: {'; '.join(self.misused)}." if self.misused else ""

    def _of_added_tokens(self) -> str:
        logits = self.logits
        if logits.lost_to_added <= HARMLESS:
            return ""
        return (
            f"The {logits.added_tokens:,} added tokens take probability from the others: {logits.lost_to_added:.2g} "
            "nats per token."
        )

    def table(self) -> Group:
        """The report for a terminal."""
        head = Group(_verdict_line(self), *_problem_lines(self))
        return Group(head, _numbers(self), *_layer_lines(self), *_used(self), _covered(self))

    def _of_the_recipe(self) -> str:
        if self.recipe_from == "given":
            return ""
        if not self.recipe_from:
            lossy = ", and whether it changes the function" if self.status == "FAILED" else ""
            return (
                "No recipe is known, so config, files, embedding and head were not checked. Give it to have them "
                f"checked{lossy}: --recipe, or verify(..., recipe) for operators."
            )
        if self.unconfirmed:
            return (
                "Only the grown folder's own growth.json says that the function changes, and damage cannot be told "
                "from that. Give the recipe by --recipe; where the model was grown several times, verify each growth "
                "against its own source."
            )
        return "The recipe was taken from the grown folder's own growth.json; to check that too, give it by --recipe."

    def coverage(self) -> dict[str, str]:
        """What was run, what was checked in full, and what was not checked, in words."""
        rows, positions = self.shape
        layers = (
            f"{len(self.layers) - 1} of {self.depth[1]} layers" if self.layers else "no layers (unknown which match)"
        )
        tokens = f"{rows} x {positions} tokens, {self.distinct_tokens:,} different ones: {self.tokens_from}"
        said = {"run": f"{tokens}; logits and {layers}"}
        if self.totals.covered:
            said["in full"] = "; ".join(self.totals.covered)
        left = [*self.totals.not_covered, "weights beyond those tokens' reach (--weights)"]
        if not self.generation:
            left.append("cache, padding, sdpa attention and long prompts (--generation)")
        said["not checked"] = "; ".join(left)
        return said

    def _where(self) -> str:
        first = next((error for error in self.layers if not error.passed), None)
        if not self.layers:
            return "Which layers correspond is not known, so they cannot be compared."
        if first is None:
            return "Every layer agrees: look at the final norm and the head."
        error = f"{first.relative_error:.1e}, limit {first.limit:.1e}"
        return f"The first difference is after {first.name}: {error}."


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------- verify


def verify(
    source: str | Path,
    grown: str | Path,
    recipe: RecipeLike | None = None,
    *,
    growth_seed: int | None = None,
    dtype: Precision = "float64",
    text: Path | None = None,
    tokens: int = 128,
    seed: int = 0,
    generation: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Runs both checkpoints on the same tokens and measures every difference.

    Args:
        source: the checkpoint that was grown, a folder or a hub id.
        grown: the checkpoint it became, by one growth or by several.
        recipe, growth_seed: as they were given to `grow`; by default those that growth.json states, which the report
            says. They decide what the grown folder must hold, and which layers and channels correspond.
        dtype: the arithmetic: "float64" is proof-grade, "float32" faster, "stored" each checkpoint's own.
        text: a text file to run on; by default a paragraph of English and Python, or, where the source has
            no tokenizer.json, random token ids.
        tokens: how many tokens to run on, in two rows; fewer where the text is shorter, or a model's context.
        seed: of the random ids, and of the jitter that sets the floor.
        generation: also use both models as people do: greedy generation with a cache and without, padding on either
            side, both implementations of attention, prompts longer than a sliding window. Loads both whole, in float32.
        progress: called with a stage ("source", "grown", "floor"), layers done, and layers in all.

    Raises:
        CheckpointError: a folder is not a complete checkpoint of a stock model.
        ConfigError: transformers has no stock model for a folder.
        VerificationError: the two cannot be compared or are swapped, there are too few tokens, or rounding moves the
            source itself so far that nothing can be told.
        RecipeError: the given recipe does not apply to the source.

    >>> import growth, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "grown"
    >>> plan = growth.grow("phi-mini", "examples/phi-mini", folder)
    >>> growth.verify("examples/phi-mini", folder, "phi-mini", tokens=16).status
    'PASSED'
    """
    start = time.perf_counter()
    source, grown = resolve(source), Path(grown)
    before, after = _Side.open(source, dtype), _Side.open(grown, dtype)
    line = lineage(source, grown, recipe, growth_seed)
    residual = _Residual.of(line.links, before, after) if line.links else None
    totals = check_totals(line, grown)
    see = (residual.source, residual.grown, residual.jittered) if residual else (ignore, ignore, ignore)
    longest = min(side.context or tokens for side in (before, after))
    chosen = choose_tokens(source, before.vocab_size, text, min(tokens, 2 * longest), seed)
    batch = chosen.ids
    tell = progress or (lambda stage, done, total: None)

    expected = before.run("source", batch, tell, see[0])
    logits = compare_logits(expected, after.run("grown", batch, tell, see[1]), batch)
    draws = before.run("floor", batch.repeat(DRAWS, 1), tell, see[2], before.draws(after, residual, seed))
    floor = measure(draws.chunk(DRAWS), expected)
    used: tuple[GenerationCheck, ...] = ()
    if generation:
        single = 8 * _roundoff(torch.float32)
        used = check_generation(
            source,
            grown,
            batch,
            keeps_logits=line.keeps_logits is not False,
            storage=_draws(max(_roundoff(after.stored), single), seed, before.means(residual)),
            arithmetic=_draws(single, seed),
            limit=lambda drawn, plain: measure(drawn, plain).limit,
        )
    report = Report(
        source=str(source),
        grown=str(grown),
        dtype=_name(_coarser(before.computed, after.computed)),
        storage=(_name(before.stored), _name(after.stored)),
        shape=(batch.shape[0], batch.shape[1]),
        tokens_from=chosen.origin,
        distinct_tokens=len(set(batch.flatten().tolist())),
        sizes=_sizes(line, before, after),
        parameters=(before.parameters, after.parameters),
        depth=(before.depth, after.depth),
        logits=logits,
        floor=floor.error,
        limit=floor.limit,
        layers=residual.layers() if residual else (),
        recipe_from="" if line.plan is None else "growth.json" if line.from_folder else "given",
        steps=tuple(step for plan in line.plans for step in plan.growth.steps),
        preserving=line.preserving,
        keeps_logits=line.keeps_logits,
        totals=totals,
        generation=used,
        routed=False,
        seconds=time.perf_counter() - start,
    )
    if after.mixture and not report.agrees and rounding_explains(line, grown, batch):
        return replace(report, routed=True, seconds=time.perf_counter() - start)
    _check_decided(report, [(logits.relative_error, floor), *(residual.places() if residual else ())])
    return report


def _check_decided(report: Report, places: Iterable[tuple[float, Floor]]) -> None:
    """Raises VerificationError where a model fails by errors that rounding may make, too large to pass as such."""
    else_wrong = report.agrees or report.status != "FAILED" or report.totals.problems or report.misused
    if not else_wrong and all(error <= floor.reach for error, floor in places):
        raise VerificationError(
            f"Cannot tell whether {report.grown} computes what {report.source} does: in {report.dtype}, rounding alone "
            f"moves the source's logits by about {report.floor:.0%}. Compute in float64 (leave out --dtype), or "
            "compare every bit by --weights."
        )


def _sizes(line: Lineage, before: _Side, after: _Side) -> dict[str, Mapping[str, int]]:
    if not line.plans:
        return {"before": before.sizes, "after": after.sizes}
    return {"before": sizes(line.plans[0].source), "after": sizes(line.plans[-1].target)}


@dataclass(frozen=True)
class _Side:
    """One of the two checkpoints, and the dtypes it is stored and computed in."""

    folder: Path
    stored: torch.dtype
    computed: torch.dtype
    parameters: int
    sizes: Mapping[str, int]
    context: int | None
    mixture: bool
    built: Architecture | None

    @classmethod
    def open(cls, folder: Path, dtype: Precision) -> _Side:
        checkpoint = open_checkpoint(folder)
        tensors = checkpoint.tensors.values()
        counts: Counter[str] = Counter()
        for tensor in tensors:
            if tensor.dtype in DTYPES:  # any other is refused, by name, before it is run
                counts[tensor.dtype] += math.prod(tensor.shape)
        if not counts:
            raise CheckpointError(f"{folder} holds no tensor of a type that can be run: {', '.join(DTYPES)}.")
        built = None
        if str(checkpoint.config.get("model_type")) in FAMILIES:  # sizes without tensors behind them allocate nothing
            built = architecture(checkpoint.config).named_as_in(checkpoint.tensors)
            match_tensors(built, checkpoint.tensors)
        stored = DTYPES[counts.most_common(1)[0][0]]
        config = stock_config(folder).get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        sizes = {name: getattr(config, name) for name in SIZES if hasattr(config, name)}
        computed = stored if dtype == "stored" else getattr(torch, dtype)
        return cls(folder, stored, computed, counts.total(), sizes, context, _is_mixture(config), built)

    @property
    def depth(self) -> int:
        return self.sizes["num_hidden_layers"]

    @property
    def vocab_size(self) -> int:
        return self.sizes["vocab_size"]

    def draws(self, after: _Side, residual: _Residual | None, seed: int) -> list[Perturb]:
        """What moves the source's weights by as much as rounding can move those of the grown model."""
        return _draws(_step(self, after), seed, self.means(residual))

    def means(self, residual: _Residual | None) -> dict[str, tuple[int, float]]:
        """The tensors to which a growth adds a part of their mean."""
        if residual is None or self.built is None or not residual.added_mean:
            return {}
        return means(self.built, "residual", residual.added_mean)

    def run(
        self, stage: str, batch: Tensor, tell: Progress, see: Observe, perturbs: Sequence[Perturb] = (unchanged,)
    ) -> Tensor:
        """The logits (B, T, V), every residual stream shown to `see` as it is computed."""

        def observe(at: int, hidden: Tensor) -> None:
            see(at, hidden)
            tell(stage, at, self.depth)

        return self.model.run(batch, observe=observe, perturbs=perturbs)

    @cached_property
    def model(self) -> Stock:
        """The stock model."""
        return Stock(self.folder, self.computed)


def _is_mixture(config: Any) -> bool:
    """Whether a stock config has experts."""
    return any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _roundoff(dtype: torch.dtype) -> float:
    """Half a unit in the last place, relative: 2^-11 for float16, 2^-8 for bfloat16, 2^-24 for float32."""
    return torch.finfo(dtype).eps / 2


def _coarser(*dtypes: torch.dtype) -> torch.dtype:
    return max(dtypes, key=_roundoff)


def _draws(step: float, seed: int, added: Mapping[str, tuple[int, float]] | None = None) -> list[Perturb]:
    return [signs(step, DRAWS * seed + number, added) for number in range(DRAWS)]


def _step(before: _Side, after: _Side) -> float:
    """The relative change of a weight that rounding cannot be told from.

    Half a unit in the last place of the grown checkpoint's dtype is what writing it does; the source is read
    as it is. Arithmetic rounds every product and sum, in an order that changes with the width: four units of
    a weight move the logits as much and half as much again (measured).
    """
    return max(_roundoff(after.stored), 8 * _roundoff(_coarser(before.computed, after.computed)))


# ------------------------------------------------- the residual stream


class _Residual:
    """What is expected of the grown residual stream, and how far the runs were from it."""

    def __init__(self, expand: Callable[[Tensor], Tensor], positions: list[int], silent: list[bool], added_mean: float):
        self.added_mean = added_mean  # the largest part of a stream's mean that the growths add to a channel
        self._expand = expand
        self._positions = positions  # by grown stream (0: the embedding's): which source stream it equals
        self._silent = silent
        self._expected: list[Tensor] = []  # not expanded yet: a grown stream is larger
        self._errors: list[float] = []
        self._floors: list[Floor] = []

    @classmethod
    def of(cls, links: Sequence[Link], before: _Side, after: _Side) -> _Residual:
        """From the growths that lead from one to the other.

        Raises:
            VerificationError: they lead from or to other sizes.
        """
        first, last = links[0], links[-1]
        depth = 1 + max(layer.source for layer in first.layers)
        told = first.channels.size, len(last.channels), depth, len(last.layers)
        found = before.sizes["hidden_size"], after.sizes["hidden_size"], before.depth, after.depth
        if told[:2] != found[:2] or told[2] > found[2] or told[3] != found[3]:
            raise VerificationError(
                f"{after.folder / MANIFEST} tells of hidden_size {told[0]} to {told[1]}, {told[2]} to "
                f"{told[3]} layers; the two checkpoints have hidden_size {found[0]} and {found[1]}, "
                f"{found[2]} and {found[3]} layers. Name the source that {after.folder} was grown from."
            )
        positions, silent = list(range(before.depth + 1)), [False] * before.depth
        for link in links:
            positions = [positions[at] for at in accumulate(link.layers, _passed, initial=0)]
            silent = [layer.silent or silent[layer.source] for layer in link.layers]
        expanders = [_expander(link.channels, link.level) for link in links]
        added = max(_added_mean(link.channels, link.level) for link in links)
        return cls(lambda hidden: reduce(lambda x, expand: expand(x), expanders, hidden), positions, silent, added)

    def source(self, position: int, hidden: Tensor) -> None:
        """Observes the source."""
        self._expected.append(hidden.clone())

    def grown(self, position: int, hidden: Tensor) -> None:
        """Observes the grown model."""
        self._errors.append(relative_error(hidden, self._expand(self._expected[self._positions[position]])))

    def jittered(self, position: int, hidden: Tensor) -> None:
        """Observes the draws of the source."""
        draws = [self._expand(draw) for draw in hidden.chunk(DRAWS)]
        self._floors.append(measure(draws, self._expand(self._expected[position])))

    def places(self) -> list[tuple[float, Floor]]:
        """The error and the floor of every grown stream."""
        return [(error, self._floors[position]) for position, error in zip(self._positions, self._errors, strict=True)]

    def layers(self) -> tuple[LayerError, ...]:
        """What was observed, in the grown model's order."""
        return tuple(
            LayerError(layer, position - 1, silent, error, self._floors[position].error, self._floors[position].limit)
            for layer, (position, silent, error) in enumerate(
                zip(self._positions, [False, *self._silent], self._errors, strict=True), start=EMBEDDING
            )
        )


def _passed(position: int, layer: Layer) -> int:
    """The source stream that a grown layer's output equals, after one that equals `position`."""
    return position if layer.silent else layer.source + 1


def _added_mean(channels: Expansion, level: float | None) -> float:
    """The largest part of the stream's mean that is added to a channel, to keep the mean at its level."""
    written = np.where(channels.source == FRESH, 0.0, channels.write)
    return 0.0 if level is None else float(np.abs(level - written).max())


def _expander(expansion: Expansion, level: float | None) -> Callable[[Tensor], Tensor]:
    """The map E of docs/design.md 2.1, from (…, n) to (…, N), in float64; the mean kept at its level, if any."""
    source = torch.from_numpy(expansion.source.clip(0))
    write = torch.from_numpy(np.where(expansion.source == FRESH, 0.0, expansion.write))

    def expand(hidden: Tensor) -> Tensor:
        hidden = hidden.double()
        expanded = hidden[..., source] * write
        return expanded if level is None else expanded + hidden.mean(-1, keepdim=True) * (level - write)

    return expand


# ------------------------------------------------- the report in a terminal


STYLES: Mapping[Status, str] = {"PASSED": "bold green", "LOSSY": "bold yellow", "FAILED": "bold red"}


def _verdict_line(report: Report) -> Text:
    return Text.assemble((report.status, STYLES[report.status]), "  ", printable(report.verdict()))


def _problem_lines(report: Report) -> list[Text]:
    return [Text(printable(f"  {name}: {problem}"), "red") for name, problem in report.totals.problems.items()]


def _covered(report: Report) -> Table:
    """What was run, what was checked in full, and what was not checked."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, text in report.coverage().items():
        table.add_row(Text(name, "dim"), Text(printable(text)))
    return table


def _numbers(report: Report) -> Table:
    logits, (rows, positions) = report.logits, report.shape
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value, meaning in (
        ("relative error", f"{logits.relative_error:.2e}", "of the logits, ||grown - source|| / ||source||"),
        (
            "floor",
            f"{report.floor:.2e}",
            f"what rounding is expected to do; limit {report.limit:.1e}",
        ),
        (
            "largest",
            f"{logits.max_abs_error:.2e}",
            f"error of a logit, {logits.max_relative_error:.1e} of the largest",
        ),
        ("KL divergence", f"{logits.kl:.2e}", "nats per token, source from grown"),
        *_added(logits),
        ("same top token", f"{logits.top1_agreement:.1%}", f"of {rows * positions} positions"),
        ("loss", f"{logits.source_loss:.4f}", f"grown {logits.grown_loss:.4f}, nats per token"),
        ("parameters", f"{report.parameters[0]:,}", f"grown {report.parameters[1]:,}"),
        ("layers", f"{report.depth[0]}", f"grown {report.depth[1]}"),
        ("arithmetic", report.dtype, f"stored in {report.storage[0]}, grown in {report.storage[1]}"),
        ("time", f"{report.seconds:.1f} s", ""),
    ):
        table.add_row(Text(name, "dim"), Text(value, "bold"), Text(meaning, "dim"))
    return table


def _used(report: Report) -> list[Table]:
    """What was found when the models were used as people use them."""
    table = Table("used as", "error", "limit", "", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for check in report.generation:
        error = "" if check.relative_error is None else f"{check.relative_error:.1e}"
        style = "" if check.passed else "bold red"
        table.add_row(check.name, Text(error, style), f"{check.limit:.1e}", Text(printable(check.note), "dim"))
    return [table] if report.generation else []


def _added(logits: LogitsError) -> list[tuple[str, str, str]]:
    meaning = f"nats per token, to the probability of {logits.added_tokens:,} added tokens"
    return [("lost", f"{logits.lost_to_added:.2e}", meaning)] if logits.added_tokens else []


def _layer_lines(report: Report) -> list[Text]:
    if not report.layers:
        return []
    worst = max(report.layers, key=lambda error: error.relative_error)
    marks = Text.assemble(("residual stream  ", "dim"))
    for error in report.layers:
        marks.append("·" if error.silent and error.passed else "•" if error.passed else "×", _style(error))
    marks.append(f"  worst {worst.relative_error:.1e} after {worst.name}, limit {worst.limit:.1e}")
    legend = "embedding, then each layer: • equal to the source's, · equal and silent, × different"
    return [marks, Text(legend, "dim")]


def _style(error: LayerError) -> str:
    return "green" if error.passed else "bold red"
