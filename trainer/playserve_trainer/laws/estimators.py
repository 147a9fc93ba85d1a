"""Every way to fit a table, behind one interface: a fit names its numbers, and forecasts N, D and loss at C.

=================  =================================================================================================
argmin             raw best size of each budget, edges kept: as Tuyls et al. publish
argmin-interior    the same without budgets whose best size is an edge
parabola           vertex of a parabola in a window around the best size, interior minima only
frontier           cells that no cheaper cell beats
parametric         L = E + A N^-alpha + B D^-beta, by variable projection, on cells near the frontier
quadratic          quadratic in logs, on cells near the frontier
=================  =================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from playserve.errors import BadSettingError
from playserve_trainer.laws.cost import SampleCost, best_size, sample_cost
from playserve_trainer.laws.frontier import frontier, near_frontier, without_warm_up
from playserve_trainer.laws.isoflop import Optimum, Target, Window, budget_curves, optima
from playserve_trainer.laws.parametric import ParametricLaw, fit_parametric
from playserve_trainer.laws.power import OffsetPowerLaw, PowerLaw, fit_offset_power_law, fit_power_law
from playserve_trainer.laws.quadratic import QuadraticLaw, fit_quadratic
from playserve_trainer.laws.refusals import RefusedError, TooFewCellsError
from playserve_trainer.laws.table import CellTable, Floats

__all__ = ["ESTIMATORS", "Estimator", "Fit", "OptimaFit", "Settings", "SurfaceFit", "chosen", "fit_optima"]

_LEAST_OPTIMA = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a table is fitted.

    Attributes:
        window: Of the parabola.
        near: Parametric law: cells whose loss is within so many times the least of their budget; infinity: all.
        near_quadratic: The same for the quadratic, which far cells spoil sooner.
        warm_up: Part of each run's FLOPs that the frontier leaves out.
        laws: Names of the estimators; empty: all.

    Raises:
        BadSettingError: A law is unknown.
    """

    window: Window = field(default_factory=Window)
    near: float = 1.5
    near_quadratic: float = 1.25
    warm_up: float = 0.05
    laws: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.laws if name not in ESTIMATORS]
        if unknown:
            raise BadSettingError(f"no law is called {unknown[0]!r}; there are {', '.join(ESTIMATORS)}")


class Fit(Protocol):
    """What an estimator makes of a table."""

    def numbers(self) -> Mapping[str, float]:
        """Return the parameters by name."""

    def forecast(self, flops: float) -> Mapping[str, float]:
        """Return params, samples and, where the law gives it, loss at C."""

    def residual_sd(self) -> float:
        """Return the standard deviation of log losses about the law."""


Estimator = Callable[[CellTable, Settings], Fit]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimaFit:
    """Power laws through the optima of budgets, or through the frontier.

    Attributes:
        points: The optima.
        refused: Budgets without one, and why.
        params: N_opt(C).
        samples: D_opt(C).
        pure: L_opt(C) as a power law without an offset.
        offset: L_opt(C) with one; None where the points cannot carry three parameters.
        offset_refused: Why not.
        is_6nd: Whether C = 6ND.
    """

    points: tuple[Optimum, ...]
    refused: tuple[tuple[float, RefusedError], ...]
    params: PowerLaw
    samples: PowerLaw
    pure: PowerLaw
    offset: OffsetPowerLaw | None
    offset_refused: RefusedError | None
    is_6nd: bool

    def numbers(self) -> Mapping[str, float]:
        """See :class:`Fit`."""
        found = {"n_exponent": self.params.exponent, "d_exponent": self.samples.exponent}
        found["loss_slope"] = self.pure.exponent
        if self.offset is not None:
            found |= {"loss_exponent": self.offset.exponent, "loss_offset": self.offset.offset}
        return found

    def forecast(self, flops: float) -> Mapping[str, float]:
        """See :class:`Fit`."""
        law = self.offset or self.pure
        return {
            "params": self.params.predict(flops),
            "samples": self.samples.predict(flops),
            "loss": law.predict(flops),
        }

    def residual_sd(self) -> float:
        """See :class:`Fit`."""
        return (self.offset or self.pure).residual_sd


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceFit:
    """A law of N and D, and what follows for the best size of a budget.

    Attributes:
        law: The surface.
        cost: FLOPs of a sample by size.
        budgets: Budgets of the table, over which exponents are taken.
        is_6nd: Whether C = 6ND; the exponents are then known in closed form.
        log_residuals: Of the fitted cells.
    """

    law: ParametricLaw | QuadraticLaw
    cost: SampleCost
    budgets: Floats
    is_6nd: bool
    log_residuals: Floats

    def numbers(self) -> Mapping[str, float]:
        """See :class:`Fit`."""
        found: dict[str, float] = {}
        if isinstance(self.law, ParametricLaw):
            law = self.law
            found |= {"E": law.e, "A": law.a, "B": law.b, "alpha": law.alpha, "beta": law.beta}
        if self.is_6nd:
            found |= {"n_exponent": self.law.n_exponent, "d_exponent": 1 - self.law.n_exponent}
        elif self.budgets[-1] > self.budgets[0]:  # with one budget, nothing is known of how the best size grows
            best = [self.forecast(float(budget)) for budget in self.budgets[[0, -1]]]
            decades = math.log(self.budgets[-1] / self.budgets[0])
            found["n_exponent"] = math.log(best[1]["params"] / best[0]["params"]) / decades
            found["d_exponent"] = math.log(best[1]["samples"] / best[0]["samples"]) / decades
        return found

    def forecast(self, flops: float) -> Mapping[str, float]:
        """See :class:`Fit`."""
        if self.is_6nd:
            params, samples, loss = self.law.optimum_6nd(flops)
        else:
            params, samples, loss = best_size(self._loss, flops, self.cost)
        return {"params": params, "samples": samples, "loss": loss}

    def loss_at(self, params: float, samples: float) -> float:
        """Return the loss of a cell of its own."""
        return self._loss(params, samples)

    def residual_sd(self) -> float:
        """See :class:`Fit`."""
        return float(np.sqrt(np.mean(self.log_residuals**2)))

    def _loss(self, params: float, samples: float) -> float:
        return float(self.law.predict(params, samples))


def fit_optima(
    table: CellTable,
    settings: Settings,
    *,
    estimator: str,
    keep_edges: bool = False,
    target: Target = "loss",
) -> OptimaFit:
    """Return the power laws through the optima of budgets.

    Raises:
        TooFewCellsError: Fewer than three budgets have one; the message says why the others have none.
    """
    points, refused = optima(
        budget_curves(table, target), target=target, estimator=estimator, window=settings.window, keep_edges=keep_edges
    )
    if len(points) < _LEAST_OPTIMA:
        reasons = "; ".join(str(error) for _, error in refused)
        raise TooFewCellsError(
            f"{estimator}: {len(points)} budgets have an optimum; at least {_LEAST_OPTIMA} are wanted. {reasons}"
        )
    return _through(points, refused, table.is_6nd)


def fit_frontier(table: CellTable, settings: Settings) -> OptimaFit:
    """Return the power laws along the frontier.

    Raises:
        TooFewCellsError: Fewer than four cells are on it.
    """
    on_it = frontier(without_warm_up(table, settings.warm_up))
    points = [
        Optimum(
            budget=float(on_it.flops[row]), params=float(on_it.params[row]), samples=float(on_it.samples[row]),
            value=float(on_it.loss[row]), edge=False, estimator="frontier", sizes=1,
        )
        for row in range(len(on_it))
    ]  # fmt: skip
    return _through(points, [], table.is_6nd)


def fit_surface(table: CellTable, settings: Settings, *, quadratic: bool = False) -> SurfaceFit:
    """Return the parametric law, or the quadratic in logs, on the cells near the frontier.

    Raises:
        RefusedError: As :func:`fit_parametric` and :func:`fit_quadratic`.
    """
    close = near_frontier(table, settings.near_quadratic if quadratic else settings.near)
    fit = fit_quadratic if quadratic else fit_parametric
    law: ParametricLaw | QuadraticLaw = fit(close.params, close.samples, close.loss)
    predicted = [float(law.predict(n, d)) for n, d in zip(close.params, close.samples, strict=True)]
    return SurfaceFit(
        law=law,
        cost=sample_cost(table),
        budgets=np.array([curve.budget for curve in budget_curves(table)]),
        is_6nd=table.is_6nd,
        log_residuals=np.log(predicted) - np.log(close.loss),
    )


def _through(points: list[Optimum], refused: list[tuple[float, RefusedError]], is_6nd: bool) -> OptimaFit:
    budgets = np.array([point.budget for point in points])
    values = np.array([point.value for point in points])
    offset, why = None, None
    try:
        offset = fit_offset_power_law(budgets, values, what="L_opt(C) with an offset")
    except RefusedError as error:
        why = error
    return OptimaFit(
        points=tuple(points),
        refused=tuple(refused),
        params=fit_power_law(budgets, np.array([point.params for point in points]), what="N_opt(C)"),
        samples=fit_power_law(budgets, np.array([point.samples for point in points]), what="D_opt(C)"),
        pure=fit_power_law(budgets, values, what="L_opt(C)"),
        offset=offset,
        offset_refused=why,
        is_6nd=is_6nd,
    )


def chosen(settings: Settings) -> Mapping[str, Estimator]:
    """Return the estimators that the settings ask for, by name."""
    return {name: of for name, of in ESTIMATORS.items() if not settings.laws or name in settings.laws}


#: Every estimator of loss by name.
ESTIMATORS: Mapping[str, Estimator] = {
    "argmin": lambda table, settings: fit_optima(table, settings, estimator="argmin", keep_edges=True),
    "argmin-interior": lambda table, settings: fit_optima(table, settings, estimator="argmin"),
    "parabola": lambda table, settings: fit_optima(table, settings, estimator="parabola"),
    "frontier": fit_frontier,
    "parametric": lambda table, settings: fit_surface(table, settings),
    "quadratic": lambda table, settings: fit_surface(table, settings, quadratic=True),
}
