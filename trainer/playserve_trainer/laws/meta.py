"""Does the loss of pre-training stand for what comes after it? Correlations of loss with return over a table of cells.

After the meta-analysis that Pearce et al. (2411.04434) made of the released results of Tuyls et al. (2307.09423). With
data without end, held-out loss falls as return rises: the correlation of logarithms is near -1. Over all cells most of
it may come from compute, which moves both; so it is also taken within a budget, where sizes compete, and within a size,
along training.

- "all": every cell with a loss and a return.
- "optimum": of each budget the cell of least loss.
- "within_budgets", "within_sizes": correlations of each budget's or size's cells, and their mean weighted by cells.

Each is Pearson's of log loss and log return, of the cells whose loss and return are above 0, and Spearman's of the
plain numbers. Intervals draw runs anew, and move losses and returns by their errors (see :mod:`.uncertainty`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from playserve_trainer.laws.correlation import pearson, spearman
from playserve_trainer.laws.isoflop import budgets_of
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable, Floats
from playserve_trainer.laws.uncertainty import Estimate, Resampler, bootstrap

__all__ = ["LEAST_CELLS", "correlations_of", "meta_analysis"]

#: Fewest cells of a correlation: any two points lie on a line, and three are no evidence of one.
LEAST_CELLS = 4

_NO_ESTIMATE = Estimate(low=None, high=None, draws=0, refused=0)


def correlations_of(table: CellTable, _rng: np.random.Generator | None = None) -> dict[str, float]:
    """Return every correlation that the cells of one task can carry, by name: "<which>/<kind>" and "<which>/cells".

    Args:
        table: Cells with a loss and a return.
        _rng: Not needed; here so that this can be resampled.
    """
    found: dict[str, float] = {}
    for name, part in (("all", table), ("optimum", _optima(table))):
        found |= {f"{name}/{kind}": value for kind, value in _both(part).items()}
    for name, parts in (("within_budgets", _by(table, budgets_of(table))), ("within_sizes", _by(table, table.params))):
        each = {group: _both(part) for group, part in parts}
        for group, values in each.items():
            found |= {f"{name}/{group:.6g}/{kind}": value for kind, value in values.items()}
        for kind in ("pearson", "spearman"):
            of = [values for values in each.values() if kind in values]
            if of:
                mean = np.average([values[kind] for values in of], weights=[values["cells"] for values in of])
                found[f"{name}/mean/{kind}"] = float(mean)
    return found


def meta_analysis(
    table: CellTable, *, resamples: int = 1000, seed: int = 0, processes: int = 1, run_per_size: bool = False
) -> dict[str, Any]:
    """Return the correlations of each task of a table, with intervals, as a JSON value.

    Args:
        table: With losses and returns.
        resamples: Draws of an interval.
        seed: Of the draws.
        processes: That compute.
        run_per_size: Whether all cells of a (task, variant, size) are of one run, as where a table names no runs.

    Raises:
        TooFewCellsError: No task has :data:`LEAST_CELLS` cells with a loss and a return.
    """
    if run_per_size:
        table = _one_run_a_size(table)
    both = np.isfinite(table.loss) & np.isfinite(table.numbers["return_mean"])
    groups = []
    if both.any():
        for (task,), part in table.take(both).groups("task"):
            if len(part) >= LEAST_CELLS:
                groups.append(_group(task, part, resamples, seed, processes))
    if not groups:
        raise TooFewCellsError(
            f"{table.source or 'the table'}: {int(both.sum())} cells have a loss and a return, and no task has "
            f"{LEAST_CELLS} of them"
        )
    return {
        "groups": groups, "source": table.source, "digest": table.digest(), "resamples": resamples, "seed": seed,
        "cells_left_out": int((~both).sum()),
    }  # fmt: skip


def _group(task: str, table: CellTable, resamples: int, seed: int, processes: int) -> dict[str, Any]:
    values = correlations_of(table)
    estimates: Mapping[str, Estimate] = (
        bootstrap(table, correlations_of, resamples=resamples, seed=seed, processes=processes) if resamples else {}
    )
    number = partial(_number, values, estimates)
    not_above_0 = int((~_above_0(table)).sum())
    notes = list(Resampler(table).notes())
    if not_above_0:
        notes.append(f"{not_above_0} cells have a loss or a return of 0 or below: they have no logarithm, only a rank")
    budgets, sizes = np.unique(budgets_of(table)), np.unique(table.params)
    return {
        "task": task, "cells": len(table), "runs": len(set(table.words["run"])), "notes": notes,
        "all": number("all"),
        "optimum": number("optimum"),
        "within_budgets": {"mean": number("within_budgets/mean"),
                           "each": _each(number, "within_budgets", budgets)},
        "within_sizes": {"mean": number("within_sizes/mean"), "each": _each(number, "within_sizes", sizes)},
    }  # fmt: skip


def _each(number: Callable[[str], dict[str, Any] | None], name: str, groups: Floats) -> dict[str, Any]:
    """Return the correlations of each budget or size; None where its cells cannot carry one."""
    return {f"{group:.6g}": number(f"{name}/{group:.6g}") for group in groups}


def _number(values: Mapping[str, float], estimates: Mapping[str, Estimate], name: str) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for kind in ("pearson", "spearman"):
        value = values.get(f"{name}/{kind}", math.nan)
        if math.isfinite(value):
            estimate = estimates.get(f"{name}/{kind}", _NO_ESTIMATE)
            found[kind] = {"value": value, "low": estimate.low, "high": estimate.high}
    if not found:
        return None
    cells = values.get(f"{name}/cells")
    return found if cells is None else {**found, "cells": int(cells)}


def _both(table: CellTable) -> dict[str, float]:
    """Return "pearson" of logarithms, "spearman" and "cells"; what the cells cannot carry is not there."""
    found: dict[str, float] = {"cells": float(len(table))}
    loss, returns = table.loss, table.numbers["return_mean"]
    if _different(table) >= LEAST_CELLS:
        found["spearman"] = float(spearman(loss, returns)[0])
        rows = _above_0(table)
        if _different(table.take(rows)) >= LEAST_CELLS:
            found["pearson"] = float(pearson(np.log(loss[rows]), np.log(returns[rows]))[0])
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _different(table: CellTable) -> int:
    """Return how many cells differ from each other: a resample may hold one several times."""
    return len(set(zip(table.words["run"], table.flops.tolist(), table.params.tolist(), strict=True)))


def _above_0(table: CellTable) -> np.ndarray:
    rows: np.ndarray = (table.loss > 0) & (table.numbers["return_mean"] > 0)
    return rows


def _optima(table: CellTable) -> CellTable:
    """Return the cell of least loss of each budget; seeds compete."""
    budgets = budgets_of(table)
    rows = [np.flatnonzero(budgets == budget) for budget in np.unique(budgets)]
    return table.take(np.array([of[int(np.argmin(table.loss[of]))] for of in rows], np.intp))


def _by(table: CellTable, of: Floats) -> Iterator[tuple[float, CellTable]]:
    for value in np.unique(of):
        yield float(value), table.take(of == value)


def _one_run_a_size(table: CellTable) -> CellTable:
    words = table.words
    keys = zip(words["task"], words["variant"], words["size"], table.params.tolist(), strict=True)
    runs = tuple(f"{task}/{variant}/{size}/{params:.6g}" for task, variant, size, params in keys)
    return dataclasses.replace(table, words={**words, "run": runs})
