"""Charts as inline SVG: scores with intervals and every episode, learning curves, and where the time went.

Drawn 360 units wide, which a phone shows at life size; colours are classes of page.css, so that they follow the
reader's scheme. Each chart carries its meaning in a title and a description for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from playserve_trainer.demo.outcome import Curve, GameOutcome
from playserve_trainer.wording import clock, number

__all__ = ["Scale", "curve_chart", "nice_ticks", "score_chart", "time_chart"]

_WIDTH = 360.0
# A score axis that spans more than this many goals is logarithmic: else the agent would be a speck beside the expert.
_LOG_SPAN = 8.0
_CLASSES = {"sample": "agent", "argmax": "agent soft", "expert": "expert"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values to places on a line.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: Place of `low`.
        end: Place of `high`.
        log: Whether places go by log(1 + value); then `low` must be above -1.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        bend: Callable[[float], float] = math.log1p if self.log else float
        span = bend(self.high) - bend(self.low)
        share = (bend(value) - bend(self.low)) / span if span else 0.0
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return round values on the scale."""
        if not self.log:
            return nice_ticks(self.low, self.high, count)
        steps = [factor * 10**power for power in range(7) for factor in (1, 3)]
        return [0.0, *(float(step) for step in steps if step <= self.high)]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round values between `low` and `high`, both included where they are round."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def score_chart(outcome: GameOutcome, stickiness: float | None) -> str:
    """Return the chart of one game at one stickiness: bar to the mean, its interval, a dot an episode, the goal."""
    rows = [row for row in outcome.rows if row["stickiness"] == stickiness and row["mean"] is not None]
    goal = outcome.plan.goal if rows and rows[0]["key"].endswith("-s0") else None
    scale = _score_scale(outcome)
    height, row_height, top = 44.0 * len(rows) + 50, 44.0, 16.0
    bottom = top + row_height * len(rows)
    parts = [
        f'<line class="grid" x1="{_f(scale(tick))}" x2="{_f(scale(tick))}" y1="{_f(top)}" y2="{_f(bottom)}"/>'
        f'<text class="tick" x="{_f(scale(tick))}" y="{_f(bottom + 14)}" text-anchor="middle">{number(tick)}</text>'
        for tick in scale.ticks()
    ]
    if goal is not None:
        x = scale(goal)
        parts.append(
            f'<line class="goal" x1="{_f(x)}" x2="{_f(x)}" y1="{_f(top)}" y2="{_f(bottom)}"/>'
            f'<text class="goal-label" x="{_f(x)}" y="{_f(top - 4)}" text-anchor="middle">goal {number(goal)}</text>'
        )
    for index, row in enumerate(rows):
        scores = outcome.scores(row["key"])
        parts.append(_score_row(row, outcome.name_of(row), scores, scale, top + row_height * index))
    axis = "score of an episode, logarithmic" if scale.log else "score of an episode"
    parts.append(f'<text class="tick" x="{_f(_WIDTH - 4)}" y="{_f(height - 4)}" text-anchor="end">{axis}</text>')
    spoken = "; ".join(f"{outcome.name_of(row)}: mean {number(row['mean'])}{_spoken_interval(row)}" for row in rows)
    return _svg(height, f"Scores in {outcome.plan.game}", spoken, "".join(parts))


def _score_scale(outcome: GameOutcome) -> Scale:
    """Return the one scale of all of a game's charts."""
    scores = [episode["score"] for episode in outcome.results["episodes"]] or [0.0]
    low, high = min(0.0, *scores), max(1.0, outcome.plan.goal or 0.0, *scores)
    log = low == 0 and outcome.plan.goal is not None and high > _LOG_SPAN * outcome.plan.goal
    return Scale(low=low, high=high, start=8, end=_WIDTH - 12, log=log)


def _score_row(row: Mapping[str, Any], name: str, scores: Sequence[float], scale: Scale, y: float) -> str:
    kind = _CLASSES.get(row["key"].partition("-")[0], "base")
    zero, mean, middle = scale(max(0.0, scale.low)), scale(row["mean"]), y + 29
    interval = row["mean_interval"]
    text = f"{number(row['mean'])}" + (f" [{number(interval['low'])}, {number(interval['high'])}]" if interval else "")
    parts = [
        f'<text class="label" x="8" y="{_f(y + 14)}">{escape(name)} '
        f'<tspan class="tick">n = {row["episodes"]}</tspan></text>',
        f'<text class="value" x="{_f(_WIDTH - 12)}" y="{_f(y + 14)}" text-anchor="end">{escape(text)}</text>',
        f'<rect class="bar {kind}" x="{_f(min(zero, mean))}" y="{_f(middle - 7)}" '
        f'width="{_f(max(1.0, abs(mean - zero)))}" height="14" rx="2"/>',
    ]
    # Dots side by side in three lanes: equal scores would hide one another.
    parts += [
        f'<circle class="dot {kind}" cx="{_f(scale(score))}" cy="{_f(middle + (index % 3 - 1) * 4)}" r="1.7"/>'
        for index, score in enumerate(scores)
    ]
    if interval:
        low, high = scale(interval["low"]), scale(interval["high"])
        parts.append(
            f'<path class="whisker" d="M{_f(low)} {_f(middle)}H{_f(high)}M{_f(low)} {_f(middle - 5)}v10'
            f'M{_f(high)} {_f(middle - 5)}v10"/>'
        )
    parts.append(f'<path class="mean {kind}" d="M{_f(mean)} {_f(middle - 9)}v18"/>')
    return "".join(parts)


def _spoken_interval(row: Mapping[str, Any]) -> str:
    interval = row["mean_interval"]
    return f" (95% interval {number(interval['low'])} to {number(interval['high'])})" if interval else ""


def curve_chart(
    title: str, learning: Curve, held_out: Curve, values: Callable[[Curve], Sequence[float]], *, percent: bool
) -> str:
    """Return one learning curve over frames: training faint, held-out episodes strong, its last value written out."""
    height, left, right, top, bottom = 190.0, 40.0, _WIDTH - 14, 12.0, 152.0
    everything = [*values(learning), *values(held_out)]
    if not everything:
        return _svg(40, title, "nothing was measured", '<text class="label" x="8" y="24">nothing was measured</text>')
    low, high = min(everything), max(everything)
    # At least five points of accuracy: noise is not to fill the picture.
    low = max(0.0, min(low, high - 0.05)) if percent else min(0.0, low)
    ys = Scale(low=low, high=high if high > low else low + 1, start=bottom, end=top)
    xs = Scale(low=0, high=max([1.0, *learning.samples, *held_out.samples]), start=left, end=right)
    shown = "{:.0%}".format if percent else "{:g}".format
    exact = "{:.1%}".format if percent else "{:.3f}".format
    parts = [
        f'<line class="grid" x1="{_f(left)}" x2="{_f(right)}" y1="{_f(ys(tick))}" y2="{_f(ys(tick))}"/>'
        f'<text class="tick" x="{_f(left - 5)}" y="{_f(ys(tick) + 3.5)}" text-anchor="end">{shown(tick)}</text>'
        for tick in ys.ticks(4)
    ]
    parts += [
        f'<text class="tick" x="{_f(xs(tick))}" y="{_f(bottom + 15)}" text-anchor="middle">{_thousands(tick)}</text>'
        for tick in xs.ticks(4)
    ]
    parts.append(f'<text class="tick" x="{_f(right)}" y="{_f(height - 4)}" text-anchor="end">frames trained on</text>')
    parts.append(_line(learning, values(learning), xs, ys, "learning"))
    parts.append(_line(held_out, values(held_out), xs, ys, "held-out"))
    parts += [
        f'<circle class="dot agent" cx="{_f(xs(x))}" cy="{_f(ys(y))}" r="2.6"/>'
        for x, y in zip(held_out.samples, values(held_out), strict=True)
    ]
    spoken = "no held-out evaluation"
    if held_out.samples:
        first, last = values(held_out)[0], values(held_out)[-1]
        spoken = (
            f"held out: from {exact(first)} after {held_out.samples[0]:,} frames to {exact(last)} after "
            f"{held_out.samples[-1]:,}"
        )
        x, y = xs(held_out.samples[-1]), ys(last)
        above = y - 9 if y - 9 > top + 4 else y + 17
        parts.append(f'<text class="value" x="{_f(x)}" y="{_f(above)}" text-anchor="end">{exact(last)}</text>')
    return _svg(height, title, spoken, "".join(parts))


def _line(curve: Curve, values: Sequence[float], xs: Scale, ys: Scale, kind: str) -> str:
    points = " ".join(f"{_f(xs(x))},{_f(ys(y))}" for x, y in zip(curve.samples, values, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>' if points else ""


def time_chart(seconds: Sequence[tuple[str, float]]) -> str:
    """Return the stages as bars one under the other, each beginning where the last one ended."""
    total = sum(value for _, value in seconds)
    scale = Scale(low=0, high=total or 1.0, start=8, end=_WIDTH - 12)
    parts, at = [], 0.0
    for index, (name, value) in enumerate(seconds):
        y, x, width = 24.0 * index, scale(at), max(1.5, scale(value) - scale(0))
        parts.append(
            f'<text class="label" x="8" y="{_f(y + 11)}">{escape(name)}</text>'
            f'<text class="value" x="{_f(_WIDTH - 12)}" y="{_f(y + 11)}" text-anchor="end">{clock(value)}</text>'
            f'<rect class="track" x="8" y="{_f(y + 15)}" width="{_f(_WIDTH - 20)}" height="4" rx="2"/>'
            f'<rect class="bar agent full" x="{_f(x)}" y="{_f(y + 15)}" width="{_f(width)}" height="4" rx="2"/>'
        )
        at += value
    spoken = "; ".join(f"{name} {clock(value)}" for name, value in seconds)
    return _svg(24.0 * len(seconds) + 2, "Time of each stage", spoken, "".join(parts))


def _svg(height: float, title: str, description: str, content: str) -> str:
    return (
        f'<svg viewBox="0 0 {_f(_WIDTH)} {_f(height)}" role="img" aria-label="{escape(title)}. {escape(description)}">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
