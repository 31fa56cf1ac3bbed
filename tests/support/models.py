"""Small random stock models, and the comparison that all equivalence tests make."""

from pathlib import Path
from typing import Any

import torch
from transformers import PhiConfig, PhiForCausalLM, PreTrainedModel

import growth
from growth.verification.float64 import proof_grade

VOCAB = 61
EXACT = 1e-12  # relative error of logits in float64


def random_phi(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> PhiForCausalLM:
    """A Phi with every parameter random, norm gains and biases too."""
    geometry = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "partial_rotary_factor": 0.5,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        **changes,
    }
    with proof_grade():
        model = PhiForCausalLM(PhiConfig(**geometry, attn_implementation="eager"))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3 if parameter.ndim > 1 else 0.5, generator=generator)
    return model.to(dtype).eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    """The model as transformers saves it."""
    model.save_pretrained(folder)
    return folder


def grown(model: PreTrainedModel, recipe: Any, seed: int = 0) -> PreTrainedModel:
    """The grown model, its rotary frequencies in float64 as the source's are."""
    with proof_grade():
        return growth.grow_model(model, recipe, seed=seed)


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits in proof-grade float64 of an eager model."""
    with proof_grade():
        return model(input_ids=tokens, use_cache=False).logits


def tokens(vocab: int = VOCAB, length: int = 12, seed: int = 1) -> torch.Tensor:
    """Seeded random ids, shape (2, length)."""
    return torch.randint(0, vocab, (2, length), generator=torch.Generator().manual_seed(seed))


def relative_error(source: PreTrainedModel, grown: PreTrainedModel) -> float:
    """||grown - source|| / ||source|| over the logits of the source's vocabulary."""
    ids = tokens(source.config.get_text_config().vocab_size)
    expected = logits(source, ids)
    found = logits(grown, ids)[..., : expected.shape[-1]]
    return float((found - expected).norm() / expected.norm())
