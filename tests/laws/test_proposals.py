"""Whatever an error proposes is accepted: every size and argument in its text can be planned with."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth import GrowthError
from growth.errors import RecipeError
from growth.operators import chain, deepen, reuse, upcycle, widen
from growth.planning.recipe import load_recipe
from tests.support.families import all_cases, stated_config, table
from tests.support.plans import plan_of
from tests.support.selection import examples

ALSO = r"widen \w+ to: \d+"
CHANGE = rf"(?:{ALSO}|no \w+|\w+: [\w.]+)"
PROPOSED = re.compile(rf"Use ({CHANGE}(?: (?:or|and) {CHANGE})*)\.$")


def value(text):
    return int(text) if text.isdecimal() else float(text) if re.fullmatch(r"[\d.]+", text) else text


def proposals(message):
    """Each proposal in an error: arguments of the step, and axes that are widened along with it."""
    found = PROPOSED.search(message)
    for proposal in found[1].split(" or ") if found else ():
        parts = proposal.split(" and ")
        also = {part.split()[1]: int(part.split()[-1]) for part in parts if re.fullmatch(ALSO, part)}
        own = [part.partition(": ") for part in parts if not re.fullmatch(ALSO, part)]
        yield {key.removeprefix("no "): value(text) if text else None for key, _, text in own}, also


def with_proposal(operator, arguments, changed):
    """The step with what is proposed: a size in place of a ratio; `reuse` has a mapping of sizes."""
    if operator is reuse:
        return operator(**{**arguments, "to": arguments["to"] | changed})
    kept = {key: argument for key, argument in arguments.items() if "to" not in changed or key not in SIZED}
    return operator(**{key: argument for key, argument in {**kept, **changed}.items() if argument is not None})


SIZED = ("to", "factor", "multiple")


@st.composite
def sized(draw, old):
    """A size near twice the old one at most, as a size, a ratio or a multiple."""
    key = draw(st.sampled_from(SIZED))
    if key == "factor":
        return {key: draw(st.sampled_from([1.1, 1.25, 1.3, 1.5, 1.75, 2, 2.5]))}
    return {key: draw(st.integers(old, 2 * old) if key == "to" else st.integers(2, 64))}


@st.composite
def steps(draw, case):
    """Steps before, an operator and its arguments."""
    built = table(case)
    axes = {
        name: axis.size * (built.axes["queries"].size if name == "heads" else 1) for name, axis in built.axes.items()
    }
    grown = st.sampled_from([name for name in ("residual", "ffn") if name in axes and not built.axes[name].refusal])
    before = [widen(name, factor=2, init="tile") for name in draw(st.lists(grown, max_size=1))]
    axis = draw(st.sampled_from(sorted(axes)))
    match draw(st.sampled_from(["widen", "widen", "widen", "deepen", "reuse", "upcycle"])):
        case "deepen":
            factor = {"factor": draw(st.sampled_from([1.1, 1.3, 1.5]))}
            order = {"order": draw(st.permutations(range(built.depth)))}
            return before, deepen, draw(st.sampled_from([factor, order]))
        case "reuse":
            return before, reuse, {"to": {axis: draw(st.integers(axes[axis], 2 * axes[axis]))}}
        case "upcycle":
            counts = {key: draw(st.integers(1, 4)) for key in ("experts", "top_k")}
            return before, upcycle, counts | {"router": draw(st.sampled_from(["random", "zero"]))}
    choices = {
        "init": draw(st.sampled_from([None, "tile", "sample", "pad", "mean", "random"])),
        "shares": draw(st.sampled_from([None, "equal", "first"])),
        "rope_pairs": draw(st.sampled_from(["first", "first", "spread"])),
        "logit_bias": draw(st.sampled_from([None, None, -30])),
    }
    return before, widen, {"axis": axis, **draw(sized(axes[axis])), **choices}


def check_proposals(config, before, operator, arguments):
    """Plan with everything that the error of a step proposes; return how many proposals there are."""
    try:
        plan_of(config, chain(*before, operator(**arguments)))
    except GrowthError as error:
        found = list(proposals(str(error)))
        for changed, also in found:
            related = [widen(axis, to=size) for axis, size in also.items()]
            plan_of(config, chain(*before, with_proposal(operator, arguments, changed), *related))
        return len(found)
    return 0


@examples(60, 1000, deadline=None)
@given(case=st.sampled_from(all_cases()), data=st.data())
def test_whatever_an_error_proposes_is_accepted(case, data):
    check_proposals(stated_config(case), *data.draw(steps(case)))


HEADS = [
    ("llama", 9, 3, ["to: 12", "to: 18"]),  # 864 channels are not a multiple of 15 heads
    ("llama", 15, 5, ["to: 18", "to: 24"]),
    ("mistral", 9, 3, ["to: 12", "to: 15"]),
    ("qwen2", 14, 2, None),
    ("gpt_neox", 9, 9, ["to: 14 and widen residual to: 896"]),
    ("olmoe", 9, 3, ["to: 15 and widen residual to: 960"]),
]


@pytest.mark.parametrize(("family", "heads", "kv_heads", "proposed"), HEADS)
def test_recipes_for_any_family_propose_numbers_of_heads_that_fit(family, heads, kv_heads, proposed):
    config = {
        "model_type": family,
        "hidden_size": 64 * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "intermediate_size": 256 * heads,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    widen_residual, widen_heads, *_ = (step.operator(0) for step in load_recipe("one-and-a-half-width").steps)
    if proposed is None:
        plan_of(config, chain(widen_residual, widen_heads))
        return
    with pytest.raises(RecipeError) as refused:
        plan_of(config, load_recipe("one-and-a-half-width"))
    assert str(refused.value).endswith(f"Use {' or '.join(proposed)}.")
    assert check_proposals(config, [widen_residual], widen, {"axis": "heads", "factor": 1.5}) == len(proposed)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"axis": "queries", "factor": 1.5}, "No other is accepted: .* Widen heads instead"),
        ({"axis": "residual", "factor": 1.3}, "Use to: 40 and widen "),
    ],
)
def test_an_error_without_a_proposal_says_what_stands_in_the_way(arguments, reason):
    config = next(stated_config(case) for case in all_cases() if case.family == "gpt_neox")
    with pytest.raises(RecipeError, match=reason):
        plan_of(config, widen(**arguments))
