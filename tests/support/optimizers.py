"""Steps of optimizers on small random models, in float64."""

import growth
from growth.verification.float64 import proof_grade
from growth.verification.images import image_inputs
from tests.support.models import tokens


def backward(model, seed=1):
    """Runs a model, on an image too if it takes one, and leaves gradients of the mean loss in its parameters."""
    ids = tokens(model.config.get_text_config().vocab_size, seed=seed)
    model.zero_grad()
    model.config.use_cache = False  # RWKV's is written in place, through which there are no gradients
    with proof_grade():
        inputs = image_inputs(model, ids)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()


def both(model, operator):
    """The plan of a growth, and the grown model."""
    plan = growth.plan(operator, model)
    with proof_grade():
        return plan, growth.grow_model(model, plan)


def error(found, expected):
    """Relative error; absolute where what is expected is zero."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-10))


def trained(model, make, steps=3):
    """The model after some steps, and its optimizer."""
    optimizer = make(model.parameters())
    for step in range(steps):
        backward(model, seed=step)
        optimizer.step()
    optimizer.zero_grad()
    return optimizer
