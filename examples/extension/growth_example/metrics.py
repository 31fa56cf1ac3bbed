"""A metric: every report of `growth verify` shows it, on the terminal, in JSON and in HTML."""

from torch import Tensor

from growth.verification.metrics import Positions, metric


@metric("top 5", "the fraction of positions where the source's first token is among the grown model's first five")
def top5_agreement(at: Positions) -> Tensor:
    """1 where it is, else 0."""
    first, five = at.source.argmax(-1, keepdim=True), at.grown.topk(5, dim=-1).indices
    return (first == five).any(-1).double()
