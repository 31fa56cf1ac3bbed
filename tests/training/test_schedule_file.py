"""Schedules: a closed schema in YAML 1.2, with errors that name file, stage and remedy."""

import pytest

import growth
from growth.errors import ConfigError, GrowthError, RecipeError
from growth.operators import widen
from growth.training.schedule import Moment, Stage, dump_schedule, parse_schedule, shipped_schedules

HEAD = "description: d\nstages:\n"
WIDER = "recipe: [{op: widen, axis: ffn, factor: 2}]"

BAD = {
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, optimiser: carry}}": "s.yaml, stage 1: unknown key 'optimiser'. Known: at, recipe, opt",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, optimizer: keep}}": r"s.yaml, stage 1: optimizer: .*'carry', 'reset' or 'fresh' \(got 'keep'\)",
    f"{HEAD}  - {{{WIDER}}}": "s.yaml, stage 1: 'at' is missing. Known: at, recipe",
    f"{HEAD}  - {{at: {{steps: 5}}}}": "s.yaml, stage 1: 'recipe' is missing",
    f"{HEAD}  - {{at: {{epochs: 5}}, {WIDER}}}": "s.yaml, stage 1: at: give one of {steps: …}, {tokens: …}, {flops: …}, {share: …}",
    f"{HEAD}  - {{at: {{steps: 5, tokens: 9}}, {WIDER}}}": "s.yaml, stage 1: at: give one of",
    f"{HEAD}  - {{at: 5, {WIDER}}}": "s.yaml, stage 1: at: give one of",
    f"{HEAD}  - {{at: {{steps: 2.5}}, {WIDER}}}": r"s.yaml, stage 1: at: give one of steps, tokens and flops, as a whole number .*\(got {'steps': 2.5}\)",
    f"{HEAD}  - {{at: {{share: 1.5}}, {WIDER}}}": "s.yaml, stage 1: at: .*share, as a number between 0 and 1",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, rewarm: {{steps: 0}}}}": "s.yaml, stage 1: rewarm.steps: .*greater than 0",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, rewarm: {{steps: 3, off: new}}}}": "s.yaml, stage 1: unknown key 'rewarm.off'. Known: steps, share, of",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, rewarm: {{of: all}}}}": "s.yaml, stage 1: rewarm: give its length: one of {steps: …} and {share: …}",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, rewarm: {{steps: 3, share: 0.1}}}}": "s.yaml, stage 1: rewarm: give its length: one of",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, rewarm: {{steps: 3, of: old}}}}": "rewarm.of: .*'new' or 'all'",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, rates: {{older: 1}}}}": "unknown key 'rates.older'. Known: old, copies, fresh, new_layers",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, rates: {{old: -1}}}}": "rates.old: .*greater than or equal to 0",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, rates: {{old: 0, copies: 0, fresh: 0, new_layers: 0}}}}": "stage 1: rates: all rates are 0",
    f"{HEAD}  - {{at: {{steps: 5}}, recipe: 5}}": r"s.yaml, stage 1: recipe: give the name of a shipped recipe, .* \(got 5\)",
    f"{HEAD}  - {{at: {{steps: 5}}, recipe: [{{op: wide}}]}}": "s.yaml, stage 1, step 1: every step needs an 'op'",
    f"{HEAD}  - {{at: {{steps: 5}}, recipe: {{stepz: []}}}}": "s.yaml, stage 1: unknown key 'stepz'",
    f"{HEAD}  - {{at: {{steps: 5}}, recipe: no-such}}": "s.yaml, stage 1: recipe: No recipe file or shipped recipe 'no-such'",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}}}\n  - {{at: {{steps: 5}}, {WIDER}}}": "s.yaml: stage 2 is after 5 steps and stage 1 after 5 steps: list stages in the order",
    f"until: {{steps: 5}}\n{HEAD}  - {{at: {{steps: 5}}, {WIDER}}}": "a stage is after 5 steps and the run ends after 5 steps",
    f"until: {{share: 0.5}}\n{HEAD}  - {{at: {{steps: 5}}, {WIDER}}}": "until: the length of a run is a number of steps, tokens or flops",
    "description: d\nstages: []": "a schedule has 1 to 64 stages, not 0",
    "description: d\nstages: 5": "s.yaml: stages: must be a list",
    f"{HEAD}  - {{at: {{step: 5}}, {WIDER}}}": "s.yaml, stage 1: at: give one of .* Did you mean 'steps'",
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}, rewarm: 5}}": r"s.yaml, stage 1: rewarm: must be a mapping of steps, share, of, start \(got 5\)",
    f"{HEAD}  - 5": "s.yaml, stage 1: must be a mapping of at, recipe, optimizer, rewarm, rates",
    "stages: [": "s.yaml is not YAML 1.2",
    "- 1": "s.yaml holds no mapping: a schedule is a mapping with 'stages'",
    "description: &a d\nreference: *a": "aliases; a schedule states every stage in full",
    f"colour: red\n{HEAD}  - {{at: {{steps: 5}}, {WIDER}}}": "unknown key 'colour'. Known: description, reference, until, stages",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: BAD[text][:50])
def test_what_is_not_a_schedule_is_refused(text):
    with pytest.raises(GrowthError, match=BAD[text]) as refusal:
        parse_schedule(text, "s.yaml")
    assert isinstance(refusal.value, ConfigError | RecipeError)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"No schedule file or shipped schedule 'tripled'. Shipped: .*double"):
        growth.load_schedule("tripled")


@pytest.mark.parametrize("path", shipped_schedules(), ids=lambda path: path.stem)
def test_shipped_schedules_are_found_by_name_and_survive_a_round_trip(path):
    schedule = growth.load_schedule(path.stem)
    again = parse_schedule(dump_schedule(schedule), path.name)
    assert schedule.reference
    assert (again.description, again.reference, again.until) == (
        schedule.description,
        schedule.reference,
        schedule.until,
    )
    for one, other in zip(schedule.stages, again.stages, strict=True):
        assert one.model_dump(exclude={"recipe"}) == other.model_dump(exclude={"recipe"})
        assert (one.recipe.steps, one.recipe.seed) == (other.recipe.steps, other.recipe.seed)


def test_a_recipe_is_found_beside_the_schedule(tmp_path):
    (tmp_path / "mine.yaml").write_text("description: mine\nsteps: [{op: deepen, to: 3}]")
    (tmp_path / "s.yaml").write_text(f"{HEAD}  - {{at: {{steps: 5}}, recipe: mine.yaml}}")
    assert growth.load_schedule(tmp_path / "s.yaml").stages[0].recipe == growth.load_recipe(tmp_path / "mine.yaml")


MIXED = parse_schedule(
    f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}}}\n  - {{at: {{tokens: 2e3}}, {WIDER}, optimizer: fresh}}", "s.yaml"
)


def test_the_stage_in_force():
    assert MIXED.at(step=4, tokens=0) is None
    assert MIXED.at(step=5, tokens=1999) == MIXED.stages[0]
    assert MIXED.at(step=4, tokens=2000) is None  # a stage waits for those before it
    assert MIXED.at(step=6, tokens=2000) == MIXED.stages[1]
    with pytest.raises(ConfigError, match=r"s.yaml, stage 2 is after 2000 tokens: give tokens= too"):
        MIXED.at(step=6)


@pytest.mark.parametrize(("unit", "total"), [("steps", 1000), ("tokens", 2e9), ("flops", 1e19)])
def test_shares_are_of_the_length_of_the_run(unit, total):
    schedule = growth.load_schedule("double")
    assert schedule.over(**{unit: total}).stages[0].at == Moment(**{unit: total / 4 if unit != "steps" else 250})
    with pytest.raises(ConfigError, match=r"double.yaml states times as shares .* schedule.over\(steps=10_000\)"):
        schedule.over()


def test_plans_are_made_in_turn_from_headers(phi_mini):
    plans = MIXED.plans(phi_mini)
    assert [plan.target.axes["ffn"].size for plan in plans] == [1024, 2048]
    small = parse_schedule(
        f"{HEAD}  - {{at: {{steps: 5}}, {WIDER}}}\n  - {{at: {{steps: 9}}, recipe: [{{op: widen, axis: ffn, to: 600}}]}}",
        "s.yaml",
    )
    with pytest.raises(RecipeError, match=r"^s.yaml, stage 2, step 1 \(widen\): Cannot shrink ffn from 1024 to 600"):
        small.plans(phi_mini)


def test_a_schedule_in_place_of_a_recipe_says_what_it_is(phi_mini):
    [path] = [path for path in shipped_schedules() if path.stem == "double"]
    with pytest.raises(RecipeError, match=r"double.yaml is a schedule.* GrowthCallback.from_schedule"):
        growth.plan(path, phi_mini)
    with pytest.raises(RecipeError, match=r"double.yaml is a schedule"):
        growth.plan("double", phi_mini)


def test_a_recipe_in_place_of_a_schedule_says_what_it_is():
    with pytest.raises(ConfigError, match=r"double-depth.yaml is a recipe.*'stages: "):
        growth.load_schedule("double-depth")


def test_an_operator_of_python_cannot_be_written():
    stage = Stage(at=Moment(steps=1), recipe=widen("ffn", factor=2))
    with pytest.raises(ConfigError, match="Stage 1 has an operator that was given in Python"):
        dump_schedule(growth.Schedule(description="d", stages=[stage]))
