import argparse
import csv
import json

import numpy as np
import pytest

from playserve.errors import BadSettingError
from playserve_trainer.commands import laws
from playserve_trainer.laws.correlation import interval, pearson, spearman
from playserve_trainer.laws.meta import correlations_of, meta_analysis
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable

SIZES = (1e4, 3e4, 1e5, 3e5, 1e6, 3e6)
BUDGETS = (1e13, 3e13, 1e14, 3e14, 1e15)


def table(returns_of, *, noise=0.0, seeds=1, task="game"):
    """A grid of cells whose return is a function of loss, and whose loss falls with compute and has a best size."""
    rng = np.random.default_rng(0)
    rows = [(n, c, seed) for n in SIZES for c in BUDGETS for seed in range(seeds)]
    n, c = (np.array([row[at] for row in rows]) for at in (0, 1))
    best = 1e5 * (c / 1e14) ** 0.5
    loss = (c / 1e13) ** -0.15 * np.exp(0.05 * np.log(n / best) ** 2) * np.exp(noise * rng.normal(size=len(rows)))
    return CellTable.from_columns({
        "flops": c.tolist(), "params": n.tolist(), "budget": c.tolist(), "seed": [row[2] for row in rows],
        "loss": loss.tolist(), "return_mean": returns_of(loss).tolist(), "task": [task] * len(rows),
        "run": [f"{row[0]:g}-{row[2]}" for row in rows],
    })  # fmt: skip


def test_a_power_law_of_return_over_loss_is_a_correlation_of_minus_1_everywhere():
    found = meta_analysis(table(lambda loss: 100 * loss**-2.05), resamples=20)["groups"][0]
    for part in (found["all"], found["optimum"], found["within_budgets"]["mean"], found["within_sizes"]["mean"]):
        assert part["pearson"]["value"] == pytest.approx(-1.0)
        assert part["spearman"]["value"] == pytest.approx(-1.0)
    assert (found["cells"], found["runs"], found["all"]["cells"], found["optimum"]["cells"]) == (30, 6, 30, 5)
    assert set(found["within_sizes"]["each"]) == {f"{size:.6g}" for size in SIZES}
    assert found["all"]["pearson"]["high"] == pytest.approx(-1.0)


def test_what_compute_explains_is_told_from_what_loss_explains():
    """Return rises with compute alone: over all cells loss goes along with it, within a budget it says nothing."""
    cells = table(lambda loss: loss)
    cells = cells.with_numbers(return_mean=np.log10(cells.flops) - 12)
    found = correlations_of(cells)
    assert found["all/spearman"] < -0.5
    assert "within_budgets/mean/spearman" not in found
    assert found["within_sizes/mean/spearman"] < -0.95


def test_intervals_hold_the_truth_and_widen_with_noise():
    rng = np.random.default_rng(1)
    cells = table(lambda loss: 100 * loss**-2.0, seeds=3)
    noisy = cells.with_numbers(return_mean=cells.numbers["return_mean"] * np.exp(rng.normal(size=len(cells))))
    value = meta_analysis(noisy, resamples=60)["groups"][0]["all"]["pearson"]
    assert -1 < value["low"] < value["value"] < value["high"] < 0
    assert value == meta_analysis(noisy, resamples=60)["groups"][0]["all"]["pearson"]


def test_returns_of_0_or_below_are_ranked_and_have_no_logarithm():
    found = meta_analysis(table(lambda loss: 0.5 - loss), resamples=0)["groups"][0]
    assert found["all"]["spearman"] == {"value": pytest.approx(-1.0), "low": None, "high": None}
    assert any("only a rank" in note for note in found["notes"])


def test_tasks_are_taken_one_by_one_and_few_cells_are_refused():
    cells = table(lambda loss: 1 / loss)
    assert len(cells.take(np.arange(3))) == 3
    with pytest.raises(TooFewCellsError, match="3 cells have a loss and a return"):
        meta_analysis(cells.take(np.arange(3)), resamples=0)
    no_returns = cells.with_numbers(return_mean=np.full(len(cells), np.nan))
    with pytest.raises(TooFewCellsError, match="0 cells"):
        meta_analysis(no_returns, resamples=0)
    half = cells.with_numbers(return_mean=np.where(np.arange(30) < 20, cells.numbers["return_mean"], np.nan))
    assert meta_analysis(half, resamples=0)["cells_left_out"] == 10


def test_correlations_are_those_of_scipy_row_by_row():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(3, 9)), rng.integers(0, 4, (3, 9))
    for row in range(3):
        assert pearson(x, y)[row] == pytest.approx(stats.pearsonr(x[row], y[row]).statistic)
        assert spearman(x, y)[row] == pytest.approx(stats.spearmanr(x[row], y[row]).statistic)
    assert np.isnan(pearson([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])[0])
    assert interval(np.array([np.nan] * 6 + [1.0] * 4)) == {"low": None, "high": None, "draws": 4}


@pytest.fixture
def call(capsys):
    def run(*arguments):
        parser = argparse.ArgumentParser()
        laws.configure(parser)
        assert laws.run(parser.parse_args([*map(str, arguments), "--processes", "1", "--resamples", "10"])) == 0
        return capsys.readouterr().out

    return run


def test_a_published_table_is_analysed_by_one_command(call, tmp_path):
    cells = table(lambda loss: 100 * loss**-2.05)
    path = tmp_path / "published.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Training FLOP", "Model Size", "dev_loss", "score", "psnr_20"])
        psnr = 30 - 5 * cells.loss
        writer.writerows(zip(cells.flops, cells.params, cells.loss, cells.numbers["return_mean"], psnr, strict=True))
    out = call("meta", path, "--json", tmp_path / "meta.json")
    assert "30 cells of 30 runs" in out
    assert json.loads((tmp_path / "meta.json").read_text())["groups"][0]["all"]["pearson"]["value"] < -0.999
    assert "30 cells of 6 runs" in call("meta", path, "--run-per-size")
    out = call("meta", path, "--run-per-size", "--column", "psnr_20", "--json", tmp_path / "psnr.json")
    assert "loss and psnr_20" in out
    assert -0.999 < json.loads((tmp_path / "psnr.json").read_text())["groups"][0]["all"]["pearson"]["value"] < -0.9
    with pytest.raises(BadSettingError, match="there is no column 'fvd'"):
        call("meta", path, "--column", "fvd")
