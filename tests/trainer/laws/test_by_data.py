import io

import numpy as np
import pytest
from rich.console import Console

from playserve_trainer.laws.by_data import data_curves
from playserve_trainer.laws.figures import figures_of
from playserve_trainer.laws.fitting import FitOptions, fit_laws
from playserve_trainer.laws.rows import by_data
from playserve_trainer.laws.table import CellTable
from playserve_trainer.laws.tables import print_fit

_SIZES = {"6m": 6e6, "1m": 1e6}


def cells(shares=(0.5, 1.0), **more):
    """Two sizes on shares of 1,000 samples, two seeds, judged after every second epoch: the second time is the best."""
    rows = []
    for share in shares:
        for size, params in _SIZES.items():
            for seed in range(2):
                for epochs, loss in ((2, 3.0), (4, 2.0 - 0.1 * seed), (6, 2.5)):
                    rows.append({
                        "flops": 6 * params * 1000 * share * epochs, "params": params, "size": size, "task": "t",
                        "samples": 1000 * share * epochs, "unique_samples": 1000 * share, "unique": share, "seed": seed,
                        "run": f"{size}.{share}.{seed}", "loss": loss / share, "return_mean": 10 * share + seed,
                        "return_se": 0.5, **more,
                    })  # fmt: skip
    return CellTable.from_columns({name: [row[name] for row in rows] for name in rows[0]})


def test_a_run_counts_by_its_best_cell_and_seeds_are_averaged():
    small, large = data_curves(cells())
    assert (small.size, large.size) == ("1m", "6m")
    half, whole = small.points
    assert (half.unique_samples, whole.unique_samples) == (500, 1000)
    assert (half.epochs, half.runs) == (4, 2)
    assert half.loss == pytest.approx(3.9)
    assert whole.return_mean == pytest.approx(10.5)
    assert whole.return_se == pytest.approx(0.5)  # of two seeds that differ by 1
    assert np.isnan(whole.transfer_mean)


def test_a_seed_that_ends_sooner_is_no_repeat():
    table = cells()
    budgets = np.where(table.numbers["seed"] == 1, 1.0, table.numbers["flops"])
    (small, _) = data_curves(table.with_numbers(budget=budgets))
    assert small.points[0].runs == 1
    assert small.points[0].loss == pytest.approx(4.0)


def test_one_amount_of_data_has_no_curve():
    assert data_curves(cells(shares=(1.0,))) == ()


def test_one_run_has_the_error_of_its_episodes():
    table = cells()
    (curve, _) = data_curves(table.take(table.numbers["seed"] == 1))
    assert curve.points[0].return_se == 0.5


def test_the_report_draws_and_lists_it():
    pytest.importorskip("matplotlib")
    found = fit_laws(cells(transfer_mean=2.0, transfer_se=0.1), FitOptions(resamples=4, starts=0))
    (group,) = found["groups"]
    assert {"loss-data", "return-data"} <= figures_of(group).keys()
    table = by_data(group["by_data"])
    assert table.header[-2:] == ("return +- se", "return where nothing was learnt +- se")
    assert table.rows[0] == ["1m", "1e+06", "500", "4.0", "3.9000", "5.5 +- 0.5", "2 +- 0"]
    console = Console(width=200, record=True, file=io.StringIO())
    print_fit(console, found)
    assert "24 cells, 0 held out; laws over compute see the 12 that learn from all the data" in console.export_text()
