"""The study's pieces on minute models: what it compares is comparable, and its figures are computed rightly."""

import hashlib
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import study
import study_train
from study import jobs
from study_arms import ARMS, BY_NAME
from study_numbers import Results, length_for, tokens_to_stay_below

import growth

GROWN = [arm for arm in ARMS if arm.steps]


@pytest.fixture(scope="module")
def library():
    return study_train.standard_library(tests=True)


@pytest.fixture(scope="module")
def source():
    """A source whose weights are far from their initial, tiny ones, so that a wrong growth shows."""
    torch.manual_seed(0)
    model = study_train.PhiForCausalLM(study_train.source_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_no_file_is_on_both_sides_or_there_twice(library):
    training, held_out = ([hashlib.sha256(text.encode()).hexdigest() for text in texts] for texts in library)
    assert len(set(training) | set(held_out)) == len(training) + len(held_out)
    assert 0.02 < len(held_out) / len(training) < 0.1
    without = study_train.standard_library()
    assert len(without[0]) < len(training)
    # what the tokenizer was trained on without the tests is held out by none of them
    assert not set(without[0]) & set(library[1])


def test_prompts_are_headers_of_functions():
    text = (
        "class A:\n    def f(self, x=(1, 2)):\n        pass\ndef broken(:\n    pass\ndef g(a) -> int:\n    return a\n"
    )
    assert study_train.headers([text, text]) == ["def f(self, x=(1, 2)):", "def g(a) -> int:"]


@pytest.mark.parametrize(
    ("written", "ended", "parses"),
    [
        ("    return x\n\nx = (", False, True),
        ("    return x", False, False),  # unfinished, and nothing before it
        ("    return x", True, True),
        ("    return (x\n", False, False),
        ("x = 1\n", False, False),  # no body
    ],
)
def test_a_completion_ends_where_the_function_does(written, ended, parses):
    assert study_train.parses(study_train.complete("def f(x):", written, ended)) == parses


@pytest.mark.parametrize("arm", GROWN, ids=lambda arm: arm.name)
def test_arms_have_the_targets_geometry_and_exact_ones_the_sources_loss(arm, source):
    target = study_train.PhiForCausalLM(study_train.target_config())
    shapes = {name: tensor.shape for name, tensor in target.state_dict().items()}
    model = growth.grow_model(source, growth.Recipe.model_validate(arm.recipe), seed=1)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    ours, theirs = model.config.to_dict(), target.config.to_dict()
    for free in ("architectures", "dtype", "transformers_version", "_name_or_path"):
        ours.pop(free, None), theirs.pop(free, None)
    assert ours == theirs
    rows = torch.randint(2048, (2, 32), generator=torch.Generator().manual_seed(0))
    before, after = (study_train.measure(each, rows)[0] for each in (source, model))
    assert (abs(before - after) < 1e-4) == arm.exact


def test_flops_count_every_parameter_but_the_looked_up_ones():
    model = study_train.PhiForCausalLM(study_train.target_config())
    everything = sum(p.numel() for p in model.parameters())
    assert study_train.flops_per_token(model) == 6 * (everything - 2048 * 80)


def test_a_hump_delays_the_crossing():
    assert tokens_to_stay_below([(0, 2.4), (100, 3.0), (200, 2.0)], 2.5) == 150
    assert tokens_to_stay_below([(0, 2.0), (100, 1.0)], 2.5) == 0
    assert tokens_to_stay_below([(0, 4.0), (100, 3.0)], 2.5) is None


def test_the_length_from_scratch_lies_between_runs_on_a_power_law():
    lengths = [(n, 4 - math.log2(n)) for n in (1, 2, 4)]
    assert length_for(lengths, 4 - math.log2(3)) == pytest.approx(3)
    assert length_for(lengths, 1.9) is None
    assert length_for(lengths, 9.0) == 1


def made_up(finals):
    """Results of one seed with straight curves from 5.0 (grown: from 3.0) down to a final loss."""
    runs = {}
    for name, loss in finals.items():
        length = 2 if name == "source" else BY_NAME[name].length
        first = 3.0 if name in BY_NAME and BY_NAME[name].steps else 5.0
        tokens = round(100 * length)
        runs[name, 0] = {
            "tokens": tokens, "flops_per_token": 10, "curve": [[0, first], [tokens, loss]],
            "final": {"loss": loss, "accuracy": 0.5, "parse": 0.5},
        }  # fmt: skip
    return Results(runs, {})


def test_speedups_and_goals_on_known_curves():
    results = made_up({"source": 3.0, "scratch": 2.9, "scratch-2x": 2.5, "scratch-4x": 2.1,
                       "default": 2.5, "default-half": 2.9, "pad": 2.0})  # fmt: skip
    assert results.speedup("default", 0) == pytest.approx((2.0, True))
    assert results.speedup("default", 0, counted=True) == pytest.approx((2 / 3, True))  # the source cost 2 more
    assert results.speedup("default-half", 0) == pytest.approx((2.0, True))
    assert results.speedup("pad", 0) == (4.0, False)
    assert results.share_to_scratch("default") == pytest.approx([0.2])
    assert [reached for _, reached, _ in results.goals()] == [True, True, True]
    worse = made_up({"scratch": 2.6, "default": 2.5, "default-half": 2.7})
    assert [reached for _, reached, _ in worse.goals()] == [False, False, False]


def test_sources_come_before_their_arms_and_what_costs_most_last():
    order = [name for name, *_ in jobs(ARMS, 2)]
    assert len(order) == len(set(order)) == 2 * (len(ARMS) + 1)
    assert order[0] == "source-s0"
    for seed in ("s0", "s1"):
        source = order.index(f"source-{seed}")
        assert all(order.index(f"{arm.name}-{seed}") > source for arm in ARMS)
    assert order.index("source-s1") == order.index("default-s1") - 1 == order.index("default-half-s0") + 1
    assert order.index("scratch-4x-s0") > order.index("append-s1")


@pytest.fixture
def quick(library, tmp_path, monkeypatch):
    """Runs `study.py --quick` with its workers as threads of this process, which spares three starts of torch."""
    import transformers

    before = transformers.logging.get_verbosity()
    arms = ["--arms", "default", "scratch", "grown-state"]
    command = ["study.py", "--quick", "--seeds", "1", "--workers", "1", "--output", str(tmp_path), *arms]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(study_train, "standard_library", lambda tests: library)
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    yield study.main
    transformers.logging.set_verbosity(before)
    study_train.load_text.cache_clear()


def test_two_steps_from_end_to_end(quick, tmp_path):
    quick()
    page = tmp_path / "report" / "README.md"
    plots = {"curves.png", "beginning.png", "flops.png", "speedups.png"}
    assert plots <= {path.name for path in page.parent.iterdir()}
    for name in plots:
        assert 1000 < (page.parent / name).stat().st_size < 150_000
    results = Results.read(tmp_path)
    assert {arm for arm, _ in results.runs} == {"source", "default", "scratch", "grown-state"}
    start = results.curve("default", 0)[0][1]
    assert start == results.curve("grown-state", 0)[0][1]
    assert start == pytest.approx(results.curve("source", 0)[-1][1], abs=1e-4)
    assert Results.read(page.parent).runs == results.runs  # the committed file holds the same

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-s0.json")}
    page.write_text(page.read_text().replace("(Observations follow.)", "Seen by hand."))
    quick()
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-s0.json")}  # nothing ran again
    assert "Seen by hand." in page.read_text()
    assert json.loads((page.parent / "results.json").read_text())["settings"]["steps"] == 2
