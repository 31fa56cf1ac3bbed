"""An error says what is wrong, where, with both values, and what to do about it."""

import json
import re
import shutil

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import growth
from growth.errors import CheckpointError, GrowthError, RecipeError, VerificationError
from growth.operators import deepen
from growth.planning.manifest import MANIFEST, read_manifest, sealed
from growth.planning.recipe import load_recipe

DEEPER = deepen(factor=2)


@pytest.fixture(scope="module")
def made(phi_mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages") / "grown"
    growth.grow("double-depth", phi_mini, folder)
    return folder


@pytest.fixture
def rewritten(made, tmp_path):
    """A copy of a grown folder whose growth.json is changed."""

    def rewrite(change):
        folder = shutil.copytree(made, tmp_path / "grown")
        account = json.loads((folder / MANIFEST).read_text())
        del account["itself"]
        change(account)
        (folder / MANIFEST).write_text(sealed(account))
        return folder

    return rewrite


def test_too_short_a_text_is_named_with_the_least_and_the_remedy(phi_mini, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("a")
    with pytest.raises(VerificationError, match=r"at least 4 tokens, .* there are 1 from the text .*short\.txt\. Give"):
        growth.verify(phi_mini, shutil.copytree(phi_mini, tmp_path / "copy"), text=text)


def test_a_growth_json_of_another_make_is_named_with_what_is_wrong_in_it(rewritten):
    folder = rewritten(lambda account: account.update(seed="one"))
    with pytest.raises(CheckpointError, match=r"growth\.json is not a valid growth\.json: seed: .*Restore"):
        read_manifest(folder)


def test_a_size_that_growth_json_does_not_state_is_said_in_words(phi_mini, rewritten):
    folder = rewritten(lambda account: account["sizes"]["before"].pop("layers"))
    with pytest.raises(VerificationError, match=r"layers from 6 to 12, and .*growth\.json say .*from none\. Name"):
        growth.verify(phi_mini, folder)


def test_a_missing_file_is_named_with_what_to_do(phi_mini, tmp_path):
    folder = shutil.copytree(phi_mini, tmp_path / "source")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing\. Name a folder .*, or restore the file"):
        growth.plan(DEEPER, folder)


def test_a_recipe_that_is_a_link_to_nothing_is_named_with_its_target(tmp_path):
    link = tmp_path / "recipe.yaml"
    link.symlink_to("gone.yaml")
    with pytest.raises(RecipeError, match=r"recipe\.yaml is a link to gone\.yaml, which does not exist\. Restore"):
        load_recipe(link)


def test_a_file_of_a_checkpoint_is_told_from_its_folder(phi_mini):
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file, and a checkpoint is a folder\. Name the"):
        growth.plan(DEEPER, phi_mini / "model.safetensors")


def test_a_mistyped_recipe_file_is_told_the_one_beside_it(tmp_path):
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(
        RecipeError, match=rf"'\. `growth recipes` lists the shipped ones\. Did you mean '{tmp_path}/mine\.yaml'\?$"
    ):
        load_recipe(tmp_path / "mien.yaml")


def test_a_name_that_is_no_link_is_told_what_recipes_there_are():
    with pytest.raises(GrowthError, match=re.escape("No recipe file or shipped recipe 'nowhere'. Shipped: ")):
        load_recipe("nowhere")


@pytest.mark.parametrize(
    ("recipe", "hint"),
    [
        ("duble-width", "Did you mean 'double-width'?"),
        ({"steps": [{"op": "wide", "axis": "ffn", "factor": 2}]}, "Did you mean 'widen'?"),
        ({"steps": [{"op": "widen", "axes": "ffn", "factor": 2}]}, "Did you mean 'axis'?"),
        ({"step": [{"op": "deepen", "factor": 2}]}, "Did you mean 'steps'?"),
        *(
            ([{"op": "widen", "axis": name, "factor": 2}], f"Did you mean '{axis}'?")
            for name, axis in {
                "hidden_size": "residual", "d_model": "residual", "n_embd": "residual", "residul": "residual",
                "intermediate_size": "ffn", "ffn_dim": "ffn", "mlp": "ffn", "num_attention_heads": "heads",
                "n_head": "heads", "vocab_size": "vocab", "headdim": "head_dim",
            }.items()
        ),
        ([{"op": "widen", "axis": "n_layer", "factor": 2}], "Layers are added by deepen."),
    ],
)  # fmt: skip
def test_an_unknown_word_is_answered_with_the_one_that_is_meant(phi_mini, recipe, hint):
    with pytest.raises(RecipeError) as raised:
        growth.plan(recipe, phi_mini)
    assert raised.value.args[0].endswith(hint)


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A working directory with one checkpoint in a folder."""
    (tmp_path / "runs" / "small-model").mkdir(parents=True)
    (tmp_path / "runs" / "small-model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing may be asked; this would not answer
    return tmp_path


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("runs/smal-model", "Did you mean runs/small-model?"),
        ("rusn/small-model", "Did you mean runs/small-model?"),
        ("runs/nothing-like-it", "write hf://runs/nothing-like-it"),
        ("./runs/smal-model", "Did you mean runs/small-model?"),
        ("example/phi-mini", "it is much like examples/phi-mini, the shipped checkpoint"),
        ("examples/phi-mni", "it is much like examples/phi-mini, the shipped checkpoint"),
        ("~/no-such-folder-here", "No checkpoint folder at /"),
    ],
)
def test_a_mistyped_path_is_never_looked_up_on_the_hub(somewhere, source, hint):
    with pytest.raises(CheckpointError) as raised:
        growth.plan(DEEPER, source)
    assert hint in str(raised.value)
    assert "from the hub" not in str(raised.value)


def test_a_source_in_place_of_the_recipe_is_told_apart(phi_mini):
    with pytest.raises(RecipeError, match=r"is a folder, and a recipe is .* write RECIPE --source"):
        growth.plan(phi_mini, "double-width")
    with pytest.raises(RecipeError, match="of type int"):
        growth.plan(3, phi_mini)


def test_a_folder_in_place_of_a_schedule_is_no_source(phi_mini):
    with pytest.raises(GrowthError, match="is a folder, and a schedule is a YAML file") as refused:
        growth.load_schedule(phi_mini)
    assert "--source" not in str(refused.value)


# ------------------------------------------------- what a newcomer gives first


def tiny_model():
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, num_attention_heads=2, num_hidden_layers=1))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: growth.plan(model, "double-width"), r"of type LlamaForCausalLM. .* plan\(recipe, source\)"),
        (lambda model: growth.grow_model("small", "double-width"), "'small' names a model, .* from_pretrained"),
        (lambda model: growth.verify(model, "grown"), "a LlamaForCausalLM in memory: .* save_pretrained"),
        (lambda model: growth.GrowthCallback("double"), "use GrowthCallback.from_schedule"),
        (lambda model: growth.GrowthCallback(growth.load_schedule("double")), "use GrowthCallback.from_schedule"),
        (lambda model: growth.GrowthCallback([10]), r"or pairs \(Moment\(...\), recipe\), and not \[10\]"),
        (lambda model: growth.plan(growth.widen("kv_heads", to=4), model), "regroup makes more KV heads"),
        (lambda model: growth.plan(growth.widen("num_key_value_heads", to=4), model), "regroup makes more KV heads"),
        (lambda model: growth.resolve("phi-mini"), "Did you mean examples/phi-mini"),
    ],
)
def test_what_is_meant_is_named(call, said):
    with pytest.raises(GrowthError, match=said):
        call(tiny_model())


def test_pairs_of_steps_and_recipes_are_a_schedule():
    pairs = growth.GrowthCallback([(10, "double-depth"), (20, "double-width")])
    assert pairs.schedule == growth.GrowthCallback({20: "double-width", 10: "double-depth"}).schedule


def test_a_folder_that_is_no_checkpoint_is_not_proposed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    with pytest.raises(CheckpointError) as refused:
        growth.resolve("lama")
    assert "Did you mean" not in str(refused.value)


def test_a_recipe_that_does_not_fit_names_the_source_that_it_is_made_for(phi_mini):
    with pytest.raises(RecipeError, match=r"made for microsoft/phi-1_5, .*growth recipes --for SOURCE"):
        growth.plan("phi-1.5-to-phi-2", phi_mini)


def test_a_folder_that_another_recipe_made_is_said_to_be(made, phi_mini):
    report = growth.verify(phi_mini, made, "double-depth", tokens=8, growth_seed=0)
    assert report.status == "PASSED"
    copies = growth.verify(phi_mini, made, growth.deepen(factor=2, init="copy"), tokens=8)
    assert "another recipe made the folder" in copies.totals.problems[MANIFEST]


def test_a_model_that_has_grown_since_is_not_diagnosed(made, tmp_path):
    growth.grow("double-depth", made, tmp_path / "again")
    with pytest.raises(CheckpointError, match="it has grown since then"):
        growth.diagnose(made, tmp_path / "again")


def test_an_overflow_is_warned_of_wherever_a_plan_is_shown(phi_mini):
    plan = growth.plan("double-width", phi_mini)
    (warning,) = plan.to_dict()["warnings"]
    assert "fp16 activations may overflow" in warning
    assert "fp16 activations may overflow" in " ".join(str(plan).split())
    assert growth.plan("double-width", phi_mini, dtype="bfloat16").to_dict()["warnings"] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("upcycle", "'upcycle' is an operator, and no recipe: .*steps: .{op: upcycle"),
        ("mine", "Did you mean 'mine.yaml'?"),
    ],
)
def test_an_operator_or_a_file_in_place_of_a_recipe_is_told_apart(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(RecipeError, match=said):
        load_recipe(name)


def test_a_folder_of_another_source_is_said_to_be(made, phi_mini, tmp_path):
    """Such as the same model in another dtype: its files are others too, but its config explains them best."""
    source = shutil.copytree(phi_mini, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}))
    report = growth.verify(source, made, "double-depth", tokens=8)
    assert "another source was grown ('phi-mini'" in report.totals.problems[MANIFEST]


def test_a_long_list_of_problems_is_cut_on_a_terminal(made, phi_mini):
    report = growth.verify(phi_mini, made, growth.deepen(factor=2, init="copy"), tokens=8)
    lines = str(report).splitlines()
    assert len(report.totals.problems) > 12
    assert f"  … and {len(report.totals.problems) - 12} more, which --json lists" in [line.rstrip() for line in lines]


def test_a_classifier_is_called_one(tmp_path):
    LlamaForSequenceClassification(tiny_model().config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(CheckpointError, match="saved from LlamaForSequenceClassification, and only language models"):
        growth.plan("double-width", tmp_path / "classifier")
