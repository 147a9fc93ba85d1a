"""How long a batch will take: `a * n + b`, learned from the batches that ran (after BentoML's dispatcher)."""

from __future__ import annotations

__all__ = ["TimeModel"]


class TimeModel:
    """Predicts the duration of a batch of n rows by least squares over recent batches.

    Args:
        memory: Number of batches after which an observation's weight has fallen to 1/e.
    """

    def __init__(self, memory: float = 50.0) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._w = self._n = self._nn = self._t = self._nt = 0.0
        self.per_row_s = 0.0
        self.fixed_s = 0.0

    def observe(self, rows: float, seconds: float) -> None:
        """Add one batch of `rows` rows that took `seconds`."""
        keep = self._keep
        self._w = self._w * keep + 1.0
        self._n = self._n * keep + rows
        self._nn = self._nn * keep + rows * rows
        self._t = self._t * keep + seconds
        self._nt = self._nt * keep + rows * seconds
        determinant = self._w * self._nn - self._n * self._n
        mean_n, mean_t = self._n / self._w, self._t / self._w
        # One batch size only tells nothing about the slope: be careful, take all of it as slope.
        slope = (
            (self._w * self._nt - self._n * self._t) / determinant if determinant > 1e-6 * self._nn else mean_t / mean_n
        )
        self.per_row_s = min(max(slope, 0.0), mean_t / mean_n)
        self.fixed_s = mean_t - self.per_row_s * mean_n

    def predict(self, rows: int) -> float:
        """Return the expected seconds of a batch of `rows` rows; 0 before the first observation."""
        return self.fixed_s + self.per_row_s * rows

    @property
    def known(self) -> bool:
        """Whether anything was observed."""
        return self._w > 0.0

    def max_rows(self, seconds: float, limit: int) -> int:
        """Return how many rows, at most `limit`, are expected to take no longer than `seconds`; at least 1."""
        if self.predict(limit) <= seconds or self.per_row_s <= 0.0:
            return limit
        return max(1, min(limit, int((seconds - self.fixed_s) / self.per_row_s)))
