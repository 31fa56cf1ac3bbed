"""What transformers does to weights whenever it loads them is either undone or refused."""

import pytest

from growth import ConfigError
from growth.architectures import architecture
from tests.support.families import all_cases, stated_config

DIVIDED = [case for case in all_cases() if "rescale_prenorm_residual" in stated_config(case)]


@pytest.mark.parametrize("case", DIVIDED, ids=lambda case: case.name)
def test_weights_that_are_divided_at_each_load_are_refused(case):
    with pytest.raises(ConfigError, match=r"rescale_prenorm_residual = true.*Divide the stored weights"):
        architecture(stated_config(case) | {"rescale_prenorm_residual": True})
