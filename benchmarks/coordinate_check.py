"""How far activations move in the first steps after a growth in width, at the rates of muP and at one rate for all.

A coordinate check (Yang et al. 2022, Tensor Programs V, appendix D.1): the root mean square of the change of the last
hidden states and of the logits, over that of the source. At the right rates it does not depend on the width.

    python benchmarks/coordinate_check.py
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import growth
from growth.operators import chain, widen

WIDTHS, STEPS, RATE = (1, 2, 4), 3, 2e-3
AXES = ("residual", "ffn", "heads")
OPTIMIZERS = {
    "adam": lambda groups: torch.optim.AdamW(groups, eps=1e-12),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
}


def source(seed: int = 0) -> PreTrainedModel:
    """A small Llama with an untied head, trained for a few steps so that its head and branches are not random."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(30):
        descend(model, optimizer, step)
    return model


def tokens(seed: int) -> torch.Tensor:
    """A batch of windows in which each token follows from the one before, but for some noise."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 64, (8, 1), generator=generator)
    noise = torch.randint(0, 3, (8, 16), generator=generator)
    return (first + 5 * torch.arange(16) + noise.cumsum(1)) % 64


def descend(model: PreTrainedModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step on one batch."""
    ids = tokens(seed)
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


@torch.no_grad()
def activations(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states and the logits."""
    found = model(input_ids=tokens(999), output_hidden_states=True)
    return found.hidden_states[-2], found.logits


def moved(
    small: PreTrainedModel, factor: int, init: str, rule: str, mup: bool, steps: int = STEPS
) -> list[tuple[float, ...]]:
    """The root mean square of the change of hidden states and logits after each step of a grown model."""
    shares = {"shares": "equal"} if init == "tile" else {}
    plan = growth.plan(chain(*(widen(axis, factor=factor, init=init, **shares) for axis in AXES)), small)
    model = growth.grow_model(small, plan)
    rate = RATE if rule == "adam" else 20 * RATE
    optimizer = OPTIMIZERS[rule](growth.param_groups(model, plan, lr=rate, mup=rule if mup else None))
    before, changes = activations(model), []
    for step in range(steps):
        descend(model, optimizer, 100 + step)
        pairs = zip(activations(model), before, strict=True)
        changes.append(tuple(float((now - then).square().mean().sqrt()) for now, then in pairs))
    return changes


def main() -> None:
    """Print one row for each init, rate and width: the change after each step over that of the source."""
    small = source()
    print("| optimizer | init | rates | width | " + " | ".join(f"step {step + 1}" for step in range(STEPS)) + " |")
    for rule in OPTIMIZERS:
        base = moved(small, 1, "tile", rule, False)
        for init in ("tile", "pad"):
            for mup in (False, True):
                for width in WIDTHS[1:]:
                    found = moved(small, width, init, rule, mup)
                    cells = (f"{a / c:.2f}, {b / d:.2f}" for (a, b), (c, d) in zip(found, base, strict=True))
                    print(f"| {rule} | {init} | {'muP' if mup else 'one'} | {width}× | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
