"""What transformers does to weights whenever it loads them is either undone or refused."""

from dataclasses import replace

import pytest
import torch

from growth import ConfigError
from growth.architectures import architecture
from growth.checkpoints.stock_parameters import auto_class
from tests.support.families import all_cases, random_model, stated_config
from tests.support.models import save

KEY = "rescale_prenorm_residual"
DIVIDED = [replace(case, config=case.config | {KEY: True}) for case in all_cases() if KEY in stated_config(case)]


@pytest.mark.parametrize("case", DIVIDED, ids=lambda case: case.name)
def test_weights_that_are_divided_at_each_load_are_refused(case, tmp_path):
    model = random_model(case, torch.float32)
    loaded = auto_class(model.config).from_pretrained(save(model, tmp_path / "model"))
    if all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items()):
        assert architecture(stated_config(case))
        return
    with pytest.raises(ConfigError, match=r"rescale_prenorm_residual = true.*Divide the stored weights"):
        architecture(stated_config(case))
