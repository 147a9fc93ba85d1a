"""Least squares with coefficients that may not be negative, for a whole stack of small problems at once."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from playserve_trainer.laws.table import Floats

__all__ = ["solve_not_negative"]

# Added to Gram matrices of columns of length 1: equal columns then share a coefficient instead of failing.
_RIDGE = 1e-13


def solve_not_negative(gram: Floats, target: Floats, total: float) -> tuple[Floats, Floats]:
    """Return the least squared residual [...] and the coefficients [..., P] >= 0 that give it.

    Each set of non-zero coefficients is tried: P is small. (scipy's nnls solves one problem a call, and takes 50
    times as long for the thousands that a search over exponents poses.)

    Args:
        gram: X'X of each problem [..., P, P].
        target: X'y [..., P].
        total: y'y.
    """
    size = target.shape[-1]
    best_sse = np.full(target.shape[:-1], total)
    best: Floats = np.zeros(target.shape)
    scale = np.sqrt(np.einsum("...ii->...i", gram))
    for count in range(size, 0, -1):
        for kept in itertools.combinations(range(size), count):
            index: NDArray[np.intp] = np.array(kept)
            part = scale[..., index]
            small = gram[..., index[:, None], index] / (part[..., :, None] * part[..., None, :])
            small = small + _RIDGE * np.eye(count)
            solved = np.linalg.solve(small, (target[..., index] / part)[..., None])[..., 0] / part
            sse = total - (solved * target[..., index]).sum(-1)
            better = (solved >= 0).all(-1) & (sse < best_sse)
            best_sse = np.where(better, sse, best_sse)
            filled = np.zeros(target.shape)
            filled[..., index] = solved
            best = np.where(better[..., None], filled, best)
    return best_sse, best
