"""Utility of experts: which experts of a mixture are used, and which have gradients (widen, `scores`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from growth.errors import ConfigError

Measure = Literal["gradients", "tokens"]
Scores = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ExpertUtility:
    """Two measures of the experts of every layer that has some, in the order of the layers.

    tokens: the fraction of tokens that go to each expert.
    gradients: the squared norm of the gradient of each expert's weights, averaged over batches.

    >>> utility = ExpertUtility(tokens=((0.5, 1.5), (0.75, 1.25)), gradients=((0.25, 0.5), (0.25, 0.5)))
    >>> utility.scores("tokens"), utility.scores()
    ([1.25, 2.75], [0.5, 1.0])
    """

    tokens: Scores
    gradients: Scores

    def scores(self, measure: Measure = "gradients") -> list[float]:
        """Return one score for each expert, the sum over the layers, as `scores` of `widen` takes them."""
        return [math.fsum(layers) for layers in zip(*self._of(measure), strict=True)]

    def save(self, path: str | Path, measure: Measure = "gradients") -> None:
        """Write the scores of every layer as a JSON file that `scores` of `widen` names."""
        Path(path).write_text(json.dumps(self._of(measure)) + "\n")

    def _of(self, measure: Measure) -> Scores:
        if measure not in ("gradients", "tokens"):
            raise ConfigError(f"ExpertUtility has no measure {measure!r}: use 'gradients' or 'tokens'.")
        return self.gradients if measure == "gradients" else self.tokens


def expert_utility(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> ExpertUtility:
    """Measure how much each expert of a mixture is used, to copy those that are used most (Expert Upcycling).

    The gradients' squared norms are the scores that Dwivedi et al. 2026 (arXiv 2604.19835) call gradient-based utility;
    tokens are the router's statistics. The model is left as it was.

    model: a mixture of experts of transformers.
    batches: arguments of the model, such as `input_ids` (B, T); the labels are `input_ids` if there are none.

    Raises:
        ConfigError: the model has no experts, there are no batches, or a gradient is NaN or infinite.

    >>> import growth
    >>> from transformers import MixtralConfig, MixtralForCausalLM
    >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    >>> model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, num_local_experts=4))
    >>> found = growth.expert_utility(model, [{"input_ids": torch.arange(32)[None]}])
    >>> len(found.tokens[0]), round(sum(found.tokens[0]), 4)  # each token goes to two of four experts
    (4, 2.0)
    """
    stacks = {name: module for name, module in model.named_modules() if _is_stack(module)}
    if not stacks:
        raise ConfigError(f"{type(model).__name__} has no experts. Give a mixture of experts.")
    counted = {name: torch.zeros(_size(module)) for name, module in stacks.items()}
    squares = {name: torch.zeros(_size(module), dtype=torch.float64) for name, module in stacks.items()}
    number = 0
    weights = [(name, weight) for name, module in stacks.items() for weight in module.parameters(recurse=False)]
    with ExitStack() as undo:
        for name, module in stacks.items():
            undo.callback(module.register_forward_pre_hook(_counting(counted[name]), with_kwargs=True).remove)
            for parameter in module.parameters(recurse=False):
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(True)
        for batch in batches:
            number += 1
            loss = model(**{"labels": batch["input_ids"], **batch}).loss
            gradients = torch.autograd.grad(loss, [weight for _, weight in weights], allow_unused=True)
            for (name, _), gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    squares[name] += gradient.detach().flatten(1).double().square().sum(1).cpu()
    if not number:
        raise ConfigError("expert_utility needs at least one batch. Give some.")
    for name, square in squares.items():
        if not bool(square.isfinite().all()):
            raise ConfigError(
                f"The gradients of the experts of '{name}' are NaN or infinite, in {number} batches. Measure a model "
                "whose loss is finite, in float32 or bfloat16."
            )
    chosen = int(model.config.num_experts_per_tok)
    tokens = tuple(tuple((count / count.sum() * chosen).tolist()) for count in counted.values())
    return ExpertUtility(tokens, tuple(tuple((square / number).tolist()) for square in squares.values()))


def _is_stack(module: nn.Module) -> bool:
    """Whether a module holds the weights of all experts of a layer, stacked as transformers does."""
    return getattr(getattr(module, "down_proj", None), "ndim", 0) == 3


def _size(module: nn.Module) -> int:
    return int(module.get_parameter("down_proj").shape[0])


def _counting(counted: Tensor) -> Any:
    """Return a hook that adds the number of tokens that go to each expert."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        chosen = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
        counted.add_(torch.bincount(chosen.flatten().cpu(), minlength=len(counted)))

    return hook
