"""Coverage: verify says what it ran and claims no more; what costs little it checks in full, and names."""

import json
import re
import shlex
import shutil
from html import escape

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import growth
from growth.cli.app import app
from growth.errors import VerificationError
from growth.operators import chain, deepen, upcycle, widen
from growth.planning.manifest import dump, sealed
from growth.verification.html_report import write_html
from growth.verification.lineage import lineage
from growth.verification.totals import check_totals
from tests.support.families import all_cases, random_model
from tests.support.models import random_phi, save
from tests.support.reports import shown, words

RECIPE = """\
description: of every kind
steps:
  - {op: widen, axis: residual, to: 40, shares: random}
  - {op: widen, axis: ffn, to: 60, init: pad}
  - {op: deepen, to: 5}
"""
LOSSY = "description: lossy\nsteps: [{op: reuse, to: {residual: 64, ffn: 96}, layers: 4}]"
WEIGHTS, UNDRAWN = "model.safetensors", 17  # a token that is not among those that are run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A source, its growth, a lossy growth, and a growth of the growth."""
    home = tmp_path_factory.mktemp("coverage")
    save(random_phi(torch.float32, vocab_size=300), home / "source")
    (home / "recipe.yaml").write_text(RECIPE)
    (home / "lossy.yaml").write_text(LOSSY)
    (home / "next.yaml").write_text(
        "description: once more\nsteps: [{op: widen, axis: ffn, factor: 2}, {op: deepen, to: 7}]"
    )
    growth.grow(home / "recipe.yaml", home / "source", home / "grown", seed=3)
    growth.grow(home / "lossy.yaml", home / "source", home / "lossy")
    growth.grow(home / "next.yaml", home / "grown", home / "twice")
    return home


@pytest.fixture
def copy(home, tmp_path):
    return shutil.copytree(home / "grown", tmp_path / "grown")


def check(source, grown, recipe=None, **options):
    return growth.verify(source, grown, recipe, tokens=32, **options)


def covered(report):
    return {name: "\n".join(lines) for name, lines in report.coverage().items()}


def run(*arguments):
    result = CliRunner().invoke(app, ["verify", "--tokens", "32", *map(str, arguments)])
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def change_json(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}, indent=2))


def change_rows(folder, name, change):
    weights = load_file(folder / WEIGHTS)
    change(weights[name])
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


# ------------------------------------------------- what is said


def test_the_verdict_claims_no_more_than_was_run(home):
    report = check(home / "source", home / "grown", home / "recipe.yaml", growth_seed=3)
    assert report.status == "PASSED"
    assert "agrees with its source on the 2 x 16 tokens that were run" in report.verdict()
    assert "same function" not in words(shown(report))
    said = covered(report)
    assert "2 x 16 tokens" in said["run"]
    assert "5 of 5 layers" in said["run"]
    assert "random ids of 300, seed 0" in said["run"]
    for what in ("config.json", "generation_config.json", "list of files", "embedding and the head", "checksum"):
        assert what in said["in full"]
    assert "--weights" in said["not checked"]


def test_the_text_that_was_run_is_named(phi_mini, tmp_path):
    growth.grow("phi-mini", phi_mini, tmp_path / "grown")
    report = growth.verify(phi_mini, tmp_path / "grown", "phi-mini", tokens=16, dtype="float32")
    assert "the built-in paragraph" in words(shown(report))
    text = tmp_path / "own.txt"
    text.write_text("A text of my own, with some words in it.")
    assert "own.txt" in covered(check(phi_mini, tmp_path / "grown", "phi-mini", text=text))["run"]


def test_a_recipe_that_is_the_folders_own_is_said_to_be(home):
    assert (
        "its own growth.json"
        not in check(home / "source", home / "grown", home / "recipe.yaml", growth_seed=3).verdict()
    )
    verdict = check(home / "source", home / "grown").verdict()
    assert "the grown folder's own growth.json" in verdict
    assert "--recipe" in verdict


def test_another_recipe_or_seed_is_not_the_folders(home):
    report = check(home / "source", home / "grown", home / "recipe.yaml", growth_seed=4)
    assert report.status == "FAILED"
    code, output = run(home / "source", home / "grown", "--recipe", home / "lossy.yaml")
    assert code == 2
    assert "Name the source and the recipe" in output


def test_without_a_recipe_it_is_said_what_was_not_checked(home, copy):
    (copy / "growth.json").unlink()
    report = check(home / "source", copy)
    assert (report.status, report.recipe_from) == ("PASSED", "")
    assert "configs, embedding, head, norms and list of files" in covered(report)["not checked"]
    assert "--recipe" in covered(report)["not checked"]
    assert "no layers" in covered(report)["run"]


def test_operators_given_in_python_can_be_given_again(home, tmp_path):
    operator = chain(widen("ffn", factor=2, init="tile", shares="equal"), deepen(to=4))
    growth.grow(operator, home / "source", tmp_path / "out")
    report = check(home / "source", tmp_path / "out")
    assert report.status == "PASSED"
    assert "operators given in Python" in covered(report)["not checked"]
    assert len(report.layers) == 5
    assert check(home / "source", tmp_path / "out", operator).recipe_from == "given"


def test_a_lossy_growth_whose_recipe_is_unknown_asks_for_it(home, tmp_path):
    operator = deepen(to=4, init="copy")
    growth.grow(operator, home / "source", tmp_path / "out")
    report = check(home / "source", tmp_path / "out")
    assert report.status == "FAILED"
    assert "No recipe is known" in report.verdict()
    assert check(home / "source", tmp_path / "out", operator).status == "LOSSY"


# ------------------------------------------------- what is checked in full


FAULTS = {
    "a halved context": lambda folder: change_json(folder / "config.json", max_position_embeddings=32),
    "an end of text": lambda folder: change_json(folder / "config.json", eos_token_id=5),
    "an end of generation": lambda folder: change_json(folder / "generation_config.json", eos_token_id=[0, 5]),
    "an epsilon": lambda folder: change_json(folder / "config.json", layer_norm_eps=1.0000001e-5),
    "a dropout": lambda folder: change_json(folder / "config.json", attention_dropout=0.5),
    "code of its own": lambda folder: change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "m.M"}),
}
NAMED = {
    "a halved context": ("config.json", "max_position_embeddings is 32 instead of 64"),
    "an end of text": ("config.json", "eos_token_id is 5 instead of 0"),
    "an end of generation": ("generation_config.json", "eos_token_id"),
    "an epsilon": ("config.json", "layer_norm_eps"),
    "a dropout": ("config.json", "attention_dropout is 0.5"),
    "code of its own": ("config.json", "auto_map"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_key_that_no_token_shows_is_named(fault, home, copy):
    FAULTS[fault](copy)
    report = check(home / "source", copy)
    name, problem = NAMED[fault]
    assert report.status == "FAILED"
    assert report.totals.problems.keys() == {name}
    assert problem in report.totals.problems[name]
    assert name in report.verdict()
    assert problem in words(shown(report))
    assert report.to_dict()["status"] == "FAILED"


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_row_of_a_token_that_was_not_drawn_is_named(name, home, copy):
    drawn = check(home / "source", home / "grown").distinct_tokens
    assert drawn < 300
    before = load_file(copy / "model.safetensors")[name][UNDRAWN].numpy()[0]
    change_rows(copy, name, lambda weight: weight[UNDRAWN].zero_())
    report = check(home / "source", copy)
    assert report.status == "FAILED"
    assert report.totals.problems.keys() == {name}
    problem = report.totals.problems[name]
    assert f"values differ, the first at [{UNDRAWN}, 0]: 0.0 instead of {before!s}" in problem
    code, output = run(home / "source", copy)
    assert code == 1
    assert f"{name}: {problem}" in output


@pytest.mark.parametrize(
    "name", ["lm_head.bias", "model.layers.2.input_layernorm.bias", "model.final_layernorm.weight"]
)
def test_one_bit_of_a_norm_or_bias_is_named(name, home, copy):
    change_rows(copy, name, lambda weight: weight[3].copy_(torch.nextafter(weight[3], torch.tensor(9.0))))
    assert check(home / "source", copy).totals.problems.keys() == {name}


def test_norms_of_two_dimensions_are_norms_too(tmp_path):
    case = next(case for case in all_cases() if case.name == "cohere, norm of queries and keys")
    save(random_model(case, torch.float32), tmp_path / "source")
    growth.grow(widen("ffn", factor=2, init="tile", shares="equal"), tmp_path / "source", tmp_path / "out")
    name = "model.layers.1.self_attn.k_norm.weight"
    change_rows(tmp_path / "out", name, lambda gain: gain[1].copy_(torch.nextafter(gain[1], torch.tensor(9.0))))
    totals = check_totals(
        lineage(tmp_path / "source", tmp_path / "out", widen("ffn", factor=2, init="tile", shares="equal")),
        tmp_path / "out",
    )
    assert totals.problems.keys() == {name}


def test_a_value_in_a_matrix_that_is_zero_is_named_however_small(tmp_path):
    """Rounding cannot make it, and running may not tell it from rounding elsewhere."""
    save(random_phi(torch.float16), tmp_path / "source")
    growth.grow("double-depth", tmp_path / "source", tmp_path / "out")
    name = "model.layers.1.mlp.fc2.weight"
    change_rows(tmp_path / "out", name, lambda weight: weight[3, 5].fill_(6e-8))
    report = check(tmp_path / "source", tmp_path / "out", "double-depth")
    assert report.status == "FAILED"
    assert report.totals.problems.keys() == {name}


@pytest.mark.parametrize(
    "planted",
    ["pytorch_model.bin", "modeling_phi.py", "model.fp16.safetensors", "tokenizer.model", "original/model.pth"],
)
def test_a_file_that_a_loader_may_pick_up_is_named(planted, home, copy):
    (copy / planted).parent.mkdir(exist_ok=True)
    (copy / planted).write_bytes(b"{}")
    report = check(home / "source", copy)
    assert report.status == "FAILED"
    assert report.totals.problems.keys() == {planted.partition("/")[0]}


def test_files_that_nothing_loads_are_left_alone(home, copy):
    for name in ("notes.md", "report.html", ".gitattributes"):
        (copy / name).write_text("mine")
    assert check(home / "source", copy).status == "PASSED"


def test_a_growth_json_that_was_rewritten_helps_nobody(home, copy):
    told = json.loads((copy / "growth.json").read_text())
    (copy / "growth.json").write_text(dump({**told, "seed": 3, "preserving": False}))
    assert check(home / "source", copy).totals.problems.keys() == {"growth.json"}
    told.pop("itself")
    change_json(copy / "config.json", max_position_embeddings=32)
    (copy / "growth.json").write_text(sealed({**told, "preserving": False}))
    report = check(home / "source", copy)
    assert (report.status, report.preserving) == ("FAILED", True)
    assert report.totals.problems.keys() == {"config.json"}


# ------------------------------------------------- swapped, lossy, grown twice


def test_the_two_in_the_other_order_are_refused(home):
    for grown in ("grown", "twice", "lossy"):
        with pytest.raises(VerificationError, match="Name the source first"):
            check(home / grown, home / "source")
    with pytest.raises(VerificationError, match=r"growth verify \S*grown \S*twice"):
        check(home / "twice", home / "grown")
    options = ["--recipe", "a b.yaml", "--quiet"]
    code, output = run(home / "grown", home / "source", *options)
    assert code == 2
    command = shlex.join(["growth", "verify", "--tokens", "32", str(home / "source"), str(home / "grown"), *options])
    assert f"Name the source first, then what it grew into: {command}" in output


def test_the_larger_one_is_no_source_even_without_growth_json(home, copy):
    (copy / "growth.json").unlink()
    with pytest.raises(VerificationError, match=r"nothing is smaller in a grown model. Name the source first"):
        check(copy, home / "source")


def test_a_mixture_is_no_source_of_a_dense_model(tmp_path):
    case = next(case for case in all_cases() if case.family == "llama")
    save(random_model(case, torch.float32), tmp_path / "source")
    growth.grow(upcycle(experts=4, top_k=2), tmp_path / "source", tmp_path / "mixture")
    (tmp_path / "mixture" / "growth.json").unlink()
    assert check(tmp_path / "source", tmp_path / "mixture", upcycle(experts=4, top_k=2)).status == "PASSED"
    with pytest.raises(VerificationError, match=r"has experts 0 and .* has 4"):
        check(tmp_path / "mixture", tmp_path / "source")


def test_a_lossy_growth_has_a_status_of_its_own(home):
    code, output = run(home / "source", home / "lossy", "--recipe", home / "lossy.yaml")
    assert code == 0
    assert output.startswith("LOSSY")
    assert "The recipe changes the function" in output
    report = check(home / "source", home / "lossy", home / "lossy.yaml")
    assert (report.status, report.passed, report.preserving) == ("LOSSY", False, False)
    assert report.to_dict()["status"] == "LOSSY"
    assert f"{report.logits.relative_error:.1e}" in report.verdict()


def test_a_lossy_growth_fails_where_it_is_not_what_its_recipe_makes(home, tmp_path):
    copy = shutil.copytree(home / "lossy", tmp_path / "lossy")
    change_rows(copy, "model.embed_tokens.weight", lambda weight: weight[UNDRAWN].zero_())
    assert check(home / "source", copy).status == "FAILED"


def test_that_a_growth_is_lossy_is_not_believed_of_it(home, copy):
    told = json.loads((copy / "growth.json").read_text())
    told.pop("itself")
    steps = [{**step, "preserving": False} for step in told["steps"]]
    (copy / "growth.json").write_text(sealed({**told, "preserving": False, "steps": steps}))
    change_rows(copy, "model.layers.0.mlp.fc1.weight", lambda weight: weight.mul_(2))
    report = check(home / "source", copy)
    assert (report.status, report.first_bad_layer) == ("FAILED", 0)


def test_a_growth_that_only_its_own_folder_calls_lossy_is_never_fine(home):
    code, output = run(home / "source", home / "lossy")
    assert code == 3
    assert output.startswith("LOSSY")
    assert "Only the grown folder's own growth.json says that the function changes" in output
    assert "Give the recipe by --recipe" in output
    assert check(home / "source", home / "lossy").to_dict()["unconfirmed"]
    assert not check(home / "source", home / "lossy", home / "lossy.yaml").unconfirmed


COPIED = {"description": "d", "steps": [{"op": "deepen", "to": 5, "init": "copy"}]}


@pytest.mark.parametrize("where", ["an ancestor", "the last growth"])
def test_a_lossy_recipe_that_is_forged_excuses_no_damage(where, home, tmp_path):
    """Exact recipes that lead to the same sizes are replaced by a lossy one in the account of the grown folder."""
    deeper, wider = tmp_path / "deeper.yaml", tmp_path / "wider.yaml"
    deeper.write_text("description: d\nsteps: [{op: deepen, to: 5}]")
    wider.write_text("description: d\nsteps: [{op: widen, axis: ffn, factor: 2}]")
    growth.grow(deeper, home / "source", tmp_path / "grown")
    folder = tmp_path / "grown"
    if where == "an ancestor":
        folder = tmp_path / "twice"
        growth.grow(wider, tmp_path / "grown", folder)
    assert run(home / "source", folder)[0] == 0
    change_rows(folder, "model.layers.2.mlp.fc1.weight", lambda weight: weight.mul_(2))
    assert run(home / "source", folder)[0] == 1
    told = json.loads((folder / "growth.json").read_text())
    told.pop("itself")
    step = told["history"][0] if where == "an ancestor" else told
    step["recipe"] = COPIED
    (folder / "growth.json").write_text(sealed(told))
    code, output = run(home / "source", folder)
    assert code != 0
    assert "agrees with its source" not in output


def test_added_tokens_that_take_probability_are_lossy_and_measured(home, tmp_path):
    path = tmp_path / "vocab.yaml"
    for init, status in (
        ("mean", "LOSSY"),
        ("random", "LOSSY"),
        ("tile", "LOSSY"),
        ("mean, logit_bias: -30", "PASSED"),
    ):
        path.write_text(f"description: d\nsteps: [{{op: widen, axis: vocab, to: 320, init: {init}}}]")
        growth.grow(path, home / "source", tmp_path / init)
        report = check(home / "source", tmp_path / init, path)
        assert report.status == status, init
        assert report.agrees
        assert report.logits.added_tokens == 20
        assert report.logits.kl == pytest.approx(report.logits.lost_to_added, rel=0.05, abs=1e-9)
        moved = report.logits.grown_loss - report.logits.source_loss
        assert moved == pytest.approx(report.logits.lost_to_added, rel=0.2, abs=1e-9)
        if status == "LOSSY":
            assert "20 added tokens take probability" in words(shown(report))
    change_rows(tmp_path / "random", "model.layers.1.mlp.fc1.weight", lambda weight: weight.mul_(2))
    assert check(home / "source", tmp_path / "random").status == "FAILED"


def test_what_added_tokens_cost_is_said_however_coarse_the_stored_type(phi_mini, tmp_path):
    growth.grow(widen("vocab", to=2112), phi_mini, tmp_path / "out")
    report = growth.verify(phi_mini, tmp_path / "out", widen("vocab", to=2112), tokens=32, dtype="float32")
    assert report.logits.lost_to_added < report.limit  # of relative errors, which are something else
    assert "64 added tokens take probability" in report.verdict()
    assert report.status == "LOSSY"
    unknown = growth.verify(phi_mini, tmp_path / "out", tokens=32, dtype="float32")
    assert unknown.status == "FAILED"  # nothing says that it should


def test_the_page_says_what_the_terminal_says(home, copy, tmp_path):
    write_html(check(home / "source", home / "lossy"), home / "source", home / "lossy", tmp_path / "lossy.html")
    assert "Lossy, by the recipe" in (tmp_path / "lossy.html").read_text()
    change_json(copy / "config.json", max_position_embeddings=32)
    report = check(home / "source", copy, generation=True)
    write_html(report, home / "source", copy, tmp_path / "failed.html")
    page = re.sub('<span class="option">(.*?)</span>', r"\1", (tmp_path / "failed.html").read_text())
    for text in (
        "Failed",
        "max_position_embeddings is 32 instead of 64",
        "generated with / without cache",
        "random ids",
    ):
        assert text in page
    assert all(escape(line) in page for lines in report.coverage().values() for line in lines)


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "nan"), (float("inf"), "nan|inf")], ids=["NaN", "Inf"])
def test_what_is_not_finite_is_called_so_and_its_layer_named(copy, home, value, said):
    change_rows(copy, "model.layers.1.mlp.fc1.weight", lambda weight: weight[0].fill_(value))
    status, text = run(home / "source", copy, "--recipe", home / "recipe.yaml", "--seed", 3)
    assert status == 1
    assert "The grown model computes values that are not finite (NaN or infinite)" in text
    assert re.search(rf"The first difference is after layer 1: ({said}), limit", text)
    assert re.search(rf"worst ({said}) after layer 1", text)
    with pytest.raises(VerificationError, match=r"^The logits of the source .*grown are not finite .* Go back"):
        check(copy, home / "twice", home / "next.yaml")


def test_a_model_that_was_trained_since_is_sent_to_diagnose(copy, home):
    (copy / "training_args.bin").touch()
    change_rows(copy, "model.layers.1.mlp.fc1.weight", lambda weight: weight.mul_(1.1))
    status, text = run(home / "source", copy)
    assert status == 1
    assert f"growth diagnose THAT_FOLDER {copy}" in text


def test_a_model_that_was_grown_twice_is_compared_with_its_first_source(home):
    assert check(home / "grown", home / "twice", home / "next.yaml").status == "PASSED"
    report = check(home / "source", home / "twice")
    assert report.status == "PASSED"
    assert len(report.layers) == 8
    assert all(error.passed for error in report.layers)
    assert sum(error.silent for error in report.layers) == 4  # of the seven layers, three are the source's
    assert report.sizes["before"]["ffn"] == 48
    assert report.sizes["after"]["ffn"] == 120
    assert "name the direct source, 'grown'" in covered(report)["not checked"]


def test_a_fault_of_one_that_was_grown_twice_is_found_at_its_layer(home, tmp_path):
    copy = shutil.copytree(home / "twice", tmp_path / "twice")
    change_rows(copy, "model.layers.4.mlp.fc1.weight", lambda weight: weight[0].mul_(3))
    assert check(home / "source", copy).first_bad_layer in (4, None)
    change_json(copy / "config.json", max_position_embeddings=32)
    assert "config.json" in check(home / "source", copy).totals.problems


RIGHT = [
    "gpt_neox, rope scaling",
    "gemma, one KV head",
    "mixtral, top 2 of 4",
    "gpt2, tied",
    "falcon, ALiBi",
    "phi3, longrope",
]


@pytest.mark.parametrize(("form", "dtype"), [("safetensors", None), ("safetensors", "bfloat16"), ("dcp", None)])
@pytest.mark.parametrize("name", RIGHT)
def test_what_a_growth_writes_differs_in_nothing(name, form, dtype, tmp_path):
    case = next(case for case in all_cases() if case.name == name)
    operator = chain(widen("ffn", factor=1.5, init="tile", shares="equal"), widen("vocab", multiple=64))
    save(random_model(case, torch.float32), tmp_path / "source")
    growth.grow(operator, tmp_path / "source", tmp_path / "out", dtype=dtype, format=form)
    totals = check_totals(lineage(tmp_path / "source", tmp_path / "out", operator), tmp_path / "out")
    assert totals.problems == {}
    assert "every row of the embedding and the head" in totals.covered[-1]
