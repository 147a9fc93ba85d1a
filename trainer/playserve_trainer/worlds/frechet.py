"""Fréchet distance between features of real and of shown frames, with intervals over episodes.

Features are projected on the main axes of the real ones, so that a few hundred frames fill a covariance; the unit is
the total variance of the real frames along those axes. As every estimate of it, it is biased upwards by small samples:
the distance of other real frames says by how much.

Shape legend: M frames, X features, A axes, E episodes, S resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axes", "Cloud", "frechet"]

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Axes:
    """The main axes of some features.

    Attributes:
        centre_X: float64, their mean.
        axes_XA: float64, orthogonal, each so long that the total variance along all of them is 1.
        kept: Share of the variance that they hold.
    """

    centre_X: NDArray[np.float64]
    axes_XA: NDArray[np.float64]
    kept: float

    @classmethod
    def of(cls, features_MX: NDArray[np.floating], most: int) -> Axes:
        """Return at most so many main axes of at least one frame's features; fewer where fewer vary."""
        centre_X = features_MX.mean(0, dtype=np.float64)
        centred_MX = features_MX - centre_X
        _, spread_R, rows_RX = np.linalg.svd(centred_MX, full_matrices=False)
        variance_R = spread_R**2
        total = max(float(variance_R.sum()), _TINY)
        count = max(1, min(most, int((variance_R > 1e-9 * total).sum())))
        held = max(float(variance_R[:count].sum()), _TINY)
        return cls(centre_X, rows_RX[:count].T / np.sqrt(held / len(features_MX)), held / total)

    def __call__(self, features_MX: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return features along the axes, float64 [M, A]."""
        along_MA: NDArray[np.float64] = (features_MX - self.centre_X) @ self.axes_XA
        return along_MA


@dataclass(frozen=True, slots=True)
class Cloud:
    """Sums over the frames of each episode, of which means and covariances of any resample are made.

    Attributes:
        count_E: float64, frames.
        sum_EA: float64, of features along the axes.
        outer_EAA: float64, of their outer products.
    """

    count_E: NDArray[np.float64]
    sum_EA: NDArray[np.float64]
    outer_EAA: NDArray[np.float64]

    @classmethod
    def of(cls, along_MA: NDArray[np.float64], episode_M: NDArray[np.int64], episodes: int) -> Cloud:
        """Return the sums of frames whose episodes are 0 to `episodes` - 1."""
        axes = along_MA.shape[1]
        count_E = np.bincount(episode_M, minlength=episodes).astype(np.float64)
        sum_EA, outer_EAA = np.zeros((episodes, axes)), np.zeros((episodes, axes, axes))
        for episode in np.unique(episode_M):
            its = along_MA[episode_M == episode]
            sum_EA[episode], outer_EAA[episode] = its.sum(0), its.T @ its
        return cls(count_E, sum_EA, outer_EAA)

    def moments(self, counts_SE: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return means [S, A] and covariances [S, A, A] with each episode counted so often."""
        total_S1 = np.maximum(counts_SE @ self.count_E, 2.0)[:, None]
        mean_SA = counts_SE @ self.sum_EA / total_S1
        outer_SAA = np.tensordot(counts_SE, self.outer_EAA, 1) / total_S1[..., None]
        covariance_SAA = outer_SAA - mean_SA[:, :, None] * mean_SA[:, None, :]
        unbiased = total_S1 / (total_S1 - 1)
        return mean_SA, covariance_SAA * unbiased[..., None]


def frechet(real: Cloud, shown: Cloud, counts_SE: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared Fréchet distance of two clouds, taken as normal, float64 [S], for each resample of episodes.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), after Heusel et al. (1706.08500).
    """
    (mean_a, cov_a), (mean_b, cov_b) = real.moments(counts_SE), shown.moments(counts_SE)
    root_SAA = _root(cov_a)
    inner_SA = np.linalg.eigvalsh(root_SAA @ cov_b @ root_SAA)
    cross_S = np.sqrt(np.clip(inner_SA, 0.0, None)).sum(-1)
    trace_S = np.trace(cov_a, axis1=1, axis2=2) + np.trace(cov_b, axis1=1, axis2=2)
    distance_S: NDArray[np.float64] = np.square(mean_a - mean_b).sum(-1) + trace_S - 2 * cross_S
    return np.clip(distance_S, 0.0, None)


def _root(matrix_SAA: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric square roots of matrices that are positive, but for rounding."""
    values_SA, vectors_SAA = np.linalg.eigh(matrix_SAA)
    scaled_SAA = vectors_SAA * np.sqrt(np.clip(values_SA, 0.0, None))[:, None, :]
    root_SAA: NDArray[np.float64] = scaled_SAA @ vectors_SAA.transpose(0, 2, 1)
    return root_SAA
