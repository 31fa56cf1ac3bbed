"""Schedule: a YAML 1.2 file that says when a model grows while it trains, and how. Its schema is closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, StrictFloat, StrictInt, field_validator, model_validator
from ruamel.yaml import YAML

from growth.errors import ConfigError, GrowthError, RecipeError, did_you_mean
from growth.operators.registry import ClosedModel
from growth.output.in_memory import plan_in_memory
from growth.planning.closed_yaml import FileKind
from growth.planning.plan import Plan
from growth.planning.prepare import plan_next, planned
from growth.planning.recipe import Recipe, RecipeLike, as_recipe, load_recipe, recipe_of
from growth.runtime.shown import Shown

if TYPE_CHECKING:
    from rich.console import Group
    from transformers import PreTrainedModel

    from growth.training.in_place import Optimizers
    from growth.training.schedule_run import ScheduleRun

    AnyRecipe = RecipeLike
else:
    AnyRecipe = Any

KIND = FileKind("schedule", "stage", "stages", "schedules", ConfigError, {})
LARGEST_SCHEDULE = 64  # stages; growth.json records as many growths
OptimizerState = Literal["carry", "reset", "fresh"]


def _meant(steps: object) -> str:
    """What to write for a share of the run that stands for a number of steps; empty if it can be none."""
    return (
        f" For that share of the run, write Moment(share={steps})."
        if isinstance(steps, float) and 0 < steps < 1
        else ""
    )


@dataclass(frozen=True, repr=False)
class Moment:
    """A moment of a run: after a number of steps, of tokens or of FLOPs from its beginning, or after a share of it.

    FLOPs are those of `growth.training.flops`: 6 × parameters without the input embedding × tokens.

    >>> Moment(steps=1000), Moment(steps=1000).words
    (Moment(steps=1000), 'after 1000 steps')
    >>> Moment(flops=1e19).words, Moment(share=0.25).words
    ('after 1e+19 FLOPs', 'after 25 % of the run')
    """

    steps: int | None = None
    tokens: int | None = None
    flops: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        given = [(unit, number) for unit, number in vars(self).items() if number is not None]
        if len(given) != 1 or not _is_amount(*given[0]):
            raise ConfigError(
                f"Invalid schedule entry {self}: give one of steps, tokens and flops, as a whole number of at least 1, "
                f"or share, as a number between 0 and 1.{_meant(self.steps)}"
            )
        if self.share is None:
            object.__setattr__(self, given[0][0], int(given[0][1]))  # 2e9 tokens are 2,000,000,000

    def __repr__(self) -> str:
        given = ", ".join(f"{unit}={number!r}" for unit, number in vars(self).items() if number is not None)
        return f"Moment({given})"

    @property
    def unit(self) -> str:
        """What it counts: steps, tokens, flops or share."""
        return next(unit for unit, number in vars(self).items() if number is not None)

    @property
    def number(self) -> float:
        """How many of its unit."""
        return float(vars(self)[self.unit])

    def is_past(self, **reached: float | None) -> bool:
        """Whether a run has reached the moment; a number of its unit that is None counts as enough.

        reached: the run's steps, tokens and flops.
        """
        amount = reached.get(self.unit)
        return amount is None or amount >= self.number

    def is_near(self, steps: int) -> bool:
        """Whether a run of so many steps may reach the moment by its next step."""
        return self.steps is None or steps + 1 >= self.steps

    def within(self, total: Moment) -> Moment:
        """The same moment of a run of a given length, without a share."""
        return self if self.share is None else Moment(**{total.unit: max(1, round(self.share * total.number))})

    @property
    def words(self) -> str:
        """The moment in words."""
        if self.share is not None:
            return f"after {100 * self.share:.6g} % of the run"
        if self.flops is not None:
            return f"after {self.flops:.12g} FLOPs"
        return f"after {vars(self)[self.unit]} {self.unit}"


def _is_amount(unit: str, number: Any) -> bool:
    if unit == "share":
        return type(number) is float and 0 < number < 1
    whole = type(number) is int or (unit != "steps" and type(number) is float and number.is_integer())
    return whole and number >= 1


def _as_moment(value: Any) -> Moment:
    if isinstance(value, Moment):
        return value
    units = tuple(Moment.__dataclass_fields__)
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= set(units):
        unknown = [key for key in value if key not in units] if isinstance(value, dict) else []
        near = "".join(did_you_mean(str(key), units) for key in unknown)
        raise ValueError(f"give one of {', '.join(f'{{{unit}: …}}' for unit in units)}.{near}".removesuffix("."))
    try:
        return Moment(**value)
    except ConfigError:
        raise ValueError(
            "give one of steps, tokens and flops, as a whole number of at least 1, or share, as a number between 0 and "
            "1, such as 0.25 for a quarter of the run"
        ) from None


def _as_length(value: Any) -> Moment:
    moment = _as_moment(value)
    if moment.share is not None:
        raise ValueError("the length of a run is a number of steps, tokens or flops, not a share")
    return moment


def _amount(moment: Moment) -> dict[str, float]:
    return {moment.unit: vars(moment)[moment.unit]}


When = Annotated[Moment, PlainValidator(_as_moment), PlainSerializer(_amount)]
Length = Annotated[Moment, PlainValidator(_as_length), PlainSerializer(_amount)]
ScheduleLike = Mapping[int, RecipeLike] | Iterable[tuple[Moment, RecipeLike]]


Rate = Annotated[StrictInt | StrictFloat, Field(ge=0, le=1000)]


class SecondWarmup(ClosedModel):
    """A second warm-up after a growth: the factor on updates changes evenly from `start` to that of the stage's rates.

    steps, share: the number of steps until the full learning rate, or the share of the run that they take.
    of: `new`, what the growth has added (growth.Rewarm); or `all`.
    start: the factor before the first of these steps: 0, or 1 for the rate before the growth.
    """

    steps: Annotated[StrictInt, Field(gt=0, lt=2**31)] | None = None
    share: Annotated[StrictFloat, Field(gt=0, lt=1)] | None = None
    of: Literal["new", "all"] = "new"
    start: Rate = 0

    @model_validator(mode="after")
    def _has_a_length(self) -> SecondWarmup:
        if (self.steps is None) == (self.share is None):
            raise ValueError("give its length: one of {steps: …} and {share: …} of the run")
        return self

    @property
    def words(self) -> str:
        """Its length and what it is of, in words."""
        length = f"{self.steps} steps" if self.share is None else f"{100 * self.share:.6g} % of the run"
        return f"warmed up over {length} ({self.of})"


class StageRates(ClosedModel):
    """Factors on the learning rate by kind of value, until the next growth (docs/trainers.md); 0 freezes a kind."""

    old: Rate = 1.0
    copies: Rate = 1.0
    fresh: Rate = 1.0
    new_layers: Rate = 1.0

    @model_validator(mode="after")
    def _trains_something(self) -> StageRates:
        if not any(self.by_kind.values()):
            raise ValueError("all rates are 0: leave at least one above 0")
        return self

    @property
    def by_kind(self) -> dict[str, float]:
        """The rates by kind."""
        return {kind: float(rate) for kind, rate in self}


class Stage(ClosedModel):
    """One growth of a schedule, and the training that follows until the next.

    at: when the model grows.
    recipe: how: the name of a shipped recipe, a path relative to the schedule's file, or the recipe itself: a list of
        steps, or a mapping with `steps` and a recipe's other keys.
    optimizer: `carry` grows the optimizer's state; `reset` too, but what is new starts without state
        (`fresh="reset"` of grow_optimizer); `fresh` starts all of it anew.
    rewarm: a second warm-up of the learning rate.
    rates: factors on the learning rate by kind of value.
    """

    at: When
    recipe: AnyRecipe
    optimizer: OptimizerState = "carry"
    rewarm: SecondWarmup | None = None
    rates: StageRates | None = None

    @property
    def training_words(self) -> str:
        """What the stage does to the learning rate, in words."""
        rates = [f"{kind} × {rate:g}" for kind, rate in (self.rates.by_kind if self.rates else {}).items() if rate != 1]
        return ", ".join([*([self.rewarm.words] if self.rewarm else []), *rates]) or "unchanged"

    def within(self, total: Moment) -> Stage:
        """The same stage of a run of a given length, without shares; a warm-up's stays where that is not in steps."""
        stage = self.with_warmup_within(total) if total.unit == "steps" else self
        return stage.model_copy(update={"at": self.at.within(total)})

    def with_warmup_within(self, total: Moment) -> Stage:
        """The same stage of a run of so many steps: a warm-up that is a share of it has a number of steps."""
        if self.rewarm is None or self.rewarm.share is None:
            return self
        length = {"steps": Moment(share=self.rewarm.share).within(total).steps, "share": None}
        return self.model_copy(update={"rewarm": self.rewarm.model_copy(update=length)})


class Schedule(Shown, ClosedModel):
    """The stages of a run whose model grows while it trains.

    description: what the schedule is for; it may be left out.
    reference: the publication that it follows, and its section.
    until: the length of the run, to which shares refer.
    stages: the growths, in order.

    >>> schedule = load_schedule("double").over(steps=1000)
    >>> schedule.stages[0].at, schedule.at(step=100), schedule.at(step=300).optimizer
    (Moment(steps=250), None, 'carry')
    """

    description: str = ""
    reference: str | None = None
    until: Length | None = None
    stages: tuple[Stage, ...]
    name: Annotated[str, Field(exclude=True)] = "schedule"

    @field_validator("stages", mode="before")
    @classmethod
    def _some_stages(cls, stages: Any) -> Any:
        if isinstance(stages, list | tuple) and not 0 < len(stages) <= LARGEST_SCHEDULE:
            raise ValueError(f"a schedule has 1 to {LARGEST_SCHEDULE} stages, not {len(stages):,}")
        return stages

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        moments = [stage.at for stage in self.stages]
        for number, (one, next_one) in enumerate(pairwise(moments), 2):
            if one.unit == next_one.unit and one.number >= next_one.number:
                raise ValueError(
                    f"stage {number} is {next_one.words} and stage {number - 1} {one.words}: list stages in the order "
                    "of their times, and growths at one time as one recipe"
                )
        for moment in moments:
            if self.until is not None and moment.unit == self.until.unit and moment.number >= self.until.number:
                raise ValueError(
                    f"a stage is {moment.words} and the run ends {self.until.words}: give every stage some time"
                )
        return self

    def table(self) -> Group:
        """The stages: when each grows, how, and with which optimizer and rates."""
        from growth.runtime.terminal import titled_table

        rows = (
            (stage.at.words, getattr(stage.recipe, "name", str(stage.recipe)), stage.optimizer, stage.training_words)
            for stage in self.stages
        )
        columns = ("grows", "by", "optimizer", "learning rate")
        return titled_table(" · ".join(filter(None, (self.name, self.description))), columns, rows)

    def over(self, *, steps: int | None = None, tokens: float | None = None, flops: float | None = None) -> Schedule:
        """The schedule of a run of this length: shares become numbers of its unit. By default, of the length `until`.

        Raises:
            ConfigError: no length, or one that is too short.
        """
        given: dict[str, Any] = {"steps": steps, "tokens": tokens, "flops": flops}
        until = self.until if all(number is None for number in given.values()) else Moment(**given)
        if until is None:
            if not any(stage.at.share or (stage.rewarm and stage.rewarm.share) for stage in self.stages):
                return self
            raise ConfigError(
                f"{self.name} states times as shares of the run, and not the run's length. State it: "
                "schedule.over(steps=10_000), or 'until' in the file."
            )
        content = {"description": self.description, "reference": self.reference, "until": until}
        return KIND.validate(Schedule, {**content, "stages": self.within(until)}, self.name)

    def within(self, until: Moment) -> tuple[Stage, ...]:
        """Return the stages of a run of this length, which need not reach all of them."""
        return tuple(stage.within(until) for stage in self.stages)

    def at(self, *, step: int | None = None, tokens: float | None = None, flops: float | None = None) -> Stage | None:
        """The stage in force after so many steps, tokens or FLOPs; None before the first growth.

        Raises:
            ConfigError: the number by which a stage counts is not given.
        """
        reached, found = {"steps": step, "tokens": tokens, "flops": flops}, None
        for number, stage in enumerate(self.over().stages, 1):
            if reached[stage.at.unit] is None:
                unit = {"steps": "step"}.get(stage.at.unit, stage.at.unit)
                raise ConfigError(f"{self.name}, stage {number} is {stage.at.words}: give {unit}= too.")
            if not stage.at.is_past(**reached):
                break
            found = stage
        return found

    def plans(self, source: str | Path | PreTrainedModel) -> tuple[Plan, ...]:
        """Plan all stages, each on the result of the one before, without making any.

        source: the first model: a checkpoint folder, a hub id or a model in memory.

        Raises:
            GrowthError: a stage that does not apply; the message names it.
        """

        def first(recipe: RecipeLike) -> Plan:
            if isinstance(source, str | Path):
                return planned(recipe, source, None, None, headers_only=True)[0]
            return plan_in_memory(recipe, source)

        return tuple(plan_stages(self.stages, first, self.name))

    def start(
        self, model: PreTrainedModel, optimizer: Optimizers, state: Mapping[str, Any] | None = None
    ) -> ScheduleRun:
        """Start a run of a plain training loop, or resume one from the state that its `state_dict` returned.

        To resume: load the model from the checkpoint, as large as it was saved; make the optimizer of its parameters;
        load the optimizer's saved state with `load_state_dict`; then call `start` with the saved state of the run.

        model: to start, the first model; to resume, that of the checkpoint.
        optimizer: that of the model, or several that share its parameters, such as [muon, adamw].
        state: of the run to resume. Where its optimizer had state and this one has none, a warning says so.

        Raises:
            GrowthError: a stage that does not apply to the model or the optimizer.
        """
        from growth.training.schedule_run import ScheduleRun

        return ScheduleRun(self.over(), model, optimizer, state)


def plan_stages(
    stages: Iterable[Stage], first: Callable[[RecipeLike], Plan], name: str | None = None, done: int = 0
) -> Iterable[Plan]:
    """Plan stages one after the other: the first by a function of its recipe, each other on the result before it.

    name: of the schedule, for errors.
    done: how many stages of the schedule are before these.
    """
    plan: Plan | None = None
    for number, stage in enumerate(stages, done + 1):
        with named_stage(name, number):
            plan = first(stage.recipe) if plan is None else plan_next(stage.recipe, plan)
        yield plan


@contextmanager
def named_stage(name: str | None, number: int) -> Iterator[None]:
    """Name a stage in errors; name: of the schedule, if it has one."""
    try:
        yield
    except GrowthError as error:
        where = f"{name}, stage {number}"
        if name is not None and not error.args[0].startswith(where):  # as in errors of a recipe that the schedule holds
            error.args = (f"{where}: {error.args[0]}", *error.args[1:])
        raise


def shipped_schedules() -> list[Path]:
    """Return the paths of shipped schedules: in an installed package, or beside it in a source tree."""
    return KIND.shipped()


def load_schedule(name: str | Path) -> Schedule:
    """Read a schedule from a YAML file, or a shipped schedule by its name, with the recipes that it names.

    Raises:
        ConfigError: no such file or name, or content that is not a schedule.
        RecipeError: a recipe that cannot be read.

    >>> load_schedule("double").stages[0].at
    Moment(share=0.25)
    """
    path = KIND.find(name, shipped_schedules)
    return parse_schedule(KIND.read(path), path.name, path.parent)


def parse_schedule(text: str, name: str, folder: Path | None = None) -> Schedule:
    """Parse a schedule from YAML 1.2 text; `name` is its name in errors.

    folder: where paths of recipes start, by default the working directory.

    Raises:
        ConfigError: malformed YAML, an unknown or duplicate key, a wrong type.
        RecipeError: a recipe that cannot be read.
    """
    content = KIND.mapping(KIND.parse(text, name), name)
    stages = content.get("stages")
    if stages is None and "steps" in content:
        raise ConfigError(
            f"{name} is a recipe, and a schedule is needed, which states when to apply it. Write one that names "
            "the recipe: 'stages: [{at: {share: 0.25}, recipe: …}]'."
        )
    if isinstance(stages, list):
        read = [_with_recipe(stage, f"{name}, stage {number}", folder) for number, stage in enumerate(stages, 1)]
        content = {**content, "stages": read}
    return KIND.validate(Schedule, content, name)


def _with_recipe(stage: Any, name: str, folder: Path | None) -> Any:
    """A stage with its recipe read."""
    if not isinstance(stage, dict) or "recipe" not in stage:
        return stage
    recipe = stage["recipe"]
    if isinstance(recipe, list):
        recipe = {"steps": recipe}
    if isinstance(recipe, dict):
        return {**stage, "recipe": recipe_of({"description": name, **recipe}, name)}
    if not isinstance(recipe, str):
        raise ConfigError(
            f"{name}: recipe: give the name of a shipped recipe, a path, or a list of steps (got {recipe!r})."
        )
    beside = (folder or Path()) / recipe
    try:
        return {**stage, "recipe": load_recipe(beside if beside.is_file() else recipe)}
    except RecipeError as error:
        raise RecipeError(f"{name}: recipe: {error.args[0]}", *error.args[1:]) from None


def dump_schedule(schedule: Schedule) -> str:
    """Return the schedule as YAML that `load_schedule` reads, with its recipes in full.

    Raises:
        ConfigError: a stage has an operator that was given in Python.
    """
    content = schedule.model_dump(mode="json", exclude_defaults=True, exclude={"stages"})
    content["stages"] = [_stage_content(stage, number) for number, stage in enumerate(schedule.stages, 1)]
    yaml, out = YAML(), StringIO()
    yaml.width = 110
    yaml.dump(content, out)
    return out.getvalue()


def _stage_content(stage: Stage, number: int) -> dict[str, Any]:
    recipe = as_recipe(stage.recipe)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"Stage {number} has an operator that was given in Python: make it a recipe to write it.")
    stated = recipe.to_dict()
    stated.pop("description", None)
    rest = stage.model_dump(mode="json", exclude_defaults=True, exclude={"recipe"})
    return {"at": rest.pop("at"), "recipe": stated if len(stated) > 1 else stated["steps"], **rest}
