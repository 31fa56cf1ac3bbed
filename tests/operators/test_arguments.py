"""An argument of a wrong type or out of range is named, in Python as in a recipe."""

import pytest

import growth
from growth.errors import GrowthError, RecipeError
from growth.operators.registry import OPERATORS
from tests.support.families import all_cases, random_model
from tests.support.models import random_phi

LLAMA = next(case for case in all_cases() if case.family == "llama")

NUMBERS = {  # where a number is due
    ("deepen", "to"): {},
    ("deepen", "factor"): {},
    ("deepen", "block"): {"to": 6, "order": "middle", "init": "copy"},
    ("widen", "to"): {"axis": "ffn"},
    ("widen", "factor"): {"axis": "ffn"},
    ("regroup", "factor"): {},
    ("upcycle", "experts"): {"top_k": 2},
    ("upcycle", "top_k"): {"experts": 4},
    ("upcycle", "granularity"): {"experts": 4, "top_k": 2},
}
FACTORS = {("widen", "factor"), ("deepen", "factor")}  # a ratio may be 1.5, if the size is whole


def model_for(operator):
    """A model that the operator can take: only some families have a mixture that they can become."""
    return random_model(LLAMA) if operator == "upcycle" else random_phi()


@pytest.mark.parametrize("bad", [0, -1, -0.5, float("nan"), float("inf"), 2**40, "3", [], {}, object], ids=repr)
@pytest.mark.parametrize("key", NUMBERS, ids="-".join)
def test_what_is_no_number_is_refused_by_name(key, bad):
    operator, argument = key
    with pytest.raises(GrowthError, match=rf"{argument}|shrink|{operator}|memory|regroup|upcycle|least|most"):
        growth.plan(OPERATORS[operator].function(**NUMBERS[key], **{argument: bad}), model_for(operator))


@pytest.mark.parametrize("key", [key for key in NUMBERS if key not in FACTORS], ids="-".join)
def test_what_is_counted_is_whole(key):
    operator, argument = key
    with pytest.raises(RecipeError, match=rf"^{operator}: {argument}: must be a whole number \(got 2\.5\)\.$"):
        OPERATORS[operator].function(**NUMBERS[key] | {argument: 2.5})


def test_the_error_says_what_is_due_and_what_was_given():
    model = random_phi(num_hidden_layers=4)
    with pytest.raises(RecipeError, match=r"^deepen: block: must be greater than 0 \(got 0\)\.$") as error:
        growth.plan(growth.deepen(to=8, order="middle", init="copy", block=0), model)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    with pytest.raises(RecipeError, match=r"^widen: factor: must be a number \(got '2'\)\.$"):
        growth.plan(growth.widen("ffn", factor="2"), model)


CALLS = [
    (
        lambda: growth.widen("ffn", 2),
        r"widen: 2 has no name: .* widen\('ffn', to=2\) or widen\('ffn', factor=2\)\. Known: axis",
    ),
    (lambda: growth.widen("ffn", 1.5), r"such as widen\('ffn', factor=1\.5\)"),
    (lambda: growth.widen("ffn", "tile", factor=2), r"such as widen\('ffn', init='tile'\)"),
    (lambda: growth.deepen(2), r"deepen: 2 has no name: .* deepen\(to=2\) or deepen\(factor=2\)"),
    (lambda: growth.deepen({}), r"deepen: \{\} has no name: name it\. Known: to, factor"),
    (lambda: growth.regroup(2), r"such as regroup\(factor=2\)"),
    (lambda: growth.retie(2), r"retie: 2 has no name: name it\. Known: none"),
    (
        lambda: growth.widen("ffn", facter=2),
        r"widen: unknown argument 'facter'\. Known: axis, .* Did you mean 'factor'\?",
    ),
    (lambda: growth.deepen(layers=2), r"deepen: unknown argument 'layers'\. Known: to, factor"),
    (lambda: growth.widen(factor=2), r"widen: 'axis' is missing\. Known: axis, to"),
    (lambda: growth.widen("ffn", axis="heads", to=4), r"widen: 'axis' is given twice, as 'ffn' and as 'heads'"),
    (lambda: growth.widen(fac=2), r"unknown argument 'fac'(.|\n)*'axis' is missing"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message[:30] for _, message in CALLS])
def test_a_call_with_arguments_of_no_or_another_name_says_how_to_name_them(call, message):
    with pytest.raises(RecipeError, match=message):
        call()


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_answers_so(name):
    with pytest.raises(RecipeError, match=rf"^{name}: .*has no name"):
        OPERATORS[name].function(*range(20))
    with pytest.raises(RecipeError, match=rf"^{name}: unknown argument 'nonsense'"):
        OPERATORS[name].function(nonsense=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("double-width", r"argument 1 is 'double-width', and no operator"),
        ([growth.widen("ffn", factor=2)], r"chain\(\*operators\)"),
        (None, "argument 1 is None"),
    ],
    ids=["a name", "a list", "nothing"],
)
def test_a_chain_is_of_operators(given, said):
    with pytest.raises(RecipeError, match=said):
        growth.chain(given)


def test_a_chain_names_the_step_that_cannot_be_applied():
    steps = [growth.widen("ffn", factor=2), growth.widen("heads", factor=0.5)]
    for recipe in (growth.chain(*steps), steps):
        with pytest.raises(RecipeError, match=r"^chain, step 2 \(widen\('heads', factor=0\.5\)\): Cannot shrink"):
            growth.plan(recipe, random_phi())


def test_an_operator_shows_its_arguments():
    assert "widen('ffn', factor=2)" in repr(growth.widen("ffn", factor=2))
