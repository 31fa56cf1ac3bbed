"""docs/add-a-family.md: its code runs, and makes the tables that the library has."""

import re

import pytest

from growth.architectures import FAMILIES, base, blocks, config, decoder
from tests.support.families import all_cases, stated_config
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "add-a-family.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
TABLES = [block for block in BLOCKS if block.startswith("@family")]


def run(block, **names):
    """What a block of code defines, where all names of growth/architectures are known."""
    known = {name: value for module in (base, blocks, config, decoder) for name, value in vars(module).items()}
    exec(block, names := known | {"family": lambda table: table} | names)
    return names


def resolved(table):
    """A table without the names that it gives to spaces."""

    def views(spaces):
        return tuple(table.spaces.get(space, (space,)) for space in spaces)

    weights = {
        weight.name: (
            [([views(spaces) for spaces in part.dimensions], set(views(part.reads))) for part in weight.parts],
            weight.norm_inputs and views(weight.norm_inputs),
            (weight.fused, weight.within, weight.offset, weight.branch_end, weight.layers),
        )
        for weight in table.weights
    }
    rest = (table.sizes, table.depth, table.layer_lists, table.norms, table.eps, table.eps_default, table.bases)
    return list(table.axes.values()), weights, rest


@pytest.mark.parametrize("block", TABLES, ids=lambda block: re.findall(r"def (\w+)", block)[0])
def test_the_tables_of_the_page_are_those_of_the_library(block):
    name = re.findall(r"def (\w+)", block)[0]
    configs = [stated_config(case) for case in all_cases() if case.family == name]
    assert len({found["tie_word_embeddings"] for found in configs}) == 2
    for found in configs:
        assert resolved(run(block)[name](found)) == resolved(FAMILIES[name](found))


def test_the_cases_of_the_page_are_cases():
    (block,) = (block for block in BLOCKS if "CASES" in block)
    for case in run(block)["CASES"]:
        width = {"residual": 32, "heads": 4, "queries": 2, "head_dim": 8}
        for steps in case.steps.values():
            grown = width | dict(steps)
            heads = dict(steps).get("heads", 2 * grown["queries"])
            assert grown["residual"] == heads * grown["head_dim"]
