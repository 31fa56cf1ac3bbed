"""The training state of a model whose head is untied from its embedding, or tied to it."""

import pytest
import torch

import growth
from growth.errors import OptimizerError
from growth.operators import chain, deepen, retie, untie, widen
from growth.training.moments import grow_gradients, step_scales
from growth.training.parameter_names import parameters_by_file_name
from tests.support.families import all_cases, random_model, table, typical
from tests.support.models import tokens
from tests.support.optimizers import backward, both, error, trained
from tests.support.selection import one_of_each

EXACT = 1e-10  # relative error of a gradient in float64
TIED = [case for case in all_cases() if table(case).tied and "experts" not in table(case).axes]
FIRST = [(case,) for case in {case.family: case for case in reversed(TIED)}.values()]  # of each family
EVERY_FAMILY = pytest.mark.parametrize("case", one_of_each(FIRST, typical, ids=lambda case: case.name))
OPTIMIZERS = {
    "AdamW": lambda parameters, lr=1e-3: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1),
    "SGD": lambda parameters, lr=1e-3: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
}


def gradients(model):
    backward(model)
    return {name: p.grad.clone() for name, p in parameters_by_file_name(model).items() if p.grad is not None}


def matrices(plan):
    """The names of the embedding and of the head in the untied model."""
    embedding = plan.target.embedding
    copies = [row.target for row in plan.tensors if row.source.name == plan.stored.embedding]
    (head,) = {*copies} - {embedding}
    return embedding, head


@EVERY_FAMILY
def test_the_gradients_of_embedding_and_head_add_up_to_that_of_the_tied_matrix(case):
    model = random_model(case)
    plan, untied = both(model, untie())
    before, after = gradients(model), gradients(untied)
    embedding, head = matrices(plan)
    assert error(after[embedding] + after[head], before[embedding]) <= EXACT
    assert after[embedding].any()
    assert after[head].any()
    predicted = grow_gradients(before, plan)
    for name in after.keys() - {embedding, head}:
        assert error(predicted[name], after[name]) <= EXACT, name
    # and tied again
    plan, tied = both(untied, retie())
    predicted, found = grow_gradients(after, plan), gradients(tied)
    # without what no text reaches, such as what takes audio
    for name in plan.target.shapes().keys() & (found.keys() | predicted.keys()):
        assert error(predicted[name], found[name]) <= EXACT, name


def test_other_gradients_of_an_untied_and_wider_model_grow_by_the_dual_map():
    model = random_model(next(case for case in TIED if case.name == "llama, tied"))
    wider = widen("residual", factor=2, init="tile", shares="equal")
    plan, larger = both(model, chain(untie(), wider, deepen(to=4)))
    predicted, found = grow_gradients(gradients(model), plan), gradients(larger)
    embedding, head = matrices(plan)
    for row in plan.tensors:
        if row.target not in (embedding, head) and not row.new_layer:
            assert error(predicted[row.target], found[row.target]) <= EXACT, row.target
    assert step_scales(plan)[embedding] == 1
    assert step_scales(plan)[head] == 0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
@EVERY_FAMILY
def test_what_the_optimizer_remembers_moves_both_matrices_as_it_would_have_moved_the_one(case, name):
    """A step of momentum alone, then untie, equals untie, then that step: both parts get the state in full."""
    model = random_model(case)
    optimizer = trained(model, OPTIMIZERS[name])
    plan, untied = both(model, untie())
    grown = growth.grow_optimizer(optimizer, model, untied, plan)
    parameters = parameters_by_file_name(untied)
    embedding, head = (grown.state[parameters[name]] for name in matrices(plan))
    assert embedding.keys() == head.keys() == next(iter(optimizer.state.values())).keys()
    assert all(torch.equal(embedding[key], head[key]) for key in embedding)
    for stepped, of in ((optimizer, model), (grown, untied)):
        for parameter in of.parameters():
            parameter.grad = torch.zeros_like(parameter)
        stepped.step()
    _, expected = both(model, untie())
    for name, parameter in expected.named_parameters():
        assert error(untied.get_parameter(name).detach(), parameter.detach()) < 1e-15, name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_a_head_that_is_tied_is_added_to_the_embeddings(name):
    """As if the two had been one: what is remembered of gradients is their sum, and of their squares at most twice."""
    tied = random_model(next(case for case in TIED if case.name == "gemma, tied"))
    _, model = both(tied, untie())
    still = lambda parameters: OPTIMIZERS[name](parameters, lr=0.0)  # noqa: E731 (the two matrices stay equal)
    expected, optimizer = trained(tied, still), trained(model, still)
    plan, again = both(model, retie())
    grown = growth.grow_optimizer(optimizer, model, again, plan)
    old, new = parameters_by_file_name(tied), parameters_by_file_name(again)
    for target in plan.target.shapes():
        before, after = expected.state[old[target]], grown.state[new[target]]
        assert before.keys() == after.keys()
        for key, value in after.items():
            if key == "exp_avg_sq" and target == plan.target.embedding:
                assert (value >= before[key] / 2 - 1e-30).all()
                assert error(value, before[key]) < 0.5
            else:
                assert error(value, before[key]) < EXACT, (target, key)


def test_a_damaged_state_of_the_head_is_named():
    tied = random_model(next(case for case in TIED if case.name == "llama, tied"))
    _, model = both(tied, untie())
    optimizer = trained(model, lambda parameters: OPTIMIZERS["AdamW"](parameters, lr=0.0))
    plan, again = both(model, retie())
    optimizer.state[model.lm_head.weight]["exp_avg"][0, 0] = float("nan")
    with pytest.raises(OptimizerError, match=r"'exp_avg' of 'lm_head.weight' holds NaN"):
        growth.grow_optimizer(optimizer, model, again, plan)
    del optimizer.state[model.lm_head.weight]  # never stepped: the embedding's state alone
    grown = growth.grow_optimizer(optimizer, model, again, plan)
    old, new = optimizer.state[model.model.embed_tokens.weight], grown.state[again.model.embed_tokens.weight]
    assert torch.equal(old["exp_avg"], new["exp_avg"])


@pytest.mark.filterwarnings("ignore")  # the same model on the meta device
def test_folders_of_the_trainer_are_untied_and_tied(tmp_path):
    model = random_model(next(case for case in TIED if case.name == "llama, tied"), torch.float32)
    pairs = list(model.named_parameters())
    groups = [[p for _, p in pairs if p.ndim > 1], [p for _, p in pairs if p.ndim == 1]]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=0.0)
    ids = tokens(model.config.vocab_size)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "checkpoint-1")
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint-1" / "optimizer.pt")
    growth.grow_training(untie(), tmp_path / "checkpoint-1", tmp_path / "untied")
    untied = torch.load(tmp_path / "untied" / "optimizer.pt")
    assert [len(group["params"]) for group in untied["param_groups"]] == [len(groups[0]) + 1, len(groups[1])]
    embedding, head = untied["state"][0], untied["state"][len(groups[0])]
    assert torch.equal(embedding["exp_avg"], optimizer.state[model.lm_head.weight]["exp_avg"])
    assert torch.equal(embedding["exp_avg"], head["exp_avg"])
    growth.grow_training(retie(), tmp_path / "untied", tmp_path / "tied")
    tied = torch.load(tmp_path / "tied" / "optimizer.pt")
    assert tied["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(tied["state"][0]["exp_avg"], 2 * embedding["exp_avg"])
    assert growth.verify_weights(tmp_path / "untied", tmp_path / "tied", retie()).passed
