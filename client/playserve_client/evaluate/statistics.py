"""Statistics of scores: percentile bootstrap of means and of differences, deciles. Seeded, so that a table repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RESAMPLES",
    "Interval",
    "Normalised",
    "bootstrap_difference",
    "bootstrap_mean",
    "bootstrap_normalised",
    "deciles",
    "normalised_score",
]

RESAMPLES = 10_000
# Values drawn at once: 10,000 resamples of 10,000 scores would not fit in memory.
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval that holds the true value with the confidence that was asked for."""

    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return the percentile bootstrap interval of the mean of `values`; None for fewer than two."""
    if len(values) < 2:
        return None
    means = _resampled_means(np.asarray(values, np.float64), resamples, np.random.default_rng(seed))
    return _percentiles(means, confidence)


def bootstrap_difference(
    values: Sequence[float],
    others: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Return the interval of mean(values) - mean(others), resampled independently; None for fewer than two of each."""
    if len(values) < 2 or len(others) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = _resampled_means(np.asarray(values, np.float64), resamples, rng)
    return _percentiles(means - _resampled_means(np.asarray(others, np.float64), resamples, rng), confidence)


def bootstrap_normalised(
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Return the interval of (mean(values) - mean(low)) / (mean(high) - mean(low)), all three resampled independently.

    None for fewer than two of any, and where `high` is not above `low` in 97.5% of the resamples: then the part of a
    way that may be none means nothing.
    """
    if min(len(values), len(low), len(high)) < 2:
        return None
    rng = np.random.default_rng(seed)
    means, lows, highs = (_resampled_means(np.asarray(v, np.float64), resamples, rng) for v in (values, low, high))
    way = highs - lows
    if np.quantile(way, (1 - confidence) / 2) <= 0:
        return None
    return _percentiles((means - lows)[way > 0] / way[way > 0], confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    """Which part of the way from a random player to an expert a player went.

    Attributes:
        random: Mean score of the random player.
        expert: Of the expert.
        value: (mean - random) / (expert - random); None where the expert is not above the random player.
        interval: Its 95% interval.
    """

    random: float
    expert: float
    value: float | None
    interval: Interval | None


def normalised_score(scores: Sequence[float], random: Sequence[float], expert: Sequence[float]) -> Normalised:
    """Return the normalised score of a player, from the scores of each player's episodes; none may be empty."""
    mean, low, high = (float(np.mean(values)) for values in (scores, random, expert))
    return Normalised(
        random=low,
        expert=high,
        value=(mean - low) / (high - low) if high > low else None,
        interval=bootstrap_normalised(scores, random, expert),
    )


def deciles(values: Sequence[float]) -> list[float] | None:
    """Return the 10th, 20th, ... 90th percentile, linearly interpolated; None where there are no values."""
    if not len(values):
        return None
    result: list[float] = np.percentile(np.asarray(values, np.float64), np.arange(10, 100, 10)).tolist()
    return result


def _resampled_means(values: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    size = len(values)
    rows = max(1, _CHUNK // size)
    draw: Callable[[int], NDArray[np.float64]] = lambda n: values[rng.integers(size, size=(n, size))].mean(axis=1)  # noqa: E731
    return np.concatenate([draw(min(rows, resamples - start)) for start in range(0, resamples, rows)])


def _percentiles(samples: NDArray[np.float64], confidence: float) -> Interval:
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(samples, [tail, 100 - tail])
    return Interval(float(low), float(high))
