"""A recipe is YAML 1.2, whatever its first lines say, and what it expects is compared as what it is."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growth.errors import RecipeError
from growth.planning.recipe import parse_recipe

BODY = "description: no\nexpect: {on: off, eight: 010}\nsteps: [{op: deepen, to: 4}]\n"
REFUSED = (
    "%YAML 1.1",
    "%YAML 1.0",
    "%YAML 1.3",
    "%YAML  1.1 # comment",
    "%TAG ! tag:example.org,2000:",
    "%FOO bar",
    "%yaml 1.1",
)


@pytest.mark.parametrize("line", REFUSED)
@pytest.mark.parametrize("before", ["", "\ufeff", "# comment\n", "%YAML 1.2\n"])
def test_other_directives_are_refused(before, line):
    name = line.split()[0]
    duplicate = before == "%YAML 1.2\n" and name == "%YAML"
    with pytest.raises(RecipeError, match=f"r (uses the directive {name}|is not YAML 1.2)") as refused:
        parse_recipe(f"{before}{line}\n---\n{BODY}", "r")
    assert duplicate or "YAML 1.2" in str(refused.value)


@given(st.text(st.characters(exclude_characters="\r\n\x85\u2028\u2029"), max_size=12))
@settings(max_examples=150, deadline=None)
def test_no_directive_changes_what_a_recipe_means(directive):
    """Whatever stands behind the %: it is refused, or means nothing."""
    plain = parse_recipe(BODY, "r")
    with suppress(RecipeError):
        assert parse_recipe(f"%{directive}\n---\n{BODY}", "r") == plain


@pytest.mark.parametrize("head", ["", "---\n", "%YAML 1.2\n---\n"])
def test_words_and_zeros_mean_what_they_do_in_1_2(head):
    recipe = parse_recipe(head + BODY, "r")
    assert (recipe.description, recipe.expect) == ("no", {"on": "off", "eight": 10})


def expecting(value):
    content = {"description": "d", "steps": [{"op": "deepen", "to": 4}], "expect": {"key": value}}
    return parse_recipe(json.dumps(content), "r")


def held(expected, found):
    try:
        expecting(expected).check({"key": found})
    except RecipeError as error:
        assert "r expects key = " in str(error)  # noqa: PT017
        return False
    return True


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (1, True, False),
        (True, 1, False),
        (0, False, False),
        (False, 0.0, False),
        (True, True, True),
        (1, 1.0, True),
        (0.5, 0.5, True),
        (None, False, False),
        (None, None, True),
        ("1", 1, False),
        ([1, 0], [True, 0], False),
        ([1, 0], [1, 0, 0], False),
        ({"a": {"b": [1]}}, {"a": {"b": [True]}}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": [1, "x"]}, {"a": [1.0, "x"]}, True),
        ([], {}, False),
    ],
)
def test_flags_are_not_numbers(expected, found, same):
    assert held(expected, found) == same


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "1", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


@given(values, values)
@settings(max_examples=200, deadline=None)
def test_what_is_expected_is_equal_where_its_json_is(expected, found):
    assert held(expected, found) == (json.dumps(expected, sort_keys=True) == json.dumps(found, sort_keys=True))
