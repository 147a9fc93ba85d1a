"""Intervals by bootstrap of clusters, within strata, so that what hangs together is drawn together.

Percentile intervals of 95%. A stratum (a game, a goal) keeps its number of clusters in every resample.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["RESAMPLES", "Resampler", "Summary"]

RESAMPLES = 2000

#: "mean" and "n" of the units, "low" and "high"; a bound is None where a stratum has fewer than two clusters.
Summary = dict[str, float | int | None]


class Resampler:
    """Resamples of clusters.

    Args:
        strata: Stratum of each cluster. [C]
        seed: Of the draws.
        resamples: How many.

    Attributes:
        counts_SC: float64, how often each resample holds each cluster.
    """

    def __init__(self, strata: Sequence[Hashable], seed: int = 0, resamples: int = RESAMPLES) -> None:
        rng = np.random.default_rng([0x626F6F74, seed])
        self._strata = list(strata)
        self.counts_SC = np.zeros((resamples, len(strata)))
        for stratum in dict.fromkeys(self._strata):
            its = [c for c, other in enumerate(self._strata) if other == stratum]
            self.counts_SC[:, its] = rng.multinomial(len(its), np.full(len(its), 1.0 / len(its)), size=resamples)

    def summary(self, values: NDArray[np.float64], *clusters: NDArray[np.int64]) -> Summary:
        """Return the mean of values and its interval.

        Args:
            values: One a unit; units that are nan do not count.
            clusters: Cluster of each unit. Several arrays: a unit belongs to a cluster in each of several ways (a pair
                of recordings), and counts as often as the product of its clusters' counts.
        """
        mean, draws_S, units = self.draws(values, *clusters)
        low, high = (None, None) if draws_S is None else np.percentile(draws_S[~np.isnan(draws_S)], [2.5, 97.5])
        return {
            "mean": mean, "low": None if low is None else float(low), "high": None if high is None else float(high),
            "n": units,
        }  # fmt: skip

    def draws(
        self, values: NDArray[np.float64], *clusters: NDArray[np.int64]
    ) -> tuple[float | None, NDArray[np.float64] | None, int]:
        """Return the mean, its resamples and how many units count; arguments as of :meth:`summary`.

        Returns:
            The mean, None without a unit; float64 [S], nan where a resample holds no unit, or None where a stratum has
            fewer than two clusters; the units.
        """
        kept = np.flatnonzero(~np.isnan(values))
        if not len(kept):
            return None, None, 0
        mean = float(values[kept].mean())
        used: list[set[int]] = [set(of[kept].tolist()) for of in clusters]
        in_stratum: dict[Hashable, set[int]] = {}
        for cluster in set().union(*used):
            in_stratum.setdefault(self._strata[cluster], set()).add(cluster)
        if min(map(len, in_stratum.values())) < 2:
            return mean, None, len(kept)
        weights_SN = np.prod([self.counts_SC[:, of[kept]] for of in clusters], axis=0)
        total_S = weights_SN.sum(1)
        means_S = np.divide(weights_SN @ values[kept], total_S, out=np.full(len(total_S), np.nan), where=total_S > 0)
        return mean, means_S, len(kept)
