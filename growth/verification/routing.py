"""Routing: does rounding alone make a mixture of experts differ from its source?

Where a router scores two experts almost equally, rounding of the stored weights may select the other one, and the
output jumps by an amount that no limit can predict. Two facts together prove that nothing else is wrong: every stored
bit is the rounding of what the recipe makes of the source, and what the recipe makes, stored in float64, computes the
source's function.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from growth.errors import GrowthError
from growth.output.checkpoint_writer import write_checkpoint
from growth.planning.plan import make_plan
from growth.verification.lineage import Lineage
from growth.verification.rounding_floor import EXACT, relative_difference
from growth.verification.stored_tensors import compare_tensors, stored_tensors
from growth.verification.streaming import stream


def rounding_explains(line: Lineage, grown: Path, tokens: Tensor) -> bool:
    """Whether a grown mixture computes its source's function except for the rounding of its stored weights.

    Both are run on `tokens` (B, T) in float64. The growth is stored in float64 in a temporary folder for that; if there
    is no space for it, nothing is proved and the answer is False.
    """
    plan = line.plan
    if plan is None or len(line.plans) > 1 or not plan.keeps_logits:
        return False
    stored = stored_tensors(grown, plan)
    if stored.problems or compare_tensors(plan, plan.tensors, stored.places).problems:
        return False
    with tempfile.TemporaryDirectory(prefix="growth-float64-") as home:
        try:
            exact = make_plan(plan.stored, plan.growth, line.checkpoint.tensors, dtype="F64", seed=plan.seed)
            write_checkpoint(exact, line.checkpoint, dict(line.recipe), Path(home) / "grown")
        except GrowthError:
            return False
        expected = stream(line.checkpoint, tokens, torch.float64)
        actual = stream(Path(home) / "grown", tokens, torch.float64)
        return relative_difference(actual[..., : expected.shape[-1]], expected) <= EXACT
