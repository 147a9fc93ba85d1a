"""The table for people; everything in it is in ``results.json`` too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

__all__ = ["print_report"]

# Where the output is a file or a pipe nobody can widen the window.
_PLAIN_WIDTH = 180
_ENDS = 4  # of a row's ends are shown


@dataclass(frozen=True, slots=True)
class _Layout:
    """How much is shown, and with how much around it."""

    deciles: bool = True
    lines: bool = True


# The widest that fits is taken; the last one wraps where even that does not.
_LAYOUTS = (_Layout(), _Layout(deciles=False), _Layout(deciles=False, lines=False))


def print_report(report: Mapping[str, Any], file: IO[str] | None = None, *, width: int | None = None) -> None:
    """Print the table of a ``results.json`` value: with lines on a terminal, in ASCII elsewhere.

    Args:
        report: The value.
        file: Where to; None: stdout.
        width: Columns; None: the terminal's, or enough for everything where it is none.
    """
    probe = Console(file=file, width=width)
    plain = not probe.is_terminal
    console = Console(file=file, width=width or _PLAIN_WIDTH, no_color=True) if plain else probe
    for layout in _LAYOUTS:
        table = _table(report, layout, plain)
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            break
    console.print(table)
    notes = _notes(report)
    if not layout.deciles:
        notes.append("deciles are in results.json, and here where the terminal is wider")
    for line in notes:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _policy(report: Mapping[str, Any]) -> str:
    policy = report["policy"]
    if not policy["name"]:
        return "baselines only"
    return f"policy {policy['name']} version {policy['version'] or '-'} at {policy['server'] or '-'}"


def _table(report: Mapping[str, Any], layout: _Layout, plain: bool) -> Table:
    rows, env = report["rows"], report["settings"]["env"]
    box_ = (box.ASCII2 if plain else box.ROUNDED) if layout.lines else (box.ASCII2 if plain else box.SIMPLE_HEAD)
    table = Table(
        title=f"{report.get('title') or env['game'] or env['family']}: {_policy(report)}".replace("[", "\\["),
        box=box_,
        title_justify="left",
        padding=(0, 1) if layout.lines else 0,
        show_edge=layout.lines,
    )
    columns = _columns(report, layout)
    for column in columns:
        table.add_column(column.label, justify=column.justify, no_wrap=column.no_wrap)
    last: Any = rows[0]["stickiness"] if rows else None
    for row in rows:
        if row["stickiness"] != last:
            table.add_section()
            last = row["stickiness"]
        table.add_row(*(column.cell(row).replace("[", "\\[") for column in columns))
    return table


@dataclass(frozen=True, slots=True)
class _Column:
    label: str
    cell: Callable[[Mapping[str, Any]], str]
    justify: Literal["left", "right"] = "right"
    no_wrap: bool = True


def _columns(report: Mapping[str, Any], layout: _Layout) -> list[_Column]:
    columns = [_Column("player", lambda row: str(row["name"]), "left", no_wrap=layout.lines)]
    if any(row["stickiness"] is not None for row in report["rows"]):
        columns.append(_Column("sticky", lambda row: "-" if row["stickiness"] is None else f"{row['stickiness']:g}"))
    columns += [
        _Column("episodes", _episodes),
        _Column("mean [95% interval]", _mean, no_wrap=False),
        _Column("median", lambda row: _number(row["median"])),
    ]
    if normalised := {item["row"]: item for item in report.get("normalised", ())}:
        columns.append(_Column("normalised", lambda row: _normalised(normalised.get(row["key"])), no_wrap=False))
    if layout.deciles:
        columns.append(_Column("deciles 10% ... 90%", _deciles, "left", no_wrap=False))
    columns.append(_Column("steps", lambda row: "-" if row["mean_steps"] is None else f"{row['mean_steps']:,.0f}"))
    columns += [_Column(column["label"], _fact(column["fact"])) for column in report.get("columns", ())]
    columns.append(_Column("cut", lambda row: f"{row['truncated']}" if row["episodes"] else "-"))
    return columns


def _episodes(row: Mapping[str, Any]) -> str:
    return f"{row['episodes']}" if row["episodes"] == row["planned"] else f"{row['episodes']} of {row['planned']}"


def _mean(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "-"
    interval = row["mean_interval"]
    shown = f"[{_number(interval['low'])}, {_number(interval['high'])}]" if interval else "[-]"
    return f"{_number(row['mean'])} {shown}"


def _normalised(item: Mapping[str, Any] | None) -> str:
    if item is None or item["value"] is None:
        return "-"
    interval = item["interval"]
    shown = f" [{interval['low']:.2f}, {interval['high']:.2f}]" if interval else ""
    return f"{item['value']:.2f}{shown}"


def _deciles(row: Mapping[str, Any]) -> str:
    return "-" if row["deciles"] is None else " ".join(_number(value) for value in row["deciles"])


def _fact(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: _number(row.get("fact_means", {}).get(name))


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
    if report.get("normalised"):
        notes.append("normalised: (score - random) / (expert - random), all three resampled for the interval")
    notes += [line for row in report["rows"] if (line := _ends(row))]
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


def _ends(row: Mapping[str, Any]) -> str:
    """Return how the games of a row ended, the most frequent ends first; empty where nobody said."""
    ends = row.get("fact_counts", {}).get("end", {})
    if not ends:
        return ""
    common = list(ends.items())[:_ENDS]
    shown = [f"{name.replace('_', ' ')} {count}" for name, count in common]
    if rest := sum(ends.values()) - sum(count for _, count in common):
        shown.append(f"other {rest}")
    return f"how {row['name']} ended: {', '.join(shown)}"
