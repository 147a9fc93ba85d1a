"""Correlations of two columns, many resamples at a time, and what an interval of them is.

Shape legend: S resamples, K rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from playserve_trainer.laws.table import Floats

__all__ = ["interval", "pearson", "ranks", "spearman"]

# An interval needs more than this part of its draws.
_LEAST_SHARE = 0.5


def ranks(x_SK: ArrayLike) -> Floats:
    """Return the ranks from 1 on of the values in each row, [S, K]; equal values share their mean rank."""
    from scipy import stats

    found: Floats = stats.rankdata(np.atleast_2d(np.asarray(x_SK, np.float64)), axis=1)
    return found


def pearson(x_SK: ArrayLike, y_SK: ArrayLike) -> Floats:
    """Return the correlation of each row of one with that of the other, [S]; nan where one does not vary."""
    one_SK, other_SK = _centred(x_SK), _centred(y_SK)
    norm_S = np.sqrt(np.square(one_SK).sum(1) * np.square(other_SK).sum(1))
    product_S = (one_SK * other_SK).sum(1)
    found_S: Floats = np.divide(product_S, norm_S, out=np.full(len(norm_S), np.nan), where=norm_S > 0)
    return np.clip(found_S, -1.0, 1.0)


def spearman(x_SK: ArrayLike, y_SK: ArrayLike) -> Floats:
    """Return the rank correlation of each row of one with that of the other, [S]; nan where one does not vary."""
    return pearson(ranks(x_SK), ranks(y_SK))


def _centred(x_SK: ArrayLike) -> Floats:
    rows_SK: Floats = np.atleast_2d(np.asarray(x_SK, np.float64))
    centred_SK: Floats = rows_SK - rows_SK.mean(1, keepdims=True)
    return centred_SK


def interval(draws_S: Floats) -> dict[str, float | int | None]:
    """Return the 95% percentile interval of draws: "low", "high", and "draws", how many gave a number.

    The bounds are None where half of the draws gave none.
    """
    finite = draws_S[np.isfinite(draws_S)]
    if len(finite) <= _LEAST_SHARE * len(draws_S):
        return {"low": None, "high": None, "draws": len(finite)}
    low, high = np.percentile(finite, [2.5, 97.5])
    return {"low": float(low), "high": float(high), "draws": len(finite)}
