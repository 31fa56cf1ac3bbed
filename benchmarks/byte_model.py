"""A byte-level model that is small enough to train in minutes: Python's standard library as text, Phi or Llama."""

import hashlib
import sysconfig
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel

ROWS, LENGTH, PEAK = 16, 128, 8e-3
HEAD_DIM = 12
HELD_OUT = 20  # of 256 files


def text() -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes to train on, and those held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {str(file) for pattern in ("*.py", "*/*.py", "test/*.py") for file in root.glob(pattern)}
    parts = (bytearray(), bytearray())
    for file in sorted(files):
        if "site-packages" not in file:
            held = hashlib.sha256(Path(file).name.encode()).digest()[0] < HELD_OUT
            parts[held].extend(Path(file).read_bytes() + b"\0")
    training, held_out = (torch.frombuffer(part, dtype=torch.uint8) for part in parts)
    return training, held_out


def batch(data: torch.Tensor, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Random windows of the text, (rows, LENGTH + 1)."""
    starts = torch.randint(0, len(data) - LENGTH - 1, (rows,), generator=generator)
    return torch.stack([data[start : start + LENGTH + 1] for start in starts.tolist()]).long()


def model(family: str, width: int, layers: int, seed: int, *, tied: bool = False) -> PreTrainedModel:
    """A new model of a family: "phi" (LayerNorm) or "llama" (RMSNorm)."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": 256, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_DIM, "max_position_embeddings": LENGTH, "tie_word_embeddings": tied,
        "attn_implementation": "sdpa",
    }  # fmt: skip
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(head_dim=HEAD_DIM, **common))
    return PhiForCausalLM(PhiConfig(partial_rotary_factor=0.5, hidden_act="gelu_pytorch_tanh", **common))


def optimizer(parameters: PreTrainedModel) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in parameters.parameters() if p.ndim > 1]
    vectors = [p for p in parameters.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95))


def flops_per_token(module: PreTrainedModel) -> float:
    """FLOPs of training per token: 6 for each weight that multiplies, and those of causal attention."""
    config = module.config
    weights = sum(p.numel() for name, p in module.named_parameters() if p.ndim == 2 and "embed" not in name)
    return 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * LENGTH / 2


def loss(module: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats per byte."""
    return cross_entropy(module(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())


def train_step(
    module: PreTrainedModel, adam: torch.optim.Optimizer, data: torch.Tensor, draws: torch.Generator, rate: float
) -> None:
    """One step on one batch."""
    for group in adam.param_groups:
        group["lr"] = rate
    value = loss(module, batch(data, ROWS, draws))
    adam.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    adam.step()


@torch.no_grad()
def held_out_loss(module: PreTrainedModel, data: torch.Tensor, batches: int) -> float:
    """Loss on text that was not trained on."""
    draws = torch.Generator().manual_seed(1)
    module.eval()
    values = [loss(module, batch(data, 32, draws)).item() for _ in range(batches)]
    module.train()
    return sum(values) / batches
