"""What the families with learned positions and square attention share: file names, geometry, longer contexts."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import growth
from growth import GrowthError
from growth.operators import chain, deepen, widen
from growth.precision import proof_grade
from tests.families import all_cases, random_model
from tests.models import EXACT, logits, relative_error, save

CASES = {case.name: case for case in all_cases()}
SQUARE = [name for name, case in CASES.items() if case.family in ("gpt2",) and "residual" in case.steps]
LEARNED = [name for name in SQUARE if CASES[name].family in ("gpt2",)]


@pytest.mark.parametrize("init", ["tile", "pad"])
@pytest.mark.parametrize("name", LEARNED)
def test_positions_grow_and_the_old_ones_stay(name, init):
    model = random_model(CASES[name])
    with proof_grade():
        grown = growth.grow_model(model, widen("positions", to=160, init=init))
    assert grown.config.max_position_embeddings == 160
    assert relative_error(model, grown) <= EXACT
    assert torch.isfinite(logits(grown, torch.zeros((1, 150), dtype=torch.int64))).all()


@pytest.mark.parametrize("name", SQUARE)
def test_a_geometry_that_the_class_computes_otherwise_is_refused_with_the_remedy(name):
    model = random_model(CASES[name])
    for axis, to in (("residual", 8 * model.config.hidden_size), ("head_dim", 16)):
        with pytest.raises(GrowthError, match="grow residual, heads, head_dim so that they agree"):
            growth.grow_model(model, widen(axis, to=to))
    with pytest.raises(GrowthError, match="is not a multiple of"):
        growth.grow_model(model, widen("residual", to=model.config.hidden_size + 1))


def test_gpt2_keeps_n_inner_implied_where_it_can():
    case = CASES["gpt2, n_inner null"]
    model = random_model(case)
    grown = growth.grow_model(model, chain(*(widen(n, to=to) for n, to in case.steps["residual"]), deepen(to=4)))
    assert grown.config.n_inner == 128  # the residual grew alone
    with_ffn = growth.grow_model(model, chain(*(widen(n, to=to) for n, to in (*case.steps["residual"], ("ffn", 160)))))
    assert with_ffn.config.n_inner is None


def test_gpt2_files_without_the_prefix(tmp_path):
    """As the first GPT-2s are stored: the bare model's names, and causal masks that the class computes itself."""
    model = random_model(CASES["gpt2, tied"])
    source = save(model, tmp_path / "source")
    file = source / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 128, 128).tril() for layer in range(3)}
    save_file(tensors, file, {"format": "pt"})
    steps = chain(widen("residual", to=40), widen("heads", to=5), deepen(to=5))
    plan = growth.grow(steps, source, tmp_path / "out")
    assert len(plan.dropped) == 3
    assert "h.4.attn.c_attn.weight" in load_file(tmp_path / "out" / "model.safetensors")
    with proof_grade():
        options = {"dtype": "auto", "attn_implementation": "eager", "output_loading_info": True}
        grown, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options)
    assert not any(info.values())
    assert relative_error(model, grown) <= EXACT
    assert "head_dim" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_gpt2_that_attends_to_an_encoder_is_refused():
    config = random_model(CASES["gpt2, tied"]).config.to_dict() | {"add_cross_attention": True}
    with pytest.raises(GrowthError, match="decoders alone"):
        growth.architectures.architecture(config)
