"""Optimizer state that torch's Adam, AdamW or SGD cannot have made, or that has no place in the grown model, is refused.

By name, before anything is written, alike in memory (`grow_optimizer`) and in a Trainer's folder (`--training`).
"""

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

import growth
from growth.errors import OptimizerError
from growth.operators import deepen, widen
from growth.training.in_place import grow_in_place

WIDER, DEEPER = widen("ffn", factor=2, init="tile", shares="equal"), deepen(to=3)
NAME = "model.layers.0.mlp.down_proj.weight"


def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def groups_of(model):
    """As a Trainer makes them."""
    decaying = Trainer.get_decay_parameter_names(None, model)
    named = list(model.named_parameters())
    return [{"params": [p for n, p in named if (n in decaying) is decays]} for decays in (True, False)]


def trained(kind=torch.optim.AdamW, **options):
    """A model after a step, and its optimizer."""
    model = tiny()
    optimizer = kind(groups_of(model), lr=1e-3, **options)
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A Trainer's folder, and what its optimizer.pt holds."""
    model, optimizer = trained()
    folder = tmp_path_factory.mktemp("run") / "checkpoint-1"
    model.save_pretrained(folder)
    return folder, optimizer.state_dict()


def number_of(state, model):
    """The number of the parameter NAME in a Trainer's state dict."""
    members = [id(p) for group in groups_of(model) for p in group["params"]]
    return members.index(id(model.get_parameter(NAME)))


def put(key, value):
    """A change of one moment."""
    return lambda entry: entry.update({key: value(entry[key])})


def poison(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


STATES = {
    "NaN in the first moment": (put("exp_avg", poison(math.nan)), rf"'exp_avg' of '{NAME}' holds NaN or Inf"),
    "Inf in the second moment": (put("exp_avg_sq", poison(math.inf)), rf"'exp_avg_sq' of '{NAME}' holds NaN or Inf"),
    "-Inf": (put("exp_avg", poison(-math.inf)), "holds NaN or Inf"),
    "a negative second moment": (put("exp_avg_sq", poison(-1e-9)), rf"'exp_avg_sq' of '{NAME}' is a mean of squares.*-1e-09"),
    "sparse": (put("exp_avg", torch.Tensor.to_sparse), rf"'exp_avg' of '{NAME}' is stored as torch.sparse_coo"),
    "integers": (put("exp_avg", torch.Tensor.int), r"of type torch.int32: only dense tensors of torch.float16"),
    "complex": (put("exp_avg", lambda t: t.to(torch.complex64)), r"of type torch.complex64"),
    "8 bits": (put("exp_avg_sq", lambda t: t.to(torch.uint8)), r"of type torch.uint8"),
    "float8": (put("exp_avg", lambda t: t.to(torch.float8_e4m3fn)), r"of type torch.float8_e4m3fn"),
    "a list": (put("exp_avg", lambda t: t.tolist()), rf"'exp_avg' of '{NAME}' is a list"),
    "another shape": (put("exp_avg", lambda t: t[1:]), rf"'exp_avg' of '{NAME}' has shape .* and the parameter"),
    "transposed": (put("exp_avg", lambda t: t.T.contiguous()), rf"'exp_avg' of '{NAME}' has shape \[12, 8\]"),
    "no first moment": (lambda entry: entry.pop("exp_avg"), rf"state of '{NAME}' lacks 'exp_avg'"),
    "no step": (lambda entry: entry.pop("step"), rf"state of '{NAME}' lacks 'step'"),
    "momentum beside moments": (lambda entry: entry.update(momentum_buffer=entry["exp_avg"]), rf"keeps 'momentum_buffer' of '{NAME}': only exp_avg, exp_avg_sq, max_exp_avg_sq, step can grow"),
    "an unknown key": (lambda entry: entry.update(master=entry["exp_avg"]), rf"keeps 'master' of '{NAME}'"),
    "a step that is NaN": (put("step", lambda t: torch.tensor(math.nan)), rf"'step' of '{NAME}' is tensor\(nan\)"),
    "a negative step": (put("step", lambda t: torch.tensor(-1.0)), rf"'step' of '{NAME}' is tensor\(-1\.\)"),
    "state in blocks of 8 bits": (
        lambda entry: entry.update(state1=entry.pop("exp_avg").to(torch.uint8), absmax1=torch.ones(1)),
        rf"keeps 'absmax1' of '{NAME}': 8-bit state \(bitsandbytes\).*fresh='all'",
    ),
    "a step for each value": (put("step", lambda t: torch.ones(2)), rf"'step' of '{NAME}' is tensor"),
    "a step that is text": (put("step", lambda t: "3"), rf"'step' of '{NAME}' is 3"),
    "SGD's state under Adam's options": (
        lambda entry: (entry.update(momentum_buffer=entry.pop("exp_avg")), entry.pop("exp_avg_sq"), entry.pop("step")),
        rf"state of '{NAME}' lacks 'exp_avg'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", STATES)
def test_damaged_state_is_refused_in_memory(why):
    change, message = STATES[why]
    model, optimizer = trained()
    plan = growth.plan(WIDER, model)
    larger = growth.grow_model(model, plan)
    change(optimizer.state[model.get_parameter(NAME)])
    with pytest.raises(OptimizerError, match=message):
        growth.grow_optimizer(optimizer, model, larger, plan)
    before = list(model.parameters())
    with pytest.raises(OptimizerError, match=message):
        grow_in_place(model, optimizer, WIDER)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("why", STATES)
def test_damaged_state_is_refused_in_a_folder(why, run, tmp_path):
    change, message = STATES[why]
    folder, state = run
    state = copy.deepcopy(state)
    change(state["state"][number_of(state, tiny())])
    refused_in_a_folder(folder, state, message, tmp_path)


def refused_in_a_folder(folder, state, message, tmp_path, operator=WIDER):
    torch.save(state, folder / "optimizer.pt")
    with pytest.raises(OptimizerError, match=message):
        growth.grow_training(operator, folder, tmp_path / "out" / "grown")
    assert not (tmp_path / "out").exists()


def swap(state):
    first = state["param_groups"][0]["params"]
    first[0] = first[1]


NUMBERS = {
    "a number twice": (swap, r"list parameter 1 twice"),
    "a number of another group": (
        lambda s: s["param_groups"][0]["params"].__setitem__(0, s["param_groups"][1]["params"][0]),
        r"list parameter \d+ twice",
    ),
    "an unknown number": (lambda s: s["state"].update({999: s["state"][0]}), r"state of parameter 999"),
    "a name for a number": (lambda s: s["state"].update({"a": s["state"].pop(0)}), r"state of parameter a"),
    "lists for numbers": (lambda s: s["param_groups"][0]["params"].__setitem__(0, [0]), "neither numbers nor names"),
    "a group too few": (
        lambda s: [s["state"].pop(n) for n in s["param_groups"].pop()["params"]], r"groups of \[\d+\] parameters"
    ),
    "amsgrad without its maximum": (
        lambda s: [g.update(amsgrad=True) for g in s["param_groups"]], r"lacks 'max_exp_avg_sq', which the options"
    ),
    "another optimizer's options": (lambda s: [g.pop("betas") for g in s["param_groups"]], "only the state of torch.optim's"),
    "differentiable": (lambda s: [g.update(differentiable=True) for g in s["param_groups"]], "is differentiable"),
    "names that are not the model's": (
        lambda s: [g.update(param_names=["x"] * len(g["params"])) for g in s["param_groups"]], "names the parameter 'x'"
    ),
    "a name too few": (
        lambda s: [g.update(param_names=["lm_head.weight"]) for g in s["param_groups"]], "does not name each"
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", NUMBERS)
def test_groups_that_no_optimizer_has_are_refused(why, run, tmp_path):
    change, message = NUMBERS[why]
    folder, state = run
    state = copy.deepcopy(state)
    change(state)
    refused_in_a_folder(folder, state, message, tmp_path)


class AdamW8bit(torch.optim.AdamW):
    """Stands for bitsandbytes' and torchao's: a class of its own, whatever it derives from."""


@pytest.mark.parametrize("kind", [AdamW8bit, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.Adadelta])
def test_another_class_is_refused_by_name_with_a_remedy(kind):
    model, optimizer = trained(kind)
    with pytest.raises(OptimizerError, match=rf"{kind.__qualname__}: only torch\.optim's.*Start a new optimizer"):
        grow_in_place(model, optimizer, WIDER)


@pytest.mark.parametrize("kind", [AdamW8bit, torch.optim.RMSprop])
def test_the_remedy_is_an_optimizer_of_the_same_groups_without_state(kind):
    model, optimizer = trained(kind, weight_decay=0.5)
    plan = growth.plan(DEEPER, model)
    grown = growth.grow_optimizer(optimizer, model, growth.grow_model(model, plan), plan, fresh="all")
    grow_in_place(model, optimizer, DEEPER, fresh="all")
    for each in (grown, optimizer):
        assert type(each) is kind
        assert not each.state
        assert [group["weight_decay"] for group in each.param_groups] == [0.5, 0.5]
        assert [len(group["params"]) for group in each.param_groups] == [len(g["params"]) for g in groups_of(model)]


def test_state_of_a_parameter_in_no_group_is_refused():
    model, optimizer = trained()
    optimizer.param_groups[0]["params"].pop(2)
    with pytest.raises(OptimizerError, match="which is in none of its groups"):
        grow_in_place(model, optimizer, WIDER)


def test_a_differentiable_optimizer_is_refused():
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), differentiable=True)
    with pytest.raises(OptimizerError, match="is differentiable"):
        grow_in_place(model, optimizer, WIDER)


@pytest.mark.parametrize("order", ["reversed", "sorted by name", "head first"])
def test_an_order_that_is_not_the_models_is_kept_or_refused(order):
    """In width each parameter has one place; new layers have none that is known, unless the order is the model's."""
    keys = {"reversed": lambda i, n: -i, "sorted by name": lambda i, n: n, "head first": lambda i, n: "norm" not in n}

    def arranged(model):
        named = list(enumerate(model.named_parameters()))
        return [p for _, (_, p) in sorted(named, key=lambda item: keys[order](item[0], item[1][0]))]

    model = tiny()
    optimizer = torch.optim.SGD(arranged(model), lr=1.0, momentum=0.9)
    for number, (_, parameter) in enumerate(model.named_parameters()):
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, number + 1.0)
    with pytest.raises(OptimizerError, match=r"Group 0 .* another order than model\.parameters\(\).*adds layers"):
        grow_in_place(model, optimizer, DEEPER)
    grow_in_place(model, optimizer, WIDER)
    fresh = torch.optim.SGD(arranged(model), lr=1.0, momentum=0.9)
    fresh.load_state_dict(optimizer.state_dict())
    for number, (name, parameter) in enumerate(model.named_parameters()):
        share = 0.5 if "gate_proj" in name or "up_proj" in name else 1.0
        assert (fresh.state[parameter]["momentum_buffer"] == share * (number + 1)).all(), name
    model, optimizer = tiny(), None
    optimizer = torch.optim.SGD(arranged(model), lr=1.0, momentum=0.9)
    place = {id(p): index for index, p in enumerate(model.parameters())}
    optimizer.param_groups[0]["params"].sort(key=lambda p: place[id(p)])  # the remedy
    grow_in_place(model, optimizer, DEEPER)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


# ------------------------------------------------- what is kept


@pytest.mark.parametrize(
    "options",
    [{"fused": True}, {"foreach": True}, {"capturable": True}, {"maximize": True}, {"amsgrad": True}, {"lr": torch.tensor(0.01)}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_flags_are_kept_and_steps_are_where_they_want_them(options):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    plain = torch.optim.AdamW(model.parameters())
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    plain.step()
    state = plain.state_dict()
    for entry in state["state"].values():
        entry |= {"max_exp_avg_sq": entry["exp_avg_sq"]} if "amsgrad" in options else {}
        entry["step"] = entry["step"].double() if "fused" in options or "capturable" in options else entry["step"]
    kept = {**state["param_groups"][0], **options}
    for number, parameter in enumerate(model.parameters()):
        optimizer.state[parameter] = state["state"][number]
    plan = growth.plan(WIDER, model)
    grown = growth.grow_optimizer(optimizer, model, growth.grow_model(model, plan), plan)
    (group,) = grown.param_groups
    assert {key: group[key] for key in options} == {key: kept[key] for key in options}
    for parameter, entry in grown.state.items():
        assert entry["step"].dtype == torch.float32
        assert entry["step"].device == parameter.device
        assert entry["exp_avg"].device == parameter.device


def test_groups_with_names_grow_in_a_folder_in_any_make(tmp_path):
    """`param_names` say which parameter a number stands for, so the groups need not be a Trainer's."""
    model = tiny()
    named = list(model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named if "mlp" in n]},
        {"params": [(n, p) for n, p in named if "attn" in n]},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    for number, (_, parameter) in enumerate(named):
        if any(parameter is p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, number + 1.0)
    source = tmp_path / "checkpoint-1"
    model.save_pretrained(source)
    torch.save(optimizer.state_dict(), source / "optimizer.pt")
    growth.grow_training(DEEPER, source, tmp_path / "grown")
    state = torch.load(tmp_path / "grown" / "optimizer.pt")
    larger = LlamaForCausalLM.from_pretrained(tmp_path / "grown")
    expected = [name for name, _ in larger.named_parameters() if "mlp" in name]
    assert state["param_groups"][0]["param_names"] == expected
    values = {name: number + 1.0 for number, (name, _) in enumerate(named)}
    first = dict(zip(expected, state["param_groups"][0]["params"], strict=True))
    assert (state["state"][first[NAME]]["momentum_buffer"] == values[NAME]).all()
