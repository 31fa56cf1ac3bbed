"""configure: values of config keys that no other step sets."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, JsonValue

from growth.architectures.config import DROPOUT, NEUTRAL, UNSAID, Config, shown
from growth.architectures.rotary import CONTEXTS, nested_rope, reads_context, restated
from growth.errors import RecipeError
from growth.operators.base import Growth, Operator
from growth.operators.registry import Summary, register

# what a checkpoint is, how it is stored and how it is called, which no step of a recipe decides
IDENTITY = (
    "model_type",
    "architectures",
    "auto_map",
    "quantization_config",
    "compression_config",
    "dtype",
    "torch_dtype",
    "return_dict",
    "is_encoder_decoder",
    "attn_implementation",
    "transformers_version",
)


@register(
    Summary(
        "`configure`",
        "changes config keys that set no size, such as `rope_theta` or `sliding_window`",
        "no, unless the keys are read in training alone or are `max_position_embeddings` of rotary positions",
    ),
    example={"keys": {"rope_theta": 1000000.0}},
    lossy=True,
)
def configure(*, keys: Annotated[Mapping[str, JsonValue], Field(min_length=1)]) -> Operator:
    """Change values of config keys, for a result that differs from its source in more than its size.

    The weights grow as if the step were not there, so the model computes another function (lossy), except where the
    function does not depend on the keys. Keys that set a size, and keys that decide which weights the model has, are
    refused.

    It must be the last step of a recipe, so that no other step changes the same keys. The plan then builds the stock
    class of the grown config, without weights: values that transformers does not accept are refused there.

    keys: config keys and their values. A key that the config has in `rope_parameters` is changed there.

    Raises (when applied):
        RecipeError: a key that says what a checkpoint is, or how it is stored or called; a key or a value that
            transformers does not know; a step that follows.

    >>> import growth
    >>> plan = growth.plan(growth.configure(keys={"rope_theta": 1e6}), "examples/phi-mini")
    >>> plan.preserving, plan.config["rope_parameters"]["rope_theta"]
    (False, 1000000.0)
    """

    def operator(growth: Growth) -> Growth:
        before = growth.config
        _check_keys(keys, before)
        settings = {key: _typed(value, _stated(before, key)) for key, value in keys.items()}
        after = restated(before, settings)
        told = ", ".join(f"{key} {shown(_stated(before, key))} → {shown(value)}" for key, value in settings.items())
        # the norms' eps may still be rescaled, so even an equal value counts as another one
        exact = all(is_neutral(key, config) for key in keys for config in (before, after))
        lossy = "the weights stay, and the model computes something else with them (lossy)"
        why = "the function does not depend on it" if exact else lossy
        return replace(growth.noted(f"configure {told}", exact, why), settings=settings)

    return operator


def is_neutral(key: str, config: Config) -> bool:
    """Whether a model computes the same whatever the value of a key."""
    if key in CONTEXTS:
        return not reads_context(config, key)
    return key in NEUTRAL or key.endswith(DROPOUT)


def _typed(value: Any, before: Any) -> Any:
    """Return a whole number as a float where the config has a float; YAML writes both alike."""
    return float(value) if type(value) is int and type(before) is float else value


def _check_keys(keys: Mapping[str, Any], config: Config) -> None:
    refused = sorted(key for key in keys if key in IDENTITY or key.startswith("_"))
    if refused:
        raise RecipeError(
            f"configure: {', '.join(refused)} says what a checkpoint is, or how it is stored or called, which no "
            "step of a recipe decides. Leave it out."
        )
    if not _is_finite(dict(keys)):
        raise RecipeError("configure: NaN and infinity are no values of a config.json. State a finite number.")
    forms = [form for form in nested_rope(config).values() if isinstance(form, Mapping)]
    for key in keys if "rope_parameters" not in keys else ():
        if any(key in form for form in forms):
            raise RecipeError(
                f"configure: this config has a {key} for each type of layer. Give rope_parameters, with an object for "
                "each type."
            )


def _is_finite(keys: dict[str, Any]) -> bool:
    try:
        json.dumps(keys, allow_nan=False)
    except ValueError:
        return False
    return True


def _stated(config: Config, key: str) -> Any:
    """Return the value of a key, at top level or in rope_parameters."""
    return config.get(key, (config.get("rope_parameters") or {}).get(key, UNSAID))
