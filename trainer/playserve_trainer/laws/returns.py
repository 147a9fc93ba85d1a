"""Laws of returns: R(C) = 1 / (a C^-g + b), which ends at 1 / b, and return from loss.

Tuyls et al. (2307.09423) give both forms for the best agent of each budget. 1 / b is what the law believes an agent of
unlimited compute would score; where an expert's score is known, forecasts are cut there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from playserve_trainer.laws.power import OffsetPowerLaw, PowerLaw, fit_offset_power_law, fit_power_law
from playserve_trainer.laws.refusals import NotPositiveError
from playserve_trainer.laws.table import Floats

__all__ = ["ReturnLaw", "fit_loss_to_return", "fit_return_law"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnLaw:
    """R(x) = 1 / (a x^-g + b).

    Attributes:
        inverse: The law of 1 / R.
        expert: Score of the expert; None: not known.
    """

    inverse: OffsetPowerLaw
    expert: float | None = None

    @property
    def ceiling(self) -> float:
        """1 / b: infinite where the data show no end."""
        return 1 / self.inverse.offset if self.inverse.offset > 0 else math.inf

    def predict(self, x: float) -> float:
        """Return R at x, at most the expert's score."""
        value = 1 / self.inverse.predict(x)
        return value if self.expert is None else min(value, self.expert)


def fit_return_law(x: Floats, returns: Floats, *, expert: float | None = None) -> ReturnLaw:
    """Return the saturating law of returns over x (C, N, D or 1 / loss). Arguments [K].

    Raises:
        NotPositiveError: A return is not above 0: a game whose scores may be negative has no such law.
        TooFewCellsError: There are fewer than six points.
    """
    if not np.all(returns > 0):
        raise NotPositiveError(f"the law of returns wants returns above 0; the least is {returns.min():g}")
    return ReturnLaw(inverse=fit_offset_power_law(x, 1 / returns, what="the law of returns"), expert=expert)


def fit_loss_to_return(loss: Floats, returns: Floats) -> PowerLaw:
    """Return log R = c + delta log(1 / L), as Tuyls et al.'s code has it; its exponent is delta. Arguments [K].

    Raises:
        NotPositiveError, TooFewCellsError: As :func:`playserve_trainer.laws.power.fit_power_law`.
    """
    return fit_power_law(1 / loss, returns, what="return over 1 / loss")
