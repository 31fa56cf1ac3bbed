"""GPT-2, GPT-NeoX, OPT: file names, configs and geometries of their own; fused against separate attention."""

import json

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import growth
from growth import GrowthError
from growth.architectures import architecture
from growth.operators import break_symmetry, chain, deepen, widen
from growth.verification.float64 import proof_grade
from tests.support.families import all_cases, random_model
from tests.support.models import EXACT, logits, relative_error, save

CASES = {case.name: case for case in all_cases()}
WIDER = (widen("residual", to=40, init="tile", shares="equal"), widen("heads", to=5, init="tile", shares="equal"))


def load(folder):
    with proof_grade():
        options = {"dtype": "auto", "attn_implementation": "eager", "output_loading_info": True}
        model, info = AutoModelForCausalLM.from_pretrained(folder, **options)
    assert not any(info.values())
    return model


def edit_config(folder, edit):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))


# ------------------------------------------------- positions


@pytest.mark.parametrize("init", ["tile", "pad"])
@pytest.mark.parametrize("name", ["gpt2, tied", "opt, tied", "opt, norms behind, projected"])
def test_positions_grow_and_the_old_ones_stay(name, init):
    model = random_model(CASES[name])
    with proof_grade():
        grown = growth.grow_model(model, widen("positions", to=160, init=init))
    assert grown.config.max_position_embeddings == 160
    assert relative_error(model, grown) <= EXACT
    assert torch.isfinite(logits(grown, torch.zeros((1, 150), dtype=torch.int64))).all()


def test_reserved_positions_of_opt_stay():
    with pytest.raises(GrowthError, match="first two positions are reserved for padding"):
        growth.grow_model(random_model(CASES["opt, tied"]), widen("reserved", to=4, init="tile", shares="equal"))


# ------------------------------------------------- geometry


@pytest.mark.parametrize("name", ["gpt2, tied", "gpt_neox, parallel", "opt, tied"])
def test_a_geometry_that_the_class_computes_otherwise_is_refused_with_the_remedy(name):
    model = random_model(CASES[name])
    for axis, to in (("residual", 40), ("heads", 5), ("head_dim", 16)):
        with pytest.raises(GrowthError, match=r"grow residual, heads, head_dim so that"):
            growth.grow_model(model, widen(axis, to=to, init="tile"))
    with pytest.raises(GrowthError, match="is not a multiple of"):
        growth.grow_model(model, widen("residual", to=42, init="tile", shares="equal"))


def test_a_gpt2_that_attends_to_an_encoder_is_refused():
    config = random_model(CASES["gpt2, tied"]).config.to_dict() | {"add_cross_attention": True}
    with pytest.raises(GrowthError, match="only decoder-only models"):
        architecture(config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"new_decoder_architecture": True, "parallel_attn": False},
            "parallel_attn = false .* Set parallel_attn to true",
        ),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn = 3.* to 1 or 2"),
        ({"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn = 2.* new_decoder_architecture = false. Set it to 1"),
        ({"multi_query": False, "num_kv_heads": 2}, "num_kv_heads = 2 for 4 query heads.* Remove num_kv_heads"),
    ],
)
def test_falcons_that_their_class_cannot_run_are_refused(changes, says):
    config = CASES["falcon, one group"].config | {"model_type": "falcon"} | changes
    assert config["num_attention_heads"] == 4
    with pytest.raises((AttributeError, RuntimeError, UnboundLocalError)):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))(torch.zeros((1, 4), dtype=torch.int64))
    with pytest.raises(GrowthError, match=says):
        architecture(config)


# ------------------------------------------------- OPT's projections


@pytest.mark.parametrize("init", ["tile", "sample", "pad"])
@pytest.mark.parametrize("name", ["opt, projected", "opt, projected, untied", "opt, norms behind, projected"])
def test_the_embedding_of_a_projected_opt_grows(name, init):
    model = random_model(CASES[name])
    steps = [widen("embedding", to=20, init=init)]
    if init != "pad":
        steps.append(break_symmetry())
    with proof_grade():
        grown = growth.grow_model(model, chain(*steps))
    assert grown.config.word_embed_proj_dim == 20
    assert relative_error(model, grown) <= EXACT


def test_an_embedding_as_wide_as_the_stream_would_lose_its_projections():
    with pytest.raises(GrowthError, match="cannot express the sizes"):
        growth.grow_model(random_model(CASES["opt, projected"]), widen("embedding", to=32, init="tile", shares="equal"))


@pytest.mark.parametrize("method", ["random", "mask"])
@pytest.mark.parametrize("name", ["opt, no final norm, untied", "opt, no final norm, projected"])
def test_a_stream_that_is_read_without_a_norm_keeps_its_mean(name, method):
    """Copies of a LayerNorm's stream hold the mean at a level of its own, and readers must undo that too."""
    model = random_model(CASES[name])
    with proof_grade():
        grown = growth.grow_model(model, chain(*WIDER, break_symmetry(method=method)))
    assert relative_error(model, grown) <= EXACT


# ------------------------------------------------- names in files


def test_gpt2_files_without_the_prefix(tmp_path):
    """As the first GPT-2s are stored: the bare model's names, and causal masks that the class computes itself."""
    model = random_model(CASES["gpt2, tied"])
    source = save(model, tmp_path / "source")
    file = source / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 128, 128).tril() for layer in range(3)}
    save_file(tensors, file, {"format": "pt"})
    edit_config(source, lambda config: config.update(n_ctx=128))
    plan = growth.grow(chain(*WIDER, widen("positions", to=160), deepen(to=5)), source, tmp_path / "out")
    assert len(plan.dropped) == 3
    assert plan.config["n_ctx"] == 160
    assert "h.4.attn.c_attn.weight" in load_file(tmp_path / "out" / "model.safetensors")
    assert relative_error(model, load(tmp_path / "out")) <= EXACT
    assert "head_dim" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_opt_files_without_the_prefix(tmp_path):
    model = random_model(CASES["opt, tied"])
    source = save(model, tmp_path / "source")
    file = source / "model.safetensors"
    save_file({name.removeprefix("model."): t for name, t in load_file(file).items()}, file, {"format": "pt"})
    growth.grow(chain(*WIDER), source, tmp_path / "out")
    assert relative_error(model, load(tmp_path / "out")) <= EXACT


def test_pythia_as_it_is_stored(tmp_path):
    """Rotary parameters under the old names, the head as embed_out, masks and frequencies in the file."""
    model = random_model(CASES["gpt_neox, parallel"])
    source = save(model, tmp_path / "source")
    file = source / "model.safetensors"
    tensors = {name.replace("lm_head.", "embed_out."): tensor for name, tensor in load_file(file).items()}
    tensors |= {f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq": torch.ones(1) for layer in range(3)}
    tensors |= {f"gpt_neox.layers.{layer}.attention.bias": torch.ones(1, 1, 128, 128) for layer in range(3)}
    save_file(tensors, file, {"format": "pt"})

    def as_before(config):
        nested = config.pop("rope_parameters")
        config.update(rotary_pct=nested["partial_rotary_factor"], rotary_emb_base=nested["rope_theta"])

    edit_config(source, as_before)
    steps = chain(
        widen("residual", to=48, init="tile", shares="equal"),
        widen("head_dim", to=12, init="tile", shares="equal"),
        deepen(to=4),
    )
    plan = growth.grow(steps, source, tmp_path / "out")
    assert "embed_out.weight" in load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rotary_pct"] == config["rope_parameters"]["partial_rotary_factor"] == 2 / 12
    assert config["rotary_emb_base"] == config["rope_parameters"]["rope_theta"]
    assert "partial_rotary_factor" not in config
    assert len(plan.dropped) == 6
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters["partial_rotary_factor"] == 2 / 12
    assert relative_error(model, load(tmp_path / "out")) <= EXACT


def test_falcon_without_groups_stores_heads_as_neox_does():
    table = {
        family: CASES[name]
        for family, name in (("falcon", "falcon, no groups, in sequence"), ("gpt_neox", "gpt_neox, parallel"))
    }
    shapes = [architecture(random_model(case).config.to_dict()) for case in table.values()]
    falcon, neox = ([weight for weight in built.weights if "query_key_value.weight" in weight.name] for built in shapes)
    assert falcon[0].parts == neox[0].parts
    assert falcon[0].within == neox[0].within


@pytest.mark.parametrize(
    ("name", "heads"), [("falcon, ALiBi", 8), ("falcon, ALiBi, one group", 8), ("falcon, ALiBi, six heads", 8)]
)
def test_alibi_has_other_slopes_from_the_next_power_of_two_on(name, heads):
    axis = "queries" if "one group" in name else "heads"
    with pytest.raises(GrowthError, match="changes all of them"):
        growth.grow_model(
            random_model(CASES[name]),
            chain(widen("residual", to=64, init="tile", shares="equal"), widen(axis, to=heads, init="pad")),
        )


def test_a_gptj_whose_rotary_channels_no_head_has_is_refused():
    config = random_model(CASES["gptj, untied"]).config.to_dict()
    for channels in (3, 10):
        with pytest.raises(GrowthError, match="even number of at most 8"):
            architecture(config | {"rotary_dim": channels})


def test_two_rotary_factors_that_disagree_are_refused():
    config = random_model(CASES["gpt_neox, parallel"]).config.to_dict() | {"rotary_pct": 0.5}
    with pytest.raises(GrowthError, match="two values of partial_rotary_factor"):
        architecture(config)


# ------------------------------------------------- fused and separate attention


def test_fused_attention_grows_as_separate_attention_does():
    """One q, k, v in three forms: OPT's own weights, GPT-2's side by side, GPT-NeoX's within each head."""
    opt, gpt2, neox = (random_model(CASES[name]) for name in ("opt, tied", "gpt2, tied", "gpt_neox, parallel"))

    def separate(model):
        attention = model.model.decoder.layers[1].self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return [torch.cat([projection.weight, projection.bias[:, None]], 1) for projection in projections]

    def beside(model):
        attention = model.transformer.h[1].attn.c_attn
        return rearrange(torch.cat([attention.weight, attention.bias[None]]), "r (three c) -> three c r", three=3)

    def within(model):
        attention = model.gpt_neox.layers[1].attention.query_key_value
        stored = torch.cat([attention.weight, attention.bias[:, None]], 1)
        return rearrange(stored, "(h three c) r -> three (h c) r", three=3, h=model.config.num_attention_heads)

    wanted = torch.stack(separate(opt))
    with torch.no_grad():
        matrix, bias = wanted[..., :-1], wanted[..., -1]
        attention = gpt2.transformer.h[1].attn.c_attn
        attention.weight.copy_(rearrange(matrix, "three c r -> r (three c)"))
        attention.bias.copy_(rearrange(bias, "three c -> (three c)"))
        attention = neox.gpt_neox.layers[1].attention.query_key_value
        attention.weight.copy_(rearrange(matrix, "three (h c) r -> (h three c) r", h=4))
        attention.bias.copy_(rearrange(bias, "three (h c) -> (h three c)", h=4))
    recipe = chain(*WIDER)
    grown = [growth.grow_model(model, recipe) for model in (opt, gpt2, neox)]
    expected = torch.stack(separate(grown[0]))
    assert expected.shape == (3, 40, 41)
    assert torch.equal(beside(grown[1]), expected)
    assert torch.equal(within(grown[2]), expected)
