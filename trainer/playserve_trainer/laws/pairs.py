"""Which of two variants is better: by the difference within pairs of cells, never by whether intervals overlap.

A pair is two cells of one task that agree in size dial, budget and seed, and in what they were evaluated on: nats of
one of four classes are not those of one of 73. Its difference is taken on the same held-out episodes, which are drawn
anew for both together; pairs of one seed stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable, Floats
from playserve_trainer.laws.uncertainty import drawn_losses

__all__ = ["Comparison", "compare"]

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The mean difference of loss, `first` less `second`.

    Attributes:
        first: Variant.
        second: Variant.
        difference: Mean over pairs, nats a label; below 0: the first is better.
        low: Lower end of its 95% interval.
        high: Upper end.
        pairs: How many.
        seeds: How many different seeds they have; with one, seed variance is not in the interval.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    pairs: int
    seeds: int

    @property
    def verdict(self) -> str:
        """What may be said."""
        if self.low <= 0 <= self.high:
            return "no difference is shown"
        return f"{self.first if self.difference < 0 else self.second} is better"


def compare(table: CellTable, first: str, second: str, *, seed: int = 0, resamples: int = _RESAMPLES) -> Comparison:
    """Return the comparison of two variants in a table of one task.

    Args:
        table: The cells.
        first: Variant.
        second: Variant.
        seed: Of the draws.
        resamples: Draws of the interval.

    Raises:
        TooFewCellsError: No two cells are a pair.
    """
    rows = _pairs(table, first, second)
    if not rows:
        raise TooFewCellsError(f"{first!r} and {second!r} share no size, budget, seed and held-out labels")
    left, right = (np.array([pair[side] for pair in rows]) for side in (0, 1))
    seeds = table.numbers["seed"][left]
    rng = np.random.default_rng(seed)
    losses = table.take(np.concatenate([left, right])).episode_losses()
    draws = [_drawn(table, left, right, seeds, losses, rng) for _ in range(resamples)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Comparison(
        first=first, second=second, difference=float((table.loss[left] - table.loss[right]).mean()),
        low=float(low), high=float(high), pairs=len(rows), seeds=len(np.unique(seeds)),
    )  # fmt: skip


def _pairs(table: CellTable, first: str, second: str) -> Sequence[tuple[int, int]]:
    found: dict[str, dict[tuple[object, ...], int]] = {first: {}, second: {}}
    for row, variant in enumerate(table.words["variant"]):
        if variant in found:
            numbers = table.numbers
            words = tuple(table.words[name][row] for name in ("task", "size", "held_out_digest"))
            parts = (numbers["budget"][row], numbers["seed"][row], np.nan_to_num(numbers["unique"][row]))
            key = (*words, *map(float, parts))
            found[variant][key] = row
    return [(row, found[second][key]) for key, row in found[first].items() if key in found[second]]


def _drawn(
    table: CellTable,
    left: np.ndarray,
    right: np.ndarray,
    seeds: Floats,
    losses: tuple[Floats, Floats] | None,
    rng: np.random.Generator,
) -> float:
    """Return the mean difference with seeds and held-out episodes drawn anew.

    Args:
        table: The cells.
        left: Rows of the first variant, one a pair.
        right: Rows of the second.
        seeds: Of the pairs.
        losses: Loss sums by episode of all left cells and then all right ones, and labels; None: not known.
        rng: Draws.
    """
    kinds, pairs = np.unique(seeds), len(left)
    if len(kinds) > 1:
        chosen = np.concatenate([np.flatnonzero(seeds == kind) for kind in rng.choice(kinds, size=len(kinds))])
    else:
        chosen = np.arange(pairs)
    if losses is None:
        errors = np.nan_to_num(table.numbers["loss_se"])
        moved = table.loss + errors * rng.standard_normal(len(table))
        return float((moved[left[chosen]] - moved[right[chosen]]).mean())
    sums, labels = losses
    drawn = drawn_losses(sums, labels, rng)
    return float((drawn[chosen] - drawn[pairs + chosen]).mean())
