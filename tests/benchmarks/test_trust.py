"""make trust in small: correctly grown checkpoints pass, corruptions are caught, and the page counts every case."""

import pytest

from benchmarks import trust
from benchmarks.trust_faults import KINDS

BY_NAME = {kind.name: kind for kind in KINDS}
CLEAR = [
    "two neurons of an MLP exchanged in its last matrix",
    "a norm's gain zero",
    "a matrix by way of float8 (e4m3)",
    "two neighbouring layers exchanged: an off-by-one in the layer map",
]


@pytest.mark.parametrize("number", range(0, 2000, 331))
def test_right_growths_pass(number):
    outcome = trust.right(number)
    assert outcome["status"] == ("LOSSY" if outcome["recipe"] == "vocab" else "PASSED"), outcome
    assert not outcome["by_running"], outcome
    assert not outcome["in_full"], outcome
    assert outcome["worst"] < 1


@pytest.mark.parametrize("name", CLEAR)
def test_corruptions_are_caught_by_running(name):
    outcomes = (trust.corrupted(BY_NAME[name], seed) for seed in range(5))
    reached = next(each for each in outcomes if each.get("change", 1) > 1e-12)  # not an expert that no token went to
    assert reached["by_running"], reached


def test_the_page_counts_every_case_and_the_summary_names_what_was_missed():
    ran = {"case": "llama", "stored": "float32", "massive": "none", "worst": 0.5, "change": 1e-7, "seconds": 0.1}
    done = {("right", n): ran | {"status": "PASSED", "by_running": False, "in_full": False} for n in range(3)}
    for kind in KINDS:
        caught = kind.name != KINDS[0].name
        done[kind.name, 0] = ran | {"status": "FAILED" if caught else "PASSED", "by_running": caught, "in_full": False}
    text, good = trust.summary(done, 3, 1)
    assert not good
    assert f"missed too often: {KINDS[0].name}" in text
    page = trust.page(done, 3, 1)
    assert "0 false alarms on 3 correctly grown checkpoints" in page
    assert all(kind.name in page for kind in KINDS)
