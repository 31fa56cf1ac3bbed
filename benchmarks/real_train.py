"""Train a model of several hundred million parameters for a few steps, in little memory, on standard-library text."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from train_phi_mini import batches, encode, standard_library

STEPS, ROWS, LENGTH = 50, 2, 64
WARMUP = 5
HELD_OUT = 8  # windows of LENGTH tokens
EVERY = 10  # steps between two measurements of the held-out loss
FILES = 200  # of the training text, enough for all steps

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Text:
    """Token ids to train on, in one row; held-out windows, (HELD_OUT, start and LENGTH); what begins every window."""

    training: torch.Tensor
    held_out: torch.Tensor
    start: torch.Tensor

    def batches(self) -> Iterator[torch.Tensor]:
        """Endless random windows, (ROWS, start and LENGTH), the same in every run."""
        for rows in batches(self.training, ROWS, LENGTH, torch.Generator().manual_seed(0)):
            yield begun(rows, self.start)


def begun(rows: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Windows with some tokens in front, such as Gemma's <bos>, without which it predicts badly.

    >>> begun(torch.tensor([[5, 6], [7, 8]]), torch.tensor([2])).tolist()
    [[2, 5, 6], [2, 7, 8]]
    """
    return torch.cat([start.expand(len(rows), -1), rows], 1)


def read_text(folder: Path) -> Text:
    """Python's standard library as a model's tokenizer divides it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    training, held_out = standard_library(tests=True)
    chosen = random.Random(0).sample(training, FILES), random.Random(0).sample(held_out, FILES // 10)
    ids, held_out_ids = (encode(tokenizer, texts) for texts in chosen)
    start = torch.tensor(tokenizer("")["input_ids"], dtype=torch.long)
    return Text(ids, begun(windows(held_out_ids, HELD_OUT, LENGTH), start), start)


def windows(ids: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """Windows spread evenly over a text, shape (count, length)."""
    whole = ids[: len(ids) // length * length].view(-1, length)
    return whole[torch.linspace(0, len(whole) - 1, min(count, len(whole))).long()]


@contextmanager
def stepping_in_backward(model: PreTrainedModel) -> Iterator[list[torch.optim.Optimizer]]:
    """An AdamW for each parameter that steps as soon as its gradient is complete, and frees it.

    So no more than a few gradients are in memory at a time.
    """
    optimizers = {p: torch.optim.AdamW([p], betas=(0.9, 0.95), fused=True) for p in model.parameters()}

    def step(parameter: torch.nn.Parameter) -> None:
        optimizers[parameter].step()
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(step) for parameter in optimizers]
    try:
        yield list(optimizers.values())
    finally:
        for hook in hooks:  # which hold all parameters in memory
            hook.remove()


def learning_rate(step: int, peak: float) -> float:
    """Linear warm-up, then constant.

    >>> learning_rate(0, 1.0) < learning_rate(WARMUP, 1.0) == learning_rate(STEPS, 1.0) == 1.0
    True
    """
    return peak * min(1.0, (step + 1) / WARMUP)


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, rows: torch.Tensor) -> float:
    """Mean loss in nats per token, computed in float32."""
    torch.set_float32_matmul_precision("highest")
    return sum(float(model(input_ids=part, labels=part).loss) * len(part) for part in rows.split(4)) / len(rows)


def train(folder: Path, text: Text, rate: float, report: Report, output: Path | None = None) -> list:
    """Train a model, with float32 weights; return its curve: pairs of step and held-out loss.

    rate: the learning rate after the warm-up.
    output: where the trained model is saved.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    curve, stream = [], text.batches()
    with stepping_in_backward(model) as optimizers:
        for step in range(STEPS + 1):
            if step % EVERY == 0:
                curve.append([step, held_out_loss(model, text.held_out)])
            if step == STEPS:
                break
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = learning_rate(step, rate)
            rows = next(stream)
            torch.set_float32_matmul_precision("medium")  # bf16 products where the processor has instructions for them
            model(input_ids=rows, labels=rows).loss.backward()
            report(step + 1, STEPS)
    if output:
        model.save_pretrained(output)
    return curve
