"""Every value is computed in float32 at least and rounded once, to the type that is stored."""

from functools import reduce
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import growth
from growth.operators import chain, deepen, widen
from tests.cases.llama import llama
from tests.support.families import random_model
from tests.support.models import random_phi, save
from tests.support.selection import one_of_each

HALVES = [torch.float16, torch.bfloat16]
TYPES = [*HALVES, torch.float32]
SIZES = {"hidden_size": 96, "intermediate_size": 144, "vocab_size": 61}
MODELS = {  # LayerNorm, which keeps a mean, and RMSNorm
    "phi": lambda dtype: random_phi(dtype, **SIZES),
    "llama": lambda dtype: random_model(llama("wide", **SIZES, head_dim=24), dtype),
}
WIDE = chain(
    widen("residual", factor=1.25, shares="equal", init="tile"),
    widen("ffn", factor=1.25, shares="equal", init="tile"),
)
RECIPES = {
    "shares": WIDE,
    "doubled": chain(
        widen("residual", factor=2, shares="equal", init="tile"),
        widen("heads", factor=2, shares="equal", init="tile"),
    ),
    "deeper": chain(WIDE, deepen(factor=2)),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return {
        (family, dtype): save(make(dtype), folder / f"{family}-{str(dtype)[6:]}")
        for family, make in MODELS.items()
        for dtype in TYPES
    }


def grown(recipe, source, output, dtype):
    growth.grow(recipe, source, output, dtype=str(dtype)[6:])
    return load_file(output / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "dtype", "recipe"),
    one_of_each(
        product(MODELS, TYPES, RECIPES),
        lambda family, dtype, recipe: (family, dtype),
        lambda family, dtype, recipe: (recipe, dtype),
        ids=lambda family, dtype, recipe: f"{family}-{dtype}-{recipe}",
    ),
)
def test_a_half_type_holds_what_float32_does_rounded(family, dtype, recipe, sources, tmp_path):
    source = sources[family, dtype]
    precise = grown(RECIPES[recipe], source, tmp_path / "precise", torch.float32)
    for half in HALVES:
        for name, tensor in grown(RECIPES[recipe], source, tmp_path / str(half), half).items():
            rounded = precise[name].to(half)
            assert torch.equal(tensor.view(torch.int16), rounded.view(torch.int16)), (name, half)


def unit(values, dtype):
    """The distance of neighbours in a type, at values."""
    info = torch.finfo(dtype)
    return info.eps * 2.0 ** np.floor(np.log2(np.maximum(np.abs(values), info.smallest_normal)))


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_are_gathered_and_multiplied_as_planned(dtype, half, sources, tmp_path):
    """No value is further from the product in float64 than half a unit in the last place, and float32's own error."""
    source = sources["llama", dtype]
    old = load_file(source / "model.safetensors")
    found = grown(WIDE, source, tmp_path / "out", half)
    for tensor_map in growth.plan(WIDE, source, dtype=str(half)[6:]).tensors:
        coefficients = reduce(np.multiply.outer, [dimension.scale for dimension in tensor_map.dimensions])
        chosen = np.ix_(*(dimension.source for dimension in tensor_map.dimensions))
        exact = old[tensor_map.source.name].double().numpy()[chosen] * coefficients
        error = np.abs(found[tensor_map.target].double().numpy() - exact)
        assert (error <= unit(exact, half) / 2 + 2**-21 * np.abs(exact)).all(), tensor_map.target
