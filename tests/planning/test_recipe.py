"""Recipes: a closed schema in YAML 1.2, with errors that name file, step and remedy."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import growth
from growth import GrowthError, RecipeError, load_recipe
from growth.architectures import architecture
from growth.planning.recipe import dump_recipe, parse_recipe, recipe_of, shipped_recipes
from tests.support.configs import CONFIG
from tests.support.hostile import bounded

HEAD = "description: d\nsteps:\n"

BAD = [
    (
        HEAD + "  - {op: widen, axis: ffn, too: 3, to: 60}",
        r"r.yaml, step 1 \(widen\): unknown key 'too'. Known: .*factor",
    ),
    (HEAD + "  - {op: deepen, to: 4}\n  - {op: widen, axis: ffn}", r"step 2 \(widen\): give exactly one of 'to'"),
    (
        HEAD + "  - {op: widen, axis: ffn, to: 60, factor: 2}",
        r"step 1 \(widen\): give exactly one of 'to' \(a size\), 'factor' \(a ratio\) and 'multiple'",
    ),
    (HEAD + "  - {op: widen, to: 60}", r"step 1 \(widen\): 'axis' is missing"),
    (HEAD + "  - {op: wide, axis: ffn}", "step 1: every step needs an 'op', one of widen, deepen"),
    (HEAD + "  - {axis: ffn}", "step 1: every step needs an 'op'"),
    (HEAD + "  - widen", "step 1"),
    (HEAD + "  - {op: widen, axis: ffn, to: '60'}", r"step 1 \(widen\): to: .*whole number.*'60'"),
    (HEAD + "  - {op: widen, axis: ffn, to: 60.0}", r"to: .*whole number"),
    (HEAD + "  - {op: widen, axis: ffn, to: true}", r"to: .*whole number"),
    (HEAD + "  - {op: widen, axis: ffn, to: -4}", r"to: .*greater than 0"),
    (HEAD + "  - {op: widen, axis: ffn, factor: .nan}", r"nan is not a finite number"),
    (HEAD + "  - {op: widen, axis: ffn, to: 60, init: zeros}", r"init: .*'tile', 'sample', 'pad'"),
    (HEAD + "  - {op: deepen, order: [0, one]}", r"step 1 \(deepen\): order"),
    (HEAD + "  - {op: reuse, to: {ffn: many}}", r"step 1 \(reuse\): to.ffn: .*whole number"),
    ("description: d\nsteps: []", "a recipe has 1 to 1000 steps, not 0"),
    ("description: d\nsteps: 5", "steps: .*list"),
    ("description: d", "r.yaml: 'steps' is missing. Known: description, source"),
    ("description: d\ncolour: red\nsteps: [{op: deepen, to: 4}]", "unknown key 'colour'. Known: description, source"),
    ("description: d\nname: n\nsteps: [{op: deepen, to: 4}]", "unknown key 'name'"),
    ("description: d\ndescription: e\nsteps: []", "not YAML 1.2: .*duplicate key"),
    (HEAD + "  - {op: widen, axis: ffn, to: 60, to: 61}", "duplicate key"),
    ("description: d\nsteps: [", "not YAML 1.2"),
    ("- 1", "holds no mapping"),
    ("", "holds no mapping"),
    ("description: &a d\nsource: *a\nsteps: [{op: deepen, to: 4}]", "aliases"),
    ("description: !!python/object:os.system d\nsteps: []", "uses the YAML tag"),
    ("description: d\nseed: -1\nsteps: [{op: deepen, to: 4}]", "seed: .*greater than or equal to 0"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_is_not_a_recipe_is_refused(text, message):
    with pytest.raises(RecipeError, match=message) as refusal:
        parse_recipe(text, "r.yaml")
    assert "r.yaml" in str(refusal.value)


def test_a_million_steps_are_refused_for_their_number(tmp_path):
    text = HEAD + "  - {op: deepen, to: 4}\n" * 10**6
    with (
        bounded(4),
        pytest.raises(RecipeError, match=r"r.yaml is too large for a recipe: at most .* about 5,000 values"),
    ):
        parse_recipe(text, "r.yaml")
    (tmp_path / "r.yaml").write_text(text)
    with bounded(), pytest.raises(RecipeError, match=r"r.yaml has 24,.* bytes; at most 262,144 are read"):
        load_recipe(tmp_path / "r.yaml")
    steps = [{"op": "deepen", "to": 4}] * 10**6
    with pytest.raises(RecipeError, match="a recipe has 1 to 1000 steps, not 1,000,000"):
        recipe_of({"description": "d", "steps": steps}, "growth.json")


def test_all_errors_of_a_recipe_are_said_at_once_and_what_is_missing_last():
    with pytest.raises(RecipeError) as refusal:
        parse_recipe("seed: x\nname: n\nstep: [{op: deepen, to: 4}]\nexpect: 5", "r.yaml")
    assert [line.partition(":")[2].partition(":")[0] for line in refusal.value.args] == [
        " unknown key 'name'. Known",
        " seed",
        " expect",
        " unknown key 'step'. Known",
        " 'steps' is missing. Known",
    ]
    with pytest.raises(RecipeError) as refusal:
        parse_recipe("steps:\n  - {op: widn, axis: ffn, to: 60}\n  - {op: deepen, too: 4}", "r.yaml")
    assert [line[:14] for line in refusal.value.args] == ["r.yaml, step 1", "r.yaml, step 2"]


def test_a_description_may_be_left_out(phi_mini, tmp_path):
    recipe = parse_recipe("steps: [{op: deepen, factor: 2}]", "r.yaml")
    assert recipe.description == ""
    assert parse_recipe(dump_recipe(recipe), "r.yaml") == recipe
    assert "description" not in recipe.to_dict()
    growth.grow(recipe, phi_mini, tmp_path / "grown")
    assert growth.verify_weights(phi_mini, tmp_path / "grown").passed
    assert "Recipe:" not in (tmp_path / "grown" / "README.md").read_text()


@pytest.mark.parametrize("path", list(shipped_recipes()), ids=lambda path: path.stem)
def test_shipped_recipes_say_what_they_are_for(path):
    assert load_recipe(path).description


def test_errors_when_applied_name_the_step():
    recipe = parse_recipe(HEAD + "  - {op: deepen, to: 4}\n  - {op: widen, axis: ffn, to: 4}", "r.yaml")
    with pytest.raises(RecipeError, match=r"r.yaml, step 2 \(widen\): Cannot shrink ffn from 48 to 4"):
        recipe.grow(architecture(CONFIG), 0)


def test_yaml_1_2_numbers_and_words():
    recipe = parse_recipe("description: no\nexpect: {eps: 1e-5, on: off}\nsteps: [{op: deepen, to: 4}]", "r")
    assert recipe.description == "no"
    assert recipe.expect == {"eps": 1e-5, "on": "off"}


def test_expectations_are_held(phi_mini, tmp_path):
    for text, message in [
        ("expect: {hidden_size: 999}", "expects hidden_size = 999; with this source the result has 128"),
        ("expect: {wings: 2}", "expects wings = 2; the result's config has no such key"),
    ]:
        path = tmp_path / "r.yaml"
        path.write_text(f"description: d\n{text}\nsteps: [{{op: deepen, to: 8}}]")
        with pytest.raises(RecipeError, match=message):
            growth.plan(path, phi_mini)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"'nowhere'.*phi-1.5-to-phi-2"):
        load_recipe("nowhere")


@pytest.mark.parametrize("path", list(shipped_recipes()), ids=lambda path: path.stem)
def test_shipped_recipes_are_found_by_name_and_survive_a_round_trip(path):
    recipe = load_recipe(path.stem)
    again = parse_recipe(dump_recipe(recipe), recipe.name)
    assert again == recipe


def test_named_recipes_are_shipped():
    assert {path.stem for path in shipped_recipes()} >= {
        "phi-1.5-to-phi-2",
        "phi-1.5-to-phi-2-tile",
        "phi-1.5-to-phi-2-rescaled-eps",
        "phi-1.5-to-phi-2-reuse",
        "phi-mini",
        "double-width",
        "double-width-exact",
        "double-depth",
        "double-both",
    }


def test_seeds_of_steps_and_of_the_recipe():
    def copied(text, seed):
        recipe = parse_recipe(text, "r")
        return recipe.grow(architecture(CONFIG), seed).expansions["ffn"].source.tolist()

    loose = HEAD + "  - {op: widen, axis: ffn, factor: 2, init: sample}"
    fixed = HEAD + "  - {op: widen, axis: ffn, factor: 2, init: sample, seed: 5}"
    assert copied(loose, 1) == copied(loose, 1) != copied(loose, 2)
    assert copied(fixed, 1) == copied(fixed, 2)


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_an_error_of_ours(text):
    with bounded(), contextlib.suppress(GrowthError):
        parse_recipe(text, "r.yaml")


STEPS = [{"op": "widen", "axis": "ffn", "factor": 1.5, "init": "pad"}, {"op": "deepen", "factor": 2}]
TEXT = "description: d\nsteps:\n  - {op: widen, axis: ffn, factor: 1.5, init: pad}\n  - {op: deepen, factor: 2}\n"


@pytest.mark.parametrize(
    "recipe",
    [
        TEXT,
        {"steps": STEPS},
        {"description": "d", "steps": STEPS},
        STEPS,
        [growth.widen("ffn", factor=1.5, init="pad"), growth.deepen(factor=2)],
    ],
    ids=["text", "mapping", "described", "steps", "operators"],
)
def test_whatever_states_a_recipe_is_one(recipe, phi_mini, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(TEXT)
    monkeypatch.setenv("HOME", str(tmp_path))
    stated, filed = growth.plan(recipe, phi_mini), growth.plan("~/recipe.yaml", phi_mini)
    assert stated.config == filed.config
    assert list(map(vars, stated.growth.steps)) == list(map(vars, filed.growth.steps))


def test_one_step_is_a_recipe(phi_mini):
    step = {"op": "deepen", "factor": 2}
    assert growth.plan(step, phi_mini).growth.steps == growth.plan([step], phi_mini).growth.steps
    with pytest.raises(RecipeError, match=r"unknown key 'facter'.*Did you mean 'factor'"):
        growth.plan({"op": "deepen", "facter": 2}, phi_mini)
