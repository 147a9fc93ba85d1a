"""What is shown of laws, as words and rows of text: the terminal and the page say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "Rows",
    "by_data",
    "comparisons",
    "constrained",
    "forecasts",
    "group_name",
    "hold_outs",
    "laws",
    "notes",
    "number",
    "refusals",
    "reproducibility",
    "returns",
    "whole_data",
]

_MEANINGS = {
    "n_exponent": "a: N_opt ~ C^a",
    "d_exponent": "b: D_opt ~ C^b",
    "loss_slope": "k: L_opt ~ C^k, no offset",
    "loss_exponent": "g: L_opt = k C^-g + b",
    "loss_offset": "b: what is left of the loss",
    "alpha": "alpha (of N)",
    "beta": "beta (of D)",
    "repeats": "R*: repeats after which more are worth little",
}


class Rows(NamedTuple):
    """A table.

    Attributes:
        header: Name of each column.
        rows: Cells; the same number in each.
        title: What it shows, a sentence; "" where the place says it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


def number(value: float | None, digits: int = 4) -> str:
    """Return a number for people; "-" where there is none."""
    if value is None:
        return "-"
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.{digits}g}"


def _interval(interval: Mapping[str, Any] | None) -> str:
    if not interval or interval["low"] is None:
        return ""
    return f" [{number(interval['low'])}, {number(interval['high'])}]"


def group_name(group: Mapping[str, Any]) -> str:
    """Return the name of a group of cells."""
    return " ".join(filter(None, (group["task"], group["variant"]))) or "all cells"


def whole_data(group: Mapping[str, Any]) -> str:
    """Return how many cells the laws over compute see, where it is not all of them; "" else."""
    cells = group["whole_data_cells"]
    return "" if cells == group["cells"] else f"; laws over compute see the {cells} that learn from all the data"


def laws(group: Mapping[str, Any]) -> Rows:
    """Return every number of every law that was fitted, with its interval and its spread over left-out budgets."""
    rows = []
    for name, law in group["laws"].items():
        for key, of in law.get("numbers", {}).items():
            if key == "d_exponent" and group["is_6nd"]:
                continue
            without = of["without_one_budget"]
            spread = f"{number(without[0])} to {number(without[1])}" if without else ""
            rows.append([name, _MEANINGS.get(key, key), number(of["value"]) + _interval(of["interval"]), spread])
    return Rows(("law", "number", "value [95% interval]", "one budget left out"), rows)


def refusals(group: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each law, and each budget of a law, that was refused."""
    found = []
    for name, law in group["laws"].items():
        if "refused" in law:
            found.append(f"{name} refused ({law['refused']}): {law['why']}")
        found += [
            f"{name}, budget {of['budget']:.3g}, left out ({of['refused']}): {of['why']}"
            for of in law.get("refused_budgets", [])
        ]
    return found


def notes(group: Mapping[str, Any]) -> list[str]:
    """Return what the reader of the numbers should know."""
    found = list(group["intervals_hold"])
    if group["is_6nd"]:
        found.append("C = 6ND in every cell: a + b = 1 by definition and shows nothing, so b is not listed.")
    found += [f"Break point: {of['verdict']}." for of in group["break_points"] or ()]
    check = group["many_starts"]
    if check:
        found.append(
            f"Parametric law, variable projection and {check['starts']:,} starts: {check['verdict']} (the starts: "
            f"alpha {check['law']['alpha']:.4f}, beta {check['law']['beta']:.4f}, E {check['law']['e']:.4f})."
        )
    return found


def hold_outs(value: Any) -> list[Rows]:
    """Return a table for each budget held out; none where the hold-out was refused."""
    found = []
    for of in value if isinstance(value, list) else []:
        edge = ", at an edge of those trained" if of["params_edge"] else ""
        rows = [
            [name, f"{one['loss']:.4f}", f"{one['loss_error']:+.2%}",
             f"{one['params_ratio']:.2f}" if one["params_ratio"] else "-"]
            for name, one in of["predictions"].items()
        ]  # fmt: skip
        title = (
            f"C = {of['budget']:.3g}, {of['beyond']:.1f}x beyond the fit: measured loss {of['loss']:.4f} at "
            f"N = {number(of['params'])} (best of {of['sizes']} sizes{edge})"
        )
        found.append(Rows(("law", "predicted loss", "error", "predicted N / measured"), rows, title))
    return found


def forecasts(value: Mapping[str, Any]) -> tuple[Rows, list[str]]:
    """Return the forecasts of a group, and a sentence for each law that makes none."""
    header = ("C", "beyond", "law", "N", "D", "loss of the one agent that is trained")
    if "forecasts" not in value:
        return Rows(header, []), [f"no forecast: {value['why']}"]
    rows = [
        [f"{of['flops']:.3g}", f"{of['beyond']:.1f}x", of["estimator"]]
        + [number(of["values"][key]) + _interval(of["intervals"].get(key)) for key in ("params", "samples", "loss")]
        for of in value["forecasts"]
    ]
    return Rows(header, rows), [f"{law}: {why}" for law, why in value["refused"].items()]


def returns(value: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing found about returns."""
    if not value:
        return []
    if "why" in value:
        return [value["why"]]
    found = [
        f"Rank correlation of loss and return over {value['cells']} cells: "
        f"{number(value['rank_correlation_with_loss'], 3)}."
    ]
    of = value["from_loss"]
    found.append(
        f"From loss: {of['why']}"
        if "why" in of
        else f"log return = c + {of['exponent']:.3g} log(1 / loss), R2 {of['r2']:.3f}."
    )
    law = value.get("saturating")
    if law:
        offset = law["inverse"]["offset"] if "inverse" in law else None
        end = f"ends at {number(1 / offset)}" if offset else "shows no end"
        found.append(f"Saturating law of C: {law.get('why', end)}.")
    return found


def by_data(value: Sequence[Mapping[str, Any]]) -> Rows:
    """Return every size at every amount of unique data, by its best checkpoint."""
    points = [(curve, point) for curve in value for point in curve["points"]]
    shown = [
        (name, f"{title} +- se")
        for name, title in (("return", "return"), ("transfer", "return where nothing was learnt"))
        if any(point[f"{name}_mean"] is not None for _, point in points)
    ]
    rows = [
        [curve["size"], number(curve["params"]), f"{point['unique_samples']:,.0f}", f"{point['epochs']:.1f}",
         f"{point['loss']:.4f}", *(_with_error(point[f"{name}_mean"], point[f"{name}_se"]) for name, _ in shown)]
        for curve, point in points
    ]  # fmt: skip
    header = ("size", "N", "unique samples", "epochs at the best", "loss", *(title for _, title in shown))
    return Rows(header, rows)


def constrained(value: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """Return the numbers of the law of repeated data, and what it says of held-out cells; empty where refused."""
    if "numbers" not in value:
        return Rows((), []), Rows((), [])
    edge = {"repeats": " (the edge of what was tried)"} if value["at_edge"] else {}
    numbers = [
        [_MEANINGS.get(key, key), number(of["value"]) + _interval(of["interval"]) + edge.get(key, "")]
        for key, of in value["numbers"].items()
    ]
    title = (
        f"L(N, unique D, epochs) over {value['cells']} cells; left out are {value['overfitted']} past the least loss "
        "of their run"
    )
    judged = [
        [of["cell"], number(of["params"]), f"{of['unique_samples']:,.0f}", f"{of['epochs']:.1f}", f"{of['loss']:.4f}",
         number(of["predicted"]) + _interval(of["interval"]), f"{of['predicted'] / of['loss'] - 1:+.1%}"]
        for of in value["held_out"]
    ]  # fmt: skip
    header = ("cell, held out", "N", "unique samples", "epochs", "loss", "predicted [95%]", "error")
    return Rows(("number", "value [95% interval]"), numbers, title), Rows(header, judged)


def _with_error(mean: float | None, error: float | None) -> str:
    return number(mean) if mean is None or error is None else f"{number(mean)} +- {number(error, 2)}"


def comparisons(value: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the paired differences of variants."""
    rows = [
        [of["task"], of["first"], of["second"], f"{of['difference']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]",
         f"{of['pairs']}", of["verdict"]]
        for of in value
    ]  # fmt: skip
    return Rows(("task", "first", "second", "loss, first less second [95%]", "pairs", "verdict"), rows)


def reproducibility(value: Mapping[str, Any]) -> Rows:
    """Return what a refit needs."""
    rows = [
        [name.replace("_", " "), ", ".join(map(str, of)) if isinstance(of, list) else str(of)]
        for name, of in value.items()
    ]
    return Rows(("", ""), rows)
