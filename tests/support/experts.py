"""Mixtures of experts in memory."""

import growth
from growth.verification.float64 import proof_grade
from tests.support.families import all_cases

CASES = {case.name: case for case in all_cases()}


def grown(model, recipe, seed=0):
    # the kernel that runs experts, and rotary frequencies in float64, as in the source
    model.config._experts_implementation = "eager"
    with proof_grade():
        return growth.grow_model(model, recipe, seed=seed)


def experts_of(model):
    """The experts of the first layer that has some."""
    return next(module for module in model.modules() if getattr(getattr(module, "down_proj", None), "ndim", 0) == 3)


def last_of_experts(model):
    """The stack of the last matrices of the experts of the first layer that has some."""
    ends = ("experts.down_proj", "mlp.output_linear.weight")
    return next(one for name, one in model.named_parameters() if name.endswith(ends) and one.ndim == 3)
