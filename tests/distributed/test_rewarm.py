"""A second warm-up of what is new in shards is the one of a single process."""

import pytest

from tests.support.ranks import torchrun


@pytest.mark.slow
def test_shards_warm_up_as_one_process_does():
    torchrun(2, "-m", "tests.distributed.rewarm_sharded")
