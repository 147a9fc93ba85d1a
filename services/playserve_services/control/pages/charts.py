"""Charts as numbers for an SVG: lines over the last hour, and means with their intervals. Templates draw them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from playserve_services.control.history import HOUR_S, WINDOW_S, Counts, History
from playserve_services.control.pages.rendering import amount, milliseconds, percent

__all__ = ["Interval", "IntervalChart", "Line", "LineChart", "fleet_charts", "interval_chart", "ticks"]

WIDTH, HEIGHT = 400, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 10, 24
_MINUTES = (60, 45, 30, 15, 0)
_PER_MINUTE = int(60 / WINDOW_S)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        name: Of what.
        style: Class of its stroke.
        pieces: Points "x,y x,y" of each unbroken piece.
        dots: Centres of pieces of one point.
        newest: The last value in words.
    """

    name: str
    style: str
    pieces: list[str]
    dots: list[tuple[float, float]]
    newest: str


@dataclass(frozen=True, slots=True)
class LineChart:
    """A chart over the last hour.

    Attributes:
        key: Its id in the page.
        title: What it shows.
        words: The same for those who do not see it.
        lines: Its lines.
        y_ticks: (y, label) of the lines of the grid.
        x_ticks: (x, label).
        columns: Heads of its table.
        rows: Its table, a line each five minutes, newest first.
    """

    key: str
    title: str
    words: str
    lines: list[Line]
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]
    columns: list[str]
    rows: list[list[str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its interval on a common axis.

    Attributes:
        y: Middle of its row.
        x: Of the mean.
        low: Of the interval's lower end; None: it has none.
        high: Of its upper end.
        label: Whose mean it is.
        words: The numbers.
    """

    y: float
    x: float
    low: float | None
    high: float | None
    label: str
    words: str


@dataclass(frozen=True, slots=True)
class IntervalChart:
    """Means with their intervals, one below the other, on one axis.

    Attributes:
        words: What it shows, for those who do not see it.
        rows: The means.
        ticks: (x, label) of the axis.
    """

    words: str
    rows: list[Interval]
    ticks: list[tuple[float, str]]
    width: int
    height: int
    left: int


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers that span `low` to `high`: at most `most` steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def fleet_charts(history: History, *, replica: str = "", policy: str = "") -> list[LineChart]:
    """Return the charts of the last hour: latency, late answers, throughput.

    Args:
        history: What heartbeats told.
        replica: Only this one; empty: all.
        policy: Only this one; empty: all.
    """
    windows = history.windows(replica, policy)[:-1]  # the last one is not over
    return [
        _chart(
            "latency", "Time to answer, on the server", windows, milliseconds, 0.005,
            [("p50", "agent", lambda of: of.quantile_s(0.5)), ("p99", "expert", lambda of: of.quantile_s(0.99))],
        ),
        _chart(
            "late", "Answers later than one period", windows, percent, 0.01,
            [("late", "goal", lambda of: of.late_share)],
        ),
        _chart(
            "frames", "Frames a second", windows, amount, 1.0,
            [("answered", "agent", lambda of: of.answered / WINDOW_S if of.answered or of.dropped else None),
             ("dropped", "base", lambda of: of.dropped / WINDOW_S if of.answered or of.dropped else None)],
        ),
    ]  # fmt: skip


_Spec = tuple[str, str, Callable[[Counts], float | None]]


def _chart(
    key: str, title: str, windows: Sequence[Counts], words: Callable[[float | None], str], least: float,
    specs: Sequence[_Spec],
) -> LineChart:  # fmt: skip
    values = {name: [function(window) for window in windows] for name, _, function in specs}
    known = [value for series in values.values() for value in series if value is not None]
    marks = ticks(0.0, max([least, *known]), 4)
    top = marks[-1]

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * value / top, 1)

    lines = [_line(name, style, values[name], y, words) for name, style, _ in specs]
    newest = ", ".join(f"{line.name} {line.newest}" for line in lines)
    return LineChart(
        key=key, title=title, words=f"{title}, last hour. Newest: {newest}." if known else f"{title}: nothing yet.",
        lines=lines, y_ticks=[(y(mark), words(mark)) for mark in marks],
        x_ticks=[(_x(60.0 * minute), _when(minute)) for minute in _MINUTES],
        columns=[name for name, _, _ in specs], rows=_rows(windows, specs, words),
    )  # fmt: skip


def _when(minute: int) -> str:
    return {0: "now", 60: "60 min ago"}.get(minute, str(minute))


def _x(seconds_ago: float) -> float:
    return round(WIDTH - _RIGHT - (WIDTH - _RIGHT - _LEFT) * seconds_ago / HOUR_S, 1)


def _line(
    name: str, style: str, values: Sequence[float | None], y: Callable[[float], float],
    words: Callable[[float | None], str],
) -> Line:  # fmt: skip
    pieces: list[list[tuple[float, float]]] = [[]]
    for index, value in enumerate(values):
        if value is not None:
            pieces[-1].append((_x((len(values) - index) * WINDOW_S), y(value)))
        elif pieces[-1]:
            pieces.append([])
    newest = next((value for value in reversed(values) if value is not None), None)
    return Line(
        name=name, style=style, newest=words(newest),
        pieces=[" ".join(f"{px:g},{py:g}" for px, py in piece) for piece in pieces if len(piece) > 1],
        dots=[piece[0] for piece in pieces if len(piece) == 1],
    )  # fmt: skip


def _rows(
    windows: Sequence[Counts], specs: Sequence[_Spec], words: Callable[[float | None], str]
) -> list[list[str]]:  # fmt: skip
    rows = []
    for end in range(0, 60, 5):
        together = Counts()
        last = len(windows) - end * _PER_MINUTE
        part = windows[max(0, last - 5 * _PER_MINUTE) : last]
        for window in part:
            together.add(window)
        if together.answered or together.dropped:
            # Rates are of one window; here are many.
            scale = [len(part) if name in ("answered", "dropped") else 1 for name, _, _ in specs]
            found = [function(together) for _, _, function in specs]
            cells = [words(None if v is None else v / n) for v, n in zip(found, scale, strict=True)]
            rows.append([f"{end} to {end + 5} min ago", *cells])
    return rows


_INTERVALS_WIDTH = 560
_ROW = 26


def interval_chart(
    rows: Sequence[tuple[str, float, tuple[float, float] | None]], words: str, left: int = 150
) -> IntervalChart | None:
    """Return means with intervals on one axis; None where there are none.

    Args:
        rows: Label, mean and interval of each.
        words: What it shows.
        left: Where the axis begins; labels stand before it.
    """
    if not rows:
        return None
    ends = [value for _, mean, interval in rows for value in (mean, *(interval or ()))]
    marks = ticks(min(ends), max(ends), 5)
    right = _INTERVALS_WIDTH - 16

    def x(value: float) -> float:
        return round(left + (right - left) * (value - marks[0]) / (marks[-1] - marks[0]), 1)

    shown = []
    for index, (label, mean, interval) in enumerate(rows):
        said = f"{label}: mean {amount(mean)}"
        if interval is not None:
            said += f", 95 % interval {amount(interval[0])} to {amount(interval[1])}"
        low, high = (None, None) if interval is None else (x(interval[0]), x(interval[1]))
        shown.append(Interval(_TOP + _ROW * (index + 0.5), x(mean), low, high, label, said))
    height = _TOP + _ROW * len(rows) + _BOTTOM
    return IntervalChart(words, shown, [(x(mark), amount(mark)) for mark in marks], _INTERVALS_WIDTH, height, left)
