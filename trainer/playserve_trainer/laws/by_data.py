"""Loss and returns against the amount of unique data, one curve a size: what data-constrained studies are drawn as.

A run counts by its best cell, that of the least held-out loss: such runs go on until their loss rises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from playserve_trainer.laws.table import CellTable, Floats

__all__ = ["DataCurve", "DataPoint", "data_curves"]

#: What a point has beside its loss: the return, and the return where nothing was learnt.
_RETURNS = ("return", "transfer")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPoint:
    """One size at one amount of data, over its runs. NaN where nothing was measured.

    Attributes:
        unique_samples: Amount of data.
        epochs: Passes over it at the best cell.
        loss: Held-out loss, nats a label.
        return_mean: Mean return.
        return_se: Its standard error: over runs where there are several, else over episodes.
        transfer_mean: Mean return where nothing was learnt.
        transfer_se: Likewise.
        runs: How many runs.
    """

    unique_samples: float
    epochs: float
    loss: float
    return_mean: float
    return_se: float
    transfer_mean: float
    transfer_se: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCurve:
    """One size over the amounts of data, rising.

    Attributes:
        size: Its name.
        params: N.
        points: At least two.
    """

    size: str
    params: float
    points: tuple[DataPoint, ...]


def data_curves(table: CellTable) -> tuple[DataCurve, ...]:
    """Return the curves of a table of one task and variant, small sizes first; none where all runs share one amount.

    Where the table tells shares of a data set apart, runs of one share have one amount, however much of it they saw.
    """
    shares = table.numbers["unique"]
    if np.isfinite(shares).all() and len(np.unique(shares)) == 1:
        return ()
    best = _best_of_runs(table)
    curves = []
    for (size,), part in best.groups("size"):
        amounts = np.unique(part.numbers["unique_samples"])
        if len(amounts) > 1:
            points = tuple(_point(part.take(part.numbers["unique_samples"] == amount)) for amount in amounts)
            curves.append(DataCurve(size=size, params=float(part.params.mean()), points=points))
    return tuple(sorted(curves, key=lambda curve: curve.params))


def _best_of_runs(table: CellTable) -> CellTable:
    """Return the cell of the least loss of each run that says how much data it had."""
    table = _longest(table.take(np.isfinite(table.loss) & np.isfinite(table.numbers["unique_samples"])))
    worst_first = np.argsort(-table.loss, kind="stable").tolist()
    best = {(table.words["run"][row], table.numbers["unique_samples"][row]): row for row in worst_first}
    return table.take(np.array(sorted(best.values()), np.intp))


def _longest(table: CellTable) -> CellTable:
    """Return the runs that went as far as any of their size and data: a seed that ends sooner is no repeat of them."""
    last: dict[object, float] = {}
    budgets = np.nan_to_num(table.numbers["budget"]).tolist()
    runs = table.words["run"]
    kinds = list(zip(table.words["size"], table.numbers["unique_samples"].tolist(), strict=True))
    for run, kind, budget in zip(runs, kinds, budgets, strict=True):
        for key in (run, kind):
            last[key] = max(last.get(key, 0.0), budget)
    return table.take(np.array([last[run] == last[kind] for run, kind in zip(runs, kinds, strict=True)], np.bool_))


def _point(part: CellTable) -> DataPoint:
    unique = float(part.numbers["unique_samples"][0])
    found = {}
    for name in _RETURNS:
        found[f"{name}_mean"], found[f"{name}_se"] = _mean(part.numbers[f"{name}_mean"], part.numbers[f"{name}_se"])
    return DataPoint(
        unique_samples=unique,
        epochs=float(part.samples.mean()) / unique,
        loss=float(part.loss.mean()),
        runs=len(part),
        **found,
    )


def _mean(values: Floats, errors: Floats) -> tuple[float, float]:
    """Return the mean over runs, and its standard error."""
    known = np.isfinite(values)
    if not known.any():
        return math.nan, math.nan
    if known.sum() == 1:
        return float(values[known][0]), float(errors[known][0])
    return float(values[known].mean()), float(values[known].std(ddof=1) / math.sqrt(known.sum()))
