"""Means over rows that a scan finds, for the readers behind a LayerNorm."""

import numpy as np
import pytest

import growth
from growth.arrays.casting import NUMPY_DTYPES, cast
from growth.engine.grow_tensor import MemorySource, measure, observers
from growth.operators import widen

STEP = 16


@pytest.fixture(scope="module")
def tensors():
    plan = growth.plan(widen("residual", factor=1.25, init="tile", shares="equal"), "examples/phi-mini")
    return {tensor.source.name: tensor for tensor in plan.tensors}


def test_a_scan_that_is_begun_again_finds_what_one_scan_finds(tensors):
    """As where the system forks no more: the processes that had begun are ended, and others begin."""
    found = observers(tensors.values())
    assert found
    for number, (name, means) in enumerate(found.items()):
        info = tensors[name].source
        values = np.random.default_rng(number).standard_normal(info.shape)
        stored = cast(values, np.empty(info.shape, NUMPY_DTYPES[info.dtype]))
        means.add(0, stored[:STEP])  # begun, and ended
        for start in range(0, len(stored), STEP):
            means.add(start, stored[start : start + STEP])
        expected = measure(tensors[name], MemorySource({name: stored})).row_means
        assert measure(tensors[name], MemorySource({}), means=means).row_means.tobytes() == expected.tobytes()
