"""Optimizer states in folders of torch.distributed.checkpoint: what else is in the folder, and how groups are stored."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import growth
from growth import CheckpointError, GrowReader, OptimizerError
from growth.distributed.grow_reader import empty_model, materialise
from growth.operators import chain, deepen, widen
from tests.support.trainers import tiny

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

RECIPE = chain(widen("ffn", factor=2, init="tile"), deepen(to=3))
NESTED, FLAT = StateDictOptions(), StateDictOptions(flatten_optimizer_state_dict=True)


def adamw(model, decay=0.1, rate=1e-2):
    """AdamW with matrices and vectors in two groups, in `foreach=False`, which a tensor as learning rate needs."""
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is kind] for kind in (True, False))
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, foreach=False)


def step(model, optimizer):
    draws = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draws)
    optimizer.step()


@pytest.fixture
def source(tmp_path):
    """A model in a folder."""
    model = tiny()
    model.save_pretrained(tmp_path / "model")
    return model


def trained(model, **options):
    """An optimizer with a state, whose model has still the weights of the folder."""
    optimizer = adamw(model, **options)
    draws = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        moments = (torch.randn(parameter.shape, generator=draws), torch.rand(parameter.shape, generator=draws))
        optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": moments[0], "exp_avg_sq": moments[1]}
    return optimizer


def loaded(tmp_path, store, make, options):
    """An optimizer over the grown model, with the state that a reader grows of the stored one."""
    reader = GrowReader(tmp_path / "model", RECIPE, optimizer=store)
    model = materialise(empty_model(reader.config), "cpu")
    dcp.load(weights := model.state_dict(), storage_reader=reader)
    model.load_state_dict(weights)
    optimizer = make(model)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.load(state, storage_reader=reader)
    set_optimizer_state_dict(model, optimizer, state, options=options)
    return model, optimizer


def grown(model, optimizer):
    """The same in memory."""
    plan = growth.plan(RECIPE, model)
    larger = growth.grow_model(model, plan)
    return larger, growth.grow_optimizer(optimizer, model, larger, plan)


def same_after_a_step(one, other):
    for model, optimizer in (one, other):
        step(model, optimizer)
    return all(map(torch.equal, one[0].parameters(), other[0].parameters()))


@pytest.mark.parametrize("options", [NESTED, FLAT], ids=["nested", "flat"])
@pytest.mark.parametrize("rate", [1e-2, torch.tensor(1e-2)], ids=["number", "tensor"])
def test_learning_rates_are_numbers_or_tensors_in_either_make(source, tmp_path, rate, options):
    optimizer = trained(source, rate=rate)
    dcp.save(get_optimizer_state_dict(source, optimizer, options=options), checkpoint_id=tmp_path / "state")
    found = loaded(tmp_path, tmp_path / "state", lambda model: adamw(model, rate=rate), options)
    assert same_after_a_step(found, grown(source, optimizer))


def test_what_is_not_an_optimizers_state_does_not_mix_with_it(source, tmp_path):
    """Averages of the state under the same names, saved before and after it."""
    optimizer = trained(source)
    state = get_optimizer_state_dict(source, optimizer)
    other = {name: {key: 0 * value for key, value in entry.items()} for name, entry in state["state"].items()}
    content = {"average": {"state": other}, "optim": state, "shadow": {"state": other}}
    dcp.save(content, checkpoint_id=tmp_path / "state")
    assert same_after_a_step(loaded(tmp_path, tmp_path / "state", adamw, NESTED), grown(source, optimizer))


@pytest.mark.parametrize("options", [NESTED, FLAT], ids=["nested", "flat"])
def test_of_two_optimizers_none_is_taken(source, tmp_path, options):
    states = [get_optimizer_state_dict(source, trained(source, decay=decay), options=options) for decay in (0.1, 0.2)]
    dcp.save({"one": states[0], "other": states[1]}, checkpoint_id=tmp_path / "state")
    with pytest.raises(CheckpointError, match=r"several optimizers, in 'one\.param_groups' and 'other\.param_groups'"):
        GrowReader(tmp_path / "model", RECIPE, optimizer=tmp_path / "state")


def test_groups_with_equal_options_load_as_they_were_saved(source, tmp_path):
    """A flattened state does not say how it divides parameters with equal options."""
    optimizer = trained(source, decay=0.0)
    dcp.save(get_optimizer_state_dict(source, optimizer, options=FLAT), checkpoint_id=tmp_path / "state")

    def make(model):
        return adamw(model, decay=0.0)

    found = loaded(tmp_path, tmp_path / "state", make, FLAT)
    assert same_after_a_step(found, grown(source, optimizer))
    with pytest.raises(dcp.api.CheckpointException) as caught:
        loaded(tmp_path, tmp_path / "state", make, NESTED)
    ((failure, _),) = caught.value.failures.values()
    assert isinstance(failure, OptimizerError)
    assert "StateDictOptions(flatten_optimizer_state_dict=True)" in str(failure)


def test_names_of_a_compiled_model_are_refused_with_the_folder_and_the_reason(source, tmp_path):
    state = get_optimizer_state_dict(source, trained(source))
    compiled = {
        "state": {f"_orig_mod.{name}": entry for name, entry in state["state"].items()},
        "param_groups": [
            {**group, "params": [f"_orig_mod.{name}" for name in group["params"]]} for group in state["param_groups"]
        ],
    }
    dcp.save(compiled, checkpoint_id=tmp_path / "state")
    with pytest.raises(OptimizerError, match=rf"{tmp_path / 'state'} names .*is of torch\.compile"):
        GrowReader(tmp_path / "model", RECIPE, optimizer=tmp_path / "state")


@pytest.mark.parametrize("make", ["folder", "file"])
def test_8_bit_state_is_refused_with_its_reason(source, tmp_path, make):
    state = get_optimizer_state_dict(source, trained(source))
    state["state"] = {
        name: {"step": entry["step"], "state1": torch.zeros(4, dtype=torch.uint8), "absmax1": torch.ones(1)}
        for name, entry in state["state"].items()
    }
    if make == "folder":
        dcp.save(state, checkpoint_id=tmp_path / "state")
    else:
        torch.save(state, tmp_path / "state")
    with pytest.raises(OptimizerError, match=r"8-bit state .* one scale for each block .* Start a new optimizer"):
        GrowReader(tmp_path / "model", RECIPE, optimizer=tmp_path / "state")
