"""Training compute by one formula: 6 × parameters × tokens.

The parameters are those that a token passes through: all but the input embedding, which is looked up. A matrix that is
the head too counts. Of the experts of a mixture, those that are chosen for a token count. `total_flos` of transformers'
Trainer differs: it counts all experts, and leaves out every embedding, a tied head too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from growth.architectures import architecture
from growth.architectures.base import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def flops_per_token(table: Architecture) -> int:
    """FLOPs of training on one token.

    >>> import growth
    >>> plan = growth.plan("double-depth", "examples/phi-mini")
    >>> flops_per_token(plan.source), flops_per_token(plan.target)
    (8715264, 15843840)
    """
    looked_up = 0 if table.tied else math.prod(table.shape(table.weights[0]))
    return 6 * (table.parameters(active=True) - looked_up)


def model_flops_per_token(model: PreTrainedModel) -> int:
    """FLOPs of training a model in memory on one token."""
    return flops_per_token(architecture({**model.config.to_dict(), "architectures": [type(model).__name__]}))


def flops_spent(growths: Sequence[Mapping[str, Any]], tokens: int, per_token: int) -> int:
    """FLOPs of a run since its beginning.

    growths: the entries of the growths so far, with the `tokens` and `flops` that the run had reached.
    tokens: those that the run has reached.
    per_token: `flops_per_token` of the model as it is.
    """
    last = growths[-1] if growths else {"tokens": 0, "flops": 0}
    return int(last["flops"]) + per_token * (tokens - int(last["tokens"]))
