"""Configs in older spellings mean what transformers reads in them, or are refused with the current name."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

import growth
from growth import ConfigError
from growth.architectures import FAMILIES, architecture
from growth.architectures.spelling import AS_PUBLISHED, OLDER_TYPES, RENAMED
from growth.operators import deepen
from tests.support.families import Case, all_cases, random_model
from tests.support.models import save

PAIRS = [(family, other, ours) for family, keys in RENAMED.items() for other, ours in keys.items()]
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 61}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
CONFIGS = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61},
    "codegen": {**GPT2, "rotary_dim": 4},
    "ctrl": GPT2,
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neo": {"hidden_size": 32, "num_heads": 4},
    "gptj": {**GPT2, "rotary_dim": 4},
    "openai-gpt": GPT2,
    "rwkv": {"rescale_every": 0},
    "falcon": FALCON,
    "granitemoehybrid": {},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 32},
    "internlm3": {},
    "mixtral": {"num_local_experts": 4},
    "nemotron_h": {},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2},
    "glm4_moe": {"n_routed_experts": 32, "num_nextn_predict_layers": 0, "head_dim": 64},
    "glm4_moe_lite": {"n_routed_experts": 32, "qk_rope_head_dim": 32},
    "solar_open": {"n_routed_experts": 32},
    "deepseek_v3": {"n_routed_experts": 32, "num_nextn_predict_layers": 0},
    "kimi_linear": {},
    "lfm2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 61},
    "lfm2_moe": {"layer_types": 32 * ["conv"]},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 61},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "vocab_size": 61},
}
# keys that a class needs to be equal, or values of other types
TOGETHER = {"internlm3": {"qkv_bias": True, "bias": True}, "lfm2": {"tie_embedding": True, "block_ff_dim": 24}}
TOGETHER |= {"lfm2_moe": {"tie_embedding": True}}
TOGETHER |= {"nemotron_h": {"layer_types": 4 * ["full_attention"], "num_local_experts": 24, "mamba_n_groups": 24}}
TOGETHER["nemotron_h"] |= {"mamba_d_conv": 24, "mamba_conv_bias": False}
TOGETHER |= {"granitemoehybrid": {"layers_block_type": 32 * ["full_attention"]}}


FIRST = {case.family: case.config for case in reversed(all_cases())}
PASSED_ON = re.compile(
    r"(image|video|boi|eoi)_token_id|vision_feature_layers"
)  # no table reads them, no growth changes them
DECIDES = ("head_dim", "num_hidden_layers")  # what other keys state, too


def config_of(family):
    return {**CONFIG_MAPPING[family](**CONFIGS.get(family, FIRST[family])).to_dict(), "model_type": family}


def another(value):
    """A value that a key may have in place of this one."""
    return 2 * value if isinstance(value, int | float) and not isinstance(value, bool) else value


def renamed(config, family):
    """The config in the other spelling, as far as there is one."""
    names = {ours: other for other, ours in RENAMED[family].items()}
    return {names.get(key, key): value for key, value in config.items()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_key_that_transformers_renames_is_read_in_both_spellings(family):
    try:
        stated = CONFIG_MAPPING[family].attribute_map
    except KeyError:
        pytest.skip("transformers has no such class")
    for other, ours in stated.items():
        config = config_of(family)
        if PASSED_ON.fullmatch(other) or not {ours, other} & config.keys():
            continue
        value = config.pop(ours, config.pop(other, None))
        value = value if other in DECIDES else another(value)
        one, two = (architecture({**config, key: value}) for key in (ours, other))
        assert one.config == two.config or family in AS_PUBLISHED
        assert one.shapes() == two.shapes()


@pytest.mark.parametrize(("family", "other", "ours"), PAIRS)
def test_transformers_reads_the_other_spelling_as_ours(family, other, ours):
    stated = TOGETHER.get(family) or {other: 24 if family in CONFIGS else another(config_of(family)[ours])}
    config = {key: value for key, value in config_of(family).items() if key not in RENAMED[family].values()}
    kept = {key: value for key, value in config_of(family).items() if key != ours} if len(stated) == 1 else config
    assert getattr(CONFIG_MAPPING[family].from_dict({**kept, **stated}), ours) == stated[other]


@pytest.mark.parametrize("family", AS_PUBLISHED)
def test_a_name_that_published_configs_have_is_kept_where_it_stands_alone(family):
    both = config_of(family) | {"num_experts": 4, "num_local_experts": 4}
    alone = {key: value for key, value in both.items() if key != "num_local_experts"}
    for config, kept in ((alone, "num_experts"), (both, "num_local_experts")):
        table = architecture(config)
        sizes = {name: axis.size for name, axis in table.axes.items()}
        grown = table.grown_config(sizes | {"experts": 8}, range(table.depth), 1.0)
        assert {key: grown[key] for key in ("num_experts", "num_local_experts") if key in grown} == {kept: 8}
    with pytest.raises(ConfigError, match="Remove the wrong one"):
        architecture(both | {"num_experts": 6})


@pytest.mark.parametrize("family", sorted(RENAMED.keys() - {*AS_PUBLISHED}))
def test_the_grown_config_has_the_current_spelling_alone(family):
    config = config_of(family)
    before, after = architecture(config), architecture(renamed(config, family))
    assert after.config == before.config
    assert not RENAMED[family].keys() & after.config.keys()


def test_a_source_in_the_other_spelling_grows_and_is_verified(tmp_path):
    source = save(random_model(Case("gpt2", "", GPT2), torch.float32), tmp_path / "source")
    other = shutil.copytree(source, tmp_path / "other")
    config = renamed(json.loads((source / "config.json").read_text()), "gpt2")
    assert "n_embd" not in config
    (other / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(other).n_embd == 32
    for folder in (source, other):
        growth.grow(deepen(to=3), folder, tmp_path / f"{folder.name} grown")
    one, two = (tmp_path / f"{folder.name} grown" for folder in (source, other))
    for name in ("model.safetensors", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert growth.verify(other, two, tokens=8).status == "PASSED"
    assert growth.verify_weights(other, two, deepen(to=3)).passed


def test_two_spellings_may_agree_and_not_differ():
    config = config_of("gpt2")
    assert architecture({**config, "hidden_size": 32}).config == architecture(config).config
    with pytest.raises(ConfigError, match=r"hidden_size = 48 and n_embd = 32.*Remove"):
        architecture({**config, "hidden_size": 48})


@pytest.mark.parametrize(("older", "current"), [(o, "falcon" if "Refined" in o else "phi") for o in OLDER_TYPES])
def test_an_older_model_type_is_refused_with_the_current_name(older, current):
    with pytest.raises(ConfigError, match=f"'{older}', which transformers now has as '{current}'"):
        architecture({"model_type": older, "n_layer": 2, "n_head": 4, "hidden_size": 32})


@pytest.mark.parametrize("kv", [None, 2])
def test_what_is_said_of_refined_web_makes_a_falcon(kv):
    """The conversion that the message describes."""
    shape = {"num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 61}
    new = {"num_kv_heads": kv, "new_decoder_architecture": True} if kv else {"new_decoder_architecture": False}
    expected = architecture({"model_type": "falcon", **shape, **new})
    names = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "num_kv_heads": "n_head_kv"}
    old = {names.get(key, key): value for key, value in expected.config.items() if key != "new_decoder_architecture"}
    with pytest.raises(ConfigError) as refused:
        architecture({**old, "model_type": "RefinedWeb"})
    back = {name: key for key, name in names.items()}
    assert all(f"{old_name} to {key}" in str(refused.value) for old_name, key in back.items())
    fixed = {back.get(key, key): value for key, value in old.items()} | {"model_type": "falcon"}
    fixed["new_decoder_architecture"] = "n_head_kv" in old
    assert architecture(fixed).shapes() == expected.shapes()


def test_a_key_of_other_families_is_named_where_one_is_missing():
    config = {"model_type": "falcon", "hidden_size": 32, "n_layer": 2, "num_attention_heads": 4, "vocab_size": 61}
    with pytest.raises(ConfigError, match=r"no 'num_hidden_layers', .*It has n_layer, .*for a falcon: rename it"):
        architecture(config)


def test_the_text_model_of_an_unknown_wrapper_grows_once_it_is_saved_as_the_message_says(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "model_type": "llama", "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 97}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    config = VideoLlavaConfig(text_config=text, vision_config=vision)
    whole = save(VideoLlavaForConditionalGeneration(config), tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"'video_llava', which holds a 'llama'.*language_model") as refused:
        growth.plan(deepen(to=3), whole)
    steps = str(refused.value).partition("on its own: ")[2].removesuffix(".")
    names = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoModelForImageTextToText": AutoModelForImageTextToText}
    exec(steps, {**names, "folder": whole, "new_folder": tmp_path / "text"})
    growth.grow(deepen(to=3), tmp_path / "text", tmp_path / "grown")
    stored, saved = load_file(whole / "model.safetensors"), load_file(tmp_path / "text" / "model.safetensors")
    embedding = next(tensor for name, tensor in stored.items() if name.endswith("embed_tokens.weight"))
    assert torch.equal(saved["model.embed_tokens.weight"], embedding)
    assert growth.verify(tmp_path / "text", tmp_path / "grown", tokens=8).status == "PASSED"
