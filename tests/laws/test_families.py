"""Every family on every axis: exact in float64 on stock classes, or refused with the reason.

The quick run grows all axes of every family at once, and each axis alone of typical families, tied and untied; `make test-all`
runs every combination.
"""

import re
from functools import partial, reduce
from itertools import product

import pytest
import torch

import growth
from growth import GrowthError
from growth.architectures import FAMILIES
from growth.checkpoints.stock_parameters import auto_class
from growth.operators import break_symmetry, chain, deepen, widen
from growth.operators.base import Growth
from growth.operators.fit import check_fit
from growth.verification.float64 import proof_grade
from tests.support.families import (
    all_cases,
    axes_of,
    random_model,
    steps_of,
    table,
    tied_and_untied,
    typical,
    widths,
)
from tests.support.models import EXACT, grown, relative_error, save
from tests.support.selection import one_of_each

CASES = all_cases()
INITS = ("tile", "sample", "pad")


def refusal(case, axis, init):
    """A part of the reason why an axis (or "layers") cannot grow, at all or by this init (or order)."""
    return case.refused.get(axis, case.refused.get(f"{axis}, {init}"))


def test_every_family_has_cases():
    assert {case.family for case in CASES} == FAMILIES.keys()


@pytest.mark.parametrize(
    "case",
    one_of_each(
        [(case,) for case in tied_and_untied().values()],
        lambda case: case.family,
        lambda case: (typical(case), table(case).tied),
        ids=lambda case: case.name,
    ),
)
def test_all_axes_of_every_family(case):
    """All at once; where some have to grow in proportion, as many at a time as fit together."""
    model = random_model(case)
    growths = {"depth": [deepen(factor=2)]} if "layers" not in case.refused else {}
    for axis, init in product(axes_of(case), INITS):
        if axis not in growths and not refusal(case, axis, init):
            growths[axis] = [widen(name, to=to, init=chosen) for name, to, chosen in widths(case, axis, init)]
    while growths:
        taken = tuple(growths) if fits(case, growths) else reduce(partial(with_axis, case, growths), growths, ())
        operator = chain(*(step for axis in taken for step in growths.pop(axis)))
        assert relative_error(model, grown(model, operator)) <= EXACT


def with_axis(case, growths, taken, axis):
    """The axes taken so far and one more, if a model can grow along all of them at once, or if it is the first."""
    both = (*taken, axis)
    return both if not taken or fits(case, {name: growths[name] for name in both}) else taken


def fits(case, growths):
    """Whether a model can grow along all of some axes at once."""
    try:
        check_fit(chain(*(step for steps in growths.values() for step in steps))(Growth.start(table(case))))
    except GrowthError:
        return False
    return True


@pytest.mark.parametrize(
    ("case", "axis", "init"),
    one_of_each(
        [(case, axis, init) for case in CASES for axis in axes_of(case) for init in INITS],
        lambda case, axis, init: typical(case),
        lambda case, axis, init: (axis, init),
        lambda case, axis, init: refusal(case, axis, init),
        ids=lambda case, axis, init: f"{case.name}-{axis}-{init}",
    ),
)
def test_width(case, axis, init, saw):
    model = random_model(case)
    operator = chain(*(widen(name, to=to, init=chosen) for name, to, chosen in widths(case, axis, init)))
    reason = refusal(case, axis, init)
    if reason:
        with pytest.raises(GrowthError, match=reason) as refused:
            grown(model, operator)
    else:
        assert relative_error(model, grown(model, operator)) <= EXACT
    if init == ("tile" if f"{axis}, pad" in case.refused else "pad"):
        saw(case, axis, told(refused.value) if reason else "exact")


def told(error):
    """A refusal without the step of the chain and the sizes of the case."""
    return re.sub(r"^chain, step \d+ \(.*?\): ", "", str(error)).split(": ", 1)[-1].replace("|", "/")


@pytest.mark.parametrize(
    ("case", "norm_eps", "init"),
    one_of_each(
        product(CASES, ["stock", "rescale"], INITS),
        lambda case, norm_eps, init: typical(case),
        lambda case, norm_eps, init: (norm_eps, init, "rescale" in case.refused),
        ids=lambda case, norm_eps, init: f"{case.name}-{norm_eps}-{init}",
    ),
)
def test_residual_at_both_eps(case, norm_eps, init):
    model = random_model(case)
    operator = chain(
        *(
            widen(name, to=to, init=chosen, **({"norm_eps": norm_eps} if name == "residual" else {}))
            for name, to, chosen in widths(case, "residual", init)
        )
    )
    reason = refusal(case, "residual", init) or (case.refused.get("rescale") if norm_eps == "rescale" else None)
    if reason:
        with pytest.raises(GrowthError, match=reason):
            grown(model, operator)
    else:
        assert relative_error(model, grown(model, operator)) <= EXACT


@pytest.mark.parametrize(
    ("case", "order"),
    one_of_each(
        product(CASES, ["interleave", "stack", "prepend"]),
        lambda case, order: typical(case),
        lambda case, order: (order, refusal(case, "layers", order)),
        ids=lambda case, order: f"{case.name}-{order}",
    ),
)
def test_depth(case, order, saw):
    model = random_model(case)
    depth = model.config.get_text_config().num_hidden_layers
    reason = refusal(case, "layers", order)
    if reason:
        with pytest.raises(GrowthError, match=reason) as refused:
            grown(model, deepen(to=depth + 2, order=order))
        if "layers" in case.refused:
            saw(case, "depth", told(refused.value))
        return
    larger = grown(model, deepen(to=depth + 2, order=order))
    assert larger.config.get_text_config().num_hidden_layers == depth + 2
    assert relative_error(model, larger) <= EXACT
    assert relative_error(model, grown(model, deepen(to=depth + 2, order=order, init="copy"))) > 1e-4
    saw(case, "depth", "exact")


def everything(case):
    """Width, depth and broken symmetry at once, as far as the case allows it."""
    steps = [
        step
        for axis in ("residual", "ffn", "heads")
        if axis in axes_of(case) and axis not in case.refused
        for step in steps_of(case, axis)
        if axis not in case.steps or axis == "residual"
    ]
    widened = [widen(n, to=to, init="pad" if f"{n}, tile" in case.refused else "tile") for n, to in dict(steps).items()]
    deeper = [deepen(factor=2)] if "layers" not in case.refused else []
    return chain(*widened, break_symmetry(), *deeper)


@pytest.mark.parametrize(
    "case",
    one_of_each(
        [(case,) for case in CASES],
        typical,
        ids=lambda case: case.name,
    ),
)
def test_by_file_and_by_generation(case, tmp_path):
    """Saved, grown by file, loaded by its auto class: the same logits, and the same tokens by KV cache."""
    model = random_model(case)
    source = save(model, tmp_path / "source")
    growth.grow(everything(case), source, tmp_path / "out")
    options = {"dtype": "auto", "attn_implementation": "eager", "experts_implementation": "eager"}
    with proof_grade():
        auto = auto_class(model.config)
        small = auto.from_pretrained(source, **options)
        large, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True, **options)
    assert not any(info.values())
    assert large.config.get_text_config().num_hidden_layers == small.config.get_text_config().num_hidden_layers * (
        1 if "layers" in case.refused else 2
    )
    assert relative_error(small, large) <= EXACT
    ids = torch.randint(3, 61, (2, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # left padding
    generate = {"attention_mask": mask, "max_new_tokens": 64, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    with proof_grade():
        assert torch.equal(small.generate(ids, **generate), large.generate(ids, **generate))
    report = growth.verify(source, tmp_path / "out", tokens=32)
    assert report.passed, report.verdict()
    assert report.logits.relative_error <= EXACT
    assert report.layers
