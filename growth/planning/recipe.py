"""Recipe: a YAML 1.2 file of growth operators. Its schema is closed: an unknown key is an error."""

from __future__ import annotations

import os
import zlib
from functools import reduce
from io import StringIO
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.parser import Parser
from ruamel.yaml.scanner import Scanner

from growth.architectures.base import Architecture
from growth.checkpoints.untrusted import DEEPEST, check_plain, read_file
from growth.errors import CheckpointError, GrowthError, RecipeError
from growth.operators import OPERATORS, RecipeStep
from growth.operators.base import Growth
from growth.operators.registry import ClosedModel, Seed

LARGEST_FILE = 1 << 18  # bytes; shipped recipes have a kilobyte, and the parser reads some 200 KB per second
LARGEST_EVENTS = 5_000  # parser events: keys, values, starts and ends; a list of all layers has 2,048
LARGEST_RECIPE = 1000  # steps
MOST_ERRORS = 10  # errors that one message explains


if TYPE_CHECKING:
    AnyStep = RecipeStep
else:
    AnyStep = Annotated[reduce(or_, (each.schema for each in OPERATORS.values())), Field(discriminator="op")]


class Recipe(ClosedModel):
    r"""A list of steps, and config values of their result.

    description: what the recipe is for.
    source: the checkpoint it is meant for, a folder or a hub id; used if none is given.
    seed: the random seed of the steps and of fresh values.
    steps: operators with their arguments, applied in order.
    expect: config keys of the result and their required values.

    >>> recipe = parse_recipe("description: d\nsteps: [{op: deepen, factor: 2}]", "inline")
    >>> recipe.steps[0].factor
    2
    """

    description: str
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
            try:
                growth = step.operator(zlib.crc32(f"{seed}/{number}".encode()))(growth)
            except GrowthError as error:
                raise RecipeError(f"{self.name}, step {number} ({step.op}): {error}") from None
        return growth

    def check(self, config: dict[str, Any]) -> None:
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
                raise RecipeError(
                    f"{self.name} expects {key} = {expected!r}; with this source the result has {config[key]!r}. "
                    "Correct 'steps' or 'expect', or choose the source that the recipe is meant for."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON values, without those that are defaults."""
        return self.model_dump(mode="json", exclude_defaults=True)


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


def shipped_recipes() -> list[Path]:
    """Return the paths of shipped recipes: in an installed package, or beside it in a source tree."""
    here = Path(__file__).parents[1]
    return sorted((here / "recipes").glob("*.yaml")) or sorted((here.parent / "recipes").glob("*.yaml"))


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe from a YAML file, or a shipped recipe by its name.

    Raises:
        RecipeError: no such file or name, or content that is not a recipe.

    >>> load_recipe("double-depth").steps[0].op
    'deepen'
    """
    path = Path(name)
    if not os.path.isfile(name):  # Path raises where a name is too long for a file system
        shipped = {path.stem: path for path in shipped_recipes()}
        if os.path.islink(name) and not os.path.exists(name):
            raise RecipeError(
                f"The recipe {name} is a link to {os.readlink(name)}, which does not exist. Restore that file, or name "
                "another recipe."
            )
        if str(name) not in shipped and not os.path.exists(name):
            raise RecipeError(f"No recipe file or shipped recipe '{name}'. Shipped: {', '.join(shipped)}.")
        path = shipped.get(str(name), path)
    try:
        text = read_file(path, LARGEST_FILE).decode("utf-8")
    except (UnicodeDecodeError, OSError, CheckpointError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from None
    return parse_recipe(text, path.name)


def parse_recipe(text: str, name: str) -> Recipe:
    """Parse a recipe from YAML 1.2 text; `name` is its name in errors.

    Raises:
        RecipeError: malformed YAML, an unknown or duplicate key, a wrong type.
    """
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Scanner, yaml.Parser = _PlainScanner, _PlainParser
        content = yaml.load(text)
    except RecipeError as error:  # the parser's, which knows no name
        raise RecipeError(f"{name} {error}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{name} is not YAML 1.2: {_one_line(error)}") from None
    return recipe_of(content, name)


def recipe_of(content: Any, name: str) -> Recipe:
    """Validate parsed YAML or JSON as a recipe; `name` is its name in errors.

    Raises:
        RecipeError: an unknown key, a wrong type.
    """
    try:
        check_plain(content)
    except ValueError as error:
        raise RecipeError(f"{name} is not a recipe: {error}.") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{name} holds no mapping: a recipe is a mapping with 'description' and 'steps'.")
    if "name" in content:
        raise RecipeError(f"{name}: unknown key 'name'. Known: {_known(Recipe)}.")
    try:
        return Recipe.model_validate({**content, "name": name})
    except ValidationError as error:
        found = error.errors()
        more = [f"{name}: {len(found) - MOST_ERRORS:,} more errors."] if len(found) > MOST_ERRORS else []
        raise RecipeError(*(_explained(name, item) for item in found[:MOST_ERRORS]), *more) from None


class _PlainScanner(Scanner):
    """A scanner of YAML 1.2 alone: %YAML 1.1 would change the meaning of `yes` and `010`, and %TAG that of tags."""

    def scan_directive(self) -> Any:
        directive = super().scan_directive()
        if (directive.name, directive.value) != ("YAML", (1, 2)):
            between = "." if directive.name == "YAML" else " "
            said = f"%{directive.name} {between.join(map(str, directive.value or ()))}".rstrip()
            raise RecipeError(f"uses the directive {said}; a recipe is YAML 1.2. Remove that line.")
        return directive


class _PlainParser(Parser):
    """A parser with bounded time and memory: no aliases, no tags, few levels, few values."""

    count = depth = 0

    def get_event(self) -> Any:
        event = super().get_event()
        if isinstance(event, AliasEvent):
            raise RecipeError("uses YAML aliases; a recipe states every step in full.")
        if getattr(event, "tag", None) is not None:
            raise RecipeError(f"uses the YAML tag {event.tag}; a recipe holds plain values.")
        if getattr(event, "value", None) == "<<":
            raise RecipeError("uses a YAML merge key; a recipe states every step in full.")
        self.count += 1
        self.depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if self.depth > DEEPEST or self.count > LARGEST_EVENTS:
            raise RecipeError(
                f"is too large for a recipe: at most {DEEPEST} levels of nesting and about {LARGEST_EVENTS:,} values."
            )
        return event


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


# ------------------------------------------------- errors


def _one_line(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1})" if mark is not None else ""
    return f"{problem.splitlines()[0]}{where}."


def _explained(name: str, error: Any) -> str:
    """Return a pydantic error as a sentence: file, step, key, what is wrong, what would be right."""
    where, location = name, list(error["loc"])
    model: type[BaseModel] = Recipe
    if location[:1] == ["steps"] and len(location) > 1:
        where += f", step {location[1] + 1}"
        location = location[2:]
        if location and location[0] in OPERATORS:
            model = OPERATORS[location[0]].schema
            where += f" ({location.pop(0)})"
    key = ".".join(str(part) for part in location if not _is_type(str(part)))
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key '{key}'. Known: {_known(model)}."
    if error["type"] == "missing":
        return f"{where}: '{key}' is missing. Known: {_known(model)}."
    if error["type"].startswith("union_tag"):
        return f"{where}: every step needs an 'op', one of {', '.join(OPERATORS)} (got {error['input']!r})."
    given = f" (got {error['input']!r})"[:80] if key else ""
    return f"{where}: {key + ': ' if key else ''}{error['msg'].removeprefix('Value error, ')}{given}."


def _known(model: type[BaseModel]) -> str:
    return ", ".join(key for key in model.model_fields if key != "name")


def _is_type(part: str) -> bool:
    """Whether a part of pydantic's location names a member of a union instead of a key."""
    return part.startswith(("constrained", "literal[", "list[", "int", "float"))
