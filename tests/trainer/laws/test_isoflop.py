import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surfaces import SMALL, best_size, grid, table_of

from playserve_trainer.laws.isoflop import Window, budget_curves, optima, optimum_of
from playserve_trainer.laws.power import fit_power_law
from playserve_trainer.laws.refusals import NoInteriorMinimumError, NotConvexError, TooFewCellsError

BUDGETS = (1e10, 3e10, 1e11, 3e11, 1e12)


@pytest.mark.parametrize("estimator", ["parabola", "argmin"])
def test_the_exponent_of_a_known_surface_comes_back(estimator):
    found, refused = optima(budget_curves(grid(SMALL, BUDGETS, sizes=9)), estimator=estimator)
    law = fit_power_law(np.array([o.budget for o in found]), np.array([o.params for o in found]))
    assert not refused
    assert law.exponent == pytest.approx(0.6, abs=0.01)


def test_a_parabola_through_a_parabola_is_exact():
    n = np.geomspace(1e3, 1e5, 5)
    loss = np.exp(0.1 * np.log(n / 2e4) ** 2 + 0.3)
    rows = [{"flops": 1e10, "budget": 1e10, "params": p, "samples": 1e10 / p**0.5, "loss": v}
            for p, v in zip(n, loss, strict=True)]  # fmt: skip
    (curve,) = budget_curves(table_of(rows))
    optimum = optimum_of(curve)
    assert (optimum.params, optimum.value) == pytest.approx((2e4, np.exp(0.3)))
    assert optimum.samples == pytest.approx(1e10 / 2e4**0.5)  # interpolated: C / D is no 6N here
    assert optimum.curvature == pytest.approx(0.2)


def test_seeds_are_averaged_and_counted():
    (curve, *_) = budget_curves(grid(SMALL, BUDGETS, noise=0.02, seeds=3))
    assert curve.seeds.tolist() == [3.0] * 7
    assert len(curve.params) == 7


def test_cells_without_a_budget_are_grouped_by_what_they_took():
    rows = [{"flops": c * w, "params": n, "samples": c * w / n, "loss": 1.0}
            for c in (1e10, 1e11) for w, n in ((0.97, 1e3), (1.0, 2e3), (1.02, 4e3))]  # fmt: skip
    assert [len(curve.params) for curve in budget_curves(table_of(rows))] == [3, 3]


@pytest.mark.parametrize(("shift", "which"), [(100.0, "smallest"), (0.01, "largest")])
def test_an_edge_is_no_minimum(shift, which):
    shifted = {**SMALL, "a": SMALL["a"] / shift**0.4} if shift > 1 else {**SMALL, "a": SMALL["a"] * 100**0.4}
    rows = grid(SMALL, (1e11,))
    loss = shifted["e"] + shifted["a"] * rows.params**-0.4 + SMALL["b"] * rows.samples**-0.6
    (curve,) = budget_curves(rows.with_numbers(loss=loss))
    with pytest.raises(NoInteriorMinimumError, match=which):
        optimum_of(curve)
    found, refused = optima([curve], estimator="argmin")
    assert not found
    assert isinstance(refused[0][1], NoInteriorMinimumError)
    assert optima([curve], estimator="argmin", keep_edges=True)[0][0].edge


def test_a_hill_and_two_sizes_are_refused():
    n = np.geomspace(1e3, 1e5, 5)
    hill = [1.3, 1.0, 1.5, 1.4, 1.2]
    rows = [
        {"flops": 1e10, "budget": 1e10, "params": p, "samples": 1e6, "loss": v} for p, v in zip(n, hill, strict=True)
    ]
    (curve,) = budget_curves(table_of(rows))
    with pytest.raises(NotConvexError):
        optimum_of(curve, window=Window("all"))
    (curve,) = budget_curves(table_of(rows[:2]))
    with pytest.raises(TooFewCellsError, match="2 sizes"):
        optimum_of(curve)


def test_the_window_keeps_far_sizes_out():
    table = grid(SMALL, (1e11,), sizes=9)
    worst = int(np.argmax(table.params))
    spoilt = table.with_numbers(loss=np.where(np.arange(len(table)) == worst, 50.0, table.loss))
    (curve,) = budget_curves(spoilt)
    near, ratio = optimum_of(curve, window=Window("steps", 2)), optimum_of(curve, window=Window("ratio", 1.5))
    everything = optimum_of(curve, window=Window("all"))
    truth = best_size(1e11, **SMALL)
    assert near.params == pytest.approx(truth, rel=0.15)
    assert ratio.params == pytest.approx(truth, rel=0.3)
    assert abs(np.log(everything.params / truth)) > abs(np.log(near.params / truth))


def test_returns_are_best_where_they_are_most():
    rows = [{"flops": 1e10, "budget": 1e10, "params": n, "samples": 1e6, "return_mean": r}
            for n, r in ((1e3, 1.0), (2e3, 3.0), (4e3, 2.0))]  # fmt: skip
    (curve,) = budget_curves(table_of(rows), "return_mean")
    assert optimum_of(curve, target="return_mean", estimator="argmin").params == 2e3
    assert 2e3 < optimum_of(curve, target="return_mean").params < 4e3


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e3), order=st.permutations(range(35)))
def test_units_and_order_change_nothing(scale, order):
    table = grid(SMALL, BUDGETS)
    moved = table.with_numbers(params=table.params * scale, samples=table.samples / scale).take(np.array(order))
    exponents = []
    for cells in (table, moved):
        found, _ = optima(budget_curves(cells))
        exponents.append(
            fit_power_law(np.array([o.budget for o in found]), np.array([o.params for o in found])).exponent
        )
    assert exponents[0] == pytest.approx(exponents[1], rel=1e-9)
