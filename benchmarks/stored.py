"""How much do grown weights lose when they are stored in bf16, and when the model runs in bf16?

    python benchmarks/stored.py SOURCE RECIPE … [--prompts 20 --tokens 256]

For each recipe (a name or a file) it grows SOURCE, a folder of weights in bf16, and compares logits in float32 on
2 × 64 random tokens: the relative error beside what the plan expected, KL divergence, how often the top token agrees,
and the error of the grown model when it runs in bf16, beside that of the source (the floor). With --prompts, it also
compares greedy continuations.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import growth
from growth.planning.stored_error import expected_error

ROWS, LENGTH = 2, 64
PROMPT = 16


def logits(folder: Path | str, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The logits of a model that runs in a type, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return model(tokens).logits.double()


def error(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Relative error."""
    return float((expected - found).norm() / expected.norm())


def continuations(folder: Path | str, prompts: torch.Tensor, tokens: int) -> torch.Tensor:
    """Greedy continuations in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    mask = torch.ones_like(prompts)
    return model.generate(prompts, attention_mask=mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--prompts", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=256)
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(11)
    vocab = growth.plan(given.recipes[0], given.source).source.axes["vocab"].size
    tokens = torch.randint(0, vocab, (ROWS, LENGTH), generator=draws)
    prompts = torch.randint(0, vocab, (given.prompts, PROMPT), generator=draws)
    exact = logits(given.source, tokens, torch.float32)
    floor = error(exact, logits(given.source, tokens, torch.bfloat16))
    texts = continuations(given.source, prompts, given.tokens) if given.prompts else None
    print(f"The source itself, run in bf16: {floor:.2e}\n")
    print("| recipe | expected | error in float32 | KL | top token | run in bf16, of the floor | continuations |")
    print("|---|---|---|---|---|---|---|")
    for recipe in given.recipes:
        with tempfile.TemporaryDirectory() as place:
            grown = Path(place) / "grown"
            expected = expected_error(growth.grow(recipe, given.source, grown))
            found = logits(grown, tokens, torch.float32)
            in_bf16 = error(exact, logits(grown, tokens, torch.bfloat16))
            same = (
                "" if texts is None else f"{_equal(texts, continuations(grown, prompts, given.tokens))} of {len(texts)}"
            )
        kl = (
            float(kl_div(log_softmax(found, -1), log_softmax(exact, -1), log_target=True, reduction="sum"))
            / tokens.numel()
        )
        top = float((found.argmax(-1) == exact.argmax(-1)).double().mean())
        print(
            f"| {recipe} | {expected:.1e} | {error(exact, found):.1e} | {kl:.0e} | {top:.1%} | {in_bf16:.2e}, "
            f"{in_bf16 / floor:.2f} × | {same} |",
            flush=True,
        )


def _equal(expected: torch.Tensor, found: torch.Tensor) -> int:
    return int((expected == found).all(-1).sum())


if __name__ == "__main__":
    main()
