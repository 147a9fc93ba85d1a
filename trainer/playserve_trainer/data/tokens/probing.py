"""Linear probes: how well values beside the frames can be read off some features, by ridge regression.

The regression is solved in its dual form, which is as large as there are frames, whatever the features; the strength of
the ridge is chosen for each value by the error of leaving one frame out, in closed form.

Shape legend: N frames to fit, M frames to test, X features, P values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reading", "fit_reading", "probe_errors"]

# Strengths of the ridge, in units of a frame's mean squared feature.
_RIDGES = tuple(10.0**power for power in range(-4, 5))
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Reading:
    """A linear map from features to values, as :func:`fit_reading` finds it.

    Attributes:
        weights_XP: float64, of centred features.
        centre_X: float64, mean feature of the fit.
        centre_P: float64, mean value of the fit.
        left_out_P: float64, root mean square error of leaving one frame of the fit out, in the values' units.
    """

    weights_XP: NDArray[np.float64]
    centre_X: NDArray[np.float64]
    centre_P: NDArray[np.float64]
    left_out_P: NDArray[np.float64]

    def __call__(self, features_MX: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return what is read off features, float64 [M, P]."""
        read_MP: NDArray[np.float64] = (features_MX - self.centre_X) @ self.weights_XP + self.centre_P
        return read_MP


def fit_reading(fit_NX: NDArray[np.floating], values_NP: NDArray[np.floating]) -> Reading:
    """Return the ridge regression of values on features; the strength of the ridge is chosen for each value."""
    centre_X, centre_P = fit_NX.mean(0, dtype=np.float64), values_NP.mean(0, dtype=np.float64)
    x_NX = fit_NX.astype(np.float64) - centre_X
    y_NP = values_NP.astype(np.float64) - centre_P
    kernel_NN = x_NX @ x_NX.T
    scale = max(float(np.trace(kernel_NN)) / len(x_NX), _TINY)
    eigen_N, basis_NN = np.linalg.eigh(kernel_NN)
    eigen_N = np.clip(eigen_N, 0.0, None)
    rotated_NP = basis_NN.T @ y_NP
    best_P = np.full(y_NP.shape[1], np.inf)
    dual_best_NP = np.zeros_like(y_NP)
    for ridge in _RIDGES:
        inverse_N = 1.0 / (eigen_N + ridge * scale)
        dual_NP = basis_NN @ (inverse_N[:, None] * rotated_NP)
        # Leaving frame i out, its error is dual_i / (inverse kernel)_ii.
        diagonal_N = (basis_NN**2) @ inverse_N
        left_out_P = np.square(dual_NP / diagonal_N[:, None]).mean(0)
        better_P = left_out_P < best_P
        best_P = np.where(better_P, left_out_P, best_P)
        dual_best_NP[:, better_P] = dual_NP[:, better_P]
    return Reading(x_NX.T @ dual_best_NP, centre_X, centre_P, np.sqrt(best_P))


def probe_errors(
    fit_NX: NDArray[np.floating],
    values_NP: NDArray[np.floating],
    test_MX: NDArray[np.floating],
    wanted_MP: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Return the error of each value, float64 [P], where 1 is that of always guessing the mean of the frames to fit.

    Args:
        fit_NX: Features of the frames to fit.
        values_NP: Their values.
        test_MX: Features of the frames to test, of other episodes.
        wanted_MP: Their values; one that is that mean throughout has an error of nan.
    """
    reading = fit_reading(fit_NX, values_NP)
    error_P = np.sqrt(np.square(reading(test_MX) - wanted_MP).mean(0))
    of_mean_P = np.sqrt(np.square(wanted_MP - reading.centre_P).mean(0))
    return np.where(of_mean_P > _TINY, error_P / np.maximum(of_mean_P, _TINY), np.nan)
