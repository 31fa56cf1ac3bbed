"""The learning rates of a stage: by kind of value, and a second warm-up.

They scale updates, by hooks on the optimizer. Its groups and their learning rates stay as they are, so a scheduler and
a checkpoint of the optimizer need no change. The hooks of one stage are removed by the growth that begins the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from growth.planning.plan import Plan
from growth.training.rewarm import Rewarm
from growth.training.schedule import Stage
from growth.training.value_kinds import KINDS, value_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Removable(Protocol):
    """Something that changes an optimizer's steps until it is removed."""

    def remove(self) -> None:
        """Leave the optimizer as it was."""


def set_rates(
    stage: Stage, optimizer: torch.optim.Optimizer, model: PreTrainedModel, plan: Plan, done: int = 0
) -> list[Removable]:
    """Begin the learning rates of a stage, or resume them `done` steps after its growth."""
    begun: list[Removable] = []
    if stage.rates is not None:
        begun.append(KindRates(optimizer, model, plan, stage.rates.by_kind))
    if stage.rewarm is not None:
        begun.append(Rewarm(optimizer, model, plan, steps=stage.rewarm.steps, of=stage.rewarm.of, done=done))
    return begun


class KindRates:
    """Scale the updates of values by the rates of their kinds; weight decay too. A rate of 0 keeps every bit.

    Values whose rate is not 1 are copied before each step, which needs as much memory as they do.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: PreTrainedModel, plan: Plan, rates: Mapping[str, float]
    ) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._scaled: list[tuple[nn.Parameter, Tensor, float]] = []
        for _, parameter, kinds in value_kinds(model, plan):
            for number, kind in enumerate(KINDS):
                mask = kinds == number
                if id(parameter) in held and rates[kind] != 1 and bool(mask.any()):
                    self._scaled.append((parameter, mask, rates[kind]))
        self._before: list[Tensor] = []
        self._hooks = [optimizer.register_step_pre_hook(self._keep), optimizer.register_step_post_hook(self._scale)]

    def remove(self) -> None:
        """Stop: all values are updated alike from here on."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _keep(self, *_: Any) -> None:
        self._before = [parameter[mask] for parameter, mask, _ in self._scaled]

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        for (parameter, mask, rate), before in zip(self._scaled, self._before, strict=True):
            parameter[mask] = torch.lerp(before, parameter[mask], rate)
