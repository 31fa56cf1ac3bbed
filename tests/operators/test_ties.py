"""untie and retie: a head of its own for a tied model, one matrix for equal ones, the function kept."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import growth
from growth import CheckpointError, RecipeError
from growth.distributed.grow_reader import GrowReader, empty_model, materialise
from growth.operators import chain, deepen, retie, untie, upcycle, widen
from tests.support.families import all_cases, random_model, steps_of, table, typical
from tests.support.folders import bytes_of, state
from tests.support.models import EXACT, grown, relative_error, save
from tests.support.selection import one_of_each

CASES = {case.name: case for case in all_cases()}
TIED = [case for case in CASES.values() if table(case).tied]
FAMILIES = {case.family: case for case in reversed(TIED)}  # the first case of each
DENSE = [case for case in FAMILIES.values() if case.family in ("llama", "mistral", "qwen2", "qwen3")]


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


EVERY_TIED = pytest.mark.parametrize(
    "case", one_of_each([(case,) for case in TIED], typical, ids=lambda case: case.name)
)


def stream(case, *, tied):
    """The axis of the residual stream, with a tied head or with one of its own."""
    return table(case).with_head(tied=tied).axes["residual"]


def needs_untying(case):
    """Whether the stream grows only with a head of its own."""
    return bool(stream(case, tied=True).refusal) and not stream(case, tied=False).refusal


def wider(case):
    """Operators that widen a model's stream where it can grow, and its tokens, and make it deeper where it can be."""
    init = "tile" if stream(case, tied=True).equal_copies else None
    steps = () if stream(case, tied=False).refusal else steps_of(case, "residual")
    widths = [widen(axis, to=to, init=init) for axis, to in steps]
    return [*widths, widen("vocab", to=70), *([] if "layers" in case.refused else [deepen(to=4)])]


def matrices(model):
    """The embedding and the head, or the projection's output matrix where there is one, as parameters."""
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@EVERY_TIED
def test_an_untied_head_is_a_copy_of_the_embedding(case):
    model = random_model(case)
    untied = grown(model, untie())
    embedding, head = matrices(untied)
    assert embedding is not head
    assert embedding.data_ptr() != head.data_ptr()
    assert torch.equal(embedding, head)
    assert untied.config.tie_word_embeddings is False
    assert relative_error(model, untied) == 0
    tied = grown(untied, retie())
    assert matrices(tied)[0] is matrices(tied)[1]
    assert tied.config.tie_word_embeddings is True
    assert relative_error(model, tied) == 0


@by_name([case for case in CASES.values() if table(case).head_bias != table(case).with_head(tied=True).head_bias])
def test_the_bias_of_the_logits_is_the_one_that_takes_part_in_them(case):
    """BERT's head has two of them where it is a matrix of its own."""
    model = random_model(case)
    embedding, head = matrices(model)
    with torch.no_grad():
        head.copy_(embedding)
    assert relative_error(model, grown(model, retie())) == 0


@EVERY_TIED
def test_untie_joins_any_chain(case):
    model, steps = random_model(case), wider(case)
    larger = grown(model, chain(untie(), *steps))
    assert matrices(larger)[0] is not matrices(larger)[1]
    assert len(matrices(larger)[1]) == 70
    assert relative_error(model, larger) <= EXACT
    if needs_untying(case):  # a tied model's stream must not have grown
        return
    for at in range(1, len(steps) + 1):
        same = grown(model, chain(*steps[:at], untie(), *steps[at:]))
        for name, parameter in same.named_parameters():
            assert torch.equal(parameter, larger.get_parameter(name)), name


@by_name([case for case in TIED if needs_untying(case)])
def test_untied_streams_grow_where_tied_ones_cannot(case):
    model = random_model(case)
    steps = [widen(axis, to=to) for axis, to in steps_of(case, "residual")]
    if not stream(case, tied=False).equal_copies:
        assert relative_error(model, grown(model, chain(untie(), *steps))) <= EXACT
        with pytest.raises(RecipeError, match=r"retie: residual has grown from 32 to .* Or leave out retie"):
            grown(model, chain(untie(), *steps, retie()))
    with pytest.raises(RecipeError, match="op: untie"):
        grown(model, chain(*steps, untie()))


@by_name(DENSE)
def test_untie_and_upcycle_commute(case):
    model = random_model(case)
    model.config._experts_implementation = "eager"
    mixture = upcycle(experts=4, top_k=2)
    one, other = (grown(model, chain(*steps)) for steps in ((untie(), mixture), (mixture, untie())))
    assert torch.equal(*matrices(one))
    assert relative_error(model, one) <= EXACT
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_what_is_so_already_stays():
    model = random_model(CASES["llama, untied"])
    assert relative_error(model, grown(model, untie())) == 0
    assert growth.plan(chain(untie(), widen("ffn", factor=2)), model).growth.head is None
    tied = random_model(CASES["llama, tied"])
    assert growth.plan(retie(), tied).target.tied
    assert growth.plan(chain(untie(), retie()), tied).target.tied
    assert not growth.plan(chain(retie(), untie()), model).target.tied


# ------------------------------------------------- files


@by_name([case for case in FAMILIES.values() if case.family in ("gpt2", "gemma2", "opt", "phi", "gpt_neox", "cohere")])
def test_folders_are_untied_and_tied_again(case, tmp_path):
    source = save(random_model(case, torch.float32), tmp_path / "source")
    before = load_file(source / "model.safetensors")
    plan = growth.grow(untie(), source, tmp_path / "untied")
    assert plan.preserving
    assert plan.parameters == sum(tensor.numel() for tensor in {**before, **_head(tmp_path / "untied")}.values())
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "untied", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(*matrices(model))
    assert growth.verify(source, tmp_path / "untied", untie()).passed
    assert growth.verify_weights(source, tmp_path / "untied", untie()).passed
    growth.grow(retie(), tmp_path / "untied", tmp_path / "tied")
    after = load_file(tmp_path / "tied" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert growth.verify(tmp_path / "untied", tmp_path / "tied", retie()).passed
    assert growth.verify_weights(tmp_path / "untied", tmp_path / "tied", retie()).passed


def _head(folder):
    found = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in found.items() if name.startswith(("lm_head.weight", "embed_out.weight"))}


def test_a_file_without_prefix_is_untied(tmp_path):
    source = save(random_model(CASES["gpt2, tied"]), tmp_path / "source")
    path = source / "model.safetensors"
    save_file({name.removeprefix("transformer."): value for name, value in load_file(path).items()}, path)
    growth.grow(untie(), source, tmp_path / "untied")
    assert {"wte.weight", "lm_head.weight"} <= load_file(tmp_path / "untied" / "model.safetensors").keys()
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "untied", output_loading_info=True)
    assert not any(info.values())
    assert growth.verify(source, tmp_path / "untied", untie()).passed


@pytest.mark.filterwarnings("ignore:torch.distributed is")  # of one process
def test_ranks_and_dcp_folders_make_the_same_head(tmp_path):
    operator = chain(untie(), widen("residual", to=40), widen("vocab", to=70))
    source = save(random_model(CASES["gemma2, tied, alternating windows"], torch.float32), tmp_path / "source")
    growth.grow(operator, source, tmp_path / "files")
    expected = load_file(tmp_path / "files" / "model.safetensors")
    growth.grow(operator, source, tmp_path / "dcp", format="dcp")
    assert growth.verify_weights(source, tmp_path / "dcp", operator).passed
    reader = GrowReader(source, operator)
    model = materialise(empty_model(reader.config), "cpu")
    loaded = model.state_dict()
    torch.distributed.checkpoint.load(loaded, storage_reader=reader)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


# ------------------------------------------------- refusals


def differing(folder):
    """A folder of a model whose head differs from its embedding in one bit."""
    source = save(grown(random_model(CASES["llama, tied"]), untie()), folder)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"][60, 31] *= 2
    save_file(weights, source / "model.safetensors")
    return source


def test_matrices_that_differ_are_not_tied(tmp_path):
    source = differing(tmp_path / "source")
    before = state(tmp_path)
    message = (
        r"retie: in .*source, 'lm_head.weight' \(F64 \[61, 32\], xxh3_128 [0-9a-f]{32}\) and "
        r"'model.embed_tokens.weight' \(F64 \[61, 32\], xxh3_128 [0-9a-f]{32}\) differ.*Leave out retie"
    )
    with pytest.raises(RecipeError, match=message):
        growth.grow(retie(), source, tmp_path / "out")
    assert state(tmp_path) == before
    assert growth.plan(retie(), source).target.tied  # headers alone
    model = AutoModelForCausalLM.from_pretrained(source)
    with pytest.raises(RecipeError, match=message.replace("in .*source", "in this LlamaForCausalLM")):
        growth.grow_model(model, retie())
    assert matrices(model)[0] is not matrices(model)[1]


def test_a_plan_to_tie_does_not_tie_what_has_been_trained_since():
    model = grown(random_model(CASES["llama, tied"]), untie())
    plan = growth.plan(retie(), model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(RecipeError, match="differ, and one matrix for both"):
        growth.grow_model(model, plan)


def test_a_head_of_another_type_is_not_tied():
    model = growth.grow_model(random_model(CASES["llama, tied"], torch.float32), untie())
    model.lm_head.to(torch.float64)
    with pytest.raises(RecipeError, match=r"\(F64 .*\(F32 .*differ"):
        growth.plan(retie(), model)


def test_a_plan_is_of_a_model_with_a_head():
    tied = random_model(CASES["llama, tied"])
    plan = growth.plan(retie(), grown(tied, untie()))
    with pytest.raises(CheckpointError, match=r"another model: it reads 'lm_head.weight'"):
        growth.grow_model(tied, plan)


def test_growth_json_names_the_embedding_as_the_heads_source(tmp_path):
    source = save(random_model(CASES["llama, tied"]), tmp_path / "source")
    growth.grow(untie(), source, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert content["tensors"]["lm_head.weight"]["source"] == "model.embed_tokens.weight"
    assert content["tensors"]["lm_head.weight"]["made_by"] == "copy"
    assert json.loads(bytes_of(tmp_path / "out")["config.json"])["tie_word_embeddings"] is False


def test_the_first_gpt_grows_once_it_is_untied():
    """With a tied head, nothing of it grows but the vocabulary: its MLP is four times as wide as the stream."""
    untied = next(case for case in all_cases() if case.family == "openai-gpt")
    tied = replace(untied, config={**untied.config, "tie_word_embeddings": True})
    model = random_model(tied)
    wider = chain(*(widen(axis, to=to, init="tile") for axis, to in steps_of(untied, "residual")))
    with pytest.raises(RecipeError, match="neither a final norm's gain nor a projection"):
        grown(model, wider)
    assert relative_error(model, grown(model, chain(untie(), wider))) <= EXACT
