"""How quickly the fleet answered in the last hour, out of the heartbeats, so that charts need no Prometheus.

Replicas send counts since their start; what is kept are differences, in windows of 15 s, by replica and policy. It is
in this process's memory: a restart begins anew, and of several control planes each knows the beats that it took.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["HOUR_S", "WINDOW_S", "Counts", "History", "PolicyCounts"]

#: Length of a window.
WINDOW_S = 15.0
#: What is kept.
HOUR_S = 3600.0
_WINDOWS = int(HOUR_S / WINDOW_S)
#: A replica that was silent for longer has no known rate in between.
_SILENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class PolicyCounts:
    """What one replica counted of one policy since its start.

    Attributes:
        answered: Frames with an answer.
        late: Answers later than one period of the session's rate.
        dropped: Frames without an answer.
        bounds_s: Upper bounds of the buckets of `total`, in seconds.
        total: Answers by the time from a frame's arrival to its answer's departure; one more than there are bounds.
    """

    answered: int
    late: int
    dropped: int
    bounds_s: Sequence[float]
    total: Sequence[int]


@dataclass(slots=True)
class Counts:
    """What happened in some time; they add up.

    Attributes:
        answered: Frames with an answer.
        late: Answers later than one period.
        dropped: Frames without an answer.
        total: Answers by the upper bound of their bucket in seconds, infinity the last.
    """

    answered: int = 0
    late: int = 0
    dropped: int = 0
    total: Counter[float] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Add what another holds."""
        self.answered += other.answered
        self.late += other.late
        self.dropped += other.dropped
        self.total.update(other.total)

    @property
    def late_share(self) -> float | None:
        """Share of the answers that were late; None without answers."""
        return min(1.0, self.late / self.answered) if self.answered else None

    def quantile_s(self, q: float) -> float | None:
        """Return a quantile of the time to answer in seconds, linear within its bucket; None without answers.

        What is above the last bound counts as the last bound: it may have been longer.
        """
        left = q * self.total.total()
        low = 0.0
        for bound in sorted(self.total):
            count = self.total[bound]
            if count and left <= count:
                return low if math.isinf(bound) else low + (bound - low) * left / count
            left -= count
            low = low if math.isinf(bound) else bound
        return None


class _Known:
    """The last beat of a replica, and what it told in the last hour."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.at = 0.0
        self.last: dict[str, Counts] = {}
        self.windows: dict[int, dict[str, Counts]] = {}


class History:
    """The last hour of a fleet. Any thread may call.

    Args:
        clock: Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._replicas: dict[str, _Known] = {}

    def add(self, replica: str, instance: str, policies: Mapping[str, PolicyCounts]) -> None:
        """Take the counts of a heartbeat.

        Args:
            replica: Its name.
            instance: Its process; another one counts from zero again.
            policies: Counts since its start by policy.
        """
        now = self._clock()
        with self._lock:
            known = self._replicas.get(replica)
            # Of a replica that is new to us, or was silent, it is unknown when it counted what it tells now.
            countable = known is not None and now - known.at <= _SILENCE_S
            if known is None:
                known = self._replicas[replica] = _Known(instance)
            if known.instance != instance:
                known.instance, known.last = instance, {}
            counted = {policy: _counts(counts) for policy, counts in policies.items()}
            if countable:
                window = known.windows.setdefault(int(now // WINDOW_S), {})
                for policy, counts in counted.items():
                    window.setdefault(policy, Counts()).add(_less(counts, known.last.get(policy, Counts())))
            known.at, known.last = now, counted
            self._forget(now)

    def windows(self, replica: str = "", policy: str = "") -> list[Counts]:
        """Return the last hour, oldest window first; the last one is the window that is not over yet.

        Args:
            replica: Only this one; empty: all.
            policy: Only this one; empty: all.
        """
        now = int(self._clock() // WINDOW_S)
        found = [Counts() for _ in range(_WINDOWS)]
        with self._lock:
            for name, known in self._replicas.items():
                if replica in ("", name):
                    for number, policies in known.windows.items():
                        index = _WINDOWS - 1 - (now - number)
                        if 0 <= index < _WINDOWS:
                            for each, counts in policies.items():
                                if policy in ("", each):
                                    found[index].add(counts)
        return found

    def lately(self, seconds: float, replica: str = "", policy: str = "") -> Counts:
        """Return the sum over the last `seconds`, in whole windows."""
        together = Counts()
        for counts in self.windows(replica, policy)[-max(1, math.ceil(seconds / WINDOW_S)) :]:
            together.add(counts)
        return together

    def _forget(self, now: float) -> None:
        oldest = int(now // WINDOW_S) - _WINDOWS
        for name, known in list(self._replicas.items()):
            if now - known.at > HOUR_S:
                del self._replicas[name]
            for number in [number for number in known.windows if number <= oldest]:
                del known.windows[number]


def _counts(given: PolicyCounts) -> Counts:
    bounds = (*given.bounds_s, math.inf)
    return Counts(given.answered, given.late, given.dropped, Counter(dict(zip(bounds, given.total, strict=False))))


def _less(now: Counts, before: Counts) -> Counts:
    """Return what was added since; counts that went back, which they never should, are nothing."""
    # Empty buckets stay: their bounds are where the next ones begin.
    total = Counter({bound: max(0, count - before.total[bound]) for bound, count in now.total.items()})
    return Counts(
        max(0, now.answered - before.answered), max(0, now.late - before.late), max(0, now.dropped - before.dropped),
        total,
    )  # fmt: skip
