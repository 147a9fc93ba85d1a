"""Everything that a table says, as one JSON object: every estimator, intervals, the hold-out, returns, comparisons."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from playserve_trainer.laws.break_point import break_points
from playserve_trainer.laws.by_data import data_curves
from playserve_trainer.laws.constrained import constrained_numbers, fit_cells, predictions
from playserve_trainer.laws.correlation import spearman
from playserve_trainer.laws.estimators import Fit, OptimaFit, Settings, SurfaceFit, chosen, fit_optima
from playserve_trainer.laws.forecasting import fit_numbers, forecast
from playserve_trainer.laws.frontier import near_frontier
from playserve_trainer.laws.holdout import hold_out
from playserve_trainer.laws.isoflop import budget_curves
from playserve_trainer.laws.pairs import compare
from playserve_trainer.laws.parametric import chinchilla_starts, fit_many_starts
from playserve_trainer.laws.refusals import RefusedError
from playserve_trainer.laws.returns import fit_loss_to_return, fit_return_law
from playserve_trainer.laws.table import CellTable
from playserve_trainer.laws.uncertainty import Estimate, Resampler, bootstrap, jackknife_budgets

__all__ = ["FitOptions", "fit_laws"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What :func:`fit_laws` does.

    Attributes:
        settings: Of the estimators.
        resamples: Draws of an interval.
        seed: Of the draws.
        processes: How many compute.
        starts: Starts of the many-start check of the parametric law, at most 4,500; 0: no check.
        flops: Budgets to forecast.
        beyond: Whether they may lie more than 30 times beyond the cells.
        expert: Score of the expert by task.
    """

    settings: Settings = field(default_factory=Settings)
    resamples: int = 1000
    seed: int = 0
    processes: int = 1
    starts: int = 90
    flops: tuple[float, ...] = ()
    beyond: bool = False
    expert: Mapping[str, float] = field(default_factory=dict)


def fit_laws(table: CellTable, options: FitOptions) -> dict[str, Any]:
    """Return what the laws say of a table, by task and variant; refusals stand where numbers would."""
    groups = [
        {"task": task, "variant": variant, **_fit_group(part, options, options.expert.get(task))}
        for (task, variant), part in table.groups("task", "variant")
    ]
    found: dict[str, Any] = _plain(
        {
            "source": table.source,
            "cells": len(table),
            "groups": groups,
            "comparisons": _comparisons(table),
            "reproducibility": _reproducibility(table, options),
        }
    )
    return found


def _fit_group(group: CellTable, options: FitOptions, expert: float | None) -> dict[str, Any]:
    # Over compute: all the data for every budget. Runs on a share of them are another question's.
    table, everything = group.whole_data(), group.take(~group.held_out)
    fitted = table.take(~table.held_out)
    numbers = partial(fit_numbers, settings=options.settings, flops=options.flops)
    intervals = bootstrap(fitted, numbers, resamples=options.resamples, seed=options.seed, processes=options.processes)
    left_out = jackknife_budgets(fitted, partial(fit_numbers, settings=options.settings))
    laws = {}
    for name, estimator in chosen(options.settings).items():
        try:
            fit = estimator(fitted, options.settings)
        except RefusedError as error:
            laws[name] = _refusal(error)
            continue
        laws[name] = {
            "numbers": {
                key: {
                    "value": value,
                    "interval": _interval(intervals.get(f"{name}/{key}")),
                    "without_one_budget": left_out.get(f"{name}/{key}"),
                }
                for key, value in fit.numbers().items()
            },
            **_details(fit),
        }
    return {
        "cells": len(group),
        "held_out_cells": int(group.held_out.sum()),
        "whole_data_cells": len(table),
        "is_6nd": table.is_6nd,
        "intervals_hold": Resampler(fitted).notes(),
        "curves": [_curve(table, target) for target in ("loss", "return_mean")],
        "by_data": _plain(data_curves(group)),
        "laws": laws,
        "many_starts": _many_starts(fitted, options, laws.get("parametric", {})),
        "constrained": _or_refusal(lambda: _constrained(group, options)),
        "break_points": _break_points(everything, options.resamples),
        "returns": _or_refusal(lambda: _returns(everything, options.settings, expert))
        if everything.has("return_mean")
        else None,
        "hold_out": _or_refusal(lambda: [_plain(of) for of in hold_out(table, options.settings)]),
        "forecasts": _or_refusal(lambda: _forecasts(fitted, options, intervals)) if options.flops else None,
    }


def _details(fit: Fit) -> dict[str, Any]:
    """Return what is worth showing of a fit beside its numbers."""
    found: dict[str, Any] = {"residual_sd": fit.residual_sd()}
    if isinstance(fit, SurfaceFit):
        kind = "closed form under C = 6ND" if fit.is_6nd else "numerical, with the cost of a sample by size"
        found |= {"law": _plain(fit.law), "cells": fit.law.points, "exponents": kind}
    elif isinstance(fit, OptimaFit):
        found |= {
            "optima": [_plain(point) for point in fit.points],
            "refused_budgets": [{"budget": budget, **_refusal(error)} for budget, error in fit.refused],
            "params": _plain(fit.params),
            "samples": _plain(fit.samples),
            "pure": _plain(fit.pure),
            "offset": _plain(fit.offset) if fit.offset else _refusal(fit.offset_refused),
        }
    return found


def _curve(table: CellTable, target: Any) -> dict[str, Any]:
    if not table.has(target):
        return {"target": target, "budgets": []}
    marked = {float(budget) for budget in np.unique(table.take(table.held_out).numbers["budget"])}
    return {
        "target": target,
        "budgets": [{**_plain(curve), "held_out": curve.budget in marked} for curve in budget_curves(table, target)],
    }


def _many_starts(table: CellTable, options: FitOptions, quick: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the slow fit of the same cells as the quick one, and whether they agree."""
    if not options.starts or "law" not in quick:
        return None
    close = near_frontier(table, options.settings.near)
    starts = chinchilla_starts()
    # Evenly spread by a stride that shares no factor with the sizes of the grid.
    chosen = [starts[(at * 1801) % len(starts)] for at in range(min(options.starts, len(starts)))]
    law = fit_many_starts(close.params, close.samples, close.loss, chosen)
    return {
        "law": _plain(law),
        "starts": len(chosen),
        "objective_ratio": quick["law"]["objective"] / law.objective if law.objective else None,
        "verdict": _agreement(quick["law"]["objective"], law.objective),
    }


def _agreement(quick: float, slow: float) -> str:
    """Return whether two objectives are the same to a thousandth, or which of them is lower."""
    near = 1e-3 * max(quick, slow) + 1e-12
    return (
        "agree" if abs(quick - slow) <= near else "projection is better" if quick < slow else "many starts are better"
    )


def _constrained(table: CellTable, options: FitOptions) -> dict[str, Any]:
    """Return the law of repeated data with intervals (a fifth of the draws: it is slow), and what it says held out."""
    fitted, held_out = table.take(~table.held_out), table.take(table.held_out & np.isfinite(table.loss))
    law = fit_cells(fitted)
    numbers, predicted = partial(constrained_numbers, held_out=held_out), predictions(law, held_out)
    resamples = max(1, options.resamples // 5)
    drawn = bootstrap(fitted, numbers, resamples=resamples, seed=options.seed, processes=options.processes)
    judged = [
        {
            "cell": held_out.words["cell"][row], "params": float(held_out.params[row]),
            "unique_samples": float(unique), "epochs": float(held_out.samples[row] / unique),
            "loss": float(held_out.loss[row]), "predicted": predicted[f"held_out/{row}"],
            "interval": _interval(drawn.get(f"held_out/{row}")),
        }
        for row, unique in enumerate(held_out.numbers["unique_samples"])
    ]  # fmt: skip
    return {
        "numbers": {
            key: {"value": value, "interval": _interval(drawn.get(key))} for key, value in law.numbers().items()
        },
        "at_edge": law.at_edge, "cells": law.parametric.points,
        "overfitted": int(np.isfinite(fitted.loss).sum()) - law.parametric.points, "held_out": judged,
    }  # fmt: skip


def _break_points(table: CellTable, resamples: int) -> list[dict[str, Any]] | None:
    """Return the break point of each two neighbouring sizes; None where no amounts of data can be compared."""
    try:
        return [{**_plain(point), "verdict": point.verdict} for point in break_points(table, resamples=resamples)]
    except RefusedError:
        return None


def _returns(table: CellTable, settings: Settings, expert: float | None) -> dict[str, Any]:
    """Return the laws of returns: over C at the best agent of each budget, and over loss of every cell."""
    measured = table.take(np.isfinite(table.numbers["return_mean"]))
    whole = measured.whole_data()
    returns = measured.numbers["return_mean"]
    found: dict[str, Any] = {"cells": len(measured), "expert": expert}
    best = _or_refusal(
        lambda: _details(fit_optima(whole, settings, estimator="argmin", keep_edges=True, target="return_mean"))
    )
    found["best"] = best
    if "optima" in best:
        budgets = np.array([point["budget"] for point in best["optima"]])
        values = np.array([point["value"] for point in best["optima"]])
        found["saturating"] = _or_refusal(lambda: _plain(fit_return_law(budgets, values, expert=expert)))
    if not measured.has("loss"):
        return {**found, "rank_correlation_with_loss": None, "from_loss": {"why": "no cell has a held-out loss"}}
    found["rank_correlation_with_loss"] = float(spearman(measured.loss, returns)[0]) if len(measured) > 2 else None
    positive = measured.take(returns > 0)
    found["from_loss"] = _or_refusal(lambda: _plain(fit_loss_to_return(positive.loss, positive.numbers["return_mean"])))
    found["from_loss_left_out"] = len(measured) - len(positive)
    return found


def _forecasts(table: CellTable, options: FitOptions, intervals: Mapping[str, Estimate]) -> dict[str, Any]:
    found, refused = forecast(table, options.flops, options.settings, intervals, beyond=options.beyond)
    return {
        "forecasts": [
            {**_plain(of), "intervals": {name: _interval(estimate) for name, estimate in of.intervals.items()}}
            for of in found
        ],
        "refused": refused,
    }


def _comparisons(table: CellTable) -> list[dict[str, Any]]:
    """Return every two variants of a task, compared in pairs."""
    found = []
    for (task,), part in table.groups("task"):
        for first, second in itertools.combinations(dict.fromkeys(part.words["variant"]), 2):
            try:
                comparison = compare(part, first, second)
            except RefusedError:
                continue
            found.append({"task": task, **_plain(comparison), "verdict": comparison.verdict})
    return found


def _reproducibility(table: CellTable, options: FitOptions) -> dict[str, Any]:
    seeds = table.numbers["seed"]
    return {
        "code": f"playserve {version('playserve')}",
        "table_sha256": table.digest(),
        "flops_convention": table.convention,
        "n_convention": "all parameters, embeddings included",
        "notes": list(table.notes),
        "laws": list(chosen(options.settings)),
        "window": str(options.settings.window),
        "parametric_cells": _near(options.settings.near),
        "quadratic_cells": _near(options.settings.near_quadratic),
        "warm_up_left_out": options.settings.warm_up,
        "objective": "parametric: sum of Huber losses of log residuals, delta 1e-3; others: least squares of logs",
        "training_seeds": sorted({int(seed) for seed in seeds[np.isfinite(seeds)]}),
        "resamples": options.resamples,
        "bootstrap_seed": options.seed,
        "many_starts": options.starts,
    }


def _near(ratio: float) -> str:
    return f"within {ratio:g} times the least loss of their budget" if math.isfinite(ratio) else "all"


def _interval(estimate: Any) -> dict[str, Any] | None:
    return None if estimate is None else _plain(estimate)


def _or_refusal(work: Any) -> Any:
    try:
        return work()
    except RefusedError as error:
        return _refusal(error)


def _refusal(error: RefusedError | None) -> dict[str, Any]:
    return {"refused": type(error).__name__, "why": str(error)}


def _plain(value: Any) -> Any:
    """Return a JSON value: dataclasses as objects, arrays as lists, what is not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
