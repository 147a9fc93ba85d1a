import numpy as np
import pytest
from surfaces import SMALL, best_size, grid, loss_of

from playserve_trainer.laws.cost import best_size as search
from playserve_trainer.laws.cost import sample_cost
from playserve_trainer.laws.refusals import TooFewCellsError


def test_6nd_gives_the_closed_form():
    cost = sample_cost(grid(SMALL, (1e10, 1e11)))
    assert cost(12345.0) == pytest.approx(6 * 12345.0)
    n, d, loss = search(lambda n, d: loss_of(n, d, **SMALL), 1e13, cost)
    assert n == pytest.approx(best_size(1e13, **SMALL), rel=1e-3)
    assert 6 * n * d == pytest.approx(1e13)
    assert loss == pytest.approx(loss_of(n, d, **SMALL))


def test_another_cost_moves_the_best_size():
    def per_sample(n):
        return 600 * n**0.8

    table = grid(SMALL, (1e10, 1e11), cost=per_sample)
    cost = sample_cost(table)
    assert cost(1e7) == pytest.approx(per_sample(1e7), rel=1e-6)  # far beyond the sizes that were trained
    n, _, loss = search(lambda n, d: loss_of(n, d, **SMALL), 1e11, cost)
    grid_n = np.geomspace(n / 10, n * 10, 2001)
    assert loss <= loss_of(grid_n, 1e11 / per_sample(grid_n), **SMALL).min() * (1 + 1e-9)


def test_one_size_has_no_cost_curve():
    table = grid(SMALL, (1e10, 1e11))
    with pytest.raises(TooFewCellsError, match="two sizes"):
        sample_cost(table.take(table.params == table.params[0]))
