"""mergekit's passthrough configs become recipes that make the same tensors, and recipes of layers become such configs."""

import json
import re
import sys
from importlib.util import find_spec
from subprocess import run as run_program

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from typer.testing import CliRunner

import growth
from growth.cli.app import app
from growth.planning.recipe import load_recipe
from tests.support.families import all_cases, random_model, with_depth
from tests.support.models import save

IDENTITY = """
        parameters:
          scale:
            - filter: {attention}
              value: 0.0
            - filter: {mlp}
              value: 0
            - value: 1.0"""


def config(*slices, **others):
    """A config of mergekit: (first, last, how) for each slice."""
    listed = (f"  - sources:\n      - model: SOURCE\n        layer_range: [{a}, {b}]{how}" for a, b, how in slices)
    head = {"merge_method": "passthrough", **others}
    return "slices:\n" + "\n".join(listed) + "\n" + "".join(f"{key}: {value}\n" for key, value in head.items())


def merged(text, source):
    """What mergekit makes, by its rules: slices one after the other, factors by the first filter that a name contains."""
    tensors = load_file(source / "model.safetensors")
    done = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    count = 0
    for each in YAML(typ="safe").load(text)["slices"]:
        (one,) = each["sources"]
        scale = one.get("parameters", {}).get("scale", 1)
        filters = scale if isinstance(scale, list) else [{"value": scale}]
        for layer in range(*one["layer_range"]):
            for name, tensor in tensors.items():
                if f".layers.{layer}." in name:
                    factor = next(f["value"] for f in filters if f.get("filter", "*") in ("*", *_parts(name, f)))
                    done[name.replace(f".layers.{layer}.", f".layers.{count}.")] = tensor * factor
            count += 1
    return done


def _parts(name, condition):
    return [condition["filter"]] if condition.get("filter", "*") in name else []


def run(*arguments, status=0):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == status, done.output
    return done


ENDS = {  # the last weights of both branches, as a config of mergekit may name them
    "llama": ("o_proj", "down_proj"),
    "phi": ("self_attn.dense", "fc2"),
    "gpt_neox": ("attention.dense", "dense_4h_to_h"),
}


@pytest.fixture(scope="module", params=ENDS)
def source(request, tmp_path_factory):
    case = next(case for case in all_cases() if case.family == request.param)
    torch.manual_seed(0)
    folder = save(random_model(with_depth(case, 4)), tmp_path_factory.mktemp("mergekit") / "source")
    attention, mlp = ENDS[request.param]
    return folder, IDENTITY.format(attention=attention, mlp=mlp)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "slices",
    [
        [(0, 3, ""), (1, 4, "")],  # SOLAR
        [(0, 2, ""), (1, 2, "identity"), (2, 4, ""), (3, 4, "identity"), (3, 4, "identity")],  # LLaMA-Pro
        [(0, 4, ""), (0, 4, "")],
    ],
    ids=["up-scaling", "block expansion", "stacking"],
)
def test_a_config_becomes_a_recipe_that_makes_the_same_tensors(source, slices, tmp_path):
    folder, identity = source
    text = config(*((a, b, identity if how else "") for a, b, how in slices))
    (tmp_path / "merge.yaml").write_text(text)
    run("import", tmp_path / "merge.yaml", "--source", folder, "--output", tmp_path / "recipe.yaml")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    plan = growth.grow(recipe, folder, tmp_path / "grown")
    assert plan.preserving == any(how for *_, how in slices) == ("exact" in recipe.description)
    same(load_file(tmp_path / "grown" / "model.safetensors"), merged(text, folder))

    exported = run("export", tmp_path / "recipe.yaml", "--source", folder).stdout
    assert f"model: {folder}\n" in exported
    same(merged(exported, folder), merged(text, folder))


@pytest.mark.parametrize("recipe", ["double-depth", "LISTED"])
def test_a_recipe_of_layers_becomes_a_config_that_makes_the_same_tensors(source, recipe, tmp_path):
    folder, _ = source
    if recipe == "LISTED":
        recipe = tmp_path / "listed.yaml"
        recipe.write_text("description: d\nsteps: [{op: deepen, to: 5, order: [0, 2, 2, 3, 1], init: copy}]\n")
    growth.grow(recipe, folder, tmp_path / "grown")
    text = json.loads(run("export", recipe, "--source", folder, "--json").stdout)["config"]
    assert "dtype: float64\n" in text
    same(merged(text, folder), load_file(tmp_path / "grown" / "model.safetensors"))


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
def test_mergekit_itself_makes_the_same_tensors(source, tmp_path):
    folder, _ = source
    if json.loads((folder / "config.json").read_text())["model_type"] == "gpt_neox":
        pytest.skip("mergekit 0.1.5 asks for attention.bias, a buffer that transformers does not save any more")
    growth.grow("double-depth", folder, tmp_path / "grown")
    run("export", "double-depth", "--source", folder, "--output", tmp_path / "merge.yaml")
    options = (tmp_path / "merge.yaml", tmp_path / "merged", "--no-copy-tokenizer")
    program = [sys.executable, "-m", "mergekit.scripts.run_yaml", *options]
    done = run_program(list(map(str, program)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("merged", "grown")]
    same(*files)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (config((0, 4, ""), merge_method="slerp"), r"merge_method: .*'passthrough' \(got 'slerp'\)"),
        (config((0, 4, ""), base_model="other"), "unknown key 'base_model'. Known: merge_method, slices"),
        (config((0, 5, "")), r"slice 1: layer_range \[0, 5\] is not within the model's 4 layers"),
        (config((2, 2, "")), r"layer_range \[2, 2\]"),
        (config((0, 2, ""), (1, 2, IDENTITY), (3, 4, "")), "make two recipes"),
        (config((0, 1, ""), (1, 2, IDENTITY), (1, 4, "")), "identity layer before layer 1"),
        (
            config((0, 2, IDENTITY.replace("value: 0\n", "value: 0.5\n"))),
            r"the scale of \S+ is 0.5\. It is 1 in a copy",
        ),
        (config((0, 2, ""), (2, 4, "")).replace("SOURCE", "a", 1), "layers of several models, a, SOURCE"),
        ("slices: [", "not YAML"),
    ],
)
def test_what_cannot_be_a_recipe_is_refused(source, text, message, tmp_path):
    folder, identity = source
    end = identity.split("filter: ")
    text = text.replace("{attention}", end[1].split("\n")[0]).replace("{mlp}", end[2].split("\n")[0])
    (tmp_path / "merge.yaml").write_text(text)
    done = run("import", tmp_path / "merge.yaml", "--source", folder, status=2 if message else 0)
    assert re.search(message, " ".join(done.stderr.split())), done.stderr


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("double-both", "other steps: widen residual"),
        ([{"op": "deepen", "factor": 2, "init": "random"}], "adds random ones"),
        ([{"op": "deepen", "factor": 2}, {"op": "widen", "axis": "ffn", "factor": 2}], "other steps: widen ffn"),
    ],
)
def test_what_mergekit_cannot_do_is_not_exported(source, recipe, message, tmp_path):
    if isinstance(recipe, list):
        (tmp_path / "recipe.yaml").write_text(json.dumps({"description": "d", "steps": recipe}))
        recipe = tmp_path / "recipe.yaml"
    done = run("export", recipe, "--source", source[0], status=2)
    assert message in " ".join(done.stderr.split())
