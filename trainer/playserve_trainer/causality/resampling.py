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
    """

    def __init__(self, strata: Sequence[Hashable], seed: int = 0, resamples: int = RESAMPLES) -> None:
        rng = np.random.default_rng([0x626F6F74, seed])
        self._strata = list(strata)
        self._counts_SC = np.zeros((resamples, len(strata)))
        for stratum in dict.fromkeys(self._strata):
            its = [c for c, other in enumerate(self._strata) if other == stratum]
            self._counts_SC[:, its] = rng.multinomial(len(its), np.full(len(its), 1.0 / len(its)), size=resamples)

    def summary(self, values: NDArray[np.float64], *clusters: NDArray[np.int64]) -> Summary:
        """Return the mean of values and its interval.

        Args:
            values: One a unit; units that are nan do not count.
            clusters: Cluster of each unit. Several arrays: a unit belongs to a cluster in each of several ways (a pair
                of recordings), and counts as often as the product of its clusters' counts.
        """
        kept = np.flatnonzero(~np.isnan(values))
        if not len(kept):
            return {"mean": None, "low": None, "high": None, "n": 0}
        mean = float(values[kept].mean())
        used: list[set[int]] = [set(of[kept].tolist()) for of in clusters]
        in_stratum: dict[Hashable, set[int]] = {}
        for cluster in set().union(*used):
            in_stratum.setdefault(self._strata[cluster], set()).add(cluster)
        if min(map(len, in_stratum.values())) < 2:
            return {"mean": mean, "low": None, "high": None, "n": len(kept)}
        weights_SN = np.prod([self._counts_SC[:, of[kept]] for of in clusters], axis=0)
        total_S = weights_SN.sum(1)
        means_S = (weights_SN @ values[kept])[total_S > 0] / total_S[total_S > 0]
        low, high = np.percentile(means_S, [2.5, 97.5])
        return {"mean": mean, "low": float(low), "high": float(high), "n": len(kept)}
