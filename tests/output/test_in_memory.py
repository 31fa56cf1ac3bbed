"""A model in memory grows with all that is its own, or is refused by name with the remedy; it is never changed."""

import copy
import sys
import types

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, LlamaForCausalLM, LlamaForSequenceClassification

import growth
from growth.checkpoints.open import open_checkpoint
from growth.errors import CheckpointError
from growth.operators import chain, deepen, upcycle, widen
from growth.training.in_place import grow_in_place
from tests.support.families import all_cases, random_model, twice, typical
from tests.support.models import relative_error
from tests.support.selection import one_of_each

CASES = all_cases()
FIRST = {case.family: case for case in reversed(CASES)}.values()
OF_EACH_KIND = pytest.mark.parametrize(
    "case", one_of_each([(case,) for case in FIRST], typical, ids=lambda case: case.name)
)
LLAMA = next(case for case in CASES if case.name == "llama, tied")
UNTIED = next(case for case in CASES if case.name == "llama, untied")
MIXTRAL = next(case for case in CASES if case.family == "mixtral")
TWICE = widen("ffn", factor=2, init="tile", shares="equal")


def operator_of(case):
    """Wider and deeper, as far as the family allows it."""
    return twice(case) if "layers" in case.refused else chain(twice(case), deepen(to=5, order="append"))


def source_name(name, layers):
    """The name of what a module or parameter was made from: the first number in a text model's is its layer's."""
    if name.startswith(("model.vision", "model.visual", "model.embed_tokens_extend", "git.image_encoder")):
        return name
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if place is not None:
        parts[place] = str(layers[int(parts[place])].source)
    return ".".join(parts)


def snapshot(model):
    """All of a model that could have been changed by growing it."""
    return {
        "config": model.config.to_dict(),
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
        "ids": [id(parameter) for parameter in model.parameters()],
    }


def is_unchanged(model, before):
    now = snapshot(model)
    weights, old = now.pop("weights"), before.pop("weights")
    return now == before and all(torch.equal(weights[name], old[name]) for name in old)


@OF_EACH_KIND
def test_what_is_a_models_own_is_carried_over(case):
    """Types of single tensors, what is frozen, modes, checkpointing, generation defaults, and config extras."""
    model = random_model(case, torch.bfloat16).train()
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if "norm" in name or "ln_" in name:
            parameter.data = parameter.data.float()
        parameter.requires_grad = number % 3 != 1
    checkpointing = model.supports_gradient_checkpointing
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False, "determinism_check": "none"}, every_n_layers=2)
    next(module for name, module in model.named_modules() if name.endswith(".1")).eval()
    model.generation_config = GenerationConfig(eos_token_id=[3, 4], temperature=0.25, do_sample=True, top_k=7)
    model.config.my_own_key = {"kept": [1, 2]}
    model.config.name_or_path = "some/where"
    model.add_model_tags(["mine"])
    before = snapshot(model)
    plan = growth.plan(operator_of(case), model)
    grown = growth.grow_model(model, plan)
    layers = plan.growth.layers
    parameters = dict(model.named_parameters())
    for name, parameter in grown.named_parameters():
        was = parameters[source_name(name, layers)]
        assert parameter.dtype == was.dtype, name
        assert parameter.requires_grad == was.requires_grad, name
    modules = dict(model.named_modules())
    for name, module in grown.named_modules():
        was = modules[source_name(name, layers)]
        assert module.training == was.training, name
        if hasattr(was, "gradient_checkpointing"):
            assert module.gradient_checkpointing == was.gradient_checkpointing, name
            assert getattr(module, "_gradient_checkpointing_func", None) is getattr(
                was, "_gradient_checkpointing_func", None
            ), name
    assert grown.generation_config.to_dict() == model.generation_config.to_dict()
    assert grown.generation_config is not model.generation_config
    assert grown.config.my_own_key == {"kept": [1, 2]}
    assert grown.name_or_path == grown.config.name_or_path == "some/where"
    assert grown.model_tags == ["mine"]
    assert grown.config._attn_implementation == model.config._attn_implementation == "eager"
    assert grown.device == model.device
    assert is_unchanged(model, before)
    ids = torch.arange(8)[None]
    with torch.autocast("cpu", torch.bfloat16):
        try:
            model(input_ids=ids)
        except RuntimeError:  # a stock class that fails under autocast: it mixes types of its own
            return
        grown.config.use_cache = False  # GIT fills its cache again where it computes layers again
        grown(input_ids=ids).logits.square().mean().backward()  # and takes labels with images alone
    assert any(parameter.grad is not None for parameter in grown.parameters())


@pytest.mark.parametrize("case", [LLAMA, MIXTRAL], ids=lambda case: case.name)
def test_mixed_types_hold_the_values_that_files_hold(case, tmp_path):
    """An fp32 norm in a bf16 model is not rounded to bf16 on its way."""
    model = random_model(case, torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.rand_like(parameter, dtype=torch.float32)
    model.save_pretrained(tmp_path / "source")
    grown = growth.grow_model(model, widen("residual", to=40, init="tile", shares="equal"))
    assert any(not torch.equal(p, p.bfloat16().float()) for p in grown.parameters() if p.dtype == torch.float32)
    growth.grow(widen("residual", to=40, init="tile", shares="equal"), tmp_path / "source", tmp_path / "out")
    grown.save_pretrained(tmp_path / "saved")
    ours, theirs = (open_checkpoint(tmp_path / name) for name in ("saved", "out"))
    assert {n: i.dtype for n, i in ours.tensors.items()} == {n: i.dtype for n, i in theirs.tensors.items()}
    assert growth.verify(tmp_path / "out", tmp_path / "saved", dtype="float64").logits.relative_error == 0


def test_a_mixture_takes_over_what_its_dense_model_has():
    model = random_model(LLAMA).train()
    model.model.layers[0].mlp.eval()
    model.generation_config.eos_token_id = [1, 2]
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad = False
    grown = growth.grow_model(model, upcycle(experts=4, top_k=2))
    first, second = grown.model.layers[0], grown.model.layers[1]
    assert not first.mlp.experts.training
    assert second.mlp.experts.training
    assert not first.mlp.experts.down_proj.requires_grad
    assert second.mlp.experts.down_proj.requires_grad
    assert first.mlp.gate.weight.requires_grad, "a new router is trained"
    assert grown.generation_config.eos_token_id == [1, 2]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda mlp: mlp.gate_proj.requires_grad_(False), "requires_grad"),
        (lambda mlp: mlp.gate_proj.to(torch.float32), "dtype"),
    ],
    ids=["frozen", "type"],
)
def test_what_becomes_one_parameter_must_agree(change, what):
    model = random_model(LLAMA)
    change(model.model.layers[0].mlp)
    with pytest.raises(CheckpointError, match=f"gate_up_proj.*differ in {what}"):
        growth.grow_model(model, upcycle(experts=4, top_k=2))


def test_rotary_buffers_keep_the_type_that_the_model_computes_with():
    """A model cast by .half() turns by rounded frequencies; the grown one turns by the same."""
    model = random_model(LLAMA, torch.float32).to(torch.bfloat16)
    grown = growth.grow_model(model, TWICE)
    assert torch.equal(model.model.rotary_emb.inv_freq, grown.model.rotary_emb.inv_freq)
    assert grown.model.rotary_emb.inv_freq.dtype == torch.bfloat16


# ------------------------------------------------- what was set on modules


def each_layer(module, attribute, value):
    """Sets an attribute of a module of every layer."""

    def change(model):
        for layer in model.model.layers:
            setattr(layer.get_submodule(module), attribute, value)

    return change


SET = {
    "epsilon of a norm": each_layer("input_layernorm", "variance_epsilon", 0.5),
    "scale of the scores": each_layer("self_attn", "scaling", 0.01),
    "dropout": each_layer("self_attn", "attention_dropout", 0.3),
    "attribute of one's own": lambda model: setattr(model, "tokenizer_name", "mine"),
}


@pytest.mark.parametrize("kind", SET)
def test_what_was_set_on_modules_is_carried_over(kind):
    """Attributes that are not as the config has them: a grown model without them would compute something else."""
    model = random_model(LLAMA)
    SET[kind](model)
    grown = growth.grow_model(model, operator_of(LLAMA))
    assert relative_error(model, grown) < 1e-7
    assert grown.model.layers[0].self_attn.attention_dropout == model.model.layers[0].self_attn.attention_dropout
    assert getattr(grown, "tokenizer_name", None) == getattr(model, "tokenizer_name", None)


@pytest.mark.parametrize("kind", SET)
def test_what_was_set_on_modules_is_carried_over_to_those_of_another_class(kind):
    model = random_model(LLAMA)
    SET[kind](model)
    grown = growth.grow_model(model, upcycle(experts=4, top_k=2))
    assert type(grown) is not type(model)
    assert relative_error(model, grown) < 1e-7
    assert grown.model.layers[0].self_attn.attention_dropout == model.model.layers[0].self_attn.attention_dropout
    assert getattr(grown, "tokenizer_name", None) == getattr(model, "tokenizer_name", None)


LOST = {
    "of a module": (
        lambda mlp: setattr(mlp.up_proj, "note", "mine"),
        r"'note' of model\.layers\.0\.mlp\.up_proj .*no such",
    ),
    "of a size": (
        lambda mlp: setattr(mlp, "intermediate_size", 7),
        r"'intermediate_size' of .*mlp was set to 7.*has none",
    ),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_was_set_and_a_mixture_has_no_place_for_is_refused_by_name(kind):
    change, message = LOST[kind]
    model = random_model(LLAMA)
    change(model.model.layers[0].mlp)
    with pytest.raises(CheckpointError, match=message):
        growth.grow_model(model, upcycle(experts=4, top_k=2))


def test_a_model_is_not_grown_where_torch_keeps_no_values():
    model = random_model(LLAMA)
    with torch.device("meta"):
        made = growth.plan(TWICE, model)
        with pytest.raises(CheckpointError, match=r"default device is meta, which holds no values: leave the block"):
            growth.grow_model(model, made)
    growth.grow_model(model, made)


def test_a_padding_token_that_the_config_got_later_stays_trained():
    """torch's Embedding gives the padding token no gradient; one that was built without it does."""
    model = random_model(LLAMA)
    before = model.model.embed_tokens.padding_idx
    model.config.pad_token_id = 5
    assert growth.grow_model(model, TWICE).model.embed_tokens.padding_idx == before != 5


def test_what_was_set_and_the_growth_changes_is_refused():
    model = random_model(LLAMA)
    model.model.layers[0].self_attn.layer_idx = 7
    with pytest.raises(
        CheckpointError, match=r"'layer_idx' of model\.layers\.0\.self_attn was set to 7.*gives 0.*makes it 3"
    ):
        growth.grow_model(model, deepen(factor=2, order="prepend"))


@pytest.mark.parametrize("change", ["config", "buffer"])
def test_frequencies_that_are_not_those_of_the_config_are_refused(change):
    model = random_model(LLAMA)
    if change == "config":
        model.config.rope_parameters["rope_theta"] *= 2
    else:
        model.model.rotary_emb.inv_freq *= 2
    with pytest.raises(CheckpointError, match=r"buffer 'inv_freq' of 'model\.rotary_emb' does not have the values"):
        growth.grow_model(model, TWICE)


def test_sines_that_are_not_those_of_the_config_are_refused():
    """One row per position, computed by the class: up to rounding, and it grows with the position."""
    model = random_model(next(case for case in CASES if case.name == "ctrl, tied"))
    model.transformer.pos_encoding[5] += 1e-3
    with pytest.raises(CheckpointError, match="buffer 'pos_encoding' of 'transformer' does not have the values"):
        growth.grow_model(model, TWICE)


@OF_EACH_KIND
def test_a_model_that_was_used_grows_as_before(case):
    """What a class changes in its modules while it computes is not taken for somebody's setting."""
    model = random_model(case, torch.float32)
    length = min(getattr(model.config.get_text_config(), "max_position_embeddings", 64), 64)
    model(input_ids=torch.zeros(1, length, dtype=torch.long))
    growth.grow_model(model, operator_of(case))


def test_a_result_can_be_trained_wherever_it_is_made():
    with torch.inference_mode():
        grown = growth.grow_model(random_model(LLAMA), TWICE)
    ids = torch.arange(6)[None]
    grown(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in grown.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(value):
    model = random_model(LLAMA)
    model.model.norm.weight.data[3] = value
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' holds NaN or Inf"):
        growth.grow_model(model, TWICE)


def test_a_model_without_generation_config_stays_without():
    model = random_model(LLAMA)
    model.generation_config = None
    assert growth.grow_model(model, TWICE).generation_config is None


# ------------------------------------------------- hooks


HOOKED = {
    "forward hook": lambda model: model.model.layers[1].register_forward_hook(lambda *_: None),
    "forward pre hook": lambda model: model.model.layers[1].register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda model: model.model.layers[1].register_full_backward_hook(lambda *_: None),
    "backward pre hook": lambda model: model.model.layers[1].register_full_backward_pre_hook(lambda *_: None),
    "state dict pre hook": lambda model: model.register_state_dict_pre_hook(lambda *_: None),
    "load state dict post hook": lambda model: model.register_load_state_dict_post_hook(lambda *_: None),
    "gradient hook": lambda model: model.model.norm.weight.register_hook(lambda grad: grad),
    "gradient hook ": lambda model: model.model.norm.weight.register_post_accumulate_grad_hook(lambda p: None),
    "forward of its own": lambda model: setattr(model.model.norm, "forward", types.MethodType(len, model.model.norm)),
    "'_loss_function' of its own": lambda model: setattr(model, "loss_function", len),
    "'generate' of its own": lambda model: setattr(model, "generate", types.MethodType(len, model)),
    "'averages' of its own": lambda model: setattr(model.model, "averages", {"decay": 0.9}),
}


@pytest.mark.parametrize("kind", HOOKED)
def test_hooks_are_refused_by_name_or_dropped_on_demand(kind):
    model = random_model(LLAMA)
    HOOKED[kind](model)
    with pytest.raises(CheckpointError, match=f"{kind.strip()}.*hooks='drop'"):
        growth.grow_model(model, TWICE)
    grown = growth.grow_model(model, TWICE, hooks="drop")
    growth.grow_model(grown, TWICE)


def test_hooks_of_transformers_itself_do_not_matter():
    """It installs those that record hidden states by itself, and those that need gradients of inputs are carried."""
    model = random_model(LLAMA)
    model.enable_input_require_grads()
    ids = torch.arange(6)[None]
    expected = len(model(input_ids=ids, output_hidden_states=True).hidden_states)
    grown = growth.grow_model(model, TWICE)
    found = grown(input_ids=ids, output_hidden_states=True)
    assert len(found.hidden_states) == expected
    assert found.hidden_states[0].requires_grad
    for parameter in grown.parameters():
        parameter.requires_grad = False
    assert grown(input_ids=ids).logits.requires_grad


# ------------------------------------------------- what cannot grow as it is


def adapted(model):
    """Looks as a model does after add_adapter."""
    model._hf_peft_config_loaded = True
    return model


def with_peft_layer(model, monkeypatch):
    peft = types.ModuleType("peft.tuners.lora")
    peft.Linear = type("Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    monkeypatch.setitem(sys.modules, "peft.tuners.lora", peft)
    model.model.layers[0].mlp.up_proj = peft.Linear(32, 48)
    return model


class Quantised(torch.Tensor):
    """A tensor of a class of its own, as torchao's and bitsandbytes' are."""


def quantised(model, way):
    layer = model.model.layers[1].mlp.up_proj
    if way == "config":
        model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    elif way == "int8":
        layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    elif way == "float8":
        layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    else:
        layer.weight = nn.Parameter(layer.weight.as_subclass(Quantised))
    return model


def replaced(model):
    model.model.layers[1].mlp.up_proj = nn.Sequential(model.model.layers[1].mlp.up_proj)
    return model


def with_buffer(model):
    model.model.register_buffer("extra", torch.zeros(3), persistent=False)
    return model


def untied_by_hand(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def tied_by_hand(model):
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def compiled_in_place(model):
    model.compile()
    return model


def on_meta(case):
    with torch.device("meta"):
        return LlamaForCausalLM(random_model(case).config)


def spread(model):
    model.hf_device_map = {"model.embed_tokens": 0, "model.layers": "cpu", "lm_head": "disk"}
    return model


def offloaded(model):
    model.hf_device_map = {"": "disk"}
    return model.to("meta")


class NeedsMore(LlamaForCausalLM):
    def __init__(self, config, extra):
        super().__init__(config)


def with_loss_head(case):
    return LlamaForSequenceClassification(random_model(case).config)


REFUSED = {
    "compiled": (lambda m: torch.compile(random_model(LLAMA)), r"torch\.compile: grow model\._orig_mod"),
    "compiled in place": (lambda m: compiled_in_place(random_model(LLAMA)), r"after model\.compile\(\).*grow it first"),
    "data parallel": (lambda m: nn.DataParallel(random_model(LLAMA)), r"DataParallel: grow model\.module"),
    "base model": (lambda m: random_model(LLAMA).model, r"LlamaModel, which is not a causal.*LlamaForCausalLM"),
    "classifier": (lambda m: with_loss_head(LLAMA), "ForSequenceClassification, which is not a causal"),
    "config": (lambda m: random_model(LLAMA).config, "LlamaConfig, which has no weights: give the model"),
    "no transformers model": (lambda m: nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear: load a causal"),
    "meta": (lambda m: on_meta(LLAMA), "meta device, which has no values"),
    "offloaded": (lambda m: spread(random_model(LLAMA)), "spread over 0, cpu, disk: load it on one device"),
    "offloaded as a whole": (lambda m: offloaded(random_model(LLAMA)), "spread over disk, meta: load it on one device"),
    "class of one's own": (lambda m: NeedsMore(random_model(LLAMA).config, 1), "cannot be built from the config alone"),
    "adapter": (lambda m: adapted(random_model(LLAMA)), r"PEFT adapters: merge them.*merge_and_unload"),
    "adapter's layer": (lambda m: with_peft_layer(random_model(LLAMA), m), "PEFT adapters: merge them"),
    "quantised, by config": (lambda m: quantised(random_model(LLAMA), "config"), "a quantised model.*dequantise"),
    "quantised, int8": (lambda m: quantised(random_model(LLAMA), "int8"), r"stored as torch\.int8.*dequantise"),
    "quantised, float8": (lambda m: quantised(random_model(LLAMA), "float8"), "stored as torch.float8.*dequantise"),
    "quantised, by class": (lambda m: quantised(random_model(LLAMA), "class"), "not a plain tensor.*dequantise"),
    "replaced module": (lambda m: replaced(random_model(LLAMA)), "the class builds a Linear there.*Undo"),
    "buffer": (lambda m: with_buffer(random_model(LLAMA)), r"buffer 'model\.extra' is not one that the class builds"),
    "untied": (lambda m: untied_by_hand(random_model(LLAMA)), r"here they are two parameters\. Call model.tie_weights"),
    "tied": (lambda m: tied_by_hand(random_model(UNTIED)), "are one parameter, and its config does not tie them"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_grow_is_refused_with_the_remedy(kind, monkeypatch):
    made, message = REFUSED[kind]
    model = made(monkeypatch)
    for grow in (growth.grow_model, lambda model, recipe: growth.plan(recipe, model)):
        with pytest.raises(CheckpointError, match=message):
            grow(model, TWICE)


REMEDIES = {
    "compiled": lambda: torch.compile(random_model(LLAMA))._orig_mod,
    "data parallel": lambda: nn.DataParallel(random_model(LLAMA)).module,
    "untied": lambda: retied(untied_by_hand(random_model(LLAMA))),
}


def retied(model):
    model.tie_weights()
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", REMEDIES)
def test_the_remedies_work(kind):
    growth.grow_model(REMEDIES[kind](), TWICE)


@OF_EACH_KIND
def test_every_stock_model_grows_as_transformers_loads_it(case, tmp_path):
    """Nothing that the class itself does is taken for a change of the user's."""
    stock = random_model(case, torch.float32)
    stock.save_pretrained(tmp_path)
    model = type(stock).from_pretrained(tmp_path)
    ids = torch.arange(6)[None]
    model.generate(ids, max_new_tokens=2, do_sample=False, output_hidden_states=True, pad_token_id=0)
    grown = growth.grow_model(copy.deepcopy(model), twice(case))
    assert type(grown) is type(model)
    assert grown.config._attn_implementation == model.config._attn_implementation


# ------------------------------------------------- in place


def test_a_model_grown_in_place_still_records_hidden_states():
    """Transformers marks a model as hooked; its new modules are not."""
    model = random_model(LLAMA)
    ids = torch.arange(6)[None]
    model(input_ids=ids, output_hidden_states=True)
    grow_in_place(model, torch.optim.AdamW(model.parameters()), deepen(to=model.config.num_hidden_layers + 1))
    assert len(model(input_ids=ids, output_hidden_states=True).hidden_states) == model.config.num_hidden_layers + 1


def test_hooks_of_submodules_are_refused_in_place_and_nothing_changes():
    model = random_model(LLAMA)
    HOOKED["forward hook"](model)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"module 'model\.layers\.1' has the forward hook"):
        grow_in_place(model, torch.optim.AdamW(model.parameters()), TWICE)
    assert is_unchanged(model, before)
