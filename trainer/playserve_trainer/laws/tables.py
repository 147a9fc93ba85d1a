"""What people see on the terminal: exponents with intervals, the hold-out, forecasts, comparisons, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["interval_text", "number_text", "print_fit", "print_forecasts"]

_SHOWN = {
    "n_exponent": "N_opt ~ C^",
    "d_exponent": "D_opt ~ C^",
    "loss_slope": "L_opt ~ C^",
    "loss_exponent": "L_opt - b ~ C^-",
    "loss_offset": "b",
    "E": "E",
    "alpha": "alpha",
    "beta": "beta",
}


def number_text(value: float | None, digits: int = 4) -> str:
    """Return a number for people; "-" where there is none."""
    if value is None:
        return "-"
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.{digits}g}"


def interval_text(interval: Mapping[str, Any] | None, digits: int = 4) -> str:
    """Return an interval for people; "" where there is none."""
    if not interval or interval["low"] is None:
        return ""
    return f" [{number_text(interval['low'], digits)}, {number_text(interval['high'], digits)}]"


def print_fit(console: Console, found: Mapping[str, Any]) -> None:
    """Print everything but the forecasts' details."""
    for group in found["groups"]:
        name = " ".join(filter(None, (group["task"], group["variant"]))) or "all cells"
        console.print(f"\n[bold]{name}[/bold]: {group['cells']} cells, {group['held_out_cells']} held out")
        console.print(_law_table(group))
        if group["is_6nd"]:
            console.print(
                "C = 6ND in every cell: the exponents of N and D add up to 1 by definition, and show nothing."
            )
        for note in group["intervals_hold"]:
            console.print(f"- {note}", markup=False)
        _print_many_starts(console, group)
        _print_hold_out(console, group["hold_out"])
        _print_returns(console, group["returns"])
    print_forecasts(console, found)
    _print_comparisons(console, found["comparisons"])
    console.print(_reproducibility_table(found["reproducibility"]))


def print_forecasts(console: Console, found: Mapping[str, Any]) -> None:
    """Print the forecasts of every group."""
    for group in found["groups"]:
        value = group["forecasts"]
        if not value:
            continue
        name = " ".join(filter(None, (group["task"], group["variant"]))) or "all cells"
        if "refused" in value and "why" in value:
            console.print(f"{name}: no forecast: {value['why']}", markup=False)
            continue
        title = f"Forecasts, {name}; the interval of the loss is for the one agent that is trained"
        table = Table(title=title, title_justify="left")
        for column in ("C", "beyond", "law", "N", "D", "loss"):
            table.add_column(column, justify="left" if column == "law" else "right", no_wrap=column == "law")
        for of in value["forecasts"]:
            values, intervals = of["values"], of["intervals"]
            cells = [
                number_text(values[name], 3) + interval_text(intervals.get(name), 3)
                for name in ("params", "samples", "loss")
            ]
            table.add_row(f"{of['flops']:.3g}", f"{of['beyond']:.1f}x", of["estimator"], *cells)
        console.print(table)
        for law, why in value["refused"].items():
            console.print(f"{law}: {why}", markup=False)


def _law_table(group: Mapping[str, Any]) -> Table:
    table = Table()
    table.add_column("law")
    table.add_column("number")
    table.add_column("value [95% interval]", justify="right")
    table.add_column("one budget left out", justify="right")
    for name, law in group["laws"].items():
        if "refused" in law:
            table.add_row(name, law["refused"], law["why"], "")
            continue
        for key, of in law["numbers"].items():
            if key not in _SHOWN or (key == "d_exponent" and group["is_6nd"]):
                continue
            without = of["without_one_budget"]
            spread = f"{number_text(without[0])} to {number_text(without[1])}" if without else ""
            table.add_row(name, _SHOWN[key], number_text(of["value"]) + interval_text(of["interval"]), spread)
            name = ""
    return table


def _print_many_starts(console: Console, group: Mapping[str, Any]) -> None:
    check = group["many_starts"]
    if check:
        console.print(
            f"Parametric law, variable projection and {check['starts']:,} starts: {check['verdict']} (the starts: "
            f"alpha {check['law']['alpha']:.4f}, beta {check['law']['beta']:.4f}, E {check['law']['e']:.4f})",
            markup=False,
        )


def _print_hold_out(console: Console, value: Any) -> None:
    if isinstance(value, dict):
        console.print(f"Hold-out: {value['why']}", markup=False)
        return
    for of in value:
        edge = ", at an edge of those trained" if of["params_edge"] else ""
        table = Table(
            title=f"Held out: C = {of['budget']:.3g}, {of['beyond']:.1f}x beyond the fit; measured loss "
            f"{of['loss']:.4f} at N = {number_text(of['params'])} ({of['sizes']} sizes{edge})",
            title_justify="left",
        )
        for column in ("law", "predicted loss", "error", "predicted N / measured"):
            table.add_column(column, justify="left" if column == "law" else "right")
        for name, prediction in of["predictions"].items():
            ratio = prediction["params_ratio"]
            table.add_row(
                name, f"{prediction['loss']:.4f}", f"{prediction['loss_error']:+.2%}", f"{ratio:.2f}" if ratio else ""
            )
        console.print(table)


def _print_returns(console: Console, value: Any) -> None:
    if not value:
        return
    if "why" in value:
        console.print(f"Returns: {value['why']}", markup=False)
        return
    correlation = value["rank_correlation_with_loss"]
    lines = [f"rank correlation of loss and return over {value['cells']} cells: {number_text(correlation, 3)}"]
    for name in ("saturating", "from_loss"):
        of = value.get(name)
        if not of:
            continue
        if "why" in of:
            lines.append(f"{name.replace('_', ' ')}: {of['why']}")
        elif name == "saturating":
            offset = of["inverse"]["offset"]
            lines.append(
                f"saturating law: ends at {number_text(1 / offset) if offset else 'no value that the data show'}"
            )
        else:
            lines.append(f"log return = c + {of['exponent']:.3g} log(1 / loss), R2 {of['r2']:.3f}")
    for line in lines:
        console.print(f"Returns: {line}", markup=False)


def _print_comparisons(console: Console, comparisons: Any) -> None:
    if not comparisons:
        return
    table = Table(title="Variants in pairs: difference of held-out loss, first less second", title_justify="left")
    for column in ("task", "first", "second", "difference [95% interval]", "pairs", "verdict"):
        table.add_column(column)
    for of in comparisons:
        table.add_row(
            of["task"], of["first"], of["second"], f"{of['difference']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]",
            f"{of['pairs']}", of["verdict"],
        )  # fmt: skip
    console.print(table)


def _reproducibility_table(value: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, title="To reproduce", title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, of in value.items():
        table.add_row(name.replace("_", " "), ", ".join(map(str, of)) if isinstance(of, list) else str(of))
    return table
