"""verify: exact growths pass, every kind of damage fails and is named, and the report says so."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from growth.errors import CheckpointError, VerificationError
from growth.planning.manifest import sealed
from growth.verification.html_report import layer_figure, write_html
from growth.verification.metrics import compare_logits
from growth.verification.tokens import choose_tokens, sample
from growth.verification.verify import verify
from tests.support.reports import shown, words

WEIGHTS = "model.safetensors"
VOCAB, HIDDEN, FFN, HEADS, HEAD_DIM, DEPTH = 97, 32, 64, 2, 16, 3
SILENT = 2  # the grown model's layer that is a copy of layer 1 with zero branches


def phi(depth: int, factor: int) -> PhiConfig:
    return PhiConfig(
        vocab_size=VOCAB,
        hidden_size=factor * HIDDEN,
        intermediate_size=factor * FFN,
        num_hidden_layers=depth,
        num_attention_heads=factor * HEADS,
        head_dim=HEAD_DIM,
        partial_rotary_factor=0.5,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )


def random_weights(seed: int) -> dict[str, Tensor]:
    """A stock Phi's weights in float64, every one random, norm gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = PhiForCausalLM(phi(DEPTH, 1)).state_dict()
    return {
        name: 0.15 * torch.randn(meta.shape, generator=generator, dtype=torch.float64)
        + float(name.endswith("layernorm.weight"))
        for name, meta in shapes.items()
    }


def write(folder: Path, weights: dict[str, Tensor], config: PhiConfig, dtype: torch.dtype) -> Path:
    folder.mkdir()
    config.dtype = dtype
    config.architectures = ["PhiForCausalLM"]
    config.save_pretrained(folder)
    stored = {name: weight.to(dtype, copy=True).contiguous() for name, weight in weights.items()}
    save_file(stored, folder / WEIGHTS, {"format": "pt"})
    return folder


def doubled(name: str, weight: Tensor, share: float) -> Tensor:
    """One weight of a Phi with every width copied twice; the two copies are read as share and 1 - share."""
    reads = weight.dim() == 2 and "embed_tokens" not in name
    if "lm_head" not in name:
        weight = weight if "embed_tokens" in name else torch.cat([weight, weight])
    if reads:
        return torch.cat([share * weight, (1 - share) * weight], dim=1)
    return torch.cat([weight, weight], dim=1) if "embed_tokens" in name else weight


def grow(weights: dict[str, Tensor], share: float = 0.5) -> dict[str, Tensor]:
    """Twice as wide, and a silent copy of layer 1 after it: exact whatever the share."""
    wide = {name: doubled(name, weight, share) for name, weight in weights.items()}
    grown = {name: weight for name, weight in wide.items() if ".layers." not in name}
    for layer, source in enumerate((0, 1, 1, 2)):
        for name, weight in wide.items():
            if f".layers.{source}." in name:
                ends = layer == SILENT and (".dense." in name or ".fc2." in name)
                grown[name.replace(f".layers.{source}.", f".layers.{layer}.")] = 0 * weight if ends else weight
    return grown


MANIFEST = {
    "format": 1,
    "source": {"name": "source"},
    "recipe": {"description": "doubled by hand"},
    "seed": 0,
    "preserving": True,
    "sizes": {
        "before": {"residual": HIDDEN, "ffn": FFN, "heads": HEADS, "queries": 1, "head_dim": HEAD_DIM, "layers": DEPTH},
        "after": {
            "residual": 2 * HIDDEN,
            "ffn": 2 * FFN,
            "heads": 2 * HEADS,
            "queries": 1,
            "head_dim": HEAD_DIM,
            "layers": 4,
        },
    },
    "levels": {},
    "axes": {
        axis: {"before": n, "after": 2 * n, "runs": [[0, n, 0, 1.0, 0.5], [n, 2 * n, 0, 1.0, 0.5]]}
        for axis, n in (("residual", HIDDEN), ("ffn", FFN), ("heads", HEADS))
    },
    "layers": [{"source": source, "silent": layer == SILENT} for layer, source in enumerate((0, 1, 1, 2))],
    "tensors": {
        name: {"source": name, "axes": axes}
        for layer in range(DEPTH + 1)
        for name, axes in (
            (f"model.layers.{layer}.self_attn.q_proj.weight", [["heads", "queries", "head_dim"], ["residual"]]),
            (f"model.layers.{layer}.mlp.fc1.weight", [["ffn"], ["residual"]]),
        )
    },
    "steps": [{"operator": "widen <all>", "preserving": True, "why": "copies share their readers & <b>more</b>"}],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One exact growth, by the name of its storage dtype: (source, grown)."""
    made = {}
    for name, share in (("float64", 0.5), ("float16", 0.3)):
        dtype, home = getattr(torch, name), tmp_path_factory.mktemp(name)
        weights = {key: value.to(dtype).double() for key, value in random_weights(0).items()}
        source = write(home / "source", weights, phi(DEPTH, 1), dtype)
        grown = write(home / "grown", grow(weights, share), phi(DEPTH + 1, 2), dtype)
        (grown / "growth.json").write_text(sealed(MANIFEST))
        made[name] = source, grown
    return made


@pytest.fixture
def damaged(folders, tmp_path):
    """Makes a copy of a grown checkpoint with one weight changed."""

    def make(stored, name, change):
        source, grown = folders[stored]
        folder = shutil.copytree(grown, tmp_path / "damaged")
        weights = load_file(folder / WEIGHTS)
        change(weights[name])
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        return source, folder

    return make


# ------------------------------------------------- what passes


def test_an_exact_growth_is_exact_in_float64(folders):
    report = verify(*folders["float64"])
    assert report.passed
    assert report.logits.relative_error < 1e-12
    assert report.logits.top1_agreement == 1
    assert report.logits.source_loss == pytest.approx(report.logits.grown_loss, abs=1e-12)
    assert max(layer.relative_error for layer in report.layers) < 1e-12


def test_the_report_follows_the_layers(folders):
    report = verify(*folders["float64"])
    assert [(layer.layer, layer.source, layer.silent) for layer in report.layers] == [
        (-1, -1, False),
        (0, 0, False),
        (1, 1, False),
        (2, 1, True),
        (3, 2, False),
    ]
    assert (report.recipe_from, report.preserving) == ("", None)  # what growth.json says of that is not believed
    assert report.depth == (3, 4)
    assert report.sizes["after"]["hidden_size"] == 2 * HIDDEN


@pytest.mark.parametrize("dtype", ["float64", "float32", "stored"])
@pytest.mark.parametrize("stored", ["float16", "float64"])
def test_rounding_passes_in_every_arithmetic(folders, stored, dtype):
    report = verify(*folders[stored], dtype=dtype)
    assert report.passed, report.verdict()
    assert report.dtype == (stored if dtype == "stored" else dtype)
    assert report.storage == (stored, stored)


def test_storage_rounding_is_seen_and_judged_against_the_floor(folders):
    report = verify(*folders["float16"])
    assert 1e-5 < report.logits.relative_error < report.floor < 1e-2


def test_a_model_equals_its_copy(folders, tmp_path):
    source, _ = folders["float16"]
    report = verify(source, shutil.copytree(source, tmp_path / "copy"))
    assert report.logits.relative_error == report.logits.kl == 0
    assert report.passed
    assert report.layers == ()
    assert "no growth.json and no recipe was given" in words(shown(report))


def test_a_stream_whose_mean_has_another_level_is_compared_so(folders, tmp_path):
    source, grown = folders["float64"]
    folder = shutil.copytree(grown, tmp_path / "centred")
    weights = load_file(folder / WEIGHTS)
    for name, weight in weights.items():
        if "embed_tokens" in name:
            weight -= weight.mean(1, keepdim=True)
        elif ".dense." in name or ".fc2." in name:
            weight -= weight.mean(0, keepdim=True)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert verify(source, folder).first_bad_layer == -1
    (folder / "growth.json").write_text(sealed(MANIFEST | {"levels": {"residual": 0.0}}))
    assert verify(source, folder).passed


def test_added_tokens_are_in_the_softmax_and_not_among_the_compared_logits():
    source = torch.randn(2, 4, 7, dtype=torch.float64)
    grown = torch.cat([source, source[..., :3]], dim=-1)
    error = compare_logits(source, grown, torch.zeros(2, 4, dtype=torch.int64))
    taken = -(1 - grown.softmax(-1)[..., 7:].sum(-1)).log().mean()
    assert error.relative_error == 0
    assert error.added_tokens == 3
    assert error.lost_to_added == pytest.approx(float(taken))
    assert error.kl == pytest.approx(float(taken))  # KL from the source's distribution, zero on the added tokens
    loud = torch.cat([source, torch.full((2, 4, 3), 99.0, dtype=torch.float64)], dim=-1)
    assert compare_logits(source, loud, torch.zeros(2, 4, dtype=torch.int64)).top1_agreement == 0


def test_the_measures_of_logits_are_those_of_their_names():
    generator = torch.Generator().manual_seed(0)
    source, grown = torch.randn(2, 2, 40, 5, dtype=torch.float64, generator=generator)
    tokens = torch.randint(5, (2, 40), generator=generator)
    p, q = source.log_softmax(-1), grown.log_softmax(-1)
    error = compare_logits(source, grown, tokens)
    assert error.relative_error == pytest.approx(float((grown - source).norm() / source.norm()))
    assert error.max_abs_error == pytest.approx(float((grown - source).abs().max()))
    assert error.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()))
    assert error.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    loss = torch.nn.functional.cross_entropy(source[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert error.source_loss == pytest.approx(float(loss))


# ------------------------------------------------- what fails, and where


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        (0, "self_attn.q_proj.weight"),
        (0, "input_layernorm.weight"),
        (1, "self_attn.k_proj.weight"),
        (1, "mlp.fc1.weight"),
        (SILENT, "self_attn.dense.weight"),  # in its branches' ends a silent layer must stay zero
        (SILENT, "mlp.fc2.bias"),
        (3, "self_attn.v_proj.bias"),
        (3, "mlp.fc2.weight"),
    ],
)
def test_one_wrong_number_is_found_at_its_layer(damaged, layer, weight):
    def change(tensor):
        tensor.view(-1)[3] += 0.01

    report = verify(*damaged("float64", f"model.layers.{layer}.{weight}", change))
    assert not report.passed
    assert report.first_bad_layer == layer
    assert f"after layer {layer}" in report.verdict()


def swap_rows(tensor):
    tensor[[0, 1]] = tensor[[1, 0]]


@pytest.mark.parametrize("dtype", ["float64", "float32", "stored"])
def test_swapped_rows_fail_in_float16(damaged, dtype):
    report = verify(*damaged("float16", "model.layers.1.mlp.fc1.weight", swap_rows), dtype=dtype)
    assert not report.passed
    assert report.first_bad_layer == 1


def test_a_wrong_embedding_and_a_wrong_head_are_named(damaged):
    source, folder = damaged("float16", "model.embed_tokens.weight", lambda weight: weight.mul_(1.1))
    assert verify(source, folder).first_bad_layer == -1
    shutil.rmtree(folder)
    report = verify(*damaged("float16", "lm_head.weight", swap_rows))
    assert not report.passed
    assert report.first_bad_layer is None
    assert "final norm and the head" in report.verdict()


def test_a_model_that_is_not_finite_fails(damaged):
    report = verify(*damaged("float16", "model.layers.1.mlp.fc2.bias", lambda bias: bias.fill_(math.inf)))
    assert not report.passed
    assert report.first_bad_layer == 1
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["logits"]["relative_error"] is None
    assert layer_figure(report.layers)


def test_a_missing_tensor_is_an_error_not_a_verdict(folders, tmp_path):
    source, grown = folders["float64"]
    folder = shutil.copytree(grown, tmp_path / "lost")
    weights = load_file(folder / WEIGHTS)
    del weights["lm_head.bias"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks tensor 'lm_head\.bias'"):
        verify(source, folder)


def test_the_wrong_source_is_refused(folders, tmp_path):
    _, grown = folders["float64"]
    with pytest.raises(VerificationError, match=r"hidden_size from 32 to 64 and layers from 3 to 4.*Name the source"):
        verify(shutil.copytree(grown, tmp_path / "copy"), grown)


def test_one_folder_named_twice_is_refused(folders, tmp_path):
    source, _ = folders["float64"]
    (tmp_path / "link").symlink_to(source)
    for other in (source, tmp_path / "link", source / ".." / source.name):
        with pytest.raises(VerificationError, match="are the same folder: name the source, then what it grew into"):
            verify(source, other)


def test_families_that_never_match_are_named(folders, phi_mini, tmp_path):
    source, _ = folders["float64"]
    config = PhiConfig(**phi(2, 1).to_dict()).to_dict()
    llama = {key: config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    model = LlamaForCausalLM(LlamaConfig(**llama, num_attention_heads=HEADS))
    model.save_pretrained(tmp_path / "llama")
    with pytest.raises(VerificationError, match=r"source is a phi model and .*llama is a llama model, and no growth"):
        verify(source, tmp_path / "llama")


@pytest.mark.parametrize(("short", "dtype"), [("fp64", "float64"), ("F32", "float32")])
def test_dtypes_are_spelled_as_for_grow(folders, short, dtype):
    assert verify(*folders["float16"], dtype=short, tokens=8).dtype == dtype


def test_a_dtype_that_models_are_not_compared_in_is_refused(folders):
    with pytest.raises(
        VerificationError, match=r"dtype 'fp16': use float64 .*, or stored, which computes in the dtype"
    ):
        verify(*folders["float16"], dtype="fp16")


def test_a_smaller_vocabulary_is_refused(folders, tmp_path):
    source, _ = folders["float64"]
    weights, config = random_weights(0), phi(DEPTH, 1)
    config.vocab_size = 50
    small = {name: weight[:50] if len(weight) == VOCAB else weight for name, weight in weights.items()}
    folder = write(tmp_path / "small", small, config, torch.float64)
    with pytest.raises(
        VerificationError,
        match=r"has vocab 50 and .* has 97: nothing is smaller in a grown model. Name the source first",
    ):
        verify(source, folder)


# ------------------------------------------------- tokens


@pytest.fixture
def with_tokenizer(folders, tmp_path):
    """A source with a tokenizer of one token a byte."""
    folder = shutil.copytree(folders["float64"][0], tmp_path / "source")
    Tokenizer(models.BPE({chr(code): code for code in range(32, VOCAB)}, [])).save(str(folder / "tokenizer.json"))
    return folder


def test_tokens_are_of_the_text_or_of_the_paragraph_or_random(folders, with_tokenizer, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("ABC ABC ABC ")
    of_text = choose_tokens(with_tokenizer, VOCAB, text, 8, 0)
    assert of_text.ids.tolist() == [[65, 66, 67, 32]] * 2
    assert of_text.origin == f"the text {text}"
    of_paragraph = choose_tokens(with_tokenizer, VOCAB, None, 128, 0)
    assert (of_paragraph.ids.shape, of_paragraph.origin) == ((2, 64), "the built-in paragraph")
    drawn = choose_tokens(folders["float64"][0], VOCAB, None, 128, 0)
    assert torch.equal(drawn.ids, choose_tokens(folders["float64"][0], VOCAB, None, 128, 0).ids)
    assert drawn.ids.shape == (2, 64)
    assert drawn.ids.max() < VOCAB
    assert drawn.origin.startswith(f"random ids of {VOCAB}, seed 0")


def test_tokens_that_cannot_be_run_are_refused(folders, with_tokenizer, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("ABC")
    with pytest.raises(VerificationError, match=r"at least 4 tokens, .* there are 3 from the text"):
        choose_tokens(with_tokenizer, VOCAB, text, 8, 0)
    with pytest.raises(VerificationError, match="gives id"):
        choose_tokens(with_tokenizer, 50, None, 8, 0)
    with pytest.raises(VerificationError, match=r"no tokenizer\.json"):
        choose_tokens(folders["float64"][0], VOCAB, text, 8, 0)
    with pytest.raises(VerificationError, match="cannot be read"):
        choose_tokens(with_tokenizer, VOCAB, tmp_path / "absent.txt", 8, 0)


def test_both_models_continue_a_text_alike(folders, with_tokenizer, tmp_path):
    grown = shutil.copytree(folders["float64"][1], tmp_path / "grown")
    shutil.copy(with_tokenizer / "tokenizer.json", grown)
    continued = sample(with_tokenizer, "AB", 5)
    assert continued == sample(grown, "AB", 5)


def test_a_sample_needs_a_tokenizer(folders):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        sample(folders["float64"][0], "AB", 5)


# ------------------------------------------------- the report


def test_progress_is_told_stage_by_stage(folders):
    told = []
    verify(*folders["float64"], progress=lambda *step: told.append(step))
    assert told == [
        (stage, done, depth)
        for stage, depth in (("source", 3), ("grown", 4), ("rounding", 3))
        for done in range(depth + 1)
    ]


def test_the_report_survives_json(folders):
    report = verify(*folders["float16"])
    content = report.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["passed"] is True
    assert content["layers"][0]["layer"] == -1


def test_the_table_gives_verdict_and_numbers(folders, damaged):
    text = shown(verify(*folders["float16"]))
    assert text.startswith("PASSED")
    assert "KL divergence" in text
    text = shown(verify(*damaged("float16", "model.layers.1.mlp.fc1.weight", swap_rows)))
    assert text.startswith("FAILED")
    assert "after layer 1" in text
    assert "••×××" in text


def test_the_page_is_self_contained_and_escaped(folders, tmp_path):
    source, grown = folders["float16"]
    page = tmp_path / "report.html"
    hostile = replace(verify(source, grown), grown="<script>alert(1)</script>")
    write_html(hostile, source, grown, page)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "widen &lt;all&gt;" in text
    assert "&lt;b&gt;more&lt;/b&gt;" in text
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,)", text)
    assert "http" not in text
    assert text.count("<img") == 3


def test_a_page_without_growth_json_has_numbers_and_weights(folders, tmp_path):
    source, _ = folders["float16"]
    page, copy = tmp_path / "report.html", shutil.copytree(source, tmp_path / "copy")
    write_html(verify(source, copy), source, copy, page)
    text = page.read_text(encoding="utf-8")
    assert "there is no growth.json and no recipe was given" in text
    assert text.count("<img") == 2
