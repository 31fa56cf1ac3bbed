"""Text models inside other models: configs as the hub has them, older names of tensors, and what is left out."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText

import growth
from growth import CheckpointError, ConfigError
from growth.architectures import architecture
from growth.architectures.wrapper import CLASS_SIZES, SIZES
from growth.arrays.tensor_info import TensorInfo
from growth.operators import chain, deepen, upcycle, widen
from growth.planning.derive import derive_recipe
from growth.verification.float64 import proof_grade
from growth.verification.images import image_inputs
from tests.support.families import all_cases, random_model
from tests.support.models import EXACT, save, tokens

CASES = {case.name: case for case in all_cases() if "vision_config" in case.config}
WIDER = chain(widen("residual", to=64, init="tile"), widen("heads", to=8), deepen(to=4))


@pytest.mark.parametrize("model_type", [["llama"], {}, 3, True])
def test_the_type_of_a_text_model_is_text(model_type):
    with pytest.raises(ConfigError, match="text_config"):
        architecture({"model_type": "llava", "text_config": {"model_type": model_type}})


@pytest.mark.parametrize("vision", [5, "clip", [1], True])
def test_what_is_around_a_text_model_is_an_object(vision):
    with pytest.raises(ConfigError, match=r"vision_config = .*an object is needed"):
        architecture({"model_type": "llava", "text_config": {}, "vision_config": vision})


@pytest.mark.parametrize("model_type", CLASS_SIZES)
def test_a_text_config_may_leave_its_sizes_to_its_class(model_type):
    config = CONFIG_MAPPING[model_type]()
    assert CLASS_SIZES[model_type] == tuple(getattr(config, key, None) for key in SIZES)


# config.json of published models, and their parameters
GEMMA_3 = {
    "model_type": "gemma3",
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
LLAVA_15 = {
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}
QWEN2_VL = {
    "model_type": "qwen2_vl",
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_window_layers": 28,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 1536},
}
QWEN3_5 = {
    "model_type": "qwen3_5",
    "text_config": {
        "model_type": "qwen3_5_text",
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "linear_num_value_heads": 48,
        "num_attention_heads": 24,
        "num_hidden_layers": 64,
    },
    "vision_config": {"out_hidden_size": 5120},
}
LLAMA_4_SCOUT = {
    "model_type": "llama4",
    "text_config": {"model_type": "llama4_text"},
    "vision_config": {
        "hidden_size": 1408,
        "image_size": 336,
        "model_type": "llama4_vision_model",
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "vision_output_dim": 4096,
    },
}
PUBLISHED = {
    "google/gemma-3-4b-pt": (GEMMA_3, 4_300_079_472),
    "llava-hf/llava-1.5-7b-hf": (LLAVA_15, 7_063_427_072),
    "Qwen/Qwen2-VL-2B": (QWEN2_VL, 2_208_985_600),
    "Qwen/Qwen3.5-27B": (QWEN3_5, 27_356_728_560),
    "meta-llama/Llama-4-Scout-17B-16E": (LLAMA_4_SCOUT, 108_641_793_536),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_as_many_parameters_and_grow(name, tmp_path):
    """Their files have the names of the stock class or older ones; the grown config states what the class then has."""
    config, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        stock = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path))
    shapes = {name: tuple(t.shape) for name, t in stock.state_dict().items() if name not in stock.all_tied_weights_keys}
    table = architecture(config).named_as_in({name: TensorInfo(name, "F32", shape) for name, shape in shapes.items()})
    assert table.shapes() == shapes
    assert table.parameters() == sum(map(math.prod, shapes.values())) == parameters
    heads, width = table.axes["heads"].size * table.axes["queries"].size, table.axes["residual"].size
    sizes = {axis: each.size for axis, each in table.axes.items()} | {"residual": 2 * width}
    sizes |= {"heads": 2 * table.axes["heads"].size} if width == heads * table.axes["head_dim"].size else {}
    grown = table.outer.whole(table.grown_config(sizes, [*range(table.depth), table.depth - 1], 1.0))
    (tmp_path / "config.json").write_text(json.dumps(grown))
    larger = AutoConfig.from_pretrained(tmp_path)
    assert (larger.text_config.hidden_size, larger.text_config.num_hidden_layers) == (2 * width, table.depth + 1)
    assert architecture(grown).axes["residual"].size == 2 * width


def error(source, larger):
    with proof_grade(), torch.no_grad():
        inputs = image_inputs(source, tokens(40))
        expected, found = source(**inputs).logits, larger(**inputs).logits
    return float((found - expected).norm() / expected.norm())


def loaded(folder):
    with proof_grade():
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder, dtype="auto", attn_implementation="eager", output_loading_info=True
        )
    assert not any(info.values())
    return model


def renamed(folder, names):
    """The folder with other prefixes of tensor names."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    for old, new in names.items():
        stored = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in stored.items()}
    save_file(stored, path, {"format": "pt"})
    return folder


CURRENT = {
    "gemma3, tied": {
        "language_model.model.": "model.language_model.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
    "qwen2_vl, untied": {"model.": "model.language_model.", "visual.": "model.visual."},
}


@pytest.mark.parametrize("name", CURRENT)
def test_files_with_the_names_of_the_class_grow_as_those_with_older_ones(name, tmp_path):
    model = random_model(CASES[name])
    older = save(model, tmp_path / "older")
    current = renamed(shutil.copytree(older, tmp_path / "current"), CURRENT[name])
    for folder in (older, current):
        out = tmp_path / f"{folder.name}-out"
        plan = growth.grow(WIDER, folder, out)
        assert {t.target.split(".")[0] for t in plan.tensors} <= {
            n.split(".")[0] for n in load_file(folder / "model.safetensors")
        }
        assert error(model, loaded(out)) <= EXACT


def test_a_flat_config_stays_flat(tmp_path):
    """Published files of Qwen2-VL have the text model's keys at top level."""
    model = random_model(CASES["qwen2_vl, untied"])
    source = save(model, tmp_path / "source")
    path = source / "config.json"
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    path.write_text(json.dumps({**{key: value for key, value in text.items() if key != "model_type"}, **config}))
    growth.grow(WIDER, source, tmp_path / "out")
    grown = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "text_config" not in grown
    assert (grown["hidden_size"], grown["vision_config"]["hidden_size"]) == (64, 64)
    assert error(model, loaded(tmp_path / "out")) <= EXACT


def test_what_is_missing_or_unknown_around_the_text_model_is_named(tmp_path):
    source = save(random_model(CASES["llava, untied"]), tmp_path / "source")
    path = source / "model.safetensors"
    stored = load_file(path)
    without = {name: t for name, t in stored.items() if "linear_2" not in name}
    save_file(without, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks .*multi_modal_projector\.linear_2\.weight"):
        growth.plan(deepen(to=4), source)
    save_file({**stored, "audio_tower.weight": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds tensor 'audio_tower\.weight'"):
        growth.plan(deepen(to=4), source)


def test_what_cannot_grow_in_a_wrapper_is_refused():
    with pytest.raises(growth.RecipeError, match="this llama is inside a llava"):
        growth.plan(upcycle(experts=4, top_k=2), random_model(CASES["llava, untied"]))
    with pytest.raises(ConfigError, match="'llava' and in it a text model of type 'bart'"):
        architecture({"model_type": "llava", "text_config": {"model_type": "bart"}})


def test_a_recipe_is_derived_only_where_the_vision_tower_stays():
    source = {"model_type": "llava", **CASES["llava, untied"].config}
    target = {**source, "vision_config": {**source["vision_config"], "hidden_size": 32}}
    with pytest.raises(growth.RecipeError, match=r"vision_config.*outside of the text model"):
        derive_recipe(source, target)
