"""docs/add-a-family.md: its commands do what it says, and its code makes the tables that the library has."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from growth.architectures import FAMILIES, base, blocks, config, decoder
from tests.support.families import all_cases, stated_config
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "add-a-family.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
QUOTES = re.findall(r"(?:^> .*\n)+", PAGE, re.MULTILINE)
TABLES = [block for block in BLOCKS if block.startswith("@family") and "def acme" not in block]


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


# ------------------------------------------------- part 1, followed literally


def growth(folder, *arguments, status=0):
    """Run the command in a folder where the page's package is installed, as far as an import can tell."""
    done = subprocess.run(
        [sys.executable, "-m", "growth", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def commands():
    """The commands of growth in part 1."""
    part = PAGE.partition("## 2.")[0]
    return [shlex.split(line)[1:] for line in re.findall(r"^\$ (growth .*)$", part, re.MULTILINE)]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package of part 1: its files as the page has them, and what pip makes of pyproject.toml."""
    folder = tmp_path_factory.mktemp("package")
    files = dict(re.findall(r"^`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    assert files.keys() == {"acme/modeling.py", "pyproject.toml"}
    (folder / "acme").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    (entry,) = re.findall(r"^acme = \"(.*)\"$", files["pyproject.toml"], re.MULTILINE)
    info = folder / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[growth.families]\nacme = {entry}\n")
    return folder


def diff(text):
    """What a diff replaces, and by what."""
    lines = text.splitlines()
    return ["".join(f"{line[1:]}\n" for line in lines if line[0] in signs) for signs in (" -", " +")]


def stands(outcome):
    return outcome["verdict"] in ("exact", "refused")


@pytest.mark.slow
def test_part_1_can_be_followed_literally(package):
    first, proof = commands()
    growth(package, *first, status=1)
    file = package / "acme" / "growth_family.py"
    drafted = file.read_text()
    (table,) = (block for block in BLOCKS if "def acme" in block)
    assert drafted.endswith(table)
    broken, question = (" ".join(re.findall(r"^> (.*)", quote, re.MULTILINE)) for quote in QUOTES)
    assert f"- {question}\n" in drafted

    found = json.loads(growth(package, *proof, "--json", status=1))
    wrong = [f"{one['axis']}: {one['why']}" for one in found["outcomes"] if not stands(one)]
    assert wrong == [broken]
    edited = drafted
    for before, after in map(diff, re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)):
        assert edited.count(before) == 1, before
        edited = edited.replace(before, after)
    file.write_text(edited)
    assert " broken " not in growth(package, *proof)
    made = """
from acme.modeling import AcmeConfig, AcmeForCausalLM
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
AcmeForCausalLM(AcmeConfig(vocab_size=61, head_dim=8, **sizes)).save_pretrained("small")
"""
    subprocess.run([sys.executable, "-c", made], cwd=package, check=True, env={"PYTHONPATH": str(package)})
    growth(package, "grow", "double-width", "--source", "small", "--output", "large")
    assert "PASSED" in growth(package, "verify", "small", "large")
