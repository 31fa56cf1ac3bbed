"""The floor: the limit follows from draws of the source, holds for right growths and never from the grown folder."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import growth
from benchmarks.trust_models import make_source, recipe
from growth.errors import VerificationError
from growth.operators import chain, deepen, widen
from growth.planning.stored_error import stored_errors
from growth.verification.rounding_floor import ALARM, DRAWS, Floor, Steps, draws, measure, signs, tail
from growth.verification.streaming import StreamedModel
from tests.support.families import all_cases, random_model, typical
from tests.support.selection import one_of_each

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "case", one_of_each([(case,) for case in all_cases()[::3]], typical, ids=lambda case: case.name)
)
def test_draws_side_by_side_are_those_that_run_alone(case, tmp_path):
    random_model(case, torch.float32).save_pretrained(tmp_path)
    model = StreamedModel(tmp_path, torch.float64)
    batch = torch.randint(0, 61, (2, 8), generator=GENERATOR)
    moves = [signs(2**-8, seed) for seed in range(3)]
    alone = torch.cat([model.run(batch, perturbs=[move]) for move in moves])
    together = model.run(batch.repeat(3, 1), perturbs=moves)
    assert float((together - alone).norm() / alone.norm()) < 1e-12
    plain = model.run(batch)
    assert all(not torch.equal(draw, plain) for draw in together.chunk(3))


@pytest.mark.parametrize("directions", [1, 2, 8, 64, 1024])
def test_a_limit_is_exceeded_as_rarely_as_it_says(directions):
    """Errors of so many equally important directions, judged by draws of the same kind."""
    chance, trials = 1e-2, 4000
    sizes = torch.randn(trials, 1 + DRAWS, directions, dtype=torch.float64, generator=GENERATOR).square().mean(-1)
    ratios = sizes[:, 0] / sizes[:, 1:].mean(-1)
    assert float((ratios > tail(directions, DRAWS, chance)).double().mean()) <= chance
    assert tail(directions, DRAWS, ALARM) < 12_000


@pytest.mark.parametrize("directions", [1, 4, 50])
def test_draws_tell_how_many_directions_an_error_has(directions):
    basis = torch.linalg.qr(torch.randn(400, directions, dtype=torch.float64, generator=GENERATOR))[0]
    expected = torch.ones(400, dtype=torch.float64)
    found = []
    for _ in range(50):
        moves = (basis @ torch.randn(directions, 8, dtype=torch.float64, generator=GENERATOR)).T
        found.append(1 / measure([expected + 1e-6 * move for move in moves], expected).directions)
    assert 1 / (sum(found) / len(found)) == pytest.approx(directions, rel=0.35)


def test_a_single_rounding_that_decides_everything_is_told_exactly():
    """Signs of one size: each draw moves it by as much."""
    expected = torch.full((64,), 2.0, dtype=torch.float64)
    moved = []
    for seed in range(DRAWS):
        value = expected[:1].clone()
        signs(2**-12, seed)("one", value)
        moved.append(value.expand(64))
    floor = measure(moved, expected)
    assert floor.error == pytest.approx(2**-12 / math.sqrt(3))
    assert floor.directions == pytest.approx(1)


def test_a_limit_is_at_least_what_float64_can_tell_and_at_most_a_quarter():
    assert Floor(0.0, 100.0, DRAWS).limit == 1e-12
    assert Floor(1.0, 100.0, DRAWS).limit == 0.25


def test_fewer_directions_and_fewer_draws_make_a_wider_limit():
    assert tail(1, 4) > tail(2, 4) > tail(50, 4) > tail(1000, 4) > 1
    assert tail(1, 2) > tail(1, 4) > tail(1, 16)


def test_signs_are_seeded_and_addressed_by_name():
    weight = torch.ones(6, 5, dtype=torch.float64)

    def drawn(name, seed):
        copy = weight.clone()
        signs(0.5, seed)(name, copy)
        return copy

    assert set(drawn("a", 0).flatten().tolist()) == {0.5, 1.5}
    assert torch.equal(drawn("a", 0), drawn("a", 0))
    assert not torch.equal(drawn("a", 0), drawn("a", 1))
    assert not torch.equal(drawn("a", 0), drawn("b", 0))


def test_where_a_mean_is_added_its_rounding_is_too():
    weight = torch.tensor([[100.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    moved = weight.clone()
    signs(0.5, 0, {"a": (-2, 1.0)})("a", moved)
    assert (moved - weight).abs().tolist() == [[75.0, 1.0], [25.0, 1.0]]


def test_no_weight_of_the_grown_folder_moves_its_own_limit(tmp_path):
    """Source, recipe and storage type decide: a forged folder cannot widen what it is judged by."""
    case = next(case for case in all_cases() if case.family == "llama")
    random_model(case, torch.float32).save_pretrained(tmp_path / "source")
    recipe = chain(widen("ffn", factor=2, shares="random", init="tile"), deepen(factor=2))
    growth.grow(recipe, tmp_path / "source", tmp_path / "grown")
    right = growth.verify(tmp_path / "source", tmp_path / "grown", tokens=16)
    weights = load_file(tmp_path / "grown" / "model.safetensors")
    forged = {name: weight * 1.5 for name, weight in weights.items()}
    save_file(forged, tmp_path / "grown" / "model.safetensors", {"format": "pt"})
    wrong = growth.verify(tmp_path / "source", tmp_path / "grown", tokens=16)
    assert right.passed
    assert not wrong.passed
    assert wrong.limit == right.limit
    assert [layer.limit for layer in wrong.layers] == [layer.limit for layer in right.layers]


@pytest.mark.parametrize("name", ["double-depth", "double-width-exact"])
@pytest.mark.parametrize("family", ["llama", "phi", "mixtral"])
def test_where_nothing_is_rounded_the_smallest_change_of_a_matrix_is_seen(name, family, tmp_path):
    """A single value of a matrix, changed by the least that its type can express."""
    case = next(case for case in all_cases() if case.family == family)
    random_model(case, torch.bfloat16).save_pretrained(tmp_path / "source")
    plan = growth.grow(name, tmp_path / "source", tmp_path / "grown")
    assert not any(stored_errors(plan).values())
    right = growth.verify(tmp_path / "source", tmp_path / "grown", name, tokens=16)
    assert right.passed
    assert {right.limit, *(layer.limit for layer in right.layers)} == {1e-12}
    file = tmp_path / "grown" / "model.safetensors"
    weights = load_file(file)
    read = next(key for key in weights if key.endswith("v_proj.weight"))
    row = weights[read].view(torch.int16)[0]
    row[int(weights[read][0].abs().argmax())] += 1
    save_file(weights, file, {"format": "pt"})
    wrong = growth.verify(tmp_path / "source", tmp_path / "grown", name, tokens=16)
    assert not wrong.passed
    assert wrong.first_bad_layer is not None


def test_only_tensors_that_a_growth_rounds_are_moved_by_the_rounding_of_storage():
    steps = Steps(stored=0.25, arithmetic=2**-20, exact={"a"})
    for name, step in (("a", 2**-20), ("b", 0.25)):
        for draw in draws(steps, 0):
            moved = torch.ones(4, 3, dtype=torch.float64)
            draw(name, moved)
            assert set((moved - 1).abs().flatten().tolist()) == {step}
    assert Steps(stored=2**-20, arithmetic=0.25).of("b") == 0.25


def test_where_rounding_moves_the_source_too_far_nothing_is_judged(tmp_path):
    case = next(case for case in all_cases() if case.name == "phi3, in part, old form of the config")
    make_source(case, "bfloat16", "branch", 246, tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    operator = recipe("residual, sampled copies", case, config)
    growth.grow(operator, tmp_path / "source", tmp_path / "grown", seed=246)
    pair = tmp_path / "source", tmp_path / "grown", operator
    assert growth.verify(*pair, growth_seed=246, seed=246).status == "PASSED"
    with pytest.raises(VerificationError, match=r"in bfloat16, rounding alone moves .* Compute in float64"):
        growth.verify(*pair, growth_seed=246, seed=246, dtype="stored")
    path = tmp_path / "grown" / "config.json"
    path.write_text(path.read_text().replace('"use_cache": true', '"use_cache": false'))
    assert growth.verify(*pair, growth_seed=246, seed=246, dtype="stored").status == "FAILED"
