"""Train phi-mini: a 1.7 M parameter Phi on the Python standard library's own sources.

    python examples/train_phi_mini.py --output examples/phi-mini

Every machine with Python has the text. The geometry mirrors Phi-1.5's, so that the ratios of
Phi-1.5 -> Phi-2 (1.25 in width and head_dim, 4/3 in depth) apply to it as they stand.
About twenty minutes on two cores. Held-out files are chosen by a hash of their path.
"""

import argparse
import hashlib
import json
import math
import sysconfig
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GenerationConfig, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
GEOMETRY = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "partial_rotary_factor": 0.5,
}


def standard_library(tests: bool = False) -> tuple[list[str], list[str]]:
    """The distinct source files of the standard library, with or without its tests: (training, held out)."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "__pycache__"} | (set() if tests else {"test", "tests", "idle_test"})
    files: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if skip.isdisjoint(relative.parts):
            text = path.read_text(encoding="utf-8", errors="ignore")
            files.setdefault(hashlib.sha256(text.encode()).hexdigest(), f"{relative}\n{text}")
    held_out = [text for digest, text in files.items() if int(digest[:8], 16) % 20 == 0]
    training = [text for digest, text in files.items() if int(digest[:8], 16) % 20 != 0]
    strip = lambda texts: [text.split("\n", 1)[1] for text in texts]  # noqa: E731
    return strip(training), strip(held_out)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,048 entries."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=GEOMETRY["vocab_size"], min_frequency=2, special_tokens=[END], show_progress=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, model_max_length=512)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts, each ended by the end-of-text token, as one row of ids."""
    end = tokenizer.eos_token_id
    ids = [token for row in tokenizer(texts, verbose=False)["input_ids"] for token in [*row, end]]
    return torch.tensor(ids)


def batches(ids: torch.Tensor, rows: int, length: int, generator: torch.Generator):
    """Endless random windows of the text, shape (rows, length)."""
    while True:
        starts = torch.randint(len(ids) - length, (rows,), generator=generator)
        yield torch.stack([ids[start : start + length] for start in starts])


@torch.no_grad()
def held_out_loss(model: PhiForCausalLM, ids: torch.Tensor, length: int) -> float:
    """Mean loss in nats per token over consecutive windows."""
    model.eval()
    windows = ids[: len(ids) // length * length].view(-1, length)[:256]
    losses = [model(input_ids=rows, labels=rows).loss.item() for rows in windows.split(16)]
    model.train()
    return sum(losses) / len(losses)


def adamw(model: PhiForCausalLM, peak: float) -> torch.optim.AdamW:
    """AdamW that decays the matrices, not the biases and gains."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
    )


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.525 + 0.475 * math.cos(math.pi * (step - warmup) / (steps - warmup)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("phi-mini"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--peak", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    training, held_out = standard_library()
    tokenizer = train_tokenizer(training)
    ids, held_out_ids = encode(tokenizer, training), encode(tokenizer, held_out)
    print(f"{len(training)} files, {len(ids):,} tokens; held out {len(held_out)} files, {len(held_out_ids):,} tokens")

    end = tokenizer.eos_token_id
    model = PhiForCausalLM(PhiConfig(**GEOMETRY, bos_token_id=end, eos_token_id=end))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = adamw(model, options.peak)
    stream = batches(ids, options.rows, options.length, torch.Generator().manual_seed(options.seed))
    began = time.time()
    log = []
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.peak)
        rows = next(stream)
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0 or step + 1 == options.steps:
            row = {
                "step": step + 1,
                "tokens": (step + 1) * options.rows * options.length,
                "seconds": round(time.time() - began),
                "training": round(loss.item(), 3),
                "held_out": round(held_out_loss(model, held_out_ids, options.length), 3),
            }
            log.append(row)
            print(json.dumps(row), flush=True)

    model.to(torch.float16)
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    (options.output / "training.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
