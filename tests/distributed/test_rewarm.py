"""A second warm-up and rates by kind do in shards what they do in a single process."""

import pytest

from tests.support.ranks import torchrun


@pytest.mark.slow
def test_shards_are_scaled_as_one_process_scales_them():
    torchrun(2, "-m", "tests.distributed.rewarm_sharded")
