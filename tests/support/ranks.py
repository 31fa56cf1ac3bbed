"""Processes that torchrun starts."""

import os
import subprocess
import sys

from tests.support.paths import ROOT


def torchrun(ranks, *arguments):
    """Runs a module or script in processes that torchrun starts; returns what they print."""
    command = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", f"--nproc_per_node={ranks}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *command, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
