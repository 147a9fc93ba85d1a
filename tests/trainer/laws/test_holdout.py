import numpy as np
import pytest
from surfaces import SMALL, grid, table_of

from playserve_trainer.laws.estimators import Settings
from playserve_trainer.laws.holdout import hold_out, split_hold_out
from playserve_trainer.laws.power import fit_offset_power_law, fit_power_law
from playserve_trainer.laws.refusals import TooFewCellsError

BUDGETS = (1e10, 2e10, 5e10, 1e11, 2e11, 5e11, 1e12)

# Frontier of Tuyls et al.'s NetHack agents: C, N of least dev loss, and that loss (their released results, as cited in
# scaling.md section 1.4; the tables themselves carry no licence and are not here).
TUYLS = ((1e14, 1.89e5, 1.2801), (5e14, 1.89e5, 0.6649), (1e15, 1.89e5, 0.5757), (5e15, 1.57e6, 0.4200),
         (1e16, 1.57e6, 0.3415), (5e16, 1.57e6, 0.2426), (1e17, 5.61e6, 0.2129), (5e17, 1.03e7, 0.1746),
         (1e18, 1.03e7, 0.1629), (2e18, 2.22e7, 0.1540), (5e18, 5.73e7, 0.1450), (1e19, 1.05e8, 0.1413))  # fmt: skip


def test_marked_cells_are_kept_from_the_fit_and_judged():
    table = grid(SMALL, (*BUDGETS, 3e12), sizes=9, held_out=(3e12,))
    (of,) = hold_out(table, Settings())
    assert of.budget == 3e12
    assert of.beyond == pytest.approx(3)
    assert of.predictions["parametric"].loss_error == pytest.approx(0, abs=1e-3)
    assert abs(of.predictions["parabola"].loss_error) < 0.005
    assert of.predictions["parabola"].params_ratio == pytest.approx(1, abs=0.1)
    # What the law must beat.
    assert of.predictions["pure power law"].loss_error < -0.01
    assert of.predictions["last value"].loss_error > 0.05


def test_without_marks_the_largest_budget_is_held_out_and_those_near_it_are_not_used():
    below, above = split_hold_out(grid(SMALL, BUDGETS))
    assert above.numbers["budget"].min() == 1e12
    assert below.numbers["budget"].max() == 2e11


def test_what_is_held_out_does_not_change_the_prediction():
    table = grid(SMALL, BUDGETS)
    spoilt = table.with_numbers(loss=np.where(table.numbers["budget"] == 1e12, table.loss * 7, table.loss))
    first, second = (hold_out(cells, Settings())[0].predictions["parabola"].loss for cells in (table, spoilt))
    assert first == second


def test_three_budgets_are_too_few():
    with pytest.raises(TooFewCellsError, match="more than 3 budgets"):
        hold_out(grid(SMALL, BUDGETS[:3]), Settings())


def test_one_trained_agent_above_judges_too():
    table = grid(SMALL, (*BUDGETS, 3e12), sizes=9, held_out=(3e12,))
    top = np.flatnonzero(table.held_out)
    keep = np.concatenate([np.flatnonzero(~table.held_out), top[4:5]])
    (of,) = hold_out(table.take(keep), Settings())
    assert of.sizes == 1
    assert of.params_edge


def test_nethacks_published_frontier_is_extrapolated_as_it_was():
    """Golden: fitted on C <= 1e18, the law with an offset predicts 1e19 to a few percent, the pure one 40% too low."""
    c, n, loss = np.array(TUYLS).T
    below = c <= 1e18
    offset, pure = fit_offset_power_law(c[below], loss[below]), fit_power_law(c[below], loss[below])
    assert offset.predict(1e19) / 0.1413 - 1 == pytest.approx(-0.015, abs=0.035)
    assert pure.predict(1e19) / 0.1413 - 1 == pytest.approx(-0.42, abs=0.04)
    assert offset.exponent == pytest.approx(0.353, abs=0.03)
    assert offset.offset == pytest.approx(0.121, abs=0.012)
    # 0.605 over all 22 budgets of the released table, of which these are 12.
    assert fit_power_law(c, n).exponent == pytest.approx(0.605, abs=0.06)


def test_a_table_of_single_cells_a_budget_gives_baselines_at_least():
    rows = [{"flops": c, "budget": c, "params": n, "samples": c / (6 * n), "loss": loss} for c, n, loss in TUYLS]
    (of, *_) = hold_out(table_of(rows), Settings())
    assert "parabola" in of.refused
    assert "last value" in of.predictions
