"""What people see on the terminal: exponents with intervals, the hold-out, forecasts, comparisons, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from playserve_trainer.laws import rows

__all__ = ["print_fit", "print_forecasts", "print_meta"]

_WORDS = {"law", "number", "task", "first", "second", "verdict", "size", ""}


def print_fit(console: Console, found: Mapping[str, Any]) -> None:
    """Print everything but the forecasts' details."""
    for group in found["groups"]:
        name = rows.group_name(group)
        counted = f"{group['cells']} cells, {group['held_out_cells']} held out{rows.whole_data(group)}"
        console.print(f"\n[bold]{name}[/bold]: {counted}")
        _print(console, rows.laws(group))
        for line in (*rows.notes(group), *rows.refusals(group)):
            console.print(f"- {line}", markup=False)
        hold_outs = rows.hold_outs(group["hold_out"])
        if not hold_outs:
            console.print(f"Hold-out: {group['hold_out']['why']}", markup=False)
        for of in hold_outs:
            _print(console, of, f"Held out: {of.title}")
        if group["by_data"]:
            _print(console, rows.by_data(group["by_data"]), "By unique data")
            numbers, judged = rows.constrained(group["constrained"])
            for of in (numbers, judged) if numbers.rows else ():
                _print(console, of, of.title)
        for line in rows.returns(group["returns"]):
            console.print(f"Returns: {line}", markup=False)
    print_forecasts(console, found)
    if found["comparisons"]:
        _print(console, rows.comparisons(found["comparisons"]), "Variants in pairs, by held-out loss")
    _print(console, rows.reproducibility(found["reproducibility"]), "To reproduce")


def print_forecasts(console: Console, found: Mapping[str, Any]) -> None:
    """Print the forecasts of every group."""
    for group in found["groups"]:
        if not group["forecasts"]:
            continue
        table, refused = rows.forecasts(group["forecasts"])
        if table.rows:
            _print(console, table, f"Forecasts, {rows.group_name(group)}")
        for line in refused:
            console.print(f"{rows.group_name(group)}: {line}", markup=False)


def print_meta(console: Console, found: Mapping[str, Any]) -> None:
    """Print the correlations of loss with return of every task."""
    for group in found["groups"]:
        name = group["task"] or "all tasks"
        title = f"{name}: loss and {found['quality']}, {group['cells']} cells of {group['runs']} runs"
        table = Table(title=title, title_justify="left")
        for column in ("", "cells", "Pearson of logarithms", "Spearman"):
            table.add_column(column, justify="left" if not column else "right")
        parts = [("all cells", group["all"]), ("least loss of each budget", group["optimum"])]
        for key, one, mean in (
            ("within_budgets", "budget", "mean within a budget"), ("within_sizes", "N", "mean within a size")
        ):  # fmt: skip
            parts.append((mean, group[key]["mean"]))
            parts += [(f"  {one} {value}", of) for value, of in group[key]["each"].items() if of is not None]
        for label, of in parts:
            cells = "" if of is None or "cells" not in of else str(of["cells"])
            table.add_row(label, cells, *(_correlation(of, kind) for kind in ("pearson", "spearman")))
        console.print(table)
        for line in group["notes"]:
            console.print(f"- {line}", markup=False)
    if found["cells_left_out"]:
        console.print(f"{found['cells_left_out']} cells without a loss or a {found['quality']} are left out")


def _correlation(of: Mapping[str, Any] | None, kind: str) -> str:
    if of is None or kind not in of:
        return "-"
    low, high = of[kind]["low"], of[kind]["high"]
    return f"{of[kind]['value']:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def _print(console: Console, of: rows.Rows, title: str = "") -> None:
    named = any(of.header)
    table = Table(title=title, title_justify="left", show_header=named, box=Table().box if named else None)
    for column in of.header:
        table.add_column(column, justify="left" if column in _WORDS else "right", overflow="fold")
    for row in of.rows:
        table.add_row(*row)
    console.print(table)
