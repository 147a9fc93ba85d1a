"""Laws of one variable: the straight line in logarithms, and the same above a floor.

y = c x^k             ordinary least squares of log y on log x, as Tuyls et al. (2307.09423) fit N_opt(C) and D_opt(C)
y = a x^-g + b        with a, g > 0 and b >= 0, least squares of log residuals: L_opt(C), or P2P's L(D)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from playserve_trainer.laws.projection import solve_not_negative
from playserve_trainer.laws.refusals import NotPositiveError, TooFewCellsError
from playserve_trainer.laws.table import Floats

__all__ = ["MIN_OFFSET_POINTS", "OffsetPowerLaw", "PowerLaw", "fit_offset_power_law", "fit_power_law"]

#: Fewest points of a power law: two would have no residual.
_MIN_POINTS = 3

#: Fewest points of a power law with an offset: three parameters go through five points whatever these are.
MIN_OFFSET_POINTS = 6

# Exponents tried first; the best one is refined.
_EXPONENTS = np.geomspace(0.01, 4.0, 160)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """y = coefficient * x^exponent.

    Attributes:
        coefficient: c.
        exponent: k.
        exponent_low: Lower end of its 95% interval, by Student's t with n - 2 degrees of freedom.
        exponent_high: Upper end.
        r2: Share of the variance of log y that is explained.
        points: n.
        residual_sd: Standard deviation of log residuals, n - 2 in the denominator.
        centre: Mean of log x.
        spread: Sum of squared deviations of log x.
    """

    coefficient: float
    exponent: float
    exponent_low: float
    exponent_high: float
    r2: float
    points: int
    residual_sd: float
    centre: float
    spread: float

    def predict(self, x: float) -> float:
        """Return y at x."""
        return float(self.coefficient * x**self.exponent)

    def interval(self, x: float, confidence: float = 0.95) -> tuple[float, float]:
        """Return the prediction interval of one new y at x, by Student's t."""
        t = float(stats.t.ppf((1 + confidence) / 2, self.points - 2))
        sd = self.residual_sd * math.sqrt(1 + 1 / self.points + (math.log(x) - self.centre) ** 2 / self.spread)
        return self.predict(x) * math.exp(-t * sd), self.predict(x) * math.exp(t * sd)


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetPowerLaw:
    """y = coefficient * x^-exponent + offset.

    Attributes:
        coefficient: a, above 0.
        exponent: g, above 0.
        offset: b, at least 0: what is left however large x is.
        points: How many were fitted.
        residual_sd: Standard deviation of log residuals, n - 3 in the denominator.
    """

    coefficient: float
    exponent: float
    offset: float
    points: int
    residual_sd: float

    def predict(self, x: float) -> float:
        """Return y at x."""
        return float(self.coefficient * x**-self.exponent + self.offset)


def fit_power_law(x: Floats, y: Floats, *, what: str = "the law") -> PowerLaw:
    """Return the line through log y over log x.

    Raises:
        TooFewCellsError: There are fewer than three points, or all at one x.
        NotPositiveError: A value has no logarithm.
    """
    _check(x, y, _MIN_POINTS, what)
    log_x, log_y = np.log(x), np.log(y)
    centre, spread = float(log_x.mean()), float(((log_x - log_x.mean()) ** 2).sum())
    slope = float(((log_x - centre) * (log_y - log_y.mean())).sum() / spread)
    residuals = log_y - log_y.mean() - slope * (log_x - centre)
    points = len(x)
    sd = math.sqrt(float((residuals**2).sum()) / (points - 2))
    half = float(stats.t.ppf(0.975, points - 2)) * sd / math.sqrt(spread)
    total = float(((log_y - log_y.mean()) ** 2).sum())
    return PowerLaw(
        coefficient=math.exp(float(log_y.mean()) - slope * centre),
        exponent=slope,
        exponent_low=slope - half,
        exponent_high=slope + half,
        r2=1 - float((residuals**2).sum()) / total if total > 0 else 1.0,
        points=points,
        residual_sd=sd,
        centre=centre,
        spread=spread,
    )


def fit_offset_power_law(x: Floats, y: Floats, *, what: str = "the law") -> OffsetPowerLaw:
    """Return the falling power law above a floor with the least squared log residuals.

    For a given exponent the best coefficient and offset are a linear problem (variable projection); the best exponent
    of a grid is then refined together with them.

    Raises:
        TooFewCellsError: There are fewer than six points, or all at one x.
        NotPositiveError: A value has no logarithm.
    """
    _check(x, y, MIN_OFFSET_POINTS, what)
    scale = math.exp(float(np.log(x).mean()))
    z, log_z, log_y = x / scale, np.log(x / scale), np.log(y)
    a, g, b = _projected(z, y)

    def parts(theta: Floats) -> tuple[Floats, Floats]:
        power = np.exp(theta[0] - theta[1] * log_z)
        return power, power + theta[2]

    def residuals(theta: Floats) -> Floats:
        values: Floats = np.log(parts(theta)[1]) - log_y
        return values

    def jacobian(theta: Floats) -> Floats:
        power, total = parts(theta)
        return np.stack([power / total, -log_z * power / total, 1 / total], axis=1)

    lowest, highest = float(y.min()), float(y.max())
    # In the middle of the points the power is at most as large as y: it cannot run away.
    low, high = [math.log(lowest) - 40, 1e-6, 0.0], [math.log(highest) + 2, 20.0, lowest]
    begin = [math.log(max(a, 1e-12 * lowest)), g, b]
    solution = optimize.least_squares(
        residuals,
        np.clip(begin, np.array(low) + 1e-9, np.array(high) * (1 - 1e-9)),
        jac=jacobian, bounds=(low, high),
        x_scale=[1.0, 0.1, max(lowest, 1e-12)], xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=500,
    )  # fmt: skip
    log_a, exponent, offset = (float(value) for value in solution.x)
    return OffsetPowerLaw(
        coefficient=math.exp(log_a + exponent * math.log(scale)),
        exponent=exponent,
        offset=offset,
        points=len(x),
        residual_sd=math.sqrt(2 * float(solution.cost) / (len(x) - 3)),
    )


def _projected(z: Floats, y: Floats) -> tuple[float, float, float]:
    """Return a, g and b with the least squared relative residual, g being one of the exponents that are tried."""
    columns = z ** -_EXPONENTS[:, None] / y
    gram = np.empty((len(_EXPONENTS), 2, 2))
    gram[:, 0, 0] = (columns**2).sum(1)
    gram[:, 0, 1] = gram[:, 1, 0] = columns @ (1 / y)
    gram[:, 1, 1] = (1 / y**2).sum()
    target = np.stack([columns.sum(1), np.full(len(_EXPONENTS), (1 / y).sum())], axis=1)
    sse, found = solve_not_negative(gram, target, float(len(y)))
    best = int(np.argmin(sse))
    return float(found[best, 0]), float(_EXPONENTS[best]), float(found[best, 1])


def _check(x: Floats, y: Floats, least: int, what: str) -> None:
    if len(x) < least or len(np.unique(x)) < 2:
        raise TooFewCellsError(f"{what}: {len(x)} points at {len(np.unique(x))} places; at least {least} are wanted")
    for name, values in (("x", x), ("y", y)):
        bad = values[~(np.isfinite(values) & (values > 0))]
        if len(bad):
            raise NotPositiveError(f"{what}: {name} is {bad[0]:g} somewhere; a law in logarithms wants values above 0")
