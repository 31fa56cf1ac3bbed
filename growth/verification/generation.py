"""Generation: does a grown model agree with its source when it is used to generate text?

A cache, padding on either side, both implementations of attention, and prompts longer than a sliding window run code
that one plain forward pass does not. Both models are loaded whole, in float32.

Shape letters: rows B, positions T, new tokens N, vocab_size V.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from growth.checkpoints.checkpoint import Checkpoint
from growth.runtime.quiet import no_loading_bar
from growth.verification.rounding_floor import measure, relative_difference
from growth.verification.streaming import Perturb, load_stock

T = TypeVar("T")

NEW_TOKENS = 16  # to generate
BEYOND = 16  # positions of a long prompt that do not see its beginning
PADDED = 3  # positions
LONGEST_PROMPT = 1 << 15  # tokens; a longer window is not filled


@dataclass(frozen=True)
class GenerationCheck:
    """One comparison of logits.

    Attributes:
        name: what is compared with what.
        relative_error: ||one - other|| / ||other||; None where `note` says why there is none.
        limit: the largest relative error that passes.
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

    def row(self) -> tuple[str, str, str, str]:
        """The check as a row of a table: name, relative error, limit and note."""
        error = "" if self.relative_error is None else f"{self.relative_error:.1e}"
        return self.name, error, f"{self.limit:.1e}", self.note


@torch.no_grad()
def check_generation(
    source: Path | Checkpoint,
    grown: Path | Checkpoint,
    ids: Tensor,
    *,
    keeps_logits: bool,
    storage: Sequence[Perturb],
    arithmetic: Sequence[Perturb],
) -> tuple[GenerationCheck, ...]:
    """Run both models in every way that a user may run them.

    Args:
        ids: a batch of tokens (B, T).
        keeps_logits: whether the two should agree; if not, each is only compared with itself.
        storage, arithmetic: perturbations of weights as large as the rounding of stored weights, and of float32
            arithmetic alone. The limits follow from what they do to the source's logits.

    Raises:
        CheckpointError: a folder is not a complete checkpoint of a stock model.
    """
    before = _load(source)
    plain = before.logits(ids)
    stored, computed = (measure(before.perturbed(ids, perturbs), plain).limit for perturbs in (storage, arithmetic))
    return tuple(_Checks(before, _load(grown), ids, plain.shape[-1], keeps_logits, stored, computed).run())


class _Continuation(NamedTuple):
    """Generated tokens (B, N), and the logits (B, N, V) that they were chosen by."""

    tokens: Tensor
    logits: Tensor

    def same(self, other: _Continuation) -> int:
        """How many tokens are equal before the first that differs in any row."""
        differs = (self.tokens != other.tokens).any(0).nonzero()
        return int(differs[0]) if len(differs) else self.tokens.shape[1]

    def error(self, other: _Continuation) -> float:
        """The relative error of the logits, as far as both were given the same tokens.

        Of two tokens that are almost equally likely, rounding may select either.
        """
        common = self.same(other) + 1
        return relative_difference(self.logits[:, :common, : other.logits.shape[-1]], other.logits[:, :common])


@dataclass(frozen=True)
class _LoadedModel:
    model: PreTrainedModel

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def context(self) -> float:
        """The largest number of positions; infinite if the config states none."""
        return getattr(self.config, "max_position_embeddings", None) or math.inf

    @property
    def window(self) -> int:
        """The length of a sliding window that some layers have, or 0."""
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        slides = kinds is None or "sliding_attention" in kinds
        return window if slides and type(window) is int else 0

    def perturbed(self, ids: Tensor, perturbs: Sequence[Perturb]) -> list[Tensor]:
        """The logits (B, T, V) under each of some perturbations of the weights, which are then restored."""
        found, kept = [], {name: parameter.clone() for name, parameter in self.model.named_parameters()}
        for perturb in perturbs:
            for name, parameter in self.model.named_parameters():
                perturb(name, parameter.data)
            found.append(self.logits(ids))
            for name, parameter in self.model.named_parameters():
                parameter.data.copy_(kept[name])
        return found

    def logits(self, ids: Tensor, mask: Tensor | None = None, last: int = 0) -> Tensor:
        """The logits (B, T, V), or those of the `last` positions."""
        known = inspect.signature(type(self.model).forward).parameters
        more: dict[str, Any] = {"attention_mask": mask} if mask is not None else {}
        if mask is not None and "position_ids" in known:
            more["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if last and "logits_to_keep" in known:
            more["logits_to_keep"] = last
        found: Tensor = self.model(input_ids=ids, use_cache=False, **more).logits
        return found[:, -last:] if last else found

    def generate(self, ids: Tensor, count: int, *, cache: bool) -> _Continuation:
        """The greedy continuation of a prompt."""
        returned = {"output_logits": True, "return_dict_in_generate": True}
        settings = GenerationConfig(do_sample=False, max_new_tokens=count, use_cache=cache, pad_token_id=0, **returned)
        found: Any = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return _Continuation(found.sequences[:, ids.shape[1] :], torch.stack(found.logits, dim=1))


def _load(source: Path | Checkpoint) -> _LoadedModel:
    """Load a model into memory without the progress bar of transformers."""
    with no_loading_bar():
        return _LoadedModel(load_stock(source, torch.float32))


@dataclass(frozen=True)
class _Checks:
    """All checks; `stored` and `computed` are the limits of a comparison of both models, and of one with itself."""

    before: _LoadedModel
    after: _LoadedModel
    ids: Tensor
    vocab: int
    keeps_logits: bool
    stored: float
    computed: float

    def run(self) -> Iterator[GenerationCheck]:
        for side in ("left", "right"):
            errors = self._both(partial(_padding_error, self.ids, side))
            yield self._judged(f"padded on the {side} / not padded", *errors)
        attention = "sdpa / eager attention"
        if self.after.model._supports_sdpa:
            yield self._judged(attention, *self._both(partial(_attention_error, self.ids)))
        else:
            note = f"not run: {type(self.after.model).__name__} has no sdpa"
            yield GenerationCheck(attention, None, self.computed, note)
        yield from self._continuations()
        yield from self._long_prompt()

    def _both(self, run: Callable[[_LoadedModel], T]) -> tuple[T, T]:
        return run(self.after), run(self.before)

    def _judged(self, name: str, error: float, of_source: float, note: str = "") -> GenerationCheck:
        """A comparison of the grown model with itself; it says nothing if the source's class fails it too."""
        if of_source > self.computed:
            note = f"not judged: the source differs from itself by {of_source:.1e}"
            return GenerationCheck(name, None, self.computed, note)
        return GenerationCheck(name, error, self.computed, note)

    def _continuations(self) -> Iterator[GenerationCheck]:
        context = min(self.after.context, self.before.context)
        count = int(min(NEW_TOKENS, context - 2))
        prompt = self.ids[:, : int(min(self.ids.shape[1], context - count))]
        own, others = self._both(partial(_with_and_without_cache, prompt, count))
        note = f"{own[0].same(own[1])} of {count} tokens the same"
        yield self._judged("generated with / without cache", own[0].error(own[1]), others[0].error(others[1]), note)
        if self.keeps_logits:
            note = f"{own[0].same(others[0])} of {count} tokens the same"
            error = own[0].error(others[0])
            yield GenerationCheck("generated by the grown / by the source", error, self.stored, note)

    def _long_prompt(self) -> Iterator[GenerationCheck]:
        """A prompt that is longer than a sliding window."""
        window = max(self.after.window, self.before.window)
        if not window:
            return
        name, length = f"a prompt beyond the window of {window:,}", window + BEYOND
        if length + NEW_TOKENS > min(self.after.context, self.before.context, LONGEST_PROMPT):
            yield GenerationCheck(name, None, self.stored, f"not run: its {length:,} tokens exceed the context")
            return
        prompt = self.ids.reshape(1, -1).repeat(1, math.ceil(length / self.ids.numel()))[:, :length]
        if self.keeps_logits:
            after, before = self._both(lambda model: model.logits(prompt, last=BEYOND))
            error = relative_difference(after[..., : self.vocab], before)
            yield GenerationCheck(f"{name}, grown / source", error, self.stored)
        own, others = self._both(partial(_with_and_without_cache, prompt, NEW_TOKENS))
        yield self._judged(f"{name}, with / without cache", own[0].error(own[1]), others[0].error(others[1]))


def _with_and_without_cache(prompt: Tensor, count: int, model: _LoadedModel) -> tuple[_Continuation, _Continuation]:
    return model.generate(prompt, count, cache=True), model.generate(prompt, count, cache=False)


def _attention_error(ids: Tensor, model: _LoadedModel) -> float:
    found, chosen = {}, model.config._attn_implementation
    for kind in ("sdpa", "eager"):
        model.model.set_attn_implementation(kind)
        found[kind] = model.logits(ids)
    model.model.set_attn_implementation(chosen)
    return relative_difference(found["sdpa"], found["eager"])


def _padding_error(ids: Tensor, side: str, model: _LoadedModel) -> float:
    row = ids[:1, PADDED:] if ids.shape[1] > 2 * PADDED else ids[:1, 1:]
    missing = ids.shape[1] - row.shape[1]
    pad, real, left = torch.zeros_like(row[:, :missing]), torch.ones_like(row), side == "left"
    short, mask = (torch.cat(pair if left else pair[::-1], dim=1) for pair in ((pad, row), (pad, real)))
    batch, masks = torch.cat([ids[1:2], short]), torch.cat([torch.ones_like(mask), mask])
    found = model.logits(batch, masks)[1:]
    return relative_difference(found[:, missing:] if left else found[:, : row.shape[1]], model.logits(row))
