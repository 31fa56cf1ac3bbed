"""Warm up the learning rate of what a growth has added, or of everything (Yu et al. 2026, SPARKLING).

What the source already had continues at the full rate. A new unit is a row or column inside an old tensor, so the rate
differs between entries of one parameter, which no parameter group can express. The update itself is scaled instead,
after each step of the optimizer: that works with every optimizer of torch, and scales weight decay too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from growth.errors import OptimizerError
from growth.training.in_place import unwrapped
from growth.training.value_kinds import OLD, Origin, value_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Of = Literal["new", "all"]


class Rewarm:
    """Scale the next updates of what a growth has added, from 1/steps up to 1.

    optimizer: an optimizer over the parameters of `model`, such as that of `growth.grow_optimizer`.
    model: the grown model.
    origin: the Plan of the growth, the content of growth.json, or the folder that holds it.
    steps: the number of steps until the learning rate is full.
    of: "new": new layers, fresh units and all copies but the first. Before each step their values are copied, which
        needs as much memory as they do. "all": everything that the optimizer trains; each group has a fraction of its
        learning rate during a step, and its own rate between steps, so schedulers need no change.
    done: how many of these steps a resumed run has taken before; or restore `state_dict`.

    A step that a GradScaler skips does not count, nor does a backward pass that only accumulates gradients. A further
    growth of the optimizer ends the warm-up of new entries, whose parameters it replaces.

    Raises:
        CheckpointError: the model is not the grown one.
        OptimizerError: numbers of steps that make no sense, an optimizer of another model, or a group without a
            learning rate.

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
        self,
        optimizer: torch.optim.Optimizer,
        model: PreTrainedModel,
        origin: Origin,
        *,
        steps: int,
        of: Of = "new",
        done: int = 0,
    ) -> None:
        _check_numbers(steps, of, done)
        optimizer = unwrapped(optimizer)
        held = _held(optimizer)
        if not held & {id(parameter) for parameter in model.parameters() if parameter.requires_grad}:
            raise OptimizerError("The optimizer has no parameter of the model. Pass the optimizer that trains it.")
        if of == "all" and any(group.get("lr") is None for group in optimizer.param_groups):
            raise OptimizerError(
                "A group of the optimizer has no learning rate (lr=None), so that of all cannot be warmed up. Set lr, "
                "or use of='new'."
            )
        self.steps, self.of, self.done, self._ended = steps, of, done, False
        self._new: list[tuple[nn.Parameter, Tensor]] = []
        for _, parameter, kinds in value_kinds(model, origin) if of == "new" else ():
            if id(parameter) in held and (kinds != OLD).any():
                self._new.append((parameter, _shard_of(kinds != OLD, parameter)))
        self._before: list[Any] = []  # values of new entries, or learning rates
        self._hooks = [optimizer.register_step_pre_hook(self._keep), optimizer.register_step_post_hook(self._scale)]
        self._end_if_done()

    @property
    def factor(self) -> float:
        """The factor on the next update."""
        return min(1.0, (self.done + 1) / self.steps)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue the warm-up."""
        return {"steps": self.steps, "of": self.of, "done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another run stopped.

        Raises:
            OptimizerError: the state of a warm-up of other entries, or of nothing.
        """
        if state.keys() != {"steps", "of", "done"} or state["of"] != self.of:
            raise OptimizerError(
                f"The state of a warm-up is {dict(state)}, and this one needs steps, done and of='{self.of}'. "
                "Make the warm-up with the options of the run that is resumed."
            )
        _check_numbers(state["steps"], state["of"], state["done"])
        self.steps, self.done = state["steps"], state["done"]
        self._end_if_done()

    def remove(self) -> None:
        """Stop: updates are whole from here on."""
        for hook in self._hooks:
            hook.remove()
        self._end()

    def _end(self) -> None:
        """Do nothing from here on; hooks cannot be removed while the optimizer goes through them."""
        self._ended, self._new, self._before = True, [], []

    def _end_if_done(self) -> None:
        if self.done >= self.steps:
            self._end()

    @torch.no_grad()
    def _keep(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._ended:
            return
        if self.of == "all":
            self._before = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.factor
        elif {id(parameter) for parameter, _ in self._new} <= _held(optimizer):
            self._before = [_shard(parameter)[new] for parameter, new in self._new]
        else:
            self._end()  # a further growth has replaced the parameters

    @torch.no_grad()
    def _scale(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._ended:
            return
        if self.of == "all":
            for group, rate in zip(optimizer.param_groups, self._before, strict=True):
                group["lr"] = rate
        for (parameter, new), before in zip(self._new, self._before, strict=False):
            values = _shard(parameter)
            values[new] = torch.lerp(before, values[new], self.factor)
        skipped = getattr(optimizer, "found_inf", None)  # a GradScaler lets fused optimizers skip the step themselves
        if skipped is not None and bool(skipped):
            return
        self.done += 1
        self._end_if_done()


def _check_numbers(steps: Any, of: Any, done: Any) -> None:
    if type(steps) is not int or type(done) is not int or steps < 1 or done < 0:
        raise OptimizerError(
            f"Rewarm has steps={steps!r} and done={done!r}. Use whole numbers, at least 1 for steps "
            "and at least 0 for done."
        )
    if of not in get_args(Of):
        raise OptimizerError(f"Rewarm has of={of!r}: use one of {', '.join(get_args(Of))}.")


def _held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _shard(parameter: Tensor) -> Tensor:
    """The values of a parameter that this process holds: all of them, or a shard under FSDP2."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _shard_of(values: Tensor, parameter: Tensor) -> Tensor:
    """Of values for a whole parameter, those that stand beside this process's shard of it."""
    if not isinstance(parameter, DTensor):
        return values
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(values, mesh, placements, src_data_rank=None).to_local()
