"""Everything that was measured of a world, and means of it over starts with intervals over their episodes.

Shape legend: S starts, L steps that are looked at, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve_trainer.causality.resampling import Resampler
from playserve_trainer.worlds.features import Features
from playserve_trainer.worlds.frechet import Axes
from playserve_trainer.worlds.measures import REAL, Floats, Measured
from playserve_trainer.worlds.probes import FittedProbes
from playserve_trainer.worlds.starts import Start
from playserve_trainer.worlds.subject import Subject

__all__ = ["Change", "Judged", "as_it_is"]

#: Of a mean, or of means: a function that rises or falls throughout.
Change = Callable[[Any], Any]

#: Axes of the features that are kept: a covariance of so many is filled by a few hundred frames.
_AXES = 32


def as_it_is(value: Any) -> Any:
    """Return the value."""
    return value


@dataclass(frozen=True, slots=True)
class Judged:
    """Everything that was measured of a world.

    Attributes:
        subject: The world and the games.
        starts: S of them.
        looked_L: int64, steps that were looked at.
        measured: What was measured.
        probes: What was read, or None.
        of_clouds: Features whose distributions are compared.
        axes: Their main axes, of the real frames that were looked at.
        resampler: Of the episodes.
        cluster_S: int64, number of each start's episode among those of the starts.
    """

    subject: Subject
    starts: Sequence[Start]
    looked_L: NDArray[np.int64]
    measured: Measured
    probes: FittedProbes | None
    of_clouds: Features
    axes: Axes
    resampler: Resampler
    cluster_S: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        subject: Subject,
        starts: Sequence[Start],
        looked_L: NDArray[np.int64],
        measured: Measured,
        probes: FittedProbes | None,
        of_clouds: Features,
        *,
        seed: int,
        resamples: int,
    ) -> Judged:
        """Return it with the axes of its features, and a resampler of the starts' episodes."""
        episodes, cluster_S = np.unique([start.episode for start in starts], return_inverse=True)
        resampler = Resampler([0] * len(episodes), seed, resamples)
        there_SL = np.array([start.steps for start in starts])[:, None] >= looked_L
        axes = Axes.of(measured.features[REAL][there_SL], _AXES)
        return cls(subject, starts, looked_L, measured, probes, of_clouds, axes, resampler, cluster_S)

    def summary(self, values_S: Floats, change: Change = as_it_is) -> dict[str, Any] | None:
        """Return mean and interval of a value a start, changed by a function that rises or falls throughout."""
        mean, draws_R, units = self.resampler.draws(values_S, self.cluster_S)
        return None if mean is None else {**_bounds(change(mean), draws_R, change), "n": units}

    def difference(self, one_S: Floats, other_S: Floats, change: Change = as_it_is) -> dict[str, Any] | None:
        """Return change(mean of one) - change(mean of the other), over the starts that have both, with its interval."""
        both_S = ~np.isnan(one_S) & ~np.isnan(other_S)
        of = [np.where(both_S, values, np.nan) for values in (one_S, other_S)]
        (one, ones_R, units), (other, others_R, _) = (self.resampler.draws(v, self.cluster_S) for v in of)
        if one is None or other is None:
            return None
        draws_R = None if ones_R is None or others_R is None else change(ones_R) - change(others_R)
        return {**_bounds(change(one) - change(other), draws_R, as_it_is), "n": units}


def _bounds(mean: Any, draws_R: Floats | None, change: Change) -> dict[str, Any]:
    known_R = np.zeros(0) if draws_R is None else draws_R[~np.isnan(draws_R)]
    if not len(known_R):
        return {"mean": float(mean), "low": None, "high": None}
    low, high = np.percentile(change(known_R), [2.5, 97.5])
    return {"mean": float(mean), "low": float(low), "high": float(high)}
