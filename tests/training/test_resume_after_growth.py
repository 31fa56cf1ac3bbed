"""A run that resumes after a growth is the run that never stopped, bit for bit, however the model grew.

On tied models with dropout, with the optimizers that a Trainer offers of those that can grow.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

import growth
from growth.operators import chain, deepen, widen
from growth.training.trainer_callback import GrowthCallback
from tests.support.trainers import tiny, trainer

EVERYTHING = chain(
    widen("residual", factor=2, init="tile", shares="equal"),
    widen("ffn", factor=2, init="tile", shares="equal"),
    deepen(to=3),
)
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


def run(folder, model, optim, *callbacks, resume=None, **changes):
    arguments = {"optim_args": "momentum=0.9"} if optim == "sgd" else {}
    arguments |= {"optim": optim, "weight_decay": 0.1, "save_strategy": "steps", "save_steps": 1, **changes}
    it = trainer(folder, model, *callbacks, **arguments)
    it.train(resume_from_checkpoint=resume and str(resume))
    return it


def same(a, b):
    """Whether two runs have the same parameters and optimizer state, bit for bit."""
    for name, parameter in a.model.named_parameters():
        assert torch.equal(parameter, b.model.get_parameter(name)), name
    one, other = a.optimizer.state_dict(), b.optimizer.state_dict()
    assert [group["params"] for group in one["param_groups"]] == [group["params"] for group in other["param_groups"]]
    assert one["state"].keys() == other["state"].keys()
    for number, entry in one["state"].items():
        for key, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other["state"][number][key])), (number, key)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("optim", [*OPTIMIZERS[:1], *(pytest.param(o, marks=pytest.mark.slow) for o in OPTIMIZERS[1:])])
def test_a_callbacks_checkpoint_resumes_as_the_run_that_never_stopped(optim, tmp_path):
    whole = run(tmp_path / "whole", tiny(0.1), optim, GrowthCallback({2: EVERYTHING}))
    for step in (1, 2, 3):
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = run(tmp_path / str(step), load(checkpoint), optim, GrowthCallback({2: EVERYTHING}), resume=checkpoint)
        same(whole, resumed)


@pytest.mark.parametrize(
    "optim", [*(pytest.param(o, marks=pytest.mark.slow) for o in OPTIMIZERS[:-1]), *OPTIMIZERS[-1:]]
)
def test_a_grown_folder_resumes_as_the_run_that_grew_in_memory(optim, tmp_path):
    whole = run(tmp_path / "whole", tiny(0.1), optim, GrowthCallback({2: EVERYTHING}))
    run(tmp_path / "small", tiny(0.1), optim)
    grown = tmp_path / "grown" / "checkpoint-2"
    growth.grow_training(EVERYTHING, tmp_path / "small" / "checkpoint-2", grown)
    resumed = run(tmp_path / "resumed", load(grown), optim, resume=grown)
    same(whole, resumed)


def test_a_folder_grown_on_the_command_line_resumes_under_a_callback(tmp_path):
    """Its history knows the growth, so the callback does not take the model for another one."""
    first, second = (
        {1: widen("ffn", factor=2, init="tile", shares="equal")},
        {1: widen("ffn", factor=2, init="tile", shares="equal"), 3: deepen(to=4)},
    )
    run(tmp_path / "run", tiny(), "adamw_torch", GrowthCallback(first))
    grown = tmp_path / "grown" / "checkpoint-2"
    growth.grow_training(deepen(to=3), tmp_path / "run" / "checkpoint-2", grown)
    resumed = run(tmp_path / "resumed", load(grown), "adamw_torch", GrowthCallback(second), resume=grown)
    assert resumed.model.config.num_hidden_layers == 4
    history = [(entry["step"], entry["sizes"]) for entry in resumed.state.log_history if "growth" in entry]
    assert history == [(1, {"ffn": [24, 48]}), (2, {"layers": [2, 3]}), (3, {"layers": [3, 4]})]


def test_the_best_checkpoint_of_a_smaller_model_is_forgotten(tmp_path):
    """Else a Trainer would load it into the larger model when it ends."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}

    def evaluating(folder, model, resume=None):
        it = trainer(folder, model, save_strategy="steps", save_steps=1, learning_rate=1.0, **evaluated)
        it.train(resume_from_checkpoint=resume)
        return it

    small = evaluating(tmp_path / "small", tiny())
    assert small.state.best_model_checkpoint
    grown = tmp_path / "grown" / "checkpoint-3"
    growth.grow_training(EVERYTHING, tmp_path / "small" / "checkpoint-3", grown)
    larger = evaluating(tmp_path / "larger", load(grown), resume=str(grown))
    assert larger.state.global_step == 4
    assert larger.model.config.num_hidden_layers == 3
