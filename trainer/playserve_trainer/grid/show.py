"""A plan and a status as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from playserve_trainer.grid.plan import Plan, Run
from playserve_trainer.grid.status import STATES, GridStatus
from playserve_trainer.wording import clock

__all__ = ["print_plan", "print_status"]


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else clock(seconds)


def print_plan(console: Console, plan: Plan, workers: int) -> None:
    """Print which sizes each budget has, every run, and what all of it takes."""
    study = plan.study
    console.print(f"{study.study} [{study.tier}]: {study.title}", markup=False, highlight=False)
    console.print(_budgets(plan))
    console.print(_runs(plan))
    train = [run for run in plan.runs if run.kind == "train"]
    flops = sum(run.flops for run in plan.runs)
    text = (
        f"{len(plan.cells)} cells in {len(train)} runs, and {len(plan.runs) - len(train)} short runs that tune "
        f"learning rates; {'at most ' if study.stop.rule == 'held-out' else ''}{flops:.3g} FLOPs"
    )
    if all(run.prediction for run in plan.runs):
        total = sum(run.prediction.wall_s for run in plan.runs if run.prediction)
        peak = max(run.prediction.peak_mib for run in plan.runs if run.prediction)
        text += (
            f"; {_hours(total)} of training on {plan.machine}, {_hours(total / workers)} for each of {workers} workers "
            f"that do not slow each other; {peak:,.0f} MiB a worker at most"
        )
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    again = [run for run in train if run.prediction and run.prediction.epochs > 1]
    if again and study.stop.rule == "budget":
        most = max(run.prediction.epochs for run in again if run.prediction)
        console.print(
            f"{len(again)} runs see their data more than once (up to {most:.1f} times): they are data-constrained",
            style="yellow",
        )


def _budgets(plan: Plan) -> Table:
    study, first = plan.study, next(iter(plan.study.variants))
    shown = [name for name, variant in study.variants.items() if name == first or variant.centre]
    table = Table(title="sizes at each budget (first variant)", box=None, title_justify="left")
    if len(shown) > 1:
        table.title = "sizes at each budget (first variant, and those with a centre of their own)"
        table.add_column("variant")
    for title in ("task", "budget", "sizes", "N", "N_c", "seeds"):
        table.add_column(title, justify="left" if title in ("task", "sizes", "N") else "right")
    for name in shown:
        for task in study.tasks:
            for budget in (*study.budgets, *study.hold_out):
                table.add_row(*([name] if len(shown) > 1 else []), *_window(plan, name, task, budget))
    return table


def _window(plan: Plan, variant: str, task: str, budget: float) -> Sequence[str]:
    study = plan.study
    runs = [
        run
        for run in plan.runs
        if (run.task, run.variant) == (task, variant) and budget in [cell.budget for cell in run.cells]
    ]
    sizes = {run.size: run.params for run in sorted(runs, key=lambda run: run.params)}
    centre = study.centre_of(variant)
    return (
        task,
        f"{budget:.3g}" + (" hold-out" if budget in study.hold_out else ""),
        " ".join(map(str, sizes)),
        " ".join(f"{n:.3g}" for n in sizes.values()),
        f"{centre.params(budget):.3g}" if centre else "-",
        str(len({run.seed for run in runs})),
    )


def _runs(plan: Plan) -> Table:
    table = Table(title="runs, by completion index", box=None, title_justify="left")
    titles = ("#", "run", "N", "FLOPs/sample", "batch", "lr", "cells", "to FLOPs", "samples", "epochs", "time", "MiB")
    for title in titles:
        table.add_column(title, justify="left" if title == "run" else "right", no_wrap=True)
    for index, run in enumerate(plan.runs):
        table.add_row(*_row(index, run))
    return table


def _row(index: int, run: Run) -> Sequence[str]:
    said = run.prediction
    return (
        str(index), run.name, f"{run.params:,}", f"{run.flops_per_sample:.3g}", str(run.batch_size),
        f"{run.lr:g}" if run.lr else "tuned", str(len(run.cells)) if run.cells else "-", f"{run.flops:.3g}",
        f"{run.samples:,}", f"{said.epochs:.2f}" if said else "-", _hours(said.wall_s) if said else "-",
        f"{said.peak_mib:,.0f}" if said else "-",
    )  # fmt: skip


def print_status(console: Console, status: GridStatus, workers: int) -> None:
    """Print every run that is not simply done or waiting, and the account of the whole grid."""
    table = Table(box=None)
    for title in ("run", "state", "cells", "%", "loss", "held out", ""):
        table.add_column(title, overflow="fold")
    for item in status.runs:
        if item.state == "done" or (item.state == "waiting" and item.progress is None):
            continue
        progress = item.progress
        table.add_row(
            item.run.name, item.state, f"{len(item.done_cells)}/{len(item.run.cells)}", f"{item.fraction:.0%}",
            f"{progress.loss:.4f}" if progress else "-",
            f"{progress.held_out_loss:.4f}" if progress and progress.held_out_loss is not None else "-",
            escape(item.reason),
        )  # fmt: skip
    if table.row_count:
        console.print(table)
    counts = ", ".join(f"{len(status.of(state))} {state}" for state in STATES)
    left = status.left_s(workers)
    console.print(
        f"{status.plan.study.study} [{status.plan.study.tier}]: {status.done_cells} of {len(status.plan.cells)} cells; "
        f"runs: {counts}; {_hours(status.spent_s)} trained, "
        + (f"about {_hours(left)} left with {workers} workers" if left is not None else "time left not known yet"),
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    share = status.overhead.training_share
    if share is not None:
        spent = status.overhead
        console.print(
            f"workers: {_hours(spent.busy_s)} busy, of it training {share:.1%} (budget: 95%), evaluating "
            f"{spent.evaluating_s / spent.busy_s:.1%}, preparing {spent.preparing_s / spent.busy_s:.1%}, publishing "
            f"{spent.publishing_s / spent.busy_s:.1%}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
