"""What a grown config says of its layers' windows and rotary embedding never contradicts itself.

A list (`layer_types`, `no_rope_layers`) says it layer by layer; a number beside it (`max_window_layers`,
`sliding_window_pattern`, `no_rope_layer_interval`) would imply such a list. Whatever a reader goes by, it is the same.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from growth.architectures import architecture
from growth.architectures.base import PATTERNS
from growth.operators.dense_to_moe import Upcycling
from tests.support.families import all_cases
from tests.support.selection import examples

DEPTH = 4  # of every source here
WINDOWS = {
    "qwen2": [{"use_sliding_window": True, "sliding_window": 8, "max_window_layers": n} for n in (0, 1, 3, 4, 28)],
    "qwen3": [
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 4},
    ],
    "qwen2_moe": [{"use_sliding_window": True, "sliding_window": 8, "max_window_layers": n} for n in (0, 1, 2, 4)],
    "qwen3_moe": [{"use_sliding_window": True, "sliding_window": 8}],
    "gemma2": [{"sliding_window": 8}, {"sliding_window": 8, "sliding_window_pattern": 2}],
    "gemma3_text": [{"sliding_window": 8, "sliding_window_pattern": n} for n in (2, 3, 6)],
    "cohere2": [
        {"sliding_window": 8, "sliding_window_pattern": 2, "layer_switch": 2},
        {"sliding_window": 8, "sliding_window_pattern": 4},
    ],
    "olmo3": [{"sliding_window": 8}],
    "smollm3": [
        {"no_rope_layer_interval": 2},
        {"no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 8},
    ],
    "ministral": [{"sliding_window": 8}, {"sliding_window": None}],
    "mistral": [{"sliding_window": 8}],
    "mixtral": [{"sliding_window": 8}],
    "phi3": [{"sliding_window": 8}],
    "phi4_multimodal": [{"sliding_window": 8}],
    "starcoder2": [{"sliding_window": 8}],
    "cwm": [{"sliding_window": 8}],
    "exaone4": [{"sliding_window": 8, "sliding_window_pattern": n} for n in (2, 4)],
    "ministral3": [{"sliding_window": 8}],
    "vaultgemma": [{"sliding_window": 8}],
    "phimoe": [{"sliding_window": 8}],
    "gpt_oss": [{"sliding_window": 8}],
    "dots1": [{"sliding_window": 8, "max_window_layers": n} for n in (0, 2, 62)],
    "exaone_moe": [{"sliding_window": 8, "sliding_window_pattern": n} for n in (2, 4)],
    "llama4_text": [{"no_rope_layer_interval": n} for n in (2, 3, 4)],
    "doge": [{"sliding_window": 8}, {"sliding_window": None}],
    "granite_swa": [{"sliding_window": 8}],
    "granitemoe_swa": [{"sliding_window": 8}],
    "cohere2_moe": [{"sliding_window": 8}],
    "flint": [{"sliding_window": 8}],
    "mellum": [{"sliding_window": 8}],
    "beam": [{"sliding_window": 8, "mlp_layer_types": ["sparse"] * DEPTH}],
    "cohere_compass_text": [{"sliding_window": 8}],
    "modernbert-decoder": [{"sliding_window": 8}],
    "nemotron_h": [{"sliding_window": 8, "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]}],
    "kolibri1": [{"sliding_window": 8}],
    "lfm3": [{"sliding_window": 8}],
    "minimax_m3_vl_text": [
        {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2, "mlp_layer_types": ["sparse"] * DEPTH}
    ],
    "afmoe": [{"sliding_window": 8, "global_attn_every_n_layers": n} for n in (2, 4)],
}
CASES = [
    case for case in all_cases() if case.text is case.config
]  # text models inside others have their families' tables
BASES = {case.family: case.config for case in reversed(CASES)}
MIXERS = {"conv", "linear_attention", "indexed_attention"}  # kinds of layers that have others than windows
PER_LAYER = ("layer_types", "no_rope_layers", *PATTERNS)
SOURCES = [
    {key: value for key, value in BASES[family].items() if key not in (*PER_LAYER, "layer_rope_theta")}
    | {"model_type": family, "num_hidden_layers": DEPTH, **stated}
    for family, variants in WINDOWS.items()
    for stated in variants
]


def loaded(config, folder, without=()):
    """The config as transformers loads it."""
    folder.mkdir(exist_ok=True)
    stated = {key: value for key, value in config.items() if key not in without}
    (folder / "config.json").write_text(json.dumps(stated))
    return AutoConfig.from_pretrained(folder)


def test_every_family_with_a_window_is_here():
    stating = {
        case.family
        for case in CASES
        if "sliding_window" in AutoConfig.for_model(case.family).to_dict()
        or any(
            key in PER_LAYER and not MIXERS & {*kinds}
            for key, kinds in architecture({"model_type": case.family, **case.config}).layer_lists.items()
        )
    }
    assert stating <= WINDOWS.keys()


orders = st.one_of(
    st.just([0, 0, 1, 1, 2, 2, 3, 3]),  # interleaved
    st.just([0, 1, 2, 3, 0, 1, 2, 3]),  # stacked
    st.just([0, 1, 2, 3]),
    st.lists(st.integers(0, DEPTH - 1), min_size=DEPTH, max_size=9),
)


@pytest.mark.parametrize("source", SOURCES, ids=[f"{s['model_type']}-{n}" for n, s in enumerate(SOURCES)])
@examples(4, 12)
@given(orders)
def test_numbers_imply_the_lists_beside_them(tmp_path_factory, source, order):
    folder = tmp_path_factory.mktemp("config")
    table = architecture(source)
    order = sorted(order) if table.layer_counts else order  # leading layers stay in front
    before = loaded(source, folder)
    sizes = {name: axis.size for name, axis in table.axes.items()}
    grown = table.grown_config(sizes, order, 1.0)
    after = loaded(grown, folder)
    for listed in ("layer_types", "no_rope_layers"):
        kinds = getattr(before, listed, None)
        if kinds is not None:
            assert list(getattr(after, listed)) == [kinds[layer] for layer in order]
        if listed in grown and any(key in grown and PATTERNS[key][1] == listed for key in PATTERNS):
            assert list(getattr(loaded(grown, folder, [listed]), listed)) == grown[listed]
    assert getattr(after, "sliding_window", None) == getattr(before, "sliding_window", None)
    assert architecture(grown).layer_lists == {key: grown[key] for key in table.layer_lists}


@pytest.mark.parametrize("family", sorted(BASES))
@examples(2, 4)
@given(orders)
def test_lists_that_the_family_does_not_read_follow_its_layers_too(tmp_path_factory, family, order):
    """Transformers checks their length in every config, so a list of the old length would not load."""
    plain = BASES[family]
    depth = architecture({"model_type": family, **plain}).depth
    order = [layer % depth for layer in [*range(depth), *order]]
    lists = {
        "layer_types": ["sliding_attention", *["full_attention"] * (depth - 1)],
        "mlp_layer_types": ["dense", *["sparse"] * (depth - 1)],
        "no_rope_layers": [0, *[1] * (depth - 1)],
    }
    read = architecture({"model_type": family, **plain}).layer_lists
    named = type(AutoConfig.for_model(family)).attribute_map  # by which a class may read a list as another one
    lists = {key: values for key, values in lists.items() if not MIXERS & {*read.get(named.get(key, key), ())}}
    table = architecture({"model_type": family, **plain, **lists})
    sizes = {name: axis.size for name, axis in table.axes.items()}
    order = sorted(order) if table.layer_counts else order  # leading layers stay in front
    grown = table.grown_config(sizes, order, 1.0)
    assert {key: grown[key] for key in lists} == {key: [old[layer] for layer in order] for key, old in lists.items()}
    known = type(AutoConfig.for_model(family))
    computed = [key for key in lists if isinstance(getattr(known, known.attribute_map.get(key, key), None), property)]
    loaded(grown, tmp_path_factory.mktemp("config"), computed)  # what a class computes, no config that it saves states


def test_a_number_follows_where_one_can():
    source = next(s for s in SOURCES if s["model_type"] == "qwen2" and s["max_window_layers"] == 3)
    table = architecture(source)
    sizes = {name: axis.size for name, axis in table.axes.items()}
    assert table.grown_config(sizes, [0, 0, 1, 1, 2, 2, 3, 3], 1.0)["max_window_layers"] == 6
    assert "max_window_layers" not in table.grown_config(sizes, [0, 1, 2, 3, 0, 1, 2, 3], 1.0)


MIXED = {"layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]}
QWEN = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
UNREAD = [
    ("gemma2", {"sliding_window": 8}, {"sliding_window_pattern": 3}),
    ("gemma2", {"sliding_window": None}, {"sliding_window_pattern": 3}),
    ("qwen2", QWEN, {"sliding_window_pattern": 2}),
    ("olmo3", {"sliding_window": 8}, {"sliding_window_pattern": 3, "max_window_layers": 2}),
    ("llama", MIXED, {"sliding_window_pattern": 3, "max_window_layers": 2}),
    ("mistral", MIXED | {"sliding_window": 8}, {"max_window_layers": 2}),
    ("qwen3_moe", MIXED, QWEN),
    ("llama", {"no_rope_layers": [1, 1, 0, 1]}, {"no_rope_layer_interval": 3}),
]


@pytest.mark.parametrize(("family", "stated", "unread"), UNREAD, ids=[f"{u[0]}-{n}" for n, u in enumerate(UNREAD)])
def test_a_number_that_the_family_does_not_read_does_not_contradict_the_list(family, stated, unread):
    """Another reader may go by it, and it would imply other layers."""
    plain = {key: value for key, value in BASES[family].items() if key not in PER_LAYER}
    table = architecture({"model_type": family, **plain, "num_hidden_layers": DEPTH, **stated, **unread})
    sizes = {name: axis.size for name, axis in table.axes.items()}
    grown = table.grown_config(sizes, [0, 1, 2, 3, 0, 1, 2, 3], 1.0)
    assert "layer_types" in grown or "no_rope_layers" in grown
    assert not unread.keys() & PATTERNS.keys() & grown.keys()


def test_a_number_stays_where_no_layer_has_a_window():
    source = next(s for s in SOURCES if s["model_type"] == "qwen3" and not s["use_sliding_window"])
    table = architecture(source)
    sizes = {name: axis.size for name, axis in table.axes.items()}
    assert table.grown_config(sizes, [0, 0, 1, 1, 2, 2, 3, 3], 1.0)["max_window_layers"] == source["max_window_layers"]


ON = {"use_sliding_window": True, "sliding_window": 8}
ALL_FULL = [
    ("qwen2", ON | {"max_window_layers": DEPTH}, {"sliding_window_pattern": 2, "layer_switch": 2}),
    ("qwen2_moe", ON | {"max_window_layers": 0}, {"sliding_window_pattern": 2}),
    ("smollm3", ON | {"no_rope_layers": [1] * DEPTH}, {"max_window_layers": 2}),
    ("cohere2", {"sliding_window": 8, "sliding_window_pattern": 1}, {"max_window_layers": 2}),
    ("gemma3_text", {"sliding_window_pattern": 1}, {"max_window_layers": 2}),
]


@pytest.mark.parametrize(("family", "stated", "unread"), ALL_FULL, ids=[f"{u[0]}-{n}" for n, u in enumerate(ALL_FULL)])
def test_an_unread_number_does_not_give_windows_to_layers_without_one(family, stated, unread):
    """No layer has a window here, but the config does not turn windows off."""
    plain = {key: value for key, value in BASES[family].items() if key not in (*PER_LAYER, "sliding_window")}
    table = architecture({"model_type": family, **plain, "num_hidden_layers": DEPTH, **stated, **unread})
    sizes = {name: axis.size for name, axis in table.axes.items()}
    grown = table.grown_config(sizes, [0, 0, 1, 1, 2, 2, 3, 3], 1.0)
    assert set(grown["layer_types"]) == {"full_attention"}
    assert not unread.keys() & grown.keys()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_mixture_of_a_model_without_windows_has_none(family):
    """Its layers would be counted otherwise: a dense Qwen has windows from max_window_layers on, the mixture before."""
    stated = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": DEPTH}
    dense = architecture({**BASES[family], "model_type": family, "num_hidden_layers": DEPTH, **stated})
    config = Upcycling(family, 1, 0.0).table(dense).config
    assert not config["use_sliding_window"]
    assert "sliding_attention" not in architecture(config).layer_lists.get("layer_types", ())
