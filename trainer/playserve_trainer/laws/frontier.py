"""The frontier: cells that no cheaper cell beats, over all sizes, and the power laws of N, D and loss along it.

It needs no equal budgets: every checkpoint of every curve is a cell (Hoffmann et al., approach 1; Pearce et al.). The
first part of a curve is the warm-up of training, not its compute-optimal end, and is left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from playserve_trainer.laws.isoflop import budgets_of
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable

__all__ = ["frontier", "near_frontier", "without_warm_up"]

_LEAST = 4


def without_warm_up(table: CellTable, fraction: float = 0.05) -> CellTable:
    """Return the cells that lie beyond the first `fraction` of their run's FLOPs."""
    last: dict[str, float] = {}
    for run, flops in zip(table.words["run"], table.flops, strict=True):
        last[run] = max(last.get(run, 0.0), float(flops))
    limits = np.array([fraction * last[run] for run in table.words["run"]])
    return table.take(table.flops > limits)


def frontier(table: CellTable, bins_per_decade: int = 6) -> CellTable:
    """Return the cells on the lower envelope of loss over C, at most one for each bin of log C, in order of C.

    Raises:
        TooFewCellsError: Fewer than four cells are on it.
    """
    table = table.take(np.isfinite(table.loss))
    bins = np.floor(np.log10(table.flops) * bins_per_decade + 1e-9)
    best: dict[float, int] = {}
    for row in np.argsort(table.flops, kind="stable"):
        kept = best.get(bins[row])
        if kept is None or table.loss[row] < table.loss[kept]:
            best[bins[row]] = int(row)
    chosen: list[int] = []
    least = np.inf
    for row in (best[at] for at in sorted(best)):
        if table.loss[row] < least:
            chosen.append(row)
            least = float(table.loss[row])
    if len(chosen) < _LEAST:
        raise TooFewCellsError(f"the frontier has {len(chosen)} cells; at least {_LEAST} are wanted")
    rows: NDArray[np.intp] = np.array(chosen)
    return table.take(rows)


def near_frontier(table: CellTable, ratio: float) -> CellTable:
    """Return the cells whose loss is at most `ratio` times the least of their budget; infinity: all with a loss."""
    table = table.take(np.isfinite(table.loss))
    budgets = budgets_of(table)
    least = {budget: float(table.loss[budgets == budget].min()) for budget in np.unique(budgets)}
    return table.take(table.loss <= ratio * np.array([least[budget] for budget in budgets]))
