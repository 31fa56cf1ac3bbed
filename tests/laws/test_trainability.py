"""After twenty steps every unit of a grown model has had a gradient that is not zero.

A unit is an index of a dimension of a tensor. All of them are looked at, old and new: what is fresh, what is copied and
what is a new layer's. The exemptions are those of EXEMPT, with their reasons (docs/models-in-memory.md).
"""

import copy
import re
from functools import cache
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM

import growth
from growth import RecipeError
from growth.architectures import architecture
from growth.errors import GrowthError
from growth.operators import break_symmetry, chain, deepen, reuse, upcycle, widen
from growth.verification.float64 import proof_grade
from growth.verification.images import image_inputs
from tests.support.families import MORE, SIZES, all_cases, axes_of, random_model, steps_of, table, typical, widths
from tests.support.selection import one_of_each

CASES = all_cases()
FIRST = list({case.family: case for case in reversed(CASES)}.values())
STEPS, LENGTH, BATCH = 20, 24, 4
MLP = re.compile(
    r"\.(fc[12]|up_proj|down_proj|dense_h_to_4h|dense_4h_to_h|ffn\.[02]|feed_forward\.(key|value))\.(weight|bias)$"
)
AXES = (*SIZES, *MORE)
# of a tensor's largest gradient: what a type leaves of a sum that is zero
SILENT = {torch.float32: 1e-6, torch.float64: 1e-12}


def padding(model, name, number, index):
    """The embedding of the padding token: torch.nn.Embedding gives it no gradient."""
    embedding = model.get_input_embeddings()
    return number == 0 and model.get_parameter(name) is embedding.weight and index == embedding.padding_idx


def absent_position(model, name, number, index):
    """Positions that no sequence was long enough for; the first ones stand for padding in OPT and RoBERTa."""
    offset = 2 if "embed_positions" in name else 0
    padding_idx = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    if padding_idx is not None:
        offset = padding_idx + 1
    # the last token of a sequence predicts nothing that is known
    return (
        number == 0
        and bool(re.search(r"(wpe|embed_positions|position_embeddings)\.weight$", name))
        and not offset <= index < offset + LENGTH - 1
    )


def absent_type(model, name, number, index):
    """Types of tokens and of tasks: all are of the first type."""
    return number == 0 and name.endswith("_type_embeddings.weight") and index > 0


def absent_glyph(model, name, number, index):
    """RoCBert's glyphs and pronunciations: where no input has any, all are those of padding, which has no gradient."""
    return name.endswith((".shape_embed.weight", ".pronunciation_embed.weight"))


def absent_language(model, name, number, index):
    """X-MOD's adapters: all inputs are in the default language."""
    return ".adapter_modules." in name and f".{model.config.default_language}." not in name


def unused_bias(model, name, number, index):
    """The second bias of a head of BERT's or RoBERTa's whose matrix is not the embedding's: it has no effect."""
    return not model.config.tie_word_embeddings and name in ("cls.predictions.bias", "lm_head.bias")


def key_bias(model, name, number, index):
    """What a key's bias adds to a score is the same for all keys where it does not rotate: a softmax does not see it."""
    if name.endswith("k_layernorm.bias"):  # phi's, shared by its heads
        return index >= architecture(model.config.to_dict()).head_channels.uncopyable
    if name.endswith("kv_a_proj_with_mqa.bias"):  # behind the latent, the channels of keys that all heads share
        table = architecture(model.config.to_dict())
        return index >= table.axes["kv_lora_rank"].size and not table.head_channels.uncopyable
    if not re.search(r"(k_proj|c_attn|query_key_value|qkv_proj|self\.key|Wk)\.bias$", name):
        return False
    return bool(key_channels(model, name)[index])


def same_tensor(file_name, name):
    return file_name.endswith(name) or name.endswith(file_name)


@cache
def key_channels(model, name):
    """Which indices of a bias are channels of keys that do not rotate."""
    table = architecture({**model.config.to_dict(), "architectures": [type(model).__name__]})
    weight, _ = next((w, n) for w in table.weights for n in table.names(w) if same_tensor(n, name))
    shared = [table.length((space,)) for space in weight.within]
    parts = weight.parts
    which = [n for n, part in enumerate(parts) if len(parts) == 1 or n == len(parts) - 2]  # query, key, value
    heads_dim, rotary = table.head_channels.size, table.head_channels.uncopyable
    if getattr(model.config, "alibi", False):  # nothing rotates; channels are not copied for another reason
        rotary = 0
    rows = []
    for n, part in enumerate(parts):
        length = table.length(part.dimensions[0][len(weight.within) :])
        still = torch.arange(length) % heads_dim >= rotary
        rows.append(still if n in which else torch.zeros(length, dtype=torch.bool))
    one = torch.cat(rows)
    return one.repeat(max(1, int(torch.tensor(shared).prod()) if shared else 1))


def not_trained(model, name, number, index):
    """What the class itself gives no gradient: a bias that corrects a router's choice, which balances loads."""
    return not model.get_parameter(name).requires_grad


def indexer(model, name, number, index):
    """DeepSeek-V3.2's indexers: the class runs them without gradients, and a choice has none."""
    return ".indexer." in name


def without_choice(model, name, number, index):
    """The router of a single expert, whose softmax is 1 for any score."""
    return name.endswith(".gate.wg.weight") and len(model.get_parameter(name)) == 1


def idle_relu(model, name, number, index):
    """Neurons of an MLP with ReLU that no token activated."""
    keys = ("activation_function", "hidden_act", "mlp_hidden_act")
    activation = next((value for key in keys if (value := getattr(model.config, key, None)) is not None), None)
    always = model.config.model_type in ("ctrl", "rwkv")
    return (activation in ("relu", "relu2") or always) and bool(MLP.search(name))


def fresh_scores(model, name, number, index):
    """Fresh channels of queries and keys that an RMSNorm runs over: both must be zero in front of it."""
    names = re.search(r"\.((q|k)_(proj|norm|layernorm)|(query|key)_layernorm)\.(weight|bias)$", name)
    return bool(names and architecture(model.config.to_dict()).head_channels.untrained)


def without_idle_experts(silent):
    """Units but for experts that no token chose, and their rows of the router: nothing was computed from them."""
    experts = re.compile(r"\.experts\.(gate_up_proj|down_proj)$")
    of_one = re.compile(r"\.(experts\.(gate_up_proj|down_proj)(_bias)?|(router\.gate|gate|router)\.(weight|bias))$")
    idle = {(experts.sub("", name), index) for name, number, index in silent if number == 0 and experts.search(name)}

    def is_idle(name, number, index):
        return number == 0 and bool(of_one.search(name)) and (of_one.sub("", name), index) in idle

    return [unit for unit in silent if not is_idle(*unit)]


def of_a_tower(model, name, number, index):
    """A vision tower passes through as it is; some of its last weights are not read at all, or for videos alone."""
    of_phi4 = r"embed_tokens_extend\.image_embed\.img_processor"
    of_git = r"git\.(image_encoder|img_temporal_embedding)"
    return bool(re.match(rf"(model\.(vision_tower|vision_model|visual|{of_phi4})|{of_git})\.", name))


def absent_audio(model, name, number, index):
    """Audio towers and their projectors: no input has any audio."""
    return ".audio_embed." in name


def around_an_image(model, name, number, index):
    """The image token's own embedding, which features replace; what a tiny image leaves of a projector."""
    stated = model.config if hasattr(model.config, "image_token_id") else getattr(model.config, "vision_config", None)
    token = number == 0 and index == getattr(stated, "image_token_id", None) and "embed_tokens.weight" in name
    edges = "conv_upsampler" in name and number > 1
    gelu = name.endswith("multi_modal_projector.linear_2.weight") and number == 1 and index < 32  # old units
    return token or edges or gelu


ALWAYS = (
    of_a_tower,
    absent_audio,
    around_an_image,
    padding,
    absent_position,
    absent_type,
    absent_glyph,
    absent_language,
    unused_bias,
    key_bias,
    not_trained,
    indexer,
    without_choice,
    idle_relu,
)
EXEMPT = (*ALWAYS, fresh_scores)


def silent_units(model, exempt=(), steps=STEPS):
    """The units that have had no gradient and are not exempt: (name, dimension, index). Stops as soon as there are none."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    silent = {
        (name, number): torch.tensor([not any(r(model, name, number, index) for r in exempt) for index in range(size)])
        for name, parameter in model.named_parameters()
        for number, size in enumerate(parameter.shape)
    }
    for _ in range(steps):
        ids = torch.randint(0, model.config.get_text_config().vocab_size, (BATCH, LENGTH), generator=generator)
        inputs = image_inputs(model, ids)
        optimizer.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                size = parameter.grad.abs()
                alive = size > SILENT[size.dtype] * size.max()
                for number in range(parameter.ndim):
                    silent[name, number] &= ~alive.movedim(number, 0).reshape(parameter.shape[number], -1).any(1)
        optimizer.step()
        if not any(left.any() for left in silent.values()):
            return []
    return without_idle_experts(
        [(*where, index) for where, left in silent.items() for index in left.nonzero().flatten().tolist()]
    )


def assert_trainable(model, exempt=ALWAYS):
    """Every unit that is not exempt has had a gradient, in float64 if it is too small for float32: of a flat GELU."""
    exact = copy.deepcopy(model).double()
    left = silent_units(model, exempt)
    if left:
        with proof_grade():
            left = silent_units(exact, exempt)
    assert not left, left[:5]


def grown(case, operator, dtype=torch.float32):
    return growth.grow_model(random_model(case, dtype), operator)


def every_axis(case, init):
    """All axes of a case that can grow together, by one init."""
    steps = {}
    for axis in ("residual", "ffn", "heads", "vocab", "inner", "state", "dt_rank", "conv_kernel"):
        if axis not in axes_of(case) or axis in case.refused or (axis in case.steps and axis != "residual"):
            continue
        steps |= {name: to for name, to in steps_of(case, axis) if name not in steps}
    return [
        widen(name, to=to, init=chosen, shares="equal" if chosen == "tile" else None)
        for name, to in steps.items()
        for chosen in [allowed(case, name, init)]
    ]


def allowed(case, axis, init):
    for other in (case.along.get(axis, init), "tile", "pad"):
        if f"{axis}, {other}" not in case.refused:
            return other
    raise AssertionError(axis)


def deeper(case):
    return [] if "layers" in case.refused else [deepen(factor=2)]


def fresh(case):
    return chain(*every_axis(case, "pad"), *deeper(case))


def told_apart(case):
    return chain(*every_axis(case, "tile"), break_symmetry(), *deeper(case))


@pytest.mark.parametrize(
    ("case", "units"),
    one_of_each(
        product(FIRST, [fresh, told_apart]),
        lambda case, units: typical(case),
        ids=lambda case, units: f"{case.name}-{units.__name__}",
    ),
)
def test_fresh_units_copies_told_apart_and_new_layers_are_trained(case, units):
    assert_trainable(grown(case, units(case)))


@pytest.mark.parametrize("name", ["llama, tied", "qwen2, tied", "qwen3, tied"])
@pytest.mark.parametrize("top_k", [2, 4])
def test_upcycled_models_are_trained(name, top_k):
    """Routers and experts alike; one that no token chose in twenty steps would be exempt, and here there is none."""
    case = next(case for case in CASES if case.name == name)
    assert_trainable(grown(case, upcycle(experts=4, top_k=top_k, router_std=0.2)))


@pytest.mark.parametrize("options", [{"granularity": 2}, {"shared": 0.5}, {"shared": 1}], ids=str)
def test_divided_and_shared_experts_are_trained(options):
    case = next(case for case in CASES if case.name == "qwen2, tied")
    assert_trainable(grown(case, upcycle(experts=4, top_k=2, router_std=0.2, **options)))


@pytest.mark.parametrize("name", ["mixtral, top 2 of 4", "olmoe, one query a head"])
def test_copied_experts_are_trained(name):
    case = next(case for case in CASES if case.name == name)
    assert_trainable(grown(case, chain(widen("experts", factor=2), break_symmetry())))


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_k": 2, "router": "zero"}, {"top_k": 2, "router_std": 0.0}])
def test_routers_that_could_not_be_trained_are_refused(options):
    case = next(case for case in CASES if case.name == "llama, tied")
    with pytest.raises(RecipeError, match="never have a gradient"):
        grown(case, upcycle(experts=4, **options))


@pytest.mark.parametrize("axis", ["heads", "queries"])
@pytest.mark.parametrize("name", ["olmo2, untied", "olmo3, all windows"])
def test_heads_that_could_not_be_trained_are_refused(name, axis):
    """One norm runs over all of them, so that fresh queries and keys are zero both."""
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(RecipeError, match=r"neither ever has a gradient\. Use init: tile"):
        grown(case, chain(*(widen(a, to=to, init="pad") for a, to in steps_of(case, axis))))


@pytest.mark.parametrize("name", ["olmo2, untied", "qwen3, tied", "gemma3_text, tied, all windows"])
def test_the_plan_says_what_stays_untrained(name):
    """New channels of queries and keys behind a norm: they cannot be copied either, because all of a head's rotate."""
    case = next(case for case in CASES if case.name == name)
    model = random_model(case, torch.float32)
    plan = growth.plan(widen("head_dim", to=10, init="pad"), model)
    assert "neither ever has a gradient" in plan.growth.steps[-1].why
    larger = growth.grow_model(model, plan)
    assert any(fresh_scores(larger, *unit) for unit in silent_units(larger, ALWAYS, steps=3))
    assert_trainable(larger, EXEMPT)


def test_the_law_sees_what_is_silent_on_both_sides():
    """The test itself: fresh neurons whose writers and readers are zero are found."""
    case = next(case for case in CASES if case.name == "llama, tied")
    model = grown(case, widen("ffn", to=60, init="pad"))
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        mlp.up_proj.weight[48:] = 0
        mlp.gate_proj.weight[48:] = 0
    with pytest.raises(AssertionError, match=r"layers\.1\.mlp"):
        assert_trainable(model)


# ------------------------------------------------- slow: each axis, init and order by itself

OPERATORS = {
    **{f"{axis}, {init}": (axis, init) for axis in AXES for init in ("pad", "tile", "sample")},
    **{f"layers, {order}": order for order in ("interleave", "stack", "prepend")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operator_by_itself(case, name):
    operator = OPERATORS[name]
    if isinstance(operator, str):
        operator = deepen(factor=2, order=operator)
    else:
        axis, init = operator
        if axis not in table(case).axes:
            return
        operator = chain(*(widen(a, to=to, init=chosen) for a, to, chosen in widths(case, axis, init)))
    try:
        model = grown(case, operator)
    except GrowthError:
        return  # refused by name: tests/laws/test_families.py holds why
    assert_trainable(model, EXEMPT if name == "head_dim, pad" else ALWAYS)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["mean", "random"])
@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)
def test_new_tokens_are_trained(case, init):
    assert_trainable(grown(case, widen("vocab", to=70, init=init)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tile", "submatrix"])
@pytest.mark.parametrize("name", ["llama, untied", "phi, untied", "gpt2, tied"])
def test_reused_weights_are_trained(name, method):
    case = next(case for case in CASES if case.name == name)
    assert_trainable(grown(case, reuse(to={"ffn": 60}, layers=4, method=method)))


@pytest.mark.slow
def test_what_is_loaded_from_files_is_trained(tmp_path):
    case = next(case for case in CASES if case.name == "llama, tied")
    random_model(case, torch.float32).save_pretrained(tmp_path / "source")
    operator = chain(*every_axis(case, "pad"), deepen(factor=2))
    growth.grow(operator, tmp_path / "source", tmp_path / "out")
    assert_trainable(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
