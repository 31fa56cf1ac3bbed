"""Verification never trusts the folder that it checks: whatever is forged there is named, though growth.json agrees."""

import json
import os
import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

import growth
from growth import VerificationError
from growth.cli.app import app
from growth.operators import chain, deepen, widen
from growth.planning.manifest import MANIFEST, sealed
from growth.verification.lineage import lineage
from growth.verification.totals import check_totals
from tests.support import forgeries as forged
from tests.support.families import all_cases, random_model
from tests.support.models import save


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source, its recipe, and what it grows into."""
    return forged.make(tmp_path_factory.mktemp("forgeries"))


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[2], tmp_path / "grown")


def check(made, folder, **inputs):
    return growth.verify_weights(made[0], folder, made[1], **inputs)


def caught(made, copy, forgery):
    forgery.apply(copy)
    assert any(forgery.culprit in name for name in check(made, copy).problems), forgery
    try:
        passed = growth.verify_weights(made[0], copy).passed  # by the folder's own recipe
    except growth.CheckpointError as error:
        passed = MANIFEST not in str(error)  # it is not even a growth.json
    assert not passed


STATIC = [*forged.config_forgeries(), *forged.replaced(), *forged.planted(), *forged.shard_forgeries()]


@pytest.mark.parametrize("forgery", STATIC, ids=str)
def test_a_forgery_that_growth_json_agrees_with_is_named(forgery, made, copy):
    caught(made, copy, forgery)


@pytest.mark.parametrize("seed", range(2))
def test_a_bit_of_any_file_is_named_though_growth_json_agrees(seed, made, tmp_path):
    for number, forgery in enumerate(forged.flips(made[2], seed)):
        folder = shutil.copytree(made[2], tmp_path / str(number))
        forgery.apply(folder)
        try:
            assert any(forgery.culprit in name for name in check(made, folder).problems), forgery
        except growth.CheckpointError as error:
            raise AssertionError(f"{forgery}: {error}") from None


def test_a_file_that_is_removed_is_named(made, tmp_path):
    for number, forgery in enumerate(forged.removals(made[2])):
        folder = shutil.copytree(made[2], tmp_path / str(number))
        forgery.apply(folder)
        assert forgery.culprit in check(made, folder).problems, forgery


def test_every_key_of_growth_json_is_compared_whatever_its_seal(made, tmp_path):
    folder = shutil.copytree(made[2], tmp_path / "grown")
    for forgery in forged.key_forgeries(made[2], MANIFEST, few=1):
        if forgery.what.count(".") > 1 and not forgery.what.endswith(("0", "name")):
            continue  # of the deep ones, some; all are forged by python -m tests.support.forgeries
        forgery.apply(folder)
        report = check(made, folder)
        assert MANIFEST in report.problems or (forgery.what == "versions.growth" and MANIFEST in report.warnings), (
            forgery
        )


def test_the_differing_key_is_named_with_both_values(made, copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.5, "auto_map": {}}, indent=2))
    forged.reseal(copy)
    text = check(made, copy).problems["config.json"]
    assert f"layer_norm_eps is 0.5 instead of {config['layer_norm_eps']}" in text
    assert "auto_map is {} and should be absent" in text


def test_a_link_and_a_folder_are_extra_files_too(made, copy):
    (copy / "pytorch_model.bin").symlink_to("README.md")
    (copy / "original").mkdir()
    assert check(made, copy).problems.keys() == {"pytorch_model.bin", "original"}


@pytest.mark.parametrize("limit", ["1B", "2KB", "4KB", "8KB", "1GB", None])
def test_every_layout_that_a_growth_writes_passes(limit, made, tmp_path):
    growth.grow(made[1], made[0], tmp_path / "out", max_shard_size=limit)
    report = check(made, tmp_path / "out")
    assert (report.problems, report.warnings, report.taken_from_folder) == ({}, {}, {})
    assert report.tensors == len(json.loads((tmp_path / "out" / MANIFEST).read_text())["tensors"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_copied_is_copied_where_a_model_adds_one_to_its_gains(dtype, tmp_path):
    """(gain + 1) - 1 is another number where it is rounded."""
    (case, *_) = [case for case in all_cases() if case.family == "gemma"]
    source = save(random_model(case, dtype), tmp_path / "source")
    operator = deepen(factor=2)
    growth.grow(operator, source, tmp_path / "out")
    assert growth.verify_weights(source, tmp_path / "out", operator).problems == {}


@pytest.mark.slow
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_a_right_folder_of_any_family_passes(case, tmp_path):
    source = save(random_model(case, torch.float32), tmp_path / "source")
    for operator in (chain(widen("ffn", factor=2, init="tile", shares="equal"), deepen(factor=2)), deepen(factor=2)):
        try:
            growth.grow(operator, source, tmp_path / "out", max_shard_size="20KB", seed=1)
        except growth.GrowthError:
            continue
        report = growth.verify_weights(source, tmp_path / "out", operator, seed=1)
        assert (report.problems, report.warnings, report.taken_from_folder) == ({}, {}, {})
        return
    assert "layers" in case.refused  # identity layers cannot be added to these


# ------------------------------------------------- what is in the place of a file


@pytest.fixture(scope="module")
def with_templates(made, tmp_path_factory):
    """The same with files in a sub-folder."""
    folder = tmp_path_factory.mktemp("templates")
    source = shutil.copytree(made[0], folder / "source")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    growth.grow(made[1], source, folder / "grown", max_shard_size="8KB", dtype="float32")
    return source, made[1], folder / "grown"


def _link_to_the_same_text(folder):
    template = folder / "additional_chat_templates" / "tool.jinja"
    outside = folder.parent / "outside.jinja"
    template.rename(outside)
    template.symlink_to(outside)


def _link_to_itself(folder):
    template = folder / "additional_chat_templates" / "tool.jinja"
    template.unlink()
    template.symlink_to(template.name)


def _file_for_a_folder(folder):
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "additional_chat_templates").write_text("")


def _folder_for_a_file(folder):
    template = folder / "additional_chat_templates" / "tool.jinja"
    template.unlink()
    template.mkdir()


@pytest.mark.parametrize("change", [_link_to_the_same_text, _link_to_itself, _file_for_a_folder, _folder_for_a_file])
def test_what_is_not_a_file_of_the_folder_is_named(change, with_templates, tmp_path):
    folder = shutil.copytree(with_templates[2], tmp_path / "grown")
    assert check(with_templates, folder).problems == {}
    change(folder)
    found = check(with_templates, folder).problems
    assert found.keys() - {"additional_chat_templates"} == {"additional_chat_templates/tool.jinja"}


def test_a_missing_index_is_named_and_not_the_shards(made, copy):
    (copy / "model.safetensors.index.json").unlink()
    assert check(made, copy).problems == {"model.safetensors.index.json": "it is missing"}


def test_one_file_of_other_sizes_is_compared_by_its_tensors(made):
    found = check(made, made[0]).problems  # the source itself
    assert "instead of F64 [31, 24]" in found["lm_head.weight"]
    assert not any(name.startswith("model-") for name in found)


def test_what_the_hub_adds_to_a_folder_is_a_warning(made, copy):
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs")
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    report = check(made, copy)
    assert (report.problems, report.warnings.keys()) == ({}, {".cache", ".gitattributes"})
    assert report.not_covered == [".cache", ".gitattributes"]


def test_a_file_that_changes_while_it_is_compared_is_an_error(made, copy):
    def progress(phase, done, whole):
        if phase == "compare":
            os.utime(max(copy.glob("model-*.safetensors")))

    with pytest.raises(growth.CheckpointError, match="was changed while it was read"):
        check(made, copy, progress=progress)


@pytest.mark.parametrize("form", ["safetensors", "dcp"])
def test_a_recipe_that_makes_more_than_the_folder_holds_costs_nothing(form, made, tmp_path):
    """growth.json may name a recipe whose result no machine can hold."""
    folder, spent = tmp_path / "grown", {}
    growth.grow(made[1], made[0], folder, format=form)
    content = forged.account(folder)
    content["recipe"]["steps"] = [{"op": "widen", "axis": "ffn", "to": 2**21}, {"op": "deepen", "to": 300}]
    (folder / MANIFEST).write_text(sealed(content))
    report = growth.verify_weights(
        made[0], folder, progress=lambda phase, done, whole: spent.update({phase: max(whole, spent.get(phase, 0))})
    )
    assert any("instead of" in problem and "2097152" in problem for problem in report.problems.values())
    held = sum(path.stat().st_size for path in folder.iterdir())
    assert all(whole <= held for phase, whole in spent.items() if phase.startswith("compare"))


# ------------------------------------------------- recipe, seed and type are the user's


@pytest.mark.parametrize(
    ("grown_by", "named"),
    [
        ({"recipe": "of another kind"}, "recipe.description"),
        ({"seed": 5}, "seed"),
        ({"dtype": "float16"}, "model.norm.weight|lm_head|final"),
    ],
    ids=str,
)
def test_another_recipe_seed_or_type_than_the_given_one_is_named(grown_by, named, made, tmp_path):
    source, recipe, _ = made
    inputs = {"seed": 0, "dtype": "float32"}
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text().replace("of every kind", grown_by.get("recipe", "of every kind")))
    grown_with = inputs | {key: value for key, value in grown_by.items() if key != "recipe"}
    growth.grow(other, source, tmp_path / "out", **grown_with)
    assert growth.verify_weights(source, tmp_path / "out").passed  # by its own account it is right
    found = growth.verify_weights(source, tmp_path / "out", recipe, **inputs)
    assert re.search(named, str(dict(found.problems)))
    assert growth.verify_weights(source, tmp_path / "out", other, **grown_with).passed


def test_a_seed_is_the_recipes_own_if_none_is_given(made, tmp_path):
    growth.grow(made[1], made[0], tmp_path / "out", seed=5)
    assert "seed is 5 instead of 0" in check(made, tmp_path / "out").problems[MANIFEST]
    assert check(made, tmp_path / "out", seed=5).passed


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([], {"recipe": "--recipe", "seed": "--seed", "dtype": "--dtype"}),
        (["--seed", "0"], {"recipe": "--recipe", "dtype": "--dtype"}),
        (["--recipe", "{recipe}"], {"dtype": "--dtype"}),
        (["--recipe", "{recipe}", "--dtype", "float32"], {}),
    ],
    ids=str,
)
def test_the_command_says_what_it_took_from_the_folder_and_which_option_gives_it(given, taken, made):
    source, recipe, grown = map(str, made)
    command = ["verify", source, grown, "--weights", *(text.format(recipe=recipe) for text in given)]
    told = CliRunner().invoke(app, [*command, "--json"])
    assert (told.exit_code, json.loads(told.stdout)["taken_from_folder"]) == (0, taken)
    text = CliRunner().invoke(app, command).output
    assert ("Taken from the folder itself" in text) is bool(taken)
    assert all(option in text for option in taken.values())


def test_the_output_is_stable_and_the_status_1_where_anything_differs(made, copy):
    (copy / "pytorch_model.bin").write_bytes(b"")
    found = CliRunner().invoke(app, ["verify", str(made[0]), str(copy), "--weights", "--json"])
    assert found.exit_code == 1
    keys = "passed source grown tensors size files problems warnings taken_from_folder not_covered"
    assert list(json.loads(found.stdout)) == keys.split()


def test_a_type_that_models_are_not_compared_in_is_refused(made):
    found = CliRunner().invoke(app, ["verify", str(made[0]), str(made[2]), "--dtype", "bfloat16"])
    assert (found.exit_code, "use float64 (fp64), float32 (fp32), or stored" in found.output) == (2, True)


# ------------------------------------------------- what no input decides


@pytest.mark.parametrize(
    "label", [{"commit": "blessed by its authors"}, {"name": "x" * 256}, {"name": "a\nb"}], ids=str
)
def test_what_cannot_be_the_name_of_a_source_is_not_taken_for_one(label, made, copy):
    content = forged.account(copy)
    content["source"] |= label
    (copy / MANIFEST).write_text(sealed(content))
    assert f"source.{next(iter(label))} is" in check(made, copy).problems[MANIFEST]


def test_without_growth_json_the_rest_is_verified_by_a_given_recipe(made, copy):
    (copy / MANIFEST).unlink()
    report = check(made, copy)
    assert report.problems == {MANIFEST: "it is missing"}
    assert report.tensors > 0
    with pytest.raises(VerificationError, match="--recipe"):
        growth.verify_weights(made[0], copy)


def test_another_name_of_the_source_is_a_warning_that_has_both(made, tmp_path):
    source = shutil.copytree(made[0], tmp_path / "renamed")
    report = growth.verify_weights(source, made[2], made[1])
    assert report.passed
    assert "source" in report.warnings[MANIFEST]
    assert "renamed" in report.warnings[MANIFEST]


def test_the_words_of_another_version_of_growth_are_a_warning_and_nothing_else_is(made, copy):
    content = forged.account(copy)
    content["versions"]["growth"] = "0.0.9"
    content["steps"][0]["why"] = content["tensors"]["lm_head.weight"]["made_by"] = "in other words"
    (copy / "README.md").write_text("# Another card\n")
    (copy / MANIFEST).write_text(sealed(content))
    forged.reseal(copy)
    report = check(made, copy)
    assert report.passed
    assert report.warnings.keys() == {"README.md", MANIFEST}
    assert "README.md" in report.not_covered
    assert all("0.0.9" in text and growth.__version__ in text for text in report.warnings.values())
    content = forged.account(copy)
    content["preserving"] = not content["preserving"]
    (copy / MANIFEST).write_text(sealed(content))
    assert "preserving" in check(made, copy).problems[MANIFEST]


# ------------------------------------------------- other kinds of folders


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """The source as a Trainer's checkpoint, and what it grows into with its training state."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    folder = tmp_path_factory.mktemp("trained")
    source = shutil.copytree(made[0], folder / "checkpoint-1")
    model = AutoModelForCausalLM.from_pretrained(source)
    trainer = Trainer(model=model, args=TrainingArguments(str(folder / "run"), report_to=[]))
    optimizer = trainer.create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), source / "optimizer.pt")
    (source / "trainer_state.json").write_text('{"global_step": 1}')
    growth.grow_training(made[1], source, folder / "grown")
    return source, made[1], folder / "grown"


def test_the_state_of_a_training_run_is_grown_again(trained, tmp_path):
    report = check(trained, trained[2])
    assert (report.passed, report.not_covered) == (True, [])
    assert check_totals(lineage(trained[0], trained[2], trained[1]), trained[2]).problems == {}
    copy = shutil.copytree(trained[2], tmp_path / "grown")
    state = torch.load(copy / "optimizer.pt", weights_only=True)
    state["state"][0]["exp_avg"][0] += 1
    torch.save(state, copy / "optimizer.pt")
    (copy / "trainer_state.json").write_text('{"global_step": 7}')
    forged.reseal(copy)
    assert {"optimizer.pt", "trainer_state.json"} <= check(trained, copy).problems.keys()


def test_an_optimizer_that_the_source_does_not_have_is_an_extra_file(trained, made, copy):
    shutil.copy(trained[2] / "optimizer.pt", copy)
    forged.reseal(copy)
    assert "optimizer.pt" in check(made, copy).problems


def test_the_files_of_torch_distributed_checkpoint_are_made_again(made, tmp_path):
    growth.grow(made[1], made[0], tmp_path / "out", format="dcp")
    report = check(made, tmp_path / "out")
    assert (report.problems, report.not_covered) == ({}, [])
    for name in (".metadata", "__0_0.distcp"):
        copy = shutil.copytree(tmp_path / "out", tmp_path / name)
        (copy / name).write_bytes((copy / name).read_bytes() + b"\0")
        forged.reseal(copy)
        assert name in check(made, copy).problems
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    (tmp_path / "out" / "__9_9.distcp").write_bytes(b"")
    forged.reseal(tmp_path / "out")
    assert {"model.safetensors", "__9_9.distcp"} <= check(made, tmp_path / "out").problems.keys()
