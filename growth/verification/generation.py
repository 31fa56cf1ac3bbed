"""Generation: does a grown model still agree when it is used as people use it?

A cache, padding on either side, both implementations of attention, and prompts longer than a sliding window run code
that one plain forward pass does not. Both models are loaded whole, in float32.

Shape letters: rows B, positions T, vocab_size V.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from growth.verification.metrics import relative_error
from growth.verification.streaming import Perturb, load_stock

NEW_TOKENS = 16  # that are generated
BEYOND = 16  # positions of a long prompt that do not see its beginning
PADDED = 3  # positions
LONGEST_PROMPT = 1 << 15  # tokens; a window that is longer is not filled


@dataclass(frozen=True)
class GenerationCheck:
    """One way to use a model.

    Attributes:
        name: what is compared with what.
        relative_error: ||one - other|| / ||other|| over the logits; None where it was not run, and `note` says why.
        limit: the largest that passes.
        note: what else there is to say.
    """

    name: str
    relative_error: float | None
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether rounding explains the error."""
        return self.relative_error is None or self.relative_error <= self.limit


@dataclass(frozen=True)
class _RunnableModel:
    """One of the two models, and the logits of some of its positions."""

    model: PreTrainedModel

    def drawn(self, ids: Tensor, perturbs: Sequence[Perturb]) -> list[Tensor]:
        """The logits (B, T, V) under each of some perturbations of the weights, which are then put back."""
        found, kept = [], {name: parameter.clone() for name, parameter in self.model.named_parameters()}
        for perturb in perturbs:
            for name, parameter in self.model.named_parameters():
                perturb(name, parameter.data)
            found.append(self.logits(ids))
            for name, parameter in self.model.named_parameters():
                parameter.data.copy_(kept[name])
        return found

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def window(self) -> int | None:
        """The length of a sliding window that some layers have."""
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        slides = kinds is None or "sliding_attention" in kinds
        return window if slides and type(window) is int else None

    def logits(self, ids: Tensor, mask: Tensor | None = None, last: int = 0) -> Tensor:
        """Logits (B, T, V), of the last positions only where that is asked for."""
        known = inspect.signature(type(self.model).forward).parameters
        more: dict[str, Any] = {"attention_mask": mask} if mask is not None else {}
        if mask is not None and "position_ids" in known:
            more["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if last and "logits_to_keep" in known:
            more["logits_to_keep"] = last
        found: Tensor = self.model(input_ids=ids, use_cache=False, **more).logits
        return found[:, -last:] if last else found

    def generated(self, ids: Tensor, count: int, *, cache: bool) -> tuple[Tensor, Tensor]:
        """The greedy continuation (B, N) of a prompt, and the logits (B, N, V) it was chosen by."""
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=count,
            use_cache=cache,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found: Any = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return found.sequences[:, ids.shape[1] :], torch.stack(found.logits, dim=1)


@torch.no_grad()
def check_generation(
    source: Path,
    grown: Path,
    ids: Tensor,
    *,
    keeps_logits: bool,
    storage: Sequence[Perturb],
    arithmetic: Sequence[Perturb],
    limit: Callable[[Sequence[Tensor], Tensor], float],
) -> tuple[GenerationCheck, ...]:
    """Uses both models in the ways that people do.

    Args:
        ids: a batch of tokens (B, T).
        keeps_logits: whether the two are expected to agree; if not, each is only held to itself.
        limit: the largest error that passes, by the floor.
        storage, arithmetic: what moves weights by as much as storing them, or computing in float32 alone, rounds.
        limit: the largest relative error that passes, by the logits under such perturbations and without.

    Raises:
        CheckpointError: a folder is not a complete checkpoint of a stock model.
    """
    before = _loaded(source)
    plain = before.logits(ids)
    stored, computed = (limit(before.drawn(ids, perturbs), plain) for perturbs in (storage, arithmetic))
    after = _loaded(grown)
    vocab = plain.shape[-1]
    checks = [*_padding(after, before, ids, computed), _attention(after, before, ids, computed)]
    checks += _continuations(after, before, ids, computed, stored, vocab, keeps_logits=keeps_logits)
    checks += _long_prompt(after, before, ids, computed, stored, vocab, keeps_logits=keeps_logits)
    return tuple(checks)


def _loaded(folder: Path) -> _RunnableModel:
    """A model in memory, loaded without the progress bar of transformers."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return _RunnableModel(load_stock(folder, torch.float32))
    finally:
        if shown:
            logging.enable_progress_bar()


def _judged(name: str, limit: float, error: float, of_source: float, note: str = "") -> GenerationCheck:
    """A check of the grown model against itself; the source's class may not do it either, which growth cannot mend."""
    if of_source > limit:
        return GenerationCheck(name, None, limit, f"not judged: the source differs from itself by {of_source:.1e}")
    return GenerationCheck(name, error, limit, note)


def _padding(after: _RunnableModel, before: _RunnableModel, ids: Tensor, limit: float) -> Iterator[GenerationCheck]:
    def padded(model: _RunnableModel, side: str) -> float:
        row = ids[:1, PADDED:] if ids.shape[1] > 2 * PADDED else ids[:1, 1:]
        missing = ids.shape[1] - row.shape[1]
        pad, real = torch.zeros_like(row[:, :missing]), torch.ones_like(row)
        left = side == "left"
        short = torch.cat([pad, row] if left else [row, pad], dim=1)
        mask = torch.cat([pad, real] if left else [real, pad], dim=1)
        batch, masks = torch.cat([ids[1:2], short]), torch.cat([torch.ones_like(mask), mask])
        found = model.logits(batch, masks)[1:]
        return relative_error(found[:, missing:] if left else found[:, : row.shape[1]], model.logits(row))

    for side in ("left", "right"):
        yield _judged(f"padded on the {side} / not padded", limit, padded(after, side), padded(before, side))


def _attention(after: _RunnableModel, before: _RunnableModel, ids: Tensor, limit: float) -> GenerationCheck:
    name = "sdpa / eager attention"

    def difference(model: _RunnableModel) -> float:
        found = {}
        chosen = model.config._attn_implementation
        for kind in ("sdpa", "eager"):
            model.model.set_attn_implementation(kind)
            found[kind] = model.logits(ids)
        model.model.set_attn_implementation(chosen)
        return relative_error(found["sdpa"], found["eager"])

    if not after.model._supports_sdpa:
        return GenerationCheck(name, None, limit, f"not run: {type(after.model).__name__} has no sdpa")
    return _judged(name, limit, difference(after), difference(before))


def _continuations(
    after: _RunnableModel,
    before: _RunnableModel,
    ids: Tensor,
    computed: float,
    stored: float,
    vocab: int,
    *,
    keeps_logits: bool,
) -> Iterator[GenerationCheck]:
    context = min(getattr(model.config, "max_position_embeddings", None) or math.inf for model in (after, before))
    count = int(min(NEW_TOKENS, context - 2))
    prompt = ids[:, : int(min(ids.shape[1], context - count))]
    grown, of_source = (
        {cache: model.generated(prompt, count, cache=cache) for cache in (True, False)} for model in (after, before)
    )
    errors = [_of_continuations(found[True], found[False]) for found in (grown, of_source)]
    note = f"{_same(grown[True][0], grown[False][0])} of {count} tokens the same"
    yield _judged("generated with / without cache", computed, errors[0], errors[1], note)
    if keeps_logits:
        error = _of_continuations((grown[True][0], grown[True][1][..., :vocab]), of_source[True])
        note = f"{_same(grown[True][0], of_source[True][0])} of {count} tokens the same"
        yield GenerationCheck("generated by the grown / by the source", error, stored, note)


def _long_prompt(
    after: _RunnableModel,
    before: _RunnableModel,
    ids: Tensor,
    computed: float,
    stored: float,
    vocab: int,
    *,
    keeps_logits: bool,
) -> Iterator[GenerationCheck]:
    """A prompt that is longer than a sliding window."""
    windows = [model.window for model in (after, before)]
    longest = max((window for window in windows if window is not None), default=None)
    if longest is None:
        return
    name, length = f"a prompt beyond the window of {longest:,}", longest + BEYOND
    context = min(getattr(model.config, "max_position_embeddings", None) or math.inf for model in (after, before))
    if length + NEW_TOKENS > min(context, LONGEST_PROMPT):
        yield GenerationCheck(name, None, stored, f"not run: it would have {length:,} tokens; the context ends before")
        return
    prompt = ids.reshape(1, -1).repeat(1, math.ceil(length / ids.numel()))[:, :length]
    if keeps_logits:
        error = relative_error(after.logits(prompt, last=BEYOND)[..., :vocab], before.logits(prompt, last=BEYOND))
        yield GenerationCheck(f"{name}, grown / source", error, stored)
    run = partial(_with_and_without, prompt)
    yield _judged(f"{name}, with / without cache", computed, run(after), run(before))


def _with_and_without(prompt: Tensor, model: _RunnableModel) -> float:
    with_cache, without = (model.generated(prompt, NEW_TOKENS, cache=cache) for cache in (True, False))
    return _of_continuations(with_cache, without)


def _same(one: Tensor, other: Tensor) -> int:
    """How many tokens are the same before the first that differs in any row."""
    differs = (one != other).any(0).nonzero()
    return int(differs[0]) if len(differs) else one.shape[1]


def _of_continuations(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """The error of the logits as far as both were given the same tokens: of two that are nearly as likely, either may
    come."""
    common = _same(one[0], other[0]) + 1
    return relative_error(one[1][:, :common], other[1][:, :common])
