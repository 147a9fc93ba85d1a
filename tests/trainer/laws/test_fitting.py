import json

import numpy as np
import pytest
from surfaces import SMALL, grid

from playserve_trainer.laws.estimators import Settings
from playserve_trainer.laws.fitting import FitOptions, fit_laws
from playserve_trainer.laws.table import CellTable, joined

BUDGETS = (1e10, 2e10, 5e10, 1e11, 2e11, 5e11, 1e12)
QUICK = FitOptions(resamples=12, starts=6, flops=(3e12,))


@pytest.fixture(scope="module")
def found():
    table = grid(SMALL, (*BUDGETS, 3e12), sizes=7, noise=0.005, seeds=2, held_out=(3e12,))
    returns = 1 / (table.loss**2)
    return fit_laws(table.with_numbers(return_mean=returns, return_se=returns * 0.02), QUICK)


def test_it_is_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_number_has_an_interval_and_what_hangs_on_one_budget(found):
    (group,) = found["groups"]
    of = group["laws"]["parabola"]["numbers"]["n_exponent"]
    assert of["interval"]["low"] <= of["interval"]["high"]
    assert of["value"] == pytest.approx(0.6, abs=0.05)
    assert of["without_one_budget"][0] <= of["value"] <= of["without_one_budget"][1]


def test_the_slow_fit_agrees(found):
    assert found["groups"][0]["many_starts"]["verdict"] == "agree"


def test_held_out_cells_are_judged_and_not_fitted(found):
    (group,) = found["groups"]
    assert [of["budget"] for of in group["hold_out"]] == [3e12]
    assert all(point["budget"] < 3e12 for point in group["laws"]["parabola"]["optima"])
    assert group["held_out_cells"] == 14


def test_returns_follow_loss(found):
    returns = found["groups"][0]["returns"]
    assert returns["rank_correlation_with_loss"] == pytest.approx(-1)
    assert returns["from_loss"]["exponent"] == pytest.approx(2)


def test_refusals_stand_where_numbers_would():
    found = fit_laws(grid(SMALL, BUDGETS[:2], sizes=3), QUICK)
    (group,) = found["groups"]
    assert group["laws"]["parabola"]["refused"] == "TooFewCellsError"
    assert group["hold_out"]["refused"] == "TooFewCellsError"
    assert group["constrained"]["refused"]
    assert group["break_points"] is None
    assert group["returns"] is None


def test_tasks_are_fitted_apart():
    one = grid(SMALL, BUDGETS)
    other = grid({**SMALL, "beta": 0.3}, BUDGETS)
    words = {**other.words, "task": ("other",) * len(other)}
    both = joined([one, type(other)(numbers=other.numbers, words=words, clusters=other.clusters)])
    found = fit_laws(both, FitOptions(resamples=2, starts=0))
    exponents = [group["laws"]["parametric"]["numbers"]["n_exponent"]["value"] for group in found["groups"]]
    assert exponents == pytest.approx([0.6, 0.3 / 0.7], abs=0.02)


def test_the_block_to_reproduce_names_everything(found):
    block = found["reproducibility"]
    wanted = {"table_sha256", "flops_convention", "n_convention", "window", "objective", "training_seeds", "resamples"}
    assert wanted <= set(block)
    assert block["training_seeds"] == [0, 1]


def test_a_cell_without_a_loss_is_left_out():
    table = grid(SMALL, BUDGETS)
    table = table.with_numbers(loss=np.where(np.arange(len(table)) == 3, np.nan, table.loss))
    found = fit_laws(table, FitOptions(resamples=2, starts=0))
    assert "numbers" in found["groups"][0]["laws"]["parametric"]


def test_one_budget_says_nothing_of_how_the_best_size_grows():
    rng = np.random.default_rng(0)
    params, samples = np.repeat([1e5, 3e5, 1e6, 3e6], 4), np.tile([1e4, 3e4, 1e5, 3e5], 4)
    flops = 6 * params * samples * np.repeat([3.0, 2.5, 2.0, 1.5], 4)  # C is not 6ND
    loss = (0.1 + 30 * params**-0.5 + 20 * samples**-0.5) * np.exp(rng.normal(0, 0.01, 16))
    table = CellTable.from_columns(
        {
            "flops": list(flops),
            "params": list(params),
            "samples": list(samples),
            "loss": list(loss),
            "budget": [1e14] * 16,
        }
    )
    everything = Settings(near=1e9, near_quadratic=1e9)
    (group,) = fit_laws(table, FitOptions(settings=everything, resamples=4, starts=0))["groups"]
    numbers = group["laws"]["parametric"]["numbers"]
    assert {"alpha", "beta"} <= numbers.keys()
    assert "n_exponent" not in numbers
