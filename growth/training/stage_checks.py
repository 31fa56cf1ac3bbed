"""What is checked of the stages of a schedule before the first step: that none of them fails when its time comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from growth.errors import ConfigError, OptimizerError
from growth.output.grown_model import empty_grown_model
from growth.output.in_memory import plan_in_memory
from growth.output.model_checks import check_hooks
from growth.planning.plan import Plan
from growth.training.in_place import check_holds_in_groups
from growth.training.moments import Fresh
from growth.training.optimizer import check_grown_groups, check_optimizer, names_in_groups
from growth.training.parameter_names import Names, parameter_names
from growth.training.rewarm import check_rates
from growth.training.schedule import Stage, named_stage, plan_stages
from growth.training.value_kinds import KINDS, kinds_by_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from growth.planning.recipe import RecipeLike

OptimizerGroups = Mapping[torch.optim.Optimizer, Sequence[Sequence[str]]]  # the names of parameters by group


def ways(stage: Stage, fresh: Fresh = "mean") -> Fresh:
    """What a stage does to the state of an optimizer, as `growth.grow_optimizer` names it.

    fresh: of a stage that carries the state.
    """
    named: dict[str, Fresh] = {"carry": fresh, "reset": "reset", "fresh": "all"}
    return named[stage.optimizer]


def check_stages(
    stages: Sequence[Stage],
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    name: str | None = None,
    fresh: Fresh = "mean",
    done: int = 0,
) -> None:
    """Refuse stages that cannot grow a model and its optimizers in place, before anything is trained.

    name: of the schedule, for errors.
    fresh: as for `growth.grow_optimizer`, where a stage carries the optimizer's state.
    done: how many stages of the schedule are before these.

    Raises:
        GrowthError: a recipe that does not apply, hooks that would be lost, an optimizer whose state cannot grow, a
            trained parameter that no optimizer has, or rates that leave nothing to train.
    """
    if not stages:
        return
    check_hooks(model, own=False)
    for optimizer in optimizers:
        check_holds_in_groups(optimizer)
    groups: OptimizerGroups = {optimizer: names_in_groups(optimizer, model) for optimizer in optimizers}
    _check_all_trained(model, groups)

    def first(recipe: RecipeLike) -> Plan:
        return plan_in_memory(recipe, model)

    before = parameter_names(model)
    for number, (stage, plan) in enumerate(zip(stages, plan_stages(stages, first, name, done), strict=True), done + 1):
        with named_stage(name, number):
            for optimizer in optimizers:
                check_optimizer(optimizer, model, ways(stage, fresh))
                if stage.rewarm is not None:
                    check_rates(optimizer, stage.rewarm.of)
            _check_stay_equal(plan, before, groups)
            after = parameter_names(empty_grown_model(model, plan), {one.target for one in plan.tensors})
            groups = {
                optimizer: check_grown_groups(optimizer, own, plan, before, after) for optimizer, own in groups.items()
            }
            _check_rates_train(stage, plan, after, groups)
            before = after


def _check_all_trained(model: PreTrainedModel, groups: OptimizerGroups) -> None:
    """Refuse a trained parameter that no optimizer has: another one would go on with it after it was replaced."""
    held = set(_names(groups))
    missing = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in held]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise OptimizerError(
            f"The optimizer does not have '{missing[0]}'{more}, which the model trains: growth replaces all parameters,"
            " and another optimizer would go on with the old ones. Pass all optimizers "
            "(schedule.start(model, [muon, adamw])), or freeze what none trains (requires_grad_(False))."
        )


def _check_stay_equal(plan: Plan, before: Names, groups: OptimizerGroups) -> None:
    """Refuse to tie two matrices that have been trained apart until then."""
    held = set(_names(groups))
    of = {file: name for name, stored in before.items() for file in stored.files}
    for head, embedding in plan.repeated:
        trained = [one.name for one in (head, embedding) if of.get(one.name) in held]
        if trained:
            raise ConfigError(
                f"The growth makes one matrix of '{head.name}' and '{embedding.name}', which must be equal then, and "
                f"steps until then change {' and '.join(map(repr, trained))}. Leave out retie, or freeze both."
            )


def _check_rates_train(stage: Stage, plan: Plan, after: Names, groups: OptimizerGroups) -> None:
    """Refuse rates of 0 for all that the optimizers train."""
    rates = stage.rates.by_kind if stage.rates is not None else {}
    if all(rates.values()):
        return
    kinds = kinds_by_tensor(plan)
    present = {kind for name in _names(groups) for file in after[name].files for kind in kinds[file]}
    if present and not any(rates[kind] for kind in present):
        has = ", ".join(kind for kind in KINDS if kind in present)
        raise ConfigError(
            f"Nothing is left to train: the growth leaves values of the kinds {has}, and the rates of these are 0. "
            "Leave one of them above 0."
        )


def _names(groups: OptimizerGroups) -> Iterable[str]:
    return (name for own in groups.values() for group in own for name in group)
