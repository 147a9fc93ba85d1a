"""The results of the Doom recipe as tables: cells that terminal, Markdown and page share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from playserve_trainer.demo.doom.results import CONTROLS, RUBRIC
from playserve_trainer.wording import duration, number

__all__ = ["Grid", "grids", "markdown", "measured_text", "print_results", "verdict_text"]

_PLAIN_WIDTH = 160
_INTERVALS = (
    "Intervals are 95%: percentile bootstrap of scores and of normalised scores (agent, random player and expert "
    "resampled), Wilson's of shares. Normalised: (agent - random) / (expert - random)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table.

    Attributes:
        title: Above it.
        head: Names of the columns.
        rows: Cells.
        note: Below it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def grids(value: Mapping[str, Any]) -> list[Grid]:
    """Return the tables of a ``results.json`` value; those without rows are left out."""
    found = [_scores(value["scores"]), _goals(value["goals"]), _desktops(value["desktop"]), _rubric(value)]
    return [grid for grid in found if grid.rows]


def _scores(items: Sequence[Mapping[str, Any]]) -> Grid:
    rows = tuple(
        (
            item["scenario"], f"{item['episodes']}", _mean(item["agent"]), _mean(item["random"]), _mean(item["idle"]),
            _mean(item["expert"]), _ranged(item["normalised"], "value"),
        )
        for item in items
    )  # fmt: skip
    return Grid(
        title="Scores, headless, by unseen phrasings",
        head=("scenario", "episodes", "agent", "random", "idle", "expert", "normalised"),
        rows=rows,
        note=_INTERVALS,
    )


def _goals(items: Sequence[Mapping[str, Any]]) -> Grid:
    names = [name for name, _, _ in CONTROLS]
    rows = tuple(
        (
            f"{item['scenario']}: {item['goal']}",
            f"{item['unseen']['episodes']}" if item["unseen"] else "-",
            *(_percent(item[name]) for name in names),
            *(_percent(item[name], short=True) for name in ("random", "idle", "expert")),
        )
        for item in items
    )
    return Grid(
        title="Is the goal met that was asked for?",
        head=("map: goal", "episodes", *names, "chance (random)", "idle", "expert"),
        rows=rows,
        note="Both goals of a map are played from the same seeds. Unseen: phrasings that were never trained on; "
        "trained: those that were; no text: none at all; wrong text: the map's other goal is asked for, and the share "
        "is still of this one, so that a policy that obeys is low there.",
    )


def _desktops(items: Sequence[Mapping[str, Any]]) -> Grid:
    def ms(item: Mapping[str, Any], key: str) -> str:
        found = item["play"].get(key) or {}
        return f"{found['p50']:.1f} / {found['p99']:.1f}" if found.get("count") else "-"

    rows = tuple(
        (
            item["scenario"], f"{item['episodes']}", _mean(item), _ranged(item["normalised"], "value"),
            number(item["play"]["mean_rate_hz"]), ms(item, "capture_to_applied_ms"), ms(item, "model_ms"),
        )
        for item in items
    )  # fmt: skip
    return Grid(
        title="Through the desktop: a visible window, its pixels, real keys and mouse",
        head=("scenario", "episodes", "agent", "normalised", "Hz", "capture to key, p50 / p99 ms", "the model, ms"),
        rows=rows,
        note="The window is played by `playserve play` over gRPC at the game's own clock of 40 tics a second; the "
        "counters are the game's. Normalised by the headless random player and expert.",
    )


def _rubric(value: Mapping[str, Any]) -> Grid:
    rows = []
    for item in value["scores"]:
        for player, key in (("agent", "rubric"), ("expert", "rubric_expert")):
            rows.append((item["scenario"], player, *(number(item[key].get(fact)) for fact, _ in RUBRIC)))
    rows += [
        (item["scenario"], "agent, desktop", *(number(item["rubric"].get(fact)) for fact, _ in RUBRIC))
        for item in value["desktop"]
    ]
    return Grid(
        title="How it plays: in 100 s of play",
        head=("scenario", "player", *(label for _, label in RUBRIC)),
        rows=tuple(rows),
    )


def _mean(item: Mapping[str, Any] | None) -> str:
    if item is None or item["mean"] is None:
        return "-"
    interval = item["interval"]
    return number(item["mean"]) + (f" [{number(interval['low'])}, {number(interval['high'])}]" if interval else "")


def _ranged(item: Mapping[str, Any] | None, key: str) -> str:
    if item is None or item[key] is None:
        return "-"
    interval = item["interval"]
    return f"{item[key]:.2f}" + (f" [{interval['low']:.2f}, {interval['high']:.2f}]" if interval else "")


def _percent(item: Mapping[str, Any] | None, *, short: bool = False) -> str:
    if item is None:
        return "-"
    interval = item["interval"]
    return f"{item['share']:.0%}" + ("" if short else f" [{interval['low']:.0%}, {interval['high']:.0%}]")


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """Return in words whether a limit is reached."""
    if verdict["limit"] is None:
        return measured_text(verdict)
    return f"{'met   ' if verdict['met'] else 'MISSED'}  {measured_text(verdict)}"


def measured_text(verdict: Mapping[str, Any]) -> str:
    """Return in words what was measured and wanted."""
    value = f"{verdict['name']}: {_ranged(verdict, 'value')}"
    if verdict["limit"] is None:
        return f"{value}, nothing is judged here"
    sure = "the lower bound reaches it too" if verdict["lower_bound_met"] else "the lower bound does not"
    return f"{value}, wanted {verdict['limit']:g}" + (f"; {sure}" if verdict["met"] else "")


def markdown(value: Mapping[str, Any], log: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    plan, machine = value["plan"], log["machine"]
    lines = [
        f"# Doom: the {plan['name']} recipe",
        "",
        f"{plan['frames']:,} frames a goal recorded, {plan['minutes']:g} minutes of training, on {machine['cores']} "
        f"cores of {machine['cpu']}; recording and training took {duration(value['record_and_train_seconds'])}.",
        "",
        *(f"- {verdict_text(verdict)}" for verdict in value["verdicts"]),
    ]
    for grid in grids(value):
        rule = "|".join(["---", *["---:"] * (len(grid.head) - 1)])
        lines += ["", f"## {grid.title}", "", f"|{'|'.join(grid.head)}|", f"|{rule}|"]
        lines += [f"|{'|'.join(row)}|" for row in grid.rows]
        lines += ["", grid.note] if grid.note else []
    lines += ["", "## Settings, and why", ""]
    lines += [f"- {name}: {reason}" for name, reason in plan["reasons"].items()]
    lines += ["", "## Commands", ""]
    lines += [f"    {' '.join(stage['command'])}" for stage in log["stages"] if stage["command"]]
    return "\n".join(lines) + "\n"


def print_results(value: Mapping[str, Any], console: Console) -> None:
    """Print the tables and a verdict for each number that has a limit."""
    # Where the output is a file or a pipe nobody can widen the window.
    wide = console if console.is_terminal else Console(file=console.file, width=_PLAIN_WIDTH, highlight=False)
    for grid in grids(value):
        table = Table(
            *grid.head, title=grid.title, title_justify="left", box=box.ROUNDED if console.is_terminal else box.ASCII2
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for row in grid.rows:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        wide.print(table)
        if grid.note:
            console.print(f"  {grid.note}", markup=False)
    for verdict in value["verdicts"]:
        style = {True: "bold green", False: "bold red", None: ""}[verdict["met"]]
        console.print(verdict_text(verdict), style=style, markup=False)
