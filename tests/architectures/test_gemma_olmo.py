"""What is special about Gemma and OLMo: implied layer types, rotary bases, norms behind branches and over all heads."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import growth
from growth.architectures import architecture
from growth.architectures.rotary import rope
from growth.operators import break_symmetry, chain, deepen, widen
from growth.planning.derive import derive_recipe
from growth.verification.float64 import proof_grade
from tests.cases.gemma import MIXED
from tests.cases.llama import LLAMA3_ROPE, SMALL
from tests.support.families import Case, random_model
from tests.support.models import EXACT, relative_error, save

DEEP = SMALL | {"num_hidden_layers": 7, "head_dim": 8, "sliding_window": 4}
OLD_FORMS = {
    "gemma3_text": {"sliding_window_pattern": 3, "rope_theta": 5e5, "rope_local_base_freq": 2e4},
    "gemma2": {"rope_theta": 3e4},
    "olmo3": {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE | {"rope_theta": 5e5}},
    "gemma": {"rope_theta": 3e4},
}
SCALED = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}


def random_case(family, **changes):
    return random_model(Case(family, "", DEEP | changes))


def load(folder):
    with proof_grade():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager")


def rewrite(folder, added):
    """config.json as transformers 4 wrote it: without what is implied, rotary parameters at top level."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    implied = ("layer_types", "rope_parameters", "tie_word_embeddings", "_sliding_window_pattern")
    file.write_text(json.dumps({key: value for key, value in config.items() if key not in implied} | added))
    return folder


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo3"])
def test_implied_layer_types_are_those_of_transformers(family):
    config = AutoConfig.for_model(family, **DEEP)
    stated = {key: value for key, value in config.to_dict().items() if key != "layer_types"}
    assert architecture(stated).layer_lists == {"layer_types": config.layer_types}


@pytest.mark.parametrize("scaled", [{}, SCALED], ids=["", "scaled"])
@pytest.mark.parametrize("family", OLD_FORMS)
def test_old_configs_grow(family, scaled, tmp_path):
    """Deeper, wider heads: layer types are spelled out, each rotary base rises."""
    source = rewrite(save(random_case(family), tmp_path / "source"), OLD_FORMS[family] | scaled)
    growth.grow(chain(deepen(to=9, order="stack"), widen("head_dim", to=12, init="pad")), source, tmp_path / "grown")
    small, large = load(source), load(tmp_path / "grown")
    assert relative_error(small, large) <= EXACT
    if family != "gemma":
        assert large.config.layer_types == [*small.config.layer_types, *small.config.layer_types[:2]]


@pytest.mark.parametrize("norm_eps", ["stock", "rescale"])
@pytest.mark.parametrize("family", ["olmo2", "olmo3"])
def test_norms_over_all_heads_share_one_eps(family, norm_eps):
    """Queries pass a norm over queries, heads and channels, keys one over heads and channels, the stream its own."""
    model = random_case(family)
    operator = chain(
        widen("heads", to=10, shares="random", norm_eps=norm_eps, init="tile"),
        widen("residual", to=40, norm_eps="rescale" if norm_eps == "stock" else "stock", init="tile", shares="equal"),
        widen("queries", to=3, norm_eps=norm_eps, init="tile", shares="equal"),
        widen("head_dim", to=10, init="pad", norm_eps=norm_eps),
        break_symmetry(),
    )
    with proof_grade():
        assert relative_error(model, growth.grow_model(model, operator)) <= EXACT


@pytest.mark.parametrize("norm_eps", ["stock", "rescale"])
def test_norms_of_heads_and_of_the_stream_share_one_eps(norm_eps):
    model = random_case("gemma3_text")
    steps = (
        widen("residual", to=48, norm_eps=norm_eps, init="tile", shares="equal"),
        widen("heads", to=8, init="tile", shares="equal"),
        widen("head_dim", to=10, init="pad"),
    )
    with proof_grade():
        assert relative_error(model, growth.grow_model(model, chain(*steps))) <= EXACT


def test_a_new_layer_ends_in_the_gain_of_its_last_norms():
    """Gemma multiplies by 1 + w: zero is stored as -1, and the projections in front of it stay trained."""
    model = random_case("gemma2")
    grown = growth.grow_model(model, deepen(to=8, order="append")).model.layers[7]
    last = model.model.layers[6]
    for norm in (grown.post_attention_layernorm, grown.post_feedforward_layernorm):
        assert torch.equal(norm.weight, torch.full_like(norm.weight, -1))
    assert torch.equal(grown.mlp.down_proj.weight, last.mlp.down_proj.weight)


def test_a_tied_olmo_grows_once_untied(tmp_path):
    """What the refusal of a tied head tells to do works."""
    tied = random_case("olmo", tie_word_embeddings=True)
    untied = random_case("olmo")
    with torch.no_grad():
        untied.load_state_dict({**tied.state_dict(), "lm_head.weight": tied.model.embed_tokens.weight.clone()})
    with proof_grade():
        assert (
            relative_error(tied, growth.grow_model(untied, widen("residual", to=40, init="tile", shares="equal")))
            <= EXACT
        )


def test_unknown_frequencies_keep_their_heads():
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    model = random_case("olmo2", rope_parameters=yarn)
    with pytest.raises(growth.GrowthError, match="for 'yarn' frequencies"):
        growth.grow_model(model, widen("head_dim", to=10, init="pad"))


def test_heads_whose_channels_turn_in_pairs_stay_even():
    with pytest.raises(growth.GrowthError, match="come in pairs"):
        growth.grow_model(random_case("gemma"), widen("head_dim", to=11, init="pad"))


def test_a_recipe_is_derived_for_wider_heads():
    """The target's rotary bases, one a layer type, are held to the growth's."""
    source = random_case("gemma3_text", layer_types=None).config.to_dict()
    bases = {"full_attention": 1e6**1.25, "sliding_attention": 1e4**1.25}
    forms = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()}
    recipe, _ = derive_recipe(source, source | {"head_dim": 10, "rope_parameters": forms})
    assert [step.op for step in recipe.steps] == ["widen"]
    assert rope(source, "rope_theta", None) == {"full_attention": 1e6, "sliding_attention": 1e4}
    with pytest.raises(growth.GrowthError, match="rope_theta"):
        derive_recipe(source, source | {"head_dim": 10})


def test_layer_types_of_copies_stay(tmp_path):
    model = random_model(Case("gemma3_text", "", DEEP | {"num_hidden_layers": 3, "layer_types": MIXED}))
    larger = growth.grow_model(model, deepen(to=6, order="interleave"))
    assert larger.config.layer_types == [kind for kind in MIXED for _ in range(2)]
