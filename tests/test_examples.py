"""The training loops in examples/ run as they stand, and shards do what one process does."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

SAME_ROWS = """
import sys; sys.path.insert(0, {examples!r})
import fsdp_loop, plain_loop
fsdp_loop.batches = lambda tokenizer, seed: plain_loop.batches(tokenizer)
fsdp_loop.main()
"""


def run(*arguments):
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=240
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def losses(output):
    return [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)", output, re.M)]


def rates(output):
    return re.findall(r"learning rate (\S+)$", output, re.M)


def around(output):
    return [float(loss) for loss in re.findall(r"^(?:before|after): +([\d.]+)", output, re.M)]


@pytest.fixture(scope="module")
def plain():
    return run("-W", "error", ROOT / "examples" / "plain_loop.py")


@pytest.mark.slow
def test_the_plain_loop_goes_on_after_its_growth(plain):
    before, after = around(plain)
    assert after == pytest.approx(before, abs=2e-5)
    assert losses(plain)[4] == pytest.approx(after, abs=2e-5)
    assert len(losses(plain)) == 8
    assert rates(plain)[-1] == "0.00e+00"
    assert "3,129,408 parameters" in plain


@pytest.mark.slow
def test_the_loop_by_a_schedule_resumes_as_the_run_that_never_stopped():
    whole, _, resumed = run("-W", "error", ROOT / "examples" / "schedule_loop.py").partition("resumed after step 1\n")
    assert losses(resumed) == losses(whole)[1:]
    for before, after in re.findall(r": loss ([\d.]+) → ([\d.]+)", whole):
        assert float(after) == pytest.approx(float(before), abs=2e-5)


@pytest.mark.slow
def test_fsdp_does_what_one_process_does(plain, tmp_path):
    """Both ranks read the plain loop's rows: then every loss is its, before and after the growth."""
    script = tmp_path / "same_rows.py"
    script.write_text(SAME_ROWS.format(examples=str(ROOT / "examples")))
    sharded = run(*TORCHRUN, script)
    assert losses(sharded) == pytest.approx(losses(plain), abs=2e-4)
    assert around(sharded) == pytest.approx(around(plain), abs=2e-5)
    assert rates(sharded) == rates(plain)
