"""The break point of a grid over data: the amount of unique data below which more model stops helping.

At each amount of data two neighbouring sizes are compared in pairs of cells, as variants are (:mod:`.pairs`). The break
point of the two is the least amount from which on, at every larger one too, the larger size is shown to be better.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np

from playserve_trainer.laws.pairs import Comparison, compare
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable, Floats

__all__ = ["BreakPoint", "break_points"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakPoint:
    """Two neighbouring sizes over the amounts of data that both were trained on.

    Attributes:
        smaller: Size.
        larger: Size.
        unique_samples: The amounts, rising.
        comparisons: Of loss at each, the smaller size less the larger one.
        at: The break point, unique samples; None: the larger size is not shown to be better at the largest amount.
        is_least: Whether that is the least amount there is: the break point may lie below it.
    """

    smaller: str
    larger: str
    unique_samples: tuple[float, ...]
    comparisons: tuple[Comparison, ...]
    at: float | None
    is_least: bool

    @property
    def verdict(self) -> str:
        """What may be said."""
        if self.at is None:
            return f"{self.larger} is not shown to beat {self.smaller} with as much as {self.unique_samples[-1]:,.0f}"
        below = "the least there is" if self.is_least else "not below"
        return f"{self.larger} beats {self.smaller} from {self.at:,.0f} unique samples on, {below}"


def break_points(table: CellTable, *, resamples: int = 2000) -> tuple[BreakPoint, ...]:
    """Return the break point of each two neighbouring sizes, in a table of one task and variant.

    Args:
        table: The cells.
        resamples: Draws of each interval.

    Raises:
        TooFewCellsError: There are fewer than two sizes, or no two of them share two amounts of data.
    """
    table = table.take(np.isfinite(table.loss))
    order = sorted(dict.fromkeys(table.words["size"]), key=lambda size: float(table.only("size", size).params.mean()))
    # Sizes are compared as variants of one size are.
    blank = ("",) * len(table)
    by_size = dataclasses.replace(table, words={**table.words, "variant": table.words["size"], "size": blank})
    share_K = _shares(table)
    found = [
        point
        for pair in itertools.pairwise(order)
        if (point := _break_point(by_size, share_K, *pair, resamples)) is not None
    ]
    if not found:
        raise TooFewCellsError(f"sizes {', '.join(order)}: no two of them share two amounts of unique data")
    return tuple(found)


def _shares(table: CellTable) -> Floats:
    """Return what tells amounts of data apart: the share where it is known, else their number of samples."""
    shares = table.numbers["unique"]
    return np.where(np.isfinite(shares), shares, table.numbers["unique_samples"])


def _break_point(by_size: CellTable, share_K: Floats, smaller: str, larger: str, resamples: int) -> BreakPoint | None:
    amounts, comparisons = [], []
    for share in np.unique(share_K[np.isfinite(share_K)]):
        part = by_size.take(share_K == share)
        try:
            comparisons.append(compare(part, smaller, larger, resamples=resamples))
        except TooFewCellsError:
            continue
        amounts.append(float(part.numbers["unique_samples"].mean()))
    if len(amounts) < 2:
        return None
    better = [of.low > 0 for of in comparisons]
    # The run of amounts at the upper end at which the larger size is better.
    first = len(better) - next((i for i, one in enumerate(reversed(better)) if not one), len(better))
    return BreakPoint(
        smaller=smaller, larger=larger, unique_samples=tuple(amounts), comparisons=tuple(comparisons),
        at=amounts[first] if first < len(amounts) else None, is_least=first == 0,
    )  # fmt: skip
