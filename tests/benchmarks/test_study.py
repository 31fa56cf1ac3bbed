"""The study's pieces: equal FLOPs, exact growths of the target's geometry, resumed runs, savings of known curves."""

import doctest
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.paths import ROOT
from tests.support.selection import one_of_each

sys.path.insert(0, str(ROOT / "benchmarks"))
import byte_model
import study
import study_numbers
import study_report
import study_train
from study_arms import ARMS, BASE, BY_NAME, DECAY, KINDS, LARGE, QUICK, Run, final, wanted
from study_numbers import Figure, Results, flops_at

GROWN = [arm for arm in ARMS if arm.kind == "grown" and not arm.name.startswith("default-")]
RATES = {
    (scale.name, kind, budget): 8e-3 for scale in (BASE, LARGE, QUICK) for kind in KINDS for budget in scale.budgets
}


@pytest.fixture
def corpus(monkeypatch):
    """A minute text, to train on and held out."""
    text = torch.arange(20_000).remainder(97).to(torch.uint8)
    monkeypatch.setattr(study_train, "corpus", lambda: (text, text[:2000]))


def test_flops_are_those_that_torch_counts():
    model = byte_model.model("phi", 24, 2, seed=0)
    rows = torch.zeros(1, byte_model.LENGTH + 1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        byte_model.loss(model, rows).backward()
    attention = 12 * 2 * 24 * byte_model.LENGTH / 2  # which torch does not count on every device
    counted = sum(counter.get_flop_counts()["Global"][op] for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert byte_model.flops_per_token(model) - attention == pytest.approx(counted / byte_model.LENGTH)


@pytest.mark.parametrize("scale", [BASE, LARGE], ids=lambda scale: scale.name)
def test_all_arms_spend_the_same_flops_at_a_budget(scale):
    for last in wanted({scale.name: scale}, RATES):
        arm = BY_NAME[last.arm]
        cost = lambda run: (BY_NAME[run.arm].share, BY_NAME[run.arm].layers)  # noqa: E731
        parts = [study_train.steps_of(run) * study_train.step_flops(run.scale, *cost(run)) for run in last.ancestry]
        rounding = sum(study_train.step_flops(run.scale, *cost(run)) for run in last.ancestry)
        assert sum(parts) == pytest.approx(last.stop, abs=rounding)
        assert [run.start for run in last.ancestry[1:]] == [run.stop for run in last.ancestry[:-1]]
        budget = last.stop - (last.start if arm.free else 0)
        assert last.stop - last.decay_from == pytest.approx(DECAY * budget)


def test_the_rate_warms_up_stays_and_decays_over_a_fifth_of_the_flops():
    scratch = final(BASE, BY_NAME["scratch"], 0, 10, RATES)
    factors = [
        study_train.factor(run, step, study_train.steps_of(run))
        for run in scratch.ancestry
        for step in range(study_train.steps_of(run))
    ]
    assert factors[: study_train.WARMUP] == [(step + 1) / study_train.WARMUP for step in range(study_train.WARMUP)]
    decaying = [factor for factor in factors[study_train.WARMUP :] if factor < 1]
    assert len(decaying) == pytest.approx(DECAY * len(factors), abs=2)
    assert decaying == sorted(decaying, reverse=True) == factors[-len(decaying) :]
    fresh = final(BASE, BY_NAME["submatrix"], 0, 10, RATES)
    assert study_train.factor(fresh, 0, study_train.steps_of(fresh)) < 0.1
    assert study_train.factor(final(BASE, BY_NAME["default"], 0, 10, RATES), 0, 100) == 1


@pytest.mark.parametrize("arm", one_of_each([(arm,) for arm in GROWN], lambda arm: arm.lossy, ids=lambda arm: arm.name))
def test_arms_have_the_targets_geometry_and_exact_ones_the_sources_loss(arm):
    run = final(QUICK, arm, 0, 0.1, RATES)
    small = study_train.new_model(run.parent)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    rows = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(0))
    adam = study_train.optimizer(small)
    byte_model.loss(small, rows).backward()
    adam.step()
    larger, grown_adam = study_train.grow(run, small, adam)
    target = study_train.new_model(Run("quick", "scratch", 0, 8e-3, 0, 1))
    assert {name: p.shape for name, p in larger.named_parameters()} == {
        name: p.shape for name, p in target.named_parameters()
    }
    assert [p.shape for group in grown_adam.param_groups for p in group["params"]] == [
        p.shape for group in study_train.optimizer(target).param_groups for p in group["params"]
    ]
    before, after = (byte_model.loss(model, rows).item() for model in (small, larger))
    assert (abs(before - after) < 1e-4) != arm.lossy


def test_a_run_that_is_killed_resumes_to_the_same_bits(corpus, tmp_path, monkeypatch):
    run = final(QUICK, BY_NAME["sparkling"], 0, 0.2, RATES, peak=8e-3)
    results = [study_train.execute(each, tmp_path) for each in run.ancestry]
    monkeypatch.setattr(study_train, "SAVE_EVERY", -1)
    for suffix in ("json", "pt"):
        (tmp_path / f"{run.name}.{suffix}").unlink()
    train_step, calls = study_train.train_step, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        train_step(*arguments)

    monkeypatch.setattr(study_train, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        study_train.execute(run, tmp_path)
    monkeypatch.setattr(study_train, "train_step", train_step)
    again = study_train.execute(run, tmp_path)
    assert {**again, "seconds": 0} == {**results[-1], "seconds": 0}
    assert not list(tmp_path.glob("*.partial"))


def test_a_study_continues_from_stored_results_and_makes_only_the_checkpoints_that_it_needs(tmp_path, monkeypatch):
    scales = {QUICK.name: QUICK}
    monkeypatch.setattr(study, "best_rates", lambda *_: RATES)
    results = {run.name: {"loss": 1.0, "name": run.name} for last in wanted(scales, RATES) for run in last.ancestry}
    lacking = final(QUICK, BY_NAME["default"], 0, QUICK.budgets[0], RATES)
    stored, folder = tmp_path / "stored", tmp_path / "folder"
    for place in (stored / "results", folder):
        place.mkdir(parents=True)
    (stored / "facts.json").write_text("{}")
    (stored / "results" / "all.json").write_text(
        json.dumps([result for name, result in results.items() if name != lacking.name])
    )
    study.take(stored, folder)
    assert list(study.to_do(folder, scales)) == lacking.ancestry
    (folder / f"{lacking.parent.name}.pt").touch()
    assert list(study.to_do(folder, scales)) == [lacking]


def test_results_of_other_facts_are_not_continued(tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps({"torch": "2.12.0"}))
    study.check_facts(tmp_path / "facts.json", {"torch": "2.12.0"}, "leave out --stored")
    study.check_facts(tmp_path / "none.json", {"torch": "2.13.0"}, "leave out --stored")
    with pytest.raises(SystemExit, match=r"2\.12\.0.* here .*2\.13\.0.*: leave out --stored\.$"):
        study.check_facts(tmp_path / "facts.json", {"torch": "2.13.0"}, "leave out --stored")


@pytest.mark.parametrize("module", [study_numbers, study_report], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_flops_for_a_loss_lie_on_a_line_over_their_logarithm():
    curve = [(flops, 4 - math.log2(flops)) for flops in (1, 2, 4)]
    assert flops_at(curve, 4 - math.log2(3)) == (pytest.approx(3), "")
    assert flops_at(curve, 4.5) == (1, "<")
    assert flops_at(curve, 1.5) == (4, ">")


def test_the_interval_of_equal_values_is_a_point_and_widens_with_their_spread():
    assert Figure((1.5, 1.5, 1.5)).interval == pytest.approx((1.5, 1.5))
    assert Figure((1.5,)).interval is None
    low, high = Figure((1.4, 1.5, 1.6)).interval
    assert low < 1.4 < 1.6 < high
    assert Figure((1.4, 1.5), ">").interval is None


def made_up(losses):
    """Results of base runs whose final losses are a function of arm, seed and FLOPs; rates are tuned to 8e-3."""
    runs = {}
    for run in wanted({BASE.name: BASE}, RATES):
        free = 40 if BY_NAME[run.arm].free else 0
        loss = losses(run.arm, run.seed, run.stop - free) + (0 if run.peak == 8e-3 else 1)
        runs[run.name] = {"loss": loss, "flops": run.stop, "source_flops": free or run.start}
    return Results(runs, {})


def test_savings_gates_and_verdicts_on_known_curves():
    def losses(arm, seed, flops):
        speed = {"scratch": 1, "default": 1.5, "exact": 1.6, "free": 4}.get(arm, 1.2)
        if arm == "small":
            return 3 - 0.02 * math.log2(flops)
        return 3 - 0.1 * (math.log2(flops * speed) - 2) + 0.001 * seed

    results = made_up(losses)
    assert {rate for (scale, *_), rate in results.rates.items() if scale == "base"} == {8e-3}
    for budget in (10, 20, 40):
        assert results.saving(BASE, BY_NAME["default"], budget).values == pytest.approx([1.5] * 3)
        assert results.saving(BASE, BY_NAME["free"], budget).values == pytest.approx([4] * 3)
    low, high = results.saving(BASE, BY_NAME["default"], 20).interval
    assert low == pytest.approx(1.5) == high
    assert [results.counts(BASE, budget) for budget in (5, 20, 40)] == [False, True, True]
    arm, differences = results.best_rival(BASE, 20)
    assert arm.name == "exact"
    assert differences == pytest.approx([-0.1 * math.log2(1.6 / 1.5)] * 3)
    assert results.noise(BASE) == pytest.approx(0, abs=1e-9)
    text = study_report.targets(results)
    assert "| 1.2 | 1.50 (1.50 … 1.50) | yes |" in text
    assert "| 1.8 | 1.50 (1.50 … 1.50) | **no** |" in text


@pytest.fixture
def quick(corpus, tmp_path, monkeypatch):
    """`study.py run --quick` with its workers as threads of this process, which spares a start of torch."""
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    command = ["study.py", "run", "--quick", "--workers", "1", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    return study.main


def test_a_few_steps_from_end_to_end(quick, tmp_path):
    quick()
    out = tmp_path / "out"
    times = {path: path.stat().st_mtime_ns for path in out.glob("quick-*.json")}
    quick()
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("quick-*.json")}  # nothing ran again
    study_report.collect(out, tmp_path / "report")
    results = Results.read(tmp_path / "report")
    assert {path.stem for path in times} == set(results.runs)
    for arm in ("scratch", "small", "default", "exact"):
        assert results.losses(QUICK, BY_NAME[arm], 0.1), arm


def test_the_pages_show_the_stored_results():
    results = Results.read(ROOT / "docs" / "study")
    for page in study_report.PAGES:
        text = page.read_text()
        assert study_report.filled(text, results) == text, f"{page} is out of date: make study-report"
        assert "study: " in text


def test_no_checkpoint_is_stored():
    for path in (ROOT / "docs" / "study" / "results").iterdir():
        assert path.suffix == ".json"
        assert path.stat().st_size < 100_000
        assert json.loads(path.read_text())
