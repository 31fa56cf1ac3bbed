"""The loss of a model on the last batch that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

IGNORED = -100  # a label that cross-entropy ignores


class LastBatch:
    """Keeps the arguments of a model's last call in training, until `release`.

    A Trainer's callback does not get the batches, and reading another one from the data loader would change the random
    state of the run, or consume a stream.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._inputs: dict[str, Any] | None = None
        self._handle = model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and not args:
            self._inputs = kwargs

    def release(self) -> dict[str, Any] | None:
        """Remove the hook; return the arguments of the last call in training, None if there was none."""
        self._handle.remove()
        return self._inputs


@torch.no_grad()
def loss_on(model: PreTrainedModel, inputs: dict[str, Any] | None) -> float | None:
    """Compute the mean loss on a batch without dropout; None if the batch has no labels or tokens.

    inputs: as `LastBatch.release` returns them. Without labels, each token is predicted from those before it.
    """
    if inputs is None or ("labels" not in inputs and "input_ids" not in inputs):
        return None
    given = {key: value for key, value in inputs.items() if key != "num_items_in_batch"}  # a sum over several batches
    if given.get("labels") is None:
        mask = given.get("attention_mask")
        plain = mask is None or mask.ndim != 2
        given["labels"] = given["input_ids"] if plain else given["input_ids"].masked_fill(mask == 0, IGNORED)
    with _evaluating(model):
        loss = model(**{"use_cache": False, **given}).loss
    return None if loss is None else float(loss)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode; restore each module's own mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
