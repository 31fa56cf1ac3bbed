"""What commands print with --json is what docs/json.md states: every key, and the type of every value."""

import json

import pytest
from typer.testing import CliRunner

from docs.json_schema import OUTPUTS, Recipe, check
from growth.cli.app import app
from growth.training.schedule import shipped_schedules

QUICK = {
    "plan": "plan double-both -s {source}",
    "grow": "grow phi-mini -s {source} -o {new}",
    "inspect": "inspect {grown}",
    "recipe": "recipe {source} {grown}/config.json",
    "export": "export double-depth --source {source}",
    "diagnose": "diagnose {grown} {grown}",
    "advise": "advise --params 1.3B --tokens 150B --to 2.7B --planned-tokens 1.4T",
    "schedule": "schedule {source} --flops 2e14",
}
SLOW = {
    "verify --weights": "verify {source} {grown} --weights",
    "verify": "verify {source} {grown} --recipe double-both --generation --stability",
    "family": "family llama -o {new}",
}


def printed(command, **folders):
    arguments = [word.format(**folders) for word in command.split()]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code in (0, 1, 3), done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def grown(tmp_path_factory, phi_mini):
    folder = tmp_path_factory.mktemp("json") / "grown"
    printed("grow double-both -s {source} -o {new}", source=phi_mini, new=folder)
    return folder


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_output_is_as_it_is_documented(name, phi_mini, grown, tmp_path):
    check(OUTPUTS[name], printed((QUICK | SLOW)[name], source=phi_mini, grown=grown, new=tmp_path / "new"))


def test_every_command_is_documented():
    documented = {name.split()[0] for name in OUTPUTS} | {"recipes"}
    assert documented == {command.name or command.callback.__name__ for command in app.registered_commands}


def test_recipes_are_documented():
    for recipe in printed("recipes").values():
        check(Recipe, recipe)


@pytest.mark.parametrize("path", shipped_schedules(), ids=lambda path: path.stem)
def test_schedules_are_documented(path):
    check(OUTPUTS["recipes SCHEDULE"], printed(f"recipes {path.stem}"))


def test_an_error_leaves_nothing_on_stdout(tmp_path):
    done = CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert str(tmp_path) in done.stderr
