"""What a run was, for people and for programs: a JSON report, and one screen of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from playserve_client.load.goals import Goal
from playserve_client.load.histogram import Histogram
from playserve_client.load.run import LoadRun
from playserve_client.load.tally import TIMES, Tally, whole_of

__all__ = ["QUANTILES", "report_of", "screen_of"]

#: Name and share of the quantiles that are shown.
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_COUNTS = (
    "opens", "opened", "ended", "resumed", "frames", "answers", "misses", "superseded", "in_memory", "stale",
    "unanswered",
)  # fmt: skip
_SHOWN = {
    "age": "age of the action, every frame",
    "answer": "age of answered frames",
    "server": "of that, in the server",
    "open": "opening a session",
    "lag": "this program's own lateness",
}
#: Intervals on the screen.
_ROWS = 8


def report_of(run: LoadRun, policy: Mapping[str, Any], goals: Sequence[Goal] = ()) -> dict[str, Any]:
    """Return the JSON report. What was not measured is null, never 0.

    Args:
        run: The run, ended or not.
        policy: What is known of the policy.
        goals: What it must not have been.
    """
    tallies = run.intervals()
    whole = whole_of(tallies)
    warm_up = tallies.pop(-1, None)
    seconds = max(0.0, run.elapsed_s())
    length_s = run.config.interval_s
    return {
        "kind": "playserve load",
        "address": run.config.address,
        "policy": dict(policy),
        "config": _finite(run.config.to_json()),
        "interrupted": run.interrupted,
        "seconds": seconds,
        "total": {**_facts(whole, seconds), "histograms": {name: whole.times[name].to_json() for name in TIMES}},
        "warm_up": None if warm_up is None else _facts(warm_up, None),
        "intervals": [
            {"from_s": index * length_s, **_facts(tally, min(length_s, max(1e-9, seconds - index * length_s)))}
            for index, tally in tallies.items()
        ],
        "goals": [
            {
                "fail_on": goal.text,
                "measured": goal.measured(whole),
                "limit": goal.value,
                "failed": goal.failed(whole),
            }
            for goal in goals
        ],
    }


def _facts(tally: Tally, seconds: float | None) -> dict[str, Any]:
    return {
        "sessions_mean": tally.session_ns / 1e9 / seconds if seconds else None,
        "frames_per_s": tally.counts["frames"] / seconds if seconds else None,
        "answers_per_s": tally.counts["answers"] / seconds if seconds else None,
        **{name: tally.counts[name] for name in _COUNTS},
        "drops": tally.total("drops"),
        "refused": dict(tally.refused),
        "errors": dict(tally.errors),
        **{f"{name}_ms": _times(tally.times[name]) for name in TIMES},
    }


def _times(histogram: Histogram) -> dict[str, float | None]:
    def ms(value: float | None) -> float | None:
        return None if value is None else round(value / 1e6, 6)

    return {"mean": ms(histogram.mean), **{name: ms(histogram.quantile(q)) for name, q in QUANTILES.items()}}


def _finite(value: Any) -> Any:
    """Return a JSON value without infinities, which JSON has not: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and abs(value) == float("inf") else value


def screen_of(report: Mapping[str, Any], *, rows: int = _ROWS) -> list[str]:
    """Return the lines of a report: what was counted, the times, and the newest intervals."""
    total, policy = report["total"], report["policy"]
    lines = [
        f"{policy['name']} {policy['version']} at {report['address']}: {report['seconds']:.0f} s"
        + (", interrupted" if report["interrupted"] else ""),
        f"sessions  {_number(total['sessions_mean'], 1)} at once, {total['opened']} of {total['opens']} opened, "
        f"{total['resumed']} resumed, refused: {_reasons(total['refused'])}",
        f"frames    {total['frames']:,}, {_number(total['answers_per_s'], 0)} answers/s; misses "
        f"{_share(total, 'misses')}, dropped {_share(total, 'drops')} (superseded {total['superseded']:,}, stale "
        f"{total['stale']:,}), unanswered {total['unanswered']:,}",
        f"errors    {_reasons(total['errors'])}",
        "",
        f"{'ms':32}" + "".join(f"{name:>10}" for name in QUANTILES),
    ]
    for name, label in _SHOWN.items():
        times = total[f"{name}_ms"]
        lines.append(f"{label:32}" + "".join(f"{_number(times[quantile], 2):>10}" for quantile in QUANTILES))
    lines += _interval_lines(report["intervals"][-rows:]) if rows else []
    lag, age = total["lag_ms"]["p99"], total["age_ms"]["p99"]
    if lag is not None and lag > 2 and lag > age / 4:
        lines += ["", "This program was late itself: its times are too high. Give it more --processes, or more cores."]
    for goal in report["goals"]:
        lines.append(f"{'FAILED' if goal['failed'] else 'passed'}  not {goal['fail_on']}")
    return lines


def _interval_lines(intervals: Sequence[Mapping[str, Any]]) -> list[str]:
    if not intervals:
        return []
    head = ("from s", "sessions", "frames/s", "p50 ms", "p99 ms", "max ms", "misses", "drops", "errors")
    lines = ["", "".join(f"{name:>10}" for name in head)]
    for interval in intervals:
        age = interval["age_ms"]
        cells = (
            f"{interval['from_s']:.0f}", _number(interval["sessions_mean"], 1), _number(interval["frames_per_s"], 0),
            *(_number(age[name], 2) for name in ("p50", "p99", "max")),
            *(f"{interval[name]:,}" for name in ("misses", "drops")), f"{sum(interval['errors'].values()):,}",
        )  # fmt: skip
        lines.append("".join(f"{cell:>10}" for cell in cells))
    return lines


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _share(total: Mapping[str, Any], name: str) -> str:
    frames = total["frames"]
    return f"{total[name]:,} ({total[name] / frames:.2%})" if frames else f"{total[name]:,}"


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"
