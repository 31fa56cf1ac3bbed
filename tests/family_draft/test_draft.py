"""`growth family`: what it drafts of families that the library has is exact, and a wrong table is told from a right one."""

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from typer.testing import CliRunner

from growth import ConfigError
from growth.architectures import FAMILIES
from growth.cli.app import app
from growth.family_draft.draft import check_file, draft
from growth.verification.float64 import proof_grade

# those whose draft is right as it stands
EXACT = ["arcee", "cohere", "exaone4", "gemma2", "glm", "gpt_neox", "gptj", "helium", "llama", "nemotron", "olmo2"]
EXACT += ["persimmon", "phi", "qwen3", "starcoder2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_the_draft_of_a_family_that_we_have_is_exact(name):
    ours = FAMILIES[name]
    with proof_grade():
        found = draft(name, {})
    assert found.exact, found.outcomes
    assert {outcome.verdict for outcome in found.outcomes} <= {"exact", "refused"}
    assert FAMILIES[name] is ours


def test_a_wrong_table_breaks_on_the_axes_that_are_wrong_and_names_the_tensor(tmp_path):
    done = CliRunner().invoke(app, ["family", "gemma", "--output", str(tmp_path / "gemma.py")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "gemma.py").read_text()
    assert "embed_scaled=True" in text
    (tmp_path / "wrong.py").write_text(text.replace("embed_scaled=True", "embed_scaled=False"))
    done = CliRunner().invoke(app, ["family", "gemma", "--check", str(tmp_path / "wrong.py")])
    assert done.exit_code == 1
    broken = [line.split()[0] for line in done.output.splitlines() if " broken " in line]
    assert broken == ["residual"]
    assert "input_layernorm.weight" in " ".join(done.output.split())


def test_tensors_that_differ_are_named():
    wrong = """
from growth.architectures.base import family
from growth.architectures.blocks import Attention
from growth.architectures.decoder import decoder

@family
def llama(config):
    return decoder(config, Attention(bias=(True, False)))
"""
    with proof_grade():
        found = check_file("llama", {"attention_bias": False, "mlp_bias": False}, wrong)
    assert not found.exact
    assert "model.layers.0.self_attn.q_proj.bias: 96 in the table, none in files" in found.differences


@pytest.mark.parametrize(
    ("model_type", "settings", "says"),
    [
        ("nobody", {}, "no causal language model of model_type 'nobody'"),
        ("t5", {}, "no causal language model of model_type 't5'"),
        ("mamba", {}, "none of the keys num_attention_heads.*by hand"),
        ("gpt_neo", {}, r"cannot build a small gpt_neo: .*--set KEY=VALUE"),
    ],
)
def test_what_cannot_be_drafted_is_said(model_type, settings, says):
    assert model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "no causal" in says
    with pytest.raises(ConfigError, match=says):
        draft(model_type, settings)


def test_a_setting_needs_a_value_in_json(tmp_path):
    done = CliRunner().invoke(app, ["family", "llama", "--set", "hidden_act=relu", "-o", str(tmp_path / "llama.py")])
    assert done.exit_code == 2
    assert "--set 'hidden_act=relu' is not KEY=VALUE" in " ".join(done.output.split())
