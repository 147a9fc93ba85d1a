"""The table for people; everything in it is in ``results.json`` too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["print_report"]

# Where the output is a file or a pipe nobody can widen the window.
_PLAIN_WIDTH = 180


def print_report(report: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print the table of a ``results.json`` value: with lines on a terminal, in ASCII elsewhere."""
    probe = Console(file=file)
    plain = not probe.is_terminal
    console = Console(file=file, width=_PLAIN_WIDTH, no_color=True) if plain else probe
    settings = report["settings"]
    env = settings["env"]
    title = f"{env['game'] or env['family']}: {_policy(report)}"
    console.print(_table(title, report["rows"], plain))
    for line in _notes(report):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _policy(report: Mapping[str, Any]) -> str:
    policy = report["policy"]
    if not policy["name"]:
        return "baselines only"
    return f"policy {policy['name']} version {policy['version'] or '-'} at {policy['server'] or '-'}"


def _table(title: str, rows: Sequence[Mapping[str, Any]], plain: bool) -> Table:
    table = Table(title=title, box=box.ASCII2 if plain else box.ROUNDED, title_justify="left")
    table.add_column("player", no_wrap=True)
    for name in ("sticky", "episodes", "mean [95% interval]", "median"):
        table.add_column(name, justify="right", no_wrap=name != "mean [95% interval]")
    table.add_column("deciles 10% ... 90%")
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("cut", justify="right", no_wrap=True)
    last: Any = rows[0]["stickiness"] if rows else None
    for row in rows:
        if row["stickiness"] != last:
            table.add_section()
            last = row["stickiness"]
        table.add_row(*_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    episodes = f"{row['episodes']}" if row["episodes"] == row["planned"] else f"{row['episodes']} of {row['planned']}"
    interval = row["mean_interval"]
    mean = _number(row["mean"])
    if row["mean"] is not None:
        mean += f" [{_number(interval['low'])}, {_number(interval['high'])}]" if interval else " [-]"
    return [
        row["name"].replace("[", "\\["),
        "-" if row["stickiness"] is None else f"{row['stickiness']:g}",
        episodes,
        mean.replace("[", "\\["),
        _number(row["median"]),
        "-" if row["deciles"] is None else " ".join(_number(value) for value in row["deciles"]),
        "-" if row["mean_steps"] is None else f"{row['mean_steps']:,.0f}",
        f"{row['truncated']}" if row["episodes"] else "-",
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 10 else f"{value:.2f}".removesuffix(".00")


def _notes(report: Mapping[str, Any]) -> list[str]:
    settings, notes = report["settings"], [f"protocol: {'; '.join(report['protocol'])}"]
    if settings["shard"]["count"] > 1:
        notes.append(f"this is shard {settings['shard']['index']} of {settings['shard']['count']} only")
    for row in report["versus_best_baseline"]:
        interval = row["interval"]
        shown = f" [{_number(interval['low'])}, {_number(interval['high'])}]" if interval else ""
        notes.append(f"{row['row']} is {_number(row['difference'])}{shown} above {row['baseline']}, the best baseline")
    repeating = [row for row in report["rows"] if row["distinct"] < row["episodes"]]
    if repeating:
        shown = ", ".join(f"{row['key']} {row['distinct']} of {row['episodes']}" for row in repeating)
        notes.append(f"fewer distinct games than episodes, so the interval is too narrow: {shown}")
    replayed = sum(row["replayed"] for row in report["rows"])
    if replayed:
        notes.append(f"{replayed} attempts were lost and played again with the same seeds")
    notes += report["notes"]
    if not report["complete"]:
        notes.append("not complete: the same command with the same --out goes on from here")
    return notes
