"""One of the two models that `verify` compares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growth.architectures import architecture, find_family
from growth.architectures.base import Architecture
from growth.arrays.tensor_info import DTYPES
from growth.arrays.torch_interop import TORCH_DTYPES
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.open import as_checkpoint
from growth.checkpoints.stock_parameters import stock_config
from growth.errors import CheckpointError, VerificationError
from growth.planning.check import match_tensors
from growth.runtime.workers import Progress
from growth.verification.images import Inputs
from growth.verification.rounding_floor import means
from growth.verification.streaming import Observe, Perturb, StreamedModel, unchanged

SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
STORED = "stored"
PRECISIONS = ("F64", "F32")


def computed_in(precision: str, stored: torch.dtype) -> torch.dtype:
    """The dtype that a model computes in, by what `verify` was given as `dtype` and the dtype it is stored in.

    Raises:
        VerificationError: another name.
    """
    if precision == STORED:
        return stored
    code = DTYPES.get(precision, precision)
    if code not in PRECISIONS:
        raise VerificationError(
            f"Models cannot be compared in dtype '{precision}': use float64 (fp64), float32 (fp32), or stored, which "
            "computes in the dtype that each checkpoint is stored in."
        )
    return TORCH_DTYPES[code]


@dataclass(frozen=True)
class ComparedModel:
    """A checkpoint, and what it is stored and computed in.

    Attributes:
        checkpoint: the opened folder.
        stored: the dtype of most of its values.
        computed: the dtype of the arithmetic.
        parameters: the number of stored values.
        sizes: those of its config that reports show, by their names in transformers.
        context: the largest number of positions, if the config states one.
        mixture: whether it has experts.
        built: its architecture, for a family that can grow.
    """

    checkpoint: Checkpoint
    stored: torch.dtype
    computed: torch.dtype
    parameters: int
    sizes: Mapping[str, int]
    context: int | None
    mixture: bool
    built: Architecture | None

    @classmethod
    def open(cls, source: Path | Checkpoint, precision: str) -> ComparedModel:
        """Read a checkpoint's config and headers.

        Raises:
            CheckpointError: it is not a complete checkpoint, or holds no floats.
            ConfigError: transformers has no stock model for it.
            VerificationError: as `computed_in`.
        """
        checkpoint = as_checkpoint(source)
        folder = checkpoint.folder
        counts: Counter[str] = Counter()
        for tensor in checkpoint.tensors.values():
            if tensor.dtype in TORCH_DTYPES:  # a tensor of another dtype is refused by name before the model runs
                counts[tensor.dtype] += math.prod(tensor.shape)
        if not counts:
            raise CheckpointError(f"{folder} has no tensor in a dtype that can be run: {', '.join(TORCH_DTYPES)}.")
        stored, built = TORCH_DTYPES[counts.most_common(1)[0][0]], None
        if find_family(checkpoint.config.get("model_type")):
            built = architecture(checkpoint.config).named_as_in(checkpoint.tensors)
            match_tensors(built, checkpoint.tensors)  # before anything of the config's sizes is allocated
        config: Any = stock_config(folder).get_text_config()
        return cls(
            checkpoint,
            stored,
            computed_in(precision, stored),
            counts.total(),
            {name: getattr(config, name) for name in SIZES if hasattr(config, name)},
            getattr(config, "max_position_embeddings", None),
            any(getattr(config, key, None) for key in EXPERTS),
            built,
        )

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self.checkpoint.folder

    @property
    def width(self) -> int:
        """hidden_size."""
        return self.sizes["hidden_size"]

    @property
    def depth(self) -> int:
        """The number of layers."""
        return self.sizes["num_hidden_layers"]

    def means(self, added_mean: float) -> dict[str, tuple[int, float]]:
        """The tensors to which a growth adds a part of their mean, for `rounding_floor.signs`."""
        return means(self.built, "residual", added_mean) if self.built is not None and added_mean else {}

    def with_image(self, batch: Tensor, seed: int) -> Inputs:
        """The inputs for a batch of tokens, with a random image in each row if the model takes images."""
        return self._model.with_image(batch, seed)

    def run(
        self,
        stage: str,
        inputs: Tensor | Inputs,
        progress: Progress,
        see: Observe,
        perturbs: Sequence[Perturb] = (unchanged,),
    ) -> Tensor:
        """The logits (B, T, V); `see` is called with every residual stream, `progress` with (stage, layers, depth)."""

        def observe(at: int, hidden: Tensor) -> None:
            see(at, hidden)
            progress(stage, at, self.depth)

        return self._model.run(inputs, observe=observe, perturbs=perturbs)

    @cached_property
    def _model(self) -> StreamedModel:
        fixed = [weight.name for weight in self.built.weights if weight.passes] if self.built is not None else []
        return StreamedModel(self.checkpoint, self.computed, fixed)
