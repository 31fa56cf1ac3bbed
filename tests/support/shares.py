"""Shares in which readers take the copies of a unit, one for all weights that read it."""

import numpy as np

from growth.algebra.draws import Draws


def unequal_shares(source, size, seed=0):
    """Unequal shares of the copies of each unit, (N,), that sum to 1."""
    drawn = 1.5 + Draws(seed, "shares").uniform(len(source))
    return drawn / np.bincount(source, drawn, minlength=size)[source]
