"""Operators and metrics of installed packages: the example is complete, and a broken package is named."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

import growth
from growth.operators.registry import OPERATORS
from growth.verification.metrics import METRICS
from tests.support.paths import PHI_MINI, ROOT
from tests.support.run_page import blocks

EXAMPLE = ROOT / "examples" / "extension"
OPERATOR = """
from growth.operators import widen
from growth.operators.registry import Factor, Summary, register

@register(Summary("`{name}`", "nothing new", "yes"), example={{"factor": 2}})
def {name}(factor: Factor):
    '''Widen the MLP.

    factor: by how much.
    '''
    {first}
    return widen("ffn", factor=factor)
"""
METRIC = """
from growth.verification.metrics import metric

@metric("{name}", "nothing new")
def {name}(at):
    return {value}
"""


def installed(folder, package, group, source, *names):
    """A package that is installed in a folder, as pip leaves it there."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    entries = "\n".join(f"{name} = {package}:{name}" for name in names)
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")
    (folder / f"{package}.py").write_text(textwrap.dedent(source))


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder on the path; what its packages register is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = [(registry, dict(registry)) for registry in (OPERATORS, METRICS)]
    yield tmp_path
    for registry, ours in before:
        registry.clear()
        registry.update(ours)


def test_a_package_brings_an_operator(outside):
    installed(outside, "one_operator", "growth.operators", OPERATOR.format(name="fatten", first=""), "fatten")
    plan = growth.plan([{"op": "deepen", "factor": 2}, {"op": "fatten", "factor": 3}], PHI_MINI)
    assert (plan.config["intermediate_size"], plan.config["num_hidden_layers"], plan.preserving) == (1536, 12, True)
    with pytest.raises(growth.RecipeError, match=r"step 1 \(fatten\): unknown key 'colour'\. Known: op, factor"):
        growth.plan([{"op": "fatten", "factor": 3, "colour": "red"}], PHI_MINI)


def test_recipes_with_it_are_written_and_read_again(outside, tmp_path):
    installed(outside, "kept_operator", "growth.operators", OPERATOR.format(name="keep", first=""), "keep")
    growth.grow([{"op": "keep", "factor": 2}], PHI_MINI, tmp_path / "grown")
    account = json.loads((tmp_path / "grown" / "growth.json").read_text())
    assert account["recipe"]["steps"] == [{"op": "keep", "factor": 2}]
    assert growth.verify_weights(PHI_MINI, tmp_path / "grown").passed


def test_an_unknown_operator_lists_the_known_ones(outside):
    with pytest.raises(growth.RecipeError, match=r"one of widen, .*configure \(got .*Did you mean 'widen'"):
        growth.plan([{"op": "widne", "axis": "ffn"}], PHI_MINI)


@pytest.mark.parametrize("first", ["1 / 0", "return lambda growth: 1 / 0"])
def test_a_broken_operator_names_its_package(outside, first):
    name = f"late_{len(first)}"
    installed(outside, f"package_{name}", "growth.operators", OPERATOR.format(name=name, first=first), name)
    with pytest.raises(growth.RecipeError, match=rf"operator '{name}' of the package package_{name} .*ZeroDivision"):
        growth.plan([{"op": name, "factor": 3}], PHI_MINI)


def test_a_package_cannot_replace_an_operator(outside):
    ours = OPERATORS["widen"]
    source = OPERATOR.format(name="widen", first="") + OPERATOR.format(name="thief", first="")
    installed(outside, "stealing", "growth.operators", source, "thief")
    with pytest.raises(growth.RecipeError, match=r"package stealing .*There is an operator 'widen' already"):
        growth.plan([{"op": "thief", "factor": 2}], PHI_MINI)
    assert OPERATORS["widen"] is ours


def test_a_package_brings_a_metric(outside, tmp_path):
    installed(
        outside, "one_metric", "growth.metrics", METRIC.format(name="half", value="at.source[:, 0] * 0 + 0.5"), "half"
    )
    growth.grow("double-depth", PHI_MINI, tmp_path / "grown")
    report = growth.verify(PHI_MINI, tmp_path / "grown", tokens=8)
    assert (report.logits.half, report.to_dict()["logits"]["half"]) == (0.5, 0.5)
    assert "half" in report.summary()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (METRIC.format(name="zero", value="1 / 0"), "metric 'zero' of the package bad_metric .*ZeroDivisionError"),
        (METRIC.format(name="kl", value="0"), "There is a metric 'kl' already"),
    ],
)
def test_a_broken_metric_names_its_package(outside, tmp_path, source, message):
    installed(outside, "bad_metric", "growth.metrics", source, "zero")
    sys.modules.pop("bad_metric", None)
    growth.grow("double-depth", PHI_MINI, tmp_path / "grown")
    with pytest.raises(growth.VerificationError, match=message):
        growth.verify(PHI_MINI, tmp_path / "grown", tokens=8)


@pytest.mark.slow
def test_the_example_is_a_complete_package(tmp_path):
    """It is installed by pip into a folder of its own, and used by commands in another."""
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check", "--target", site)
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", EXAMPLE, source], check=True)  # setuptools writes beside what it builds
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True)

    def command(*words):
        env = os.environ | {"PYTHONPATH": str(site)}
        done = subprocess.run(
            [sys.executable, "-m", "growth", *words], capture_output=True, text=True, cwd=here, env=env
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    recipe = str(EXAMPLE / "eight-times.yaml")
    command("grow", recipe, "--source", "examples/phi-mini", "--output", "grown")
    config = json.loads((here / "grown" / "config.json").read_text())
    assert config["intermediate_size"] == 8 * config["hidden_size"]
    found = json.loads(command("verify", "examples/phi-mini", "grown", "--recipe", recipe, "--json"))
    assert (found["status"], found["logits"]["top5_agreement"]) == ("PASSED", 1.0)
    (here / "config.json").write_text(json.dumps(LLAMA | {"model_type": "example"}))
    code = "import json; from growth.architectures import architecture; print(architecture(json.load(open('config.json'))).depth)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert done.stdout == "2\n", done.stderr


def test_the_page_shows_the_files_of_the_example():
    shown = {block.file: block.text for block in blocks((ROOT / "docs" / "extend.md").read_text()) if block.file}
    assert len(shown) == 5
    for name, text in shown.items():
        assert text == (EXAMPLE / name).read_text(), name


LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
