"""Student's t, which the registry needs for intervals and the gate; scipy would be 100 MB for these two functions."""

from __future__ import annotations

import math

__all__ = ["mean_interval", "t_quantile", "t_survival"]

_TINY = 1e-300
_EPS = 3e-16
_MAX_TERMS = 10_000


def t_survival(t: float, df: float) -> float:
    """Return P(T >= t) of Student's t with `df` > 0 degrees of freedom, not necessarily whole."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    x = df / (df + t * t)
    # P(|T| >= |t|) is the regularised incomplete beta function at x; for a large x its complement is the exact one.
    both = _beta(df / 2, 0.5, x, t * t / (df + t * t))
    return both / 2 if t >= 0 else 1.0 - both / 2


def t_quantile(p: float, df: float) -> float:
    """Return t with P(T <= t) = p, for p in (0.5, 1)."""
    if not 0.5 < p < 1.0:
        raise ValueError(f"p is {p}, wanted 0.5 < p < 1")
    high = 1.0
    while t_survival(high, df) > 1.0 - p:
        high *= 2.0
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_survival(middle, df) > 1.0 - p else (low, middle)
    return high


def mean_interval(mean: float, se: float | None, n: int, level: float = 0.95) -> tuple[float, float] | None:
    """Return the t interval of a mean; None where one episode, or none, says nothing of it."""
    if se is None or n < 2:
        return None
    half = t_quantile(0.5 + level / 2, n - 1) * se
    return mean - half, mean + half


def _beta(a: float, b: float, x: float, rest: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b); `rest` is 1 - x, given apart to keep its digits."""
    if x <= 0.0:
        return 0.0
    if rest <= 0.0:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    front = math.exp(log_front)
    # The continued fraction converges quickly on one side of the mean only; the other is its mirror.
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _away(1.0 + term * d)
            c = _away(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < _EPS:
            break
    return value


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
