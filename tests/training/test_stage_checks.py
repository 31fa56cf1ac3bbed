"""What would fail at a growth, or train parameters that a growth has replaced, is refused before the first step."""

import pytest
import torch
from transformers.optimization import Adafactor

import growth
from growth.errors import CheckpointError, ConfigError, GrowthError, OptimizerError
from growth.training.schedule import parse_schedule
from tests.support.schedules import batch_of
from tests.support.trainers import tiny, trainer

UPCYCLE = "[{op: upcycle, experts: 4, top_k: 2}]"
TILED = "[{op: widen, axis: ffn, factor: 2, init: tile}]"


def schedule(*stages):
    return parse_schedule(f"description: d\nstages: [{', '.join(stages)}]", "s.yaml")


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def matrices(model):
    return [p for p in model.model.layers.parameters() if p.ndim == 2]


def only_matrices(model):
    """Muon over all that is not frozen."""
    model.requires_grad_(False)
    for parameter in matrices(model):
        parameter.requires_grad_(True)
    return torch.optim.Muon(matrices(model), lr=1e-3)


def muon_and_adamw(model):
    hidden = {id(p) for p in matrices(model)}
    others = [p for p in model.parameters() if id(p) not in hidden]
    return [torch.optim.Muon(matrices(model), lr=1e-2), torch.optim.AdamW(others, lr=1e-2)]


def gates_apart(model):
    gates = [p for name, p in model.named_parameters() if "gate" in name]
    others = [p for name, p in model.named_parameters() if "gate" not in name]
    return torch.optim.AdamW([{"params": gates}, {"params": others}])


class Holding(torch.optim.SGD):
    """Keeps a parameter where growth does not look."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.averages = {"slow": [(0.5, self.param_groups[0]["params"][-1])]}


class Around(torch.optim.SGD):
    """Leaves its steps to an optimizer inside."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], lr=0.1)


FRESH = f"{{at: {{steps: 2}}, recipe: {TILED}, optimizer: fresh}}"
MIXTURE = f"at: {{steps: 2}}, recipe: {UPCYCLE}"
REFUSED = {
    "a warm-up of groups without rates": (
        lambda model: Adafactor(model.parameters()),
        [f"{{at: {{steps: 2}}, recipe: {TILED}, rewarm: {{steps: 5, of: all}}}}"],
        "stage 1: .*no learning rate",
    ),
    "stacks for Muon": (only_matrices, [f"{{{MIXTURE}}}"], "stage 1: Muon cannot train"),
    "stacks for a fresh Muon": (only_matrices, [f"{{{MIXTURE}, optimizer: fresh}}"], "stage 1: Muon cannot train"),
    "stacks for one of two": (muon_and_adamw, [f"{{{MIXTURE}}}"], "stage 1: Muon cannot train"),
    "parts of a stack in two groups": (gates_apart, [f"{{{MIXTURE}}}"], "stage 1: .*different groups"),
    "in a later stage": (
        gates_apart,
        [f"{{at: {{steps: 1}}, recipe: {TILED}}}", f"{{{MIXTURE}}}"],
        "stage 2: .*different groups",
    ),
    "matrices trained apart": (
        sgd,
        ["{at: {steps: 1}, recipe: [{op: untie}]}", "{at: {steps: 2}, recipe: [{op: retie}]}"],
        "stage 2: .*must be equal then",
    ),
    "rates of 0 for all kinds": (
        sgd,
        [f"{{at: {{steps: 1}}, recipe: {TILED}, rates: {{old: 0, copies: 0}}}}"],
        "stage 1: Nothing is left to train: .*old, copies",
    ),
    "a part of the model": (
        lambda model: torch.optim.Muon(matrices(model)),
        [FRESH],
        r"'model.embed_tokens.weight' and",
    ),
    "LBFGS": (lambda model: torch.optim.LBFGS(model.parameters()), [FRESH], "LBFGS holds parameters in '_params'"),
    "parameters in an attribute": (lambda model: Holding(model.parameters()), [FRESH], "in 'averages'"),
    "an optimizer inside": (lambda model: Around(model.parameters()), [FRESH], "in 'inner'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_stage_that_would_fail_at_its_time_is_refused_at_the_start(case):
    make, stages, reason = REFUSED[case]
    model = tiny()
    with pytest.raises(GrowthError, match=reason):
        schedule(*stages).start(model, make(model))


def test_a_trainer_refuses_them_too(tmp_path):
    _, stages, reason = REFUSED["rates of 0 for all kinds"]
    with pytest.raises(ConfigError, match=reason):
        trainer(tmp_path, tiny(), growth.GrowthCallback.from_schedule(schedule(*stages))).train()


def test_kinds_of_frozen_parameters_train_nothing():
    model = tiny()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed" in name)
    optimizer = torch.optim.SGD([model.model.embed_tokens.weight], lr=0.1)
    with pytest.raises(ConfigError, match="values of the kinds old, and"):
        schedule(f"{{at: {{steps: 1}}, recipe: {TILED}, rates: {{old: 0}}}}").start(model, optimizer)


def step(model, optimizers, at):
    model.zero_grad()
    loss = model(**batch_of(at)).loss
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("state", ["carry", "reset", "fresh"])
def test_several_optimizers_grow_each_over_its_own_parameters(state):
    """After every growth, each trains what it trained before; as two of one class, they do as one does."""
    stages = ["{at: {steps: 1}, recipe: double-width, optimizer: %s}", "{at: {steps: 2}, recipe: double-depth}"]
    stages = [stage.replace("%s", state) for stage in stages]
    model = tiny()
    muon, _ = optimizers = muon_and_adamw(model)
    run = schedule(*stages).start(model, optimizers)
    for at in range(3):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        step(model, optimizers, at)
        assert not any(map(torch.equal, before, model.parameters()))
        run.step(batch_of(at))
    assert {id(p) for group in muon.param_groups for p in group["params"]} == set(map(id, matrices(model)))
    losses = []
    for parts in (1, 2):
        model = tiny()
        parameters = list(model.parameters())
        split = [torch.optim.AdamW(parameters[part::parts], lr=1e-2) for part in range(parts)]
        run = schedule(*stages).start(model, split)
        losses.append([])
        for at in range(4):
            losses[-1].append(step(model, split, at))
            run.step(batch_of(at))
    assert losses[0] == losses[1]


def test_rates_apply_to_each_optimizer():
    model = tiny()
    optimizers = muon_and_adamw(model)
    run = schedule("{at: {steps: 1}, recipe: double-depth, rates: {old: 0}}").start(model, optimizers)
    step(model, optimizers, 0)
    run.step(batch_of(0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(model, optimizers, 1)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all(".layers.1." in name or ".layers.3." in name for name in moved)


def test_an_optimizer_that_accelerate_has_wrapped_is_the_one_inside():
    from accelerate import Accelerator

    model = tiny()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, sgd(model))
    run = schedule(f"{{at: {{steps: 1}}, recipe: {TILED}}}").start(model, optimizer)
    assert [entry["step"] for entry in run.step(batch_of(0))] == [1]
    with pytest.raises(OptimizerError, match="not a parameter of"):
        schedule(FRESH).start(tiny(), optimizer)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_a_compiled_model_is_refused_with_the_model_to_pass():
    model = tiny()
    schedule = parse_schedule(f"description: d\nstages: [{{at: {{steps: 1}}, recipe: {TILED}}}]", "s.yaml")
    with pytest.raises(CheckpointError, match=r"wrapped by torch.compile: grow model\._orig_mod"):
        schedule.start(torch.compile(model), torch.optim.SGD(model.parameters()))
