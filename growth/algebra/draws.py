"""Draws: random numbers that are addressed, not streamed: by a seed, a name and the index of an element.

They are the words of Philox4x64-10, a counter-based generator (Salmon et al. 2011, Parallel Random Numbers: As Easy as
1, 2, 3): word i of a name is a function of (seed, name, i) and of nothing else, neither of earlier draws nor of
how the work is divided. Only raw words are taken from numpy, which guarantees them for a given key and counter, as it
does not the streams of its Generator (NEP 19); tests hold them to the published known answers. What becomes of the
words is written out here, in integers and in operations that IEEE 754 rounds in one way.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

BLOCK = 4  # words that one counter gives
PER_WORD = 4  # elements of a tensor that one word gives, 16 bits each
STEPS = 1 << 16  # values that an element of a tensor may have
UNIT = math.sqrt(12 / (STEPS * STEPS - 1))  # the step at which evenly spaced values have a standard deviation of 1


@dataclass(frozen=True)
class Draws:
    """The random numbers of one seed and one name, such as a tensor's or a purpose's.

    >>> draws = Draws(0, "model.embed_tokens.weight")
    >>> bool((draws.words(5, 3) == draws.words(0, 8)[5:]).all())
    True
    """

    seed: int
    name: str

    @cached_property
    def _key(self) -> int:
        """The 128 bits of the generator's key."""
        digest = hashlib.blake2b(f"{self.seed}/{self.name}".encode(), digest_size=16).digest()
        return int.from_bytes(digest, "little")

    def words(self, first: int, count: int) -> Words:
        """Words `first` to `first + count`: word i is number i % 4 of the block with the counter i // 4 + 1."""
        block, skipped = divmod(first, BLOCK)
        # numpy counts up before it makes a block
        generator = np.random.Philox(key=self._key, counter=block)
        words: Words = generator.random_raw(skipped + count)
        return words[skipped:]

    def integers(self, low: int, high: int, count: int) -> NDArray[np.int64]:
        """The first integers from `low` to `high - 1`: of each word, times their number, what exceeds 64 bits.

        Their number is at most 2**32; none is likelier than another by more than one part in 2**32.
        """
        words, number = self.words(0, count), np.uint64(high - low)
        upper, lower = words >> np.uint64(32), words & np.uint64(0xFFFF_FFFF)
        scaled: Words = (upper * number + ((lower * number) >> np.uint64(32))) >> np.uint64(32)
        return scaled.astype(np.int64) + low

    def uniform(self, count: int) -> NDArray[np.float64]:
        """The first numbers between -1 and 1: the upper 53 bits of each word, in the middle of their interval."""
        numbers = self.words(0, count).view(np.int64) >> 11
        return (numbers.astype(np.float64) + 0.5) * 2.0**-52

    def bits(self, first: int, shape: tuple[int, ...]) -> NDArray[np.uint16]:
        """16 random bits for each element from `first` on.

        Element i has the i % 4-th 16 bits, from the lowest, of word i // 4.
        """
        (word, skipped), count = divmod(first, PER_WORD), math.prod(shape)
        words = self.words(word, -(-(skipped + count) // PER_WORD))
        return words.astype("<u8", copy=False).view("<u2")[skipped : skipped + count].reshape(shape)

    def fill(self, values: NDArray[np.floating[Any]], first: int, deviation: float = 1.0) -> None:
        """Fills an array with elements `first` on, of mean 0 and a standard deviation.

        Each is one of 65,536 evenly spaced values, none of which is 0.
        """
        values[...] = self.bits(first, values.shape).view(np.int16)
        values += values.dtype.type(0.5)
        values *= values.dtype.type(deviation * UNIT)

    def elements(self, first: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Elements `first` on, of mean 0 and deviation 1."""
        values = np.empty(shape, np.float32)
        self.fill(values, first)
        return values
