"""A Trainer's model that grows in the middle of a run on two processes, under DistributedDataParallel."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def launched(ranks, *arguments):
    """What each rank of `accelerate launch` saw."""
    command = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += [
        "--num_processes",
        str(ranks),
        "--main_process_port",
        "0",
        "--multi_gpu" if ranks > 1 else "--cpu",
    ]  # --cpu starts one process
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, *command, "-m", "tests.training.train_in_parallel", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((arguments[1] / f"seen{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def runs(phi_mini, tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    return {ranks: launched(ranks, phi_mini, home / str(ranks)) for ranks in (1, 2)}, home


def losses(seen):
    return [log["loss"] for log in seen["logs"] if "loss" in log]


def test_a_run_on_two_processes_is_that_on_one(runs):
    seen, _ = runs
    (alone,), both = seen[1], seen[2]
    assert [rank["wrapped"] for rank in both] == ["DistributedDataParallel"] * 2
    assert both[0]["values"] == both[1]["values"]
    assert both[0]["parameters"] == alone["parameters"]
    assert losses(both[0]) == pytest.approx(losses(alone), rel=1e-3)
    grown = next(log for log in both[0]["logs"] if "growth" in log)
    assert grown["loss_after"] == pytest.approx(grown["loss_before"], rel=1e-5)


def test_it_resumes_on_two_processes(runs, phi_mini):
    seen, home = runs
    resumed = launched(2, phi_mini, home / "resumed", home / "2" / "checkpoint-4")
    assert losses(resumed[0]) == losses(seen[2][0])
    assert resumed[0]["values"] == seen[2][0]["values"]
