"""One factor is in force for a purpose, it counts the steps that were taken, and groups have their own rates between."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

import growth
from growth.errors import ConfigError
from growth.training.schedule import parse_schedule
from growth.training.trainer_history import scheduled
from tests.support.schedules import batch_of, losses, steps_of
from tests.support.selection import first_quick
from tests.support.trainers import tiny, trainer

LR = 0.1
RATES = "{at: {steps: 1}, recipe: double-depth, rates: {new_layers: 0.5}}"
REWARM = "{at: {steps: 1}, recipe: double-depth, rewarm: {steps: 10%s}}"
SHORT = "{at: {steps: 1}, recipe: double-depth, rewarm: {steps: 7}}"
NEW = "model.layers.1.mlp.down_proj.weight"  # in a layer that double-depth adds


def schedule(stage, until=""):
    return parse_schedule(f"description: d\n{until}\nstages: [{stage}]", "s.yaml")


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=LR)


def step(model, optimizer, at=0):
    """Takes a step; the factor on the update of a tensor, which is new after the growth."""
    optimizer.zero_grad()
    model(**batch_of(at)).loss.backward()
    new = dict(model.named_parameters())[NEW]
    before = new.detach().clone()
    optimizer.step()
    return float((new.detach() - before).norm() / (LR * new.grad.norm()))


def grown(stage):
    """A run after its growth."""
    model = tiny()
    optimizer = sgd(model)
    run = schedule(stage).start(model, optimizer)
    step(model, optimizer)
    run.step(batch_of(0))
    return run, model, optimizer


def test_a_second_start_takes_the_place_of_the_first():
    run, model, optimizer = grown(RATES)
    schedule(RATES).start(model, optimizer, run.state_dict())
    assert step(model, optimizer) == pytest.approx(0.5, rel=1e-3)
    schedule("{at: {steps: 1}, recipe: double-depth}").start(model, optimizer, run.state_dict())
    assert step(model, optimizer) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("of", ["new", "all"])
def test_a_second_warm_up_takes_the_place_of_the_first(of):
    model = tiny()
    plan = growth.plan("double-depth", model)
    larger = growth.grow_model(model, plan)
    optimizer = sgd(larger)
    warmups = [growth.Rewarm(optimizer, larger, plan, steps=4, of=of) for _ in range(3)]
    assert step(larger, optimizer) == pytest.approx(0.25, rel=1e-3)
    warmups[-1].load_state_dict({"steps": 5, "of": of, "done": 0, "start": 0})
    assert step(larger, optimizer) == pytest.approx(0.2, rel=1e-3)
    for _ in range(9):
        step(larger, optimizer)
    warmups[-1].load_state_dict({"steps": 5, "of": of, "done": 1, "start": 0})  # after its end
    assert step(larger, optimizer) == pytest.approx(warmups[-1].factor - 0.2, rel=1e-3) == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize("of", ["", ", of: all"])
def test_steps_that_were_skipped_do_not_count_after_a_resume(of):
    run, model, optimizer = grown(REWARM % of)
    step(model, optimizer)
    run.step()
    for _ in range(5):  # a GradScaler has skipped the optimizer's step
        run.step()
    state = json.loads(json.dumps(run.state_dict()))
    schedule(REWARM % of).start(model, optimizer, state)
    assert step(model, optimizer) == pytest.approx(0.2, rel=1e-3)
    del state["history"][-1]["updates"]  # of an earlier version
    schedule(REWARM % of).start(model, optimizer, state)
    assert step(model, optimizer) == pytest.approx(0.7, rel=1e-3)


class Skips(TrainerCallback):
    """Says of some steps that they were skipped, as a GradScaler does to fused optimizers."""

    def on_pre_optimizer_step(self, args, state, control, **held):
        held["optimizer"].optimizer.found_inf = torch.tensor(float(2 <= state.global_step < 5))


def test_steps_that_were_skipped_do_not_count_after_a_resume_in_a_trainer(tmp_path):
    def run(model, checkpoint=None):
        callback = growth.GrowthCallback.from_schedule(schedule(SHORT))
        one = trainer(tmp_path, model, callback, Skips(), steps=8, save_strategy="steps", save_steps=6)
        one.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return losses(one), scheduled(one.state.log_history)[-1]["updates"]

    whole = run(tiny())
    assert whole[1] == [4]  # of the 7 steps after the growth
    checkpoint = tmp_path / "checkpoint-6"
    assert run(AutoModelForCausalLM.from_pretrained(checkpoint), checkpoint) == whole


def test_a_step_that_raises_leaves_the_learning_rates():
    """Whoever reads them next finds the groups' own: a further step, a state dict, a growth, the end of the warm-up."""
    model = tiny()
    plan = growth.plan("double-depth", model)
    larger = growth.grow_model(model, plan)

    def out_of_memory():
        raise RuntimeError

    def failed():
        optimizer = sgd(larger)
        warmup = growth.Rewarm(optimizer, larger, plan, steps=4, of="all")
        for _ in range(2):
            with pytest.raises(RuntimeError):
                optimizer.step(out_of_memory)
        return optimizer, warmup

    optimizer, _ = failed()
    assert optimizer.state_dict()["param_groups"][0]["lr"] == LR
    optimizer, warmup = failed()
    warmup.remove()
    assert optimizer.param_groups[0]["lr"] == LR
    optimizer, _ = failed()
    again = growth.plan("double-width", larger)
    assert growth.grow_optimizer(optimizer, larger, growth.grow_model(larger, again), again).param_groups[0]["lr"] == LR
    optimizer, _ = failed()
    optimizer.param_groups[0]["lr"] = LR / 2  # a scheduler
    assert step(larger, optimizer) == pytest.approx(0.25 / 2, rel=1e-3)
    assert optimizer.param_groups[0]["lr"] == LR / 2


def test_warm_ups_of_a_schedule_and_beside_it_multiply_and_leave_the_learning_rates():
    _, model, optimizer = grown(REWARM % ", of: all")
    plan = growth.plan("double-depth", tiny())
    growth.Rewarm(optimizer, model, plan, steps=4, of="all")
    assert step(model, optimizer) == pytest.approx(0.1 * 0.25, rel=1e-3)
    assert optimizer.param_groups[0]["lr"] == LR
    assert step(model, optimizer) == pytest.approx(0.2 * 0.5, rel=1e-3)


@pytest.mark.parametrize("unit", first_quick(["tokens", "flops"]))
def test_a_run_that_has_not_counted_is_not_resumed_by_counts(unit, tmp_path):
    first, later = RATES, f"{{at: {{{unit}: 1000000000}}, recipe: double-width}}"
    model = tiny()
    run = schedule(first).start(model, sgd(model))
    run.step()
    run.step(batch_of(0))
    state = run.state_dict()
    for known in (state, {key: value for key, value in state.items() if key != "uncounted"} | {"tokens": 0}):
        with pytest.raises(ConfigError, match=f"counts {unit}, and of the 2 steps.* did not state their batch"):
            schedule(f"{first}, {later}").start(model, sgd(model), known)
    callback = growth.GrowthCallback.from_schedule(schedule(first))
    options = {"steps": 3, "save_strategy": "steps", "save_steps": 3, "include_num_input_tokens_seen": "no"}
    trainer(tmp_path, tiny(), callback, **options).train()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3")
    callback = growth.GrowthCallback.from_schedule(schedule(f"{first}, {later}"))
    with pytest.raises(ConfigError, match="has not counted its tokens up to step 3"):
        trainer(tmp_path, model, callback, steps=6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_trainer_resumes_a_run_that_goes_on_and_by_what_it_has_counted(tmp_path):
    def run(stages, model, checkpoint=None, until="until: {tokens: 48}"):
        callback = growth.GrowthCallback.from_schedule(schedule(stages, until))
        one = trainer(tmp_path, model, callback, steps=9, save_strategy="steps", save_steps=1)
        one.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return one.state.global_step

    assert run(RATES, tiny()) == 3
    last = tmp_path / "checkpoint-3"
    with pytest.raises(ConfigError, match=r"at step 3, and the schedule ends it after 48 tokens: nothing is left"):
        run(RATES, AutoModelForCausalLM.from_pretrained(last), last)
    later = f"{RATES}, {{at: {{flops: 1000000000}}, recipe: double-width}}"
    with pytest.raises(ConfigError, match=r"counts flops and steps, and .* has not counted its FLOPs up to step 3"):
        run(later, AutoModelForCausalLM.from_pretrained(last), last, until="")


def test_shares_follow_the_present_run(tmp_path):
    """In a second call of train() with the same model, and with another one."""
    callback = growth.GrowthCallback.from_schedule(schedule("{at: {share: 0.5}, recipe: double-depth}"))
    one = trainer(tmp_path, tiny(), callback, steps=2)
    one.train()
    one.args.max_steps = 4
    one.train()
    assert one.state.global_step == 4
    assert steps_of(one.state.log_history) == [0]  # in the run before
    other = trainer(tmp_path, tiny(), callback, steps=6)
    other.train()
    assert (other.state.global_step, steps_of(other.state.log_history)) == (6, [3])
