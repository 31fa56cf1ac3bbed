"""A real Trainer grows its model: the loss goes on, and a run that resumes is the run that never stopped."""

import random
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import growth
from growth.errors import ConfigError, OptimizerError, RecipeError
from growth.operators import deepen, widen
from growth.planning.manifest import manifest
from growth.training.in_place import grow_in_place
from growth.training.schedule import Moment
from growth.training.trainer_callback import GrowthCallback
from growth.training.trainer_history import scheduled
from growth.training.value_kinds import OLD, tensor_kinds
from tests.support.models import random_phi, tokens

ROWS, LENGTH = 4, 32


@pytest.fixture(scope="module")
def text(phi_mini):
    """Rows of tokens of Python's own sources."""
    ids = AutoTokenizer.from_pretrained(phi_mini)(Path(random.__file__).read_text(), verbose=False)["input_ids"]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)[: 16 * ROWS]
    assert len(rows) == 16 * ROWS
    return [{"input_ids": row, "labels": row} for row in rows]


def source(phi_mini):
    return AutoModelForCausalLM.from_pretrained(phi_mini, dtype=torch.float32, attn_implementation="eager")


def trainer(folder, model, text, callback, **changes):
    options = {
        "max_steps": 9,
        "per_device_train_batch_size": ROWS,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "save_steps": 2,
        "use_cpu": True,
        "seed": 0,
        "report_to": "none",
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "all",
        "dataloader_pin_memory": False,
        **changes,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(folder, **options),
        train_dataset=text,
        callbacks=[callback] if callback else [],
    )


def losses(run):
    return {entry["step"]: entry["loss"] for entry in run.state.log_history if "loss" in entry}


def rates(run):
    return {entry["step"]: entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry}


def steps(run):
    inner = run.optimizer.optimizer
    return {int(state["step"]) for state in inner.state.values()}


SCHEDULE = {3: "double-depth", 6: widen("ffn", factor=1.25, shares="random", init="tile")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, phi_mini, text):
    """A run that grows twice, and its folder of checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(folder, source(phi_mini), text, GrowthCallback(SCHEDULE))
    run.train()
    return run, folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, phi_mini, text):
    """The same run without growth."""
    run = trainer(tmp_path_factory.mktemp("plain"), source(phi_mini), text, None)
    run.train()
    return run


def test_the_model_grows_and_the_trainer_goes_on(whole, plain):
    run, _ = whole
    config = run.model.config
    assert (config.num_hidden_layers, config.intermediate_size) == (12, 640)
    assert [entry["step"] for entry in scheduled(run.state.log_history)] == [3, 6]
    assert scheduled(run.state.log_history)[-1]["num_parameters"] == run.model.num_parameters()
    assert steps(run) == {9}
    assert rates(run) == rates(plain)
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.model.parameters()}
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.1, 0.0]
    decayed = {id(p) for p in run.optimizer.param_groups[0]["params"]}
    names = run.get_decay_parameter_names(run.model)
    assert decayed == {id(p) for name, p in run.model.named_parameters() if name in names}


def test_the_loss_is_continuous(whole, plain):
    """The first batch after a growth has the loss that it has without; later ones differ, but not by much."""
    run, _ = whole
    grown, alone = losses(run), losses(plain)
    for step in (1, 2, 3, 4):
        assert grown[step] == pytest.approx(alone[step], rel=1e-4)
    assert grown[5] != pytest.approx(alone[5], rel=1e-6)
    for step in range(5, 10):
        assert grown[step] == pytest.approx(alone[step], rel=0.05)


@pytest.mark.slow
def test_the_same_batch_has_the_same_loss_before_and_after_each_growth(phi_mini, text, tmp_path):
    seen = []

    class Watched(GrowthCallback):
        def on_step_end(self, args, state, control, *, model, **kwargs):
            ids = torch.stack([row["input_ids"] for row in text[:4]])
            loss = lambda: float(model(input_ids=ids, labels=ids).loss.detach())  # noqa: E731
            before, size = loss(), model.num_parameters()
            super().on_step_end(args, state, control, model=model, **kwargs)
            if model.num_parameters() != size:
                seen.append((before, loss()))

    run = trainer(
        tmp_path, source(phi_mini), text, Watched({1: "phi-mini", 2: "double-both"}), max_steps=3, save_steps=9
    )
    run.train()
    assert len(seen) == 2
    for before, after in seen:
        assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize(
    "step", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 6, 8]
)
def test_a_resumed_run_is_the_run_that_never_stopped(whole, text, tmp_path, step):
    run, folder = whole
    checkpoint = folder / f"checkpoint-{step}"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
    again = trainer(tmp_path, model, text, GrowthCallback(SCHEDULE), save_steps=100)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert losses(again) == losses(run)
    assert [entry["step"] for entry in scheduled(again.state.log_history)] == [3, 6]
    for name, parameter in run.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), parameter), name


@pytest.mark.slow
def test_by_tokens(phi_mini, text, tmp_path):
    schedule = [(Moment(tokens=2 * ROWS * LENGTH), "double-depth"), (Moment(steps=3), deepen(to=13))]
    run = trainer(tmp_path, source(phi_mini), text, GrowthCallback(schedule), max_steps=4, save_steps=9)
    run.train()
    assert [(entry["step"], entry["moment"]) for entry in scheduled(run.state.log_history)] == [
        (2, "after 256 tokens"),
        (3, "after 3 steps"),
    ]
    assert run.model.config.num_hidden_layers == 13


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": True},
        pytest.param({"activation_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param({"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        pytest.param({"optim": "sgd"}, marks=pytest.mark.slow),
        pytest.param({"lr_scheduler_type": "cosine", "max_grad_norm": 0.0}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: " ".join(changes),
)
def test_with_other_arguments(text, tmp_path, changes):
    """On a small random model: the first loss after the growth is that of the run that does not grow."""

    def run(callback, model, **more):
        it = trainer(tmp_path, model, text, callback, max_steps=4, save_strategy="no", **changes, **more)
        it.train()
        return it

    small, model = (random_phi(torch.float32, vocab_size=2048) for _ in range(2))
    alone, grown = run(None, small), run(GrowthCallback({2: "double-depth"}), model)
    assert grown.model is model
    assert model.config.num_hidden_layers == 6
    assert model.is_activation_checkpointing == changes.get("activation_checkpointing", False)
    assert losses(grown)[3] == pytest.approx(losses(alone)[3], rel=2e-2 if changes.get("bf16") else 1e-4)
    assert losses(grown)[4] != pytest.approx(losses(alone)[4], rel=1e-7)
    if changes.get("bf16"):
        assert model.forward.__func__ is not type(model).forward
    assert grown.evaluate(text[:4])["eval_loss"] > 0


def test_what_was_frozen_stays_frozen_and_hooks_stay():
    model = random_phi()
    model.model.embed_tokens.requires_grad_(False)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    grow_in_place(model, optimizer, widen("ffn", factor=2, init="tile", shares="equal"))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]
    model(input_ids=tokens())
    assert calls
    assert model.generate(tokens(), max_new_tokens=2, do_sample=False).shape == (2, 14)


def test_a_growth_that_is_refused_changes_nothing():
    model = random_phi()
    optimizer = torch.optim.AdamW(model.parameters())
    held = list(model.parameters())
    with pytest.raises(RecipeError):
        grow_in_place(model, optimizer, widen("ffn", to=1, init="tile", shares="equal"))
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))


# ------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"torch_compile": True}, "with torch_compile"),
        ({"neftune_noise_alpha": 5.0}, "with neftune_noise_alpha"),
        ({"auto_find_batch_size": True}, "with auto_find_batch_size"),
        ({"load_best_model_at_end": True, "save_strategy": "no"}, "load_best_model_at_end may"),
        ({"include_num_input_tokens_seen": "no"}, "A schedule by tokens or FLOPs needs"),
    ],
)
def test_arguments_that_are_refused(phi_mini, text, tmp_path, changes, said):
    callback = GrowthCallback([(Moment(tokens=1), "double-depth")])
    run = trainer(tmp_path, random_phi(torch.float32), text, callback, **{"eval_strategy": "no", **changes})
    with pytest.raises(ConfigError, match=said):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model, optimizer=run.create_optimizer())


@pytest.mark.parametrize("mode", ["several processes", "DataParallel", "FSDP", "DeepSpeed"])
def test_parallel_runs_are_refused(monkeypatch, tmp_path, text, mode):
    from transformers.training_args import ParallelMode

    run = trainer(tmp_path, random_phi(torch.float32), text, None)
    found = {"several processes": ParallelMode.DISTRIBUTED, "DataParallel": ParallelMode.NOT_DISTRIBUTED}
    monkeypatch.setattr(TrainingArguments, "parallel_mode", found.get(mode, ParallelMode.DISTRIBUTED))
    if mode == "FSDP":
        run.args.fsdp = "full_shard"
    if mode == "DeepSpeed":
        run.args.deepspeed = "ds.json"
    with pytest.raises(
        ConfigError, match=rf"run with {mode}.*growth grow RECIPE --source CHECKPOINT --output LARGER --training"
    ):
        GrowthCallback({1: "double-depth"}).on_train_begin(
            run.args, run.state, run.control, model=run.model, optimizer=run.create_optimizer()
        )


def test_an_impossible_schedule_stops_training_at_its_beginning(text, tmp_path):
    """The second growth does not fit what the first one makes."""
    callback = GrowthCallback(
        {1: widen("ffn", to=96, init="tile", shares="equal"), 2: widen("ffn", to=90, init="tile", shares="equal")}
    )
    model = random_phi(torch.float32)
    run = trainer(tmp_path, model, text, callback)
    with pytest.raises(RecipeError, match="90"):
        run.train()
    assert run.state.global_step == 0
    with pytest.raises(OptimizerError, match="RMSprop"):
        trainer(tmp_path, model, text, GrowthCallback({1: "double-depth"}), optim="rmsprop").train()


def test_a_resumed_run_must_have_its_own_schedule_and_size(whole, phi_mini, text, tmp_path):
    _, folder = whole
    checkpoint = folder / "checkpoint-8"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    run = trainer(tmp_path, model, text, GrowthCallback({5: "double-depth"}))
    with pytest.raises(
        ConfigError, match="has grown after 3 steps, after 6 steps, and this schedule says after 5 steps"
    ):
        run.train(resume_from_checkpoint=str(checkpoint))
    callback = GrowthCallback(SCHEDULE)
    run = trainer(tmp_path, model, text, callback)
    run.state.log_history = [{"growth": "", "moment": "after 3 steps", "num_parameters": 1}]
    with pytest.raises(ConfigError, match=r"Build it as large as the checkpoint: from_pretrained\(checkpoint\)"):
        callback.on_train_begin(run.args, run.state, run.control, model=model, optimizer=run.create_optimizer())


def test_a_moment_is_steps_or_tokens():
    for moment in ({}, {"steps": 1, "tokens": 1}, {"steps": 0}):
        with pytest.raises(ConfigError, match="Invalid schedule entry"):
            Moment(**moment)
    with pytest.raises(ConfigError, match=r"write Moment\(share=0.5\)"):
        Moment(steps=0.5)


def test_a_trainer_takes_parameter_groups_with_the_old_at_rest(text, tmp_path):
    model = random_phi(torch.float32, vocab_size=2048)
    plan = growth.plan("double-both", model)
    larger = growth.grow_model(model, plan)
    groups = growth.param_groups(larger, plan, lr=1e-3, weight_decay=0.1, old=0)
    before = {name: p.detach().clone() for name, p in larger.named_parameters()}
    run = trainer(tmp_path, larger, text, None, max_steps=3, save_strategy="no")
    run.optimizer = torch.optim.AdamW(groups)
    run.train()
    moved = 0
    for name, kinds in tensor_kinds(manifest(plan, {}, {})).items():
        old = torch.from_numpy(reduce(np.maximum.outer, kinds) == OLD)
        now = larger.get_parameter(name).detach()
        assert torch.equal(now[old], before[name][old]), name
        moved += int((now != before[name]).sum())
    assert moved > 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("duble-width", r"The growth after 5 steps: No recipe file .*Did you mean 'double-width'\?"),
        ([{"op": "wdn", "axis": "ffn", "factor": 2}], r"The growth after 5 steps: .*Did you mean 'widen'\?"),
        ({"step": [{"op": "deepen", "factor": 2}]}, r"The growth after 5 steps: .*unknown key 'step'"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused_by_the_constructor(recipe, message):
    with pytest.raises(RecipeError, match=message):
        GrowthCallback({2: "double-depth", 5: recipe})
