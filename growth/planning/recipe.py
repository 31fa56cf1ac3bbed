"""Recipe: a YAML 1.2 file of growth operators. Its schema is closed: an unknown key is an error."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, reduce
from io import StringIO
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, create_model, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from growth.architectures.base import Architecture
from growth.errors import RecipeError, in_step
from growth.operators import OPERATORS, Operator, RecipeStep, chain
from growth.operators.base import Growth
from growth.operators.registry import EXTENSIONS, ClosedModel, Seed
from growth.planning.closed_yaml import FileKind
from growth.runtime.shown import Shown

LARGEST_RECIPE = 1000  # steps
GIVEN = "recipe given in Python"


if TYPE_CHECKING:
    from rich.console import Group

    AnyStep = RecipeStep
else:
    AnyStep = Annotated[reduce(or_, (each.schema for each in OPERATORS.values())), Field(discriminator="op")]
OURS = tuple(OPERATORS)


class Recipe(Shown, ClosedModel):
    r"""A list of steps, and config values of their result.

    description: what the recipe is for; it may be left out.
    source: the checkpoint it is meant for, a folder or a hub id; used if none is given.
    seed: the random seed of the steps and of fresh values.
    steps: operators with their arguments, applied in order.
    expect: config keys of the result and their required values.

    >>> recipe = parse_recipe("steps: [{op: deepen, factor: 2}]", "inline")
    >>> recipe.steps[0].factor
    2
    """

    description: str = ""
    source: str | None = None
    seed: Seed = 0
    steps: list[AnyStep]
    expect: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
    name: Annotated[str, Field(exclude=True)] = "recipe"

    @field_validator("steps", mode="before")  # before each step is validated
    @classmethod
    def _some_steps(cls, steps: Any) -> Any:
        if isinstance(steps, list | tuple) and not 0 < len(steps) <= LARGEST_RECIPE:
            raise ValueError(f"a recipe has 1 to {LARGEST_RECIPE} steps, not {len(steps):,}")
        return steps

    def grow(self, architecture: Architecture, seed: int) -> Growth:
        """Apply all steps to a model, with random values drawn from `seed`.

        Raises:
            RecipeError: a step cannot be applied; the message names file and step.
        """
        growth = Growth.start(architecture)
        for number, step in enumerate(self.steps, 1):
            with in_step(f"{self.name}, step {number} ({step.op})"):
                growth = step.operator(zlib.crc32(f"{seed}/{number}".encode()))(growth)
        return growth

    def check(self, config: Mapping[str, Any]) -> None:
        """Check the result's config against what the recipe expects.

        Raises:
            RecipeError: a key is missing or has another value.
        """
        for key, expected in self.expect.items():
            if key not in config:
                raise RecipeError(
                    f"{self.name} expects {key} = {expected!r}; the result's config has no such key. Correct 'expect'."
                )
            if not _equal(expected, config[key]):
                made = f", made for {self.source}," if self.source else ""
                raise RecipeError(
                    f"{self.name}{made} expects {key} = {expected!r}; with this source the result has {config[key]!r}. "
                    "Choose the source that the recipe is made for, or a recipe that fits yours (growth recipes --for "
                    "SOURCE); in a recipe of your own, correct 'steps' or 'expect'."
                )

    def table(self) -> Group:
        """The steps with their arguments."""
        from growth.runtime.terminal import titled_table

        steps = [step.model_dump(mode="json", exclude_defaults=True) for step in self.steps]
        said = (", ".join(f"{key}: {value}" for key, value in step.items() if key != "op") for step in steps)
        rows = ((step.op, arguments) for step, arguments in zip(self.steps, said, strict=True))
        return titled_table(" · ".join(filter(None, (self.name, self.description))), ("operator", "arguments"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON values, without those that are defaults."""
        return self.model_dump(mode="json", exclude_defaults=True)


RecipeLike = Recipe | Operator | str | Path | Mapping[str, Any] | Sequence[Operator | Mapping[str, Any]]


def _equal(expected: Any, found: Any) -> bool:
    """Whether two JSON values are equal: 1 equals 1.0, but a flag does not equal a number.

    >>> _equal({"a": [1, None]}, {"a": [1.0, None]}), _equal([1], [True]), _equal(0, False)
    (True, False, False)
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(_equal(value, found[key]) for key, value in expected.items())
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        return len(expected) == len(found) and all(map(_equal, expected, found))
    return isinstance(expected, bool) == isinstance(found, bool) and bool(expected == found)


class _StepSchemas(Mapping[str, type[RecipeStep]]):
    """The schemas of steps by operator, those of packages too once they are loaded."""

    def __getitem__(self, name: str) -> type[RecipeStep]:
        return OPERATORS[name].schema

    def __iter__(self) -> Iterator[str]:
        return iter(OPERATORS)

    def __len__(self) -> int:
        return len(OPERATORS)


KIND = FileKind("recipe", "step", "steps", "recipes", RecipeError, _StepSchemas())


@cache
def _recipe_with(operators: tuple[str, ...]) -> type[Recipe]:
    """The schema of a recipe that may also have operators of installed packages."""
    step: Any = reduce(or_, (OPERATORS[name].schema for name in (*OURS, *operators)))
    steps: Any = list[Annotated[step, Field(discriminator="op")]]
    return create_model("Recipe", __base__=Recipe, steps=(steps, ...))


def _schema_of(content: Mapping[str, Any]) -> type[Recipe]:
    """The schema of a recipe: that of all, unless it names operators that only installed packages have."""
    steps = content.get("steps")
    named = {step.get("op") for step in steps if isinstance(step, Mapping)} if isinstance(steps, list) else set()
    others = sorted(name for name in named if isinstance(name, str) and name not in OURS and EXTENSIONS.find(name))
    return _recipe_with(tuple(others)) if others else Recipe


def shipped_recipes() -> list[Path]:
    """Return the paths of shipped recipes: in an installed package, or beside it in a source tree."""
    return KIND.shipped()


def shipped_text(name: str | Path) -> str:
    """The text of a recipe file, or of a shipped recipe by its name.

    Raises:
        RecipeError: no such file or name.
    """
    return KIND.read(KIND.find(name, shipped_recipes))


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe from a YAML file, or a shipped recipe by its name.

    Raises:
        RecipeError: no such file or name, or content that is not a recipe.

    >>> load_recipe("double-depth").steps[0].op
    'deepen'
    """
    path = KIND.find(name, shipped_recipes)
    return parse_recipe(KIND.read(path), path.name)


def as_recipe(recipe: RecipeLike) -> Recipe | Operator:
    """Read a recipe from whatever states one.

    recipe: a recipe or an operator; the path of a file, the name of a shipped recipe, or YAML text of several lines; a
        mapping as in such a file; or one step as a mapping, or a list of operators, or of such steps.

    Raises:
        RecipeError: as for `load_recipe`, or something else.

    >>> as_recipe([{"op": "deepen", "factor": 2}]).steps[0].factor
    2
    """
    if isinstance(recipe, str) and "\n" in recipe:
        return parse_recipe(recipe, GIVEN)
    if isinstance(recipe, str | Path):
        return load_recipe(recipe)
    if isinstance(recipe, Mapping) and "op" in recipe:
        recipe = [recipe]
    if isinstance(recipe, list | tuple):
        if all(callable(step) for step in recipe):
            return chain(*recipe)
        recipe = {"steps": list(recipe)}
    if isinstance(recipe, Mapping):
        return recipe_of({"description": f"a {GIVEN}", **recipe}, GIVEN)
    if not isinstance(recipe, Recipe) and (not callable(recipe) or hasattr(recipe, "state_dict")):  # as models have
        raise RecipeError(
            f"A recipe is a file, the name of a shipped one, YAML text, a mapping, a list of steps, or operators, and "
            f"this is of type {type(recipe).__name__}. If it is the source, name it second: plan(recipe, source)."
        )
    return recipe


def parse_recipe(text: str, name: str) -> Recipe:
    """Parse a recipe from YAML 1.2 text; `name` is its name in errors.

    Raises:
        RecipeError: malformed YAML, an unknown or duplicate key, a wrong type.
    """
    return recipe_of(KIND.parse(text, name), name)


def recipe_of(content: Any, name: str) -> Recipe:
    """Validate parsed YAML or JSON as a recipe; `name` is its name in errors.

    Raises:
        RecipeError: an unknown key, a wrong type.
    """
    mapping = KIND.mapping(content, name)
    if "stages" in mapping and "steps" not in mapping:
        raise RecipeError(
            f"{name} is a schedule, of growths in the course of training, and a recipe is needed. Train by it with "
            "GrowthCallback.from_schedule or load_schedule, or name the recipe of one of its stages."
        )
    return KIND.validate(_schema_of(mapping), mapping, name)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that `load_recipe` reads."""
    yaml = YAML()
    yaml.width = 110
    content = recipe.to_dict()
    for step in content["steps"]:
        if isinstance(step.get("order"), list):
            step["order"] = CommentedSeq(step["order"])
            step["order"].fa.set_flow_style()
    out = StringIO()
    yaml.dump(content, out)
    return out.getvalue()
