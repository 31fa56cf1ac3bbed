"""Scale what the next steps of an optimizer do, by factors that differ between kinds of values, or by one for all.

A new unit is a row or column inside an old tensor, so its learning rate differs from that of the values beside it,
which no parameter group can express. The update itself is scaled instead: values are kept before a step of the
optimizer, and interpolated after it. That works with every optimizer of torch, and scales weight decay too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from growth.training.value_kinds import KINDS, Origin, value_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Factor:
    """A factor on updates that changes evenly over some steps, and then stays.

    >>> factor = Factor(end=1.5, start=1.0, steps=2)
    >>> [factor.at(done) for done in range(4)]
    [1.25, 1.5, 1.5, 1.5]
    """

    end: float
    start: float = 0.0
    steps: int = 1

    def at(self, done: int) -> float:
        """The factor on the update after so many."""
        part = (done + 1) / self.steps
        return self.end if part >= 1 else self.start + (self.end - self.start) * part

    def is_over(self, done: int) -> bool:
        """Whether all further updates are whole."""
        return self.end == 1 and (done >= self.steps or self.start == 1)


# optimizer -> what scales its updates, by the purpose that it serves
_IN_FORCE: WeakKeyDictionary[torch.optim.Optimizer, dict[str, list[ScaledUpdates]]] = WeakKeyDictionary()


def put_in_force(optimizer: torch.optim.Optimizer, purpose: str, scaled: Iterable[ScaledUpdates]) -> None:
    """Scale updates for a purpose, in place of what has done so before: one factor serves a purpose, not a product.

    A cell of a notebook that runs again, and a run that resumes in the same process, make anew what is in force.
    """
    for before in in_force(optimizer, purpose):
        before.remove()
    _IN_FORCE.setdefault(optimizer, {})[purpose] = list(scaled)


def in_force(optimizer: torch.optim.Optimizer, purpose: str) -> list[ScaledUpdates]:
    """What scales the updates of an optimizer for a purpose."""
    return _IN_FORCE.get(optimizer, {}).get(purpose, [])


class ScaledUpdates(ABC):
    """Something that scales the steps of an optimizer until it has no more to scale, or is removed.

    A step that a GradScaler skips does not count.

    Attributes:
        done: the steps taken.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, done: int = 0) -> None:
        self._ended = False
        self.count_from(done)
        self._hooks = [optimizer.register_step_pre_hook(self._begin), optimizer.register_step_post_hook(self._finish)]

    def count_from(self, done: int) -> None:
        """Continue as after so many steps."""
        self.done = done
        self._drop_what_is_over()

    def remove(self) -> None:
        """Stop: updates are whole from here on."""
        for hook in self._hooks:
            hook.remove()
        self._end()

    def _end(self) -> None:
        """Do nothing from here on; hooks cannot be removed while the optimizer goes through them."""
        self._ended = True

    @torch.no_grad()
    def _begin(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._ended:
            self._keep(optimizer)

    @torch.no_grad()
    def _finish(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._ended:
            return
        self._scale(optimizer)
        skipped = getattr(optimizer, "found_inf", None)  # a GradScaler lets fused optimizers skip the step themselves
        if skipped is None or not bool(skipped):
            self.count_from(self.done + 1)

    @abstractmethod
    def factor_of(self, kind: str) -> float:
        """The factor on the next update of a kind of value."""

    @abstractmethod
    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Prepare a step of the optimizer."""

    @abstractmethod
    def _scale(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale the step."""

    @abstractmethod
    def _drop_what_is_over(self) -> None:
        """Release what will not be scaled any more."""


class ScaledGroups(ScaledUpdates):
    """All groups of an optimizer have a fraction of their learning rates during a step, and their own between steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Factor, done: int = 0) -> None:
        self.factor = factor
        self._optimizer = ref(optimizer)
        super().__init__(optimizer, done)
        self._hooks.append(optimizer.register_state_dict_pre_hook(restore_rates))

    def remove(self) -> None:
        """Stop: updates are whole from here on."""
        super().remove()
        if (optimizer := self._optimizer()) is not None:
            restore_rates(optimizer)

    def factor_of(self, kind: str) -> float:
        """The factor on the next update of a kind of value."""
        return self.factor.at(self.done)

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        step = _UNFINISHED.get(optimizer)
        if step is None or id(self) in step.scaled_by:
            restore_rates(optimizer)
            step = _UNFINISHED[optimizer] = _Step(optimizer.param_groups)
        step.scaled_by.add(id(self))
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.factor.at(self.done)
        step.during = [group["lr"] for group in optimizer.param_groups]

    def _scale(self, optimizer: torch.optim.Optimizer) -> None:
        restore_rates(optimizer)

    def _drop_what_is_over(self) -> None:
        if self.factor.is_over(self.done):
            self._end()


class _Step:
    """A step of an optimizer whose groups have other learning rates than between steps.

    scaled_by: the identities of all that scale them.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self.groups = list(groups)
        self.own = self.during = [group["lr"] for group in self.groups]
        self.scaled_by: set[int] = set()


_UNFINISHED: WeakKeyDictionary[torch.optim.Optimizer, _Step] = WeakKeyDictionary()


def restore_rates(optimizer: torch.optim.Optimizer) -> None:
    """Give groups their own learning rates after a step, also one that raised an exception.

    Whatever reads the rates of an optimizer calls it first. What a scheduler has set since such a step remains.
    """
    step = _UNFINISHED.pop(optimizer, None)
    if step is None:
        return
    for group, own, during in zip(step.groups, step.own, step.during, strict=True):
        if group["lr"] is during:
            group["lr"] = own


class ScaledKinds(ScaledUpdates):
    """Values of a grown model are scaled by the factors of their kinds (growth.training.value_kinds), until it grows.

    A factor of 0 keeps every bit. Values are copied before each step, which needs as much memory as they do, except
    those whose factor is 1 from now on. Of a sharded parameter, each process scales the values that it holds.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: PreTrainedModel,
        origin: Origin,
        factors: Mapping[str, Factor],
        done: int = 0,
    ) -> None:
        self._factors = dict(factors)
        kinds_by_factor = {
            factor: [n for n, kind in enumerate(KINDS) if factors[kind] == factor] for factor in factors.values()
        }
        scaled = {factor: numbers for factor, numbers in kinds_by_factor.items() if not factor.is_over(done)}
        held = parameter_ids(optimizer)
        self._parts: list[_Part] = []
        for _, parameter, kinds in value_kinds(model, origin) if scaled else ():
            if id(parameter) not in held:
                continue
            for factor, numbers in scaled.items():
                mask = torch.isin(kinds, torch.tensor(numbers, dtype=kinds.dtype, device=kinds.device))
                if bool(mask.any()):
                    self._parts.append(_Part(parameter, _shard_of(mask, parameter), factor))
        self._before: list[Tensor] = []
        super().__init__(optimizer, done)

    def factor_of(self, kind: str) -> float:
        """The factor on the next update of a kind of value."""
        return self._factors[kind].at(self.done)

    def _end(self) -> None:
        super()._end()
        self._parts, self._before = [], []

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        if {id(part.parameter) for part in self._parts} <= parameter_ids(optimizer):
            self._before = [part.values() for part in self._parts]
        else:
            self._end()  # a further growth has replaced the parameters

    def _scale(self, optimizer: torch.optim.Optimizer) -> None:
        for part, before in zip(self._parts, self._before, strict=False):
            part.scale(before, self.done)

    def _drop_what_is_over(self) -> None:
        self._parts = [part for part in self._parts if not part.factor.is_over(self.done)]
        if not self._parts:
            self._end()


@dataclass(frozen=True, eq=False)
class _Part:
    """Values of a parameter with one factor: those under the mask, in the shard that this process holds."""

    parameter: nn.Parameter
    mask: Tensor
    factor: Factor

    def values(self) -> Tensor:
        """A copy of the values."""
        return _shard(self.parameter)[self.mask]

    def scale(self, before: Tensor, done: int) -> None:
        """Scale what a step did to the values, given those before it."""
        factor, shard = self.factor.at(done), _shard(self.parameter)
        shard[self.mask] = torch.lerp(before, shard[self.mask], factor) if factor else before


def parameter_ids(optimizer: torch.optim.Optimizer) -> set[int]:
    """The identities of an optimizer's parameters."""
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
