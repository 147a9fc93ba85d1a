"""The parametric law of Hoffmann et al. (2203.15556, approach 3): L(N, D) = E + A N^-alpha + B D^-beta.

Fitted by variable projection: for given exponents E, A and B are a linear problem with three unknowns that may not be
negative, so that only (alpha, beta) is searched, on a grid that closes in on the best; the result is then polished on
the objective of the paper, the *sum* of Huber losses (delta 1e-3) of log residuals. (A mean instead of the sum makes
optimisers stop early: Besiroglu et al., 2404.10102.) :func:`fit_many_starts` is the slow way of the paper, as a check.

Shape legend: K cells, G grid points, S starts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from playserve_trainer.laws.projection import solve_not_negative
from playserve_trainer.laws.refusals import NotDeterminedError, NotPositiveError, TooFewCellsError
from playserve_trainer.laws.table import Floats

__all__ = ["HUBER_DELTA", "MIN_POINTS", "ParametricLaw", "chinchilla_starts", "fit_many_starts", "fit_parametric",
           "huber_objective"]  # fmt: skip

#: Where the Huber loss of log residuals turns from squared to linear (Hoffmann et al.).
HUBER_DELTA = 1e-3

#: Fewest cells: twice the parameters.
MIN_POINTS = 10

# The floor of log E where the projection says E = 0.
_LOG_NOTHING = -20.0
# Factors beyond this are no numbers any more.
_LOG_MOST = 700.0
_FIRST_GRID = np.geomspace(0.02, 3.0, 36)
_ZOOMS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ParametricLaw:
    """L(N, D) = E + A N^-alpha + B D^-beta, N and D as they are (no millions).

    Attributes:
        e: E, what no size and no data remove.
        a: A.
        b: B.
        alpha: Exponent of N.
        beta: Exponent of D.
        objective: Sum of Huber losses.
        points: How many cells were fitted.
    """

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    objective: float
    points: int

    @property
    def n_exponent(self) -> float:
        """Exponent of N_opt(C) under C = 6ND: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def d_exponent(self) -> float:
        """Exponent of D_opt(C) under C = 6ND."""
        return self.alpha / (self.alpha + self.beta)

    def predict(self, params: Floats | float, samples: Floats | float) -> Floats:
        """Return the loss at N and D."""
        return np.asarray(self.e + self.a * np.power(params, -self.alpha) + self.b * np.power(samples, -self.beta))

    def optimum_6nd(self, flops: float) -> tuple[float, float, float]:
        """Return N, D and the loss of the best size at C = 6ND (Hoffmann et al., equation 4)."""
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        params = g * (flops / 6) ** self.n_exponent
        samples = flops / (6 * params)
        return params, samples, float(self.predict(params, samples))


def fit_parametric(params: Floats, samples: Floats, loss: Floats) -> ParametricLaw:
    """Return the law with the least sum of Huber losses, by variable projection and a polish. Arguments [K].

    Raises:
        TooFewCellsError: There are fewer than ten cells, or fewer than three sizes or amounts of data.
        NotPositiveError: A value has no logarithm.
    """
    log_n, log_d, log_l = _logs(params, samples, loss)
    centre = float(log_n.mean()), float(log_d.mean())
    theta = _project(log_n - centre[0], log_d - centre[1], loss)
    return _polished(theta, log_n, log_d, log_l, centre)


def fit_many_starts(
    params: Floats, samples: Floats, loss: Floats, starts: Iterable[tuple[float, ...]] | None = None
) -> ParametricLaw:
    """Return the best law of L-BFGS runs from many starts, as published; minutes instead of milliseconds.

    Args:
        params: N [K]; searched in units of a thousandth of their geometric mean, which is near the published millions.
        samples: D [K]; in units of a thirtieth of theirs, near the published thousands of millions.
        loss: [K].
        starts: (e, a, b, alpha, beta) each, e, a, b as logarithms; None: the 4,500 of Epoch's refit.

    Raises:
        TooFewCellsError, NotPositiveError: As :func:`fit_parametric`.
    """
    log_n, log_d, log_l = _logs(params, samples, loss)
    centre = float(log_n.mean()) - math.log(1e3), float(log_d.mean()) - math.log(30.0)
    scaled = (log_n - centre[0], log_d - centre[1], log_l)
    best: optimize.OptimizeResult | None = None
    for start in chinchilla_starts() if starts is None else starts:
        found = optimize.minimize(
            huber_objective, np.array(start), args=scaled, jac=True, method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000, "maxfun": 4000},
        )  # fmt: skip
        if np.isfinite(found.fun) and (best is None or found.fun < best.fun):
            best = found
    if best is None:
        raise TooFewCellsError("no start at all was given to the many-start fit")
    return _law(best.x, float(best.fun), len(loss), centre)


def chinchilla_starts() -> list[tuple[float, ...]]:
    """Return the 4,500 starts (e, a, b, alpha, beta) of Hoffmann et al. and Epoch's refit."""
    halves, fives = np.arange(0, 2.5, 0.5), np.arange(0.0, 30.0, 5.0)
    return [
        (float(e), float(a), float(b), float(alpha), float(beta))
        for e, a, b, alpha, beta in itertools.product(np.arange(-1, 1.5, 0.5), fives, fives, halves, halves)
    ]


def huber_objective(theta: Floats, log_n: Floats, log_d: Floats, log_l: Floats) -> tuple[float, Floats]:
    """Return the sum of Huber losses of log residuals, and its gradient [5] by theta = (e, a, b, alpha, beta)."""
    residual, jacobian = _residuals(theta, log_n, log_d, log_l)
    small = np.abs(residual) <= HUBER_DELTA
    losses = np.where(small, residual**2 / 2, HUBER_DELTA * (np.abs(residual) - HUBER_DELTA / 2))
    slopes = np.where(small, residual, HUBER_DELTA * np.sign(residual))
    return float(losses.sum()), jacobian.T @ slopes


def _residuals(theta: Floats, log_n: Floats, log_d: Floats, log_l: Floats) -> tuple[Floats, Floats]:
    """Return log L_hat - log L [K] and its Jacobian [K, 5]."""
    e, a, b, alpha, beta = theta
    terms = np.stack([np.full_like(log_n, e), a - alpha * log_n, b - beta * log_d])
    top = terms.max(0)
    shares = np.exp(terms - top)
    total = shares.sum(0)
    shares /= total
    jacobian = np.stack([shares[0], shares[1], shares[2], -log_n * shares[1], -log_d * shares[2]], axis=1)
    return top + np.log(total) - log_l, jacobian


def _logs(params: Floats, samples: Floats, loss: Floats) -> tuple[Floats, Floats, Floats]:
    sizes, amounts = len(np.unique(params)), len(np.unique(samples))
    if len(loss) < MIN_POINTS or min(sizes, amounts) < 3:
        raise TooFewCellsError(
            f"the parametric law has 5 parameters: {len(loss)} cells of {sizes} sizes and {amounts} amounts of data; "
            f"at least {MIN_POINTS} cells, 3 sizes and 3 amounts are wanted"
        )
    for name, values in (("params", params), ("samples", samples), ("loss", loss)):
        if not np.all(np.isfinite(values) & (values > 0)):
            raise NotPositiveError(f"the parametric law: {name} is not above 0 in every cell")
    return np.log(params), np.log(samples), np.log(loss)


def _polished(theta: Floats, log_n: Floats, log_d: Floats, log_l: Floats, centre: tuple[float, float]) -> ParametricLaw:
    arguments = (log_n - centre[0], log_d - centre[1], log_l)
    low = np.array([-np.inf, -np.inf, -np.inf, 1e-4, 1e-4])
    found = optimize.least_squares(
        lambda at: _residuals(at, *arguments)[0], np.maximum(theta, low + 1e-9),
        jac=lambda at: _residuals(at, *arguments)[1], bounds=(low, np.inf),
        loss="huber", f_scale=HUBER_DELTA, xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=400,
    )  # fmt: skip
    return _law(found.x, float(found.cost), len(log_l), centre)


def _law(theta: Floats, objective: float, points: int, centre: tuple[float, float]) -> ParametricLaw:
    e, a, b, alpha, beta = (float(value) for value in theta)
    logs = e, a + alpha * centre[0], b + beta * centre[1]
    if max(logs) > _LOG_MOST:
        raise NotDeterminedError(
            f"the parametric law: exponents {alpha:.3g} and {beta:.3g}, with factors beyond any number: a term of N or "
            "D falls off within the cells like a wall"
        )
    return ParametricLaw(
        e=math.exp(logs[0]),
        a=math.exp(logs[1]),
        b=math.exp(logs[2]),
        alpha=alpha,
        beta=beta,
        objective=objective,
        points=points,
    )


def _project(log_n: Floats, log_d: Floats, loss: Floats) -> Floats:
    """Return (e, a, b, alpha, beta) of the least squared relative residual, on a grid that closes in."""
    alphas = betas = _FIRST_GRID
    for zoom in range(_ZOOMS):
        sse, coefficients = _grid(log_n, log_d, loss, alphas, betas)
        i, j = np.unravel_index(int(np.argmin(sse)), sse.shape)
        best = float(alphas[i]), float(betas[j]), coefficients[i, j]
        if zoom < _ZOOMS - 1:
            alphas, betas = _closer(alphas, int(i)), _closer(betas, int(j))
    alpha, beta, (e, a, b) = best
    logs = [math.log(value) if value > math.exp(_LOG_NOTHING) else _LOG_NOTHING for value in (e, a, b)]
    return np.array([*logs, alpha, beta])


def _closer(grid: Floats, at: int) -> Floats:
    return np.geomspace(grid[max(0, at - 1)], grid[min(len(grid) - 1, at + 1)], 9)


def _grid(log_n: Floats, log_d: Floats, loss: Floats, alphas: Floats, betas: Floats) -> tuple[Floats, Floats]:
    """Return the squared relative residual [G, G] of every pair of exponents, and its E, A, B [G, G, 3]."""
    weight = 1 / loss
    of_n = np.exp(-alphas[:, None] * log_n) * weight
    of_d = np.exp(-betas[:, None] * log_d) * weight
    gram = np.empty((len(alphas), len(betas), 3, 3))
    gram[..., 0, 0] = (weight**2).sum()
    gram[..., 0, 1] = gram[..., 1, 0] = (of_n @ weight)[:, None]
    gram[..., 0, 2] = gram[..., 2, 0] = (of_d @ weight)[None, :]
    gram[..., 1, 1] = (of_n**2).sum(1)[:, None]
    gram[..., 2, 2] = (of_d**2).sum(1)[None, :]
    gram[..., 1, 2] = gram[..., 2, 1] = of_n @ of_d.T
    target = np.empty((len(alphas), len(betas), 3))
    target[..., 0] = weight.sum()
    target[..., 1] = of_n.sum(1)[:, None]
    target[..., 2] = of_d.sum(1)[None, :]
    return solve_not_negative(gram, target, float(len(loss)))
