"""The registry: one function is an operator in Python, a step of a recipe, and a section of the docs."""

import doctest
import inspect
import re
from typing import Literal

import pytest

import growth
from docs import write_tables
from growth.architectures import architecture
from growth.operators import OPERATORS, widen
from growth.operators.base import Growth, Operator
from growth.operators.registry import Factor, Summary, register
from growth.planning.recipe import parse_recipe
from tests.support.configs import SOURCES, start


@pytest.fixture
def toy(monkeypatch):
    """An operator that only notes what it was given."""
    monkeypatch.setattr("growth.operators.registry.OPERATORS", dict(OPERATORS))
    monkeypatch.setattr(write_tables, "OPERATORS", {})

    @register(Summary("`toy`", "nothing", "yes"), example={"factor": 2}, lossy=True)
    def toy(*, factor: Factor, kind: Literal["plain", "odd"] = "plain", seed: int = 0) -> Operator:
        """Do nothing.

        factor: a number.
        kind: `plain` or
            `odd`.
        seed: of nothing.

        Raises (when applied):
            RecipeError: never.
        """

        def operator(growth: Growth) -> Growth:
            return growth.noted(f"toy {factor} {kind} {seed}", True, "it does nothing")

        return operator

    from growth.operators import registry

    write_tables.OPERATORS["toy"] = registry.OPERATORS["toy"]
    return registry.OPERATORS["toy"]


def test_the_signature_is_the_schema(toy):
    step = toy.schema(op="toy", factor=2, kind="odd")
    assert step.operator(7)(start()).steps[-1].operator == "toy 2 odd 7"
    assert toy.schema(op="toy", factor=2, seed=0).operator(7)(start()).steps[-1].operator == "toy 2 plain 0"
    for wrong in ({}, {"factor": "2"}, {"factor": -1}, {"factor": 2, "kind": "even"}, {"factor": 2, "colour": "red"}):
        with pytest.raises(ValueError, match="toy"):
            toy.schema(op="toy", **wrong)


def test_the_docstring_is_the_section_of_the_docs(toy):
    assert write_tables.operator_sections() == (
        "## `op: toy` (lossy)\n\nDo nothing.\n\n| key | default | |\n|---|---|---|\n"
        "| `factor` | required | a number |\n| `kind` | `plain` | `plain` or `odd` |\n| `seed` | the recipe's | of nothing |\n\n"
        "Example: `{op: toy, factor: 2}`"
    )
    assert write_tables.operator_summaries().endswith("\n| `toy` | nothing | yes |")


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_a_step_of_a_recipe(name):
    example = dict(OPERATORS[name].example)
    step = parse_recipe(f"description: d\nsteps: [{ {'op': name, **example} }]", "r").steps[0]
    assert type(step) is OPERATORS[name].schema
    assert {key: value for key, value in step if key != "op"}.items() >= example.items()


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_called_lossy_is_what_does_not_preserve(name):
    dense = Growth.start(architecture(SOURCES["Qwen/Qwen3-0.6B"]))  # with a mixture that it can become
    copies = widen("ffn", factor=2, init="tile", shares="equal")(dense)
    grown = OPERATORS[name].function(**OPERATORS[name].example)(copies)
    assert len(grown.steps) == len(copies.steps) + 1
    assert grown.steps[-1].preserving is not OPERATORS[name].lossy


def test_every_operator_is_public():
    assert OPERATORS.keys() <= set(growth.__all__), "add it to growth/__init__.pyi"


@pytest.mark.parametrize("name", OPERATORS)
def test_examples_of_operators_run(name):
    """They are wrapped, so pytest does not find them."""
    found = doctest.DocTestFinder(recurse=False).find(OPERATORS[name].function, name, module=False, globs={})
    outcome = doctest.DocTestRunner().run(found[0])
    assert outcome.attempted, "no example"
    assert not outcome.failed


@pytest.mark.parametrize("name", OPERATORS)
def test_help_shows_plain_types(name):
    """A signature is what a reader of help() sees first: without the limits that a recipe's schema adds."""
    shown = str(inspect.signature(OPERATORS[name].function))
    assert not re.search("Annotated|FieldInfo|Strict", shown)
