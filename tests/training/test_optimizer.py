"""The training state grows by the dual map: gradients, moments, and the step that follows."""

import copy

import numpy as np
import pytest
import torch
from transformers.optimization import Adafactor

import growth
from growth.algebra.expansion import Expansion, rmsnorm_write
from growth.errors import OptimizerError
from growth.operators import chain, deepen, widen
from growth.training.moments import grow_gradients, step_scales
from growth.training.parameter_names import parameters_by_file_name
from growth.verification.float64 import proof_grade
from tests.support.families import all_cases, random_model
from tests.support.models import random_phi, tokens
from tests.support.optimizers import backward, both, error, trained
from tests.support.selection import one_of_each
from tests.support.shares import unequal_shares

EXACT = 1e-10  # relative error of a gradient in float64
FAMILIES = ("phi", "llama", "qwen3", "gpt2", "gemma2", "olmo2", "stablelm", "phi3", "gpt_neox", "cohere", "falcon")
SQUARE = ("gpt2", "gpt_neox", "stablelm", "falcon")  # hidden_size = heads x head_dim, and no more
LAYERNORM = ("phi", "gpt2", "gpt_neox", "stablelm", "cohere", "falcon")
OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, amsgrad=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=1e-3),
    "RAdam": lambda parameters: torch.optim.RAdam(parameters, lr=1e-3),
    "Adamax": lambda parameters: torch.optim.Adamax(parameters, lr=1e-3, eps=1e-30),
    "Muon": lambda parameters: torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=1e-3),
}
FACTORED = {  # exact where each unit of an axis has as many copies
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-3),
    "transformers' Adafactor": lambda parameters: Adafactor(
        parameters, lr=1e-3, relative_step=False, scale_parameter=False
    ),
    "Adafactor with momentum": lambda parameters: Adafactor(
        parameters, lr=1e-3, relative_step=False, scale_parameter=False, beta1=0.9
    ),
}


def first_case(family):
    return next(case for case in all_cases() if case.family == family)


def growths(family):
    """Growths under which gradients grow exactly: equal shares, and the mean of a LayerNorm's stream undisturbed."""
    yield "ffn", widen("ffn", to=70, init="tile", shares="equal")
    yield "copies that are not yet read", widen("ffn", to=70, shares="first", init="tile")
    yield "depth", deepen(to=5)
    if family in SQUARE:
        yield (
            "everything",
            chain(
                widen("residual", factor=2, init="tile", shares="equal"),
                widen("head_dim", factor=2, init="pad"),
                deepen(to=4),
            ),
        )
        return
    yield "residual", widen("residual", factor=2, init="tile", shares="equal")
    yield "heads", widen("heads", factor=2, init="tile", shares="equal")
    if family != "cohere":  # all of its channels turn
        yield "head_dim padded", widen("head_dim", to=12, init="pad")
    yield "head_dim spread", widen("head_dim", factor=2, rope_pairs="spread")
    if family not in LAYERNORM:
        yield "residual by a fraction", widen("residual", to=48, init="tile", shares="equal")
        yield "residual padded", widen("residual", to=40, init="pad")


CASES = one_of_each(
    [(family, name, operator) for family in FAMILIES for name, operator in growths(family)],
    lambda family, name, operator: family,
    lambda family, name, operator: (name, family in LAYERNORM),
    ids=lambda family, name, operator: f"{family}, {name}",
)


def gradients(model):
    backward(model)
    return {name: p.grad.clone() for name, p in parameters_by_file_name(model).items() if p.grad is not None}


def copied(tensor_map, values):
    """The part of a grown tensor that is copied."""
    for axis, dimension in enumerate(tensor_map.dimensions):
        values = values.index_select(axis, torch.from_numpy(np.flatnonzero(~dimension.fresh)))
    return values


@pytest.mark.parametrize(("family", "name", "operator"), CASES)
def test_gradients_grow_by_the_dual_map(family, name, operator):
    model = random_model(first_case(family))
    plan, larger = both(model, operator)
    predicted, found = grow_gradients(gradients(model), plan), gradients(larger)
    rows = [tensor_map for tensor_map in plan.tensors if tensor_map.target in found and not tensor_map.new_layer]
    assert len(rows) > 10
    for tensor_map in rows:
        assert (
            error(copied(tensor_map, predicted[tensor_map.target]), copied(tensor_map, found[tensor_map.target]))
            <= EXACT
        ), tensor_map.target


@pytest.mark.parametrize("balanced", [True, False])
def test_shares_of_an_rmsnorms_stream_are_balanced_where_they_are_as_large_as_what_is_written(balanced):
    model = random_model(first_case("llama"))
    source = np.r_[np.arange(32), np.arange(8), np.arange(4)]
    shares = 1 / np.bincount(source)[source] if balanced else unequal_shares(source, 32)

    def operator(before):
        return before.expanded("residual", Expansion.copies(32, source, rmsnorm_write(source, 32), shares))

    plan, larger = both(model, operator)
    predicted, found = grow_gradients(gradients(model), plan), gradients(larger)
    worst = max(error(predicted[tensor_map.target], found[tensor_map.target]) for tensor_map in plan.tensors)
    assert (worst <= EXACT) == balanced


@pytest.mark.parametrize("init", ["tile", "pad"])
def test_only_what_writes_a_layernorms_stream_is_approximate(init):
    """At fractional ratios the mean over what a LayerNorm sends back is not in the source's gradients."""
    model = random_phi()
    plan, larger = both(model, widen("residual", to=48, init=init, shares="equal" if init == "tile" else None))
    predicted, found = grow_gradients(gradients(model), plan), gradients(larger)
    approximate = set()
    for tensor_map in plan.tensors:
        distance = error(copied(tensor_map, predicted[tensor_map.target]), copied(tensor_map, found[tensor_map.target]))
        assert distance < 0.3, tensor_map.target
        if distance > EXACT:
            approximate.add(tensor_map.target.split(".", 3)[-1] if "layers" in tensor_map.target else tensor_map.target)
    ends = {f"{name}.{kind}" for name in ("self_attn.dense", "mlp.fc2") for kind in ("weight", "bias")}
    assert approximate == {"model.embed_tokens.weight"} | ends


@pytest.mark.parametrize("name", [*OPTIMIZERS, *FACTORED])
def test_moments_grow_as_the_gradients_they_are_made_of(name):
    """Exact: a run whose every gradient is grown remembers what grow_optimizer makes of the source's memory."""
    model, make = random_phi(), (OPTIMIZERS | FACTORED)[name]
    optimizer = make(model.parameters())
    ffn = widen("ffn", to=96 if name in FACTORED else 70, init="tile", shares="equal")
    plan, larger = both(model, chain(widen("residual", factor=2, init="tile", shares="equal"), ffn))
    reference = make(larger.parameters())
    for step in range(3):
        backward(model, seed=step)
        for target, gradient in grow_gradients({n: p.grad for n, p in model.named_parameters()}, plan).items():
            larger.get_parameter(target).grad = gradient
        optimizer.step()
        reference.step()
    again = growth.grow_model(model, plan)
    grown = growth.grow_optimizer(optimizer, model, again, plan)
    assert type(grown) is type(optimizer)
    for parameter, other in zip(larger.parameters(), again.parameters(), strict=True):
        expected, found = reference.state[parameter], grown.state[other]
        assert expected.keys() == found.keys()
        for key in expected:
            if isinstance(expected[key], torch.Tensor) and key != "RMS":  # the parameter's, which each step measures
                assert error(found[key], expected[key]) < 1e-12, key


STEP_CASES = [
    (
        "llama",
        chain(
            widen("residual", factor=2, init="tile", shares="equal"),
            widen("ffn", to=70, init="tile", shares="equal"),
            widen("heads", factor=2, init="tile", shares="equal"),
        ),
    ),
    (
        "phi",
        chain(
            widen("residual", factor=2, init="tile", shares="equal"),
            widen("heads", factor=2, init="tile", shares="equal"),
            widen("ffn", factor=2, init="tile", shares="equal"),
        ),
    ),
    (
        "qwen3",
        chain(
            widen("residual", factor=2, init="tile", shares="equal"),
            widen("ffn", factor=3, init="tile", shares="equal"),
        ),
    ),
    (
        "gemma2",
        chain(
            widen("residual", factor=2, init="tile", shares="equal"),
            widen("ffn", factor=2, init="tile", shares="equal"),
        ),
    ),
    (
        "olmo2",
        chain(
            widen("residual", factor=2, init="tile", shares="equal"),
            widen("ffn", factor=2, init="tile", shares="equal"),
        ),
    ),
    ("gpt2", widen("ffn", factor=2, init="tile", shares="equal")),
]


@pytest.mark.parametrize(("family", "operator"), STEP_CASES, ids=[family for family, _ in STEP_CASES])
def test_one_step_after_growth_is_the_growth_of_one_step_before(family, operator):
    """With eps near 0, learning rates times `step_scales`, and weight decay divided by them."""
    model = random_model(first_case(family))
    optimizer = trained(model, lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, eps=1e-30))
    plan, larger = both(model, operator)
    grown = growth.grow_optimizer(optimizer, model, larger, plan)
    scales = step_scales(plan)
    state, named = grown.state, parameters_by_file_name(larger)
    exact = [tensor_map.target for tensor_map in plan.tensors if scales[tensor_map.target] is not None]
    assert len(exact) > 0.6 * len(plan.tensors)
    scaled = torch.optim.AdamW(
        [{"params": [named[name]], "lr": 1e-3 * scales[name], "weight_decay": 0.1 / scales[name]} for name in exact],
        eps=1e-30,
    )
    scaled.state.update({named[name]: state[named[name]] for name in exact})
    backward(model, seed=7)
    backward(larger, seed=7)
    optimizer.step()
    before = {name: p.detach().clone() for name, p in named.items()}
    scaled.step()
    with proof_grade():
        expected = parameters_by_file_name(growth.grow_model(model, plan))
    for name in exact:
        moved = expected[name].detach() - before[name]
        # a key's bias without rotary embedding has no gradient but rounding noise, and Adam without eps steps along it
        live = (moved.abs() > 1e-3 * moved.abs().max()) & (state[named[name]]["exp_avg_sq"].sqrt() > 1e-10)
        assert live.any(), name
        assert error(named[name].detach()[live], expected[name].detach()[live]) < 1e-9, name


def first_update(larger, optimizer):
    before = {name: p.detach().clone() for name, p in larger.named_parameters()}
    backward(larger, seed=9)
    optimizer.step()
    return {name: (p.detach() - before[name]).abs() for name, p in larger.named_parameters()}


@pytest.mark.parametrize(("fresh", "calm"), [("mean", True), ("zero", False)])
def test_the_first_update_of_fresh_units(fresh, calm):
    """Adam with nothing remembered at an old step count moves by 3.2 lr; seeded, by about lr at most."""
    model = random_phi()
    optimizer = trained(model, lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0), steps=40)
    for state in optimizer.state.values():  # the same moments at the step count of an old run
        state["exp_avg"] /= 1 - 0.9**40
        state["exp_avg_sq"] /= 1 - 0.999**40
        state["step"].fill_(20000.0)
    plan, larger = both(model, chain(widen("ffn", to=96, init="pad"), widen("heads", to=6, init="pad")))
    moved = first_update(larger, growth.grow_optimizer(optimizer, model, larger, plan, fresh=fresh))
    largest = max(
        float(moved[f"model.layers.{layer}.{name}"][:, n:].max())
        for layer in range(3)
        for name, n in (("mlp.fc2.weight", 48), ("self_attn.dense.weight", 32))
    )
    assert (largest <= 1e-3) if calm else (largest > 3e-3)


def test_new_layers_start_at_step_0_or_with_the_seed_of_their_source():
    model = random_phi()
    optimizer = trained(model, OPTIMIZERS["AdamW"])
    plan, larger = both(model, deepen(to=5, order="stack"))
    new = {tensor_map.target: tensor_map.source.name for tensor_map in plan.tensors if tensor_map.new_layer}
    assert len(new) == 2 * 14
    seeded = growth.grow_optimizer(optimizer, model, larger, plan)
    empty = growth.grow_optimizer(optimizer, model, larger, plan, fresh="zero")
    for target, source in new.items():
        parameter, old = larger.get_parameter(target), optimizer.state[model.get_parameter(source)]
        assert parameter not in empty.state
        found = seeded.state[parameter]
        assert found["step"] == old["step"] == 3
        assert not found["exp_avg"].any()
        assert found["exp_avg_sq"].std(correction=0) < 1e-12 * found["exp_avg_sq"].mean()
        assert 0.5 < float(found["exp_avg_sq"].mean() / old["exp_avg_sq"].mean()) < 2
    backward(larger)
    empty.step()
    assert {float(empty.state[larger.get_parameter(name)]["step"]) for name in new} == {1.0}


@pytest.mark.parametrize("named", [False, True])
def test_groups_keep_their_options_and_schedulers_go_on(named):
    model = random_phi()
    pairs = list(model.named_parameters())
    flat = pairs if named else [p for _, p in pairs]
    decay = [entry for entry, (_, p) in zip(flat, pairs, strict=True) if p.ndim > 1]
    rest = [entry for entry, (_, p) in zip(flat, pairs, strict=True) if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0, "lr": 5e-4}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.8, 0.95))
    schedule = lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step))  # noqa: E731
    scheduler = schedule(optimizer)
    backward(model)
    optimizer.step()
    scheduler.step()
    plan, larger = both(model, chain(widen("ffn", to=60, init="tile", shares="equal"), deepen(to=4)))
    grown = growth.grow_optimizer(optimizer, model, larger, plan)
    for old, new in zip(optimizer.param_groups, grown.param_groups, strict=True):
        for key in old.keys() - {"params", "param_names"}:
            assert new[key] == old[key], key
    assert all(p.ndim > 1 for p in grown.param_groups[0]["params"])
    assert all(p.ndim == 1 for p in grown.param_groups[1]["params"])
    assert sum(len(group["params"]) for group in grown.param_groups) == len(list(larger.parameters()))
    if named:
        assert grown.param_groups[0]["param_names"] == [n for n, p in larger.named_parameters() if p.ndim > 1]
    resumed = schedule(grown)
    resumed.load_state_dict(scheduler.state_dict())
    scheduler.step()
    resumed.step()
    assert resumed.get_last_lr() == scheduler.get_last_lr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_state_keeps_its_dtype_and_its_source_stays_as_it_was(dtype):
    model = random_phi(dtype, tie_word_embeddings=True)
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    plan = growth.plan(widen("residual", factor=2, init="tile", shares="equal"), model)
    larger = growth.grow_model(model, plan)
    grown = growth.grow_optimizer(optimizer, model, larger, plan)
    assert len(grown.param_groups[0]["params"]) == len(list(larger.parameters()))  # the tied matrix once
    assert {s["exp_avg"].dtype for s in grown.state.values()} == {dtype}
    larger(input_ids=ids, labels=ids).loss.backward()
    grown.step()
    assert {float(s["step"]) for s in grown.state.values()} == {2.0}
    for old, new in zip(before["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_what_is_frozen_or_has_no_state_yet_stays_so():
    model = random_phi()
    embedding = model.model.embed_tokens.weight
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p is not embedding])
    plan, larger = both(model, widen("ffn", to=60, init="tile", shares="equal"))
    grown = growth.grow_optimizer(optimizer, model, larger, plan)
    assert not grown.state
    assert all(p is not larger.model.embed_tokens.weight for p in grown.param_groups[0]["params"])


def test_refusals_say_what_and_why():
    model = random_phi()
    plan, larger = both(model, widen("ffn", to=60, init="tile", shares="equal"))
    good = torch.optim.AdamW(model.parameters())
    with pytest.raises(OptimizerError, match=r"torch.optim.rmsprop.RMSprop: only torch.optim's Adam, AdamW, NAdam"):
        growth.grow_optimizer(torch.optim.RMSprop(model.parameters()), model, larger, plan)
    with pytest.raises(OptimizerError, match=r"'model\.layers\.0\.mlp\.fc1\.weight' should have shape"):
        growth.grow_optimizer(good, model, model, plan)
    with pytest.raises(OptimizerError, match="that is not a parameter of `small`"):
        growth.grow_optimizer(torch.optim.AdamW(random_phi().parameters()), model, larger, plan)
    with pytest.raises(OptimizerError, match="Unknown fresh='ones'"):
        growth.grow_optimizer(good, model, larger, plan, fresh="ones")
    trained(model, lambda parameters: good)
    good.state[model.lm_head.weight]["master"] = torch.zeros(1)
    with pytest.raises(OptimizerError, match=r"keeps 'master' of 'lm_head\.weight'"):
        growth.grow_optimizer(good, model, larger, plan)


OTHER_PLANS = {
    "order of layers": (deepen(factor=2, order="stack"), deepen(factor=2)),
    "shares": (
        widen("ffn", factor=2, shares="random", init="tile"),
        widen("ffn", factor=2, init="tile", shares="equal"),
    ),
    "seed": (
        widen("ffn", factor=2, init="sample", seed=1),
        widen("ffn", factor=2, init="sample"),
    ),
    "copies": (
        widen("ffn", factor=2, init="sample", shares="equal"),
        widen("ffn", factor=2, init="tile", shares="equal"),
    ),
    "fresh units": (widen("ffn", factor=2, init="pad"), widen("ffn", factor=2, init="tile", shares="equal")),
    "which layers are new": (deepen(factor=2, order="prepend"), deepen(factor=2, order="append")),
}


@pytest.mark.parametrize("what", OTHER_PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plan_by_which_the_model_was_not_grown_is_refused_though_shapes_agree(what, dtype):
    model = random_phi().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    plans = [growth.plan(operator, model) for operator in OTHER_PLANS[what]]
    assert [tensor_map.shape for tensor_map in plans[0].tensors] == [
        tensor_map.shape for tensor_map in plans[1].tensors
    ]
    for plan, other in (plans, reversed(plans)):
        larger = growth.grow_model(model, plan)
        growth.grow_optimizer(optimizer, model, larger, plan)
        with pytest.raises(OptimizerError, match=r"not what the plan makes of `small`: '.*' has other values\. Either"):
            growth.grow_optimizer(optimizer, model, larger, other)


def test_a_model_that_was_cast_or_saved_since_it_grew_is_still_the_plans(tmp_path):
    model = random_phi().to(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    plan = growth.plan(widen("ffn", factor=2, shares="random", init="tile"), model)
    larger = growth.grow_model(model, plan)
    larger.save_pretrained(tmp_path)
    for same in (type(model).from_pretrained(tmp_path), larger.double(), larger.to(torch.bfloat16)):
        growth.grow_optimizer(optimizer, model, same, plan)


def test_models_that_were_trained_since_they_grew_are_refused():
    model = random_phi()
    plan, larger = both(model, widen("ffn", factor=2, init="tile", shares="equal"))
    optimizer = trained(model, OPTIMIZERS["AdamW"])
    with pytest.raises(OptimizerError, match="one of the two was trained or changed since"):
        growth.grow_optimizer(optimizer, model, larger, plan)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_checkpoints_by_name_go_the_same_way(tmp_path):
    """torch.distributed.checkpoint: load the source's folder, grow, save; a new process loads the result."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def state(model, optimizer):
        weights, remembered = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": remembered}

    def load(folder, model):
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        loaded = state(model, optimizer)
        dcp.load(loaded, checkpoint_id=folder, no_dist=True)
        set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        return optimizer

    model = random_phi()
    dcp.save(state(model, trained(model, OPTIMIZERS["AdamW"])), checkpoint_id=tmp_path / "small", no_dist=True)
    resumed = random_phi(seed=1)
    optimizer = load(tmp_path / "small", resumed)
    plan, larger = both(resumed, chain(widen("residual", factor=2, init="tile", shares="equal"), deepen(to=4)))
    grown = growth.grow_optimizer(optimizer, resumed, larger, plan)
    dcp.save(state(larger, grown), checkpoint_id=tmp_path / "big", no_dist=True)
    again = growth.grow_model(random_phi(seed=2), plan)
    found = load(tmp_path / "big", again)
    for expected, parameter in zip(larger.parameters(), again.parameters(), strict=True):
        assert torch.equal(expected, parameter)
        for key, value in grown.state[expected].items():
            assert torch.equal(found.state[parameter][key], value), key


def test_plans_of_a_model_belong_to_it():
    model = random_phi()
    plan = growth.plan(widen("ffn", to=60, init="tile", shares="equal"), model)
    with pytest.raises(growth.CheckpointError, match="The plan is of another model"):
        growth.grow_model(random_phi(hidden_size=64), plan)
    with pytest.raises(growth.RecipeError, match="has its own random seed"):
        growth.grow_model(model, plan, seed=3)
    with pytest.raises(growth.ConfigError, match="its own dtype"):
        growth.plan(widen("ffn", to=60, init="tile", shares="equal"), model, dtype="float16")
