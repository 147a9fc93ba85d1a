"""What a run must not have been: `p99>50ms`, `misses>1%`, `errors>0`. A small grammar, checked before anything runs.

::

    goal   = metric op number [unit]
    metric = p<percent> | max | mean              the age of an action, over every frame; `open_p99`, `lag_p99`, ... too
           | misses | drops | unanswered          of the frames
           | errors | refused                     counts; of the sessions that were opened where the unit is %
    op     = > | >= | < | <=
    unit   = us | ms | s for times, which need one; % or nothing for the others
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from playserve.errors import BadSettingError
from playserve_client.load.tally import Tally

__all__ = ["Goal", "parse_goal"]

_GOAL = re.compile(
    r"\s*([a-z]+(?:_[a-z]+)?[0-9]*(?:\.[0-9]+)?)\s*(>=|<=|>|<)\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|%)?\s*"
)
_TIME = re.compile(r"(?:(open|lag|answer)_)?(?:p([0-9]{1,2}(?:\.[0-9]+)?)|(max)|(mean))")
_NS = {"us": 1e3, "ms": 1e6, "s": 1e9}
_COUNTS = ("misses", "drops", "unanswered", "errors", "refused")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, slots=True)
class Goal:
    """One condition on a run, which has failed where it holds.

    Attributes:
        text: As it was written.
        metric: See the module.
        op: One of > >= < <=.
        value: Nanoseconds, a count, or a share of 1.
        share: Whether `value` is a share.
    """

    text: str
    metric: str
    op: str
    value: float
    share: bool

    def measured(self, tally: Tally) -> float | None:
        """Return what the run had, in the unit of `value`; None: nothing was measured."""
        time = _TIME.fullmatch(self.metric)
        if time is not None:
            histogram = tally.times[time[1] or "age"]
            if time[4]:
                return histogram.mean
            return histogram.quantile(1.0 if time[3] else float(time[2]) / 100)
        count, of = tally.total(self.metric), tally.whole(self.metric)
        if not self.share:
            return float(count)
        return count / of if of else None

    def failed(self, tally: Tally) -> bool:
        """Return whether the run has failed by it; one that measured nothing has."""
        measured = self.measured(tally)
        return measured is None or _OPERATORS[self.op](measured, self.value)


def parse_goal(text: str) -> Goal:
    """Return the goal of a text.

    Raises:
        BadSettingError: It is none; the message says what is wrong with it.
    """
    match = _GOAL.fullmatch(text)
    if match is None:
        raise BadSettingError(f"goal {text!r}, wanted METRIC, one of > >= < <=, and a number, such as 'p99>50ms'")
    metric, op, number, unit = match[1], match[2], float(match[3]), match[4]
    if _TIME.fullmatch(metric):
        if unit not in _NS:
            raise BadSettingError(f"goal {text!r}: {metric} is a time, wanted a unit of us, ms or s")
        return Goal(text.strip(), metric, op, number * _NS[unit], share=False)
    if metric not in _COUNTS:
        raise BadSettingError(
            f"goal {text!r}: {metric!r} is none of p50, p99, p99.9, ..., max, mean (also as open_p99, lag_p99, "
            f"answer_p99), {', '.join(_COUNTS)}"
        )
    if unit in _NS:
        raise BadSettingError(f"goal {text!r}: {metric} is a count, wanted no unit, or %")
    return Goal(text.strip(), metric, op, number / 100 if unit else number, share=unit == "%")
