"""The best size at each budget: the raw best of those that were trained, or the vertex of a parabola around it.

Tuyls et al. regress the raw best (argmin of loss, argmax of return); Hoffmann et al. (approach 2) the vertex of a
parabola of log loss over log N. The vertex of a wide parabola is biased (Czech et al., 2603.22339), so it is fitted
in a window around the best size only. A budget whose best size is the smallest or the largest that was trained has no
interior minimum: it is kept for argmin if asked for, and never for a parabola.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from playserve_trainer.laws.refusals import (
    NoInteriorMinimumError,
    NotConvexError,
    NotPositiveError,
    RefusedError,
    TooFewCellsError,
)
from playserve_trainer.laws.table import CellTable, Floats

__all__ = ["BudgetCurve", "Optimum", "Target", "Window", "budget_curves", "budgets_of", "optima", "optimum_of"]

Target = Literal["loss", "return_mean"]

# Cells without a budget of their own belong together where C is equal to within this part.
_SAME_BUDGET = 0.1
_LEAST_SIZES = 3


@dataclass(frozen=True, slots=True)
class Window:
    """Which sizes a parabola sees.

    Attributes:
        kind: "steps": so many sizes to each side of the best one; "ratio": those whose loss is within so many times the
            least; "all".
        value: How many.
    """

    kind: Literal["steps", "ratio", "all"] = "steps"
    value: float = 2.0

    def __str__(self) -> str:
        if self.kind == "steps":
            return f"{self.value:g} sizes to each side of the best"
        return "every size" if self.kind == "all" else f"sizes within {self.value:g} times the least loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCurve:
    """All sizes at one budget, seeds averaged, in order of N.

    Attributes:
        budget: C that the cells were made for.
        flops: C that they took [S].
        params: N [S].
        samples: D [S].
        value: Geometric mean loss, or mean return, over seeds [S].
        seeds: How many runs stand behind each value [S].
    """

    budget: float
    flops: Floats
    params: Floats
    samples: Floats
    value: Floats
    seeds: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """The best size at one budget.

    Attributes:
        budget: C.
        params: N_opt.
        samples: D at N_opt, interpolated between the sizes: C / D is no constant times N for every net.
        value: Loss or return there.
        edge: Whether the best size is the smallest or the largest that was trained.
        estimator: "argmin" or "parabola".
        sizes: How many sizes the estimate rests on.
        curvature: Second derivative of log loss by log N; None for argmin.
    """

    budget: float
    params: float
    samples: float
    value: float
    edge: bool
    estimator: str
    sizes: int
    curvature: float | None = None


def budget_curves(table: CellTable, target: Target = "loss") -> list[BudgetCurve]:
    """Return one curve a budget, in order of budget; cells without a value of the target are left out."""
    values = table.numbers[target]
    table = table.take(np.isfinite(values))
    budgets = budgets_of(table)
    curves = []
    for budget in np.unique(budgets):
        part = table.take(budgets == budget)
        sizes = np.unique(part.params)
        rows = [part.params == size for size in sizes]
        of = part.numbers[target]
        mean = _geometric if target == "loss" else _arithmetic
        curves.append(
            BudgetCurve(
                budget=float(budget),
                flops=np.array([_geometric(part.flops[row]) for row in rows]),
                params=sizes,
                samples=np.array([_geometric(part.samples[row]) for row in rows]),
                value=np.array([mean(of[row]) for row in rows]),
                seeds=np.array([float(row.sum()) for row in rows]),
            )
        )
    return curves


def optimum_of(
    curve: BudgetCurve, *, target: Target = "loss", estimator: str = "parabola", window: Window | None = None
) -> Optimum:
    """Return the best size at one budget.

    Raises:
        TooFewCellsError: There are fewer than three sizes, or fewer in the window.
        NoInteriorMinimumError: The best size is an edge, or the vertex lies outside the window (parabola only).
        NotConvexError: The parabola opens downwards.
        NotPositiveError: A loss has no logarithm.
    """
    at = f"budget {curve.budget:.3g}"
    sizes = len(curve.params)
    if sizes < _LEAST_SIZES:
        raise TooFewCellsError(f"{at}: {sizes} sizes; at least {_LEAST_SIZES} are wanted")
    best = int(np.argmin(curve.value) if target == "loss" else np.argmax(curve.value))
    edge = best in (0, sizes - 1)
    if estimator == "argmin":
        return Optimum(
            budget=curve.budget, params=float(curve.params[best]), samples=float(curve.samples[best]),
            value=float(curve.value[best]), edge=edge, estimator=estimator, sizes=sizes,
        )  # fmt: skip
    if edge:
        which = "smallest" if best == 0 else "largest"
        raise NoInteriorMinimumError(
            f"{at}: the best of {sizes} sizes is the {which}, N = {curve.params[best]:,.0f}; train "
            f"{'smaller' if best == 0 else 'larger'} ones"
        )
    return _vertex(curve, best, window or Window(), target, at)


def optima(
    curves: Sequence[BudgetCurve],
    *,
    target: Target = "loss",
    estimator: str = "parabola",
    window: Window | None = None,
    keep_edges: bool = False,
) -> tuple[list[Optimum], list[tuple[float, RefusedError]]]:
    """Return the optima of all budgets, and those that have none with the reason.

    Args:
        curves: From :func:`budget_curves`.
        target: "loss" (least) or "return_mean" (most).
        estimator: "parabola" or "argmin".
        window: Of the parabola.
        keep_edges: Whether argmin keeps budgets whose best size is an edge, as Tuyls et al. do.
    """
    found: list[Optimum] = []
    refused: list[tuple[float, RefusedError]] = []
    for curve in curves:
        try:
            optimum = optimum_of(curve, target=target, estimator=estimator, window=window)
            if optimum.edge and not keep_edges:
                raise NoInteriorMinimumError(f"budget {curve.budget:.3g}: the best size is an edge of those trained")
        except RefusedError as error:
            refused.append((curve.budget, error))
        else:
            found.append(optimum)
    return found, refused


def _vertex(curve: BudgetCurve, best: int, window: Window, target: Target, at: str) -> Optimum:
    if target == "loss" and not np.all(curve.value > 0):
        raise NotPositiveError(f"{at}: a loss of {curve.value.min():g} has no logarithm")
    # Least is best: returns are turned round, and stay linear because they may be 0.
    y = np.log(curve.value) if target == "loss" else -curve.value
    rows = _rows(curve, best, window)
    x = np.log(curve.params[rows])
    if len(x) < _LEAST_SIZES:
        raise TooFewCellsError(f"{at}: {len(x)} sizes in the window ({window}); at least {_LEAST_SIZES} are wanted")
    centre = float(x.mean())
    quadratic, linear, constant = np.polyfit(x - centre, y[rows], 2)
    if not quadratic > 0:
        raise NotConvexError(f"{at}: the parabola over {len(x)} sizes opens downwards")
    vertex = -linear / (2 * quadratic) + centre
    if not x.min() <= vertex <= x.max():
        raise NoInteriorMinimumError(
            f"{at}: the vertex N = {math.exp(vertex):,.0f} lies outside the sizes of the window, "
            f"{math.exp(x.min()):,.0f} to {math.exp(x.max()):,.0f}"
        )
    least = float(constant - linear**2 / (4 * quadratic))
    samples = math.exp(float(np.interp(vertex, np.log(curve.params), np.log(curve.samples))))
    return Optimum(
        budget=curve.budget,
        params=math.exp(vertex),
        samples=samples,
        value=math.exp(least) if target == "loss" else -least,
        edge=False,
        estimator="parabola",
        sizes=len(x),
        curvature=2 * float(quadratic),
    )


def _rows(curve: BudgetCurve, best: int, window: Window) -> slice | np.ndarray:
    if window.kind == "steps":
        return slice(max(0, best - int(window.value)), best + int(window.value) + 1)
    if window.kind == "ratio":
        return np.flatnonzero(curve.value <= window.value * curve.value[best])
    return slice(None)


def budgets_of(table: CellTable) -> Floats:
    """Return the budget of each cell [K]: its own, or C of the cells that took nearly the same."""
    budgets = table.numbers["budget"].copy()
    unknown = np.flatnonzero(~np.isfinite(budgets))
    first = math.nan
    for row in unknown[np.argsort(table.flops[unknown])]:
        if not table.flops[row] <= first * (1 + _SAME_BUDGET):
            first = float(table.flops[row])
        budgets[row] = first
    return budgets


def _geometric(values: Floats) -> float:
    return float(np.exp(np.log(values).mean())) if np.all(values > 0) else float(values.mean())


def _arithmetic(values: Floats) -> float:
    return float(values.mean())
