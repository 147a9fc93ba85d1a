"""The gate before an alias moves: is the candidate's mean score not worse than that of the version that stands there?

A one-sided Welch test of non-inferiority. The null hypothesis is that the candidate is worse by `margin` or more; the
candidate passes where the data refuse that at level `alpha`. So a candidate that was hardly measured does not pass:
what is wanted is evidence that it is good, not a lack of evidence that it is bad.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from playserve.errors import StateError
from playserve_services.control.statistics import t_survival

__all__ = ["GateRefusedError", "GateResult", "Sample", "judge"]


class GateRefusedError(StateError):
    """The candidate is not shown to be good enough.

    Attributes:
        result: The numbers; None where there was nothing to compare.
    """

    reason = "GATE_REFUSED"

    def __init__(self, message: str, result: GateResult | None = None) -> None:
        super().__init__(message)
        self.result = result


class Sample(Protocol):
    """Mean, standard error and size, such as a stored evaluation."""

    mean: float
    se: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The test and its numbers.

    Attributes:
        passed: Whether p is at most alpha.
        difference: Candidate's mean less stable's.
        margin: By how much it may be worse, in units of the score.
        t: The statistic; None: infinite, since neither varies.
        df: Welch's degrees of freedom; None where neither varies.
        p: P-value.
        alpha: Level.
        candidate: Mean, standard error and episodes.
        stable: The same.
    """

    passed: bool
    difference: float
    margin: float
    t: float | None
    df: float | None
    p: float
    alpha: float
    candidate: dict[str, Any]
    stable: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for a program."""
        return asdict(self)

    def in_words(self) -> str:
        """Return the numbers for a person."""
        means = " and ".join(
            f"{name} {sample['mean']:.4g} (se {sample['se']:.3g}, n {sample['n']})"
            for name, sample in (("candidate", self.candidate), ("stable", self.stable))
        )
        test = "neither varies" if self.t is None or self.df is None else f"Welch t {self.t:.3f}, df {self.df:.1f}"
        return (
            f"{means}: the difference is {self.difference:+.4g} with a margin of {self.margin:.4g}; {test}, "
            f"one-sided p {self.p:.4g}, wanted at most {self.alpha:g}"
        )


def judge(candidate: Sample, stable: Sample, *, margin: float, alpha: float) -> GateResult:
    """Return the test of "worse by `margin` or more".

    Raises:
        GateRefusedError: A sample has fewer than two episodes, so that its spread is unknown.
    """
    for name, sample in (("candidate", candidate), ("stable", stable)):
        if sample.se is None or sample.n < 2:
            raise GateRefusedError(f"the {name}'s evaluation has {sample.n} episode; the test needs two at least")
    assert candidate.se is not None and stable.se is not None  # noqa: S101, PT018 - just checked
    difference = candidate.mean - stable.mean
    v_candidate, v_stable = candidate.se**2, stable.se**2
    variance = v_candidate + v_stable
    t: float | None = None
    df: float | None = None
    if variance > 0.0:
        # Shares, not squares of variances: those of tiny ones are zero.
        share = v_candidate / variance
        df = 1.0 / (share**2 / (candidate.n - 1) + (1.0 - share) ** 2 / (stable.n - 1))
        t = (difference + margin) / math.sqrt(variance)
        p = t_survival(t, df)
    else:
        p = 0.0 if difference + margin > 0.0 else 1.0
    return GateResult(
        passed=p <= alpha, difference=difference, margin=margin, t=t, df=df, p=p, alpha=alpha,
        candidate=_facts(candidate), stable=_facts(stable),
    )  # fmt: skip


def _facts(sample: Sample) -> dict[str, Any]:
    return {"mean": sample.mean, "se": sample.se, "n": sample.n}
