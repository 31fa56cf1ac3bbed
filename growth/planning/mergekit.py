"""mergekit's passthrough configs: read as recipes, and written for recipes that only add copies of layers.

mergekit (Goddard et al. 2024, arXiv 2403.13257) states the layers of a model as slices of others. A slice of the same
model, repeated, is a copy; one whose last weights of both branches are scaled by 0 is an identity layer (LLaMA-Pro).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import Field, StrictFloat, StrictInt

from growth.architectures import Architecture, architecture
from growth.architectures.base import Weight
from growth.checkpoints.checkpoint import Checkpoint
from growth.errors import RecipeError
from growth.operators.base import Layer
from growth.operators.registry import ClosedModel
from growth.planning.closed_yaml import FileKind
from growth.planning.plan import Plan
from growth.planning.recipe import Recipe, recipe_of

Number = StrictInt | StrictFloat


class _MergekitFactor(ClosedModel):
    """A factor for the tensors whose names contain a text; without it for all."""

    value: Number
    filter: str = "*"


class _MergekitParameters(ClosedModel):
    """What mergekit does to the tensors of a slice."""

    scale: Number | list[_MergekitFactor] = 1

    def of(self, tensor: str) -> float:
        """The factor of a tensor: that of the first filter that its name contains."""
        if not isinstance(self.scale, list):
            return float(self.scale)
        return next((float(one.value) for one in self.scale if one.filter == "*" or one.filter in tensor), 1.0)


class _MergekitSource(ClosedModel):
    """Some layers of a model, from the first to before the last."""

    model: str
    layer_range: list[StrictInt] = Field(min_length=2, max_length=2)
    parameters: _MergekitParameters = _MergekitParameters()


class _MergekitSlice(ClosedModel):
    """Layers of the result."""

    sources: list[_MergekitSource] = Field(min_length=1, max_length=1)


class MergekitConfig(ClosedModel):
    """A passthrough config of mergekit with layers of one model."""

    merge_method: Literal["passthrough"]
    slices: list[_MergekitSlice] = Field(min_length=1)
    dtype: str | None = None
    out_dtype: str | None = None
    name: str = Field(exclude=True)

    @property
    def model(self) -> str:
        """The model whose layers are listed.

        Raises:
            RecipeError: there are several.
        """
        models = list(dict.fromkeys(source.model for source in self._sources))
        if len(models) > 1:
            raise RecipeError(
                f"{self.name} takes layers of several models, {', '.join(models)}: growth grows one. Use mergekit."
            )
        return models[0]

    @property
    def stored(self) -> str | None:
        """The dtype in which mergekit would store the result; None for that of the source."""
        return self.out_dtype or self.dtype

    @property
    def _sources(self) -> list[_MergekitSource]:
        return [each.sources[0] for each in self.slices]

    def layers(self, built: Architecture) -> list[Layer]:
        """The layers of the result, in order.

        Raises:
            RecipeError: a range leaves the model, or a scale makes neither a copy nor an identity layer.
        """
        found = []
        for number, source in enumerate(self._sources, 1):
            start, stop = source.layer_range
            if not 0 <= start < stop <= built.depth:
                raise RecipeError(
                    f"{self.name}, slice {number}: layer_range [{start}, {stop}] is not within the model's "
                    f"{built.depth} layers, and its end is not included. Correct it."
                )
            for layer in range(start, stop):
                silent = self._is_silent(source.parameters, built, layer, number)
                found.append(Layer(layer, silent))
        return found

    def _is_silent(self, scaled: _MergekitParameters, built: Architecture, layer: int, number: int) -> bool:
        """Whether a layer becomes an identity.

        Raises:
            RecipeError: it becomes neither that nor a copy.
        """
        factors = {weight.name: scaled.of(weight.name.format(layer=layer)) for weight in _in_layers(built)}
        if set(factors.values()) == {1.0}:
            return False
        ends = {weight.name for weight in _in_layers(built) if weight.branch_end}
        wrong = [name for name, factor in factors.items() if factor != (0.0 if name in ends else 1.0)]
        if wrong:
            of = wrong[0].format(layer=layer)
            raise RecipeError(
                f"{self.name}, slice {number}: the scale of {of} is {factors[wrong[0]]:g}. It is 1 in a copy; "
                f"in an identity layer it is 0 for {', '.join(sorted(map(_short, ends)))}, and 1 for all others."
            )
        return True


DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
KIND = FileKind("mergekit config", "slice", "slices", "recipes", RecipeError, {}, head="merge_method")


def load_mergekit(path: Path) -> MergekitConfig:
    """Read a passthrough config from a file.

    Raises:
        RecipeError: there is no such file; or as for `parse_mergekit`.
    """
    if not path.is_file():
        raise RecipeError(f"There is no mergekit config {path}. Name its YAML file.")
    return parse_mergekit(KIND.read(path), path.name)


def parse_mergekit(text: str, name: str) -> MergekitConfig:
    """Read a passthrough config from YAML; `name` is its name in errors.

    Raises:
        RecipeError: it is malformed, has unknown keys, or merges otherwise.
    """
    return KIND.validate(MergekitConfig, KIND.mapping(KIND.parse(text, name), name), name)


def recipe_from(config: MergekitConfig, source: Checkpoint) -> Recipe:
    """Return the recipe that makes the layers of a mergekit config from a checkpoint.

    Raises:
        RecipeError: identity layers stand where no recipe can put them: before the layer that they copy.
    """
    built = architecture(source.config).named_as_in(source.tensors)
    layers = config.layers(built)
    silent = any(layer.silent for layer in layers)
    plain = [layer.source for layer in layers if not layer.silent]
    if silent and plain != list(range(built.depth)):
        raise RecipeError(
            f"{config.name} has identity layers and repeats or leaves out others: make two recipes of it, one for each."
        )
    seen: set[int] = set()
    for layer in layers:
        if layer.silent and layer.source not in seen:
            raise RecipeError(
                f"{config.name} puts an identity layer before layer {layer.source}, which it copies. Put it behind."
            )
        seen.add(layer.source)
    step = {"op": "deepen", "to": len(layers), "order": [layer.source for layer in layers]}
    kind = "identity layers, exact" if silent else "copies, lossy"
    return recipe_of(
        {
            "description": f"{built.depth} to {len(layers)} layers by {config.name}: {kind}",
            "source": config.model,
            "steps": [step if silent else step | {"init": "copy"}],
        },
        "imported recipe",
    )


def mergekit_text(plan: Plan, model: str) -> str:
    """Return a passthrough config that makes the layers of a plan.

    Raises:
        RecipeError: the plan does more than copy layers of the source.
    """
    others = [step.operator for step in plan.growth.steps if not step.operator.startswith("deepen ")]
    if others:
        raise RecipeError(
            f"mergekit copies layers, and this recipe has other steps: {', '.join(others)}. Only recipes of deepen "
            "steps can be exported."
        )
    if any(layer.fresh for layer in plan.growth.layers):
        raise RecipeError("mergekit copies layers, and this recipe adds random ones. Use init: identity or copy.")
    dtypes = {tensor.dtype for tensor in plan.tensors}
    slices = "".join(_slice_text(model, layers, plan.source) for layers in _slices(plan.growth.layers))
    dtype = f"dtype: {DTYPES[dtypes.pop()]}\n" if len(dtypes) == 1 else ""
    return f"slices:\n{slices}merge_method: passthrough\n{dtype}"


def _in_layers(built: Architecture) -> list[Weight]:
    return [weight for weight in built.weights if "{layer}" in weight.name]


def _slices(layers: tuple[Layer, ...]) -> Iterator[list[Layer]]:
    """Yield the runs of layers that follow one another in the source, and are all copies or all identities."""
    numbered = enumerate(layers)
    for _, run in groupby(numbered, key=lambda item: (item[1].source - item[0], item[1].silent)):
        yield [layer for _, layer in run]


def _slice_text(model: str, layers: list[Layer], built: Architecture) -> str:
    text = f"  - sources:\n      - model: {model}\n"
    text += f"        layer_range: [{layers[0].source}, {layers[-1].source + 1}]\n"
    if not layers[0].silent:
        return text
    ends = sorted({_short(weight.name) for weight in _in_layers(built) if weight.branch_end})
    filters = "".join(f"            - filter: {end}\n              value: 0.0\n" for end in ends)
    return f"{text}        parameters:\n          scale:\n{filters}            - value: 1.0\n"


def _short(name: str) -> str:
    """The name of a module within its layer."""
    return name.partition("{layer}.")[2].removesuffix(".weight").removesuffix(".bias")
