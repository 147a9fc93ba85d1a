"""What a sample costs, by size: C / D as a function of N, from the cells themselves.

C = 6ND makes it 6N. Convolutional nets and attention over a window cost something else, and then N_opt(C) follows from
the law of loss only together with this.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable, Floats

__all__ = ["SampleCost", "best_size", "sample_cost"]

# A search for the best size looks this much beyond the sizes that were trained (a factor).
_REACH = 1e3


@dataclass(frozen=True, slots=True)
class SampleCost:
    """Piecewise a power law between the sizes that were trained, and beyond them as between the last two.

    Attributes:
        log_params: Sizes, in order.
        log_cost: log(C / D) of each.
    """

    log_params: Floats
    log_cost: Floats

    def __call__(self, params: float) -> float:
        """Return the training FLOPs of one sample at N parameters."""
        x, y = self.log_params, self.log_cost
        at = math.log(params)
        left = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
        slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
        return math.exp(float(y[left] + slope * (at - x[left])))


def sample_cost(table: CellTable) -> SampleCost:
    """Return the cost of a sample in a table.

    Raises:
        TooFewCellsError: It has a single size.
    """
    sizes = np.unique(table.params)
    if len(sizes) < 2:
        raise TooFewCellsError("the cost of a sample as a function of size wants two sizes; the table has one")
    per_sample = np.log(table.flops / table.samples)
    cost = [float(np.median(per_sample[table.params == size])) for size in sizes]
    return SampleCost(np.log(sizes), np.array(cost))


def best_size(loss: Callable[[float, float], float], flops: float, cost: SampleCost) -> tuple[float, float, float]:
    """Return N, D and loss of the best size at C FLOPs, searched up to 1,000 times beyond the sizes that were trained.

    Args:
        loss: Of N and D.
        flops: C.
        cost: FLOPs of a sample.
    """
    low, high = float(cost.log_params[0]) - math.log(_REACH), float(cost.log_params[-1]) + math.log(_REACH)

    def at(log_params: float) -> float:
        params = math.exp(log_params)
        return loss(params, flops / cost(params))

    grid = np.linspace(low, high, 61)
    best = int(np.argmin([at(float(point)) for point in grid]))
    around = (float(grid[max(0, best - 1)]), float(grid[min(60, best + 1)]))
    found = optimize.minimize_scalar(at, bounds=around, method="bounded", options={"xatol": 1e-9})
    params = math.exp(float(found.x))
    return params, flops / cost(params), float(found.fun)
