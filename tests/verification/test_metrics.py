"""Metrics: a function added to verification/metrics.py is in the JSON and in every table, without any other change."""

import json

import pytest
import torch

import growth
from docs.write_tables import page
from growth.verification import metrics
from growth.verification.html_report import write_html
from tests.support.reports import shown, words


@pytest.fixture
def added(monkeypatch):
    """A metric of its own, defined as one in the file would be."""
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))

    @metrics.metric("mean error", "the mean difference of two logits")
    def mean_error(at):
        return at.difference.abs().mean(-1)


def test_a_metric_is_computed_over_all_positions(added):
    source, grown = torch.randn(2, 3, 40, 5, dtype=torch.float64)
    error = metrics.compare_logits(source, grown, torch.zeros(3, 40, dtype=torch.int64))
    assert error.mean_error == pytest.approx(float((grown - source).abs().mean()))
    with pytest.raises(AttributeError, match="There is no metric 'perplexity': there are relative_error, "):
        _ = error.perplexity


def test_a_metric_is_in_the_json_and_in_every_table(added, phi_mini, tmp_path):
    growth.grow("double-depth", phi_mini, tmp_path / "grown")
    report = growth.verify(phi_mini, tmp_path / "grown", tokens=8, dtype="fp32")
    value = f"{report.logits.mean_error:.2e}"
    assert json.loads(json.dumps(report.to_dict()))["logits"]["mean_error"] == report.logits.mean_error
    assert f"mean error {value} the mean difference of two logits" in words(shown(report))
    write_html(report, phi_mini, tmp_path / "grown", tmp_path / "report.html")
    row = f"<td>mean error</td><td>{value}</td><td>the mean difference of two logits</td>"
    assert row in (tmp_path / "report.html").read_text()
    assert "| `mean_error` | mean error | the mean difference of two logits |" in page("trust.md")
