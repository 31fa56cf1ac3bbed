"""Plans, reports and progress bars in the kernel of a real notebook."""

import pytest

nbclient = pytest.importorskip("nbclient", reason="the notebook's client is in the extra `test`")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

QUIET = "import logging; logging.getLogger('growth').setLevel(logging.ERROR)"
CELLS = {
    "plan": "import growth\nplan = growth.plan('double-both', 'examples/phi-mini')\nplan",
    "recipe": "growth.load_recipe('double-both')",
    "schedule": "growth.load_schedule('double')",
    "print": "print(plan)",
    "grow": "growth.grow('double-both', 'examples/phi-mini', 'grown'); None",
    "verify": "growth.verify('examples/phi-mini', 'grown', 'double-both', tokens=8)",
    "quiet": f"{QUIET}\ngrowth.grow('double-depth', 'examples/phi-mini', 'quiet'); None",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of each cell, after the whole notebook has run."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()])
    folder = str(tmp_path_factory.mktemp("notebook"))
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return {name: cell.outputs for name, cell in zip(CELLS, book.cells, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plan", "recipe", "schedule"])
def test_a_value_is_shown_once_as_html_and_as_text(outputs, name):
    (shown,) = outputs[name]
    assert shown.output_type == "execute_result"
    assert "<pre" in shown.data["text/html"]
    assert "<svg" in shown.data["text/html"] or name != "plan"
    assert "\x1b" not in shown.data["text/plain"]


@pytest.mark.slow
def test_printing_a_value_prints_its_text(outputs):
    (shown,) = outputs["print"]
    assert (shown.output_type, shown.name) == ("stream", "stdout")
    assert "computes the same function" in shown.text


@pytest.mark.slow
def test_bars_are_drawn_in_one_place_and_end_full(outputs):
    (bars,) = outputs["grow"]
    assert "grow " in bars.data["text/html"]
    assert "100 %" in bars.data["text/html"]


@pytest.mark.slow
def test_a_report_follows_its_bars(outputs):
    bars, report = outputs["verify"]
    assert "100 %" in bars.data["text/html"]
    assert "PASSED" in report.data["text/plain"]


@pytest.mark.slow
def test_logging_turns_bars_off(outputs):
    assert outputs["quiet"] == []
