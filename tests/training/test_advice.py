"""Advice states what its sources state."""

import json

import pytest
from typer.testing import CliRunner

import growth
from growth.cli.app import app
from growth.errors import ConfigError
from growth.training.advice import count_text, growth_timing, parse_count, training_flops

# Du et al. 2024, the table of the authors' own repository (github.com/tongxuluo/prts): N, D, d
PUBLISHED = [(8e9, 15e12, 6.58e9), (7e9, 2e12, 11.11e9), (13e9, 2e12, 15.84e9), (70e9, 2e12, 42.48e9)]


@pytest.mark.parametrize(("parameters", "tokens", "timing"), PUBLISHED)
def test_the_growth_timing_is_the_published_one(parameters, tokens, timing):
    assert growth_timing(parameters, training_flops(parameters, tokens)) == pytest.approx(timing, abs=0.005e9)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.3B", 1_300_000_000), ("350M", 350_000_000), ("2T", 2 * 10**12), ("10k", 10_000), ("1e9", 10**9), (7, 7),
     ("2,700,000,000", 2_700_000_000), (" 410m ", 410_000_000)],
)  # fmt: skip
def test_numbers_are_read_exactly(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize(
    "text", ["", "B", "1.3X", "-1B", "0", "0.1", "1.3", "1..3B", "1.3 billion", "1,3B", "1,30B", "10,00"]
)
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ConfigError, match="is not a number of parameters or tokens"):
        parse_count(text)


@pytest.mark.parametrize("text", ["1e31", "1e308", "1e400", "1e9999", "1e30T"])
def test_numbers_beyond_any_training_run_are_refused_as_too_large(text):
    with pytest.raises(ConfigError, match=rf"{text} FLOPs are too many: at most 1e\+30"):
        parse_count(text, "FLOPs")


def test_numbers_are_written_as_they_are_read():
    for text in ("1.3B", "350M", "2T", "10K", "7"):
        assert count_text(parse_count(text)) == text


def test_a_target_must_be_larger():
    with pytest.raises(ConfigError, match=r"1\.3B to 1\.3B parameters is not a growth"):
        growth.advise("1.3B", "150B", "1.3B")


def test_the_numbers_of_a_plan():
    found = growth.advise("1.3B", "150B", "2.6B", "260B").to_dict()
    assert found["growth_factor"] == 2
    assert found["tokens_per_parameter"] == [pytest.approx(115.4, abs=0.1), 100]
    assert found["flops"] == [6 * 1.3e9 * 150e9, 6 * 2.6e9 * 260e9]
    assert found["chinchilla_tokens"] == 52_000_000_000
    assert found["growth_timing"] == growth_timing(2.6e9, 6 * 2.6e9 * 260e9)


def test_every_line_has_a_source_and_says_what_was_read():
    found = growth.advise("1.3B", "150B", "2.7B", "1.4T")
    topics = list(dict.fromkeys(line.topic for line in found.evidence))
    assert topics == list(found.plans)
    for line in found.evidence:
        assert line.says.endswith(".")
        assert line.source.where
        assert line.source.read


@pytest.mark.parametrize(
    ("to", "planned", "extrapolated"), [("1.1B", "100B", False), ("2.7B", "1.4T", True), ("7B", "10B", True)]
)
def test_a_fit_is_not_stretched_in_silence(to, planned, extrapolated):
    found = growth.advise("400M", "10B", to, planned)
    (timing,) = (line.says for line in found.evidence if "their fit gives" in line.says)
    assert ("Extrapolated" in timing) == extrapolated


@pytest.mark.parametrize(("to", "place"), [("1.9B", "below"), ("2B", "within"), ("4B", "within"), ("4.1B", "above")])
def test_the_range_of_growth_factors(to, place):
    assert f"Yours is {place} that range" in growth.advise("1B", "1B", to).evidence[0].says


def test_the_command():
    plan = ["advise", "--params", "1.3B", "--tokens", "150B", "--to", "2.7B"]
    result = CliRunner().invoke(app, plan)
    assert result.exit_code == 0, result.output
    assert "give --planned-tokens" in " ".join(result.output.split())
    assert "2405.15319" in result.output
    as_json = json.loads(CliRunner().invoke(app, [*plan, "--planned-tokens", "1.4T", "--json"]).output)
    assert as_json["planned_tokens"] == 1_400_000_000_000
    refused = CliRunner().invoke(app, [*plan[:-1], "1B"])
    assert refused.exit_code == 2
    assert "not a growth" in refused.output
