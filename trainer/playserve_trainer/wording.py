"""Numbers and times as people read them."""

from __future__ import annotations

import datetime

__all__ = ["clock", "duration", "number", "utc_now"]


def number(value: float | None) -> str:
    """Return a score as people read it; a missing one is a dash."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 10 else f"{value:.2f}".removesuffix(".00")


def clock(seconds: float | None) -> str:
    """Return minutes and seconds, such as "3:07"."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """Return minutes and seconds in words, such as "3 min 7 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def utc_now() -> str:
    """Return the time in UTC, to the second, such as "2026-11-21T16:05:09+00:00"."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
