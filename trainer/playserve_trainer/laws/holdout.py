"""Extrapolation judged: fit below, predict what was trained above, beside what no offset and no law would say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from playserve_trainer.laws.estimators import Settings, chosen, fit_optima
from playserve_trainer.laws.isoflop import BudgetCurve, budget_curves, budgets_of, optimum_of
from playserve_trainer.laws.power import PowerLaw
from playserve_trainer.laws.refusals import RefusedError, TooFewCellsError
from playserve_trainer.laws.table import CellTable

__all__ = ["HoldOut", "Prediction", "hold_out", "split_hold_out"]

# Without cells that were marked, the top budgets are held out: those at least this far above what is left to fit.
_FAR = 3.0
_LEAST_BUDGETS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one law says of a budget that it did not see.

    Attributes:
        loss: Predicted least loss of the budget.
        params: Predicted best size; None where the law gives none.
        loss_error: Predicted over measured loss, less 1.
        params_ratio: Predicted over measured best size.
    """

    loss: float
    params: float | None
    loss_error: float
    params_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOut:
    """One budget that was kept from the fit.

    Attributes:
        budget: C.
        beyond: C over the largest budget that was fitted.
        loss: Least loss that was measured there.
        params: Size that reached it: the vertex of the parabola, or the best that was trained.
        params_edge: Whether that size is the smallest or the largest that was trained.
        sizes: How many sizes were trained there.
        predictions: By estimator, and by the baselines "pure power law" and "last value".
        refused: Estimators that could not be fitted, with the reason.
    """

    budget: float
    beyond: float
    loss: float
    params: float
    params_edge: bool
    sizes: int
    predictions: Mapping[str, Prediction]
    refused: Mapping[str, str]


def split_hold_out(table: CellTable) -> tuple[CellTable, CellTable]:
    """Return the cells to fit and those held out: the marked ones, or else those of the largest budget.

    Raises:
        TooFewCellsError: Too little would be left to fit.
    """
    marked = table.held_out
    if not marked.any():
        curves = budget_curves(table)
        if len(curves) <= _LEAST_BUDGETS:
            raise TooFewCellsError(f"a hold-out wants more than {_LEAST_BUDGETS} budgets; the table has {len(curves)}")
        top = curves[-1].budget
        budgets = budgets_of(table)
        marked = budgets == top
        unused = (budgets > top / _FAR) & ~marked  # too near to the top to call it an extrapolation
        return table.take(~marked & ~unused), table.take(marked)
    return table.take(~marked), table.take(marked)


def hold_out(table: CellTable, settings: Settings) -> list[HoldOut]:
    """Return, for every budget that is held out, what each law fitted below says of it.

    Raises:
        TooFewCellsError: Too little is left to fit, or nothing is held out.
    """
    below, above = split_hold_out(table)
    fits, refused = {}, {}
    for name, estimator in chosen(settings).items():
        try:
            fits[name] = estimator(below, settings)
        except RefusedError as error:
            refused[name] = str(error)
    pure, largest = _pure(below, settings), budget_curves(below)[-1]
    found = []
    for curve in budget_curves(above):
        loss, params, edge = _measured(curve, settings)
        predictions = {name: _prediction(fit.forecast(curve.budget), loss, params) for name, fit in fits.items()}
        if pure is not None:
            predictions["pure power law"] = _prediction({"loss": pure.predict(curve.budget)}, loss, params)
        predictions["last value"] = _prediction({"loss": float(largest.value.min())}, loss, params)
        found.append(
            HoldOut(
                budget=curve.budget, beyond=curve.budget / largest.budget, loss=loss, params=params, params_edge=edge,
                sizes=len(curve.params), predictions=predictions, refused=refused,
            )
        )  # fmt: skip
    return found


def _pure(below: CellTable, settings: Settings) -> PowerLaw | None:
    """Return the baseline without an offset, through the raw best of each budget."""
    try:
        return fit_optima(below, settings, estimator="argmin", keep_edges=True).pure
    except RefusedError:
        return None


def _measured(curve: BudgetCurve, settings: Settings) -> tuple[float, float, bool]:
    """Return the least loss of a budget, the size that reached it, and whether that is an edge."""
    best = int(np.argmin(curve.value))
    try:
        vertex = optimum_of(curve, window=settings.window)
    except RefusedError:
        edge = best in (0, len(curve.params) - 1)
        return float(curve.value[best]), float(curve.params[best]), edge
    # The loss is the best that was trained: a vertex is itself a fit.
    return float(curve.value[best]), vertex.params, False


def _prediction(forecast: Mapping[str, float], loss: float, params: float) -> Prediction:
    size = forecast.get("params", math.nan)
    return Prediction(
        loss=forecast["loss"],
        params=size if math.isfinite(size) else None,
        loss_error=forecast["loss"] / loss - 1,
        params_ratio=size / params if math.isfinite(size) else None,
    )
