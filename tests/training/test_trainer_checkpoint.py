"""A Trainer's checkpoint grows into one from which the real Trainer goes on."""

import json
import pickle
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from typer.testing import CliRunner

import growth
from growth.architectures import architecture
from growth.cli.app import app
from growth.errors import CheckpointError, OptimizerError
from growth.training.parameter_names import parameter_names, parameters_by_file_name
from growth.training.trainer_checkpoint import meta_model, trainer_groups
from tests.support.families import all_cases, random_model
from tests.support.paths import ROOT
from tests.support.selection import first_quick

STEPS, LONGER = 4, 7
EXACT_RECIPE = growth.operators.chain(
    growth.operators.widen("ffn", factor=1.25), growth.operators.widen("heads", factor=2)
)


def data():
    """Windows of this library's own source."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "phi-mini")
    text = "".join(path.read_text() for path in sorted((ROOT / "growth" / "operators").glob("*.py")))
    ids = tokenizer(text, verbose=False)["input_ids"]
    return [{"input_ids": ids[at : at + 32], "labels": ids[at : at + 32]} for at in range(0, 40 * 32, 32)]


def train(model, folder, steps, resume=None, **arguments):
    """A few steps of the real Trainer; returns it."""
    given = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        save_steps=STEPS,
        logging_steps=1,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        seed=0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **arguments,
    )
    trainer = Trainer(model=model, args=given, train_dataset=data())
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder `checkpoint-4` of a run that was stopped."""
    folder = tmp_path_factory.mktemp("run")
    train(load(ROOT / "examples" / "phi-mini"), folder, STEPS)
    return folder / f"checkpoint-{STEPS}"


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def unchanged(run, tmp_path_factory):
    """The losses of the same run, gone on without growing."""
    return losses(train(load(run), tmp_path_factory.mktemp("same"), LONGER, resume=run))


@pytest.mark.filterwarnings("ignore")  # Trainer's own
@pytest.mark.parametrize("recipe", first_quick([EXACT_RECIPE, "phi-mini"], ids=["ffn and heads", "phi-mini"]))
def test_the_run_goes_on_larger(run, unchanged, recipe, tmp_path):
    grown = tmp_path / run.name
    plan = growth.grow_training(recipe, run, grown)
    after = train(load(grown), tmp_path / "larger", LONGER, resume=grown)
    assert after.state.global_step == LONGER
    assert {float(state["step"]) for state in after.optimizer.state.values()} == {float(LONGER)}
    assert len(after.optimizer.state) == len(plan.tensors)
    assert len(losses(after)) == LONGER  # the source's history is the grown model's
    first = abs(losses(after)[STEPS] - unchanged[STEPS])
    assert first < 1e-4  # before its first update: the same function, the same batch
    for ours, theirs in zip(losses(after)[STEPS:], unchanged[STEPS:], strict=True):
        assert abs(ours - theirs) < 0.1


@pytest.mark.filterwarnings("ignore")
def test_the_file_is_what_grow_optimizer_makes(run, tmp_path):
    """The numbers in optimizer.pt are those that Trainer gives the grown model's parameters."""
    growth.grow_training("phi-mini", run, tmp_path / "grown")
    model = load(run)
    trainer = Trainer(model=model, args=TrainingArguments(str(tmp_path / "x"), weight_decay=0.1, report_to=[]))
    optimizer = trainer.create_optimizer()
    optimizer.load_state_dict(torch.load(run / "optimizer.pt", weights_only=True))
    plan = growth.plan("phi-mini", model)
    larger = growth.grow_model(model, plan)
    expected = growth.grow_optimizer(optimizer, model, larger, plan).state_dict()
    found = torch.load(tmp_path / "grown" / "optimizer.pt", weights_only=True)
    assert [group["params"] for group in found["param_groups"]] == [
        group["params"] for group in expected["param_groups"]
    ]
    assert found["state"].keys() == expected["state"].keys()
    for number, values in expected["state"].items():
        for key, value in values.items():
            assert torch.equal(found["state"][number][key], value), (number, key)


def test_the_rest_is_copied_byte_for_byte(run, tmp_path):
    growth.grow_training("phi-mini", run, tmp_path / "grown")
    kept = {"scheduler.pt", "training_args.bin", "rng_state.pth"}
    for name in kept:
        assert (tmp_path / "grown" / name).read_bytes() == (run / name).read_bytes(), name
    names = {path.name for path in (tmp_path / "grown").iterdir()}
    assert names >= kept | {"optimizer.pt", "trainer_state.json", "model.safetensors", "config.json", "growth.json"}


def test_the_command(run, tmp_path):
    arguments = ["grow", "phi-mini", "-s", str(run), "-o", str(tmp_path / "grown"), "--training"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "grown" / "optimizer.pt").is_file()
    refused = CliRunner().invoke(app, [*arguments, "--dtype", "float16"])
    assert refused.exit_code == 2
    assert "leave out --dtype" in refused.output


@pytest.mark.parametrize("family", ["phi", "gpt2", "gpt_neox", "gemma2"])
def test_numbers_are_those_of_trainer(family, tmp_path):
    """On tied and renamed weights too: the names of a meta model, in the order of the real optimizer."""
    case = next(case for case in all_cases() if case.family == family)
    model = random_model(case, torch.float32)
    trainer = Trainer(model=model, args=TrainingArguments(str(tmp_path), report_to=[], use_cpu=True))
    known = architecture(model.config.to_dict()).named_as_in(parameters_by_file_name(model)).shapes()
    meta = meta_model(model.config.to_dict())
    names = parameter_names(model, known)
    assert names == parameter_names(meta, known)
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = [[own[id(p)] for p in group["params"]] for group in trainer.create_optimizer().param_groups]
    assert trainer_groups(meta, names) == expected


class Harmful:
    """Unpickled by a careless reader, it would run."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code from a file was run')",)


def altered(run, folder, change):
    """A copy of the run with another optimizer.pt."""
    shutil.copytree(run, folder)
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "optimizer.pt")
    return folder


REFUSED = {
    "another optimizer": (
        lambda s: [group.pop("betas") for group in s["param_groups"]],
        "only the state of torch.optim's",
    ),
    "other groups": (lambda s: s["state"].pop(s["param_groups"][1]["params"].pop()), "and Trainer makes"),
    "another memory": (lambda s: s["state"][0].update(state1=torch.zeros(2)), "keeps 'state1'"),
    "another shape": (lambda s: s["state"][0].update(exp_avg=torch.zeros(2)), "has shape"),
    "another parameter": (lambda s: s["state"].update({999: s["state"][0]}), "parameter 999"),
    "no groups": (lambda s: s.pop("param_groups"), "not an optimizer's state_dict"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_strange_state_is_refused_before_anything_is_written(run, tmp_path, why):
    change, message = REFUSED[why]
    source = altered(run, tmp_path / "source", change)
    with pytest.raises((OptimizerError, CheckpointError), match=message):
        growth.grow_training("phi-mini", source, tmp_path / "out" / "grown")
    assert not (tmp_path / "out").exists()


def test_files_that_would_run_code_are_refused(run, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(run, source)
    torch.save({"state": Harmful(), "param_groups": []}, source / "optimizer.pt")
    with pytest.raises(CheckpointError, match="more than tensors and numbers"):
        growth.grow_training("phi-mini", source, tmp_path / "grown")
    (source / "optimizer.pt").write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match="more than tensors and numbers, or is damaged"):
        growth.grow_training("phi-mini", source, tmp_path / "grown")
    (source / "optimizer.pt").unlink()
    (source / "training_args.bin").write_bytes(pickle.dumps(Harmful()))  # copied, never read
    with pytest.raises(CheckpointError, match=r"has no optimizer\.pt"):
        growth.grow_training("phi-mini", source, tmp_path / "grown")


def test_the_history_goes_along(run, tmp_path):
    growth.grow_training("phi-mini", run, tmp_path / "grown", fresh="zero")
    assert json.loads((tmp_path / "grown" / "trainer_state.json").read_text())["global_step"] == STEPS
    state = torch.load(tmp_path / "grown" / "optimizer.pt", weights_only=True)
    members = sum(len(group["params"]) for group in state["param_groups"])
    assert 0 < len(state["state"]) < members  # new layers begin at step 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rates": {"old": 0.5}}, "The learning rates (old × 0.5) of that stage end with this growth"),
        ({"rewarm": {"steps": STEPS, "of": "new"}}, f"The second warm-up over {STEPS} steps of that stage end"),
        ({"rewarm": {"steps": 1, "of": "new"}}, ""),
        pytest.param({}, "", marks=pytest.mark.slow),
        pytest.param({"rates": [1], "rewarm": {"steps": "x"}}, "", marks=pytest.mark.slow),
    ],
)
def test_rates_of_a_stage_that_end_with_the_growth_are_noted(changed, said, run, tmp_path):
    source = shutil.copytree(run, tmp_path / "source")
    state = json.loads((source / "trainer_state.json").read_text())
    entry = {"growth": "deepen", "moment": "after 1 steps", "step": 1, "num_parameters": 1, **changed}
    state["log_history"] = [5, entry]
    (source / "trainer_state.json").write_text(json.dumps(state))
    plan = growth.grow_training("phi-mini", source, tmp_path / "grown")
    notes = [note for note in plan.notes if "stage of its schedule" in note]
    assert len(notes) == bool(said)
    assert all(said in note and "that began after 1 steps" in note for note in notes)
    assert growth.verify_weights(source, tmp_path / "grown").passed
