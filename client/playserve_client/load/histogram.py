"""Counts of times in buckets that widen with the value: any quantile to within 1 part in 128, and sums of histograms.

The bucketing is that of HdrHistogram: values below 256 have a bucket each, and above that each power of two is cut into
128 equal buckets. Only buckets that hold something take memory, so a histogram is a small JSON value, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

__all__ = ["RELATIVE_ERROR", "Histogram"]

_BITS = 7

#: A quantile is at most this part of itself above the value that was really counted, and never below it.
RELATIVE_ERROR = 2.0**-_BITS


class Histogram:
    """Counts of whole numbers from 0 up, such as nanoseconds."""

    __slots__ = ("_buckets", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0
        self.minimum: int | None = None
        self.maximum: int | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment] # it changes

    def add(self, value: int) -> None:
        """Count one value.

        Raises:
            ValueError: It is less than 0.
        """
        if value < 0:
            raise ValueError(f"a histogram counts values from 0 up, not {value}")
        self._buckets[_bucket(value)] += 1
        self.count += 1
        self.total += value
        if self.minimum is None or value < self.minimum:
            self.minimum = value
        if self.maximum is None or value > self.maximum:
            self.maximum = value

    def merge(self, other: Histogram) -> None:
        """Count everything that `other` has counted, too."""
        self._buckets.update(other._buckets)
        self.count += other.count
        self.total += other.total
        self.minimum = min((v for v in (self.minimum, other.minimum) if v is not None), default=None)
        self.maximum = max((v for v in (self.maximum, other.maximum) if v is not None), default=None)

    @property
    def mean(self) -> float | None:
        """Return the mean, exact; None of nothing."""
        return self.total / self.count if self.count else None

    def quantile(self, q: float) -> int | None:
        """Return the smallest value that a share of at least `q` of the counted ones does not exceed; None of nothing.

        It is never less than the exact one, and at most :data:`RELATIVE_ERROR` of it more; at 1 it is exact.

        Args:
            q: 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"quantile {q}, wanted 0 to 1")
        if self.maximum is None:
            return None
        rank = max(1, math.ceil(q * self.count - 1e-9))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return min(_highest(bucket), self.maximum)
        return self.maximum

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value, which :meth:`from_json` reads."""
        return {
            "bits": _BITS,
            "count": self.count,
            "total": self.total,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "buckets": [[bucket, self._buckets[bucket]] for bucket in sorted(self._buckets)],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the histogram of a JSON value.

        Raises:
            ValueError: Its buckets are of another width, or do not add up.
        """
        if value["bits"] != _BITS:
            raise ValueError(f"a histogram of {value['bits']} bits, wanted {_BITS}")
        made = cls()
        made._buckets = Counter({int(bucket): int(count) for bucket, count in value["buckets"]})
        made.count, made.total = value["count"], value["total"]
        made.minimum, made.maximum = value["minimum"], value["maximum"]
        if made._buckets.total() != made.count:
            raise ValueError(f"a histogram of {made.count} values whose buckets hold {made._buckets.total()}")
        return made


def _bucket(value: int) -> int:
    shift = max(0, value.bit_length() - _BITS - 1)
    return (shift << _BITS) + (value >> shift)


def _highest(bucket: int) -> int:
    """Return the largest value that falls into a bucket."""
    if bucket < 2 << _BITS:
        return bucket
    shift = (bucket >> _BITS) - 1
    return ((bucket - (shift << _BITS) + 1) << shift) - 1
