"""`growth family`: what it drafts of families that the library has is exact, and a wrong table is told from a right one."""

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from typer.testing import CliRunner

from growth import ConfigError
from growth.architectures import FAMILIES
from growth.architectures.wrapper import Wrapper
from growth.cli.app import app
from growth.family_draft.draft import check_file, draft
from growth.family_draft.omissions import omissions
from growth.family_draft.proof import registered, tensor_differences
from growth.family_draft.stock import StockClass
from growth.family_draft.variants import variants
from growth.verification.float64 import proof_grade
from tests.support.families import all_cases, typical
from tests.support.selection import one_of_each

FIRST = {case.family: case for case in reversed(all_cases())}
PLAIN = sorted(name for name, table in FAMILIES.items() if not isinstance(table, Wrapper) and name in FIRST)

# those whose draft is right as it stands
EXACT = ["arcee", "cohere", "exaone4", "gemma2", "glm", "gpt_neox", "gptj", "helium", "llama", "nemotron", "olmo2"]
EXACT += ["persimmon", "phi", "starcoder2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_the_draft_of_a_family_that_we_have_is_exact(name):
    ours = FAMILIES[name]
    with proof_grade():
        found = draft(name, {})
    assert found.exact, found.outcomes
    assert {outcome.verdict for outcome in found.outcomes} <= {"exact", "refused"}
    assert FAMILIES[name] is ours


@pytest.mark.slow
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


def family_file(model_type, arguments):
    """A family file whose table is `decoder` with some arguments."""
    return f"""
from growth.architectures.base import family
from growth.architectures.blocks import Attention, gated_mlp, layer_types, optional_head_dim
from growth.architectures.config import flag
from growth.architectures.decoder import decoder

@family
def {model_type}(config):
    return decoder(config, {arguments})
"""


@pytest.mark.parametrize(
    ("arguments", "where", "why"),
    [
        ("", "num_key_value_heads left out", "the class takes 8; the table has heads = 96 in place of 8"),
        ('defaults={"heads": 4}', "num_key_value_heads left out", "heads = 4 in place of 8"),
        (
            'defaults={"heads": 8, "head_dim": optional_head_dim(config, 64)}',
            "head_dim left out",
            "the class takes 40; the table has head_dim = 64 in place of 40",
        ),
        (
            'defaults={"heads": 8}, bases=(("", "rope_theta", 1e6),)',
            "rope_parameters left out",
            "has for a larger model rope_parameters",
        ),
        ('defaults={"heads": 8}, default_tied=True', "tie_word_embeddings left out", "another weight lm_head.weight"),
        ('defaults={"heads": 8}', "", ""),
    ],
)
def test_a_wrong_default_is_named(arguments, where, why):
    with registered("mistral", family_file("mistral", arguments)):
        found = omissions(StockClass.of("mistral"))
    wrong = {outcome.axis: outcome.why for outcome in found if not outcome.stands}
    assert [*wrong] == ([where] if where else [])
    assert why in wrong.get(where, "")


QWEN3 = """
    Attention(bias=(flag(config, "attention_bias", False),) * 2, qk_norm="shared"),
    defaults={"heads": 32, "head_dim": optional_head_dim(config, 128)},
    layer_types=layer_types(config, lambda layer: False)
"""


@pytest.mark.parametrize(
    ("model_type", "arguments", "where", "why"),
    [
        pytest.param(
            "llama",
            'Attention(bias=(flag(config, "mlp_bias", False),) * 2), gated_mlp(bias=flag(config, "attention_bias", False))',
            ["all axes, attention_bias=false", "all axes, mlp_bias=false"],
            "28 tensors differ",
        ),
        pytest.param(
            "qwen3",
            QWEN3,
            ["layer_types left out, use_sliding_window=true"],
            "layer_types[28] = 'full_attention' in place of 'sliding_attention'",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_wrong_flag_is_named_although_no_weight_of_the_small_model_shows_it(model_type, arguments, where, why):
    stock = StockClass.of(model_type)
    with proof_grade(), registered(model_type, family_file(model_type, arguments)):
        assert not tensor_differences(stock)
        wrong = {outcome.axis: outcome.why for outcome in variants(stock) if not outcome.stands}
    assert [*wrong] == where
    assert why in wrong[where[0]]


@pytest.mark.parametrize("family", one_of_each([(name,) for name in PLAIN], lambda family: typical(FIRST[family])))
def test_our_tables_read_a_config_without_a_key_as_the_class_does(family):
    try:
        stock = StockClass.of(family)
    except ConfigError:
        pytest.skip("its class needs settings, or calls its sizes otherwise")
    assert [outcome for outcome in omissions(stock) if not outcome.stands] == []


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
