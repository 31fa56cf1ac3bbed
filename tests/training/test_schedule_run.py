"""A model grows by a schedule in a plain loop and in a Trainer, and a resumed run is the run that never stopped."""

import pytest
import torch

import growth
from growth.training.flops import model_flops_per_token
from growth.training.schedule import parse_schedule, shipped_schedules
from tests.support.schedules import (
    BATCH,
    STEPS,
    Plain,
    by_trainer,
    losses,
    source,
    steps_of,
)
from tests.support.trainers import LENGTH, tiny

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
