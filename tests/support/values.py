"""Values of tensors."""

import numpy as np

from growth.arrays.casting import NUMPY_DTYPES, cast


def random_values(info, seed):
    """A tensor in its stored type, negative zeros among its values."""
    wide = np.random.default_rng(seed).standard_normal(info.shape)
    wide[wide < -1] = -0.0
    return cast(wide, np.empty(info.shape, NUMPY_DTYPES[info.dtype]))
