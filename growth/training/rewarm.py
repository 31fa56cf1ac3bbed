"""Warm up the learning rate of what a growth has added, or of everything (Yu et al. 2026, SPARKLING).

What the source already had continues at the full rate, also where it shares a tensor with what is new
(growth.training.scaled_updates).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from growth.errors import OptimizerError
from growth.training.in_place import unwrapped
from growth.training.scaled_updates import (
    Factor,
    ScaledGroups,
    ScaledKinds,
    ScaledUpdates,
    parameter_ids,
    put_in_force,
)
from growth.training.value_kinds import KINDS, OLD, Origin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Of = Literal["new", "all"]


class Rewarm:
    """Scale the next updates of what a growth has added, by factors that rise evenly to 1.

    optimizer: an optimizer over the parameters of `model`, such as that of `growth.grow_optimizer`.
    model: the grown model.
    origin: the Plan of the growth, the content of growth.json, or the folder that holds it.
    steps: the number of steps until the learning rate is full.
    of: "new": new layers, fresh units and all copies but the first. Before each step their values are copied, which
        needs as much memory as they do. "all": everything that the optimizer trains; each group has a fraction of its
        learning rate during a step, and its own rate between steps, so schedulers need no change.
    done: how many of these steps a resumed run has taken before; or restore `state_dict`.
    start: the factor before the first update, which has start + (1 - start)/steps: 1/steps by default.

    A step that a GradScaler skips does not count, nor does a backward pass that only accumulates gradients. A further
    growth of the optimizer ends the warm-up of new entries, whose parameters it replaces; another Rewarm with the same
    `of` takes the place of the one before. Under FSDP2, each process scales the values that it holds.

    Raises:
        CheckpointError: the model is not the grown one.
        OptimizerError: numbers of steps that make no sense, an optimizer of another model, or a group without a
            learning rate.

    >>> import growth, torch, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained(growth.resolve("examples/phi-mini"))
    >>> plan = growth.plan("double-width", model)
    >>> larger = growth.grow_model(model, plan)
    >>> optimizer = torch.optim.SGD(larger.parameters(), lr=0.1)
    >>> warmup = growth.Rewarm(optimizer, larger, plan, steps=100)
    >>> warmup.factor
    0.01
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: PreTrainedModel,
        origin: Origin,
        *,
        steps: int,
        of: Of = "new",
        done: int = 0,
        start: float = 0.0,
    ) -> None:
        _check_numbers(steps, of, done, start)
        self.of = of
        self._optimizer, self._model, self._origin = unwrapped(optimizer), model, origin
        check_trains(self._optimizer, model, of)
        self._begin(steps, start, done)

    @property
    def steps(self) -> int:
        """The number of steps until the learning rate is full."""
        return self._factor.steps

    @property
    def done(self) -> int:
        """The number of steps taken."""
        return self._scaled.done

    @property
    def factor(self) -> float:
        """The factor on the next update."""
        return self._factor.at(self.done)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue the warm-up."""
        return {"steps": self.steps, "of": self.of, "done": self.done, "start": self._factor.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another run stopped.

        Raises:
            OptimizerError: the state of a warm-up of other entries, or of nothing.
        """
        if state.keys() != {"steps", "of", "done", "start"} or state["of"] != self.of:
            raise OptimizerError(
                f"The state of a warm-up is {dict(state)}, and this one needs steps, done, start and of='{self.of}'. "
                "Make the warm-up with the options of the run that is resumed."
            )
        _check_numbers(**state)
        self.remove()
        self._begin(state["steps"], state["start"], state["done"])

    def remove(self) -> None:
        """Stop: updates are whole from here on."""
        self._scaled.remove()

    def _begin(self, steps: int, start: float, done: int) -> None:
        self._factor = Factor(1.0, start, steps)
        self._scaled: ScaledUpdates
        if self.of == "all":
            self._scaled = ScaledGroups(self._optimizer, self._factor, done)
        else:
            factors = {kind: Factor(1.0) if kind == KINDS[OLD] else self._factor for kind in KINDS}
            self._scaled = ScaledKinds(self._optimizer, self._model, self._origin, factors, done)
        put_in_force(self._optimizer, f"Rewarm of {self.of}", [self._scaled])


def check_trains(optimizer: torch.optim.Optimizer, model: PreTrainedModel, of: Of) -> None:
    """Refuse an optimizer whose updates cannot be warmed up.

    Raises:
        OptimizerError: it trains no parameter of the model, or a group has no learning rate.
    """
    if not parameter_ids(optimizer) & {id(parameter) for parameter in model.parameters() if parameter.requires_grad}:
        raise OptimizerError("The optimizer has no parameter of the model. Pass the optimizer that trains it.")
    check_rates(optimizer, of)


def check_rates(optimizer: torch.optim.Optimizer, of: Of) -> None:
    """Refuse groups whose learning rates cannot be warmed up.

    Raises:
        OptimizerError: a group has no learning rate.
    """
    if of == "all" and any(group.get("lr") is None for group in optimizer.param_groups):
        raise OptimizerError(
            "A group of the optimizer has no learning rate (lr=None), so that of all cannot be warmed up. Set lr, "
            "or use of='new'."
        )


def _check_numbers(steps: Any, of: Any, done: Any, start: Any) -> None:
    if type(steps) is not int or type(done) is not int or steps < 1 or done < 0:
        raise OptimizerError(
            f"Rewarm has steps={steps!r} and done={done!r}. Use whole numbers, at least 1 for steps "
            "and at least 0 for done."
        )
    if type(start) not in (int, float) or not 0 <= start < math.inf:
        raise OptimizerError(f"Rewarm has start={start!r}: use a number of at least 0.")
    if of not in get_args(Of):
        raise OptimizerError(f"Rewarm has of={of!r}: use one of {', '.join(get_args(Of))}.")
