"""Shipped recipes for any family, on every case of every family: exact, or refused with a remedy."""

from functools import cache
from itertools import product

import pytest

from growth import GrowthError
from growth.planning.recipe import load_recipe, shipped_recipes
from tests.support.families import all_cases, random_model, typical
from tests.support.models import EXACT, grown, relative_error
from tests.support.selection import one_of_each

CASES = all_cases()
CASE = {case.name: case for case in CASES}
GENERIC = [path.stem for path in shipped_recipes() if load_recipe(path).source is None]
WIDER = ("double-width", "double-width-exact", "double-both", "one-and-a-half-width")

# what a recipe cannot do to a case, and the remedy that it is refused with
UNTIE = dict.fromkeys(WIDER, "(?i)untie the head first")
NO_IDENTITY = dict.fromkeys(("double-depth", "double-both"), "Use init: copy, which changes the function, or widen")
BEHIND = NO_IDENTITY | {
    "one-and-a-half-width": "only equally many copies of every unit preserve it. Use init: tile and to: 64"
}
ONE_GROUP = dict.fromkeys(WIDER, "(?i)widen queries instead")
ALIBI = dict.fromkeys(WIDER, "Stay below it, or widen ffn instead|none can be copied. Use init: pad")
DOUBLED = {recipe: why for recipe, why in ALIBI.items() if recipe.startswith("double")}
EQUAL = {key: why for key, why in BEHIND.items() if key not in NO_IDENTITY}
SINES = dict.fromkeys(WIDER, "Widen ffn instead")
OF_FAMILY = {
    **dict.fromkeys(("bert", "electra", "ernie", "roberta", "camembert", "xlm-roberta", "data2vec-text"), BEHIND),
    **dict.fromkeys(("rembert", "xmod"), BEHIND),
    "roc_bert": NO_IDENTITY | {"one-and-a-half-width": "only equally many copies of every unit preserve it"},
    **dict.fromkeys(("megatron-bert", "roberta-prelayernorm", "xlm-roberta-xl"), EQUAL),
    **dict.fromkeys(("xglm", "ctrl"), SINES),
    "bloom": DOUBLED | {"one-and-a-half-width": "only equally many copies of every unit preserve it"},
    "mpt": DOUBLED,
    "beam": NO_IDENTITY,
    "rwkv": EQUAL,
}
RECURRING = (
    "jamba, attention and experts in a layer each",
    "jamba, attention in the first layer alone, no experts, biases, tied",
)
ONE_KV_HEAD = {"one-and-a-half-width": "each KV head has 4 query heads.* Use to: 8"}
REFUSED = {
    "olmo, tied": UNTIE,
    "nanochat, tied, biases": UNTIE,
    "gpt_bigcode, one group, tied": ONE_GROUP,
    "gpt_bigcode, one group, no softmax scale": ONE_GROUP,
    "falcon, one group": ONE_GROUP,
    "falcon, one group, untied, biases": ONE_GROUP,
    "falcon, ALiBi, one group": ONE_GROUP,
    "falcon, ALiBi": DOUBLED,
    "falcon, ALiBi, groups": DOUBLED,
    "falcon, ALiBi, six heads": ALIBI,
    "opt, no biases, no gains": UNTIE,
    "opt, no final norm": UNTIE,
    "opt, norms behind": NO_IDENTITY | UNTIE,
    "opt, norms behind, projected": BEHIND,
    "opt, norms behind, untied": BEHIND,
    "opt, norms behind, no gains": BEHIND,
    "codegen, tied": ONE_KV_HEAD,
    "glm_moe_dsa, dense layers listed, a shared indexer": dict.fromkeys(NO_IDENTITY, "a new layer would choose others"),
    **dict.fromkeys(RECURRING, dict.fromkeys(NO_IDENTITY, "made from one of its kind")),
}
REFUSED |= {case.name: OF_FAMILY[case.family] for case in CASES if case.family in OF_FAMILY}
REFUSED |= dict.fromkeys(("xmod, norms first", "xmod, norms first, norms of adapters"), EQUAL)
REFUSED |= {case.name: ONE_KV_HEAD for case in CASES if case.config.get("num_key_value_heads") == 1}


@cache
def source(name):
    return random_model(CASE[name])


def test_the_table_of_refusals_speaks_of_cases_and_recipes():
    assert sorted(GENERIC) == [
        "double-both",
        "double-depth",
        "double-width",
        "double-width-exact",
        "one-and-a-half-width",
    ]
    assert REFUSED.keys() <= {case.name for case in CASES}
    assert {recipe for refused in REFUSED.values() for recipe in refused} <= set(GENERIC)


@pytest.mark.parametrize(
    ("name", "recipe"),
    one_of_each(
        product([case.name for case in CASES], GENERIC),
        lambda name, recipe: typical(CASE[name]),
        lambda name, recipe: (recipe, REFUSED.get(name, {}).get(recipe)),
        ids=lambda name, recipe: f"{name}-{recipe}",
    ),
)
def test_recipes_for_any_family(name, recipe):
    model = source(name)
    reason = REFUSED.get(name, {}).get(recipe)
    if reason:
        with pytest.raises(GrowthError, match=reason):
            grown(model, recipe)
    else:
        larger = grown(model, recipe)
        assert larger.num_parameters() > model.num_parameters()
        assert relative_error(model, larger) <= EXACT
