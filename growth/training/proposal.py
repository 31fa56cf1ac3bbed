"""Propose a schedule: models that grow exactly into a target, when they grow, and what that is expected to save.

The source of every growth is half as wide or half as deep as its result, and the planner checks that the growth is
exact. What a growth saves is read off `growth.training.evidence`, between points that were measured and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from rich.console import Group
from rich.text import Text

from growth.architectures import architecture
from growth.architectures.base import Architecture
from growth.architectures.config import Config
from growth.checkpoints.hub import config_file
from growth.checkpoints.untrusted import read_config
from growth.errors import ConfigError, RecipeError, printable
from growth.planning.halve import Grown, halve
from growth.planning.recipe import Recipe
from growth.runtime.shown import Shown
from growth.runtime.terminal import simple_table
from growth.training.advice import CHINCHILLA, count_text, parse_count
from growth.training.evidence import ANY, Evidence, Range, findings
from growth.training.flops import flops_per_token
from growth.training.schedule import Moment, Schedule, Stage, dump_schedule

Verdict = Literal["worth trying", "not worth it", "unknown"]
GROWTH_SHARE = 0.25  # of the FLOPs up to the end of the grown model's training: when it grows
MOST_STAGES = 8
STYLES = {"worth trying": "green", "not worth it": "bold red", "unknown": "bold"}  # of verdicts
UNITS = {"parameters": "parameters", "layers": "layers", "tokens_per_parameter": "tokens per parameter"}


@dataclass(frozen=True)
class ProposedModel:
    """A model of a proposed run.

    config: its config.json.
    parameters: of all of it; of a mixture, all experts count.
    flops_per_token, flops: of training it: on one token, and in all until it grows or the run ends.
    grows: what of it grows next, width or depth; None for the target.
    recipe: the exact recipe into the next model; None for the target.
    """

    config: Mapping[str, Any]
    parameters: int
    flops_per_token: int
    flops: int
    grows: Grown | None
    recipe: Recipe | None

    @property
    def tokens(self) -> int:
        """The tokens that it is trained on."""
        return self.flops // self.flops_per_token

    def to_dict(self) -> dict[str, Any]:
        """The model as values that `json.dumps` accepts."""
        recipe = None if self.recipe is None else self.recipe.to_dict()
        return {**vars(self), "config": dict(self.config), "recipe": recipe, "tokens": self.tokens}


@dataclass(frozen=True, repr=False)
class ScheduleProposal(Shown):
    """A proposed schedule for a target and a budget, and what is known of its saving.

    models: those that are trained one after the other; the last is the target.
    flops: the budget of the run: 6 × parameters without the input embedding × tokens, summed over the models.
    tokens_per_parameter: tokens on which the budget would train the target from scratch, per (active) parameter.
    schedule: the schedule of the growths.
    verdict: "worth trying", "not worth it", or "unknown": the plan lies outside of what was measured.
    reasons: of the verdict.
    saving: FLOPs of the better of two, the target from scratch and the source alone, over FLOPs with growth, at equal
        loss, least and most; None where it was not measured.
    evidence: findings on these growths, then those on others that nothing known of their range excludes.

    >>> import growth
    >>> found = growth.propose_schedule("examples/phi-mini", flops=1e15)
    >>> found.verdict, [model.parameters for model in found.models], found.source.grows
    ('not worth it', [563456, 1714688], 'width')
    """

    models: tuple[ProposedModel, ...]
    flops: int
    tokens_per_parameter: float
    schedule: Schedule
    verdict: Verdict
    reasons: tuple[str, ...]
    saving: Range | None
    evidence: tuple[Evidence, ...]

    @property
    def source(self) -> ProposedModel:
        """The model that is trained first, from scratch."""
        return self.models[0]

    @property
    def target(self) -> ProposedModel:
        """The model that is trained last."""
        return self.models[-1]

    @property
    def source_config(self) -> str:
        """The config.json of the first model."""
        return json.dumps(self.source.config, indent=2) + "\n"

    def yaml(self) -> str:
        """The schedule as YAML that `growth.load_schedule` reads, with verdict and reasons as comments."""
        lines = [
            f"Proposed by growth schedule. {self.verdict.capitalize()}:",
            *self.reasons,
            *(
                f"Model {number}: {_geometry(architecture(model.config))}, {count_text(model.parameters)} parameters, "
                f"{count_text(model.tokens)} tokens, {model.flops:.3g} FLOPs"
                for number, model in enumerate(self.models, 1)
            ),
            "Train model 1 from scratch, by GrowthCallback.from_schedule or load_schedule (docs/schedules.md); in the",
            'Trainer, with include_num_input_tokens_seen="all", and max_steps for the tokens of all models.',
        ]
        return "".join(f"# {printable(line)}\n" for line in lines) + dump_schedule(self.schedule)

    def to_dict(self) -> dict[str, Any]:
        """The proposal as values that `json.dumps` accepts."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "saving": self.saving,
            "flops": self.flops,
            "tokens_per_parameter": self.tokens_per_parameter,
            "models": [model.to_dict() for model in self.models],
            "evidence": [asdict(line) for line in self.evidence],
            "schedule": self.yaml(),
        }

    def headline(self) -> Text:
        """The verdict and its reasons in one line, for a terminal."""
        return Text.assemble((self.verdict, STYLES[self.verdict]), "  ", " ".join(self.reasons))

    def table(self) -> Group:
        """The budget, the models, the verdict, and its evidence."""
        built = architecture(self.target.config)
        saving = "unknown"
        if self.saving is not None:
            better = "the better of the target from scratch and the source alone"
            saving = f"{_range(self.saving)}×: FLOPs of {better}, over FLOPs with growth, for the same loss"
        scratch = self.flops // self.target.flops_per_token
        plan = simple_table("", ("", ""))
        plan.show_header = False
        active = built.parameters(active=True)
        of_which = "" if active == self.target.parameters else f", {count_text(active)} active"
        plan.add_row("target", f"{_geometry(built)}, {count_text(self.target.parameters)} parameters{of_which}")
        plan.add_row(
            "budget",
            f"{self.flops:.3g} FLOPs; from scratch, {count_text(scratch)} tokens, "
            f"{_amount(self.tokens_per_parameter)} per parameter",
        )
        data = sum(model.tokens for model in self.models)
        plan.add_row(
            "data", f"{count_text(data)} tokens for all models, {count_text(data - scratch)} more than from scratch"
        )
        plan.add_row("expected saving", saving)
        plan.add_row("when to grow", _timing([model.grows for model in self.models[:-1]]))
        plan.add_row(Text(self.verdict, STYLES[self.verdict]), Group(*self.reasons))
        return Group(plan, self._models(), self._evidence())

    def _models(self) -> Any:
        columns = ("model", "parameters", "tokens", "FLOPs", "then grows")
        table = simple_table("", columns, numbers=columns[1:4])
        for model in self.models:
            then = "" if model.grows is None else f"{model.grows} ×2, exact"
            geometry = _geometry(architecture(model.config))
            table.add_row(geometry, count_text(model.parameters), count_text(model.tokens), f"{model.flops:.3g}", then)
        return table

    def _evidence(self) -> Any:
        table = simple_table("", ("evidence, not law", "seen on", "source"))
        for column, ratio in zip(table.columns, (5, 3, 3), strict=True):
            column.ratio = ratio
        yours = _ranges(architecture(self.target.config), self.tokens_per_parameter)
        grown = {ANY, *(model.grows for model in self.models)}
        for number, line in enumerate(self.evidence):
            if number and line.grows not in grown and self.evidence[number - 1].grows in grown:
                table.add_section()
            table.add_row(line.says, _seen(line, yours), line.cited)
        return table


def propose_schedule(
    target: str | Path | Config, *, flops: float | str | None = None, tokens: float | str | None = None, stages: int = 1
) -> ScheduleProposal:
    """Propose a schedule whose last model is the target.

    With one stage the width doubles, or the depth where no model of half the width grows exactly into the target. More
    stages double depth and width in turn, the width last.

    target: a config, its file, a checkpoint folder, or a hub id (org/name@revision); only the config is read.
    flops: the budget of the whole run, the sources included; numbers may be written 1e19.
    tokens: the budget as the tokens on which it would train the target from scratch; by default 20 per parameter.
    stages: the number of growths, 1 to 8.

    Raises:
        ConfigError: a config that is not of a known family, both budgets, or one that is too small.
        RecipeError: no smaller model grows exactly into the target.

    >>> found = propose_schedule("examples/phi-mini", flops=1e15)
    >>> found.source.config["hidden_size"], found.target.config["hidden_size"], found.schedule.stages[0].at
    (64, 128, Moment(share=0.25))
    """
    config = dict(target) if isinstance(target, Mapping) else read_config(config_file(target))
    if not 1 <= stages <= MOST_STAGES:
        raise ConfigError(f"stages is {stages}: a proposal has 1 to {MOST_STAGES} growths.")
    built = architecture(config)
    budget = _budget(built, flops, tokens)
    per_parameter = budget / flops_per_token(built) / built.parameters(active=True)
    growths = _growths(config, stages)
    grows = [axis for axis, _, _ in growths]
    models = _models(growths, config, budget)
    yours = _ranges(built, per_parameter)
    values = {"chinchilla": CHINCHILLA, "yours": f" Yours: {_amount(per_parameter)}."}
    known = tuple(findings(values, (ANY, "width", "depth", "experts")))
    verdict, reasons, saving = _judge(grows, yours, known)
    return ScheduleProposal(
        models,
        budget,
        per_parameter,
        _schedule(models, budget),
        verdict,
        reasons,
        saving,
        evidence=_relevant(known, grows, yours, mixture="experts" in built.axes),
    )


# ------------------------------------------------- models and their times


def _budget(built: Architecture, flops: float | str | None, tokens: float | str | None) -> int:
    if flops is not None and tokens is not None:
        raise ConfigError("Both flops and tokens state the budget: leave out one of them.")
    if flops is not None:
        return int(float(parse_count(_plain(flops), "FLOPs")))
    seen = CHINCHILLA * built.parameters(active=True) if tokens is None else parse_count(_plain(tokens), "tokens")
    return int(float(seen * flops_per_token(built)))  # a schedule's file holds floats


def _plain(number: float | str) -> int | str:
    return int(number) if isinstance(number, float) and number.is_integer() else str(number)


def _growths(target: Config, stages: int) -> list[tuple[Grown, dict[str, Any], Recipe]]:
    """Return what grows, the config before, and the recipe of each growth, the first one first."""
    found: list[tuple[Grown, dict[str, Any], Recipe]] = []
    for number in range(stages):
        try:
            grows, config, recipe = _smaller(target, ("depth", "width") if number % 2 else ("width", "depth"))
        except RecipeError as error:
            if not number:
                raise
            raise RecipeError(
                f"Of {stages} stages only {number} are possible: use stages={number}. {error.args[0]}", *error.args[1:]
            ) from None
        found.insert(0, (grows, config, recipe))
        target = config
    return found


def _smaller(target: Config, preferred: Sequence[Grown]) -> tuple[Grown, dict[str, Any], Recipe]:
    refusals: list[str] = []
    for grows in preferred:
        try:
            return grows, *halve(target, grows)
        except RecipeError as error:
            refusals += error.args
    raise RecipeError(*refusals)


def _models(growths: Sequence[tuple[Grown, dict[str, Any], Recipe]], target: Config, budget: int) -> tuple[Any, ...]:
    times = [round(budget * share) for share in _shares(len(growths))]
    spent = [later - earlier for earlier, later in pairwise((0, *times, budget))]
    steps = [*growths, (None, dict(target), None)]
    models = []
    for (grows, config, recipe), flops in zip(steps, spent, strict=True):
        built = architecture(config)
        models.append(ProposedModel(config, built.parameters(), flops_per_token(built), flops, grows, recipe))
    if any(model.tokens < 1 for model in models):
        raise ConfigError(
            f"{budget:.3g} FLOPs are too few for {len(models)} models, of which the last takes "
            f"{models[-1].flops_per_token:.3g} per token: give more, or fewer stages."
        )
    return tuple(models)


def _shares(growths: int) -> list[float]:
    return [GROWTH_SHARE**number for number in range(growths, 0, -1)]


def _schedule(models: Sequence[ProposedModel], budget: int) -> Schedule:
    first, last = (_geometry(architecture(model.config)) for model in (models[0], models[-1]))
    description = f"{first}, to {last.partition(', ')[2]}, exact"
    recipes = [model.recipe for model in models if model.recipe is not None]
    stages = tuple(
        Stage(at=Moment(share=share), recipe=recipe)
        for recipe, share in zip(recipes, _shares(len(recipes)), strict=True)
    )
    return Schedule(description=description, until=Moment(flops=budget), stages=stages)


# ------------------------------------------------- what is known


def _judge(
    grows: Sequence[Grown], yours: Mapping[str, float], known: Sequence[Evidence]
) -> tuple[Verdict, tuple[str, ...], Range | None]:
    """Return the verdict on growths, its reasons and the expected saving."""
    if list(grows) == ["width"]:
        trusted = [line for line in known if line.grows == "width" and line.saving and not line.overstated]
        return _judge_width(yours, trusted)
    against = (*_too_large(grows), *_few_layers(grows, yours["layers"], known))
    if against:
        return "not worth it", against, None
    what = "an exact growth in depth saves" if len(grows) == 1 else "several exact growths in one run save"
    return "unknown", (f"No finding says what {what}.",), None


def _judge_width(
    yours: Mapping[str, float], measured: Sequence[Evidence]
) -> tuple[Verdict, tuple[str, ...], Range | None]:
    saving, ratio = _joined(measured), yours["tokens_per_parameter"]
    ends = next((f" ({line.interval})" for line in measured if line.interval), "")
    least, most = min(saving), max(saving)
    if not least <= ratio <= most:
        long = ratio > most
        reason = (
            f"The training is {'long' if long else 'short'}: {_amount(ratio)} tokens per parameter. The saving was "
            f"{_range(saving[most if long else least])}× at {most if long else least:g}{ends}, and was not measured "
            f"{'beyond' if long else 'below'}."
        )
        return "not worth it", (reason,), None
    below, above = max(at for at in saving if at <= ratio), min(at for at in saving if at >= ratio)
    found = min(saving[below][0], saving[above][0]), max(saving[below][1], saving[above][1])
    seen = " and ".join(f"{_range(saving[at])}× at {at:g}" for at in dict.fromkeys((below, above)))
    where = "" if below == above else f"; yours is {_amount(ratio)}, where nothing was measured"
    reasons = [f"By tokens per parameter, the saving was {seen}{ends}{where}."]
    if found[0] < 1 < found[1]:
        reasons.append("That includes 1×: growth may save nothing. Compare with the source alone and with the target.")
    elif found[0] < 1:
        reasons.append("Below 1×, the source alone or the target from scratch did better: compare with both.")
    outside = [f"{_amount(yours[key])} {UNITS[key]}" for key in measured[0].contradicted(yours)]
    if outside:
        reasons.append(f"For {' and '.join(outside)} it was not measured: this is extrapolated.")
    fewest = min((line.seen["layers"][0] for line in measured if "layers" in line.seen), default=0)
    if yours["layers"] < fewest:
        reasons.append(f"No target of fewer than {fewest:g} layers was measured.")
    sure = found[0] >= 1 and yours["layers"] >= fewest
    verdict: Verdict = "worth trying" if sure else "unknown" if found[1] > 1 else "not worth it"
    return verdict, tuple(reasons), found


def _joined(measured: Sequence[Evidence]) -> dict[float, Range]:
    """Return the range of all measured savings at each number of tokens per parameter."""
    points = sorted({at for line in measured for at in line.saving})
    ends = {at: [end for line in measured for end in line.saving.get(at, ())] for at in points}
    return {at: (min(found), max(found)) for at, found in ends.items()}


def _too_large(grows: Sequence[Grown]) -> list[str]:
    factor = 2 ** grows.count("width")
    return [f"The factor is too large: the width grows {factor}×, and 2× is the most reliable."] * (factor > 2)


def _few_layers(grows: Sequence[Grown], layers: float, known: Sequence[Evidence]) -> list[str]:
    """Return that a model has fewer layers than any whose growth in depth was seen to pay."""
    seen = {line.seen["layers"][0]: line for line in known if line.grows == "depth" and "layers" in line.seen}
    paid = min(least for least, line in seen.items() if not line.saving)
    cost = [f"{least:g}" for least, line in seen.items() if line.saving]
    reason = (
        f"It has few layers, {layers:g}: growth in depth was seen to pay from {paid:g}, and cost more than it saved at "
        f"{', '.join(cost)}."
    )
    return [reason] * ("depth" in grows and layers < paid)


def _relevant(
    known: Sequence[Evidence], grows: Collection[str], yours: Mapping[str, float], *, mixture: bool
) -> tuple[Evidence, ...]:
    """Return the findings on the growths of a plan, then those on others that nothing known of their range excludes.

    Those with measured savings come first.
    """
    first = sorted((line for line in known if line.grows in (ANY, *grows)), key=lambda line: not line.saving)
    others = ("width", "depth", "experts") if mixture else ("width", "depth")
    rest = [line for line in known if line not in first and line.grows in others and not line.contradicted(yours)]
    return (*first, *rest)


# ------------------------------------------------- words


def _ranges(built: Architecture, tokens_per_parameter: float) -> dict[str, float]:
    return {
        "parameters": built.parameters(active=True),
        "layers": built.depth,
        "tokens_per_parameter": tokens_per_parameter,
    }


def _timing(grows: Sequence[Grown | None]) -> str:
    times = " and ".join(f"{100 * share:.3g} %" for share in _shares(len(grows)))
    measured = list(grows) == ["width"]
    return f"after {times} of the FLOPs, {'as it was measured' if measured else 'a choice: no finding says when'}"


def _geometry(built: Architecture) -> str:
    return f"{built.model_type}, {built.depth} layers of {built.axes['residual'].size:,}"


def _seen(line: Evidence, yours: Mapping[str, float]) -> Group:
    """The ranges in which a finding was seen, what of a plan lies outside them, and which are unknown."""
    found = []
    for key in (key for key in UNITS if key in line.seen):
        found.append(Text(f"{_range(line.seen[key])} {UNITS[key]}"))
        if key in line.contradicted(yours):
            found[-1].append(f" (yours: {_amount(yours[key])})", "bold")
    unknown = [unit for key, unit in UNITS.items() if key not in line.seen]
    return Group(*found, *([Text(f"unknown: {', '.join(unknown)}", "dim")] if unknown else []))


def _range(ends: Range) -> str:
    """The ends of a range in words.

    >>> _range((10, 40)), _range((6, 6)), _range((1.15, 1.3))
    ('10 to 40', '6', '1.15 to 1.3')
    """
    return " to ".join(dict.fromkeys(map(_amount, ends)))


def _amount(number: float) -> str:
    return count_text(number) if number >= 1 else f"{number:g}"
