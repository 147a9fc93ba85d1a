import numpy as np
import pytest
from surfaces import SMALL, best_size, loss_of, table_of

from playserve_trainer.laws.frontier import frontier, without_warm_up
from playserve_trainer.laws.power import fit_power_law
from playserve_trainer.laws.refusals import TooFewCellsError


def curves(points=60):
    """Whole learning curves of many sizes."""
    rows = []
    for n in np.geomspace(1e3, 1e6, 25):
        for c in np.geomspace(1e9, 1e12, points):
            d = c / (6 * n)
            rows.append({"run": f"{n:.0f}", "flops": c, "params": n, "samples": d, "loss": loss_of(n, d, **SMALL)})
    return table_of(rows)


def test_the_envelope_of_curves_follows_the_best_size():
    on_it = frontier(curves())
    assert (np.diff(on_it.loss) < 0).all()
    assert fit_power_law(on_it.flops, on_it.params).exponent == pytest.approx(0.6, abs=0.05)
    middle = len(on_it) // 2
    assert on_it.params[middle] == pytest.approx(best_size(on_it.flops[middle], **SMALL), rel=0.4)


def test_no_cell_on_the_frontier_is_beaten_by_a_cheaper_one():
    table = curves(20)
    on_it = frontier(table)
    binned = np.floor(np.log10(table.flops) * 6 + 1e-9)
    for c, loss in zip(on_it.flops, on_it.loss, strict=True):
        cheaper = binned < np.floor(np.log10(c) * 6 + 1e-9)
        assert not (table.loss[cheaper] < loss).any()


def test_the_warm_up_of_each_run_is_left_out():
    table = without_warm_up(curves(), 0.05)
    assert table.flops.min() > 0.05 * 1e12


def test_a_handful_of_cells_is_no_frontier():
    with pytest.raises(TooFewCellsError):
        frontier(curves(2))
