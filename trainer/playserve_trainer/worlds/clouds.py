"""Fréchet distances of a world: features of all frames that are looked at between a horizon and the one before.

Shape legend: S starts, L steps that are looked at, M frames, X features, A axes, R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve_trainer.worlds.frechet import Cloud, frechet
from playserve_trainer.worlds.judged import Judged
from playserve_trainer.worlds.measures import REAL, SHOWN

__all__ = ["described", "distances"]

# Eigenvalues of every resample are costly.
_RESAMPLES = 400


def described(judged: Judged) -> dict[str, Any]:
    """Return what is said of the features whose distributions are compared."""
    axes = judged.axes
    return {
        "name": judged.of_clouds.name, "key": judged.of_clouds.key, "axes": axes.axes_XA.shape[1],
        "variance_kept": axes.kept,
        "unit": "variance of the real frames that are looked at, along the axes",
        "interval": "draws are moved so that their mean is the estimate: resampling adds to a distance",
    }  # fmt: skip


def distances(judged: Judged, before: int, horizon: int) -> dict[str, Any] | None:
    """Return the distance of each of what is shown from the real frames of the steps behind `before` to `horizon`.

    "frames" says how many frames each cloud has; None where one of them has no more than there are axes.
    """
    axes = judged.axes
    steps_L = np.flatnonzero((judged.looked_L > before) & (judged.looked_L <= horizon))
    features = judged.measured.features
    there_SL = np.array([start.steps for start in judged.starts])[:, None] >= judged.looked_L[steps_L]
    cluster_SL = np.broadcast_to(judged.cluster_S[:, None], there_SL.shape)
    counts_RE = judged.resampler.counts_SC[:_RESAMPLES]
    episodes = counts_RE.shape[1]
    counts_RE = np.concatenate([np.ones((1, episodes)), counts_RE])
    found: dict[str, Any] = {}
    for name in SHOWN:
        its_SL = there_SL & judged.measured.present[name][:, steps_L]
        frames = int(its_SL.sum())
        if frames <= axes.axes_XA.shape[1]:
            found[name] = None
            continue
        clouds = [Cloud.of(axes(features[of][:, steps_L][its_SL]), cluster_SL[its_SL], episodes) for of in (REAL, name)]
        found[name] = {**_bounds(frechet(clouds[0], clouds[1], counts_RE), episodes), "frames": frames}
    return found if any(found.values()) else None


def _bounds(distance_R: NDArray[np.float64], episodes: int) -> dict[str, Any]:
    estimate, draws = float(distance_R[0]), distance_R[1:]
    if episodes < 2 or not len(draws):
        return {"mean": estimate, "low": None, "high": None}
    low, high = np.percentile(draws - (draws.mean() - estimate), [2.5, 97.5])
    return {"mean": estimate, "low": max(0.0, float(low)), "high": float(high)}
