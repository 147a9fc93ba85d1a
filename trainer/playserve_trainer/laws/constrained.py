"""The law of repeated data: L(N, U, epochs) = E + A N^-alpha + B D'^-beta with D' = U + U R* (1 - exp(-R / R*)).

U is the unique data, R = D / U - 1 how often it was repeated, and R* the number of repeats after which more are worth
little (Muennighoff et al., 2305.16264, without their term for excess parameters). As R* grows D' becomes D. It knows no
overfitting: of each run it is fitted to the checkpoints up to that of its least loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from playserve_trainer.laws.parametric import ParametricLaw, fit_parametric
from playserve_trainer.laws.refusals import NotPositiveError, TooFewCellsError
from playserve_trainer.laws.table import CellTable, Floats

__all__ = ["ConstrainedLaw", "before_overfitting", "constrained_numbers", "effective_samples", "fit_cells",
           "fit_constrained", "predictions"]  # fmt: skip

_LEAST = 12
_REPEATS = np.geomspace(0.1, 1000.0, 25)
_ZOOMS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstrainedLaw:
    """See the module's docstring.

    Attributes:
        parametric: E, A, B, alpha and beta over N and D'.
        repeats: R*.
        at_edge: Whether R* is the least or the most that was tried: then the data say only that it is beyond.
    """

    parametric: ParametricLaw
    repeats: float
    at_edge: bool

    def numbers(self) -> dict[str, float]:
        """Return what is shown of it, by name."""
        law = self.parametric
        return {"E": law.e, "A": law.a, "B": law.b, "alpha": law.alpha, "beta": law.beta, "repeats": self.repeats}

    def predict(self, params: float, unique: float, epochs: float) -> float:
        """Return the loss of N parameters after so many epochs of U samples."""
        samples = effective_samples(np.array([unique]), np.array([unique * epochs]), self.repeats)
        return float(self.parametric.predict(params, float(samples[0])))


def effective_samples(unique: Floats, samples: Floats, repeats: float) -> Floats:
    """Return D' [K] for unique data U and samples seen D; D where it is at most U."""
    repeated = np.maximum(samples / unique - 1, 0)
    effective: Floats = np.minimum(samples, unique) + unique * repeats * -np.expm1(-repeated / repeats)
    return effective


def fit_constrained(params: Floats, unique: Floats, samples: Floats, loss: Floats) -> ConstrainedLaw:
    """Return the law with the least objective; R* is searched on a grid that closes in. Arguments [K].

    Raises:
        TooFewCellsError: Too few cells, or no cell repeats its data.
        NotPositiveError: A value has no logarithm.
    """
    if len(loss) < _LEAST:
        raise TooFewCellsError(f"the law of repeated data has 6 parameters: {len(loss)} cells; {_LEAST} are wanted")
    if not np.all(np.isfinite(unique) & (unique > 0)):
        raise NotPositiveError("the law of repeated data: unique_samples is not above 0 in every cell")
    if not (samples > 1.5 * unique).any() or len(np.unique(unique)) < 3:
        raise TooFewCellsError(
            "the law of repeated data wants cells that see their data more than once, and three amounts of unique data"
        )

    def fitted(repeats: float) -> ParametricLaw:
        return fit_parametric(params, effective_samples(unique, samples, repeats), loss)

    grid, laws = _REPEATS, [fitted(float(repeats)) for repeats in _REPEATS]
    best = int(np.argmin([law.objective for law in laws]))
    at_edge = best in (0, len(grid) - 1)
    for _ in range(0 if at_edge else _ZOOMS):
        grid = np.geomspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], 9)
        laws = [fitted(float(repeats)) for repeats in grid]
        best = int(np.argmin([law.objective for law in laws]))
    repeats = float(grid[best])
    return ConstrainedLaw(parametric=laws[best], repeats=repeats if math.isfinite(repeats) else 0.0, at_edge=at_edge)


def before_overfitting(table: CellTable) -> CellTable:
    """Return the cells of each run up to that of its least loss; without those that have no loss."""
    table = table.take(np.isfinite(table.loss))
    best: dict[str, tuple[float, float]] = {}
    for run, loss, samples in zip(table.words["run"], table.loss.tolist(), table.samples.tolist(), strict=True):
        best[run] = min(best.get(run, (loss, samples)), (loss, samples))
    last_K = np.array([best[run][1] for run in table.words["run"]])
    return table.take(table.samples <= last_K)


def fit_cells(table: CellTable) -> ConstrainedLaw:
    """Return the law of a table's cells before they overfit; raises as :func:`fit_constrained`."""
    table = before_overfitting(table)
    return fit_constrained(table.params, table.numbers["unique_samples"], table.samples, table.loss)


def predictions(law: ConstrainedLaw, held_out: CellTable) -> dict[str, float]:
    """Return the loss that a law predicts of each cell of a table, by a name with its row."""
    unique = held_out.numbers["unique_samples"]
    cells = zip(held_out.params, unique, held_out.samples / unique, strict=True)
    return {f"held_out/{row}": law.predict(*cell) for row, cell in enumerate(cells)}


def constrained_numbers(table: CellTable, rng: np.random.Generator, *, held_out: CellTable) -> dict[str, float]:
    """Return the numbers of a table's law and its predictions of held-out cells.

    Made for :func:`playserve_trainer.laws.uncertainty.bootstrap`; `rng` is not used.
    """
    del rng
    law = fit_cells(table)
    return law.numbers() | predictions(law, held_out)
