"""How sure a number is: runs drawn anew, evaluation noise drawn anew, budgets left out one at a time.

A draw takes, for each (task, variant, size, amount of data), as many runs as there are seeds, with replacement: all
checkpoints of a run move together. Where no size has a second seed, whole runs are drawn from all of them instead. The
held-out loss is then recomputed with the held-out *episodes* drawn anew, the same draw for every cell; where cells
bring only a standard error, each is moved by its own. Returns are moved by their standard error.

Shape legend: K cells, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from playserve_trainer.laws.isoflop import budget_curves, budgets_of
from playserve_trainer.laws.refusals import RefusedError
from playserve_trainer.laws.table import CellTable, Floats

__all__ = ["Estimate", "Resampler", "bootstrap", "drawn_losses", "jackknife_budgets"]

#: Returns numbers by name; raises RefusedError where a table cannot carry them.
Numbers = Callable[[CellTable, np.random.Generator], Mapping[str, float]]

# An interval needs more than this part of its draws.
_LEAST_SHARE = 0.5
_CHUNKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
        low: 2.5th percentile of the draws; None where more than half of them were refused.
        high: 97.5th percentile.
        draws: Draws that gave the number.
        refused: Draws that could not carry it.
    """

    low: float | None
    high: float | None
    draws: int
    refused: int


class Resampler:
    """Draws tables like a given one.

    Args:
        table: The cells.
    """

    def __init__(self, table: CellTable) -> None:
        self.table = table
        self._runs = self._by_stratum()
        losses = table.episode_losses()
        # Of a single episode nothing can be drawn.
        self._losses = losses if losses is not None and len(losses[1]) > 1 else None
        self.by_seed = any(len(runs) > 1 for runs in self._runs)
        self.noise = self._noise()

    def notes(self) -> list[str]:
        """Return what the intervals hold and what they do not."""
        found = []
        if self.by_seed:
            single = sum(len(runs) == 1 for runs in self._runs)
            found.append(
                "runs are drawn anew within each size"
                + (f"; {single} of {len(self._runs)} sizes have one seed, whose variance is not in the interval"
                   if single else "")
            )  # fmt: skip
            lone = self._lone_budgets()
            if lone:
                found.append(f"budgets with one seed, whose variance is not in the interval: {', '.join(lone)}")
        else:
            found.append(
                "every size has one seed: seed variance is not in the interval; whole runs are drawn instead, which "
                "says how much hangs on single sizes"
            )
        found.append(
            {
                "episodes": "held-out episodes are drawn anew, the same for every cell",
                "errors": "losses are moved by their standard errors",
                "none": "evaluation noise is not in the interval: the table holds no standard errors",
            }[self.noise]
        )
        return found

    def draw(self, rng: np.random.Generator) -> CellTable:
        """Return one table."""
        rows = self._rows(rng)
        table = self.table.take(rows)
        loss, returns = table.loss.copy(), table.numbers["return_mean"].copy()
        if self._losses is not None:
            sums_KE, labels_E = self._losses
            loss = drawn_losses(sums_KE[rows], labels_E, rng)
        elif self.noise == "errors":
            loss = np.maximum(loss + np.nan_to_num(table.numbers["loss_se"]) * rng.standard_normal(len(loss)), 1e-12)
        returns = returns + np.nan_to_num(table.numbers["return_se"]) * rng.standard_normal(len(returns))
        return table.with_numbers(loss=loss, return_mean=returns)

    def _rows(self, rng: np.random.Generator) -> np.ndarray:
        if not self.by_seed:
            runs = [rows for stratum in self._runs for rows in stratum]
            return np.concatenate([runs[i] for i in rng.integers(len(runs), size=len(runs))])
        rows = []
        for runs in self._runs:
            chosen = rng.integers(len(runs), size=len(runs))
            rows += [runs[i] for i in chosen]
            # A budget that none of the chosen runs reached keeps those that did.
            reached = {float(self.table.numbers["budget"][row]) for i in chosen for row in runs[i]}
            everything = np.concatenate(runs)
            rows.append(everything[[float(self.table.numbers["budget"][row]) not in reached for row in everything]])
        return np.concatenate(rows)

    def _by_stratum(self) -> list[list[np.ndarray]]:
        """Return the rows of each run, grouped by what a seed repeats."""
        words, numbers = self.table.words, self.table.numbers
        strata: dict[tuple[object, ...], dict[str, list[int]]] = {}
        for row in range(len(self.table)):
            key = (words["task"][row], words["variant"][row], words["size"][row], float(numbers["params"][row]),
                   float(np.nan_to_num(numbers["unique"][row])))  # fmt: skip
            strata.setdefault(key, {}).setdefault(words["run"][row], []).append(row)
        return [[np.array(rows) for rows in runs.values()] for runs in strata.values()]

    def _noise(self) -> str:
        if self._losses is not None:
            return "episodes"
        return "errors" if self.table.has("loss_se") else "none"

    def _lone_budgets(self) -> list[str]:
        return [f"{curve.budget:.3g}" for curve in budget_curves(self.table) if curve.seeds.max() == 1]


def drawn_losses(sums_KE: Floats, labels_E: Floats, rng: np.random.Generator) -> Floats:
    """Return the loss of every cell [K] with the held-out episodes drawn anew, the same draw for all."""
    episodes = len(labels_E)
    weights_E = rng.multinomial(episodes, np.full(episodes, 1 / episodes)).astype(np.float64)
    losses: Floats = (sums_KE @ weights_E) / (labels_E @ weights_E)
    return losses


def bootstrap(
    table: CellTable, numbers: Numbers, *, resamples: int = 1000, seed: int = 0, processes: int = 1
) -> dict[str, Estimate]:
    """Return the interval of every number that a table gives.

    Args:
        table: The cells.
        numbers: Of a table; must be a function that other processes can import where `processes` is above 1.
        resamples: Draws.
        seed: Of the draws; the same seed gives the same intervals whatever the number of processes.
        processes: How many compute.
    """
    seeds = np.random.SeedSequence(seed).spawn(resamples)
    chunks = [seeds[at::_CHUNKS] for at in range(_CHUNKS) if len(seeds[at::_CHUNKS])]
    one = partial(_draws, table, numbers)
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            drawn = [found for part in pool.map(one, chunks) for found in part]
    else:
        drawn = [found for chunk in chunks for found in one(chunk)]
    names = dict.fromkeys(name for found in drawn for name in found)
    return {name: _estimate([found[name] for found in drawn if name in found], resamples) for name in names}


def jackknife_budgets(table: CellTable, numbers: Numbers) -> dict[str, tuple[float, float]]:
    """Return the least and the most of every number when one budget at a time is left out."""
    found: dict[str, list[float]] = {}
    budgets = budgets_of(table)
    for budget in np.unique(budgets):
        try:
            for name, value in numbers(table.take(budgets != budget), np.random.default_rng(0)).items():
                found.setdefault(name, []).append(value)
        except RefusedError:
            continue
    return {name: (min(values), max(values)) for name, values in found.items()}


def _draws(table: CellTable, numbers: Numbers, seeds: Sequence[np.random.SeedSequence]) -> list[Mapping[str, float]]:
    resampler, found = Resampler(table), list[Mapping[str, float]]()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        try:
            found.append(numbers(resampler.draw(rng), rng))
        except RefusedError:
            found.append({})
    return found


def _estimate(values: Sequence[float], resamples: int) -> Estimate:
    finite: Floats = np.array([value for value in values if np.isfinite(value)])
    low, high = None, None
    if len(finite) > _LEAST_SHARE * resamples:
        low, high = (float(end) for end in np.percentile(finite, [2.5, 97.5]))
    return Estimate(low=low, high=high, draws=len(finite), refused=resamples - len(finite))
