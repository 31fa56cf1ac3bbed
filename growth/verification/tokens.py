"""The tokens that models are compared on, and the text that a model writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from growth.checkpoints.untrusted import LARGEST_COMPANION, read_file
from growth.errors import CheckpointError, VerificationError
from growth.verification.streaming import load_stock

PARAGRAPH = Path(__file__).with_name("paragraph.txt")  # of English and Python


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids (B, T), and in words where they come from."""

    ids: Tensor
    origin: str


def choose_tokens(folder: Path, vocab_size: int, text: Path | None, tokens: int, seed: int) -> Batch:
    """Token ids for a verification, two rows: (2, T) with 2T <= tokens.

    Raises:
        VerificationError: fewer than four tokens, ids outside the vocabulary, a text but no tokenizer.json.
    """
    tokenizer = _tokenizer(folder)
    if tokenizer is not None:
        ids = torch.tensor(_encoded(tokenizer, folder, _read(text or PARAGRAPH))[:tokens])
        origin = f"the text {text}" if text else "the built-in paragraph"
    elif text is None:
        ids = torch.randint(vocab_size, (tokens,), generator=torch.Generator().manual_seed(seed))
        origin = f"random ids of {vocab_size:,}, seed {seed}, as the source has no tokenizer.json"
    else:
        _read(text)
        raise VerificationError(f"{text} cannot be encoded: {folder} has no tokenizer.json. Leave out the text.")
    if len(ids) < 4:
        raise VerificationError(
            f"A comparison needs at least 4 tokens, two rows of 2, and there are {len(ids)} from {origin}. Give a "
            "longer text (--text), leave it out for the built-in one, or raise --tokens to 4."
        )
    if ids.max() >= vocab_size:
        raise VerificationError(f"{folder / 'tokenizer.json'} gives id {ids.max()}, the model has {vocab_size}.")
    return Batch(ids[: len(ids) // 2 * 2].view(2, -1), origin)


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VerificationError(
            f"The text {text} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from None


def _tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder, or None; it neither pads nor truncates, whatever its file says.

    Raises:
        CheckpointError: the file is not one that the tokenizers library reads.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    text = read_file(path, LARGEST_COMPANION).decode("utf-8", errors="replace")
    with _ours(path):
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer


def _encoded(tokenizer: Tokenizer, folder: Path, text: str) -> list[int]:
    with _ours(folder / "tokenizer.json"):
        ids: list[int] = tokenizer.encode(text).ids
        return ids


@contextmanager
def _ours(path: Path) -> Iterator[None]:
    """Turn what the tokenizers library raises into a CheckpointError.

    The library has no type of its own for its errors, and its panics do not even derive from Exception.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
            raise
        raise CheckpointError(f"{path} is not a tokenizer that the tokenizers library can use: {error}.") from None


def sample(folder: Path, prompt: str, new_tokens: int, dtype: str = "float32") -> str:
    """The greedy continuation of `prompt`, without the prompt, by the whole model in memory.

    Raises:
        CheckpointError: the folder is not a complete checkpoint of a stock model, or has no tokenizer.json.
    """
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer.json, so no text can be continued. Copy it there.")
    model = load_stock(folder, dtype)
    prompt_ids = torch.tensor([_encoded(tokenizer, folder, prompt)])
    greedy = {"do_sample": False, "max_new_tokens": new_tokens, "pad_token_id": 0}
    ids = model.generate(prompt_ids, attention_mask=torch.ones_like(prompt_ids), **greedy)
    return tokenizer.decode(ids[0, prompt_ids.shape[1] :].tolist())
