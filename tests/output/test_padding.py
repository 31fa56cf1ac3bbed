"""The row of a padding token, which some classes set to zero whenever they load a model, in a growth in memory."""

from dataclasses import replace

import pytest
import torch

from growth.operators import widen
from growth.output.in_memory import grow_model, plan_in_memory
from tests.support.families import all_cases, random_model, special
from tests.support.selection import one_of_each

PADDED = {case.family: case for case in all_cases() if case.text is case.config}


@pytest.mark.parametrize(
    "family", one_of_each([(family,) for family in PADDED], lambda family: special(PADDED[family]) or family == "youtu")
)
def test_it_is_kept_with_what_it_was_trained_to(family):
    case = PADDED[family]
    model = random_model(replace(case, config={**case.config, "pad_token_id": 3}))
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
    before = model.get_input_embeddings().weight.clone()
    larger = grow_model(model, plan_in_memory(widen("vocab", to=70), model))
    torch.testing.assert_close(larger.get_input_embeddings().weight[:61], before, rtol=0, atol=0)
