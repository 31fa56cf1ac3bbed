"""The command line as a user meets it: what it prints, what it leaves, how it exits."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import growth
from growth.cli.app import app
from growth.training.schedule import shipped_schedules
from tests.support.models import random_phi, save


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def words(text):
    """Output without the line breaks that tables and terminals make."""
    return re.sub(r"\s+", " ", text)


def test_help_names_every_command():
    output = run("--help").output
    for command in ("plan", "grow", "verify", "inspect", "recipe", "recipes"):
        assert command in output


def test_the_version_is_the_packages():
    said = run("--version").stdout
    assert said.startswith(f"growth {growth.__version__} · torch ")
    assert all(f"{package} {version(package)}" in said for package in ("torch", "transformers", "safetensors"))


def test_plan_counts_query_heads_and_kv_heads(tmp_path):
    config = AutoConfig.for_model("llama", hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    config.update({"intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32})
    source = save(AutoModelForCausalLM.from_config(config), tmp_path / "source")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("description: d\nsteps: [{op: widen, axis: heads, to: 8}]")
    output = words(run("plan", recipe, "-s", source).output)
    assert "query heads 4 8 2×" in output
    assert "KV heads 2 4 2×" in output
    assert "query heads 4 KV heads 2" in words(run("inspect", source).output)


def test_plan_shows_before_and_after_and_why(phi_mini):
    output = words(run("plan", "phi-mini", "-s", phi_mini).output)
    assert "residual 128 160 1.25×" in output
    assert "layers 6 8 1.333×" in output
    assert "parameters 1,714,688 3,129,408" in output
    assert "computes the same function" in output
    assert output.count(" yes ") == 4


def test_plan_labels_what_is_lossy(phi_mini, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("description: d\nsteps: [{op: deepen, to: 8, init: copy}]")
    output = words(run("plan", path, "-s", phi_mini).output)
    assert "lossy: another function" in output
    assert " no " in output


def test_plan_lists_every_tensor(phi_mini):
    output = run("plan", "phi-mini", "-s", phi_mini, "--tensors").output
    assert len(re.findall(r"^ *model\.layers\.", output, re.MULTILINE)) == 8 * 14
    assert "zero" in output


def test_plan_as_json(phi_mini):
    content = json.loads(run("plan", "phi-mini", "-s", phi_mini, "--json").stdout)
    assert content["after"]["layers"] == 8


def test_the_recipes_own_source_is_the_default(tmp_path, monkeypatch, phi_mini):
    monkeypatch.chdir(phi_mini.parent.parent)
    run("plan", "phi-mini")
    assert "names no source" in run("plan", "double-depth", status=2).stderr


def test_grow_and_verify(phi_mini, tmp_path):
    out = tmp_path / "out"
    text = run("grow", "phi-mini", "-s", phi_mini, "-o", out, "--max-shard-size", "2MB", "--dtype", "float64").output
    assert f"growth verify {phi_mini} {out} --recipe phi-mini" in words(text)
    assert "3,129,408 parameters" in text
    assert (out / "model.safetensors.index.json").is_file()
    assert "PASSED" in run("verify", phi_mini, out).output
    content = json.loads(run("verify", phi_mini, out, "--json").stdout)
    assert content["passed"] is True
    assert content["logits"]["relative_error"] <= 1e-12
    report = tmp_path / "report.html"
    run("verify", phi_mini, out, "--dtype", "float32", "--report", report)
    assert "<html" in report.read_text()


def test_grow_verifies_on_request(phi_mini, tmp_path):
    assert "PASSED" in run("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "out", "--verify").output


def test_a_broken_growth_fails_with_status_1(phi_mini, tmp_path):
    out = tmp_path / "out"
    run("grow", "phi-mini", "-s", phi_mini, "-o", out)
    tensors = load_file(out / "model.safetensors")
    weight = tensors["model.layers.3.mlp.fc1.weight"]
    weight[[0, 1]] = weight[[1, 0]]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    result = run("verify", phi_mini, out, status=1)
    assert "FAILED" in result.output
    assert "layer 3" in result.output


def test_a_lossy_growth_is_lossy_and_says_that_its_recipe_is(phi_mini, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("description: d\nsteps: [{op: reuse, to: {residual: 160, ffn: 640, head_dim: 40}, layers: 8}]")
    output = words(run("grow", path, "-s", phi_mini, "-o", tmp_path / "out").output)
    assert "It is lossy" in output
    assert f"{tmp_path / 'out'} --recipe {path}" in output
    result = run("verify", phi_mini, tmp_path / "out", "--recipe", path, status=0)
    assert result.output.startswith("LOSSY")
    assert "The recipe changes the function, so a difference is expected" in words(result.output)


def test_inspect(phi_mini, tmp_path):
    output = words(run("inspect", phi_mini).output)
    assert "parameters 1,714,688" in output
    assert "NaN or Inf none" in output
    assert "can grow yes" in output
    broken = save(random_phi(torch.float32), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.bias"][:3] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    content = json.loads(run("inspect", broken, "--json", status=1).stdout)
    assert content["not_finite"] == {"lm_head.bias": 3}


def test_inspect_of_an_unknown_family_says_so(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "reformer"}')
    assert "model types can grow" in words(run("inspect", tmp_path).output)


def test_recipe_writes_what_plan_reads(phi_mini, tmp_path):
    target = tmp_path / "target.json"
    config = json.loads((phi_mini / "config.json").read_text())
    config |= {"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 8}
    config["rope_parameters"]["partial_rotary_factor"] = 0.4
    target.write_text(json.dumps(config))
    path = tmp_path / "derived.yaml"
    assert f"growth grow {path} --source {phi_mini}" in words(run("recipe", phi_mini, target, "-o", path).output)
    assert "3,129,408" in run("plan", path, "-s", phi_mini).output
    assert run("recipe", phi_mini, target).stdout == path.read_text()
    config["rope_parameters"]["partial_rotary_factor"] = 0.5
    target.write_text(json.dumps(config))
    assert "Grow the number of heads" in run("recipe", phi_mini, target, status=2).stderr


def test_a_lossy_recipe_is_called_lossy_from_plan_to_verify(phi_mini, tmp_path):
    target, path, grown = tmp_path / "target.json", tmp_path / "derived.yaml", tmp_path / "grown"
    config = json.loads((phi_mini / "config.json").read_text())
    target.write_text(json.dumps(config | {"hidden_act": "relu", "num_hidden_layers": 8}))
    assert "hidden_act: 'gelu_new' in the source" in run("recipe", phi_mini, target, "-o", path, status=2).stderr
    assert not path.exists()
    run("recipe", phi_mini, target, "-o", path, "--lossy")
    assert path.read_text().startswith("# LOSSY: hidden_act: 'gelu_new' in the source, 'relu' in the target.")
    assert "lossy" in run("plan", path, "-s", phi_mini).output
    assert "It is lossy" in words(run("grow", path, "-s", phi_mini, "-o", grown).output)
    assert json.loads((grown / "config.json").read_text())["hidden_act"] == "relu"
    assert "changes the function" in (grown / "README.md").read_text()
    assert "LOSSY" in run("verify", phi_mini, grown, "--recipe", path, "--tokens", "32").output


@pytest.mark.parametrize("wrong", ["source", "target"])
def test_recipe_names_the_config_that_is_wrong(wrong, phi_mini, tmp_path):
    config = json.loads((phi_mini / "config.json").read_text())
    files = {name: tmp_path / name / "config.json" for name in ("source", "target")}
    for name, file in files.items():
        file.parent.mkdir()
        file.write_text(json.dumps({**config, "hidden_size": 32.5} if name == wrong else config))
    said = re.sub(r"\s", "", run("recipe", files["source"], files["target"], status=2).stderr)
    assert f"{files[wrong]}hashidden_size=32.5" in said


def test_a_recipe_that_the_checkpoint_refuses_is_not_written(phi_mini, tmp_path):
    source, path = tmp_path / "source", tmp_path / "derived.yaml"
    shutil.copytree(phi_mini, source)
    weights = load_file(source / "model.safetensors")
    save_file({name: value for name, value in weights.items() if name != "lm_head.bias"}, source / "model.safetensors")
    assert "lacks tensor 'lm_head.bias'" in run("recipe", source, phi_mini / "config.json", "-o", path, status=2).stderr
    assert not path.exists()


def test_recipes_are_listed():
    assert "phi-1.5-to-phi-2-reuse" in run("recipes").output


BAD = [
    (("plan", "no-such-recipe"), "No recipe file or shipped recipe"),
    (("plan", "phi-mini", "-s", "no/such/folder"), "No checkpoint folder"),
    (("plan", "phi-mini", "--dtype", "int8"), "Unknown dtype"),
    (("inspect", "nowhere"), "No checkpoint folder"),
    (("recipe", "nowhere", "nothing"), "No checkpoint folder at nowhere"),
    (("verify", "nowhere", "nothing"), "nowhere"),
    (("grow", "phi-mini", "-s", "examples/phi-mini", "-o", "LICENSE/out"), "is not a directory"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: " ".join(value)[:30])
def test_bad_input_exits_with_2_and_one_message(arguments, message, monkeypatch, phi_mini):
    monkeypatch.chdir(phi_mini.parent.parent)
    result = run(*arguments, status=2)
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--max-shard-size", "lots"), "not a size"), (("--dtype", "int4"), "Unknown dtype"), (("--seed", "x"), "seed")],
)
def test_bad_options_write_nothing(options, message, phi_mini, tmp_path):
    result = run("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "out", *options, status=2)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(phi_mini, tmp_path, monkeypatch):
    from importlib import util

    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "transformers" else find_spec(name))
    for arguments in (
        ("verify", phi_mini, phi_mini),
        ("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "out", "--verify"),
    ):
        assert "pip install 'growth[verify]'" in run(*arguments, status=2).stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grow", "phi-mini", "-o", "{tmp}/new", "--seed", "-1"], "The seed -1 is not between 0"),
        (["plan", "phi-mini", "--seed", str(2**64)], "is not between 0"),
        (["grow", "phi-mini", "-o", "{tmp}/new", "--part", "²/3"], "nor of the form I/N"),
        (
            ["verify", "{phi}", "{phi}", "--weights", "--report", "{tmp}/r.html"],
            "leave out --text, --tokens, --report, --generation and --stability",
        ),
        (["verify", "{phi}", "{phi}", "--report", "{tmp}/none/r.html"], "Make it first: mkdir -p"),
        (["verify", "{phi}", "{phi}", "--report", "{tmp}"], "it is a folder"),
        (["diagnose", "{phi}", "{phi}", "--plot", "{tmp}/plot.txt"], "neither .png nor .svg"),
        (["recipe", "{phi}", "{phi}/config.json", "-o", "{tmp}/none/r.yaml"], "Make it first: mkdir -p"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_begun(phi_mini, tmp_path, arguments, message):
    output = run(*(text.format(phi=phi_mini, tmp=tmp_path) for text in arguments), status=2).output
    assert message in words(output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--format", "dcp"], ["--training"]])
def test_what_one_process_writes_is_refused_among_several(phi_mini, tmp_path, monkeypatch, option):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    output = run("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "new", *option, status=2).output
    assert "one of several processes" in words(output)


def test_an_interruption_says_how_to_go_on(phi_mini, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("growth.output.checkpoint_writer.scan", interrupt)
    output = run("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "new", status=130).output
    assert "with --resume" in words(output)
    monkeypatch.undo()
    run("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "new", "--resume")


def test_a_config_that_transformers_does_not_take_is_refused(phi_mini, tmp_path):
    shutil.copytree(phi_mini, tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps(config | {"hidden_act": "weird"}))
    copy = shutil.copytree(tmp_path / "source", tmp_path / "copy")
    output = run("verify", tmp_path / "source", copy, status=2).output
    assert "transformers cannot build a phi from its config.json" in words(output)


@pytest.mark.slow
def test_rows_are_no_longer_than_the_context(phi_mini, tmp_path):
    run("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "new")
    (tmp_path / "text.txt").write_text("word " * 10_000)
    output = run(
        "verify", phi_mini, tmp_path / "new", "--text", tmp_path / "text.txt", "--tokens", 5_000, "--json"
    ).output
    context = json.loads((phi_mini / "config.json").read_text())["max_position_embeddings"]
    assert json.loads(output)["shape"] == [2, context]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_words_that_cannot_be_written_end_with_a_message():
    command = [Path(sys.executable).with_name("growth"), "plan", "phi-mini", "-s", "examples/phi-mini"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr


UNREAD = {
    "a table": ("plan", "phi-mini", "-s", "{source}"),
    "JSON, which is written as the process ends": ("plan", "phi-mini", "-s", "{source}", "--json"),
    "a text": ("recipe", "{source}", "{source}/config.json"),
    "a help text": ("--help",),
    "a growth": ("grow", "phi-mini", "-s", "{source}", "-o", "{output}"),
    "a verification that fails": ("verify", "{source}", "{source}", "--weights", "--recipe", "double-depth"),
}


def with_closed_pipe(words, stream):
    """The status of a command whose stdout or stderr is a pipe that nobody reads, and what is on the other stream."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    command = [Path(sys.executable).with_name("growth"), *words]
    process = subprocess.run(command, text=True, check=False, **streams)
    os.close(writer)
    return process.returncode, process.stdout or process.stderr or ""


@pytest.mark.parametrize("kind", UNREAD)
def test_a_pipe_that_nobody_reads_ends_a_command_as_sigpipe_does(kind, phi_mini, tmp_path):
    """And not as a failed verification does, whose status is 1."""
    arguments = [word.format(source=phi_mini, output=tmp_path / "out") for word in UNREAD[kind]]
    assert with_closed_pipe(arguments, "stdout") == (141, "")
    assert (tmp_path / "out").exists() == (kind == "a growth")


def test_an_error_that_nobody_reads_ends_a_command_as_sigpipe_does():
    assert with_closed_pipe(["plan", "nowhere"], "stderr") == (141, "")


def test_a_path_that_is_no_folder_is_not_called_full(phi_mini, tmp_path):
    (tmp_path / "file").write_text("")
    output = words(run("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "file" / "new", status=2).output)
    assert "Choose another --output" in output
    assert "space" not in output


# ------------------------------------------------- what every command has

COMMANDS = ["plan", "grow", "verify", "inspect", "recipe", "recipes", "diagnose", "advise", "schedule", "family"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_has_examples_that_fit_its_options(command):
    said = run(command, "--help").output
    _, examples = said.split("Examples:")
    lines = [line.strip() for line in examples.replace("\\\n", "").splitlines() if line.strip()]
    assert all(line.startswith(f"growth {command}") for line in lines)
    options = {word for line in lines for word in line.split() if word.startswith("--")}
    assert all(option in said.split("Examples:")[0] for option in options)
    assert all(option in said for option in ("--json", "--quiet", "--verbose"))


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_every_help_text_fits_the_terminal(command, columns):
    said = CliRunner().invoke(app, [*command, "--help"], terminal_width=columns).output
    assert [line for line in said.splitlines() if len(line) > columns] == []
    assert command or "..." not in said.split("Commands:")[1]  # where a summary is cut


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("growth ver", ["verify"]),
        ("growth plan double-w", ["double-width", "double-width-exact"]),
        ("growth recipes sol", ["solar-10.7b"]),
        ("growth grow phi-mini --outp", ["--output"]),
        ("growth grow phi-mini --source pa", []),  # bash then completes the names of files
    ],
)
def test_bash_completes_commands_options_and_recipes(words, completed, monkeypatch):
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    monkeypatch.setenv("_GROWTH_COMPLETE", "complete_bash")
    assert sorted(CliRunner().invoke(app, prog_name="growth").output.split()) == completed


@pytest.mark.parametrize("arguments", ["recipe {source} {source}", "export double-depth --source {source}"])
def test_a_recipe_in_a_folder_that_does_not_exist_says_how_to_make_it(arguments, phi_mini, tmp_path):
    output = tmp_path / "none" / "recipe.yaml"
    said = run(*arguments.format(source=phi_mini).split(), "--output", output, status=2).output
    assert f"there is no folder {output.parent}. Make it first: mkdir -p" in words(said)


def test_a_mergekit_config_that_does_not_exist_is_not_called_a_recipe():
    assert "There is no mergekit config no.yaml. Name its YAML file" in words(run("import", "no.yaml", status=2).output)


@pytest.mark.parametrize("option", ["--output", "--source-config"])
def test_a_file_that_cannot_be_written_says_why(phi_mini, tmp_path, option):
    (tmp_path / "file").touch()
    for path, why in {
        tmp_path: "it is a folder. Name a file",
        tmp_path / "none" / "s": f"there is no folder {tmp_path / 'none'}. Make it first: mkdir -p",
        tmp_path / "file" / "s": f"{tmp_path / 'file'} is not a folder. Choose another place",
    }.items():
        assert why in words(run("schedule", phi_mini, option, path, status=2).output)


@pytest.mark.parametrize("arguments", [("plan", "nowhere"), ("plam",), ("plan",), ("plan", "phi-mini", "--sauce", "x")])
def test_every_error_begins_alike_and_exits_with_2(arguments):
    assert len(re.findall(r"(?m)^Error: ", run(*arguments, status=2).stderr)) == 1


def test_what_rounding_changes_is_said_where_a_model_is_grown(phi_mini, tmp_path):
    cast = words(run("grow", "double-depth", "-s", phi_mini, "-o", tmp_path / "a", "--dtype", "bf16").output)
    assert re.search(
        r"same function as its source, up to rounding: storing it in BF16 changes the logits by about \d", cast
    )
    assert "cast from F16" in words(run("plan", "double-depth", "-s", phi_mini, "--dtype", "bf16").output)
    assert "up to rounding" not in run("grow", "double-depth", "-s", phi_mini, "-o", tmp_path / "b").output


def test_quiet_leaves_results_and_errors(phi_mini, tmp_path):
    loud = run("plan", "phi-mini", "-s", phi_mini).output
    quiet = run("plan", "phi-mini", "-s", phi_mini, "--quiet").output
    assert loud.startswith(quiet.rstrip())
    assert "To run it: growth grow phi-mini --source" in words(loud)
    assert "To run it" not in quiet
    assert "Error: " in run("plan", "phi-mini", "-s", tmp_path / "none", "-q", status=2).output


def test_quiet_prints_the_verdict_of_a_proposal_alone(phi_mini, tmp_path):
    loud, quiet = (run("schedule", phi_mini, "--flops", "2e14", *more).output for more in ([], ["--quiet"]))
    assert "expected saving" in loud
    assert re.fullmatch(r"worth trying  By tokens per parameter, .*\n", quiet)


def test_recipes_lists_the_shipped_schedules_too(phi_mini):
    listed = run("recipes").output
    assert all(f" {path.stem} " in listed for path in shipped_schedules())


def test_verbose_logs_what_is_read(phi_mini):
    assert f"growth.checkpoints.open: {phi_mini}" in run("plan", "phi-mini", "-s", phi_mini, "-v").output
    assert "growth.checkpoints.open" not in run("plan", "phi-mini", "-s", phi_mini).output


def test_grow_and_recipe_print_json_alone(phi_mini, tmp_path):
    done = json.loads(run("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "new", "--json").stdout)
    assert done["complete"]
    assert done["written"]
    assert done["plan"]["parameters"] > done["plan"]["source_parameters"]
    assert done["verify"].startswith("growth verify ")
    derived = json.loads(run("recipe", phi_mini, tmp_path / "new" / "config.json", "--json").stdout)
    assert growth.plan(derived, phi_mini).config["hidden_size"] == done["plan"]["config"]["hidden_size"]


def test_recipes_lists_prints_and_chooses(phi_mini):
    listed = json.loads(run("recipes", "--json").stdout)
    assert "\nsteps:\n" in run("recipes", "double-width").stdout
    fitting = json.loads(run("recipes", "--for", phi_mini, "--json").stdout)
    assert {"phi-mini", "double-width"} <= fitting.keys() < listed.keys()
    assert "qwen3-0.6b-to-moe" not in fitting


def test_no_color_is_respected(phi_mini, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    result = CliRunner().invoke(app, ["plan", "nowhere"], color=True)
    assert "Error: " in result.output
    assert "\x1b[3" not in result.output


@pytest.mark.parametrize(
    "arguments", [("plan", "double-both"), ("recipes",), ("inspect",), ("schedule",)], ids=lambda words: words[0]
)
def test_tables_fit_80_columns(phi_mini, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    where = {"plan": ("-s", phi_mini), "inspect": (phi_mini,), "schedule": (phi_mini,)}.get(arguments[0], ())
    result = CliRunner().invoke(app, [*arguments, *map(str, where)])
    tables = [line for line in result.output.splitlines() if line.startswith(" ")]
    assert max(map(len, tables)) <= 80


@pytest.mark.parametrize("command", [["plan", "double-width"], ["grow", "double-width", "--output", "new"]])
def test_a_source_without_its_option_is_told_how_it_is_named(command):
    assert "--source SOURCE" in words(run(*command, "my-model", status=2).output)


def test_a_shipped_schedule_is_printed_by_its_name():
    text = run("recipes", "width-mid-training").stdout
    assert growth.load_schedule("width-mid-training").description in " ".join(text.split())
    stages = json.loads(run("recipes", "width-mid-training", "--json").stdout)["stages"]
    assert len(stages) == len(growth.load_schedule("width-mid-training").stages)
