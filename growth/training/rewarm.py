"""Warm up the learning rate of what a growth has added, and of nothing else (Yu et al. 2026, SPARKLING).

What the source already had continues at the full rate. A new unit is a row or column inside an old tensor, so the rate
differs between entries of one parameter, which no parameter group can express. The update itself is scaled instead,
after each step of the optimizer: that works with every optimizer of torch, and scales weight decay too.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from growth.errors import OptimizerError
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap
from growth.training.moments import check_plan
from growth.training.parameter_names import misfit, parameters_by_file_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rewarm:
    """Scale the next updates of what a growth has added, from 1/steps up to 1.

    optimizer: an optimizer over the parameters of `model`, such as that of `growth.grow_optimizer`.
    model: the grown model. plan: the plan that it grew by.
    steps: the number of steps until new entries have the full learning rate.
    done: how many of these steps a resumed run has taken before.

    New entries are those of new layers, of fresh units and of all copies but the first. Before each step their values
    are copied, which needs as much memory as they do. After the last step the hooks are removed; `remove` does so
    earlier.

    Raises:
        OptimizerError: a model with experts, or a model or an optimizer that does not fit the plan.

    >>> import growth, torch, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("examples/phi-mini")
    >>> plan = growth.plan("double-width", model)
    >>> larger = growth.grow_model(model, plan)
    >>> optimizer = torch.optim.SGD(larger.parameters(), lr=0.1)
    >>> warmup = growth.Rewarm(optimizer, larger, plan, steps=100)
    >>> warmup.factor
    0.01
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: PreTrainedModel, plan: Plan, *, steps: int, done: int = 0
    ) -> None:
        if type(steps) is not int or type(done) is not int or steps < 1 or done < 0:
            raise OptimizerError(
                f"Rewarm has steps={steps!r} and done={done!r}. Use whole numbers, at least 1 for steps "
                "and at least 0 for done."
            )
        check_plan(plan)
        parameters = parameters_by_file_name(model)
        wrong = misfit(parameters, {tensor_map.target: tensor_map.shape for tensor_map in plan.tensors})
        if wrong is not None:
            raise OptimizerError(f"The model is not the plan's: {wrong}. Pass the model that the plan has grown.")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        trained = {id(parameter) for parameter in parameters.values() if parameter.requires_grad}
        if not held & trained:
            raise OptimizerError("The optimizer has no parameter of the model. Pass the optimizer that trains it.")
        self.steps, self.done = steps, done
        self._new: list[tuple[nn.Parameter, Tensor]] = []
        for tensor_map in plan.tensors:
            parameter, new = parameters[tensor_map.target], new_entries(tensor_map)
            if id(parameter) in held and new.any():
                self._new.append((parameter, new.to(parameter.device)))
        self._before: list[Tensor] = []
        self._hooks = [optimizer.register_step_pre_hook(self._keep), optimizer.register_step_post_hook(self._scale)]
        if done >= steps:
            self.remove()

    @property
    def factor(self) -> float:
        """The factor on the next update of new entries."""
        return min(1.0, (self.done + 1) / self.steps)

    def remove(self) -> None:
        """Stop: all entries are updated alike from here on."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._new, self._before = [], [], []

    @torch.no_grad()
    def _keep(self, *_: Any) -> None:
        self._before = [parameter[new] for parameter, new in self._new]

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        for (parameter, new), before in zip(self._new, self._before, strict=True):
            parameter[new] = torch.lerp(before, parameter[new], self.factor)
        self.done += 1
        if self.done >= self.steps:
            self.remove()


def new_entries(tensor_map: TensorMap) -> Tensor:
    """Which entries of a grown tensor the source did not have, as booleans of the tensor's shape.

    All but the first copy of each old entry are new.
    """
    if tensor_map.new_layer:
        return torch.ones(tensor_map.shape, dtype=torch.bool)
    kept = reduce(np.logical_and.outer, [~dimension.new for dimension in tensor_map.dimensions])
    return torch.from_numpy(~kept)
