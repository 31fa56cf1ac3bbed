"""Comparison: how far two models' outputs are apart, in the measures that people read.

Shape letters: rows B, positions T of a batch or P of a piece of it, vocab_size V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NO_TOKEN = -100
POSITIONS = 32  # compared at a time, so that the copies in float64 stay small
PIECE = 1 << 18  # values compared at a time, so that they stay in a core's cache


@dataclass(frozen=True)
class LogitsError:
    """The grown model's logits against the source's, and its distribution over all its tokens against the source's.

    Attributes:
        relative_error: ||grown - source|| / ||source|| over the logits of the source's tokens.
        max_abs_error: the largest difference of two logits.
        max_relative_error: that, over the source's largest absolute logit.
        kl: mean over positions of KL(source || grown), in nats; the source gives added tokens no probability.
        top1_agreement: the fraction of positions where both rank the same token first.
        source_loss: next-token cross-entropy of the source on the same tokens, in nats.
        grown_loss: the grown model's, added tokens in its softmax.
        added_tokens: how many tokens the grown model has beside the source's.
        lost_to_added: what these cost each of the source's tokens, in nats: mean over positions of
            -log(1 - the probability of all added tokens). It is the part of `kl` and of `grown_loss` that is theirs.
    """

    relative_error: float
    max_abs_error: float
    max_relative_error: float
    kl: float
    top1_agreement: float
    source_loss: float
    grown_loss: float
    added_tokens: int = 0
    lost_to_added: float = 0.0


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||, Euclidean over all elements, in float64.

    >>> relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    0.1
    """
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} against {tuple(expected.shape)}"
    pieces = zip(torch.split(actual.flatten(), PIECE), torch.split(expected.flatten(), PIECE), strict=True)
    squares = [(_square(a.double() - b.double()), _square(b.double())) for a, b in pieces]
    difference, reference = torch.tensor(squares, dtype=torch.float64).sum(0).sqrt()
    return float(difference / reference)


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2


def compare_logits(source: Tensor, grown: Tensor, tokens: Tensor) -> LogitsError:
    """Logits (B, T, V) against logits (B, T, V or more) for `tokens` (B, T), in float64."""
    following = F.pad(tokens[:, 1:], (0, 1), value=NO_TOKEN).flatten()  # nothing follows the end of a row
    pieces = zip(
        torch.split(source.flatten(0, 1), POSITIONS),
        torch.split(grown.flatten(0, 1), POSITIONS),
        torch.split(following, POSITIONS),
        strict=True,
    )
    by_position = torch.cat([_compare_positions(s.double(), g.double(), token) for s, g, token in pieces])
    square, reference, difference, largest, kl, same, source_loss, grown_loss, lost = by_position.unbind(1)
    predicted = (following != NO_TOKEN).sum()
    return LogitsError(
        relative_error=(square.sum() / reference.sum()).sqrt().item(),
        max_abs_error=difference.max().item(),
        max_relative_error=(difference.max() / largest.max()).item(),
        kl=kl.mean().clamp(min=0).item(),
        top1_agreement=same.mean().item(),
        source_loss=(source_loss.sum() / predicted).item(),
        grown_loss=(grown_loss.sum() / predicted).item(),
        added_tokens=grown.shape[-1] - source.shape[-1],
        lost_to_added=lost.mean().item(),
    )


def _compare_positions(source: Tensor, grown: Tensor, following: Tensor) -> Tensor:
    """Nine measures of each position, (P, 9), from logits (P, V), (P, V or more) and the tokens that follow (P,)."""
    old, added = grown[:, : source.shape[1]], grown[:, source.shape[1] :]
    difference, p, q = old - source, source.log_softmax(-1), grown.log_softmax(-1)
    lost = F.softplus(added.logsumexp(-1) - old.logsumexp(-1)) if added.shape[1] else torch.zeros(len(old)).double()
    measures = (
        difference.square().sum(-1),
        source.square().sum(-1),
        difference.abs().amax(-1),
        source.abs().amax(-1),
        F.kl_div(q[:, : source.shape[1]], p, reduction="none", log_target=True).sum(-1),
        (source.argmax(-1) == grown.argmax(-1)).double(),
        F.nll_loss(p, following, ignore_index=NO_TOKEN, reduction="none"),
        F.nll_loss(q, following, ignore_index=NO_TOKEN, reduction="none"),
        lost,
    )
    return torch.stack(measures, dim=1)
