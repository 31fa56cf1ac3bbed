"""A recipe, a seed and a source give the same bytes: tomorrow, on another processor, however the work is divided."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

import growth
from tests.support.paths import ROOT
from tests.support.same_bytes import GOLDEN, cases, hashes, tensor_hashes, write_source


def golden(only=""):
    return {name: found for name, found in json.loads(GOLDEN.read_text()).items() if only in name}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """Every case, grown once; where, and the hashes."""
    place = tmp_path_factory.mktemp("grown")
    return place, hashes(place)


@pytest.mark.parametrize("name", cases())
def test_growths_give_the_bytes_that_are_written_down(grown, name):
    assert grown[1][name] == golden()[name]


def test_what_is_written_down_draws_in_every_way(grown):
    """Else the hashes would hold little: fresh values, divided weights, means and experts are all among them."""
    place, _ = grown
    made = {
        entry["made_by"]
        for name in cases()
        for entry in json.loads((place / name / "growth.json").read_text())["tensors"].values()
    }
    words = {word for what in made for word in what.split(", ")}
    assert {"gather", "scale", "keep the mean", "fresh", "split", "copy"} <= words


def program(*arguments, **environment):
    """The hashes as another process finds them."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.same_bytes", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def features():
    """What numpy finds this processor to have above its baseline, in the names of the version at hand."""
    return " ".join(np.show_config(mode="dicts")["SIMD Extensions"]["found"])


@pytest.mark.parametrize(
    ("arguments", "disabled"),
    [
        ((), features()),
        (("--serial", "--workers", "1"), ""),
        (("--workers", "4"), features().split(" ")[-1]),
        (("--parts", "3", "--shard", "9000"), ""),
    ],
    ids=["numpy without vectors", "numkong without vectors, one worker", "four workers", "parts and small files"],
)
def test_another_processor_and_another_division_give_the_same_bytes(arguments, disabled):
    environment = {"NPY_DISABLE_CPU_FEATURES": disabled, "OPENBLAS_CORETYPE": "Prescott"} if disabled else {}
    assert program(*arguments, "--only", "llama", **environment) == golden("llama")


@pytest.mark.parametrize("name", ["llama, divided, float32", "qwen3, experts, bfloat16"])
def test_a_model_in_memory_has_the_bytes_of_the_file(tmp_path, grown, name):
    source, recipe, _ = cases()[name]
    write_source(source, tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype="auto")
    result = growth.grow_model(model, recipe)
    result.save_pretrained(tmp_path / "saved")
    found, expected = tensor_hashes(tmp_path / "saved"), {**grown[1][name]}
    expected.pop("config.json")
    assert found == expected


def test_each_seed_gives_bytes_of_its_own(tmp_path, grown):
    source, recipe, _ = cases()["llama, copies, float16"]
    write_source(source, tmp_path / "source")
    growth.grow(recipe, tmp_path / "source", tmp_path / "out", seed=recipe.seed + 1)
    found = tensor_hashes(tmp_path / "out")
    other = grown[1]["llama, copies, float16"]
    assert found.keys() == other.keys() - {"config.json"}
    drawn = [tensor for tensor in found if "layers.0." in tensor and "proj" in tensor]
    assert drawn
    assert all(found[tensor] != other[tensor] for tensor in drawn)
