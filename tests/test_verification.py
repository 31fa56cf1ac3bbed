"""verify: exact growths pass, every kind of damage fails and is named, and the report says so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from growth.errors import CheckpointError, VerificationError
from growth.verification import choose_tokens, compare_logits, read_manifest, sample, verify

WEIGHTS = "model.safetensors"
VOCAB, HIDDEN, FFN, HEADS, HEAD_DIM, DEPTH = 97, 32, 64, 2, 16, 3
SILENT = 2  # the grown model's layer that is a copy of layer 1 with zero branches


def phi(depth: int, factor: int) -> PhiConfig:
    return PhiConfig(
        vocab_size=VOCAB,
        hidden_size=factor * HIDDEN,
        intermediate_size=factor * FFN,
        num_hidden_layers=depth,
        num_attention_heads=factor * HEADS,
        head_dim=HEAD_DIM,
        partial_rotary_factor=0.5,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )


def random_weights(seed: int) -> dict[str, Tensor]:
    """A stock Phi's weights in float64, every one random, norm gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = PhiForCausalLM(phi(DEPTH, 1)).state_dict()
    return {
        name: 0.15 * torch.randn(meta.shape, generator=generator, dtype=torch.float64)
        + float(name.endswith("layernorm.weight"))
        for name, meta in shapes.items()
    }


def write(folder: Path, weights: dict[str, Tensor], config: PhiConfig, dtype: torch.dtype) -> Path:
    folder.mkdir()
    config.dtype = dtype
    config.architectures = ["PhiForCausalLM"]
    config.save_pretrained(folder)
    stored = {name: weight.to(dtype).contiguous() for name, weight in weights.items()}
    save_file(stored, folder / WEIGHTS, {"format": "pt"})
    return folder


def doubled(name: str, weight: Tensor, share: float) -> Tensor:
    """One weight of a Phi with every width copied twice; the two copies are read as share and 1 - share."""
    reads = weight.dim() == 2 and "embed_tokens" not in name
    if "lm_head" not in name:
        weight = weight if "embed_tokens" in name else torch.cat([weight, weight])
    if reads:
        return torch.cat([share * weight, (1 - share) * weight], dim=1)
    return torch.cat([weight, weight], dim=1) if "embed_tokens" in name else weight


def grow(weights: dict[str, Tensor], share: float = 0.5) -> dict[str, Tensor]:
    """Twice as wide, and a silent copy of layer 1 after it: exact whatever the share."""
    wide = {name: doubled(name, weight, share) for name, weight in weights.items()}
    grown = {name: weight for name, weight in wide.items() if ".layers." not in name}
    for layer, source in enumerate((0, 1, 1, 2)):
        for name, weight in wide.items():
            if f".layers.{source}." in name:
                ends = layer == SILENT and (".dense." in name or ".fc2." in name)
                grown[name.replace(f".layers.{source}.", f".layers.{layer}.")] = 0 * weight if ends else weight
    return grown


MANIFEST = {
    "format": 1,
    "preserving": True,
    "sizes": {
        "before": {"residual": HIDDEN, "ffn": FFN, "heads": HEADS, "queries": 1, "head_dim": HEAD_DIM},
        "after": {"residual": 2 * HIDDEN, "ffn": 2 * FFN, "heads": 2 * HEADS, "queries": 1, "head_dim": HEAD_DIM},
    },
    "centred": [],
    "axes": {
        axis: {"before": n, "after": 2 * n, "runs": [[0, n, 0, 1.0, 0.5], [n, 2 * n, 0, 1.0, 0.5]]}
        for axis, n in (("residual", HIDDEN), ("ffn", FFN), ("heads", HEADS))
    },
    "layers": [{"source": source, "silent": layer == SILENT} for layer, source in enumerate((0, 1, 1, 2))],
    "tensors": {
        name: {"source": name, "axes": axes}
        for layer in range(DEPTH + 1)
        for name, axes in (
            (f"model.layers.{layer}.self_attn.q_proj.weight", [["heads", "queries", "head_dim"], ["residual"]]),
            (f"model.layers.{layer}.mlp.fc1.weight", [["ffn"], ["residual"]]),
        )
    },
    "steps": [{"operator": "widen <all>", "preserving": True, "why": "copies share their readers & <b>more</b>"}],
}
