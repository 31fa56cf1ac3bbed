"""Each entry of a GrowthCallback's schedule is carried out once, is announced where it cannot be, and is logged."""

import json
import random

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
)

from growth.errors import CheckpointError, ConfigError
from growth.operators import deepen, widen
from growth.training.in_place import grow_in_place
from growth.training.schedule import Moment, parse_schedule
from growth.training.trainer_callback import GrowthCallback
from growth.training.trainer_history import scheduled
from tests.support.selection import first_quick
from tests.support.trainers import rows, tiny, trainer

WIDER, DEEPER = widen("ffn", factor=2, init="tile", shares="equal"), deepen(to=3)
SCHEDULE = {1: WIDER, 3: DEEPER}


def sizes(model):
    return model.config.intermediate_size, model.config.num_hidden_layers


class Spy(TrainerCallback):
    """An `on_log` callback as those of wandb and TensorBoard are."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs.append(dict(logs))


# ------------------------------------------------- once


def test_a_second_train_does_not_grow_again(tmp_path):
    callback = GrowthCallback(SCHEDULE)
    run = trainer(tmp_path, tiny(), callback)
    for _ in range(3):
        run.train()
        assert sizes(run.model) == (48, 3)
        assert len(scheduled(run.state.log_history)) == 2


def test_what_a_first_train_did_not_reach_is_left_to_the_second(tmp_path):
    run = trainer(tmp_path, tiny(), GrowthCallback(SCHEDULE), steps=2)
    with pytest.warns(UserWarning, match="after 3 steps will not happen: this run ends after 2 steps"):
        run.train()
    assert sizes(run.model) == (48, 2)
    run.args.max_steps = 4
    run.train()
    assert sizes(run.model) == (48, 3)
    assert [entry["step"] for entry in scheduled(run.state.log_history)] == [0, 3]


@pytest.mark.slow
def test_a_second_train_may_be_shorter_than_the_time_of_what_is_done(tmp_path):
    """Of a file without `until`, whose last growth ends the first run."""
    text = "description: d\nstages: [{at: {steps: 4}, recipe: double-depth}]"
    run = trainer(tmp_path, tiny(), GrowthCallback.from_schedule(parse_schedule(text, "s.yaml")), steps=4)
    run.train()
    assert [entry["step"] for entry in scheduled(run.state.log_history)] == [4]
    run.args.max_steps = 2
    run.train()
    assert run.state.global_step == 2
    assert run.model.config.num_hidden_layers == 4


def test_a_checkpoint_of_the_second_train_knows_what_the_first_did(tmp_path):
    run = trainer(tmp_path / "run", tiny(), GrowthCallback({1: WIDER}), save_strategy="steps", save_steps=2)
    run.train()
    run.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    again = trainer(tmp_path / "again", model, GrowthCallback({1: WIDER}))
    again.train(resume_from_checkpoint=str(checkpoint))
    assert sizes(model) == (48, 2)
    for name, parameter in run.model.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name


@pytest.mark.slow
def test_a_model_built_anew_grows_anew(tmp_path):
    run = trainer(tmp_path, lambda: tiny(), GrowthCallback(SCHEDULE))
    for _ in range(2):
        run.train()
        assert sizes(run.model) == (48, 3)
        assert [entry["step"] for entry in scheduled(run.state.log_history)] == [1, 3]


@pytest.mark.parametrize("step", first_quick([3, 2]))
def test_the_same_trainer_resumes_what_fits_its_model(tmp_path, step):
    """From before a growth that the model in memory has had: refused. From after it: the growth is not repeated."""
    run = trainer(
        tmp_path,
        tiny(),
        GrowthCallback({2: WIDER, 3: widen("ffn", factor=3, init="tile", shares="equal")}),
        save_strategy="steps",
        save_steps=1,
    )
    run.train()
    expected = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    checkpoint = str(tmp_path / f"checkpoint-{step}")
    if step == 2:
        with pytest.raises(Exception, match=r"size mismatch|Build the model as large as the checkpoint"):
            run.train(resume_from_checkpoint=checkpoint)
        return
    run.train(resume_from_checkpoint=checkpoint)
    assert [entry["step"] for entry in scheduled(run.state.log_history)] == [2, 3]
    for name, parameter in run.model.named_parameters():
        assert torch.equal(expected[name], parameter), name


def test_a_checkpoint_from_before_a_growth_is_refused_by_name(tmp_path):
    callback = GrowthCallback({1: WIDER})
    run = trainer(tmp_path, tiny(), callback)
    run.train()
    run.state.global_step, run.state.log_history = 1, []  # as a Trainer has it that resumes from a smaller checkpoint
    with pytest.raises(
        ConfigError, match="has been grown after 1 steps, and the checkpoint to resume from is from before"
    ):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model, optimizer=run.optimizer)


def test_a_second_callback_is_refused(tmp_path):
    """Each would take the other's growths for its own, and leave out as many of its schedule."""
    run = trainer(tmp_path, tiny(), GrowthCallback({1: WIDER}), GrowthCallback({3: DEEPER}))
    with pytest.raises(ConfigError, match=r"more than one GrowthCallback.*one callback the entries of all schedules"):
        run.train()
    assert sizes(run.model) == (24, 2)


@pytest.mark.parametrize("number", ["2", 2.5, True, 0])
def test_a_moment_is_a_whole_number(number):
    with pytest.raises(ConfigError, match=r"Invalid schedule entry.*whole number of at least 1"):
        GrowthCallback({3: WIDER, number: WIDER})


def test_hooks_that_a_growth_would_lose_stop_a_run_at_its_start(tmp_path):
    run = trainer(tmp_path, tiny(), GrowthCallback({2: WIDER}))
    run.model.model.norm.register_forward_hook(lambda *_: None)
    with pytest.raises(CheckpointError, match=r"'model\.norm' has the forward hook"):
        run.train()
    assert run.state.global_step == 0


# ------------------------------------------------- by the same recipe

OTHERS = {
    "other sizes": (
        WIDER,
        widen("ffn", factor=3, init="tile", shares="equal"),
        r"'widen ffn 24 → 48, tile', .* has 'widen ffn 24 → 72, tile'",
    ),
    "other units": (WIDER, widen("ffn", factor=2, init="pad"), r"tile', .* has 'widen ffn 24 → 48, pad"),
    "other layers": (deepen(to=4, order="stack"), deepen(to=4), r"stack, identity', .* has 'deepen .*interleave"),
    "another seed": (
        widen("ffn", factor=2, init="sample", seed=1, shares="equal"),
        widen("ffn", factor=2, init="sample", shares="equal"),
        r"'widen ffn 24 → 48, sample', and the schedule has the same operators with another seed",
    ),
    "one that does not apply": (
        WIDER,
        widen("ffn", to=20, init="tile", shares="equal"),
        r"a recipe that does not apply \(Cannot shrink",
    ),
}


def resumed(folder, recipe, other):
    """A run that has grown by one recipe, and one that resumes from it by another."""
    run = trainer(folder / "run", tiny(), GrowthCallback({1: recipe, 3: WIDER}), save_strategy="steps", save_steps=2)
    run.train()
    checkpoint = folder / "run" / "checkpoint-2"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    again = trainer(folder / "again", model, GrowthCallback({1: other, 3: WIDER}))
    return run, again, lambda: again.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("kind", first_quick(OTHERS))
def test_a_run_that_has_grown_by_another_recipe_is_not_resumed(kind, tmp_path):
    recipe, other, message = OTHERS[kind]
    _, again, train = resumed(tmp_path, recipe, other)
    before = sizes(again.model)
    with pytest.raises(ConfigError, match=f"has grown after 1 steps by .*{message}"):
        train()
    assert sizes(again.model) == before


@pytest.mark.slow
def test_a_recipe_is_the_same_by_what_it_does_and_not_by_how_it_is_written(tmp_path):
    """An operator, a recipe and its file; and what is still to come may change."""
    file = tmp_path / "wider.yaml"
    file.write_text("description: wider\nsteps: [{op: widen, axis: ffn, to: 48, init: tile, shares: equal}]")
    run, again, train = resumed(tmp_path, WIDER, file)
    train()
    assert sizes(again.model) == sizes(run.model) == (96, 2)


@pytest.mark.slow
def test_an_entry_of_a_version_that_did_not_write_the_recipe_is_taken_as_done(tmp_path):
    resumed(tmp_path, WIDER, WIDER)
    path = tmp_path / "run" / "checkpoint-2" / "trainer_state.json"
    state = json.loads(path.read_text())
    for entry in state["log_history"]:
        entry.pop("recipe", None)
    path.write_text(json.dumps(state))
    again = trainer(tmp_path / "again", AutoModelForCausalLM.from_pretrained(path.parent), GrowthCallback({1: DEEPER}))
    again.train(resume_from_checkpoint=str(path.parent))
    assert sizes(again.model) == (48, 2)


# ------------------------------------------------- never


@pytest.mark.parametrize(
    ("schedule", "warned"),
    [
        ({1: WIDER, 9: DEEPER}, ["after 9 steps"]),
        pytest.param(
            [(Moment(tokens=65), WIDER), (Moment(steps=1), DEEPER)],
            ["after 65 tokens", "after 1 steps"],
            marks=pytest.mark.slow,
        ),  # 4 x 2 x 8 tokens
        pytest.param([(Moment(tokens=64), WIDER)], [], marks=pytest.mark.slow),
    ],
    ids=["steps", "tokens, and what waits for them", "as many tokens as there can be"],
)
def test_what_cannot_happen_is_a_warning_at_the_start(tmp_path, schedule, warned, recwarn):
    seen = []

    class First(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append([str(w.message) for w in recwarn if "will not happen" in str(w.message)])

    trainer(tmp_path, tiny(), GrowthCallback(schedule), First()).train()
    assert [text.split(" will")[0].removeprefix("The growth ") for text in seen[0]] == warned
    assert len([w for w in recwarn if "The growth" in str(w.message)]) == len(warned)


def test_what_did_not_happen_is_a_warning_at_the_end(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    run = trainer(tmp_path, tiny(), GrowthCallback({3: WIDER}), Stop())
    with pytest.warns(UserWarning, match="after 3 steps has not happened: this run ended after 1 steps and 16 tokens"):
        run.train()


# ------------------------------------------------- logged


@pytest.mark.parametrize("labels", first_quick([True, False], ids=["labels", "label smoothing takes the labels"]))
def test_a_growth_is_in_the_trainers_log(tmp_path, labels):
    spy = Spy()
    changes = {} if labels else {"label_smoothing_factor": 0.1}
    run = trainer(tmp_path, tiny(), GrowthCallback({2: WIDER}), spy, save_strategy="steps", save_steps=2, **changes)
    run.train()
    numbers = ("num_parameters_before", "num_parameters", "loss_before", "loss_after")
    (entry,) = scheduled(run.state.log_history)
    (logged,) = [logs for logs in spy.logs if "loss_before" in logs]
    assert {key: logged[key] for key in numbers} == {key: entry[key] for key in numbers}
    assert entry["step"] == 2
    assert entry["sizes"] == {"ffn": [24, 48]}
    assert entry["num_parameters"] == run.model.num_parameters() > entry["num_parameters_before"]
    assert entry["loss_after"] == pytest.approx(entry["loss_before"], rel=1e-5)
    assert 2 < entry["loss_before"] < 6
    assert [e["step"] for e in run.state.log_history if "loss" in e] == [1, 2, 3, 4]  # the step's own log is there too
    saved = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert [e for e in saved if "growth" in e] == [entry]


class Appends(Trainer):
    """Writes entries of its own around each."""

    def log(self, logs, start_time=None):
        self.state.log_history.append({"own": 1, "step": -1})
        super().log(logs, start_time)
        self.state.log_history.append({"own": 2, "step": -1})


class Filters(Trainer):
    """Logs the loss of steps only."""

    def log(self, logs, start_time=None):
        super().log({key: value for key, value in logs.items() if key == "loss"}, start_time)


@pytest.mark.parametrize("kind", first_quick([Appends, Filters]))
def test_a_growth_has_an_entry_of_its_own_whatever_a_trainer_logs(tmp_path, kind):
    run = trainer(tmp_path, tiny(), GrowthCallback({2: WIDER}), kind=kind)
    run.train()
    (entry,) = [entry for entry in run.state.log_history if "growth" in entry]
    assert entry["step"] == 2
    assert entry["loss_after"] == pytest.approx(entry["loss_before"], rel=1e-5)
    assert "own" not in entry
    assert entry["num_parameters"] == run.model.num_parameters() > entry["num_parameters_before"]


class Breaks(Trainer):
    """Cannot log a growth, once."""

    def log(self, logs, start_time=None):
        if "num_parameters" in logs and not getattr(self, "has_failed", False):
            self.has_failed = True
            raise ConnectionError("no route to the server of logs")
        super().log(logs, start_time)


def test_a_log_that_fails_leaves_a_model_that_has_grown_once_and_says_so(tmp_path):
    run = trainer(tmp_path, tiny(), GrowthCallback(SCHEDULE), kind=Breaks)
    with pytest.raises(ConnectionError):
        run.train()
    (entry,) = scheduled(run.state.log_history)
    assert (entry["step"], entry["moment"], entry["sizes"]) == (1, "after 1 steps", {"ffn": [24, 48]})
    assert sizes(run.model) == (48, 2)
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.model.parameters()}
    run.train()
    assert sizes(run.model) == (48, 3)
    assert [entry["moment"] for entry in scheduled(run.state.log_history)] == ["after 1 steps", "after 3 steps"]


def test_the_loss_is_measured_without_a_trace(tmp_path):
    """Random state, modes and hooks of a run that measures are those of one that does not."""

    class Silent(GrowthCallback):
        def on_step_begin(self, *args, **kwargs):
            pass

    def states(callback):
        run = trainer(tmp_path, tiny(dropout=0.5), callback)
        run.train()
        parameters = [parameter.detach() for parameter in run.model.parameters()]
        drawn = (torch.get_rng_state(), np.random.get_state()[1], random.getstate())
        modes = [module.training for module in run.model.modules()]
        return parameters, drawn, modes, len(run.model._forward_pre_hooks), scheduled(run.state.log_history)

    (measured, drawn, modes, hooks, entries), (silent, other, others, _, bare) = (
        states(GrowthCallback({2: WIDER})),
        states(Silent({2: WIDER})),
    )
    assert "loss_before" in entries[0]
    assert "loss_before" not in bare[0]
    assert hooks == 0
    assert modes == others
    assert all(map(torch.equal, measured, silent))
    assert torch.equal(drawn[0], other[0])
    assert (drawn[1] == other[1]).all()
    assert drawn[2] == other[2]


# ------------------------------------------------- what else holds the optimizer


@pytest.mark.parametrize("kind", ["sequential", "chained", "one cycle"])
def test_a_scheduler_of_schedulers_goes_on_over_an_optimizer_grown_in_place(kind):
    from torch.optim import lr_scheduler as schedules

    def make(optimizer):
        parts = [schedules.LinearLR(optimizer, 0.1, 1.0, 3), schedules.CosineAnnealingLR(optimizer, 5)]
        if kind == "sequential":
            return schedules.SequentialLR(optimizer, parts, [3])
        return schedules.ChainedScheduler(parts) if kind == "chained" else schedules.OneCycleLR(optimizer, 0.1, 8)

    def rates(grows):
        model = tiny()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler, seen = make(optimizer), []
        for step in range(6):
            model(**{key: value[None] for key, value in rows(1)[0].items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            seen.append(optimizer.param_groups[0]["lr"])
            if grows and step == 2:
                grow_in_place(model, optimizer, WIDER)
        return seen

    assert rates(True) == rates(False)
