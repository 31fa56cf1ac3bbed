"""proof_grade: stock code that asks for float32 computes in float64, and only inside it."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from growth.verification.float64 import proof_grade
from tests.support.models import random_phi

REQUESTS = {
    "float()": lambda x: x.float(),
    "to(dtype)": lambda x: x.to(torch.float32),
    "to(dtype=)": lambda x: x.to(dtype=torch.float32),
    "type(dtype)": lambda x: x.type(torch.float32),
    "softmax": lambda x: torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32),
    "sum": lambda x: x.sum(dtype=torch.float32),
    "arange": lambda x: torch.arange(3, dtype=torch.float),
    "zeros": lambda x: torch.zeros(3),
    "integers divided": lambda x: torch.arange(3) / 2,
}


@pytest.mark.parametrize("request_float32", REQUESTS.values(), ids=REQUESTS)
def test_a_request_for_float32_gives_float64(request_float32):
    x = torch.ones(3, dtype=torch.float64)
    with proof_grade():
        assert request_float32(x).dtype == torch.float64
    assert request_float32(x).dtype == torch.float32


def test_other_dtypes_are_left_alone():
    with proof_grade():
        assert torch.ones(2).to(torch.float16).dtype == torch.float16
        assert torch.ones(2).to(torch.int64).dtype == torch.int64


def test_reinterpreting_bytes_is_left_alone():
    with proof_grade():
        assert torch.zeros(8, dtype=torch.uint8).view(torch.float32).shape == (2,)


def test_the_default_comes_back_after_an_error():
    with pytest.raises(KeyError), proof_grade():
        raise KeyError
    assert torch.get_default_dtype() == torch.float32


def test_a_stock_norm_is_exact_only_within():
    x = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = LlamaRMSNorm(32, eps=1e-5).double()
    exact = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    with proof_grade():
        assert (norm(x) - exact).abs().max() < 1e-15
    assert (norm(x) - exact).abs().max() > 1e-9


def test_rotary_frequencies_are_float64():
    rotary = random_phi().model.rotary_emb  # constructed under proof_grade
    dim = 2 * len(rotary.inv_freq)
    exact = [10000 ** (-i / dim) for i in range(0, dim, 2)]
    assert rotary.inv_freq.dtype == torch.float64
    assert rotary.inv_freq.tolist() == pytest.approx(exact, rel=1e-15, abs=0)
