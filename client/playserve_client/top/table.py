"""A view of a server as lines of text, for a terminal of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["lines_of"]

_POLICY_HEAD = ("POLICY", "VERSION", "ALIASES", "SLOTS", "SESSIONS")
_MEASURED_HEAD = ("FRAMES/S", "MISS/S", "DROP/S", "QUEUE p50/p99 ms", "COMPUTE p50/p99 ms", "TOTAL p50/p99 ms")
_SESSION_HEAD = (
    "SESSION",
    "PRINCIPAL",
    "POLICY",
    "VERSION",
    "STATE",
    "PACE",
    "AGE",
    "IDLE",
    "STEPS",
    "STEPS/S",
    "DROPPED",
)


def lines_of(view: Mapping[str, Any], *, rows: int | None = None) -> list[str]:
    """Return the lines of a view.

    Args:
        view: Of :meth:`playserve_client.top.watch.Watcher.look`.
        rows: Most sessions to show, the busiest; None: all, oldest first.
    """
    if not view["reachable"]:
        return [f"{view['address']}  unreachable since {_clock(view['unreachable_since'])}: {view['error']}"]
    state = "draining: no new sessions" if view["draining"] else "serving"
    lines = [
        f"{view['address']}  playserve {view['server_version']}  {state}  up {_span(view['uptime_s'])}  "
        f"{view['sessions']:,} sessions  {_clock(view['at'])}"
    ]
    if view["metrics_error"]:
        lines.append(view["metrics_error"])
    lines += ["", *_policy_lines(view["policies"])]
    sessions = view["session_list"]
    if rows is not None and len(sessions) > rows:
        shown = sorted(sessions, key=lambda s: s["steps_per_s"] or 0.0, reverse=True)[:rows]
        lines += ["", *_session_lines(shown), f"... and {len(sessions) - rows:,} more, which do less"]
    elif sessions:
        lines += ["", *_session_lines(sessions)]
    return lines


def _policy_lines(policies: Sequence[Mapping[str, Any]]) -> list[str]:
    if not policies:
        return ["no policy is loaded"]
    measured = any("frames_per_s" in policy for policy in policies)
    rows = [_POLICY_HEAD + (_MEASURED_HEAD if measured else ())]
    for policy in policies:
        cells: tuple[str, ...] = (
            policy["name"], policy["version"], ",".join(policy["aliases"]) or "-",
            f"{policy['slots_used']}/{policy['slots_total']}", f"{policy['sessions']}",
        )  # fmt: skip
        if measured:
            cells += (
                _number(policy["frames_per_s"]), _number(policy["misses_per_s"]), _number(_drops(policy)),
                *(f"{_number(policy[f'{name}_p50_ms'])}/{_number(policy[f'{name}_p99_ms'])}"
                  for name in ("queue", "compute", "total")),
            )  # fmt: skip
        rows.append(cells)
    return _aligned(rows)


def _drops(policy: Mapping[str, Any]) -> float | None:
    """Return all frames a second that got no answer of their own: superseded, over their budget, over a quota."""
    if policy["dropped_per_s"] is None:
        return None
    return sum(policy[f"{reason}_per_s"] or 0.0 for reason in ("dropped", "stale", "shed"))


def _session_lines(sessions: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [_SESSION_HEAD]
    for session in sessions:
        environments = f" x{session['environments']}" if session["environments"] > 1 else ""
        rows.append((
            session["session_id"], session["principal"] or "-", session["policy"], session["version"],
            session["state"], session["pace"] + environments, _span(session["age_s"]), _span(session["idle_s"]),
            f"{session['steps']:,}", _number(session["steps_per_s"]), f"{session['dropped']:,}",
        ))  # fmt: skip
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [tuple(_plain(cell) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _plain(text: str) -> str:
    """Return a text without what would move a terminal's cursor: names come from players."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _span(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f}s"
    return f"{minutes:.0f}m" if minutes < 100 else f"{hours:.0f}h" if hours < 48 else f"{hours / 24:.0f}d"


def _clock(stamp: str) -> str:
    return stamp.replace("T", " ").replace("+00:00", " UTC")
