"""How many rows wait for one another before a message: half of all, or all. Which is faster is measured, not guessed.

With halves the server computes one while the environments step the other. Where a batch of all costs it hardly more
than one of half (small nets, GPUs), it is better to send all and let it idle meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Gathering"]

_WINDOW_S = 1.0
# Windows after which the other size is tried again: the game, or the server's load, may have changed.
_PATIENCE = 20
# By so much the other size has to be faster.
_MARGIN = 1.03
_HOLD_S = 0.005


class Gathering:
    """Chooses the size of messages. Not thread-safe.

    Args:
        num_envs: Rows of the stream.
        clock: Monotonic seconds.
    """

    def __init__(self, num_envs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._sizes = ((num_envs + 1) // 2, num_envs)
        self._clock = clock
        self._index = 0
        self._rates: list[float | None] = [None, None]
        self._began: float | None = None
        self._rows = 0
        self._windows = 0

    @property
    def rows(self) -> int:
        """Return how many rows a message waits for while another one is on its way."""
        return self._sizes[self._index]

    @property
    def hold_s(self) -> float:
        """Return how long a smaller one waits for rows that environments still step, with none on its way."""
        return _HOLD_S if self._index else 0.0

    def answered(self, rows: int) -> None:
        """Count rows that were answered."""
        now = self._clock()
        if self._began is None:
            self._began, self._rows = now, 0
            return
        self._rows += rows
        if now - self._began < _WINDOW_S:
            return
        self._rates[self._index] = self._rows / (now - self._began)
        self._windows += 1
        before, self._index = self._index, self._next()
        # The first answers after a change are to messages of the other size.
        self._began, self._rows = (now, 0) if self._index == before else (None, 0)

    def _next(self) -> int:
        mine, other = self._rates[self._index], self._rates[1 - self._index]
        if other is None or self._windows >= _PATIENCE:
            self._windows = 0
            return 1 - self._index
        assert mine is not None  # noqa: S101 - its window has just ended
        return 1 - self._index if other > _MARGIN * mine else self._index
