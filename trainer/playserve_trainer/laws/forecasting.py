"""What a bigger agent will be: best size, data and loss at C, by every law that can say, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from playserve_trainer.laws.estimators import Settings, chosen
from playserve_trainer.laws.refusals import RefusedError, TooFarError
from playserve_trainer.laws.table import CellTable
from playserve_trainer.laws.uncertainty import Estimate

__all__ = ["FARTHEST", "Forecast", "check_distance", "fit_numbers", "forecast"]

#: A forecast may lie so many times beyond the largest budget without being asked for.
FARTHEST = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one law says of C.

    Attributes:
        estimator: The law.
        flops: C.
        beyond: C over the largest budget of the table.
        values: params, samples and loss.
        intervals: Of each. That of loss holds, beside the law's own uncertainty, the scatter of cells about the law:
            it is meant to hold the loss of the one agent that is trained.
    """

    estimator: str
    flops: float
    beyond: float
    values: Mapping[str, float]
    intervals: Mapping[str, Estimate]


def check_distance(table: CellTable, flops: float, *, allowed: bool = False) -> float:
    """Return how far C lies beyond the largest budget of a table.

    Raises:
        TooFarError: It is more than 30 times, and not `allowed`.
    """
    largest = float(table.flops.max())
    beyond = flops / largest
    if beyond > FARTHEST and not allowed:
        raise TooFarError(
            f"{flops:.3g} FLOPs lie {beyond:.0f} times beyond the largest cell ({largest:.3g}); at most {FARTHEST:.0f} "
            "are forecast unless --beyond is given"
        )
    return beyond


def forecast(
    table: CellTable,
    flops: Sequence[float],
    settings: Settings,
    intervals: Mapping[str, Estimate],
    *,
    beyond: bool = False,
) -> tuple[list[Forecast], dict[str, str]]:
    """Return the forecasts of every law at every C, and the laws that refused, with the reason.

    Args:
        table: The cells.
        flops: Every C.
        settings: Of the laws.
        intervals: A bootstrap of :func:`fit_numbers` at these C.
        beyond: Whether they may lie more than 30 times beyond the cells.

    Raises:
        TooFarError: See :func:`check_distance`.
    """
    distances = [check_distance(table, at, allowed=beyond) for at in flops]
    found, refused = list[Forecast](), dict[str, str]()
    for name, estimator in chosen(settings).items():
        try:
            fit = estimator(table, settings)
        except RefusedError as error:
            refused[name] = str(error)
            continue
        for at, distance in zip(flops, distances, strict=True):
            prefix = f"{name}/{at:.6g}/"
            known = {key.removeprefix(prefix): of for key, of in intervals.items() if key.startswith(prefix)}
            found.append(
                Forecast(
                    estimator=name, flops=at, beyond=distance, values=dict(fit.forecast(at)), intervals=known
                )
            )  # fmt: skip
    return found, refused


def fit_numbers(
    table: CellTable, rng: np.random.Generator, *, settings: Settings, flops: tuple[float, ...] = ()
) -> dict[str, float]:
    """Return the numbers of every estimator ("parabola/n_exponent") and its forecasts ("parabola/1e+13/loss").

    Estimators that refuse the table are left out. The loss of a forecast is moved by the scatter about the law.
    """
    found: dict[str, float] = {}
    for name, estimator in chosen(settings).items():
        try:
            fit = estimator(table, settings)
        except (RefusedError, np.linalg.LinAlgError):
            continue
        found |= {f"{name}/{key}": value for key, value in fit.numbers().items()}
        for at in flops:
            values = dict(fit.forecast(at))
            values["loss"] *= math.exp(fit.residual_sd() * float(rng.standard_normal()))
            found |= {f"{name}/{at:.6g}/{key}": value for key, value in values.items()}
    return found
