"""Values that show themselves: short, escaped, and alike at a prompt, in print and in a notebook."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import growth
from growth.algebra.expansion import FRESH, Expansion
from growth.planning.plan_picture import plan_picture, units_of
from growth.planning.recipe import parse_recipe
from growth.runtime.shown import WIDTH
from tests.support.paths import ROOT

MINI = ROOT / "examples" / "phi-mini"
VALUES = {
    "plan": lambda: growth.plan("double-both", MINI),
    "recipe": lambda: growth.load_recipe("phi-1.5-to-phi-2"),
    "schedule": lambda: growth.load_schedule("double"),
    "advice": lambda: growth.advise("1.3B", "150B", "2.7B"),
    "proposal": lambda: growth.propose_schedule(str(MINI)),
}


class Text(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.said, self.tags = "", set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.said += data


@pytest.mark.parametrize("name", VALUES)
def test_a_value_shows_itself_in_lines_that_fit(name):
    value = VALUES[name]()
    assert repr(value) == str(value) == value.summary()
    assert max(map(len, repr(value).splitlines())) <= WIDTH


@pytest.mark.parametrize("name", VALUES)
def test_html_says_what_the_text_says(name):
    value = VALUES[name]()
    words = set(repr(value).split())
    assert words <= set(Text(value._repr_html_()).said.split())


@pytest.mark.parametrize("recipe", ["double-both", "phi-mini", "double-depth"])
def test_a_plan_is_short(recipe):
    assert len(repr(growth.plan(recipe, MINI)).splitlines()) <= 40


def test_text_from_outside_stays_text():
    recipe = parse_recipe(
        'description: "<script>x</script> \\e[31m [bold]b[/bold]"\nsteps: [{op: deepen, factor: 2}]', "<b>n</b>"
    )
    shown, html = repr(recipe), recipe._repr_html_()
    assert "\x1b" not in shown
    assert "[bold]b[/bold]" in shown
    assert not {"script", "b"} & Text(html).tags


def test_the_picture_has_every_unit_once():
    plan = growth.plan("double-both", MINI)
    bars = re.findall(r'width="([\d.]+)" height="14"', plan_picture(plan))
    grown = sum(not e.is_identity for e in plan.growth.expansions.values()) + 1  # and the layers
    assert sum(map(float, bars)) == pytest.approx(360 * grown, rel=0.01)


def test_a_unit_is_old_once_a_copy_or_new():
    rng = np.random.default_rng(0)
    for _ in range(50):
        old = int(rng.integers(1, 9))
        source = np.concatenate([np.arange(old), rng.integers(FRESH, old, int(rng.integers(0, 9)))])
        kinds = units_of(Expansion.copies(old, rng.permutation(source)))
        assert kinds.count("the source's") == old
        assert kinds.count("new") == int((source == FRESH).sum())
        assert len(kinds) == len(source)
