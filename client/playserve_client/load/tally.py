"""What was counted: in one interval of a run, by one process, or in all of it. Tallies add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from playserve.errors import PlayserveError
from playserve.settings import DropReason
from playserve_client.load.histogram import Histogram

__all__ = ["TIMES", "Ledger", "Tally", "merged", "name_of_error", "whole_of"]

#: What is timed, nanoseconds. `age`: of every frame, from when it was to be captured until an answer to it, or to a
#: newer one, was here. `answer`: the same of answered frames alone. `lag`: how late this program itself was to send.
#: `open`: from when a session was to be opened until it was. `server`: what the server says that an answer took it.
TIMES = ("age", "answer", "lag", "open", "server")

_DROPS = {DropReason.SUPERSEDED: "superseded", DropReason.STALE: "stale", DropReason.QUOTA: "quota"}


def name_of_error(error: PlayserveError) -> str:
    """Return what an error is counted as: its documented reason, else its class."""
    return error.reason or type(error).__name__


@dataclass(slots=True)
class Tally:
    """Counts and times.

    Attributes:
        counts: `opens` that were tried, `opened`, `ended`, `resumed` sessions; `frames` sent, and of these `answers`,
            `misses` (older than the deadline when the action was there, or never answered), `superseded` and `stale`
            (dropped by the server; `in_memory` of them entered the policy's memory), `unanswered` (nothing came
            until the session's end).
        refused: Sessions that were not opened, by reason.
        errors: Of steps, and of sessions that ended otherwise than planned, by reason.
        times: By :data:`TIMES`.
        session_ns: Time of all open sessions together.
    """

    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    times: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in TIMES})
    session_ns: int = 0

    def merge(self, other: Tally) -> None:
        """Count everything that `other` has counted, too."""
        self.counts.update(other.counts)
        self.refused.update(other.refused)
        self.errors.update(other.errors)
        self.session_ns += other.session_ns
        for name, histogram in other.times.items():
            self.times[name].merge(histogram)

    def dropped(self, reason: DropReason, in_memory: bool) -> None:
        """Count a frame that the server did not answer."""
        self.counts[_DROPS.get(reason, "dropped_otherwise")] += 1
        self.counts["in_memory"] += in_memory

    def total(self, metric: str) -> int:
        """Return a count of :mod:`playserve_client.load.goals`."""
        if metric == "drops":
            return sum(self.counts[name] for name in (*_DROPS.values(), "dropped_otherwise"))
        named = {"refused": self.refused, "errors": self.errors}.get(metric)
        return self.counts[metric] if named is None else named.total()

    def whole(self, metric: str) -> int:
        """Return what a share of that count is a share of."""
        return self.counts["opens" if metric in ("refused", "errors") else "frames"]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value, which :meth:`from_json` reads."""
        return {
            "counts": dict(self.counts),
            "refused": dict(self.refused),
            "errors": dict(self.errors),
            "times": {name: histogram.to_json() for name, histogram in self.times.items()},
            "session_ns": self.session_ns,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        """Return the tally of a JSON value."""
        return cls(
            Counter(value["counts"]),
            Counter(value["refused"]),
            Counter(value["errors"]),
            {name: Histogram.from_json(value["times"][name]) for name in TIMES},
            value["session_ns"],
        )


class Ledger:
    """Tallies by interval; whatever comes before the measurement is in one of its own.

    A frame counts in the interval in which it was to be captured, however late its answer is.

    Args:
        begin_ns: When the measurement begins, monotonic.
        interval_ns: Length of an interval.
        intervals: How many there are; what comes after the last counts in it.
    """

    #: Index of the interval that holds the warm-up.
    WARM_UP = -1

    def __init__(self, begin_ns: int, interval_ns: int, intervals: int) -> None:
        self._begin_ns, self._interval_ns, self._last = begin_ns, interval_ns, intervals - 1
        self.intervals: dict[int, Tally] = {}
        self._changed: set[int] = set()

    def at(self, when_ns: int) -> Tally:
        """Return the tally of a moment, to be added to."""
        index = max(self.WARM_UP, min(self._last, (when_ns - self._begin_ns) // self._interval_ns))
        self._changed.add(index)
        tally = self.intervals.get(index)
        if tally is None:
            tally = self.intervals[index] = Tally()
        return tally

    def played(self, from_ns: int, to_ns: int, sessions: int) -> None:
        """Count the time that so many sessions were open; what comes after the last interval is nobody's."""
        to_ns = min(to_ns, self._begin_ns + (self._last + 1) * self._interval_ns)
        while from_ns < to_ns:
            index = max(self.WARM_UP, (from_ns - self._begin_ns) // self._interval_ns)
            until_ns = min(to_ns, self._begin_ns + (index + 1) * self._interval_ns)
            self.at(from_ns).session_ns += sessions * (until_ns - from_ns)
            from_ns = until_ns

    def take_changed(self) -> dict[str, Any]:
        """Return the JSON of the intervals that changed since the last call."""
        changed, self._changed = self._changed, set()
        return {str(index): self.intervals[index].to_json() for index in sorted(changed)}


def whole_of(tallies: Mapping[int, Tally]) -> Tally:
    """Return the tally of a whole run: what was measured, and what went wrong while it warmed up.

    Sessions that are refused or die before the measurement would else be nobody's.
    """
    whole = merged(tally for index, tally in tallies.items() if index != Ledger.WARM_UP)
    warm_up = tallies.get(Ledger.WARM_UP, Tally())
    whole.refused.update(warm_up.refused)
    whole.errors.update(warm_up.errors)
    for name in ("opens", "opened", "resumed", "ended"):
        whole.counts[name] += warm_up.counts[name]
    whole.times["open"].merge(warm_up.times["open"])
    return whole


def merged(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies."""
    whole = Tally()
    for tally in tallies:
        whole.merge(tally)
    return whole
