"""The demo's tables for the terminal: scores beside their goals, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from playserve_trainer.demo.log import DemoLog
from playserve_trainer.demo.outcome import GameOutcome
from playserve_trainer.wording import clock, number

__all__ = ["print_outcomes", "print_times", "protocol_lines", "verdict_line"]


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """Return in words whether a game's goal is met, with the lower bound."""
    interval = verdict["interval"]
    found = f"mean {number(verdict['mean'])}"
    if interval:
        found += f", 95% interval {number(interval['low'])} to {number(interval['high'])}"
    found += f", {verdict['episodes']} episodes{_above(verdict)}"
    if verdict["goal"] is None:
        return f"{found}; nothing is judged in a quick demo"
    against = f"the goal of {number(verdict['goal'])} ({verdict['goal_note']})"
    if not verdict["met"]:
        reached = verdict["mean"] is not None and verdict["mean"] >= verdict["goal"]
        return f"GOAL MISSED: {found}, " + (
            "is not surely above the best baseline" if reached else f"is below {against}"
        )
    sure = "the lower bound reaches it too" if verdict["lower_bound_met"] else "but the lower bound is below it"
    return f"goal met: {found}, reaches {against}; {sure}"


def _above(verdict: Mapping[str, Any]) -> str:
    """Return in words how far the agent is above the best baseline; empty where that was not asked."""
    above = verdict["above_best_baseline"]
    if above is None:
        return ""
    interval = above["interval"]
    bounds = f" [{number(interval['low'])}, {number(interval['high'])}]" if interval else ""
    return f", {number(above['difference'])}{bounds} above the best baseline ({above['baseline']})"


def protocol_lines(outcomes: Sequence[GameOutcome]) -> list[str]:
    """Return the protocol of the rollouts: what all games share once, the rest with the game's name."""
    protocols = {outcome.plan.title: outcome.results["protocol"] for outcome in outcomes}
    shared = [line for line in next(iter(protocols.values()), []) if all(line in lines for lines in protocols.values())]
    return shared + [f"{game}: {line}" for game, lines in protocols.items() for line in lines if line not in shared]


def print_outcomes(outcomes: Sequence[GameOutcome], console: Console) -> None:
    """Print the score table of each game, the protocol, and a verdict for each goal."""
    for outcome in outcomes:
        console.print(_score_table(outcome, plain=not console.is_terminal))
    for line in protocol_lines(outcomes):
        console.print(f"  {line}", markup=False)
    for outcome in outcomes:
        verdict = outcome.judge()
        style = {True: "bold green", False: "bold red", None: ""}[verdict["met"]]
        console.print(f"{outcome.plan.title}: {verdict_line(verdict)}", style=style, markup=False)


def _score_table(outcome: GameOutcome, *, plain: bool) -> Table:
    title = f"{outcome.plan.title}, played through the endpoint"
    table = Table(box=box.ASCII2 if plain else box.ROUNDED, title=title, title_justify="left")
    table.add_column("player")
    sticky = any(row["stickiness"] is not None for row in outcome.rows)
    for name in (*(["sticky"] if sticky else []), "n", "mean", "95% interval", "median", "steps"):
        table.add_column(name, justify="right", no_wrap=True)
    last = outcome.rows[0]["stickiness"] if outcome.rows else None
    for row in outcome.rows:
        if row["stickiness"] != last:
            table.add_section()
            last = row["stickiness"]
        table.add_row(outcome.name_of(row), *([f"{row['stickiness']:g}"] if sticky else []), *_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    interval = row["mean_interval"]
    return [
        f"{row['episodes']}",
        number(row["mean"]),
        f"{number(interval['low'])} to {number(interval['high'])}" if interval else "-",
        number(row["median"]),
        "-" if row["mean_steps"] is None else f"{row['mean_steps']:,.0f}",
    ]


def print_times(log: DemoLog, console: Console) -> None:
    """Print the time of each stage and the whole."""
    parts = ", ".join(f"{name} {clock(seconds)}" for name, seconds in log.seconds().items())
    again = any(len(stage["attempts"]) > 1 for stage in log.value["stages"])
    killed = any(attempt["seconds"] is None for stage in log.value["stages"] for attempt in stage["attempts"])
    note = " (all attempts together" + (", one was killed and is not counted)" if killed else ")") if again else ""
    console.print(f"stages: {clock(log.total_s())} in all{note}: {parts}", markup=False)
    console.print(f"this run, from start to page: {clock(log.value['run_seconds'])}", markup=False)
