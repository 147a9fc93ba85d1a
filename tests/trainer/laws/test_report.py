import json
import re

import pytest
from surfaces import SMALL, grid

from playserve_trainer.laws.fitting import FitOptions, fit_laws
from playserve_trainer.laws.report import write_report

BUDGETS = (1e10, 2e10, 5e10, 1e11, 2e11, 5e11, 1e12)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    pytest.importorskip("matplotlib")
    table = grid(SMALL, (*BUDGETS, 3e12), noise=0.005, seeds=2, held_out=(3e12,))
    table = table.with_numbers(return_mean=1 / table.loss)
    found = fit_laws(table, FitOptions(resamples=8, starts=0, flops=(3e12,)))
    out = tmp_path_factory.mktemp("report")
    page = write_report(found, out, title="Toy <study>", cited=["Tuyls et al.: a = 0.61"])
    return out, page.read_text()


def test_the_page_asks_the_network_for_nothing(report):
    _, html = report
    # Namespaces of SVG are names, not requests.
    assert not re.search(r'(src|href)="https?:', html)
    assert "default-src 'none'" in html
    assert "<script" not in html


def test_it_shows_the_figures_the_hold_out_and_what_is_cited(report):
    out, html = report
    assert html.count("<figure") == 4
    assert {"toy-isoflop.png", "toy-optima.png", "toy-loss-return.png"} <= {path.name for path in out.iterdir()}
    assert "Held out, predicted and got" in html
    assert "Cited, not measured here" in html
    assert "Tuyls et al.: a = 0.61" in html
    assert "Toy &lt;study&gt;" in html


def test_every_number_is_also_for_programs(report):
    out, _ = report
    value = json.loads((out / "report.json").read_text())
    assert value["groups"][0]["hold_out"][0]["budget"] == 3e12
    assert value["cited"] == ["Tuyls et al.: a = 0.61"]


def test_pngs_are_pictures(report):
    out, _ = report
    assert (out / "toy-isoflop.png").read_bytes().startswith(b"\x89PNG")
