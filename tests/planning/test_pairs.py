"""Pairs of published models: their configs are true, and each pair has an exact recipe or a true reason against it."""

import math

import pytest

import growth
from docs.pairs import LOSSY, NONE, found
from growth import RecipeError
from growth.architectures import FAMILIES, architecture
from growth.architectures.wrapper import Wrapper
from growth.planning.derive import derive_recipe, recipe_text
from growth.planning.recipe import parse_recipe
from growth.training.trainer_checkpoint import meta_model
from tests.support.published import all_series, published, stored_shapes, write_headers
from tests.support.selection import one_of_each

SERIES = {pair: number for number, series in enumerate(all_series()) for pair in series.pairs}
PAIRS = [pair for series in all_series() for pair in series.pairs]
LARGE = {("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B")}  # of so many tensors that planning takes seconds
CASES = one_of_each(
    [pair for pair in PAIRS if pair not in LARGE], lambda *pair: SERIES[pair], ids=lambda *pair: " to ".join(pair)
) + [pytest.param(*pair, marks=pytest.mark.slow, id=" to ".join(pair)) for pair in LARGE]

# families without a published model here: the default sizes of their classes stand for one, and
# tests/architectures/test_defaults.py compares their numbers of parameters with those of the classes
BY_DEFAULTS = """
    afmoe apertus arcee aria_text bamba beam bert-generation big_bird biogpt camembert cohere cohere2 cohere2_moe
    cohere_compass_text ctrl cwm data2vec-text deepseek_v2 deepseek_v3 diffllama doge dots1 electra ernie ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon_h1 falcon_mamba flex_olmo flint glm glm4 glm4_moe glm4_moe_lite
    gpt_bigcode gpt_neo gpt_oss gptj granite_swa granitemoe granitemoe_swa granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 kimi_linear lfm2 llama4_text mamba mamba2
    megatron-bert mellum minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 modernbert-decoder nanochat nemotron
    olmo3 olmoe persimmon phimoe qwen2_moe qwen3_5_moe_text qwen3_5_text roberta-prelayernorm roformer rwkv
    seed_oss smollm3 solar_open vaultgemma youtu
"""


def config(name):
    return published()[name].config


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """Folders with the headers of published models, each written once."""
    root = tmp_path_factory.mktemp("published")

    def folder(name):
        path = root / name.replace("/", "--")
        return path if path.is_dir() else write_headers(published()[name], path)

    return folder


def test_there_are_many_pairs_and_none_twice():
    assert len(set(PAIRS)) == len(PAIRS) >= 100


def test_every_family_has_a_published_model_or_is_compared_by_its_defaults():
    """A wrapper takes its sizes from the family of its text model."""
    text_models = {name for name, table in FAMILIES.items() if not isinstance(table, Wrapper)}
    assert text_models - {model.config["model_type"] for model in published().values()} == set(BY_DEFAULTS.split())


@pytest.mark.parametrize("model", published().values(), ids=lambda model: model.name)
def test_the_table_of_a_model_has_the_published_number_of_parameters(model):
    assert sum(map(math.prod, architecture(model.config).shapes().values())) == model.parameters + model.buffers
    assert sum(map(math.prod, stored_shapes(model).values())) == model.stored


@pytest.mark.slow
@pytest.mark.parametrize("model", published().values(), ids=lambda model: model.name)
def test_the_stock_class_of_a_model_has_the_published_number_of_parameters(model):
    assert meta_model(model.config).num_parameters() == model.parameters


@pytest.mark.parametrize(("source", "target"), CASES)
def test_a_pair_has_an_exact_recipe_or_a_true_reason_against_it(source, target, headers):
    result = found(source, target)
    assert [each.text for each in result.differences if each.reason is None] == []
    if result.kind == NONE:
        with pytest.raises(RecipeError, match="No recipe leads from the source to the target"):
            derive_recipe(config(source), config(target), lossy=True)
        return
    recipe = result.recipe or derive_recipe(config(source), config(target), lossy=True)[0]
    plan = growth.plan(parse_recipe(recipe_text(recipe, []), "derived.yaml"), headers(source))
    assert plan.parameters == published()[target].parameters
    assert {tensor.target: tensor.shape for tensor in plan.tensors} == architecture(config(target)).shapes()
    assert all(step.preserving or step.adds_tokens for step in plan.growth.steps) == (result.kind != LOSSY)
