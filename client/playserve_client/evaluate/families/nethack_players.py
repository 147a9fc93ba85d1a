"""NetHack's baselines: they draw keys from tables and look at nothing. Seeded, so that a table repeats."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_client.evaluate.players import Player, make_player
from playserve_client.nethack.keys import KEY_TO_ACTION, NUM_ACTIONS

if TYPE_CHECKING:
    from playserve_client.nethack.expert_statistics import ExpertStatistics

__all__ = ["WALK", "NetHackPlayers"]

#: Probability of each action of the random walk [121]: 8 directions, and 15% space, which closes messages.
_DIRECTIONS, _SPACE = b"kljhunby", 0.15


def _walk() -> NDArray[np.float64]:
    weights = np.zeros(NUM_ACTIONS)
    weights[KEY_TO_ACTION[list(_DIRECTIONS)]] = (1 - _SPACE) / len(_DIRECTIONS)
    weights[KEY_TO_ACTION[ord(" ")]] = _SPACE
    return weights


WALK: NDArray[np.float64] = _walk()


class _Drawn:
    """Draws each key from the same weights."""

    def __init__(self, weights: NDArray[Any]) -> None:
        self._table = _cumulative(weights)
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, env: Any) -> int:
        return bisect_right(self._table, self._rng.random())


class _Bigram:
    """Draws each key from what followed the previous one; the first, and after a key never seen, from all."""

    def __init__(self, statistics: ExpertStatistics) -> None:
        alone = _cumulative(statistics.counts)
        self._tables = [_cumulative(row) if row.any() else alone for row in statistics.bigram]
        self._first = alone
        self._previous = -1
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._rng, self._previous = np.random.default_rng(seed), -1

    def act(self, env: Any) -> int:
        table = self._first if self._previous < 0 else self._tables[self._previous]
        self._previous = bisect_right(table, self._rng.random())
        return self._previous


def _cumulative(weights: NDArray[Any]) -> list[float]:
    """Return the table to look up numbers of [0, 1) in; actions of no weight are never found."""
    sums = np.cumsum(weights, dtype=np.float64)
    last = int(np.flatnonzero(weights)[-1])
    table: list[float] = (sums / sums[-1]).tolist()
    table[last:] = [1.0] * (len(table) - last)  # rounding must not lead past the end
    return table


class NetHackPlayers:
    """Makes NetHack's players; reads the file of statistics once.

    Args:
        knowledge: The file, or None where no player needs it.
    """

    def __init__(self, knowledge: Path | None) -> None:
        self._knowledge = knowledge
        self._statistics: ExpertStatistics | None = None

    def __call__(self, kind: str, action: int | None) -> Player:
        """Return a new player: "random", "constant", "frequencies", "bigram" or "walk"."""
        if kind == "walk":
            return _Drawn(WALK)
        if kind == "frequencies":
            return _Drawn(self._read().counts)
        if kind == "bigram":
            return _Bigram(self._read())
        return make_player(kind, game="", num_actions=NUM_ACTIONS, action=action)

    def _read(self) -> ExpertStatistics:
        from playserve_client.nethack.expert_statistics import ExpertStatistics

        if self._knowledge is None:
            raise BadSettingError("there are no statistics of an expert's keys to draw from")
        if self._statistics is None:
            self._statistics = ExpertStatistics.from_bytes(self._knowledge.read_bytes(), str(self._knowledge))
        return self._statistics
