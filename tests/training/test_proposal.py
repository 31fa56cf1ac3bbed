"""Proposed schedules: reachable exactly, within their budget, and never surer than their evidence."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

import growth
from growth.architectures import architecture
from growth.cli.app import app
from growth.errors import ConfigError, RecipeError
from growth.training.advice import count_text
from growth.training.evidence import findings
from growth.training.flops import flops_per_token
from tests.support.paths import PHI_MINI, ROOT
from tests.support.published import Published, published, write_headers

# odd numbers of heads, one KV head, layers of several kinds, LayerNorm without gain (depth alone), ALiBi, experts, QK-norm
NAMES = [
    "openai-community/gpt2-xl", "google/gemma-3-1b-pt", "allenai/OLMo-1B-hf", "tiiuae/falcon-rw-1b", "tiiuae/falcon-7b",
    "mistralai/Mixtral-8x7B-v0.1", "allenai/OLMo-2-0425-1B", "HuggingFaceTB/SmolLM2-135M", "EleutherAI/pythia-70m",
]  # fmt: skip
SMALL = published()["EleutherAI/pythia-70m"].config  # 6 layers
DEEP = published()["HuggingFaceTB/SmolLM2-135M"].config  # 30 layers


def propose(config, per_parameter=20, stages=1):
    tokens = per_parameter * architecture(config).parameters(active=True)
    return growth.propose_schedule(config, tokens=tokens, stages=stages)


@pytest.mark.parametrize("name", NAMES)
def test_a_proposed_schedule_leads_from_its_source_to_the_target_exactly(name, tmp_path):
    target = published()[name].config
    found = propose(target)
    (tmp_path / "schedule.yaml").write_text(found.yaml())
    config = json.loads(found.source_config)
    source = write_headers(
        Published("source", config, found.source.parameters, found.source.parameters), tmp_path / "source"
    )
    plans = growth.load_schedule(tmp_path / "schedule.yaml").plans(source)
    assert all(plan.preserving for plan in plans)
    reached, wanted = architecture(plans[-1].config), architecture(target)
    assert (reached.shapes(), reached.spaces, reached.depth) == (wanted.shapes(), wanted.spaces, wanted.depth)
    assert found.target.config == target


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("budget", [{"flops": 1e19}, {"tokens": "7.7B"}, {}])
def test_what_all_models_take_is_the_budget(stages, budget):
    found = growth.propose_schedule(DEEP, stages=stages, **budget)
    assert sum(model.flops for model in found.models) == found.flops
    times = [stage.at.flops for stage in found.schedule.over().stages]
    assert times == [sum(model.flops for model in found.models[: number + 1]) for number in range(stages)]
    for model in found.models:
        assert model.flops_per_token == flops_per_token(architecture(model.config))
        assert 0 <= model.flops - model.tokens * model.flops_per_token < model.flops_per_token
    if "tokens" in budget:
        assert found.flops == pytest.approx(7.7e9 * found.target.flops_per_token)
    if not budget:
        assert found.tokens_per_parameter == pytest.approx(20)


def test_every_model_is_half_the_next_in_width_or_depth_and_has_its_vocabulary():
    found = propose(DEEP, stages=3)
    assert [model.grows for model in found.models] == ["width", "depth", "width", None]
    for model, following in zip(found.models[:-1], found.models[1:], strict=True):
        small, large = architecture(model.config), architecture(following.config)
        ratios = large.axes["residual"].size / small.axes["residual"].size, large.depth / small.depth
        assert ratios == ((2, 1) if model.grows == "width" else (1, 2))
        assert small.axes["vocab"] == large.axes["vocab"]


def test_the_file_says_what_was_proposed(tmp_path):
    found = propose(DEEP, stages=2)
    path = tmp_path / "schedule.yaml"
    path.write_text(found.yaml())
    read = growth.load_schedule(path)
    assert (read.description, read.until) == (found.schedule.description, found.schedule.until)
    assert read.over().stages[1].at == found.schedule.over().stages[1].at
    assert [stage.recipe.steps for stage in read.stages] == [model.recipe.steps for model in found.models[:-1]]
    assert all(reason in found.yaml() for reason in found.reasons)


# ------------------------------------------------- what is expected of it

MEASURED = [
    line for line in findings({"chinchilla": 20, "yours": ""}, ["width"]) if line.saving and not line.overstated
]
POINTS = sorted({ratio for line in MEASURED for ratio in line.saving})


def measured(*ratios):
    """The least and the most that was measured at any of these tokens per parameter."""
    ends = [end for line in MEASURED for ratio in ratios for end in line.saving.get(ratio, ())]
    return min(ends), max(ends)


def verdict_of(least, most):
    return "worth trying" if least >= 1 else "unknown" if most > 1 else "not worth it"


@pytest.mark.parametrize("ratio", POINTS)
def test_the_saving_is_the_measured_one_where_it_was_measured(ratio):
    found = propose(DEEP, ratio)
    assert found.saving == measured(ratio)
    assert found.verdict == verdict_of(*found.saving)


@pytest.mark.parametrize(("below", "above"), list(pairwise(POINTS)))
def test_between_measured_points_the_saving_spans_both(below, above):
    found = propose(DEEP, (below + above) // 2)
    assert found.saving == measured(below, above)
    assert found.verdict == verdict_of(*found.saving)


def test_between_two_measured_points_nothing_is_said_to_be_measured():
    for low, high in pairwise(POINTS):
        said = propose(DEEP, (low + high) // 2).reasons[0]
        assert f"× at {low:g} and " in said
        assert f"× at {high:g} (95 % intervals); yours is {(low + high) // 2:g}, where nothing was measured." in said
    assert "nothing was measured" not in " ".join(propose(DEEP, POINTS[1]).reasons)


def test_a_range_that_includes_1_is_no_recommendation():
    for low, high in pairwise(POINTS):
        found = propose(DEEP, (low + high) // 2)
        includes = found.saving[0] < 1 < found.saving[1]
        assert ("That includes 1×" in " ".join(found.reasons)) == includes
        assert not includes or found.verdict == "unknown"


@pytest.mark.parametrize("layers", [0, 1, 5])
def test_targets_of_fewer_layers_than_any_that_was_measured_are_not_recommended(layers):
    found = propose({**SMALL, "num_hidden_layers": layers}, 15)
    assert found.verdict == "unknown"
    assert "No target of fewer than 6 layers was measured." in found.reasons


def test_the_proposal_says_how_to_train_by_it(tmp_path):
    path = tmp_path / "s.yaml"
    output = " ".join(invoke(PHI_MINI, "-o", path, "--source-config", tmp_path / "c.json").output.split())
    for said in (f"GrowthCallback.from_schedule('{path}')", "max_steps", 'include_num_input_tokens_seen="all"'):
        assert said in output
    assert "GrowthCallback.from_schedule" in path.read_text()
    assert "To write" not in output
    assert "To write" in invoke(PHI_MINI).output


def test_what_is_extrapolated_is_said():
    assert "For 135M parameters and 30 layers it was not measured: this is extrapolated." in propose(DEEP).reasons
    assert "For 70.4M parameters it was not measured: this is extrapolated." in propose(SMALL).reasons


@pytest.mark.parametrize(
    ("config", "per_parameter", "stages", "verdict", "reason"),
    [
        (DEEP, 41, 1, "not worth it", "The training is long: 41 tokens per parameter"),
        (
            DEEP,
            2000,
            1,
            "not worth it",
            "The saving was 0.71 to 2.09× at 40 (95 % intervals), and was not measured beyond.",
        ),
        (DEEP, 4, 1, "not worth it", "The training is short: 4 tokens per parameter. The saving was 0.78× at 5"),
        (DEEP, 20, 2, "unknown", "No finding says what several exact growths in one run save"),
        (DEEP, 20, 3, "not worth it", "The factor is too large: the width grows 4×"),
        (SMALL, 20, 2, "not worth it", "few layers, 6: growth in depth was seen to pay from 12"),
        (published()["allenai/OLMo-1B-hf"].config, 20, 1, "unknown", "what an exact growth in depth saves"),
    ],
)
def test_growth_is_not_promised_beyond_its_evidence(config, per_parameter, stages, verdict, reason):
    found = propose(config, per_parameter, stages)
    assert (found.verdict, found.saving) == (verdict, None)
    assert reason in " ".join(found.reasons)


def test_findings_on_other_growths_are_listed_where_nothing_known_excludes_them():
    where = [line.source.where for line in propose(published()["meta-llama/Llama-2-7b-hf"].config).evidence]
    assert "arXiv 2511.04981" in where  # 12 to 60 layers, up to 7B
    assert "arXiv 2511.04981" not in [line.source.where for line in propose(SMALL).evidence]
    assert "arXiv 2604.19835" not in where  # experts


def test_the_table_of_evidence():
    """Savings lie where their finding was seen, and every publication that the issue names is there."""
    lines = growth.advise("1.3B", "150B", "2.7B").evidence
    for line in lines:
        assert all(least <= most for least, most in (*line.seen.values(), *line.saving.values()))
        if line.saving:
            least, most = line.seen["tokens_per_parameter"]
            assert [min(line.saving), max(line.saving)] == [least, most]
    cited = " ".join(line.source.where for line in lines)
    for paper in ("2605.13405", "2511.04981", "2602.02472", "2512.08819", "2604.19835", "2405.15319", "2409.19044"):
        assert paper in cited


# ------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flops": 1e19, "tokens": "1B"}, "Both flops and tokens"),
        ({"flops": "much"}, "'much' is not a number of FLOPs"),
        ({"flops": 1e7}, "1e[+]07 FLOPs are too few for 2 models"),
        ({"stages": 0}, "stages is 0: a proposal has 1 to 8 growths"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        growth.propose_schedule(SMALL, **arguments)


def test_a_target_that_no_smaller_model_reaches_is_refused():
    target = {**published()["tiiuae/falcon-rw-1b"].config, "num_hidden_layers": 1}
    with pytest.raises(RecipeError, match=r"No falcon of half the width .*ALiBi[\s\S]*half the depth .*It has 1 layer"):
        growth.propose_schedule(target)


def test_more_stages_than_halvings_are_refused_with_their_number_and_no_word_on_the_targets_own_config():
    with pytest.raises(RecipeError, match=r"Of 8 stages only 6 are possible: use stages=6\.") as caught:
        growth.propose_schedule(PHI_MINI, flops=1e15, stages=8)
    assert "config.json has" not in str(caught.value)
    assert len(growth.propose_schedule(PHI_MINI, flops=1e15, stages=6).models) == 7


def test_a_file_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"There is no nowhere/config.json. Name a config.json, a folder"):
        growth.propose_schedule("nowhere/config.json")


# ------------------------------------------------- the command


def invoke(*arguments):
    return CliRunner().invoke(app, ["schedule", *map(str, arguments)])


def test_the_command_writes_what_it_proposes(tmp_path):
    schedule, config = tmp_path / "schedule.yaml", tmp_path / "config.json"
    result = invoke(PHI_MINI, "--tokens", "30M", "-o", schedule, "--source-config", config)
    assert result.exit_code == 0, result.output
    assert "Wrote" in result.output
    found = growth.propose_schedule(PHI_MINI, tokens="30M")
    assert schedule.read_text() == found.yaml()
    assert json.loads(config.read_text()) == found.source.config
    assert "dtype" in found.target.config
    assert "dtype" not in found.source.config  # the target's file is stored in float16
    again = invoke(PHI_MINI, "-o", schedule)
    assert again.exit_code == 2
    assert "exists already" in again.output


@pytest.mark.parametrize(
    ("arguments", "status", "verdict"),
    [
        (["--flops", "2e14"], 0, "worth trying"),
        (["--flops", "4e14"], 3, "unknown"),
        (["--tokens", "1T"], 1, "not worth it"),
        (["--tokens", "12M"], 3, "unknown"),
        (["--tokens", "8M"], 1, "not worth it"),
    ],
)
def test_the_exit_status_is_the_verdict(arguments, status, verdict):
    text, as_json = (invoke(Path(PHI_MINI) / "config.json", *arguments, *more) for more in ([], ["--json"]))
    assert (text.exit_code, as_json.exit_code) == (status, status), text.output
    assert verdict in text.output
    content = json.loads(as_json.output)
    assert content["verdict"] == verdict
    assert [model["config"]["hidden_size"] for model in content["models"]] == [64, 128]


def test_the_docs_show_what_the_command_prints():
    block = (ROOT / "docs" / "advise.md").read_text().split("$ growth schedule examples/phi-mini --flops 2e14\n")[1]
    printed = CliRunner().invoke(app, ["schedule", str(PHI_MINI), "--flops", "2e14"], env={"COLUMNS": "80"}).output
    lines = [line.rstrip() for line in printed.splitlines()]
    assert block.split("```")[0].strip("\n") in "\n".join(lines)


def test_the_table_says_how_much_more_data_than_from_scratch_the_run_takes():
    found = growth.propose_schedule(PHI_MINI, flops=3e14)
    data = sum(model.tokens for model in found.models)
    more = data - found.flops // found.target.flops_per_token
    assert more > 0
    assert f"{count_text(data)} tokens for all models, {count_text(more)} more than from scratch" in str(found)
