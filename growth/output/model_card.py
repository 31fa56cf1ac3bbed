"""README.md of a grown folder, as the hub shows it: where the model comes from, how it was made, what is exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from growth.planning.manifest import labelled, sizes
from growth.planning.plan import Plan
from growth.runtime.printable import markdown
from growth.version import __version__

TASKS = {  # the hub's name for the task of a class, by the end of its name
    "ForConditionalGeneration": "image-text-to-text",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
}
LOADERS = {"image-text-to-text": "ImageTextToText", "fill-mask": "MaskedLM"}


def model_card(
    plan: Plan, recipe: Mapping[str, Any], source: Mapping[str, str], stated: Mapping[str, str] | None = None
) -> str:
    """Return a README.md.

    source: the source as growth.json identifies it: its name, and its commit if it is on the hub.
    stated: what the source's own card says of its licence and base model.
    """
    called, before, after = markdown(source["name"]), dict(labelled(sizes(plan.source))), labelled(sizes(plan.target))
    rows = "\n".join(f"| {name} | {before[name]:,} | {size:,} |" for name, size in after)
    steps = "\n".join(
        f"- {markdown(step.operator)}: "
        f"{'preserves the function' if step.preserving else '**changes the function**'} ({markdown(step.why)})"
        for step in plan.growth.steps
    )
    described = f"Recipe: {markdown(recipe['description'])}.\n\n" if recipe.get("description") else ""
    commit = f" at commit {markdown(source['commit'])}" if "commit" in source else ""
    return f"""---
{_metadata(plan, source, stated or {})}
---

# {called}, grown

This model was grown from {called}{commit} with growth {__version__}, and has not been trained since. {_promise(plan)}

## How it was made

{described}| | before | after |
|---|---|---|
{rows}
| parameters | {plan.stored.parameters():,} | {plan.parameters:,} |

{steps}

`growth.json` holds the whole recipe, and records which source value each new value comes from.

## How exact it is

`growth verify SOURCE THIS_FOLDER --recipe RECIPE` runs both models and compares what they compute. With `--weights`, it
recomputes every tensor and file from the source, and compares every bit.

## Continue training

`{loader(plan)}.from_pretrained(THIS_FOLDER, dtype="auto")` loads the model. `growth.param_groups` reads
`growth.json`, and gives the new weights a learning rate of their own or freezes the old ones. After some training,
`growth diagnose THIS_FOLDER CHECKPOINT` says whether the new weights are used.
"""


def loader(plan: Plan) -> str:
    """Return the auto class of transformers that loads the grown model."""
    return f"AutoModelFor{LOADERS.get(_task(plan), 'CausalLM')}"


def _metadata(plan: Plan, source: Mapping[str, str], stated: Mapping[str, str]) -> str:
    """Return what the hub reads: the base model and its licence, as its own card states them."""
    base = source["name"] if "commit" in source else stated.get("base_model")
    found = {"base_model": base, "base_model_relation": "finetune"} if base else {}
    found |= {"library_name": "transformers"}
    found |= {key: stated[key] for key in ("license", "license_name", "license_link") if key in stated}
    task = _task(plan)
    found |= {"pipeline_tag": task} if task else {}
    return "\n".join([*(f"{key}: {value}" for key, value in found.items()), "tags: [growth, model-growth]"])


def _task(plan: Plan) -> str:
    """Return what the grown model's class is for; empty if its config does not say."""
    classes = plan.config.get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    return next((task for end, task in TASKS.items() if name.endswith(end)), "")


def _promise(plan: Plan) -> str:
    """Return what the model card says about the function."""
    if plan.preserving:
        return "It computes the same function as its source, up to rounding to the dtype in which it is stored."
    if plan.keeps_logits:
        return (
            "It gives the tokens of its source the same logits, up to rounding to the dtype in which it is stored; "
            "**the added tokens take some of the probability**."
        )
    return "**It does not compute the same function as its source**: the recipe is lossy."
