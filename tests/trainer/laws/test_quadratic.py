import numpy as np
import pytest
from surfaces import SMALL, best_size, grid

from playserve_trainer.laws.frontier import near_frontier
from playserve_trainer.laws.quadratic import fit_quadratic
from playserve_trainer.laws.refusals import NotConvexError, TooFewCellsError

BUDGETS = (1e10, 3e10, 1e11, 3e11, 1e12)


def test_a_quadratic_is_found_and_its_optimum_is_the_least_of_a_budget():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(5, 12, 60)), np.exp(rng.uniform(8, 16, 60))
    x, y = np.log(n), np.log(d)
    loss = np.exp(5 - 0.5 * x - 0.4 * y + 0.03 * x * x + 0.01 * x * y + 0.02 * y * y)
    law = fit_quadratic(n, d, loss)
    assert law.coefficients == pytest.approx((5, -0.5, -0.4, 0.03, 0.01, 0.02), abs=1e-8)
    best, data, least = law.optimum_6nd(1e12)
    assert 6 * best * data == pytest.approx(1e12)
    assert least < min(law.predict(best * k, data / k) for k in (0.8, 1.25))


def test_near_the_frontier_it_agrees_with_the_surface():
    near = near_frontier(grid(SMALL, BUDGETS, sizes=11, reach=16), 1.1)
    law = fit_quadratic(near.params, near.samples, near.loss)
    assert law.n_exponent == pytest.approx(0.6, abs=0.05)
    assert law.optimum_6nd(1e11)[0] == pytest.approx(best_size(1e11, **SMALL), rel=0.2)


def test_near_frontier_keeps_what_is_within_the_ratio():
    table = grid(SMALL, BUDGETS)
    kept = near_frontier(table, 1.2)
    for budget in BUDGETS:
        least = table.loss[table.numbers["budget"] == budget].min()
        assert (kept.loss[kept.numbers["budget"] == budget] <= 1.2 * least).all()
        assert (kept.numbers["budget"] == budget).sum() == (
            table.loss[table.numbers["budget"] == budget] <= 1.2 * least
        ).sum()


def test_what_has_no_optimum_is_refused():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(5, 12, 40)), np.exp(rng.uniform(8, 16, 40))
    with pytest.raises(NotConvexError, match="not convex"):
        fit_quadratic(n, d, np.exp(-0.02 * (np.log(n) - np.log(d)) ** 2))
    with pytest.raises(TooFewCellsError, match="11 cells"):
        fit_quadratic(n[:11], d[:11], n[:11])
    with pytest.raises(TooFewCellsError, match="on a line"):
        fit_quadratic(n, n * 20, n)
