"""A model grows by a schedule in a plain loop and in a Trainer, and a resumed run is the run that never stopped."""

import json
import re

import pytest
import torch
from transformers import TrainerCallback

import growth
from growth.errors import ConfigError, GrowthError, OptimizerError
from growth.training.flops import model_flops_per_token
from growth.training.schedule import parse_schedule, shipped_schedules
from growth.training.trainer_callback import GrowthCallback
from tests.support.paths import ROOT
from tests.support.run_page import blocks
from tests.support.run_page import run as run_block
from tests.support.schedules import BATCH, STEPS, Plain, adamw, batch_of, by_trainer, losses, source, steps_of
from tests.support.selection import first_quick
from tests.support.trainers import LENGTH, tiny, trainer

SHIPPED = [path.stem for path in shipped_schedules()]
EVERYTHING = """
description: all that a stage can say
stages:
  - at: {steps: 4}
    recipe: [{op: widen, axis: ffn, factor: 2, init: tile, shares: random}]
    optimizer: reset
    rewarm: {steps: 5}
    rates: {old: 0.5, copies: 2}
  - at: {tokens: 160}
    recipe: [{op: deepen, to: 3}]
    rewarm: {steps: 5, of: all}
    rates: {old: 0, new_layers: 1}
  - at: {flops: %d}
    recipe: [{op: widen, axis: residual, factor: 2}]
    optimizer: fresh
"""


def everything():
    """Three stages, which begin after 4, 10 and 15 steps."""
    small = tiny()
    wide = growth.grow_model(small, growth.widen("ffn", factor=2))
    deep = growth.grow_model(wide, growth.deepen(to=3))
    spent = sum(model_flops_per_token(model) * steps for model, steps in ((small, 4), (wide, 6), (deep, 5)))
    return parse_schedule(EVERYTHING % (spent * BATCH * LENGTH), "s.yaml")


def equal(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


QUICK = ["double"]
SOME = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SHIPPED]


@pytest.mark.parametrize("name", SOME)
def test_a_shipped_schedule_in_a_plain_loop(name, tmp_path):
    """It runs 20 steps, each growth is recorded, and it resumes a step after every growth."""
    schedule = growth.load_schedule(name).over(steps=STEPS)
    points = [1, *(stage.at.steps + 1 for stage in schedule.stages)]
    whole = Plain(schedule, source(name)).train(tmp_path, points)
    assert steps_of(whole.run.history) == [stage.at.steps for stage in schedule.stages]
    for entry in whole.run.history:
        assert entry["num_parameters_before"] < entry["num_parameters"]
        assert 2 < entry["loss_before"] < 6
        assert 2 < entry["loss_after"] < 6
    for point in points:
        again = Plain.resume(schedule, tmp_path / f"checkpoint-{point}").train()
        assert again.losses == {step: loss for step, loss in whole.losses.items() if step > point}
        assert equal(again.model, whole.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_schedule_in_a_trainer(name, tmp_path):
    whole = by_trainer(tmp_path / "whole", name, source(name), save_strategy="steps", save_steps=1)
    grew = steps_of(whole.state.log_history)
    assert grew == [stage.at.steps for stage in growth.load_schedule(name).over(steps=STEPS).stages]
    for step in (1, *(step + 1 for step in grew)):
        again = by_trainer(tmp_path / "again", name, None, tmp_path / "whole" / f"checkpoint-{step}")
        assert losses(again) == losses(whole)
        assert equal(again.model, whole.model)


@pytest.mark.parametrize(
    "points", [(6, 12, 18), pytest.param((3, 4, 9, 10, 14, 15, 16), marks=pytest.mark.slow)], ids=["within", "edges"]
)
def test_every_part_of_a_stage_resumes(tmp_path, points):
    """By steps, tokens and FLOPs; in the middle of both kinds of re-warm-up; with rates and a frozen kind."""
    whole = Plain(everything(), tiny()).train(tmp_path, points)
    assert steps_of(whole.run.history) == [4, 10, 15]
    for point in points:
        again = Plain.resume(everything(), tmp_path / f"checkpoint-{point}").train()
        assert again.losses == {step: loss for step, loss in whole.losses.items() if step > point}
        assert equal(again.model, whole.model)


@pytest.mark.slow
def test_every_part_of_a_stage_resumes_in_a_trainer(tmp_path):
    whole = by_trainer(tmp_path / "whole", everything(), tiny(), save_strategy="steps", save_steps=1)
    assert steps_of(whole.state.log_history) == [4, 10, 15]
    for point in (3, 4, 6, 10, 12, 15, 18):
        again = by_trainer(tmp_path / "again", everything(), None, tmp_path / "whole" / f"checkpoint-{point}")
        assert losses(again) == losses(whole)
        assert equal(again.model, whole.model)


# ------------------------------------------------- what a stage says of the optimizer

WIDER = "[{op: widen, axis: ffn, factor: 2, init: tile, shares: random}, {op: deepen, to: 3}]"


def one_stage(rest="", at="{steps: 1}", recipe=WIDER):
    return parse_schedule(f"description: d\nstages: [{{at: {at}, recipe: {recipe}{rest}}}]", "s.yaml")


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)


def after(schedule, steps, optimizer=sgd):
    """The parameters after so many steps, and the loop."""
    loop = Plain(schedule, tiny(), optimizer)
    for step in range(steps):
        loop.model(**batch_of(step)).loss.backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        loop.run.step(batch_of(step))
    return {name: parameter.detach().clone() for name, parameter in loop.model.named_parameters()}, loop


def test_rates_scale_the_updates_of_a_kind_and_0_keeps_every_bit():
    before, _ = after(one_stage(), 1)
    plain, _ = after(one_stage(), 2)
    scaled, loop = after(one_stage(", rates: {old: 0, copies: 0.5, new_layers: 2}"), 2)
    gate = "model.layers.0.mlp.gate_proj.weight"  # its second half are copies
    factors = dict.fromkeys(before, 0.0) | {name: 2.0 for name in before if name.startswith("model.layers.1.")}
    assert loop.run.history[-1]["sizes"] == {"ffn": [24, 48], "layers": [2, 3]}
    for name, start in before.items():
        step, found = plain[name] - start, scaled[name] - start
        copies = torch.zeros_like(start, dtype=torch.bool)
        if "mlp" in name:
            copies.movedim(1 if "down_proj" in name else 0, 0)[24:] = True
        expected = torch.where(copies, 0.5, factors[name]) if factors[name] != 2.0 else torch.full_like(start, 2.0)
        torch.testing.assert_close(found, step * expected, atol=1e-7, rtol=1e-3, msg=name)
        assert torch.equal(scaled[name][expected == 0], start[expected == 0])
    assert not torch.equal(plain[gate], scaled[gate])


def test_a_warm_up_of_everything_scales_every_update_and_leaves_the_learning_rates():
    before, _ = after(one_stage(), 1)
    plain, _ = after(one_stage(), 2)
    warmed, loop = after(one_stage(", rewarm: {steps: 4, of: all}"), 2)
    for name, start in before.items():
        torch.testing.assert_close(warmed[name] - start, (plain[name] - start) / 4, atol=1e-8, rtol=1e-3, msg=name)
    assert loop.optimizer.param_groups[0]["lr"] == 0.1


SHARED = """
description: a warm-up over a fifth of the run
until: {%s: %d}
stages: [{at: {share: 0.25}, recipe: [{op: deepen, to: 3}], rewarm: {share: 0.2}, rates: {copies: 0.5}}]
"""
SPENT = sum(count * model_flops_per_token(tiny(layers=layers)) for count, layers in ((5, 2), (15, 3))) * BATCH * LENGTH
LENGTHS = [("steps", STEPS, 4), ("tokens", STEPS * BATCH * LENGTH, 4), ("flops", SPENT, 4)]


@pytest.mark.parametrize(("unit", "until", "steps"), LENGTHS)
def test_a_warm_up_may_be_a_share_of_the_run_and_resumes(unit, until, steps, tmp_path, recwarn):
    """In steps it is at the pace of the run when the growth comes; the entry states it, and the factors are in force."""
    schedule = parse_schedule(SHARED % (unit, until), "s.yaml")
    whole = Plain(schedule, tiny()).train(tmp_path, [7])
    [entry] = whole.run.history
    assert entry["rewarm"] == {"steps": entry["rewarm"]["steps"], "of": "new", "start": 0}
    assert entry["rewarm"]["steps"] == pytest.approx(steps, abs=1 if unit == "flops" else 0)
    assert (entry["optimizer"], entry["lossy"], entry["rates"]["copies"]) == ("carry", False, 0.5)
    again = Plain.resume(schedule, tmp_path / "checkpoint-7")
    assert again.run.rate_factors["new_layers"] == (8 - entry["step"]) / entry["rewarm"]["steps"]
    again.train()
    assert again.losses == {step: loss for step, loss in whole.losses.items() if step > 7}
    assert again.run.rate_factors == {"old": 1, "copies": 0.5, "fresh": 1, "new_layers": 1}
    assert not [warning for warning in recwarn if "warm-up" in str(warning.message)]


def test_the_log_states_the_factors_on_the_learning_rate(tmp_path):
    """In the lines that the Trainer prints, and in the log history."""
    seen = []

    class Reads(TrainerCallback):
        def on_log(self, args, state, control, logs, **held):
            seen.append(logs.get("rate_factors", {}).get("new_layers"))

    callback = GrowthCallback.from_schedule(parse_schedule(SHARED % ("steps", STEPS), "s.yaml"))
    run = trainer(tmp_path, tiny(), callback, Reads(), steps=STEPS)
    run.train()
    stated = {
        entry["step"]: entry.get("rate_factors", {}).get("new_layers")
        for entry in run.state.log_history
        if "loss" in entry
    }
    assert [stated[step] for step in (4, 5, 6, 7, 8, 9)] == [None, 0.25, 0.5, 0.75, 1, 1]
    assert set(stated.values()) <= set(seen)


LONG = "until: {%s}\nstages: [{at: {%s}, recipe: [{op: deepen, to: 3}], rewarm: {steps: 250}}]"


@pytest.mark.parametrize(
    ("until", "at", "at_start"),
    [("steps: 20", "steps: 10", True), ("steps: 20", "share: 0.5", True), ("tokens: 320", "tokens: 160", False)],
)
def test_a_warm_up_that_does_not_end_in_its_stage_warns(until, at, at_start, tmp_path, recwarn):
    """At the start where steps tell so, else when the growth comes, in both loops."""
    schedule = parse_schedule(f"description: d\n{LONG % (until, at)}", "s.yaml")
    said = "s.yaml, stage 1: the second warm-up takes 250 steps, and the stage has 10: .* at 4 %"

    def count():
        return len([warning for warning in recwarn if re.match(said, str(warning.message))])

    loop = Plain(schedule, tiny())
    assert count() == at_start
    loop.train()
    assert count() == 1
    by_trainer(tmp_path, schedule, tiny())
    assert count() == 2


@pytest.mark.parametrize("kind", ["Rprop", "AdamW"])
def test_fresh_starts_an_optimizer_of_any_class_without_state(kind):
    def optimizer(model):
        decayed, others = [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
        groups = [{"params": decayed, "lr": 0.02}, {"params": others, "lr": 0.01}]
        return getattr(torch.optim, kind)(groups)

    schedule = one_stage(", optimizer: fresh")
    _, loop = after(schedule, 1, optimizer)
    assert not loop.optimizer.state
    assert loop.model.config.intermediate_size == 48
    matrices, others = (group["params"] for group in loop.optimizer.param_groups)
    assert {id(p) for p in matrices} == {id(p) for p in loop.model.parameters() if p.ndim > 1}
    assert {id(p) for p in others} == {id(p) for p in loop.model.parameters() if p.ndim == 1}
    assert [group["initial_lr"] for group in loop.optimizer.param_groups] == [0.02, 0.01]
    after(schedule, 3, optimizer)
    if kind != "AdamW":
        with pytest.raises(OptimizerError, match=kind):
            after(one_stage(), 1, optimizer)


def test_a_callback_with_fresh_all_takes_an_optimizer_of_any_class(tmp_path):
    schedule = {2: growth.widen("ffn", factor=2)}
    run = trainer(tmp_path, tiny(), GrowthCallback(schedule, fresh="all"), optim="rmsprop")
    run.train()
    assert steps_of(run.state.log_history) == [2]
    assert {int(state["step"]) for state in run.optimizer.state.values()} == {2}
    with pytest.raises(OptimizerError, match="RMSprop"):
        trainer(tmp_path, tiny(), GrowthCallback(schedule), optim="rmsprop").train()


# ------------------------------------------------- lengths


@pytest.mark.parametrize("until", first_quick(["{tokens: 40}", "{steps: 3}", "{flops: 2e6}"]))
def test_a_run_ends_where_the_schedule_does(until, tmp_path):
    text = f"description: d\nuntil: {until}\nstages: [{{at: {{share: 0.25}}, recipe: {WIDER}}}]"
    plain = Plain(parse_schedule(text, "s.yaml"), tiny()).train()
    run = by_trainer(tmp_path, parse_schedule(text, "s.yaml"), tiny())
    assert plain.run.finished
    assert run.state.global_step == plain.run.steps == 3
    assert steps_of(run.state.log_history) == steps_of(plain.run.history) == [1]


STRATEGIES = [  # each run takes a second
    {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2},
    {"save_strategy": "epoch", "eval_strategy": "epoch"},
    {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3},
    {"save_strategy": "no", "eval_strategy": "steps", "eval_steps": 2, "eval_delay": 4, "logging_steps": 2},
]


@pytest.mark.parametrize(
    "strategies", [STRATEGIES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in STRATEGIES[1:])]
)
def test_a_run_that_ends_where_the_schedule_does_leaves_what_a_run_of_so_many_steps_leaves(strategies, tmp_path):
    """Its checkpoints, evaluations and logs, those of its last step too."""
    one = f"stages: [{{at: {{steps: 1}}, recipe: {WIDER}}}]"
    left = {}
    for length, until in ((3, ""), (STEPS, "until: {steps: 3}\n")):
        schedule = parse_schedule(f"description: d\n{until}{one}", "s.yaml")
        callback = GrowthCallback.from_schedule(schedule)
        folder = tmp_path / str(length)
        options = {"lr_scheduler_type": "constant", "seed": 0, **strategies}
        run = trainer(folder, tiny(), callback, steps=length, **options)
        run.train()
        checkpoints = {path.name: {file.name for file in path.iterdir()} for path in folder.glob("checkpoint-*")}
        timed = ("_runtime", "_per_second")
        logs = [
            {key: value for key, value in entry.items() if not key.endswith(timed)} for entry in run.state.log_history
        ]
        left[length] = (run.model, checkpoints, logs)
    (model, *rest), (other, *others) = left.values()
    assert rest == others
    assert equal(model, other)


def test_flops_are_six_times_parameters_times_tokens():
    _, loop = after(one_stage(), 3)
    small, large = model_flops_per_token(tiny()), model_flops_per_token(loop.model)
    assert small == 6 * tiny().num_parameters()  # the embedding is the head
    assert loop.run.flops == BATCH * LENGTH * (small + 2 * large)
    assert loop.run.history[0]["flops"] == BATCH * LENGTH * small
    assert loop.run.stage == loop.run.schedule.stages[0]


# ------------------------------------------------- refusals, before anything is trained

TWO = "description: d\nstages:\n  - {at: {steps: 2}, recipe: double-depth}\n  - {at: {steps: 4}, recipe: [%s]%s}"
REFUSED = {
    "a recipe that does not fit": (TWO % ("{op: widen, axis: ffn, to: 20}", ""), r"^s.yaml, stage 2, step 1 \(widen\): Cannot shrink ffn"),
    "an axis that the family lacks": (TWO % ("{op: widen, axis: experts, factor: 2}", ""), r"^s.yaml, stage 2, step 1 \(widen\): Cannot widen 'experts'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_the_model_is_refused_at_the_start(kind, tmp_path):
    text, message = REFUSED[kind]
    schedule, model = parse_schedule(text, "s.yaml"), tiny()
    with pytest.raises(GrowthError, match=message):
        schedule.start(model, adamw(model))
    with pytest.raises(GrowthError, match=message):
        by_trainer(tmp_path, schedule, model)
    assert model.config.num_hidden_layers == 2


def test_stages_keep_their_numbers_when_a_run_resumes(tmp_path):
    first = parse_schedule("description: d\nstages: [{at: {steps: 2}, recipe: double-depth}]", "s.yaml")
    impossible, message = REFUSED["a recipe that does not fit"]
    _, loop = after(first, 3)
    with pytest.raises(GrowthError, match=message):
        parse_schedule(impossible, "s.yaml").start(loop.model, loop.optimizer, loop.run.state_dict())
    run = trainer(tmp_path, tiny(), GrowthCallback.from_schedule(first), save_strategy="steps", save_steps=3)
    run.train()
    with pytest.raises(GrowthError, match=message):
        by_trainer(tmp_path, parse_schedule(impossible, "s.yaml"), None, tmp_path / "checkpoint-3")


def freeze(model, *layers):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(f"layers.{layer}." in name for layer in layers))
    return model


def trained(model):
    """An optimizer over what is not frozen, and one over all."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("parameters", [trained, torch.nn.Module.parameters], ids=["trained", "all"])
def test_what_grew_from_frozen_layers_stays_frozen_when_a_run_resumes(parameters):
    """The growth puts a copy of the frozen layer 0 in its place, and moves it: layers 0 and 2 are frozen then."""
    schedule = one_stage(recipe="[{op: deepen, to: 4, order: prepend}]")
    model = freeze(tiny(), 0)
    optimizer = torch.optim.SGD(parameters(model), lr=0.1)
    run = schedule.start(model, optimizer)
    run.step(batch_of(0))
    state, copy = run.state_dict(), tiny(layers=4)
    copy.load_state_dict(model.state_dict())
    for layers in ((), (0,), (0, 1)):
        with pytest.raises(ConfigError, match=r"had 'model\.layers\..* frozen, and this model trains"):
            schedule.start(copy, torch.optim.SGD(parameters(freeze(copy, *layers)), lr=0.1), state)
    assert state["history"][-1]["frozen"] == [name for name, p in model.named_parameters() if not p.requires_grad]
    for layers in ((0, 2), (0, 1, 2)):
        schedule.start(copy, torch.optim.SGD(parameters(freeze(copy, *layers)), lr=0.1), state)


def test_tokens_must_be_counted(tmp_path):
    schedule, model = one_stage(at="{flops: 1e9}"), tiny()
    with pytest.raises(ConfigError, match=r"s.yaml counts flops: give the step's batch or its tokens"):
        schedule.start(model, adamw(model)).step()
    with pytest.raises(ConfigError, match="A schedule by tokens or FLOPs needs"):
        by_trainer(tmp_path, schedule, model, include_num_input_tokens_seen="no")


@pytest.mark.parametrize("unit", ["tokens", "flops"])
def test_a_step_counts_all_batches_over_which_it_accumulates(unit):
    """A run that divides each batch grows and ends where one does that does not, whatever it is told by."""
    steps = {"tokens": 1, "flops": model_flops_per_token(tiny())}[unit] * BATCH * LENGTH
    until = f"until: {{{unit}: {6 * steps}}}"
    schedule = parse_schedule(
        f"description: d\n{until}\nstages: [{{at: {{{unit}: {2 * steps}}}, recipe: {WIDER}}}]", "s.yaml"
    )

    def counted(**by):
        model = tiny()
        run = schedule.start(model, sgd(model))
        while not run.finished:
            batch = batch_of(run.steps)
            parts = [{key: value[row : row + 1] for key, value in batch.items()} for row in range(BATCH)]
            run.step(*by.get("given", lambda *_: ())(batch, parts), **by.get("stated", {}))
        return run.steps, run.tokens, run.flops, [(entry["step"], entry["flops"]) for entry in run.history]

    whole = counted(given=lambda batch, parts: [batch])
    assert whole[3][0][0] == 2
    assert counted(given=lambda batch, parts: [parts]) == whole
    assert counted(given=lambda batch, parts: parts[-1:], stated={"tokens": BATCH * LENGTH}) == whole
    assert counted(stated={"tokens": BATCH * LENGTH}) == whole


def test_a_run_is_resumed_by_its_own_schedule_and_size():
    _, loop = after(one_stage(), 2)
    state = loop.run.state_dict()
    other = one_stage(recipe="[{op: widen, axis: ffn, factor: 3, init: tile, shares: random}]")
    with pytest.raises(ConfigError, match=r"has grown after 1 steps by .*and the schedule has"):
        other.start(loop.model, loop.optimizer, state)
    with pytest.raises(ConfigError, match=r"has grown after 1 steps, and this schedule says after 2 steps"):
        one_stage(at="{steps: 2}").start(loop.model, loop.optimizer, state)
    with pytest.raises(ConfigError, match=r"Build it as large as the checkpoint: from_pretrained\(checkpoint\)"):
        one_stage().start(tiny(), loop.optimizer, state)


def test_a_run_that_resumes_without_its_optimizers_state_warns(recwarn):
    """Not where there was none: after a step of SGD without momentum, or a growth that starts all state anew."""
    _, loop = after(one_stage(), 2, adamw)
    state = json.loads(json.dumps(loop.run.state_dict()))
    one_stage().start(loop.model, loop.optimizer, state)
    for schedule, optimizer, steps in ((one_stage(), sgd, 2), (one_stage(", optimizer: fresh"), adamw, 1)):
        _, stateless = after(schedule, steps, optimizer)
        schedule.start(stateless.model, optimizer(stateless.model), stateless.run.state_dict())
    assert not [warning for warning in recwarn if "had state" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"AdamW had state .*, and this one has none.*load_state_dict.* before start"):
        one_stage().start(loop.model, adamw(loop.model), state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_loop_of_the_docs_resumes_as_the_run_that_never_stopped(tmp_path, monkeypatch, phi_mini):
    """With its scheduler: the weights and the learning rate at the end, and every rate on the way."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").symlink_to(phi_mini)
    names, ends = {}, []
    for block in blocks((ROOT / "docs" / "schedules.md").read_text()):
        if block.file or block.kind == "python":
            run_block(block, names)
        if "\ntrain()\n" in block.text:
            ends.append(
                (names["model"], names["scheduler"].state_dict(), names["optimizer"].state_dict()["param_groups"])
            )
    (whole, *rest), (resumed, *others) = ends
    assert rest == others
    assert equal(whole, resumed)
