"""The quadratic in logarithms: log L = b0 + bN n + bD d + bNN n^2 + bND n d + bDD d^2, with n = ln N and d = ln D.

Its optimum under C = 6ND is known in closed form (Tuyls et al., 2307.09423):
n* = [bD - bN + (2 bDD - bND) ln(C/6)] / (2 bNN - 2 bND + 2 bDD). Cells far from the optimum spoil it, so that it sees
only those near the least loss of their budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from playserve_trainer.laws.refusals import NotConvexError, NotPositiveError, TooFewCellsError
from playserve_trainer.laws.table import Floats

__all__ = ["QuadraticLaw", "fit_quadratic"]

_TERMS = 6
_MIN_POINTS = 2 * _TERMS


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticLaw:
    """The six coefficients, in the order of the module's formula.

    Attributes:
        coefficients: b0, bN, bD, bNN, bND, bDD.
        points: How many cells were fitted.
        residual_sd: Of log loss.
    """

    coefficients: tuple[float, float, float, float, float, float]
    points: int
    residual_sd: float

    @property
    def curvature(self) -> float:
        """2 bNN - 2 bND + 2 bDD: along a budget log L has a minimum where it is above 0."""
        _, _, _, nn, nd, dd = self.coefficients
        return 2 * nn - 2 * nd + 2 * dd

    @property
    def n_exponent(self) -> float:
        """Exponent of N_opt(C) under C = 6ND."""
        _, _, _, _, nd, dd = self.coefficients
        return (2 * dd - nd) / self.curvature

    def predict(self, params: float, samples: float) -> float:
        """Return the loss at N and D."""
        n, d = math.log(params), math.log(samples)
        return math.exp(float(np.dot(self.coefficients, (1, n, d, n * n, n * d, d * d))))

    def optimum_6nd(self, flops: float) -> tuple[float, float, float]:
        """Return N, D and the loss of the best size at C = 6ND."""
        _, of_n, of_d, _, nd, dd = self.coefficients
        params = math.exp((of_d - of_n + (2 * dd - nd) * math.log(flops / 6)) / self.curvature)
        samples = flops / (6 * params)
        return params, samples, self.predict(params, samples)


def fit_quadratic(params: Floats, samples: Floats, loss: Floats) -> QuadraticLaw:
    """Return the least-squares fit of log loss. Arguments [K].

    Raises:
        TooFewCellsError: There are fewer than twelve cells, or they lie on a line.
        NotPositiveError: A value has no logarithm.
        NotConvexError: No budget has an optimum: the curvature is not above 0.
    """
    if len(loss) < _MIN_POINTS:
        raise TooFewCellsError(
            f"the quadratic law has {_TERMS} parameters: {len(loss)} cells; at least {_MIN_POINTS} are wanted"
        )
    if not np.all((params > 0) & (samples > 0) & (loss > 0)):
        raise NotPositiveError("the quadratic law: N, D or the loss is not above 0 in every cell")
    n, d = np.log(params), np.log(samples)
    # Centred, or the six columns would hardly differ.
    centre_n, centre_d = float(n.mean()), float(d.mean())
    x, y = n - centre_n, d - centre_d
    design = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    solved, _, rank, _ = np.linalg.lstsq(design, np.log(loss), rcond=None)
    found: Floats = np.asarray(solved, np.float64)
    if rank < _TERMS:
        raise TooFewCellsError("the quadratic law: the cells lie on a line of N and D; vary both")
    residuals = np.log(loss) - design @ found
    law = QuadraticLaw(
        coefficients=_uncentred(found, centre_n, centre_d),
        points=len(loss),
        residual_sd=math.sqrt(float((residuals**2).sum()) / max(1, len(loss) - _TERMS)),
    )
    if not law.curvature > 0:
        raise NotConvexError(
            f"the quadratic law over {len(loss)} cells is not convex along a budget (curvature {law.curvature:.3g}): "
            "no best size follows from it"
        )
    return law


def _uncentred(found: Floats, centre_n: float, centre_d: float) -> tuple[float, float, float, float, float, float]:
    b0, of_n, of_d, nn, nd, dd = (float(value) for value in found)
    return (
        b0 - of_n * centre_n - of_d * centre_d + nn * centre_n**2 + nd * centre_n * centre_d + dd * centre_d**2,
        of_n - 2 * nn * centre_n - nd * centre_d,
        of_d - 2 * dd * centre_d - nd * centre_n,
        nn,
        nd,
        dd,
    )
